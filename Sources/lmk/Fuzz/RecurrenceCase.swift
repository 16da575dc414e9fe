import Foundation
import LMKernels

/// The elementwise recurrence and its gradients.
struct RecurrenceCase: StageCase {
    static let operation = "elementwise-recurrence"

    var storage: StorageType
    var shape: LinearAttention.ChannelShape
    var offsets: [Int]?
    var threads: Int
    var grids: [Grid]
    var x: [Float]
    var logDecay: [Float]
    var outputGradient: [Float]
    var initialState: [Float]?
    var finalStateGradient: [Float]?

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .bfloat16, .float16])
        threads = random.threads()
        var channels = random.length(upTo: 300)
        let isLong = random.once(in: 4)
        if isLong { channels = min(channels, 20) }
        let tokens = isLong ? random.integer(1500...5000) : random.length(upTo: 80)
        let isPacked = random.once(in: 3)
        let batch = isPacked || isLong ? 1 : random.integer(0...3)
        shape = .init(batch: batch, tokens: tokens, channels: channels)
        offsets = isPacked ? drawOffsets(tokens, using: &random) : nil
        grids = []
        for _ in 0..<6 {
            grids.append(
                Grid(matrices: batch, rows: tokens, columns: channels, gapsFrom: &random))
        }
        let count = batch * tokens * channels
        let size = storage == .float16 ? random.power(-3...2) : random.power(-20...20)
        let storage = storage
        x = (0..<count).map { _ in storage.rounded(random.unit() * size) }
        outputGradient = (0..<count).map { _ in storage.rounded(random.unit()) }
        // From channels that keep everything to those that keep nothing.
        let speed = random.pick([0, 0.01, 1, 30] as [Float])
        let resets = random.pick([2, 50, 1_000_000])
        logDecay = (0..<count).map { _ in
            random.once(in: resets) ? -.infinity : -speed * random.number(0...1)
        }
        let states = (offsets.map { $0.count - 1 } ?? batch) * channels
        if random.once(in: 2) { initialState = (0..<states).map { _ in random.unit() * size } }
        if random.once(in: 2) { finalStateGradient = (0..<states).map { _ in random.unit() } }
        // Whether a segment begins with NaN or infinity after an infinite state is not promised.
        guard !isLong, random.once(in: 4), count > 0 else { return }
        x[random.below(count)] = random.pick([.nan, .infinity, -.infinity])
        outputGradient[random.below(count)] = random.pick([.nan, .infinity, -.infinity])
    }

    var description: String {
        "\(storage) batch \(shape.batch) tokens \(shape.tokens) channels \(shape.channels)"
            + " threads \(threads)" + (offsets.map { " offsets \($0)" } ?? "")
            + (initialState == nil ? "" : " state") + " gaps \(grids.map(\.gap))"
            + " places \(grids.map(\.offset))"
    }

    func call<Element: StorageValue>(
        as type: Element.Type, threads: Int, _ findings: inout Findings
    ) throws(KernelError) -> StageFound {
        typealias Recurrence = LinearAttention.ElementwiseRecurrence
        let filler = Element(Grid.filler)
        let x = grids[0].spread(self.x.map { Element($0) }, filler: filler)
        let g = grids[1].spread(logDecay, filler: Grid.filler)
        let a = grids[2].spread(outputGradient.map { Element($0) }, filler: filler)
        var strides = Recurrence.Strides()
        strides.x = grids[0].stageStrides
        strides.logDecay = grids[1].stageStrides
        strides.outputGradient = grids[2].stageStrides
        strides.output = grids[3].stageStrides
        strides.xGradient = grids[4].stageStrides
        strides.logDecayGradient = grids[5].stageStrides
        let states = (offsets.map { $0.count - 1 } ?? shape.batch) * shape.channels
        var finalState = Array(repeating: Grid.filler, count: states)
        var initialGradient = finalState
        let workspace = Workspace()
        let logDecay = g.span.extracting(grids[1].range)
        let h: [Float] = try grids[3].written("h", &findings) {
            (h: consuming MutableSpan<Element>) throws(KernelError) in
            try Recurrence.forward(
                x.span.extracting(grids[0].range), logDecay: logDecay, into: &h, shape: shape,
                strides: strides, offsets: offsets?.span, initialState: initialState?.span,
                finalState: finalState.mutableSpan, threads: threads, workspace: workspace)
        }
        let output = grids[3].spread(h.map { Element($0) }, filler: filler)
        let dx: [Float] = try grids[4].written("dx", &findings) {
            (dx: consuming MutableSpan<Element>) throws(KernelError) in
            try Recurrence.backward(
                logDecay: logDecay, outputGradient: a.span.extracting(grids[2].range),
                finalStateGradient: finalStateGradient?.span, xGradient: dx, shape: shape,
                strides: strides, offsets: offsets?.span, threads: threads, workspace: workspace)
        }
        let dg: [Float] = try grids[5].written("dg", &findings) {
            (dg: consuming MutableSpan<Float>) throws(KernelError) in
            try Recurrence.backward(
                logDecay: logDecay, output: output.span.extracting(grids[3].range),
                outputGradient: a.span.extracting(grids[2].range),
                finalStateGradient: finalStateGradient?.span, logDecayGradient: dg,
                initialStateGradient: initialGradient.mutableSpan, shape: shape,
                strides: strides, offsets: offsets?.span, initialState: initialState?.span,
                threads: threads, workspace: workspace)
        }
        return [
            ("h", h), ("final", finalState), ("dx", dx), ("dg", dg), ("initial", initialGradient),
        ]
    }

    /// The reference; bounds follow its recurrences with magnitudes in the place of values, once
    /// more for what segments add.
    func expected(_ found: StageFound) -> StageExpected {
        typealias Reference = ReferenceLinearAttention.ElementwiseRecurrence
        let problem = Reference.Problem(
            batch: shape.batch, tokens: shape.tokens, channels: shape.channels,
            x: x.map { Double($0) }, logDecay: logDecay.map { Double($0) },
            initialState: initialState?.map { Double($0) }, offsets: offsets)
        let (h, finalState) = Reference.forward(problem)
        let gradients = Reference.backward(
            problem, outputGradient: outputGradient.map { Double($0) },
            finalStateGradient: finalStateGradient?.map { Double($0) })
        let forward = bounds(
            of: x, from: initialState, isBackward: false)
        let backward = bounds(of: outputGradient, from: finalStateGradient, isBackward: true)
        // dg is a product with h as it is stored.
        let before = before(forward.bounds, h)
        let decays = h.indices.map { i -> Double in
            let value = gradients.logDecay[i].magnitude
            let carried = exp(Double(logDecay[i])) * gradients.x[i].magnitude
            return carried * before[i].error
                + (backward.bounds[i] + 4 * stageUnit * gradients.x[i].magnitude)
                * exp(Double(logDecay[i])) * before[i].magnitude + 3 * stageUnit * value
        }
        var expected = StageExpected()
        expected.add("h", h, forward.bounds, storage)
        expected.add("final", finalState, forward.last, .float32)
        expected.add("dx", gradients.x, backward.bounds, storage)
        expected.add("dg", gradients.logDecay, decays, .float32)
        expected.add("initial", gradients.initialState, backward.last, .float32)
        return expected
    }

    private var sequences: [Range<Int>] {
        if let offsets { return zip(offsets, offsets.dropFirst()).map { $0..<$1 } }
        return (0..<shape.batch).map { $0 * shape.tokens..<($0 + 1) * shape.tokens }
    }

    /// Bounds of every h, or dx, and of the last state.
    private func bounds(
        of inputs: [Float], from start: [Float]?, isBackward: Bool
    ) -> (bounds: [Double], last: [Double]) {
        let channels = shape.channels
        var bounds = Array(repeating: 0.0, count: inputs.count)
        var last: [Double] = []
        for (n, rows) in sequences.enumerated() {
            for c in 0..<channels {
                var magnitude = Double(start?[n * channels + c] ?? 0).magnitude
                var error = 0.0
                for row in isBackward ? rows.reversed() : Array(rows) {
                    let i = row * channels + c
                    let decay = exp(Double(logDecay[i]))
                    if !isBackward {
                        error = decay * (error + 4 * stageUnit * magnitude)
                        magnitude *= decay
                    }
                    magnitude += Double(inputs[i]).magnitude
                    error += 2 * stageUnit * magnitude + 0x1p-148
                    bounds[i] = 2 * error
                    if isBackward {
                        error = decay * (error + 4 * stageUnit * magnitude)
                        magnitude *= decay
                    }
                }
                last.append(2 * error + 0x1p-148)
            }
        }
        return (bounds, last)
    }

    /// The magnitude of each h_{t-1} and how far the stored one is from it.
    private func before(
        _ bounds: [Double], _ h: [Double]
    ) -> [(magnitude: Double, error: Double)] {
        let channels = shape.channels
        var result = Array(repeating: (magnitude: 0.0, error: 0.0), count: h.count)
        for (n, rows) in sequences.enumerated() {
            for row in rows {
                for c in 0..<channels {
                    let i = row * channels + c
                    if row == rows.lowerBound {
                        result[i].magnitude =
                            Double(initialState?[n * channels + c] ?? 0).magnitude
                    } else {
                        let value: Double = h[i - channels].magnitude
                        let bound: Double = bounds[i - channels]
                        let rounding: Double = value * storage.unit + 2 * storage.leastUnit
                        // An h beyond its storage is infinite there.
                        let isBeyond: Bool = value + bound > storage.overflow
                        result[i] = (value, isBeyond ? .nan : bound + rounding)
                    }
                }
            }
        }
        return result
    }
}
