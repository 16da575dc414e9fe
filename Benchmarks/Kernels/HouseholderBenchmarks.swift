import LMKernels

#if !canImport(Darwin)
    import COpenBLAS
#endif

/// Products of reflections applied to a matrix, counted as 4 operations for each factor, dimension
/// and vector, against LAPACK's slarft and slarfb.
func householderBenchmarks() {
    let dense = [
        // Factors, dimensions, vectors, batch.
        (128, 512, 2048, 1), (512, 512, 2048, 1), (256, 256, 1024, 1), (128, 128, 1024, 1),
        (64, 64, 64, 64), (16, 64, 64, 64),
    ]
    for (factors, dimensions, vectors, batch) in dense {
        let shape = HouseholderProduct.Shape(
            batch: batch, factors: factors, dimensions: dimensions, vectors: vectors)
        for side in HouseholderProduct.Side.allCases {
            for isStepped in [false, true] {
                apply(shape, side, isStepped: isStepped, threads: 1)
            }
            #if !canImport(Darwin)
                lapack(shape, side, block: 32)
                if factors > 32 { lapack(shape, side, block: factors) }
            #endif
        }
    }
    let large = HouseholderProduct.Shape(factors: 512, dimensions: 512, vectors: 2048)
    apply(large, .left, isStepped: false, threads: 2)
    for threads in [1, 2] { backward(large, .left, threads: threads) }
    selfReferential(keys: 64)
}

private func measurement(
    _ name: String, _ shape: HouseholderProduct.Shape, _ side: HouseholderProduct.Side,
    passes: Double = 1, threads: Int = 1
) -> Measurement {
    let sizes = "\(shape.factors) of \(shape.dimensions) on \(shape.vectors)"
    let operations =
        4 * Double(shape.batch * shape.factors) * Double(shape.dimensions * shape.vectors)
    return Measurement(
        name: "householder \(sizes), batch \(shape.batch), \(side)\(name), "
            + describe(threads: threads),
        threads: threads, operations: passes * operations, iterations: 11,
        calls: operations < 1e8 ? .kilo : .one)
}

/// Reflections: k as LAPACK wants it, with i zeros and a one before anything else, or dense.
private struct Reflections {
    var k: [Float]
    var beta: [Float] = []
    var x: [Float]

    init(_ shape: HouseholderProduct.Shape, isStepped: Bool) {
        let dimensions = shape.dimensions
        k = randomFloats(shape.batch * shape.factors * dimensions, scale: 0.3, seed: 1)
        for row in 0..<shape.batch * shape.factors {
            let step = row % shape.factors
            if isStepped {
                for d in 0..<step { k[row * dimensions + d] = 0 }
                k[row * dimensions + step] = 1
            }
            let entries = k[row * dimensions..<(row + 1) * dimensions]
            beta.append(2 / entries.reduce(0) { $0 + $1 * $1 })
        }
        x = randomFloats(shape.batch * dimensions * shape.vectors, seed: 2)
    }
}

/// With steps half of what is counted is 0 where there are as many factors as dimensions, and
/// passed over.
private func apply(
    _ shape: HouseholderProduct.Shape, _ side: HouseholderProduct.Side, isStepped: Bool,
    threads: Int
) {
    measurement(isStepped ? ", stepped" : "", shape, side, threads: threads).register {
        let problem = Reflections(shape, isStepped: isStepped)
        var y = problem.x
        let workspace = Workspace()
        return {
            var output = y.mutableSpan
            try HouseholderProduct.apply(
                problem.k.span, beta: problem.beta.span, to: problem.x.span, into: &output,
                shape: shape, side: side, threads: threads, workspace: workspace)
        }
    }
}

private func backward(
    _ shape: HouseholderProduct.Shape, _ side: HouseholderProduct.Side, threads: Int
) {
    measurement(" backward", shape, side, passes: 3, threads: threads).register {
        let problem = Reflections(shape, isStepped: false)
        let upstream = randomFloats(problem.x.count, seed: 3)
        var (dk, dbeta, dx) = (problem.k, problem.beta, problem.x)
        let workspace = Workspace()
        return {
            try HouseholderProduct.backward(
                problem.k.span, beta: problem.beta.span, x: problem.x.span,
                yGradient: upstream.span, kGradient: dk.mutableSpan,
                betaGradient: dbeta.mutableSpan, xGradient: dx.mutableSpan, shape: shape,
                side: side, threads: threads, workspace: workspace)
        }
    }
}

