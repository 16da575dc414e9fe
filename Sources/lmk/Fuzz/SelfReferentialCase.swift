import LMKernels
import LMKernelsReference

/// The self-referential weight matrix and its gradients.
struct SelfReferentialCase: StageCase {
    static let operation = "self-referential"

    private typealias Reference = LMKernelsReference.SelfReferentialMatrix

    var storage: StorageType
    var shape: LMKernels.SelfReferentialMatrix.Shape
    var hasInputSoftmax: Bool
    var sharesMatrix: Bool
    var offsets: [Int]?
    var threads: Int
    /// Of x, dy, y and dx; a row has all heads.
    var grids: [Grid]
    var x: [Float]
    var yGradient: [Float]
    var matrix: [Float]
    var finalGradient: [Float]?

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .float32, .bfloat16, .float16])
        threads = random.threads()
        hasInputSoftmax = random.once(in: 2)
        sharesMatrix = random.once(in: 2)
        let keys = random.length(upTo: 70, orZero: false)
        let values = random.length(upTo: 90, orZero: false)
        let heads = random.integer(1...3)
        var tokens = random.length(upTo: 40)
        let isPacked = random.once(in: 3)
        let batch = isPacked ? 1 : random.integer(0...3)
        while batch * tokens * heads * keys * (values + 2 * keys) > 150_000 { tokens /= 2 }
        shape = .init(
            batch: batch, tokens: tokens, heads: heads, keyDimension: keys, valueDimension: values)
        offsets = isPacked ? drawOffsets(tokens, using: &random) : nil
        grids = []
        for width in [keys, values, values, keys] {
            grids.append(
                Grid(matrices: batch, rows: tokens, columns: heads * width, gapsFrom: &random))
        }
        let storage = storage
        let rows = batch * tokens * heads
        x = (0..<rows * keys).map { _ in storage.rounded(random.unit() * 2) }
        yGradient = (0..<rows * values).map { _ in storage.rounded(random.unit()) }
        let entries = heads * shape.rows * keys
        let sequences = offsets.map { $0.count - 1 } ?? batch
        // Inputs that are no probabilities make matrices grow; smaller ones keep that slow.
        let size: Float = hasInputSoftmax ? 2 : 1 / Float(keys).squareRoot()
        matrix = (0..<(sharesMatrix ? 1 : sequences) * entries).map { _ in random.unit() * size }
        if random.once(in: 2) {
            finalGradient = (0..<sequences * entries).map { _ in random.unit() }
        }
    }

    var description: String {
        "\(storage) batch \(shape.batch) tokens \(shape.tokens) heads \(shape.heads)"
            + " keys \(shape.keyDimension) values \(shape.valueDimension)"
            + (hasInputSoftmax ? " softmax" : "") + (sharesMatrix ? " shared" : "")
            + (finalGradient == nil ? "" : " final") + " threads \(threads)"
            + (offsets.map { " offsets \($0)" } ?? "") + " gaps \(grids.map(\.gap))"
            + " places \(grids.map(\.offset))"
    }

    private func strides(_ grid: Grid, _ width: Int) -> LinearAttention.StageStrides {
        .init(batch: grid.matrixStride, token: grid.stride, head: width)
    }

    func call<Element: StorageValue>(
        as type: Element.Type, threads: Int, _ findings: inout Findings
    ) throws(KernelError) -> StageFound {
        typealias Matrix = LMKernels.SelfReferentialMatrix
        let filler = Element(Grid.filler)
        let x = grids[0].spread(self.x.map { Element($0) }, filler: filler)
        let dy = grids[1].spread(yGradient.map { Element($0) }, filler: filler)
        var strides = Matrix.Strides()
        strides.x = self.strides(grids[0], shape.keyDimension)
        strides.yGradient = self.strides(grids[1], shape.valueDimension)
        strides.y = self.strides(grids[2], shape.valueDimension)
        strides.xGradient = self.strides(grids[3], shape.keyDimension)
        let sequences = offsets.map { $0.count - 1 } ?? shape.batch
        var finalMatrix = Array(
            repeating: Grid.filler,
            count: sequences * shape.heads * shape.rows * shape.keyDimension)
        var matrixGradient = Array(repeating: Grid.filler, count: matrix.count)
        let input = x.span.extracting(grids[0].range)
        let workspace = Workspace()
        let y: [Float] = try grids[2].written("y", &findings) {
            (y: consuming MutableSpan<Element>) throws(KernelError) in
            try Matrix.forward(
                input, into: &y, initialMatrix: matrix.span, sharesInitialMatrix: sharesMatrix,
                finalMatrix: finalMatrix.mutableSpan, hasInputSoftmax: hasInputSoftmax,
                shape: shape, strides: strides, offsets: offsets?.span, threads: threads,
                workspace: workspace)
        }
        let dx: [Float] = try grids[3].written("dx", &findings) {
            (dx: consuming MutableSpan<Element>) throws(KernelError) in
            try Matrix.backward(
                input, yGradient: dy.span.extracting(grids[1].range), initialMatrix: matrix.span,
                sharesInitialMatrix: sharesMatrix, finalMatrixGradient: finalGradient?.span,
                xGradient: dx, initialMatrixGradient: matrixGradient.mutableSpan,
                hasInputSoftmax: hasInputSoftmax, shape: shape, strides: strides,
                offsets: offsets?.span, threads: threads, workspace: workspace)
        }
        return [("y", y), ("final", finalMatrix), ("dx", dx), ("start", matrixGradient)]
    }

    /// The reference, and errors against the largest number of each array: matrices act on
    /// themselves, so that one entry's error is every other's.
    func expected(_ found: StageFound) -> StageExpected {
        let entries = matrix.map { Double($0) }
        let problem = Reference.Problem(
            shape: .init(
                batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
                width: shape.keyDimension, outputWidth: shape.valueDimension),
            x: x.map { Double($0) }, start: sharesMatrix ? .shared(entries) : .sequences(entries),
            hasInputSoftmax: hasInputSoftmax, offsets: offsets)
        let output = Reference.forward(problem)
        let gradients = Reference.backward(
            problem, outputGradient: yGradient.map { Double($0) },
            finalMatrixGradient: finalGradient?.map { Double($0) })
        let roundings = Double(64 + 16 * shape.tokens)
        let ofMatrix = output.finalMatrix.map(\.magnitude).max() ?? 0
        func bounds(_ values: [Double], _ least: Double) -> [Double] {
            let size = max(values.map(\.magnitude).max() ?? 0, least)
            return values.map { _ in size * roundings * stageUnit + 0x1p-140 }
        }
        // A softmax of nearly equal entries has gradients that cancel: those are measured by what
        // goes in.
        let upstream = finalGradient == nil ? 1.0 : 1 + Double(shape.keyDimension).squareRoot()
        let ofGradient = (gradients.start.map(\.magnitude).max() ?? 0) + upstream
        var expected = StageExpected()
        expected.add("y", output.output, bounds(output.output, ofMatrix), storage)
        expected.add(
            "final", output.finalMatrix, bounds(output.finalMatrix, ofMatrix), .float32)
        expected.add(
            "dx", gradients.x, bounds(gradients.x, ofGradient * max(1, ofMatrix)), storage)
        expected.add("start", gradients.start, bounds(gradients.start, ofGradient), .float32)
        return expected
    }
}
