internal import CLMKCore

#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

/// What this machine can do at best, measured: the limits that kernels are held against.
///
/// Every figure is the best of several short runs with the instruction set in use, and takes some
/// tens of milliseconds. Other work on the machine makes it lower.
public enum Machine {
    /// The processor's name as the system gives it; empty when it gives none.
    public static var cpuName: String {
        #if canImport(Darwin)
            var size = 0
            guard unsafe sysctlbyname("machdep.cpu.brand_string", nil, &size, nil, 0) == 0 else {
                return ""
            }
            var name = [CChar](repeating: 0, count: size)
            guard unsafe sysctlbyname("machdep.cpu.brand_string", &name, &size, nil, 0) == 0 else {
                return ""
            }
            return String(
                decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) },
                as: UTF8.self)
        #else
            // x86 has a name; Arm has numbers only.
            let line = firstLine(of: "/proc/cpuinfo") { $0.hasPrefix("model name") }
            guard let value = line.split(separator: ":", maxSplits: 1).dropFirst().first else {
                return ""
            }
            return String(value.drop { $0 == " " })
        #endif
    }

    /// Sizes in bytes of the caches of the first CPU that hold data, from level 1 up; empty when
    /// the system does not tell. A cache may be shared with other CPUs.
    public static var cacheSizes: [Int] {
        #if canImport(Darwin)
            return ["hw.perflevel0.l1dcachesize", "hw.perflevel0.l2cachesize"].compactMap {
                var bytes: Int64 = 0
                var size = MemoryLayout<Int64>.size
                return unsafe sysctlbyname($0, &bytes, &size, nil, 0) == 0 ? Int(bytes) : nil
            }
        #else
            return (0..<8).compactMap { index in
                let cache = "/sys/devices/system/cpu/cpu0/cache/index\(index)/"
                guard firstLine(of: cache + "type") != "Instruction" else { return nil }
                // "1024K"
                let size = firstLine(of: cache + "size")
                return size.hasSuffix("K") ? Int(size.dropLast()).map { $0 << 10 } : nil
            }
        #endif
    }

    /// Operations per second of independent multiply-adds in registers, each counted as two.
    ///
    /// - Parameters:
    ///   - type: `Float` for fused multiply-adds, `BFloat16` for sums of products of pairs.
    ///   - threads: Threads that work at the same time; 0 is the default of the runtime.
    /// - Returns: nil where the instruction set has no arithmetic on `type`.
    public static func arithmeticPeak<Element: StorageElement>(
        _ type: Element.Type, threads: Int = 0
    ) -> Double? {
        let dtype = type.storageType.dtype
        guard dtype != .LMK_FLOAT16, lmk_probe_arithmetic(dtype, 1) > 0 else { return nil }
        let threads = Threads.count(limit: threads)
        let operations = lmk_probe_arithmetic(dtype, 1) * Double(threads)
        return operations
            * bestRate(threads: threads) { _, repeats in
                _ = lmk_probe_arithmetic(dtype, repeats)
            }
    }

    /// Bytes per second read from arrays of `bytes` bytes, by a kernel that adds them up.
    ///
    /// - Parameters:
    ///   - bytes: Of all arrays together. Each thread reads its own part over and over, from the
    ///     cache that holds it.
    ///   - threads: Threads that work at the same time; 0 is the default of the runtime.
    public static func readBandwidth(bytes: Int, threads: Int = 0) -> Double {
        let threads = Threads.count(limit: threads)
        let parts = Parts(bytes: bytes, threads: threads)
        parts.fill()
        return parts.bytes
            * bestRate(threads: threads) { slot, repeats in
                for _ in 0..<repeats { _ = unsafe lmk_probe_read(parts[slot], parts.count) }
            }
    }

    /// Bytes per second read and written by copying arrays of `bytes` bytes: both are counted, what
    /// a cache reads before it is written is not.
    ///
    /// - Parameters:
    ///   - bytes: Of all sources together; destinations take as much again.
    ///   - threads: Threads that work at the same time, each on its own part; 0 is the default of
    ///     the runtime.
    ///   - streaming: Write past the caches.
    public static func copyBandwidth(
        bytes: Int, threads: Int = 0, streaming: Bool = false
    ) -> Double {
        let threads = Threads.count(limit: threads)
        let source = Parts(bytes: bytes, threads: threads)
        let destination = Parts(bytes: bytes, threads: threads)
        source.fill()
        destination.fill()
        return 2 * source.bytes
            * bestRate(threads: threads) { slot, repeats in
                for _ in 0..<repeats {
                    unsafe lmk_probe_copy(
                        source[slot], destination[slot], source.count, streaming ? 1 : 0)
                }
            }
    }

    /// Seconds from the start to the end of work that does nothing on `threads` threads: what a
    /// parallel call costs at least. The median of many.
    public static func forkJoinCost(threads: Int = 0) -> Double {
        let threads = Threads.count(limit: threads)
        let times = (0..<2001).map { _ in
            seconds { Threads.forEach(slots: threads, threads: threads) { _, _ in } }
        }
        return times.sorted()[times.count / 2]
    }
}

