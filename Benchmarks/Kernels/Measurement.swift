// The list of all benchmarks is written before they run, and read while they do.
@preconcurrency import Benchmark
import Foundation
import LMKernels

/// What bounds a kernel.
enum Limit: Equatable {
    /// Fused multiply-add.
    case float32
    /// Dot product of pairs, or tiles of them; where neither is in use, bfloat16 is widened and
    /// multiplied as float32.
    case bfloat16
    /// Memory: the bytes that a copy past the caches reads and writes.
    case copying
    /// The cache that holds an array of so many bytes, which is read and written in place.
    case updating(bytes: Int)

    /// Operations or bytes per second that can be reached now.
    func rate(threads: Int) -> Double {
        switch self {
        case .float32:
            return Machine.arithmeticPeak(Float.self, threads: 1)! * Double(threads)
        case .bfloat16:
            let dotProduct = Machine.arithmeticPeak(BFloat16.self, threads: 1)
            return dotProduct.map { $0 * Double(threads) } ?? Limit.float32.rate(threads: threads)
        case .copying:
            return Machine.copyBandwidth(bytes: 128 << 20, threads: threads, streaming: true)
        case .updating(let bytes):
            return BLAS.updateBandwidth(bytes: bytes, threads: threads)
        }
    }

    var unit: String {
        switch self {
        case .float32, .bfloat16: "GFLOP/s"
        case .copying, .updating: "GB/s"
        }
    }
}

/// What is measured, and what it is measured by.
struct Measurement {
    var name: String
    var limit = Limit.float32
    var threads = 1
    /// Floating-point operations of a call, or bytes where memory is the limit.
    var operations: Double
    /// Bytes that a call cannot avoid to read from memory, where that bounds it rather than
    /// arithmetic does.
    var bytes: Double?
    /// Numbers in the input, where the time of each is of interest.
    var entries: Int?
    /// Iterations that are timed, after one that is not.
    var iterations: Int
    /// Calls of an iteration: one, or many where a call is short.
    var calls = BenchmarkScalingFactor.one
    /// More to say at the end of the row.
    var note = ""

    /// Registers a benchmark of what `prepare` returns.
    ///
    /// Right before each iteration the limit is measured, arithmetic on one thread. Calls are held
    /// against that figure (times the number of threads), not against one from a quieter moment.
    func register(_ prepare: @escaping () throws -> () throws -> Void) {
        var call: () throws -> Void = {}
        var samples: [Sample] = []
        let configuration = Benchmark.Configuration(
            metrics: [.wallClock, .rate, .shareOfPeak] + (bytes == nil ? [] : [.bandwidth]),
            warmupIterations: 1, scalingFactor: calls, maxDuration: .seconds(60),
            maxIterations: iterations)
        Benchmark(name, configuration: configuration) { benchmark in
            let peak = limit.rate(threads: threads)
            let cpuStart = cpuSeconds()
            benchmark.startMeasurement()
            let times = try benchmark.scaledIterations.map { _ in
                try ContinuousClock().measure(call) / .seconds(1)
            }
            benchmark.stopMeasurement()
            let cpuTime = cpuSeconds() - cpuStart
            guard benchmark.currentIteration >= configuration.warmupIterations else { return }
            let sample = Sample(
                measurement: self, seconds: median(times), peak: peak,
                cpuShare: cpuTime / (times.reduce(0, +) * Double(threads)))
            benchmark.measurement(.rate, Int(sample.rate.rounded()))
            benchmark.measurement(.shareOfPeak, Int(sample.shareOfPeak.rounded()))
            if let bandwidth = sample.bandwidth {
                benchmark.measurement(.bandwidth, Int(bandwidth.rounded()))
            }
            samples.append(sample)
        } setup: {
            call = try prepare()
        } teardown: {
            printRow(samples)
        }
    }
}

