import LMKernels
import LMKernelsReference
import Testing

extension KernelSuite {
    @Suite struct SoftmaxAccumulatorTests {
        /// Scores [rows, count] and values [count, width] with gaps of NaN.
        private struct Problem<Element: TestElement> {
            var scores: GappedMatrix<Element>
            var values: GappedMatrix<Element>
            var scale: Float = 0.8

            init(rows: Int, count: Int, width: Int, seed: UInt64, spread: Float = 6) {
                var random = SeededGenerator(seed: seed)
                scores = GappedMatrix(rows: rows, columns: count, gap: 3, filler: .nan)
                values = GappedMatrix(rows: count, columns: width, gap: 2, filler: .nan)
                for j in 0..<count {
                    for r in 0..<rows {
                        scores[r, j] = Element(.random(in: -spread...spread, using: &random))
                    }
                    for d in 0..<width {
                        values[j, d] = Element(.random(in: -1...1, using: &random))
                    }
                }
            }

            var width: Int { values.columns }

            /// Pushes columns `range`.
            func push(
                _ range: Range<Int>, to accumulator: inout Softmax.Accumulator, threads: Int = 1,
                workspace: Workspace = Workspace()
            ) throws {
                var rows = scores.range
                if !rows.isEmpty { rows = rows.lowerBound + range.lowerBound..<rows.upperBound }
                let begin = values.range.lowerBound + range.lowerBound * values.stride
                let valuesEnd = max(begin, values.range.upperBound)
                try accumulator.push(
                    scores: scores.array.span.extracting(rows),
                    count: range.count,
                    values: width > 0 ? values.array.span.extracting(begin..<valuesEnd) : nil,
                    scale: scale, scoresStride: scores.stride, valuesStride: values.stride,
                    threads: threads, workspace: workspace)
            }

            /// Pushes blocks that end at `ends`, then at the last column.
            func run(cuts ends: [Int], threads: Int = 1) throws -> (sums: [Float], output: [Float])
            {
                var accumulator = try Softmax.Accumulator(rows: scores.rows, width: width)
                var begin = 0
                for end in ends + [scores.columns] {
                    try push(begin..<end, to: &accumulator, threads: threads)
                    begin = end
                }
                return try SoftmaxAccumulatorTests.finish(accumulator)
            }

            func expected() -> (sums: [Double], output: [Double]) {
                var accumulator = ReferenceSoftmax.Accumulator(rows: scores.rows, width: width)
                accumulator.push(
                    scores.dense.map { $0 * Double(scale) }, count: scores.columns,
                    values: values.dense)
                let (sums, output) = accumulator.finish()
                return (sums, output)
            }
        }

        private static func finish(
            _ accumulator: borrowing Softmax.Accumulator
        ) throws -> (sums: [Float], output: [Float]) {
            let (rows, width) = (accumulator.rows, accumulator.width)
            var sums = [Float](repeating: -80, count: rows)
            var output = GappedMatrix<Float>(rows: rows, columns: width, gap: 4, filler: -80)
            try withRows(of: &output) { output in
                try accumulator.finish(
                    output: output, outputStride: width + 4, logSumExp: sums.mutableSpan)
            }
            #expect(output.isFillerKept)
            return (sums, output.dense.map { Float($0) })
        }

        private func check<Element: TestElement>(
            rows: Int, count: Int, width: Int, of type: Element.Type
        ) throws {
            let problem = Problem<Element>(
                rows: rows, count: count, width: width, seed: UInt64(rows + count + width))
            let expected = problem.expected()
            let cuts = [[], [count / 2], Array(stride(from: 0, to: count, by: max(1, count / 5)))]
            try withEachInstructionSet(of: .softmax) { set in
                for (k, cuts) in cuts.enumerated() {
                    let found = try problem.run(cuts: cuts, threads: 1 + k)
                    let label = "\(rows) x \(count) x \(width) \(type) \(set) cuts \(k)"
                    let sums = relativeError(found.sums, expected.sums)
                    let output = relativeError(
                        found.output.map { Double($0) }, expected.output, floor: 1e-2)
                    // Measured: 5.7e-8 and 4.4e-7.
                    #expect(sums < 1.2e-7, "\(label): \(sums)")
                    #expect(output < 9e-7, "\(label): \(output)")
                }
            }
        }

        @Test(arguments: [0, 1, 2, 15, 16, 17, 33, 64, 65, 513])
        func everySize(size: Int) throws {
            try check(rows: size, count: 40, width: 24, of: Float.self)
            try check(rows: 9, count: size, width: 24, of: Float.self)
            try check(rows: 9, count: 40, width: size, of: Float.self)
            try check(rows: size, count: 40, width: 17, of: BFloat16.self)
            try check(rows: 7, count: size, width: 33, of: BFloat16.self)
            try check(rows: 7, count: size, width: 33, of: Float16.self)
        }

        @Test func large() throws {
            try check(rows: 300, count: 1100, width: 128, of: Float.self)
            // Packed weights beyond what is shared at a time.
            try check(rows: 1200, count: 1200, width: 16, of: Float.self)
        }

        @Test func sameCutsGiveTheSameBits() throws {
            let problem = Problem<Float>(rows: 150, count: 700, width: 48, seed: 3)
            var expected: (sums: [Float], output: [Float])?
            try withEachInstructionSet(fusedSets, of: .softmax) { set in
                for threads in [1, 2, 3, 8] {
                    let found = try problem.run(cuts: [100, 101, 500], threads: threads)
                    if let expected {
                        #expect(bits(found.sums) == bits(expected.sums), "\(set) \(threads)")
                        #expect(bits(found.output) == bits(expected.output), "\(set) \(threads)")
                    }
                    expected = expected ?? found
                }
            }
        }