#if !canImport(Darwin)
    /// slarft and slarfb for blocks of factors, in place; each block leaves out what is 0 in it.
    private func lapack(
        _ shape: HouseholderProduct.Shape, _ side: HouseholderProduct.Side, block: Int
    ) {
        let (factors, dimensions, vectors) = (shape.factors, shape.dimensions, shape.vectors)
        guard block <= factors else { return }
        var measurement = measurement(", stepped, LAPACK by \(block)", shape, side)
        measurement.note = BLAS.kernels
        measurement.register {
            let problem = Reflections(shape, isStepped: true)
            var y = problem.x
            var t = [Float](repeating: 0, count: block * block)
            var work = [Float](repeating: 0, count: (vectors + dimensions) * block)
            BLAS.use(threads: 1)
            func run() {
                for n in 0..<shape.batch {
                    for i in stride(from: 0, to: factors, by: block) {
                        // P x begins with the last block, x P with the first.
                        let first = side == .left ? factors - block - i : i
                        let (rows, count) = ([Int32(dimensions - first)], [Int32(block)])
                        let (stride, columns) = ([Int32(dimensions)], [Int32(vectors)])
                        let place = n * dimensions * vectors
                        problem.k.withUnsafeBufferPointer { k in
                            let k = k.baseAddress! + (n * factors + first) * dimensions + first
                            problem.beta.withUnsafeBufferPointer { beta in
                                slarft_(
                                    "F", "C", rows, count, k, stride,
                                    beta.baseAddress! + n * factors + first, &t, count)
                            }
                            y.withUnsafeMutableBufferPointer { y in
                                // By columns x is its transpose.
                                if side == .left {
                                    slarfb_(
                                        "R", "T", "F", "C", columns, rows, count, k, stride,
                                        &t, count, y.baseAddress! + place + first * vectors,
                                        columns, &work, columns)
                                } else {
                                    slarfb_(
                                        "L", "T", "F", "C", rows, columns, count, k, stride,
                                        &t, count, y.baseAddress! + place + first, stride,
                                        &work, columns)
                                }
                            }
                        }
                    }
                }
            }
            run()
            try expectSame(problem, shape, side, y)
            // Reflections keep lengths: applied again and again, numbers stay what they are.
            return run
        }
    }

    private struct Disagreement: Error { var largest: Float }

    /// What is compared must be the same.
    private func expectSame(
        _ problem: Reflections, _ shape: HouseholderProduct.Shape,
        _ side: HouseholderProduct.Side, _ theirs: [Float]
    ) throws {
        var y = problem.x
        var output = y.mutableSpan
        try HouseholderProduct.apply(
            problem.k.span, beta: problem.beta.span, to: problem.x.span, into: &output,
            shape: shape, side: side, workspace: Workspace())
        let largest = zip(y, theirs).map { ($0 - $1).magnitude }.max() ?? 0
        if !(largest < 2e-5) { throw Disagreement(largest: largest) }
    }
#endif

/// Tokens of 16 heads, counted as 6 operations for each entry of W.
private func selfReferential(keys: Int) {
    let shape = SelfReferentialMatrix.Shape(
        tokens: 2048, heads: 16, keyDimension: keys, valueDimension: keys)
    let operations = 6 * Double(shape.tokens * shape.heads) * Double(shape.rows * keys)
    for threads in [1, 2] {
        Measurement(
            name: "self-referential matrix of \(keys), 16 heads, 2048 tokens, "
                + describe(threads: threads),
            threads: threads, operations: operations, iterations: 7
        ).register {
            let x = randomFloats(shape.tokens * shape.heads * keys, seed: 1)
            let matrix = randomFloats(shape.heads * shape.rows * keys, seed: 2)
            var y = x
            let workspace = Workspace()
            return {
                var output = y.mutableSpan
                try SelfReferentialMatrix.forward(
                    x.span, into: &output, initialMatrix: matrix.span, shape: shape,
                    threads: threads, workspace: workspace)
            }
        }
    }
}