extension BenchmarkMetric {
    static let rate = custom(
        "10^9 operations or bytes/s", polarity: .prefersLarger, useScalingFactor: false)
    static let shareOfPeak = custom("% of peak", polarity: .prefersLarger, useScalingFactor: false)
    static let bandwidth = custom("GB/s", polarity: .prefersLarger, useScalingFactor: false)
}

/// A timed iteration.
private struct Sample {
    var measurement: Measurement
    /// Of a call: the median of those in the iteration, which are not all interrupted.
    var seconds: Double
    /// Operations per second of all threads.
    var peak: Double
    /// Of the iteration's time, the share in which its threads had a CPU.
    var cpuShare: Double

    /// GFLOP/s, or GB/s
    var rate: Double { measurement.operations / seconds / 1e9 }
    /// In percent.
    var shareOfPeak: Double { 100 * measurement.operations / seconds / peak }
    /// GB/s
    var bandwidth: Double? { measurement.bytes.map { $0 / seconds / 1e9 } }
}

extension Measurement {
    /// Prints medians in one row. The tables of the benchmark package have percentiles of one
    /// metric, or of one benchmark, but not a row with the metrics of a benchmark side by side.
    private func printRow(_ samples: [Sample]) {
        // Then standard output belongs to the tool, which writes a file of results to it.
        let isReserved = CommandLine.arguments.contains("--suppress-metric-warnings")
        guard !samples.isEmpty, !isReserved else { return }
        let width = Benchmark.benchmarks.map(\.name.count).max()!
        var row = name.padding(toLength: width, withPad: " ", startingAt: 0)
        row += String(format: " %7.1f \(limit.unit)", median(samples.map(\.rate)))
        row += String(
            format: " %5.1f %% of %4.0f", median(samples.map(\.shareOfPeak)),
            median(samples.map(\.peak)) / 1e9)
        let milliseconds = 1e3 * median(samples.map(\.seconds))
        let decimals = milliseconds < 1 ? 3 : milliseconds < 10 ? 2 : milliseconds < 100 ? 1 : 0
        row += String(format: " %8.*f ms", decimals, milliseconds)
        var notes = note.isEmpty ? [] : [note]
        if let entries {
            let nanoseconds = 1e9 * median(samples.map(\.seconds)) / Double(entries)
            notes.append(String(format: "%.3f ns an entry", nanoseconds))
        }
        if bytes != nil {
            notes.append(String(format: "%.1f GB/s", median(samples.compactMap(\.bandwidth))))
        }
        // On a machine that has other things to do, figures of long calls say little.
        let cpuShare = median(samples.map(\.cpuShare))
        if cpuShare < 0.9 {
            notes.append(String(format: "had CPUs %.0f %% of the time", 100 * cpuShare))
        }
        print(row + (notes.isEmpty ? "" : "  ") + notes.joined(separator: ", "))
    }
}

func median(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    return (sorted[sorted.count / 2] + sorted[(sorted.count - 1) / 2]) / 2
}

/// Time that this process has been given by all CPUs.
private func cpuSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return Double(time.tv_sec) + 1e-9 * Double(time.tv_nsec)
}

/// "1 thread", "2 threads"
func describe(threads: Int) -> String { threads == 1 ? "1 thread" : "\(threads) threads" }

/// Numbers between -`scale` and `scale`, the same in every run.
func randomFloats(_ count: Int, scale: Float = 1, seed: UInt64) -> [Float] {
    // SplitMix64 (Steele, Lea and Flood, 2014).
    var state = seed
    return [Float](unsafeUninitializedCapacity: count) { buffer, initializedCount in
        for i in 0..<count {
            state &+= 0x9e37_79b9_7f4a_7c15
            var bits = (state ^ (state >> 30)) &* 0xbf58_476d_1ce4_e5b9
            bits = (bits ^ (bits >> 27)) &* 0x94d0_49bb_1331_11eb
            let unit = Float(Int32(truncatingIfNeeded: bits >> 32)) * 0x1p-31
            buffer.initializeElement(at: i, to: scale * unit)
        }
        initializedCount = count
    }
}
