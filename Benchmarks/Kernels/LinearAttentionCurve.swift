@preconcurrency import Benchmark
import Foundation
import LMKernels

/// Prints tokens per second over the length of a sequence: linear attention, measured at each, and
/// exact attention, whose time for all pairs of tokens is measured at one length and grows with
/// its square. `Benchmarks/curve.py` draws a picture of what this prints.
func linearAttentionCurve() {
    let configuration = Benchmark.Configuration(
        metrics: [.wallClock], warmupIterations: 0, maxDuration: .seconds(300), maxIterations: 1)
    Benchmark("linear attention over lengths", configuration: configuration) { _ in
        for threads in [1, 2] {
            print(
                "\(heads) heads of width \(width), float32, \(describe(threads: threads)), "
                    + "tokens/s; exact attention measured at \(measuredTokens) tokens")
            print("  tokens     forward    backward       exact")
            let exact = try secondsOfExactAttention(threads: threads)
            // 1k to 128k.
            for exponent in 10...17 {
                try printRow(tokens: 1 << exponent, exact: exact, threads: threads)
            }
        }
    }
}

private let heads = 4
private let width = 64
private let measuredTokens = 1024

/// - Parameter exact: Seconds of exact attention for `measuredTokens`.
private func printRow(tokens: Int, exact: Double, threads: Int) throws {
    let inputs = try LinearAttentionInputs(Float.self, .token, width, tokens: tokens, heads: heads)
    let gradient = inputs.value
    var output = inputs.value
    var (queryGradient, keyGradient) = (inputs.query, inputs.key)
    var (valueGradient, logDecayGradient) = (inputs.value, inputs.logDecay)
    let options = LinearAttention.Options(decay: .token, threads: threads)
    let workspace = Workspace()
    let repeats = max(3, (1 << 15) / tokens)
    let forward = try medianSeconds(repeats) {
        try LinearAttention.forward(
            query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
            logDecay: inputs.logDecay?.span, output: output.mutableSpan, shape: inputs.shape,
            options: options, workspace: workspace)
    }
    let backward = try medianSeconds(repeats) {
        try LinearAttention.backward(
            query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
            logDecay: inputs.logDecay?.span, outputGradient: gradient.span,
            queryGradient: queryGradient.mutableSpan, keyGradient: keyGradient.mutableSpan,
            valueGradient: valueGradient.mutableSpan,
            logDecayGradient: logDecayGradient?.mutableSpan, shape: inputs.shape,
            options: options, workspace: workspace)
    }
    let ratio = Double(tokens) / Double(measuredTokens)
    let rates = [forward, backward, exact * ratio * ratio].map {
        String(format: "%12.0f", Double(tokens) / $0)
    }
    print(String(format: "%8d", tokens) + rates.joined())
}

/// softmax(q k^T) v of every head, as two products and a softmax of whole matrices.
private func secondsOfExactAttention(threads: Int) throws -> Double {
    let tokens = measuredTokens
    let q = randomFloats(heads * tokens * width, seed: 1)
    let k = randomFloats(heads * tokens * width, seed: 2)
    let v = randomFloats(heads * tokens * width, seed: 3)
    var scores = [Float](repeating: 0, count: heads * tokens * tokens)
    var output = v
    let workspace = Workspace()
    return try medianSeconds(9) {
        var span = scores.mutableSpan
        try Matmul.multiply(
            q.span, k.span, into: &span,
            shape: .init(rows: tokens, columns: tokens, depth: width, batch: heads), layout: .nt,
            threads: threads, workspace: workspace)
        try Softmax.forward(
            .softmax, inPlace: &span, shape: .init(rows: heads * tokens, columns: tokens),
            options: .init(scale: 1 / Float(width).squareRoot(), threads: threads),
            workspace: workspace)
        var result = output.mutableSpan
        try Matmul.multiply(
            scores.span, v.span, into: &result,
            shape: .init(rows: tokens, columns: width, depth: tokens, batch: heads), layout: .nn,
            threads: threads, workspace: workspace)
    }
}

/// Of several calls, after one that is not timed.
private func medianSeconds(_ repeats: Int, _ call: () throws -> Void) throws -> Double {
    try call()
    return median(
        try (0..<repeats).map { _ in try ContinuousClock().measure(call) / .seconds(1) })
}
