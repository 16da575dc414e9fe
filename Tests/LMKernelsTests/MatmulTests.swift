import LMKernels
import Testing

extension KernelSuite {
    @Suite struct MatmulTests {
        private typealias Problem = MatmulProblem

        private let workspace = Workspace()

        // MARK: Against the reference

        /// Largest error in units of 2^-24 times the sum of magnitudes.
        private func worstError<Element: TestElement>(
            _ type: Element.Type, _ problems: [Problem]
        ) throws -> Double {
            var generator = SeededGenerator(seed: 1)
            var worst = 0.0
            for problem in problems {
                let test = MatmulCase<Element>(problem) {
                    Float.random(in: -1...1, using: &generator)
                }
                let (expected, magnitudes) = (test.expected(), test.magnitudes())
                try withEachInstructionSet(of: .matmul(Element.storageType)) { _ in
                    let c = try test.product(threads: 2, workspace: workspace)
                    for i in c.indices {
                        let error = (Double(c[i]) - expected[i]).magnitude
                        let unit = 0x1p-24 * magnitudes[i]
                        // An error that is not a number compares false.
                        worst = error <= 1 ? max(worst, error == 0 ? 0 : error / unit) : .infinity
                    }
                }
            }
            return worst
        }

        @Test(arguments: Matmul.Layout.allCases)
        func float32MatchesReference(_ layout: Matmul.Layout) throws {
            let worst = try worstError(Float.self, Problem.edges(layout))
            // Measured: 4.25
            #expect(worst < 5)
        }

        @Test(arguments: Matmul.Layout.allCases)
        func bfloat16MatchesReference(_ layout: Matmul.Layout) throws {
            let worst = try worstError(BFloat16.self, Problem.edges(layout))
            // Measured: 2.19
            #expect(worst < 3)
        }

        @Test(arguments: Matmul.Layout.allCases)
        func float16MatchesReference(_ layout: Matmul.Layout) throws {
            let worst = try worstError(Float16.self, Problem.edges(layout))
            // Measured: 4.19
            #expect(worst < 5)
        }

        // MARK: Exactly

        private func expectExact<Element: TestElement>(
            _ type: Element.Type, _ problem: Problem, seed: UInt64 = 3
        ) throws {
            var generator = SeededGenerator(seed: seed)
            let test = MatmulCase<Element>(problem) {
                Float(Int.random(in: -4...4, using: &generator))
            }
            let expected = test.expected().map { Float($0) }
            try withEachInstructionSet(of: .matmul(Element.storageType)) { set in
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
            for (i, edge) in Problem.edges(layout).enumerated() where i % 3 == 0 {
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
            // One thread packs panels when it first uses them, several beforehand.
            for threads in [1, 2] {
                var c = Array(repeating: Float.nan, count: rows * columns)
                do {
                    var span = c.mutableSpan
                    try Matmul.multiply(
                        a.span, b.span, into: &span,
                        shape: .init(rows: rows, columns: columns, depth: depth), layout: .nt,
                        threads: threads, workspace: workspace)
                }
                for _ in 0..<10_000 {
                    let i = Int.random(in: 0..<rows, using: &generator)
                    let j = Int.random(in: 0..<columns, using: &generator)
                    let sum = (0..<depth).reduce(0) {
                        $0 + a[i * depth + $1].double * b[j * depth + $1].double
                    }
                    let place = "\(type), \(threads) threads, row \(i), column \(j)"
                    #expect(Double(c[i * columns + j]) == sum, "\(place)")
                }
            }
        }

        /// Shared panels that are packed in several turns: too many lanes, and too much depth.
        @Test(arguments: [(6500, 6300, 2), (6300, 6500, 3), (2600, 2700, 1300)])
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
            try withEachInstructionSet(of: .matmul(.bfloat16)) { _ in
                try expectPropagation(Float.self)
                try expectPropagation(BFloat16.self)
                try expectPropagation(Float16.self)
            }
        }

        @Test func infinityTimesZeroIsNotANumber() throws {
            try withEachInstructionSet(of: .matmul(.float32)) { set in
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
    }
}
