import LMKernels
import LMKernelsReference

/// Inputs, matrices and upstream gradients, in tensors with gaps that begin anywhere.
struct SelfReferentialProblem<Element: TestElement>: CustomStringConvertible {
    typealias Tensor = StageTensor<Element>

    var shape: SelfReferentialMatrix.Shape
    var hasInputSoftmax: Bool
    var sharesMatrix: Bool
    var offsets: [Int]?
    var isHeadMajor: Bool
    var x: Tensor
    var dy: Tensor
    var matrix: [Float]
    var finalGradient: [Float]?

    init(
        batch: Int = 1, tokens: Int, heads: Int = 1, keys: Int, values: Int,
        hasInputSoftmax: Bool = true, sharesMatrix: Bool = false, offsets: [Int]? = nil,
        isHeadMajor: Bool = false, hasFinalGradient: Bool = true, seed: UInt64 = 1
    ) {
        shape = .init(
            batch: batch, tokens: tokens, heads: heads, keyDimension: keys, valueDimension: values)
        self.hasInputSoftmax = hasInputSoftmax
        self.sharesMatrix = sharesMatrix
        self.offsets = offsets
        self.isHeadMajor = isHeadMajor
        x = Tensor(Self.rows(shape, keys), isHeadMajor: isHeadMajor).filled(-1...1, seed: seed)
        dy = Tensor(Self.rows(shape, values), gap: 2, isHeadMajor: !isHeadMajor)
            .filled(-1...1, seed: seed + 1)
        var random = SeededGenerator(seed: seed + 2)
        let sequences = offsets.map { $0.count - 1 } ?? batch
        let entries = heads * shape.rows * keys
        let size = hasInputSoftmax ? Float(2) : 1
        matrix = (0..<(sharesMatrix ? 1 : sequences) * entries).map { _ in
            .random(in: -size...size, using: &random)
        }
        if hasFinalGradient {
            finalGradient = (0..<sequences * entries).map { _ in
                .random(in: -1...1, using: &random)
            }
        }
    }

    private static func rows(
        _ shape: SelfReferentialMatrix.Shape, _ columns: Int
    ) -> LinearAttention.RowShape {
        .init(batch: shape.batch, tokens: shape.tokens, heads: shape.heads, columns: columns)
    }

    var sequences: Int { offsets.map { $0.count - 1 } ?? shape.batch }

    var description: String {
        "\(Element.self) \(shape)\(hasInputSoftmax ? " softmax" : "")"
            + (sharesMatrix ? " shared" : "") + (offsets.map { " \($0)" } ?? "")
    }

    struct Found {
        var y: StageTensor<Element>
        var finalMatrix: [Float]
        var dx: StageTensor<Element>
        var matrixGradient: [Float]

        var bits: [[UInt64]] {
            func bits(_ x: [Float]) -> [UInt64] { x.map { UInt64($0.bitPattern) } }
            return [y.bits, bits(finalMatrix), dx.bits, bits(matrixGradient)]
        }
        var areFillersKept: Bool { y.isFillerKept && dx.isFillerKept }
    }

    /// Both directions.
    func found(threads: Int = 1, workspace: Workspace = Workspace()) throws -> Found {
        var y = Tensor(Self.rows(shape, shape.valueDimension), gap: 3, isHeadMajor: isHeadMajor)
        var dx = Tensor(Self.rows(shape, shape.keyDimension), gap: 1, isHeadMajor: !isHeadMajor)
        var finalMatrix = Array(
            repeating: Float.nan,
            count: sequences * shape.heads * shape.rows * shape.keyDimension)
        var matrixGradient = Array(repeating: Float.nan, count: matrix.count)
        var strides = SelfReferentialMatrix.Strides()
        strides.x = x.strides
        strides.y = y.strides
        strides.yGradient = dy.strides
        strides.xGradient = dx.strides
        let input = x.array.span.extracting(x.range)
        try withElements(of: &y) { part in
            var part = part
            try SelfReferentialMatrix.forward(
                input, into: &part, initialMatrix: matrix.span, sharesInitialMatrix: sharesMatrix,
                finalMatrix: finalMatrix.mutableSpan, hasInputSoftmax: hasInputSoftmax,
                shape: shape, strides: strides, offsets: offsets?.span, threads: threads,
                workspace: workspace)
        }
        try withElements(of: &dx) { part in
            try SelfReferentialMatrix.backward(
                input, yGradient: dy.array.span.extracting(dy.range), initialMatrix: matrix.span,
                sharesInitialMatrix: sharesMatrix, finalMatrixGradient: finalGradient?.span,
                xGradient: part, initialMatrixGradient: matrixGradient.mutableSpan,
                hasInputSoftmax: hasInputSoftmax, shape: shape, strides: strides,
                offsets: offsets?.span, threads: threads, workspace: workspace)
        }
        return Found(y: y, finalMatrix: finalMatrix, dx: dx, matrixGradient: matrixGradient)
    }

    // MARK: The reference

    var reference: ReferenceSelfReferentialMatrix.Problem {
        let entries = matrix.map { Double($0) }
        return .init(
            shape: .init(
                batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
                width: shape.keyDimension, outputWidth: shape.valueDimension),
            x: x.dense, start: sharesMatrix ? .shared(entries) : .sequences(entries),
            hasInputSoftmax: hasInputSoftmax, offsets: offsets)
    }

    /// y, the final matrices, dx and the gradient of the initial ones.
    func expected() -> [[Double]] {
        let output = ReferenceSelfReferentialMatrix.forward(reference)
        let gradients = ReferenceSelfReferentialMatrix.backward(
            reference, outputGradient: dy.dense,
            finalMatrixGradient: finalGradient?.map { Double($0) })
        return [output.output, output.finalMatrix, gradients.x, gradients.start]
    }

    /// The largest errors of the same.
    func errors(_ found: Found, _ expected: [[Double]]) -> [Double] {
        [
            arrayError(found.y.dense, expected[0]),
            arrayError(found.finalMatrix.map { Double($0) }, expected[1]),
            arrayError(found.dx.dense, expected[2]),
            arrayError(found.matrixGradient.map { Double($0) }, expected[3]),
        ]
    }
}
