import LMKernels
import LMKernelsReference
import Testing

extension KernelSuite {
    /// Precision, extremes, values that are not finite, empty input.
    @Suite struct SoftmaxEdgeTests {
        /// Rows of float32 with nothing masked.
        private func problem(_ rows: [[Float]]) -> SoftmaxProblem<Float> {
            var problem = SoftmaxProblem<Float>(rows: rows.count, columns: rows[0].count, seed: 1)
            for (r, row) in rows.enumerated() {
                for (j, x) in row.enumerated() { problem.x[r, j] = x }
            }
            return problem
        }

        // MARK: - Precision

        /// The largest error in units in the last place of what is expected.
        private func worstUnits(_ found: [Double], _ expected: [Double]) -> Double {
            zip(found, expected).reduce(0) { worst, entry in
                let error = abs(entry.0 - entry.1) / Double(Float(entry.1).ulp)
                return max(worst, error)
            }
        }

        /// With 0 the largest entry, u - m is exact.
        @Test func everyProbabilityIsWithinFourAndAHalfUnits() throws {
            var random = SeededGenerator(seed: 2)
            let rows: [[Float]] = (0..<40).map { _ in
                [0] + (0..<999).map { _ in .random(in: -40...0, using: &random) }
            }
            var problem = problem(rows)
            let expected = problem.expected(.softmax).y
            try withEachInstructionSet(of: .softmax) { set in
                for algorithm in Softmax.Algorithm.allCases {
                    problem.options.algorithm = algorithm
                    let error = try worstUnits(problem.forward(.softmax).y.dense, expected)
                    // Measured: 4.3 with `online`, 4.0 otherwise, 3.0 without fused multiply-add.
                    #expect(error < 4.5, "\(set) \(algorithm)")
                }
            }
        }

        @Test func algorithmsAgree() throws {
            for (columns, offset) in [(1000, 0), (50000, 0), (1000, 300), (1000, -20000)] {
                var problem = SoftmaxProblem<Float>(
                    rows: 3, columns: columns, seed: 3, spread: 40)
                for r in 0..<3 {
                    for j in 0..<columns { problem.x[r, j] += Float(offset) }
                }
                try withEachInstructionSet(of: .softmax) { set in
                    problem.options.algorithm = .threePass
                    let (three, sums) = try problem.forward(.softmax)
                    for algorithm in [Softmax.Algorithm.online, .twoPass] {
                        problem.options.algorithm = algorithm
                        let (y, otherSums) = try problem.forward(.softmax)
                        let error = relativeError(y.dense, three.dense)
                        let sumError = relativeError(otherSums, sums.map { Double($0) })
                        // Measured: 1.3e-7, and no difference of the sums.
                        #expect(error < 2.6e-7, "\(columns) \(offset) \(algorithm) \(set)")
                        #expect(sumError < 7e-8, "\(columns) \(offset) \(algorithm) \(set)")
                    }
                }
            }
        }

        // MARK: - Extremes

        /// Outputs and dx of every function and algorithm, in kind and place where they are not
        /// finite.
        private func check(
            _ rows: [[Float]], _ label: String,
            functions: [Softmax.Function] = Softmax.Function.allCases, checksScale: Bool = true
        ) throws {
            var problem = problem(rows)
            // As float32: -6e38 is -inf.
            func narrow(_ x: [Double]) -> [Double] { x.map { Double(Float($0)) } }
            let sums = narrow(problem.logSumExpReference())
            for function in functions {
                let expected = problem.expected(function)
                let (y, x) = (narrow(expected.y), narrow(expected.x))
                let isLog = function == .logSoftmax || function == .logStableMax
                for algorithm in Softmax.Algorithm.allCases {
                    problem.options.algorithm = algorithm
                    try withEachInstructionSet(of: .softmax) { set in
                        let label = "\(label) \(function) \(algorithm) \(set)"
                        let (found, foundSums) = try problem.forward(function)
                        let error = relativeError(found.dense, y, floor: isLog ? 1 : 0)
                        // Measured: 3.6e-7, 5.9e-8 of logSumExp, 4.3e-7 of gradients.
                        #expect(error < 7e-7, "\(label): \(error)")
                        if !foundSums.isEmpty {
                            #expect(relativeError(foundSums, sums) < 1.2e-7, "\(label)")
                        }
                        let (dx, scale) = try problem.backward(function, y: found)
                        let gradient = relativeError(dx.dense, x, floor: 0.1)
                        #expect(gradient < 9e-7, "\(label): dx \(gradient)")
                        if checksScale {
                            #expect(
                                zip(scale, expected.scale).allSatisfy { $0.isNaN == $1.isNaN },
                                "\(label)")
                        }
                    }
                }
            }
            let gradient = narrow(problem.expectedLogSumExp().x)
            for algorithm in Softmax.Algorithm.allCases {
                problem.options.algorithm = algorithm
                try withEachInstructionSet(of: .softmax) { set in
                    let label = "\(label) logSumExp \(algorithm) \(set)"
                    #expect(try relativeError(problem.logSumExp(), sums) < 1.2e-7, "\(label)")
                    let dx = try problem.logSumExpBackward().x
                    #expect(relativeError(dx.dense, gradient, floor: 0.1) < 9e-7, "\(label)")
                }
            }
        }

