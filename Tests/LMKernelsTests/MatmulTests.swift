import Dispatch
import LMKernels
import LMKernelsReference
import Synchronization
import Testing

/// A batch of products whose rows and matrices may have gaps, and whose arrays may start anywhere.
private struct Problem: CustomStringConvertible {
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

/// Dense operands, and what the reference makes of them.
private struct Case<Element: TestElement> {
    var problem: Problem
    var a: [Element]
    var b: [Element]
    var c: [Float]
    var expected: [Double]
    /// Sums of magnitudes, which errors are measured against.
    var magnitudes: [Double]

    /// `number` makes the entries of a, b and c.
    init(_ problem: Problem, number: () -> Float) {
        self.problem = problem
        let (aSize, bSize) = (problem.aSize, problem.bSize)
        let bMatrices = problem.sharesB ? 1 : problem.batch
        a = (0..<problem.batch * aSize.rows * aSize.columns).map { _ in Element(number()) }
        b = (0..<bMatrices * bSize.rows * bSize.columns).map { _ in Element(number()) }
        c = (0..<problem.batch * problem.rows * problem.columns).map { _ in number() }
        expected = c.map(Double.init)
        magnitudes = c.map { Double($0.magnitude) }
        ReferenceMatmul.multiply(
            problem.reference, a.map(\.double), b.map(\.double), into: &expected,
            accumulate: problem.accumulate)
        ReferenceMatmul.multiply(
            problem.reference, a.map(\.double.magnitude), b.map(\.double.magnitude),
            into: &magnitudes, accumulate: problem.accumulate)
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

extension KernelSuite {
    @Suite struct MatmulTests {
        private let workspace = Workspace()

        // MARK: Against the reference

        /// Largest error in units of 2^-24 times the sum of magnitudes.
        private func worstError<Element: TestElement>(
            _ type: Element.Type, _ problems: [Problem], sets: [InstructionSet]
        ) throws -> Double {
            var generator = SeededGenerator(seed: 1)
            var worst = 0.0
            for problem in problems {
                let test = Case<Element>(problem) { Float.random(in: -1...1, using: &generator) }
                try withEachInstructionSet(sets) { _ in
                    let c = try test.product(threads: 2, workspace: workspace)
                    for i in c.indices {
                        let error = (Double(c[i]) - test.expected[i]).magnitude
                        let unit = 0x1p-24 * test.magnitudes[i]
                        // An error that is not a number compares false.
                        worst = error <= 1 ? max(worst, error == 0 ? 0 : error / unit) : .infinity
                    }
                }
            }
            return worst
        }

        /// Each dimension through all edges, the others at random among them.
        private func edgeProblems(_ layout: Matmul.Layout) -> [Problem] {
            var generator = SeededGenerator(seed: 2)
            func any() -> Int { edgeSizes.randomElement(using: &generator)! }
            var problems: [Problem] = []
            for size in edgeSizes {
                problems.append(Problem(rows: size, columns: any(), depth: any()))
                problems.append(Problem(rows: any(), columns: size, depth: any()))
                problems.append(Problem(rows: any(), columns: any(), depth: size))
            }
            // Two and more blocks of depth, of singles and of pairs.
            for depth in [511, 512, 513, 1023, 1025, 1057] {
                problems.append(Problem(rows: 9, columns: 20, depth: depth))
            }
            for i in problems.indices {
                problems[i].layout = layout
                problems[i].gap = [0, 1, 7][i % 3]
                problems[i].offset = [0, 1, 2, 3, 5][i % 5]
                problems[i].accumulate = i % 4 == 3
            }
            return problems
        }

        @Test(arguments: Matmul.Layout.allCases)
        func float32MatchesReference(_ layout: Matmul.Layout) throws {
            let worst = try worstError(
                Float.self, edgeProblems(layout), sets: InstructionSet.allCases)
            // Measured: 4.25
            #expect(worst < 5)
        }

        @Test(arguments: Matmul.Layout.allCases)
        func bfloat16MatchesReference(_ layout: Matmul.Layout) throws {
            let worst = try worstError(
                BFloat16.self, edgeProblems(layout), sets: InstructionSet.allCases)
            // Measured: 2.19
            #expect(worst < 3)
        }

        @Test(arguments: Matmul.Layout.allCases)
        func float16MatchesReference(_ layout: Matmul.Layout) throws {
            let worst = try worstError(
                Float16.self, edgeProblems(layout), sets: InstructionSet.allCases)
            // Measured: 4.19
            #expect(worst < 5)
        }

        // MARK: Exactly

        private func expectExact<Element: TestElement>(
            _ type: Element.Type, _ problem: Problem, seed: UInt64 = 3
        ) throws {
            var generator = SeededGenerator(seed: seed)
            let test = Case<Element>(problem) { Float(Int.random(in: -4...4, using: &generator)) }
            let expected = test.expected.map { Float($0) }
            try withEachInstructionSet { set in
                let c = try test.product(threads: 2, workspace: workspace)
                #expect(c == expected, "\(Element.self) \(problem) \(set)")
            }
        }

        private func expectExact(_ problem: Problem) throws {
            try expectExact(Float.self, problem)
            try expectExact(BFloat16.self, problem)
            try expectExact(Float16.self, problem)
        }

        @Test(arguments: Matmul.Layout.allCases)
        func smallIntegersAreExact(_ layout: Matmul.Layout) throws {
            for (i, edge) in edgeProblems(layout).enumerated() where i % 3 == 0 {
                try expectExact(edge)
            }
        }

        /// Every height of a register tile, with every count of vectors.
        @Test(arguments: Matmul.Layout.allCases)
        func tilesOfEveryHeight(_ layout: Matmul.Layout) throws {
            for rows in Array(1...35) + [47, 48, 49] {
                for (columns, depth) in [(1, 1), (16, 2), (17, 3), (32, 5), (33, 16), (49, 17)] {
                    try expectExact(
                        Problem(
                            rows: rows, columns: columns, depth: depth, layout: layout,
                            gap: rows % 3, offset: rows % 2, accumulate: rows % 4 == 0))
                }
            }
        }

        @Test(arguments: Matmul.Layout.allCases)
        func batches(_ layout: Matmul.Layout) throws {
            // Few small, many small, few large, and one b for all.
            for (batch, rows, columns, depth) in [
                (0, 5, 5, 5), (3, 5, 7, 9), (40, 17, 18, 19), (2, 130, 140, 150),
            ] {
                for gap in [0, 3] {
                    var problem = Problem(
                        rows: rows, columns: columns, depth: depth, layout: layout, batch: batch,
                        gap: gap)
                    try expectExact(problem)
                    problem.accumulate = true
                    problem.sharesB = true
                    try expectExact(problem)
                }
            }
        }

        private func expectTurns<Element: TestElement>(
            _ type: Element.Type, _ rows: Int, _ columns: Int, _ depth: Int
        ) throws {
            var generator = SeededGenerator(seed: 4)
            func integers(_ count: Int) -> [Element] {
                (0..<count).map { _ in Element(Float(Int.random(in: -2...2, using: &generator))) }
            }
            let a = integers(rows * depth)
            let b = integers(columns * depth)
            var c = Array(repeating: Float.nan, count: rows * columns)
            var span = c.mutableSpan
            try Matmul.multiply(
                a.span, b.span, into: &span,
                shape: .init(rows: rows, columns: columns, depth: depth), layout: .nt,
                workspace: workspace)
            for _ in 0..<10_000 {
                let i = Int.random(in: 0..<rows, using: &generator)
                let j = Int.random(in: 0..<columns, using: &generator)
                let sum = (0..<depth).reduce(0) {
                    $0 + a[i * depth + $1].double * b[j * depth + $1].double
                }
                #expect(Double(c[i * columns + j]) == sum, "\(type) row \(i), column \(j)")
            }
        }

        /// Shared panels that are packed in several turns: too many lanes, and too much depth.
        @Test(arguments: [(6500, 6300, 2), (2600, 2700, 1300)])
        func sharedPanelsInTurns(_ rows: Int, _ columns: Int, _ depth: Int) throws {
            try expectTurns(Float.self, rows, columns, depth)
        }

        @Test func sharedPanelsOfPairsInTurns() throws {
            try expectTurns(BFloat16.self, 1300, 1200, 5000)
        }

        @Test func depthZeroClearsOrKeeps() throws {
            for layout in Matmul.Layout.allCases {
                var problem = Problem(rows: 5, columns: 19, depth: 0, layout: layout, gap: 2)
                try expectExact(problem)
                problem.accumulate = true
                try expectExact(problem)
            }
        }

        // MARK: Equality of bits

        private func realCase<Element: TestElement>(
            _ type: Element.Type, _ problem: Problem
        ) -> Case<Element> {
            var generator = SeededGenerator(seed: 5)
            return Case(problem) { Float.random(in: -1...1, using: &generator) }
        }

        /// Large enough for several threads; in one product, over a batch, and over a batch of which
        /// each item is worth several threads.
        private let threadedProblems = [
            Problem(rows: 130, columns: 257, depth: 300, layout: .nn),
            Problem(rows: 300, columns: 65, depth: 257, layout: .nt, gap: 3, offset: 1),
            Problem(rows: 257, columns: 300, depth: 127, layout: .tn, accumulate: true),
            Problem(rows: 40, columns: 33, depth: 70, layout: .nn, batch: 9),
            Problem(rows: 200, columns: 190, depth: 300, layout: .nt, batch: 2),
        ]

        private func expectThreadsAgree<Element: TestElement>(_ type: Element.Type) throws {
            for problem in threadedProblems {
                let test = realCase(type, problem)
                try withEachInstructionSet { set in
                    let one = bits(try test.product(threads: 1, workspace: workspace))
                    for threads in [2, 3, 8] {
                        let several = bits(try test.product(threads: threads, workspace: workspace))
                        #expect(several == one, "\(type) \(problem) \(set) \(threads) threads")
                    }
                }
            }
        }

        @Test func threadsDoNotChangeABit() throws {
            try expectThreadsAgree(Float.self)
            try expectThreadsAgree(BFloat16.self)
            try expectThreadsAgree(Float16.self)
        }

        private func expectSetsAgree<Element: TestElement>(
            _ type: Element.Type, sets: [InstructionSet]
        ) throws {
            for problem in threadedProblems + edgeProblems(.nn) + edgeProblems(.tn) {
                let test = realCase(type, problem)
                var first: (set: InstructionSet, bits: [UInt32])?
                try withEachInstructionSet(sets) { set in
                    let these = bits(try test.product(threads: 2, workspace: workspace))
                    if let first {
                        #expect(these == first.bits, "\(type) \(problem) \(first.set) and \(set)")
                    } else {
                        first = (set, these)
                    }
                }
            }
        }

        @Test func fusedInstructionSetsAgree() throws {
            try expectSetsAgree(Float.self, sets: fusedSets)
            try expectSetsAgree(Float16.self, sets: fusedSets)
            // Sums of pairs have another order.
            try expectSetsAgree(BFloat16.self, sets: fusedSets.filter { !pairSets.contains($0) })
        }

        private func expectPositionIrrelevant<Element: TestElement>(_ type: Element.Type) throws {
            let whole = realCase(type, Problem(rows: 70, columns: 300, depth: 300, layout: .nt))
            let (rows, columns, depth) = (13, 45, 300)
            let (row, column) = (31, 200)
            try withEachInstructionSet { set in
                let c = try whole.product(threads: 2, workspace: workspace)
                var part = Array(repeating: Float.nan, count: rows * columns)
                do {
                    var span = part.mutableSpan
                    try Matmul.multiply(
                        whole.a.span.extracting((row * depth)...),
                        whole.b.span.extracting((column * depth)...), into: &span,
                        shape: .init(rows: rows, columns: columns, depth: depth), layout: .nt,
                        workspace: workspace)
                }
                for i in 0..<rows {
                    let start = (row + i) * 300 + column
                    #expect(
                        bits(Array(part[i * columns..<(i + 1) * columns]))
                            == bits(Array(c[start..<start + columns])), "\(type) \(set), row \(i)")
                }
            }
        }

        /// A product does not depend on what else is multiplied with it, nor on where it lies.
        @Test func positionDoesNotChangeABit() throws {
            try expectPositionIrrelevant(Float.self)
            try expectPositionIrrelevant(BFloat16.self)
            try expectPositionIrrelevant(Float16.self)
        }

        private func expectDepthInTurns<Element: TestElement>(
            _ type: Element.Type, sets: [InstructionSet], cut: Int
        ) throws {
            let (rows, columns, depth) = (41, 50, 1300)
            let whole = realCase(type, Problem(rows: rows, columns: columns, depth: depth))
            try withEachInstructionSet(sets) { set in
                let c = try whole.product(workspace: workspace)
                var sums = Array(repeating: Float.nan, count: rows * columns)
                for (begin, end) in [(0, cut), (cut, depth)] {
                    var span = sums.mutableSpan
                    try Matmul.multiply(
                        whole.a.span.extracting(begin...),
                        whole.b.span.extracting((begin * columns)...), into: &span,
                        shape: .init(
                            rows: rows, columns: columns, depth: end - begin, aStride: depth),
                        accumulate: begin > 0, workspace: workspace)
                }
                #expect(bits(sums) == bits(c), "\(type) \(set) cut at \(cut)")
            }
        }

        /// Products of two parts of the depth add up to the product, where sums are cut anyway.
        @Test func depthInTurnsDoesNotChangeABit() throws {
            try expectDepthInTurns(Float.self, sets: InstructionSet.allCases, cut: 512)
            try expectDepthInTurns(BFloat16.self, sets: InstructionSet.allCases, cut: 1024)
            for cut in [32, 480, 1024, 1280] {
                try expectDepthInTurns(BFloat16.self, sets: [.amx], cut: cut)
            }
        }

        @Test func concurrentCallsAgree() throws {
            let test = realCase(
                Float.self, Problem(rows: 130, columns: 120, depth: 110, layout: .nn))
            let alone = bits(try test.product(threads: 1, workspace: workspace))
            let agreed = Mutex(0)
            DispatchQueue.concurrentPerform(iterations: 8) { i in
                let workspace = Workspace()
                for _ in 0..<20 {
                    let c = try? test.product(threads: 1 + i % 3, workspace: workspace)
                    if c.map(bits) == alone { agreed.withLock { $0 += 1 } }
                }
            }
            #expect(agreed.withLock { $0 } == 8 * 20)
        }

        // MARK: What is not finite

        private func expectPropagation<Element: TestElement>(_ type: Element.Type) throws {
            // The depth is odd, so that the last pair of bfloat16 has one element.
            let (rows, columns, depth) = (20, 35, 17)
            for (layout, place) in [
                (Matmul.Layout.nn, 0), (.nn, 16), (.nt, 16), (.tn, 16), (.nt, 3),
            ] {
                for value in [Float.nan, .infinity, -.infinity] {
                    let row = 11
                    var a = Array(repeating: Element(1), count: rows * depth)
                    a[layout == .tn ? place * rows + row : row * depth + place] = Element(value)
                    let b = Array(repeating: Element(1), count: columns * depth)
                    var c = Array(repeating: Float(0), count: rows * columns)
                    do {
                        var span = c.mutableSpan
                        try Matmul.multiply(
                            a.span, b.span, into: &span,
                            shape: .init(rows: rows, columns: columns, depth: depth),
                            layout: layout, workspace: workspace)
                    }
                    for i in 0..<rows {
                        let sums = c[i * columns..<(i + 1) * columns]
                        let isRight =
                            i != row
                            ? sums.allSatisfy { $0 == 17 }
                            : sums.allSatisfy { value.isNaN ? $0.isNaN : $0 == value }
                        #expect(isRight, "\(type) \(layout) \(value) row \(i): \(Array(sums))")
                    }
                }
            }
        }

        @Test func notANumberAndInfinityStayInTheirRow() throws {
            try withEachInstructionSet { _ in
                try expectPropagation(Float.self)
                try expectPropagation(BFloat16.self)
                try expectPropagation(Float16.self)
            }
        }

        @Test func infinityTimesZeroIsNotANumber() throws {
            try withEachInstructionSet { set in
                let a: [Float] = [.infinity, 1]
                let b: [Float] = [0, 2, 3, 4]
                var c: [Float] = [0, 0]
                var span = c.mutableSpan
                try Matmul.multiply(
                    a.span, b.span, into: &span, shape: .init(rows: 1, columns: 2, depth: 2),
                    workspace: workspace)
                #expect(c[0].isNaN && c[1] == .infinity, "\(set)")
            }
        }

        // MARK: Errors

        /// The error of a product with arrays of these numbers of elements.
        private func error(
            a: Int = 1000, b: Int = 1000, c: Int = 1000, _ shape: Matmul.Shape,
            layout: Matmul.Layout = .nn, threads: Int = 0
        ) -> KernelError? {
            let sentinel: Float = 7
            let operand = Array(repeating: Float(1), count: max(a, b))
            var result = Array(repeating: sentinel, count: c)
            do throws(KernelError) {
                var span = result.mutableSpan
                try Matmul.multiply(
                    operand.span.extracting(first: a), operand.span.extracting(first: b),
                    into: &span, shape: shape, layout: layout, threads: threads,
                    workspace: workspace)
            } catch {
                #expect(result.allSatisfy { $0 == sentinel }, "wrote before \(error)")
                return error
            }
            return nil
        }

        @Test func negativeSizes() {
            func outOfRange(_ argument: String, _ actual: String) -> KernelError {
                .outOfRange(argument: argument, allowed: ">= 0", actual: actual)
            }
            #expect(
                error(.init(rows: -1, columns: 2, depth: 3)) == outOfRange("rows", "-1"))
            #expect(
                error(.init(rows: 1, columns: -2, depth: 3)) == outOfRange("columns", "-2"))
            #expect(error(.init(rows: 1, columns: 2, depth: -3)) == outOfRange("depth", "-3"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3, batch: -4)) == outOfRange("batch", "-4"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3, aStride: -5))
                    == outOfRange("aStride", "-5"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3, bBatchStride: -6))
                    == outOfRange("bBatchStride", "-6"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3), threads: -1)
                    == outOfRange("threads", "-1"))
        }

        @Test func stridesAndSpansTooSmall() {
            func tooSmall(_ argument: String, _ minimum: Int, _ actual: Int) -> KernelError {
                .tooSmall(argument: argument, minimum: minimum, actual: actual)
            }
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, aStride: 5)) == tooSmall("aStride", 6, 5)
            )
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, bStride: 4)) == tooSmall("bStride", 5, 4)
            )
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, bStride: 5), layout: .nt)
                    == tooSmall("bStride", 6, 5))
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, cStride: 0)) == tooSmall("cStride", 5, 0)
            )
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, batch: 2, cBatchStride: 19))
                    == tooSmall("cBatchStride", 20, 19))
            #expect(error(a: 23, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("a", 24, 23))
            #expect(error(a: 24, b: 30, c: 20, .init(rows: 4, columns: 5, depth: 6)) == nil)
            #expect(error(b: 29, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("b", 30, 29))
            #expect(error(c: 19, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("c", 20, 19))
            // Rows apart; the last row needs no gap.
            let gaps = Matmul.Shape(rows: 4, columns: 5, depth: 6, aStride: 10, cStride: 9)
            #expect(error(a: 35, gaps) == tooSmall("a", 36, 35))
            #expect(error(c: 31, gaps) == tooSmall("c", 32, 31))
            #expect(error(a: 36, c: 32, gaps) == nil)
            #expect(
                error(a: 24, .init(rows: 4, columns: 5, depth: 6, batch: 2, aBatchStride: 1))
                    == tooSmall("a", 25, 24))
            #expect(
                error(a: 0, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("a", 24, 0))
        }

        @Test func sizesThatOverflow() {
            let half = Int.max / 2
            #expect(
                error(.init(rows: 3, columns: 1, depth: 1, aStride: half + 1))
                    == .overflow(argument: "a"))
            #expect(
                error(.init(rows: 2, columns: 2, depth: 1, batch: half))
                    == .tooSmall(argument: "a", minimum: 2 * half, actual: 1000))
            #expect(
                error(.init(rows: 1 << 40, columns: 1 << 40, depth: 0))
                    == .overflow(argument: "c"))
        }

        @Test func emptySizesDoNothing() {
            #expect(error(a: 0, b: 0, c: 0, .init(rows: 0, columns: 5, depth: 6, batch: 0)) == nil)
            #expect(error(a: 0, c: 0, .init(rows: 0, columns: 5, depth: 6)) == nil)
            #expect(error(b: 0, c: 0, .init(rows: 4, columns: 0, depth: 6)) == nil)
            #expect(error(a: 0, b: 0, c: 20, .init(rows: 4, columns: 5, depth: 0)) == nil)
        }
    }
}
