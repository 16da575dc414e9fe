import LMKernels
import LMKernelsReference

/// Factors, a matrix and the gradient of the result, in arrays with gaps that begin anywhere.
struct HouseholderProblem<Element: TestElement>: CustomStringConvertible {
    typealias Tensor = StageTensor<Element>

    var shape: HouseholderProduct.Shape
    var side: HouseholderProduct.Side
    var isTransposed: Bool
    var k: Tensor
    var beta: StageTensor<Float>
    var x: Tensor
    var dy: Tensor

    /// Factors of unit length with beta up to 2, and any numbers in the matrices.
    init(
        batch: Int = 1, factors: Int, dimensions: Int, vectors: Int,
        side: HouseholderProduct.Side = .left, isTransposed: Bool = false, gap: Int = 5,
        seed: UInt64 = 1
    ) {
        shape = .init(batch: batch, factors: factors, dimensions: dimensions, vectors: vectors)
        self.side = side
        self.isTransposed = isTransposed
        let matrix = Self.matrix(shape, side)
        let length = max(1, Float(dimensions) / 3).squareRoot()
        k = Tensor(
            .init(batch: batch, tokens: factors, channels: dimensions), gap: gap
        ).filled(-1 / length...1 / length, seed: seed)
        beta = StageTensor<Float>(.init(batch: batch, tokens: 1, channels: factors), gap: gap)
            .filled(0...2, seed: seed + 1)
        x = Tensor(matrix, gap: gap).filled(-1...1, seed: seed + 2)
        dy = Tensor(matrix, gap: gap + 1).filled(-1...1, seed: seed + 3)
    }

    static func matrix(
        _ shape: HouseholderProduct.Shape, _ side: HouseholderProduct.Side
    ) -> LinearAttention.ChannelShape {
        side == .left
            ? .init(batch: shape.batch, tokens: shape.dimensions, channels: shape.vectors)
            : .init(batch: shape.batch, tokens: shape.vectors, channels: shape.dimensions)
    }

    var description: String {
        "\(Element.self) \(shape) \(side)\(isTransposed ? " transposed" : "")"
    }

    // MARK: The kernels

    func strides(
        y: StageTensor<Element>, dk: StageTensor<Element>? = nil,
        dbeta: StageTensor<Float>? = nil, dx: StageTensor<Element>? = nil
    ) -> HouseholderProduct.Strides {
        var strides = HouseholderProduct.Strides()
        strides.k = k.matrixStrides
        strides.betaBatch = beta.strides.batch
        strides.x = x.matrixStrides
        strides.y = y.matrixStrides
        strides.yGradient = dy.matrixStrides
        if let dk { strides.kGradient = dk.matrixStrides }
        strides.betaGradientBatch = dbeta?.strides.batch
        if let dx { strides.xGradient = dx.matrixStrides }
        return strides
    }

    func apply(threads: Int = 1, workspace: Workspace = Workspace()) throws -> Tensor {
        var y = Tensor(Self.matrix(shape, side), gap: 3)
        let strides = strides(y: y)
        try withElements(of: &y) { part in
            var part = part
            try HouseholderProduct.apply(
                k.array.span.extracting(k.range), beta: beta.array.span.extracting(beta.range),
                to: x.array.span.extracting(x.range), into: &part, shape: shape, side: side,
                isTransposed: isTransposed, strides: strides, threads: threads,
                workspace: workspace)
        }
        return y
    }

    func applyInPlace(threads: Int = 1) throws -> Tensor {
        var y = x
        let strides = strides(y: y)
        try withElements(of: &y) { part in
            var part = part
            try HouseholderProduct.apply(
                k.array.span.extracting(k.range), beta: beta.array.span.extracting(beta.range),
                inPlace: &part, shape: shape, side: side, isTransposed: isTransposed,
                strides: strides, threads: threads, workspace: Workspace())
        }
        return y
    }

    struct Gradients {
        var k: Tensor
        var beta: StageTensor<Float>
        var x: Tensor