        /// `special` at the ends of rows of each length, and in a whole vector of the last slice.
        private func check(
            special: [Float], among others: ClosedRange<Float> = -2...2,
            functions: [Softmax.Function] = Softmax.Function.allCases, checksScale: Bool = true
        ) throws {
            for columns in [3, 70, 16450] {
                var random = SeededGenerator(seed: 5)
                let places = [0, max(columns / 2, columns - 20), columns - 1]
                let rows: [[Float]] = places.map { first in
                    var row = (0..<columns).map { _ in Float.random(in: others, using: &random) }
                    for (i, x) in special.enumerated() { row[(first + i) % columns] = x }
                    return row
                }
                try check(
                    rows, "\(special) of \(columns)", functions: functions,
                    checksScale: checksScale)
            }
        }

        @Test(
            arguments: [3e38, -3e38, 1e30, 1e25, -1e25, 1e6, -1e6, 0x1p-149, -0x1p-130, 500, -700]
                as [Float])
        func oneEntryFarFromTheOthers(x: Float) throws {
            // 3e38 times a du that is all rounding says nothing.
            try check(special: [x], checksScale: false)
        }

        @Test(
            arguments: [
                1e6, -1e6, 1.04e6, 1.05e6, -1.05e6, -1_048_570, 30000, -400, 255, -300, -250,
            ] as [Float])
        func allEntriesFarFromZero(offset: Float) throws {
            try check(
                special: [], among: offset - 4...offset + 4, functions: [.softmax, .logSoftmax])
            // Entries that are cut where two passes cannot hold them.
            try check(
                special: [offset], among: offset * 1.25 - 40...offset * 1.25 + 40,
                functions: [.softmax, .logSoftmax])
        }

        @Test func hugeEntriesOnly() throws {
            for x in [3e38, -3e38, .greatestFiniteMagnitude, -.greatestFiniteMagnitude] as [Float] {
                try check(
                    [[Float](repeating: x, count: 70)], "\(x)", functions: [.softmax, .logSoftmax],
                    checksScale: false)
            }
            try check(
                [(0..<70).map { $0 % 2 == 0 ? 3e38 : -3e38 }], "both signs",
                functions: [.softmax, .logSoftmax], checksScale: false)
        }

        // MARK: - Values that are not finite

        @Test func minusInfinity() throws {
            try check(special: [-.infinity])
            try check(special: [-.infinity, -.infinity])
            for columns in [1, 5, 64, 20000] {
                let none = [Float](repeating: -.infinity, count: columns)
                var one = none
                one[columns / 2] = 3
                try check([none, one], "-inf of \(columns)")
            }
        }

        /// x du is no smaller where s(u) vanishes beside the sum: only -infinity adds nothing.
        @Test func scaleGradientWhereStableMaxVanishes() throws {
            let problem = problem([[-1e30, 3e38] + [Float](repeating: 0, count: 18)])
            let expected = problem.expected(.logStableMax).scale
            try withEachInstructionSet(of: .softmax) { set in
                let y = try problem.forward(.logStableMax).y
                let found = try problem.backward(.logStableMax, y: y).scale
                #expect(relativeError(found, expected) < 1e-6, "\(set)")
            }
        }

        /// Positions so far before the first column that their rows keep nothing.
        @Test func rowsThatSeeNothing() throws {
            for function in Softmax.Function.allCases {
                var problem = SoftmaxProblem<Float>(rows: 5, columns: 20, seed: 8)
                problem.options.causalOffset = -3
                let expected = problem.expected(function)
                try withEachInstructionSet(of: .softmax) { set in
                    let label = "\(function) \(set)"
                    let y = try problem.forward(function).y
                    #expect(relativeError(y.dense, expected.y, floor: 1) < 7e-7, "\(label)")
                    let absent =
                        function == .softmax || function == .stableMax ? 0 : -Double.infinity
                    #expect(y.dense.prefix(3 * 20).allSatisfy { $0 == absent }, "\(label)")
                    let dx = try problem.backward(function, y: y).x
                    #expect(relativeError(dx.dense, expected.x, floor: 0.1) < 9e-7, "\(label)")
                }
            }
        }

