import ArgumentParser
import Foundation
import LMKernels

struct InfoCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "info",
        abstract: "Describe the machine and measure its limits; takes a few seconds."
    )

    @Flag(help: "Print JSON, with times in seconds and rates in units per second.")
    var json = false

    @Flag(help: "Only print the instruction sets that this CPU can run, one on a line.")
    var supported = false

    func run() throws {
        guard !supported else {
            for set in InstructionSet.allCases where set.isSupported { print(set.rawValue) }
            return
        }
        let report = MachineReport()
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            print(String(decoding: try encoder.encode(report), as: UTF8.self))
        } else {
            print(report.text)
        }
    }
}

/// What `lmk info` finds out.
struct MachineReport: Encodable {
    struct Arithmetic: Encodable {
        var type: String
        var threads: Int
        var flopPerSecond: Double
    }

    struct Reading: Encodable {
        /// Of what is read, by all threads together.
        var bytes: Int
        /// Where that fits: the cache level, 0 for memory.
        var level: Int
        var threads: Int
        var bytesPerSecond: Double
    }

    struct Copying: Encodable {
        /// Of source and of destination.
        var bytes: Int
        var streaming: Bool
        var threads: Int
        /// Read and written.
        var bytesPerSecond: Double
    }

    struct ForkJoin: Encodable {
        var threads: Int
        var seconds: Double
    }

    let cpu = Machine.cpuName
    let instructionSet = InstructionSet.current.rawValue
    let supportedInstructionSets =
        InstructionSet.allCases.filter(\.isSupported).map(\.rawValue)
    let threads = Threads.count()
    let threadRuntime = Threads.runtime
    let cacheBytes = Machine.cacheSizes
    private(set) var arithmetic: [Arithmetic] = []
    private(set) var reading: [Reading] = []
    private(set) var copying: [Copying] = []
    private(set) var forkJoin: [ForkJoin] = []

    /// One thread and all of them.
    private var threadCounts: [Int] { threads > 1 ? [1, threads] : [1] }

    init() {
        for threads in threadCounts {
            measureArithmetic(threads)
            measureReading(threads)
            measureCopying(threads)
            if threads > 1 {
                forkJoin.append(
                    .init(threads: threads, seconds: Machine.forkJoinCost(threads: threads)))
            }
        }
    }

    private mutating func measureArithmetic(_ threads: Int) {
        let peaks = [
            ("float32", Machine.arithmeticPeak(Float.self, threads: threads)),
            ("bfloat16", Machine.arithmeticPeak(BFloat16.self, threads: threads)),
        ]
        for case (let type, let peak?) in peaks {
            arithmetic.append(.init(type: type, threads: threads, flopPerSecond: peak))
        }
    }

    private mutating func measureReading(_ threads: Int) {
        let caches = cacheBytes.isEmpty ? [32 << 10, 1 << 20, 32 << 20] : cacheBytes
        for (index, cache) in caches.enumerated() {
            // Half of a cache is surely free. The first two levels are each CPU's own.
            let bytes = cache / 2 * (index < 2 ? threads : 1)
            let fitsBelow = index >= 2 && bytes / threads <= caches[index - 1]
            if !fitsBelow { read(bytes, level: index + 1, threads) }
        }
        read(memoryBytes, level: 0, threads)
    }

    private mutating func read(_ bytes: Int, level: Int, _ threads: Int) {
        let rate = Machine.readBandwidth(bytes: bytes, threads: threads)
        reading.append(.init(bytes: bytes, level: level, threads: threads, bytesPerSecond: rate))
    }

    private mutating func measureCopying(_ threads: Int) {
        for streaming in [false, true] {
            let rate = Machine.copyBandwidth(
                bytes: memoryBytes, threads: threads, streaming: streaming)
            copying.append(
                .init(
                    bytes: memoryBytes, streaming: streaming, threads: threads,
                    bytesPerSecond: rate))
        }
    }

    /// Well beyond the largest cache.
    private var memoryBytes: Int { min(max(256 << 20, 4 * (cacheBytes.last ?? 0)), 1 << 30) }
}

// MARK: - Text

extension MachineReport {
    var text: String {
        var lines = [
            field("CPU", cpu.isEmpty ? "unknown" : cpu),
            field(
                "Instruction set",
                "\(instructionSet) (can run \(supportedInstructionSets.joined(separator: ", ")))"),
            field("Threads", "\(threads) (\(threadRuntime))"),
            field("Caches", cacheBytes.map(size).joined(separator: ", ")),
            "",
            row("", threadCounts.map { $0 == 1 ? "1 thread" : "\($0) threads" }),
            "Arithmetic, GFLOP/s",
        ]
        for (type, name) in [("float32", "multiply-add"), ("bfloat16", "pairs")] {
            let values = threadCounts.map { threads in
                arithmetic.first { $0.type == type && $0.threads == threads }?.flopPerSecond
            }
            lines.append(row("  \(type) \(name)", values.map { giga($0) }))
        }
        lines.append("Reading, GB/s")
        for level in Array(1...Swift.max(cacheBytes.count, 1)) + [0] {
            let values = threadCounts.map { threads in
                reading.first { $0.level == level && $0.threads == threads }
            }
            guard let first = values.compactMap({ $0 }).first else { continue }
            let place = level == 0 ? "memory" : "level \(level)"
            lines.append(
                row(
                    "  \(place), \(size(first.bytes / first.threads))",
                    values.map { giga($0?.bytesPerSecond) }))
        }
        lines.append("Copying in memory, GB/s read and written")
        for streaming in [false, true] {
            let values = threadCounts.map { threads in
                copying.first { $0.streaming == streaming && $0.threads == threads }
            }
            lines.append(
                row(
                    streaming ? "  past the caches" : "  ordinary",
                    values.map { giga($0?.bytesPerSecond) }))
        }
        let forks = threadCounts.map { threads in
            forkJoin.first { $0.threads == threads }.map { decimal($0.seconds * 1e6) } ?? "-"
        }
        lines.append(row("Fork and join, µs", forks))
        return lines.joined(separator: "\n")
    }

    private func field(_ name: String, _ value: String) -> String { padded(name, 18) + value }

    private func row(_ name: String, _ values: [String]) -> String {
        let cells = values.map { String(repeating: " ", count: max(1, 12 - $0.count)) + $0 }
        return padded(name, 30) + cells.joined()
    }

    private func padded(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(1, width - text.count))
    }

    private func giga(_ value: Double?) -> String { value.map { decimal($0 / 1e9) } ?? "-" }

    private func decimal(_ value: Double) -> String {
        String(format: value < 100 ? "%.1f" : "%.0f", value)
    }

    private func size(_ bytes: Int) -> String {
        bytes >= 1 << 20 ? "\(bytes >> 20) MB" : "\(bytes >> 10) KB"
    }
}