        /// Larger scores later, so that every block scales what is there.
        @Test func ascendingScores() throws {
            var problem = Problem<Float>(rows: 5, count: 200, width: 20, seed: 4)
            for r in 0..<5 {
                for j in 0..<200 { problem.scores[r, j] = Float(r < 3 ? j : -j) * 0.7 }
            }
            let expected = problem.expected()
            let cuts = Array(stride(from: 10, to: 200, by: 10))
            try withEachInstructionSet(of: .softmax) { _ in
                let found = try problem.run(cuts: cuts)
                #expect(relativeError(found.sums, expected.sums) < 1.2e-7)
                // Measured: 1.9e-6. Scores beyond 64 are rounded to 3.8e-6 when they are scaled.
                #expect(relativeError(found.output, expected.output) < 4e-6)
            }
        }

        @Test func merging() throws {
            let problem = Problem<Float>(rows: 40, count: 300, width: 20, seed: 5)
            let expected = problem.expected()
            try withEachInstructionSet(of: .softmax) { set in
                var parts = try Softmax.Accumulator(rows: 40, width: 20)
                for range in [0..<120, 120..<121, 121..<300] {
                    var part = try Softmax.Accumulator(rows: 40, width: 20)
                    try problem.push(range, to: &part)
                    try parts.merge(part)
                }
                // What received nothing changes nothing.
                let before = try Self.finish(parts)
                try parts.merge(Softmax.Accumulator(rows: 40, width: 20))
                let found = try Self.finish(parts)
                #expect(bits(found.sums) == bits(before.sums))
                #expect(bits(found.output) == bits(before.output))
                #expect(relativeError(found.sums, expected.sums) < 1.2e-7, "\(set)")
                #expect(relativeError(found.output, expected.output) < 1e-6, "\(set)")
            }
        }

        /// The same through softmax and a product.
        @Test func softmaxTimesValues() throws {
            let problem = Problem<Float>(rows: 33, count: 257, width: 31, seed: 6)
            let found = try problem.run(cuts: [64, 128, 192])
            let scores = problem.scores.dense.map { Float($0) }
            let values = problem.values.dense.map { Float($0) }
            var p = scores
            var output = [Float](repeating: 0, count: 33 * 31)
            var span = p.mutableSpan
            try Softmax.forward(
                .softmax, scores.span, into: &span, shape: .init(rows: 33, columns: 257),
                options: .init(scale: problem.scale), workspace: Workspace())
            var outputSpan = output.mutableSpan
            try Matmul.multiply(
                p.span, values.span, into: &outputSpan,
                shape: .init(rows: 33, columns: 31, depth: 257), workspace: Workspace())
            let error = relativeError(found.output, output.map { Double($0) })
            // Measured: 3.5e-7.
            #expect(error < 7e-7)
        }

        @Test func minusInfinity() throws {
            var problem = Problem<Float>(rows: 4, count: 50, width: 5, seed: 7)
            for j in 0..<50 {
                problem.scores[1, j] = -.infinity
                if j < 20 { problem.scores[2, j] = -.infinity }
                if j >= 20 { problem.scores[3, j] = -.infinity }
            }
            let expected = problem.expected()
            for cuts in [[], [20], [10, 30]] {
                let found = try problem.run(cuts: cuts)
                #expect(relativeError(found.sums, expected.sums) < 1.2e-7)
                #expect(relativeError(found.output, expected.output) < 1e-6)
                #expect(found.sums[1] == -.infinity && found.output[5..<10].allSatisfy { $0 == 0 })
            }
        }

        @Test func notANumberAndInfinity() throws {
            for bad in [Float.nan, .infinity] {
                for place in [0, 25, 49] {
                    var problem = Problem<Float>(rows: 3, count: 50, width: 5, seed: 8)
                    let good = try problem.run(cuts: [20, 30])
                    problem.scores[1, place] = bad
                    let found = try problem.run(cuts: [20, 30])
                    #expect(found.sums[1].isNaN)
                    #expect(found.output[5..<10].allSatisfy { $0.isNaN })
                    for r in [0, 2] {
                        #expect(found.sums[r] == good.sums[r])
                        #expect(found.output[5 * r] == good.output[5 * r])
                    }
                }
            }
        }

        @Test func hugeScores() throws {
            for x in [3e38, -3e38, 1e6] as [Float] {
                var problem = Problem<Float>(rows: 2, count: 20, width: 3, seed: 9)
                problem.scale = 1
                problem.scores[0, 7] = x
                for j in 0..<20 { problem.scores[1, j] = x }
                let expected = problem.expected()
                let found = try problem.run(cuts: [5, 10])
                #expect(relativeError(found.sums, expected.sums) < 1.2e-7)
                #expect(relativeError(found.output, expected.output) < 1e-6)
            }
        }

        @Test func resetForgets() throws {
            let problem = Problem<Float>(rows: 6, count: 30, width: 4, seed: 10)
            let expected = try problem.run(cuts: [])
            var accumulator = try Softmax.Accumulator(rows: 6, width: 4)
            let empty = try Self.finish(accumulator)
            #expect(empty.sums.allSatisfy { $0 == -.infinity })
            #expect(empty.output.allSatisfy { $0 == 0 })
            try problem.push(3..<17, to: &accumulator)
            accumulator.reset()
            try problem.push(0..<30, to: &accumulator)
            let found = try Self.finish(accumulator)
            #expect(bits(found.sums) == bits(expected.sums))
            #expect(bits(found.output) == bits(expected.output))
        }
    }
}