        @Test func notANumberAndInfinity() throws {
            for special in [[.nan], [.infinity], [.nan, .infinity], [.infinity, .infinity]]
                as [[Float]]
            {
                try check(special: special)
            }
            try check(special: [.infinity, -.infinity])
            try check(special: [-.infinity, .nan, -.infinity])
        }

        /// Of the mask as of x.
        @Test func infinityTimesAScaleOfZero() throws {
            var problem = problem([[1, .infinity, 2], [1, -.infinity, 2]])
            problem.options.scale = 0
            let y = try problem.forward(.softmax).y.dense
            #expect(y.allSatisfy { $0.isNaN })
        }

        /// What is NaN in one row stays there.
        @Test func otherRowsAreUntouched() throws {
            for function in Softmax.Function.allCases {
                var problem = SoftmaxProblem<Float>(rows: 70, columns: 20, seed: 6)
                let good = try problem.forward(function).y
                for j in 0..<20 { problem.x[31, j] = .nan }
                let bad = try problem.forward(function).y
                for r in 0..<70 {
                    #expect((0..<20).allSatisfy { r == 31 || bad[r, $0] == good[r, $0] })
                    #expect(bad[31, 3].isNaN)
                }
            }
        }

        // MARK: - Nothing to do

        @Test func noColumns() throws {
            for algorithm in Softmax.Algorithm.allCases {
                let none: [Float] = []
                let one: [Float] = [1, 1]
                var sums: [Float] = [5, 5]
                var span = sums.mutableSpan
                let options = Softmax.Options(algorithm: algorithm)
                try Softmax.logSumExp(
                    none.span, into: &span, shape: .init(rows: 2, columns: 0), options: options,
                    workspace: Workspace())
                #expect(sums == [-.infinity, -.infinity])
                var scale: [Float] = [5, 5]
                var dx: [Float] = []
                try Softmax.logSumExpBackward(
                    none.span, gradient: one.span, xGradient: dx.mutableSpan,
                    scaleGradient: scale.mutableSpan, shape: .init(rows: 2, columns: 0),
                    options: options, workspace: Workspace())
                #expect(scale == [0, 0])
            }
        }

        @Test func noRows() throws {
            var empty: [Float] = []
            let none: [Float] = []
            let noLengths: [Int] = []
            let shape = Softmax.Shape(rows: 0, columns: 5)
            for function in Softmax.Function.allCases {
                var span = empty.mutableSpan
                try Softmax.forward(
                    function, none.span, into: &span, shape: shape, lengths: noLengths.span,
                    mask: none.span, workspace: Workspace())
                try Softmax.backward(
                    function, x: none.span, y: none.span, yGradient: none.span, shape: shape,
                    workspace: Workspace())
            }
        }

        @Test func gradientsThatAreNotAskedFor() throws {
            let problem = SoftmaxProblem<Float>(rows: 9, columns: 50, seed: 7)
            for function in Softmax.Function.allCases {
                let y = try problem.forward(function).y
                let both = try problem.backward(function, y: y)
                var dx = problem.gradient()
                var scale = both.scale.map { _ in Float.nan }
                let x = problem.x.array.span.extracting(problem.x.range)
                let out = y.array.span.extracting(y.range)
                let dy = problem.yGradient.array.span.extracting(problem.yGradient.range)
                let isFromY = function == .softmax || function == .logSoftmax
                try withRows(of: &dx) { dx in
                    try Softmax.backward(
                        function, x: isFromY ? nil : x, y: isFromY ? out : nil, yGradient: dy,
                        xGradient: dx, shape: problem.shape, options: problem.options,
                        workspace: Workspace())
                }
                try Softmax.backward(
                    function, x: x, y: out, yGradient: dy, scaleGradient: scale.mutableSpan,
                    shape: problem.shape, options: problem.options, workspace: Workspace())
                #expect(bits(dx) == bits(both.x), "\(function)")
                #expect(bits(scale) == bits(both.scale), "\(function)")
            }
        }

        @Test func workspaceOfTheSizeThatIsNamed() throws {
            for (rows, columns) in [(3, 70000), (2100, 4099), (50, 100), (3, 5000)] {
                for threads in [1, 2, 8] {
                    let shape = Softmax.Shape(rows: rows, columns: columns)
                    let options = Softmax.Options(threads: threads)
                    let named = Softmax.workspaceByteCount(
                        .bfloat16, shape: shape, options: options)
                    #expect(named <= threads * (256 << 10) + rows * columns / 1000 + 256)
                    let x = [BFloat16](repeating: BFloat16(1), count: rows * columns)
                    var y = x
                    for function in Softmax.Function.allCases {
                        let workspace = Workspace(byteCount: named)
                        var span = y.mutableSpan
                        try Softmax.forward(
                            function, x.span, into: &span, shape: shape, options: options,
                            workspace: workspace)
                        #expect(workspace.byteCount == named)
                    }
                }
            }
        }
    }
}
