import Foundation
import LMKernels

/// The short convolution and its gradients.
struct ConvolutionCase: StageCase {
    static let operation = "short-convolution"

    var storage: StorageType
    var shape: LinearAttention.ChannelShape
    var width: Int
    var appliesSiLU: Bool
    var offsets: [Int]?
    var threads: Int
    var grids: [Grid]
    var x: [Float]
    var yGradient: [Float]
    var weight: [Float]
    var bias: [Float]?
    var initialState: [Float]?
    var finalStateGradient: [Float]?

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .bfloat16, .float16])
        threads = random.threads()
        width = random.integer(2...8)
        appliesSiLU = random.once(in: 2)
        let channels = random.length(upTo: 700)
        var tokens = random.length(upTo: 700)
        while tokens * channels > 20_000 { tokens /= 2 }
        let isPacked = random.once(in: 3)
        let batch = isPacked ? 1 : random.integer(0...3)
        shape = .init(batch: batch, tokens: tokens, channels: channels)
        offsets = isPacked ? drawOffsets(tokens, using: &random) : nil
        grids = []
        for _ in 0..<4 {
            grids.append(
                Grid(matrices: batch, rows: tokens, columns: channels, gapsFrom: &random))
        }
        let count = batch * tokens * channels
        let size = random.power(-3...3)
        let storage = storage
        x = (0..<count).map { _ in storage.rounded(random.unit() * size) }
        yGradient = (0..<count).map { _ in storage.rounded(random.unit()) }
        weight = (0..<channels * width).map { _ in random.unit() }
        if random.once(in: 2) { bias = (0..<channels).map { _ in random.unit() } }
        let states = (offsets.map { $0.count - 1 } ?? batch) * (width - 1) * channels
        if random.once(in: 2) { initialState = (0..<states).map { _ in random.unit() * size } }
        if random.once(in: 2) { finalStateGradient = (0..<states).map { _ in random.unit() } }
    }

    var description: String {
        "\(storage) batch \(shape.batch) tokens \(shape.tokens) channels \(shape.channels)"
            + " width \(width)" + (appliesSiLU ? " silu" : "") + (bias == nil ? "" : " bias")
            + " threads \(threads)" + (offsets.map { " offsets \($0)" } ?? "")
            + (initialState == nil ? "" : " state") + " gaps \(grids.map(\.gap))"
            + " places \(grids.map(\.offset))"
    }

    func call<Element: StorageValue>(
        as type: Element.Type, threads: Int, _ findings: inout Findings
    ) throws(KernelError) -> StageFound {
        typealias Convolution = LinearAttention.ShortConvolution
        let filler = Element(Grid.filler)
        let x = grids[0].spread(self.x.map { Element($0) }, filler: filler)
        let dy = grids[1].spread(yGradient.map { Element($0) }, filler: filler)
        var strides = Convolution.Strides()
        strides.x = grids[0].stageStrides
        strides.yGradient = grids[1].stageStrides
        strides.y = grids[2].stageStrides
        strides.xGradient = grids[3].stageStrides
        let states =
            (offsets.map { $0.count - 1 } ?? shape.batch) * (width - 1) * shape.channels
        var finalState = Array(repeating: Grid.filler, count: states)
        var initialGradient = finalState
        var weightGradient = Array(repeating: Grid.filler, count: weight.count)
        var biasGradient = Array(repeating: Grid.filler, count: shape.channels)
        let input = x.span.extracting(grids[0].range)
        let y: [Float] = try grids[2].written("y", &findings) {
            (y: consuming MutableSpan<Element>) throws(KernelError) in
            try Convolution.forward(
                input, into: &y, weight: weight.span, width: width, bias: bias?.span,
                appliesSiLU: appliesSiLU, shape: shape, strides: strides, offsets: offsets?.span,
                initialState: initialState?.span, finalState: finalState.mutableSpan,
                threads: threads)
        }
        let dx: [Float] = try grids[3].written("dx", &findings) {
            (dx: consuming MutableSpan<Element>) throws(KernelError) in
            try Convolution.backward(
                input, yGradient: dy.span.extracting(grids[1].range),
                finalStateGradient: finalStateGradient?.span, xGradient: dx,
                weightGradient: weightGradient.mutableSpan,
                biasGradient: biasGradient.mutableSpan,
                initialStateGradient: initialGradient.mutableSpan, weight: weight.span,
                width: width, bias: bias?.span, appliesSiLU: appliesSiLU, shape: shape,
                strides: strides, offsets: offsets?.span, initialState: initialState?.span,
                threads: threads, workspace: Workspace())
        }
        return [
            ("y", y), ("final", finalState), ("dx", dx), ("dw", weightGradient),
            ("db", biasGradient), ("initial", initialGradient),
        ]
    }

    /// The reference, and bounds by the same function of magnitudes: without SiLU a sum of
    /// magnitudes bounds what rounding does to it, and SiLU's slope is at most 1.1.
    func expected(_ found: StageFound) -> StageExpected {
        typealias Reference = ReferenceLinearAttention.ShortConvolution
        func magnitudes(_ values: [Float]?) -> [Double]? {
            values.map { $0.map { Double($0).magnitude } }
        }
        var problem = Reference.Problem(
            batch: shape.batch, tokens: shape.tokens, channels: shape.channels, width: width,
            x: x.map { Double($0) }, weight: weight.map { Double($0) },
            bias: bias?.map { Double($0) }, initialState: initialState?.map { Double($0) },
            offsets: offsets, appliesSiLU: appliesSiLU)
        let (y, finalState) = Reference.forward(problem)
        let gradients = Reference.backward(
            problem, outputGradient: yGradient.map { Double($0) },
            finalStateGradient: finalStateGradient?.map { Double($0) })
        problem.x = magnitudes(x)!
        problem.weight = magnitudes(weight)!
        problem.bias = magnitudes(bias)
        problem.initialState = magnitudes(initialState)
        problem.appliesSiLU = false
        let size = Reference.forward(problem).output
        // dz has the error of silu'(z), which is half of z's at most, and its own.
        let upstream = zip(magnitudes(yGradient)!, size).map { $0 * (2 + (appliesSiLU ? $1 : 0)) }
        let sizes = Reference.backward(
            problem, outputGradient: upstream, finalStateGradient: magnitudes(finalStateGradient))
        func bounds(_ values: [Double], _ roundings: Double) -> [Double] {
            values.map { $0 * roundings * stageUnit + 0x1p-140 }
        }
        // Sums of a tile of 256 tokens, and of the tiles.
        let chain = 30 + Double(min(shape.tokens, 256))
        var expected = StageExpected()
        expected.add("y", y, bounds(size, 16), storage)
        expected.add("final", finalState, finalState.map { _ in 0 }, .float32)
        expected.add("dx", gradients.x, bounds(sizes.x, 24), storage)
        expected.add("dw", gradients.weight, bounds(sizes.weight, chain), .float32)
        expected.add("db", gradients.bias, bounds(sizes.bias, chain), .float32)
        expected.add("initial", gradients.initialState, bounds(sizes.initialState, 24), .float32)
        return expected
    }
}
