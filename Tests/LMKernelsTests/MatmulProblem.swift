import LMKernels
import LMKernelsReference
import Testing

/// A batch of products whose rows and matrices may have gaps, and whose arrays may start anywhere.
struct MatmulProblem: CustomStringConvertible {
    var rows: Int
    var columns: Int
    var depth: Int
    var layout = Matmul.Layout.nn
    var batch = 1
    /// Elements between rows, and after each matrix.
    var gap = 0
    /// Elements before the first.
    var offset = 0
    var accumulate = false
    /// One b for the whole batch.
    var sharesB = false

    var description: String {
        "\(rows)x\(columns)x\(depth) \(layout) batch \(batch) gap \(gap) offset \(offset)"
            + (accumulate ? " accumulate" : "") + (sharesB ? " shared b" : "")
    }

    /// Rows and columns as they lie in memory.
    var aSize: (rows: Int, columns: Int) { layout == .tn ? (depth, rows) : (rows, depth) }
    var bSize: (rows: Int, columns: Int) { layout == .nt ? (columns, depth) : (depth, columns) }

    var shape: Matmul.Shape {
        guard gap > 0 || sharesB else {
            return .init(rows: rows, columns: columns, depth: depth, batch: batch)
        }
        return .init(
            rows: rows, columns: columns, depth: depth, batch: batch,
            aStride: aSize.columns + gap, bStride: bSize.columns + gap, cStride: columns + gap,
            aBatchStride: aSize.rows * (aSize.columns + gap) + gap,
            bBatchStride: sharesB ? 0 : bSize.rows * (bSize.columns + gap) + gap,
            cBatchStride: rows * (columns + gap) + gap)
    }

    /// The same for the reference, whose arrays are dense.
    var reference: ReferenceMatmul.Shape {
        let layout: ReferenceMatmul.Layout =
            switch self.layout {
            case .nn: .nn
            case .nt: .nt
            case .tn: .tn
            }
        return .init(
            layout: layout, batch: batch, rows: rows, columns: columns, depth: depth,
            bBatchStride: sharesB ? 0 : nil)
    }

    /// Places of the elements of a dense [matrices, rows, columns] in an array of ours.
    func places(_ size: (rows: Int, columns: Int), matrices: Int) -> [Int] {
        let stride = size.columns + gap
        return (0..<matrices).flatMap { matrix in
            (0..<size.rows).flatMap { row in
                (0..<size.columns).map { column in
                    offset + matrix * (size.rows * stride + gap) + row * stride + column
                }
            }
        }
    }

    /// Elements of an array with room for offset and gaps.
    func extent(_ size: (rows: Int, columns: Int), matrices: Int) -> Int {
        offset + matrices * (size.rows * (size.columns + gap) + gap)
    }

    /// `values`, dense, with `filler` between them.
    func spread<Element>(
        _ values: [Element], _ size: (rows: Int, columns: Int), matrices: Int, filler: Element
    ) -> [Element] {
        var array = Array(repeating: filler, count: extent(size, matrices: matrices))
        for (place, value) in zip(places(size, matrices: matrices), values) { array[place] = value }
        return array
    }
}

extension MatmulProblem {
    /// Each dimension through all edges, the others at random among them.
    static func edges(_ layout: Matmul.Layout) -> [Self] {
        var generator = SeededGenerator(seed: 2)
        func any() -> Int { edgeSizes.randomElement(using: &generator)! }
        var problems: [Self] = []
        for size in edgeSizes {
            problems.append(Self(rows: size, columns: any(), depth: any()))
            problems.append(Self(rows: any(), columns: size, depth: any()))
            problems.append(Self(rows: any(), columns: any(), depth: size))
        }
        // Two and more blocks of depth, of singles and of pairs.
        for depth in [511, 512, 513, 1023, 1025, 1057] {
            problems.append(Self(rows: 9, columns: 20, depth: depth))
        }
        for i in problems.indices {
            problems[i].layout = layout
            problems[i].gap = [0, 1, 7][i % 3]
            problems[i].offset = [0, 1, 2, 3, 5][i % 5]
            problems[i].accumulate = i % 4 == 3
        }
        return problems
    }
}

/// Dense operands, and what the reference and the kernel make of them.
struct MatmulCase<Element: TestElement> {
    var problem: MatmulProblem
    var a: [Element]
    var b: [Element]
    var c: [Float]

    /// `number` makes the entries of a, b and c.
    init(_ problem: MatmulProblem, number: () -> Float) {
        self.problem = problem
        let (aSize, bSize) = (problem.aSize, problem.bSize)
        let bMatrices = problem.sharesB ? 1 : problem.batch
        a = (0..<problem.batch * aSize.rows * aSize.columns).map { _ in Element(number()) }
        b = (0..<bMatrices * bSize.rows * bSize.columns).map { _ in Element(number()) }
        c = (0..<problem.batch * problem.rows * problem.columns).map { _ in number() }
    }

    /// By the reference.
    func expected() -> [Double] {
        var c = c.map { Double($0) }
        ReferenceMatmul.multiply(
            problem.reference, a.map(\.double), b.map(\.double), into: &c,
            accumulate: problem.accumulate)
        return c
    }

    /// Sums of magnitudes, which errors are measured against.
    func magnitudes() -> [Double] {
        var c = c.map { Double($0.magnitude) }
        ReferenceMatmul.multiply(
            problem.reference, a.map(\.double.magnitude), b.map(\.double.magnitude), into: &c,
            accumulate: problem.accumulate)
        return c
    }

    /// c as the kernel leaves it, dense. Gaps of the operands hold NaN, so that reading one shows;
    /// gaps of c are compared with what was there.
    func product(threads: Int = 1, workspace: Workspace) throws -> [Float] {
        let sentinel: Float = -12345.678
        let bMatrices = problem.sharesB ? 1 : problem.batch
        let cSize = (rows: problem.rows, columns: problem.columns)
        let a = problem.spread(
            a, problem.aSize, matrices: problem.batch, filler: Element(Float.nan))
        let b = problem.spread(b, problem.bSize, matrices: bMatrices, filler: Element(Float.nan))
        var c = problem.spread(c, cSize, matrices: problem.batch, filler: sentinel)
        let offset = problem.offset
        try withPart(of: &c, offset..<c.count) { part in
            try Matmul.multiply(
                a.span.extracting(offset..<a.count), b.span.extracting(offset..<b.count),
                into: &part, shape: problem.shape, layout: problem.layout,
                accumulate: problem.accumulate, threads: threads, workspace: workspace)
        }
        let places = problem.places(cSize, matrices: problem.batch)
        let result = places.map { c[$0] }
        for place in places { c[place] = sentinel }
        #expect(c.allSatisfy { $0 == sentinel }, "wrote outside c: \(problem)")
        return result
    }
}

extension MatmulCase {
    /// Entries from -1 to 1.
    init(_ problem: MatmulProblem, seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        self.init(problem) { Float.random(in: -1...1, using: &generator) }
    }
}