        var bits: [[UInt64]] { [k.bits, beta.bits, x.bits] }
        var areFillersKept: Bool { k.isFillerKept && beta.isFillerKept && x.isFillerKept }
    }

    func backward(threads: Int = 1, workspace: Workspace = Workspace()) throws -> Gradients {
        var found = Gradients(
            k: Tensor(k.channelShape, gap: 2),
            beta: StageTensor<Float>(beta.channelShape, gap: 4),
            x: Tensor(Self.matrix(shape, side), gap: 1))
        let strides = strides(y: x, dk: found.k, dbeta: found.beta, dx: found.x)
        let (kRange, betaRange, xRange) = (found.k.range, found.beta.range, found.x.range)
        try unsafe found.k.array.withUnsafeMutableBufferPointer { dk in
            try unsafe found.beta.array.withUnsafeMutableBufferPointer { dbeta in
                try unsafe found.x.array.withUnsafeMutableBufferPointer { dx in
                    let parts = unsafe (
                        dk.extracting(kRange), dbeta.extracting(betaRange), dx.extracting(xRange)
                    )
                    try HouseholderProduct.backward(
                        k.array.span.extracting(k.range),
                        beta: beta.array.span.extracting(beta.range),
                        x: x.array.span.extracting(x.range),
                        yGradient: dy.array.span.extracting(dy.range),
                        kGradient: unsafe parts.0.mutableSpan,
                        betaGradient: unsafe parts.1.mutableSpan,
                        xGradient: unsafe parts.2.mutableSpan, shape: shape, side: side,
                        isTransposed: isTransposed, strides: strides, threads: threads,
                        workspace: workspace)
                }
            }
        }
        return found
    }

    func triangle(threads: Int = 1) throws -> StageTensor<Float> {
        var t = StageTensor<Float>(
            .init(batch: shape.batch, tokens: shape.factors, channels: shape.factors), gap: 3)
        var strides = strides(y: x)
        strides.triangle = t.matrixStrides
        try withElements(of: &t) { part in
            var part = part
            try HouseholderProduct.triangle(
                k.array.span.extracting(k.range), beta: beta.array.span.extracting(beta.range),
                into: &part, shape: shape, strides: strides, threads: threads,
                workspace: Workspace())
        }
        return t
    }

    // MARK: The reference

    var factors: ReferenceHouseholderProduct.Factors {
        .init(
            batch: shape.batch, count: shape.factors, width: shape.dimensions, key: k.dense,
            beta: beta.dense)
    }

    private var referenceSide: ReferenceHouseholderProduct.Side { side == .left ? .left : .right }

    func expected() -> [Double] {
        ReferenceHouseholderProduct.apply(
            factors, to: x.dense, vectors: shape.vectors, side: referenceSide,
            isTransposed: isTransposed)
    }

    func expectedGradients() -> ReferenceHouseholderProduct.Gradients {
        ReferenceHouseholderProduct.applyBackward(
            factors, to: x.dense, outputGradient: dy.dense, vectors: shape.vectors,
            side: referenceSide, isTransposed: isTransposed)
    }
}

extension StageTensor {
    var matrixStrides: HouseholderProduct.MatrixStrides {
        .init(row: strides.token, batch: strides.batch)
    }

    var channelShape: LinearAttention.ChannelShape {
        .init(batch: shape.batch, tokens: shape.tokens, channels: shape.columns)
    }
}

/// The largest error of an array, relative to its largest number; infinite where one is not a
/// number.
func arrayError(_ found: [Double], _ expected: [Double]) -> Double {
    guard found.count == expected.count else { return .infinity }
    let size = expected.map(\.magnitude).max() ?? 0
    let worst = zip(found, expected).reduce(0.0) { worst, pair in
        let error = (pair.0 - pair.1).magnitude
        return error.isNaN ? .infinity : max(worst, error)
    }
    return worst == 0 ? 0 : worst / size
}
