import LMKernels
import LMKernelsReference

/// A random elementwise recurrence, as the kernel and as the reference see it.
struct RecurrenceProblem<Element: TestElement> {
    var shape: LinearAttention.ChannelShape
    var offsets: [Int]?
    var x: StageTensor<Element>
    var logDecay: StageTensor<Float>
    var outputGradient: StageTensor<Element>
    var initialState: [Float]?
    var finalStateGradient: [Float]?
    var threads = 1

    static var filler: Float { -80 }

    struct Found {
        var output: StageTensor<Element>
        var finalState: [Float]
        var x: StageTensor<Element>
        var logDecay: StageTensor<Float>
        var initialState: [Float]

        var bits: [[UInt64]] {
            [
                output.bits, x.bits, logDecay.bits, finalState.map { UInt64($0.bitPattern) },
                initialState.map { UInt64($0.bitPattern) },
            ]
        }
    }

    init(
        batch: Int = 1, tokens: Int, channels: Int, offsets: [Int]? = nil, hasStates: Bool = true,
        resets: Bool = true, seed: UInt64 = 1
    ) {
        shape = .init(batch: batch, tokens: tokens, channels: channels)
        self.offsets = offsets
        var random = SeededGenerator(seed: seed)
        x = .init(shape).filled(-1...1, seed: seed &+ 1)
        // Some channels forget at once, some hardly ever, and now and then one is reset.
        logDecay = StageTensor<Float>(shape, gap: 3).filled { i in
            if resets, Int.random(in: 0..<40, using: &random) == 0 { return -.infinity }
            let slow: Float = (i % max(channels, 1)) % 3 == 0 ? 0.01 : 2
            return -Float.random(in: 0...slow, using: &random)
        }
        outputGradient = .init(shape, gap: 7).filled(-1...1, seed: seed &+ 2)
        guard hasStates else { return }
        let states = (offsets.map { $0.count - 1 } ?? batch) * channels
        initialState = (0..<states).map { _ in .random(in: -2...2, using: &random) }
        finalStateGradient = (0..<states).map { _ in .random(in: -2...2, using: &random) }
    }

    var sequences: Int { offsets.map { $0.count - 1 } ?? shape.batch }

    private var strides: LinearAttention.ElementwiseRecurrence.Strides {
        var strides = LinearAttention.ElementwiseRecurrence.Strides()
        strides.x = x.strides
        strides.logDecay = logDecay.strides
        strides.outputGradient = outputGradient.strides
        return strides
    }

    func forward(
        _ workspace: Workspace = Workspace()
    ) throws -> (output: StageTensor<Element>, finalState: [Float]) {
        var output = StageTensor<Element>(shape, gap: 2, filler: Self.filler)
        var finalState = [Float](repeating: Self.filler, count: sequences * shape.channels)
        var strides = strides
        strides.output = output.strides
        try withElements(of: &output) { output in
            var output = output
            try LinearAttention.ElementwiseRecurrence.forward(
                x.array.span.extracting(x.range),
                logDecay: logDecay.array.span.extracting(logDecay.range), into: &output,
                shape: shape, strides: strides, offsets: offsets?.span,
                initialState: initialState?.span, finalState: finalState.mutableSpan,
                threads: threads, workspace: workspace)
        }
        return (output, finalState)
    }

    func run(_ workspace: Workspace = Workspace()) throws -> Found {
        let (output, finalState) = try forward(workspace)
        var dx = StageTensor<Element>(shape, gap: 1, filler: Self.filler)
        var dg = StageTensor<Float>(shape, gap: 4, filler: Self.filler)
        var initial = [Float](repeating: Self.filler, count: finalState.count)
        var strides = strides
        strides.output = output.strides
        strides.xGradient = dx.strides
        strides.logDecayGradient = dg.strides
        try withElements(of: &dx, and: &dg) { dx, dg in
            try LinearAttention.ElementwiseRecurrence.backward(
                logDecay: logDecay.array.span.extracting(logDecay.range),
                output: output.array.span.extracting(output.range),
                outputGradient: outputGradient.array.span.extracting(outputGradient.range),
                finalStateGradient: finalStateGradient?.span, xGradient: dx,
                logDecayGradient: dg, initialStateGradient: initial.mutableSpan, shape: shape,
                strides: strides, offsets: offsets?.span, initialState: initialState?.span,
                threads: threads, workspace: workspace)
        }
        return Found(
            output: output, finalState: finalState, x: dx, logDecay: dg, initialState: initial)
    }

    struct Expected {
        var output: [Double]
        var finalState: [Double]
        var gradients: ReferenceLinearAttention.ElementwiseRecurrence.Gradients
    }

    func expected() -> Expected {
        let problem = ReferenceLinearAttention.ElementwiseRecurrence.Problem(
            batch: shape.batch, tokens: shape.tokens, channels: shape.channels, x: x.dense,
            logDecay: logDecay.dense, initialState: initialState?.map { Double($0) },
            offsets: offsets)
        let (output, finalState) = ReferenceLinearAttention.ElementwiseRecurrence.forward(problem)
        return Expected(
            output: output, finalState: finalState,
            gradients: ReferenceLinearAttention.ElementwiseRecurrence.backward(
                problem, outputGradient: outputGradient.dense,
                finalStateGradient: finalStateGradient?.map { Double($0) }))
    }
}
