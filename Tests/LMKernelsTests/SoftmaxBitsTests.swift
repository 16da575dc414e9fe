import LMKernels
import Testing

/// Bits of a storage type, to compare NaN and signs of zero as well.
func bits<Element: TestElement>(_ matrix: GappedMatrix<Element>) -> [UInt64] {
    (0..<matrix.rows).flatMap { r in
        (0..<matrix.columns).map { matrix[r, $0].double.bitPattern }
    }
}

extension KernelSuite {
    /// Equality to the bit: threads, instruction sets, places in memory, ways to call.
    @Suite struct SoftmaxBitsTests {
        /// Everything that is made of a problem's rows, as bits.
        private func everything<Element>(
            _ problem: SoftmaxProblem<Element>, workspace: Workspace = Workspace()
        ) throws -> [[UInt64]] {
            var found: [[UInt64]] = []
            for function in Softmax.Function.allCases {
                let (y, sums) = try problem.forward(function, workspace: workspace)
                let (x, scale) = try problem.backward(function, y: y, workspace: workspace)
                found += [bits(y), bits(x)]
                found += [sums, scale].map { bits($0).map { UInt64($0) } }
            }
            let sums = try problem.logSumExp()
            let (x, scale) = try problem.logSumExpBackward()
            return found + [bits(x)] + [sums, scale].map { bits($0).map { UInt64($0) } }
        }

        private func sameBits<Element: TestElement>(
            rows: Int, columns: Int, choice: Int, of type: Element.Type
        ) throws {
            for algorithm in Softmax.Algorithm.allCases {
                var problem = SoftmaxProblem<Element>(
                    rows: rows, columns: columns, seed: UInt64(columns))
                problem.options.algorithm = algorithm
                problem.options.scale = choice == 0 ? 1 : 0.8
                problem.choose(choice, seed: 4)
                let workspace = Workspace()
                var expected: [[UInt64]]?
                try withEachInstructionSet(fusedSets, of: .softmax) { set in
                    for threads in [1, 2, 3, 8] {
                        problem.options.threads = threads
                        let these = try everything(problem, workspace: workspace)
                        let label = "\(rows) x \(columns) \(algorithm) \(set) \(threads) threads"
                        if let expected { #expect(these == expected, "\(label)") }
                        expected = expected ?? these
                    }
                }
            }
        }

        /// Many short rows, slots of one row, few long rows whose slices go to different threads.
        @Test(arguments: [(700, 33), (9, 4097), (2, 32769), (3, 70000)], [0, 7])
        func threadsAndInstructionSets(shape: (Int, Int), choice: Int) throws {
            try sameBits(rows: shape.0, columns: shape.1, choice: choice, of: Float.self)
            try sameBits(rows: shape.0, columns: shape.1, choice: choice, of: BFloat16.self)
            try sameBits(rows: shape.0, columns: shape.1, choice: choice, of: Float16.self)
        }

        /// One row so long that two threads take two of its slices at a time, and the last one alone;
        /// three and more take one.
        @Test func runsOfSlices() throws {
            var problem = SoftmaxProblem<Float>(rows: 1, columns: 34 * 16384 + 5, seed: 3)
            problem.options.scale = 0.8
            let workspace = Workspace()
            problem.options.threads = 1
            let expected = try everything(problem, workspace: workspace)
            for threads in [2, 3, 8] {
                problem.options.threads = threads
                // Not in the expectation, which would print both.
                let isSame = try everything(problem, workspace: workspace) == expected
                #expect(isSame, "\(threads) threads")
            }
        }

        /// Whether passes store exponentials beside the row, in y or not at all changes no bit.
        @Test func oneRowAsManyRows() throws {
            for columns in [1000, 40000, 65536] {
                for algorithm in Softmax.Algorithm.allCases {
                    var many = SoftmaxProblem<Float>(rows: 12, columns: columns, seed: 2)
                    many.options = .init(scale: 1.1, algorithm: algorithm, threads: 2)
                    for function in Softmax.Function.allCases {
                        let (y, sums) = try many.forward(function)
                        for r in [0, 7, 11] {
                            var one = many
                            one.shape.rows = 1
                            one.x = GappedMatrix(rows: 1, columns: columns, gap: 5, filler: .nan)
                            for j in 0..<columns { one.x[0, j] = many.x[r, j] }
                            let (single, sum) = try one.forward(function)
                            #expect(
                                (0..<columns).allSatisfy { single[0, $0] == y[r, $0] },
                                "\(columns) \(function) \(algorithm) row \(r)")
                            #expect(sum.isEmpty || sum[0] == sums[r])
                        }
                    }
                }
            }
        }

        // MARK: - In place