extension Machine {
    /// An array in one part for each thread, which that thread touches first.
    @safe private final class Parts: @unchecked Sendable {
        /// Floats of a part.
        let count: Int
        private let threads: Int
        private let memory: UnsafeMutablePointer<Float>
        private static let alignment = 4096

        /// Bytes of all parts.
        var bytes: Double { Double(threads * count * MemoryLayout<Float>.stride) }

        init(bytes: Int, threads: Int) {
            precondition(bytes >= 0, "bytes is negative")
            self.threads = threads
            // Whole vectors, so that every part is aligned.
            count = max(16, bytes / (threads * MemoryLayout<Float>.stride) / 16 * 16)
            unsafe memory = UnsafeMutableRawPointer.allocate(
                byteCount: threads * count * MemoryLayout<Float>.stride, alignment: Self.alignment
            ).bindMemory(to: Float.self, capacity: threads * count)
        }

        deinit { unsafe memory.deallocate() }

        subscript(part: Int) -> UnsafeMutablePointer<Float> { unsafe memory + part * count }

        func fill() {
            Threads.forEach(slots: threads, threads: threads) { slot, _ in
                unsafe self[slot].initialize(repeating: 1, count: self.count)
            }
        }
    }

    /// Rounds per second when each of `threads` threads does `repeats` rounds at the same time: the
    /// best of several runs, each long beside a fork and join.
    private static func bestRate(
        threads: Int, _ rounds: @Sendable (_ slot: Int, _ repeats: Int) -> Void
    ) -> Double {
        func time(_ repeats: Int) -> Double {
            seconds {
                Threads.forEach(slots: threads, threads: threads) { slot, _ in
                    rounds(slot, repeats)
                }
            }
        }
        // The first run also wakes threads and fills caches.
        var repeats = 1
        while time(repeats) < 0.001 { repeats *= 4 }
        let target = 0.004
        repeats = max(1, Int(Double(repeats) * target / time(repeats)))
        let best = (0..<12).map { _ in time(repeats) }.min()!
        return Double(repeats) / best
    }

    private static func seconds(_ work: () -> Void) -> Double {
        let elapsed = ContinuousClock().measure(work)
        return Double(elapsed.components.seconds) + 1e-18 * Double(elapsed.components.attoseconds)
    }

    /// The first line of a text file that fits; empty when there is none.
    private static func firstLine(
        of path: String, where fits: (String) -> Bool = { _ in true }
    ) -> String {
        guard let file = unsafe fopen(path, "r") else { return "" }
        defer { unsafe fclose(file) }
        var buffer: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { unsafe free(buffer) }
        while unsafe getline(&buffer, &capacity, file) > 0, let text = unsafe buffer {
            let line = unsafe String(cString: text)
            if fits(line) { return String(line.prefix { $0 != "\n" }) }
        }
        return ""
    }
}
