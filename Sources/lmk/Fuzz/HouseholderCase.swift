import LMKernels
import LMKernelsReference

/// Products of Householder factors applied from either side, their gradients and their triangle.
struct HouseholderCase: StageCase {
    static let operation = "householder-product"

    private typealias Reference = LMKernelsReference.HouseholderProduct

    var storage: StorageType
    var shape: LMKernels.HouseholderProduct.Shape
    var side: LMKernels.HouseholderProduct.Side
    var isTransposed: Bool
    var threads: Int
    /// Of k, x, dy, y, dx, dk and the triangle.
    var grids: [Grid]
    var k: [Float]
    var beta: [Float]
    var x: [Float]
    var yGradient: [Float]

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .float32, .bfloat16, .float16])
        threads = random.threads()
        side = random.pick([.left, .right])
        isTransposed = random.once(in: 2)
        let batch = random.once(in: 3) ? random.integer(0...5) : 1
        var factors = random.length(upTo: 150)
        let dimensions = random.length(upTo: 300, orZero: false)
        var vectors = random.length(upTo: 200)
        while batch * factors * dimensions * vectors > 400_000 {
            if random.once(in: 2) {
                factors = (factors + 1) / 2
            } else {
                vectors = (vectors + 1) / 2
            }
        }
        shape = .init(batch: batch, factors: factors, dimensions: dimensions, vectors: vectors)
        let (rows, columns) = side == .left ? (dimensions, vectors) : (vectors, dimensions)
        grids = []
        for (rows, columns) in [
            (factors, dimensions), (rows, columns), (rows, columns), (rows, columns),
            (rows, columns), (factors, dimensions), (factors, factors),
        ] {
            grids.append(Grid(matrices: batch, rows: rows, columns: columns, gapsFrom: &random))
        }
        // Lengths about 1, and rates that shrink, project and reflect, sometimes exactly.
        let storage = storage
        let length = (3 / Float(dimensions)).squareRoot()
        // Leading zeros as a decomposition has them, now and then.
        let isStepped = random.once(in: 4)
        k = []
        for row in 0..<batch * factors {
            let zeros = isStepped ? min(row % max(1, factors), dimensions - 1) : 0
            for d in 0..<dimensions {
                k.append(d < zeros ? 0 : storage.rounded(random.unit() * length))
            }
        }
        beta = []
        let kind = random.integer(0...2)
        for row in 0..<batch * factors {
            let square = k[row * dimensions..<(row + 1) * dimensions].reduce(0) { $0 + $1 * $1 }
            switch kind {
            case 0: beta.append(random.number(0...1.5))
            case 1: beta.append(square > 0 ? min(2 / square, 1e3) : 0)
            default: beta.append(square > 0 ? min(1 / square, 1e3) : 0)
            }
        }
        let count = batch * rows * columns
        let size = random.power(-3...3)
        x = (0..<count).map { _ in storage.rounded(random.unit() * size) }
        yGradient = (0..<count).map { _ in storage.rounded(random.unit()) }
    }

    var description: String {
        "\(storage) batch \(shape.batch) factors \(shape.factors) dimensions \(shape.dimensions)"
            + " vectors \(shape.vectors) \(side)\(isTransposed ? " transposed" : "")"
            + " threads \(threads) gaps \(grids.map(\.gap)) places \(grids.map(\.offset))"
    }

    func call<Element: StorageValue>(
        as type: Element.Type, threads: Int, _ findings: inout Findings
    ) throws(KernelError) -> StageFound {
        typealias Product = LMKernels.HouseholderProduct
        let filler = Element(Grid.filler)
        let k = grids[0].spread(self.k.map { Element($0) }, filler: filler)
        let x = grids[1].spread(self.x.map { Element($0) }, filler: filler)
        let dy = grids[2].spread(yGradient.map { Element($0) }, filler: filler)
        var strides = Product.Strides()
        strides.k = grids[0].matrixStrides
        strides.x = grids[1].matrixStrides
        strides.yGradient = grids[2].matrixStrides
        strides.y = grids[3].matrixStrides
        strides.xGradient = grids[4].matrixStrides
        strides.kGradient = grids[5].matrixStrides
        strides.triangle = grids[6].matrixStrides
        let (factors, input) = (
            k.span.extracting(grids[0].range), x.span.extracting(grids[1].range)
        )
        let workspace = Workspace()
        let y: [Float] = try grids[3].written("y", &findings) {
            (y: consuming MutableSpan<Element>) throws(KernelError) in
            try Product.apply(
                factors, beta: beta.span, to: input, into: &y, shape: shape, side: side,
                isTransposed: isTransposed, strides: strides, threads: threads,
                workspace: workspace)
        }
        let t: [Float] = try grids[6].written("t", &findings) {
            (t: consuming MutableSpan<Float>) throws(KernelError) in
            try Product.triangle(
                factors, beta: beta.span, into: &t, shape: shape, strides: strides,
                threads: threads, workspace: workspace)
        }
        let dx: [Float] = try grids[4].written("dx", &findings) {
            (dx: consuming MutableSpan<Element>) throws(KernelError) in
            try Product.backward(
                factors, beta: beta.span, x: input,
                yGradient: dy.span.extracting(grids[2].range), xGradient: dx, shape: shape,
                side: side, isTransposed: isTransposed, strides: strides, threads: threads,
                workspace: workspace)
        }
        var betaGradient = Array(repeating: Grid.filler, count: beta.count)
        let dk: [Float] = try grids[5].written("dk", &findings) {
            (dk: consuming MutableSpan<Element>) throws(KernelError) in
            try Product.backward(
                factors, beta: beta.span, x: input,
                yGradient: dy.span.extracting(grids[2].range), kGradient: dk,
                betaGradient: betaGradient.mutableSpan, shape: shape, side: side,
                isTransposed: isTransposed, strides: strides, threads: threads,
                workspace: workspace)
        }
        return [("y", y), ("t", t), ("dx", dx), ("dk", dk), ("dbeta", betaGradient)]
    }

    /// The reference, and bounds by the lengths of what goes in: factors do not stretch by more than
    /// |1 - beta |k|^2|, and T grows where factors are alike.
    func expected(_ found: StageFound) -> StageExpected {
        let factors = Reference.Factors(
            batch: shape.batch, count: shape.factors, width: shape.dimensions,
            key: k.map { Double($0) }, beta: beta.map { Double($0) })
        let side: Reference.Side = side == .left ? .left : .right
        let input = x.map { Double($0) }
        let upstream = yGradient.map { Double($0) }
        let y = Reference.apply(
            factors, to: input, vectors: shape.vectors, side: side, isTransposed: isTransposed)
        let t = Reference.triangularFactor(factors)
        let gradients = Reference.applyBackward(
            factors, to: input, outputGradient: upstream, vectors: shape.vectors, side: side,
            isTransposed: isTransposed)
        // What a product may stretch a vector by.
        var stretch = 1.0
        for b in 0..<shape.batch {
            var ofProduct = 1.0
            for i in 0..<shape.factors {
                let square = factors.key[
                    (b * shape.factors + i) * shape.dimensions..<(b * shape.factors + i + 1)
                        * shape.dimensions
                ].reduce(0) { $0 + $1 * $1 }
                ofProduct *= max(1, (1 - factors.beta[b * shape.factors + i] * square).magnitude)
            }
            stretch = max(stretch, ofProduct)
        }
        func length(_ values: [Double]) -> Double {
            values.reduce(0) { $0 + $1 * $1 }.squareRoot()
        }
        let (n, unit) = (Double(shape.factors), stageUnit)
        let growth = stretch * (16 + 8 * n) * unit
        let largest = factors.key.map(\.magnitude).max() ?? 0
        let rate = factors.beta.map(\.magnitude).max() ?? 0
        func bounds(_ values: [Double], _ size: Double) -> [Double] {
            values.map { _ in size * growth + 0x1p-140 }
        }
        let keys = largest * Double(shape.dimensions).squareRoot()
        let cross = length(input) * length(upstream) * stretch
        var expected = StageExpected()
        expected.add("y", y, bounds(y, length(input)), storage)
        expected.add("t", t, bounds(t, rate * (1 + rate * keys * keys)), .float32)
        expected.add("dx", gradients.x, bounds(gradients.x, length(upstream)), storage)
        expected.add(
            "dk", gradients.key, bounds(gradients.key, 2 * rate * keys * cross * (1 + rate)),
            storage)
        expected.add(
            "dbeta", gradients.beta, bounds(gradients.beta, keys * keys * cross), .float32)
        return expected
    }
}

extension Grid {
    /// The strides of [matrices, rows, columns].
    var matrixStrides: LMKernels.HouseholderProduct.MatrixStrides {
        .init(row: stride, batch: matrixStride)
    }
}