        private func inPlace<Element: TestElement>(
            rows: Int, columns: Int, of type: Element.Type
        ) throws {
            for algorithm in Softmax.Algorithm.allCases {
                for function in Softmax.Function.allCases {
                    var problem = SoftmaxProblem<Element>(rows: rows, columns: columns, seed: 8)
                    problem.options = .init(scale: 0.9, algorithm: algorithm, threads: 2)
                    problem.choose(5, seed: 9)
                    let (y, sums) = try problem.forward(function)
                    let (dx, scale) = try problem.backward(function, y: y)
                    var shape = problem.shape
                    shape.yStride = nil
                    var both = problem.x
                    var otherSums = sums
                    try withRows(of: &both) { part in
                        var part = part
                        var asked: MutableSpan<Float>? = otherSums.mutableSpan
                        if sums.isEmpty { asked = nil }
                        try Softmax.forward(
                            function, inPlace: &part, shape: shape, options: problem.options,
                            lengths: problem.lengths?.span, mask: problem.mask?.span,
                            logSumExp: asked, workspace: Workspace())
                    }
                    let label = "\(rows) x \(columns) \(function) \(algorithm)"
                    #expect(bits(both) == bits(y), "\(label)")
                    #expect(bits(otherSums) == bits(sums), "\(label)")
                    #expect(both.isFillerKept, "\(label)")

                    both = problem.yGradient
                    var otherScale = scale
                    try withRows(of: &both) { part in
                        var part = part
                        try Softmax.backward(
                            function, x: problem.x.array.span.extracting(problem.x.range),
                            y: y.array.span.extracting(y.range), inPlace: &part,
                            scaleGradient: otherScale.mutableSpan, shape: problem.shape,
                            options: problem.options, lengths: problem.lengths?.span,
                            mask: problem.mask?.span, workspace: Workspace())
                    }
                    #expect(bits(both) == bits(dx), "\(label)")
                    #expect(bits(otherScale) == bits(scale), "\(label)")
                    #expect(both.isFillerKept, "\(label)")
                }
            }
        }

        @Test(arguments: [(20, 77), (3, 5000), (2, 40000), (1, 70000)])
        func inPlaceIsOutOfPlace(shape: (Int, Int)) throws {
            try inPlace(rows: shape.0, columns: shape.1, of: Float.self)
            try inPlace(rows: shape.0, columns: shape.1, of: BFloat16.self)
            try inPlace(rows: shape.0, columns: shape.1, of: Float16.self)
        }

        // MARK: - Output past the caches

        /// More than 32 MB of output is written with streaming stores; parts of it are not.
        private func streams<Element: TestElement>(
            rows: Int, columns: Int, part: Int, functions: [Softmax.Function], threads: Int,
            of type: Element.Type
        ) throws {
            #expect(rows * columns * MemoryLayout<Element>.size > 32 << 20)
            var random = SeededGenerator(seed: 3)
            let stride = columns + 3
            let x = (0..<rows * stride).map { _ in
                Element(Float(Int16(truncatingIfNeeded: random.next())) / 8192)
            }
            for function in functions {
                for algorithm in [Softmax.Algorithm.automatic, .online] {
                    let options = Softmax.Options(algorithm: algorithm, threads: threads)
                    // Starts one element off a cache line or an odd number of them.
                    func run(partRows: Int) throws -> [Element] {
                        var y = [Element](repeating: Element(-80), count: rows * stride + 1)
                        for row in Swift.stride(from: 0, to: rows, by: partRows) {
                            let count = min(partRows, rows - row)
                            let begin = row * stride
                            let length = (count - 1) * stride + columns
                            try withPart(of: &y, begin + 1..<begin + 1 + length) { y in
                                try Softmax.forward(
                                    function, x.span.extracting(begin..<begin + length), into: &y,
                                    shape: .init(
                                        rows: count, columns: columns, xStride: stride,
                                        yStride: stride),
                                    options: options, workspace: Workspace())
                            }
                        }
                        return y
                    }
                    let (whole, parts) = (try run(partRows: rows), try run(partRows: part))
                    #expect(
                        whole.indices.allSatisfy { whole[$0].double == parts[$0].double },
                        "\(function) \(algorithm)")
                    #expect(whole[0].double == -80 && whole[columns + 1].double == -80)
                    // Something was written everywhere.
                    #expect(
                        whole.indices.allSatisfy { i in
                            (i + stride - 1) % stride >= columns || whole[i].double != -80
                        })
                }
            }
        }

        @Test func streamingOfManyRows() throws {
            try withEachInstructionSet(of: .softmax) { _ in
                try streams(
                    rows: 2100, columns: 4099, part: 100, functions: Softmax.Function.allCases,
                    threads: 2, of: Float.self)
            }
        }

        @Test func streamingOfShortRows() throws {
            // Shorter than what comes before the first whole line, or than a round.
            try streams(
                rows: 1_700_000, columns: 5, part: 100_000, functions: [.softmax, .logSoftmax],
                threads: 2, of: Float.self)
            try streams(
                rows: 120_000, columns: 71, part: 10_000, functions: [.softmax, .logSoftmax],
                threads: 2, of: Float.self)
        }

        @Test func streamingOfHalves() throws {
            try streams(
                rows: 2100, columns: 8195, part: 100, functions: [.softmax, .logSoftmax],
                threads: 2, of: BFloat16.self)
            try streams(
                rows: 2100, columns: 8195, part: 100, functions: [.stableMax, .logSoftmax],
                threads: 2, of: Float16.self)
        }

        /// One row, cut over threads.
        @Test func streamingOfLongRows() throws {
            try streams(
                rows: 2, columns: 4_300_001, part: 1, functions: Softmax.Function.allCases,
                threads: 2, of: Float.self)
        }
    }
}
