import LMKernelsReference
import Testing

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

@Suite struct SelfReferentialMatrixTests {
    /// H = 2 and D = 3, each option by a bit: no softmax of the input, packed sequences of 3, 0 and
    /// 2 tokens (else 2 of 3), a start per sequence, E = 2 (else 3).
    private func problem(options: Int) -> SelfReferentialMatrix.Problem {
        var generator = SeededGenerator(seed: UInt64(options))
        func option(_ bit: Int) -> Bool { options >> bit & 1 == 1 }
        let isPacked = option(1)
        let shape = SelfReferentialMatrix.Shape(
            batch: isPacked ? 1 : 2, tokens: isPacked ? 5 : 3, heads: 2, width: 3,
            outputWidth: option(3) ? 2 : 3)
        let count = shape.heads * shape.rows * shape.width
        let sequences = isPacked ? 3 : 2
        let x = generator.numbers(shape.batch * shape.tokens * 6, in: -2...2)
        return SelfReferentialMatrix.Problem(
            shape: shape, x: x,
            start: option(2)
                ? .sequences(generator.numbers(sequences * count, in: -2...2))
                : .shared(generator.numbers(count, in: -2...2)),
            hasInputSoftmax: !option(0), offsets: isPacked ? [0, 3, 3, 5] : nil)
    }

    private func sequences(_ problem: SelfReferentialMatrix.Problem) -> [Range<Int>] {
        if let offsets = problem.offsets {
            return zip(offsets, offsets.dropFirst()).map { $0..<$1 }
        }
        let tokens = problem.shape.tokens
        return (0..<problem.shape.batch).map { $0 * tokens..<($0 + 1) * tokens }
    }

    /// The rows as one sequence from the given start.
    private func slice(
        _ problem: SelfReferentialMatrix.Problem, _ rows: Range<Int>, start: [Double]
    ) -> SelfReferentialMatrix.Problem {
        let width = problem.shape.heads * problem.shape.width
        var part = problem
        part.shape.batch = 1
        part.shape.tokens = rows.count
        part.offsets = nil
        part.x = Array(problem.x[rows.lowerBound * width..<rows.upperBound * width])
        part.start = .sequences(start)
        return part
    }

    /// W_0 of sequence n.
    private func start(_ problem: SelfReferentialMatrix.Problem, _ n: Int) -> [Double] {
        let count = problem.shape.heads * problem.shape.rows * problem.shape.width
        switch problem.start {
        case .shared(let w): return w
        case .sequences(let w): return Array(w[n * count..<(n + 1) * count])
        }
    }

    /// D = 2 and E = 1, phi(x) = (3, 1) / 4. The rows of k give 0, those of q give (log 3, 0), so
    /// phi(k) = (1, 1) / 2, phi(q) = (3, 1) / 4 and phi(q) - phi(k) = (1, -1) / 4. The rates are
    /// 3/4, 1/4, 1/2 and 7/8.
    @Test func byHand() {
        let (log3, log7) = (log(3.0), log(7.0))
        let matrix: [Double] = [
            8, 4, 8, -24, 0, 0, log3, log3, 4, -12, log3, log3, -log3, -log3, 0, 0, log7 + 16,
            log7 - 48,
        ]
        var problem = SelfReferentialMatrix.Problem(
            shape: SelfReferentialMatrix.Shape(
                batch: 1, tokens: 1, heads: 1, width: 2, outputWidth: 1),
            x: [log3, 0], start: .shared(matrix))
        #expect(problem.shape.rows == 9)
        let result = SelfReferentialMatrix.forward(problem)
        #expect(worstError(result.output, [7]) < rounding)
        // v - u is 1 in the row of y, 8 in the first of k, 4 in the second of q, 16 in the last.
        let change: [Double] = [
            0.375, 0.375, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 7, 7,
        ]
        let expected = zip(matrix, change).map { $0 + $1 }
        #expect(worstError(result.finalMatrix, expected) < rounding)

        problem.shape.tokens = 2
        problem.x += problem.x
        let both = SelfReferentialMatrix.forward(problem)
        #expect(worstError(both.output, [7, 7.375]) < rounding)

        problem.hasInputSoftmax = false
        problem.x = [0.75, 0.25, 0.75, 0.25]
        let without = SelfReferentialMatrix.forward(problem)
        #expect(worstError(without.output, both.output) < rounding)
        #expect(worstError(without.finalMatrix, both.finalMatrix) < rounding)
    }

    /// Each block by itself: W <- W (I + rate (phi(q) - phi(k)) phi(k)^T).
    @Test func blocks() {
        for options in 0..<16 {
            let problem = problem(options: options)
            let (shape, found) = (problem.shape, SelfReferentialMatrix.forward(problem))
            func phi(_ x: Matrix) -> Matrix {
                let powers = x.entries.map { exp($0) }
                return Matrix(column: powers).scaled(by: 1 / powers.reduce(0, +))
            }
            var output = found.output.map { _ in 0.0 }
            var last: [Double] = []
            for (n, rows) in sequences(problem).enumerated() {
                for h in 0..<shape.heads {
                    let count = shape.rows * shape.width
                    var entries = start(problem, n)[h * count..<(h + 1) * count]
                    var blocks = [shape.outputWidth, shape.width, shape.width, 4].map { rows in
                        let head = Array(entries.prefix(rows * shape.width))
                        entries = entries.dropFirst(rows * shape.width)
                        return Matrix(rows: rows, columns: shape.width, entries: head)
                    }
                    for row in rows {
                        let place = (row * shape.heads + h) * shape.width
                        let x = Matrix(column: Array(problem.x[place..<place + shape.width]))
                        let input = problem.hasInputSoftmax ? phi(x) : x
                        let produced = blocks.map { $0 * input }
                        let (key, query) = (phi(produced[1]), phi(produced[2]))
                        let direction = query + key.scaled(by: -1)
                        for (i, block) in blocks.enumerated() {
                            let rate = 1 / (1 + exp(-produced[3].entries[i]))
                            let change = (direction * key.transposed).scaled(by: rate)
                            blocks[i] = block * (Matrix(identity: shape.width) + change)
                        }
                        for e in 0..<shape.outputWidth {
                            output[(row * shape.heads + h) * shape.outputWidth + e] =
                                produced[0].entries[e]
                        }
                    }
                    last += blocks.flatMap(\.entries)
                }
            }
            // Measured: 6.0e-16.
            #expect(worstError(found.output, output) < rounding, "options \(options)")
            #expect(worstError(found.finalMatrix, last) < rounding, "options \(options)")
        }
    }

    @Test func matchFiniteDifferences() {
        var generator = SeededGenerator(seed: 14)
        for options in 0..<16 {
            let problem = problem(options: options)
            let output = SelfReferentialMatrix.forward(problem)
            let g = generator.numbers(output.output.count, in: -1...1)
            let w = generator.numbers(output.finalMatrix.count, in: -1...1)
            let found = SelfReferentialMatrix.backward(
                problem, outputGradient: g, finalMatrixGradient: w)
            func dot(_ a: [Double], _ b: [Double]) -> Double {
                zip(a, b).map { $0 * $1 }.reduce(0, +)
            }
            func objective(_ problem: SelfReferentialMatrix.Problem) -> Double {
                let output = SelfReferentialMatrix.forward(problem)
                return dot(g, output.output) + dot(w, output.finalMatrix)
            }
            let ofX = differences(
                of: { x in
                    var moved = problem
                    moved.x = x
                    return objective(moved)
                }, at: problem.x)
            let ofStart = differences(
                of: { entries in
                    var moved = problem
                    switch problem.start {
                    case .shared: moved.start = .shared(entries)
                    case .sequences: moved.start = .sequences(entries)
                    }
                    return objective(moved)
                }, at: problem.start.entries)
            // Measured: 7.5e-12.
            #expect(worstError(found.x, ofX) < 5e-11, "options \(options)")
            #expect(worstError(found.start, ofStart) < 5e-11, "options \(options)")

            let withoutFinal = SelfReferentialMatrix.backward(problem, outputGradient: g)
            let withZeros = SelfReferentialMatrix.backward(
                problem, outputGradient: g, finalMatrixGradient: w.map { _ in 0 })
            #expect(withoutFinal == withZeros)
        }
    }

    @Test func packedIsTheLoop() {
        for options in 0..<16 {
            let problem = problem(options: options)
            let whole = SelfReferentialMatrix.forward(problem)
            let parts = sequences(problem).enumerated().map { n, rows in
                slice(problem, rows, start: start(problem, n))
            }
            let results = parts.map { SelfReferentialMatrix.forward($0) }
            #expect(whole.output == results.flatMap(\.output), "options \(options)")
            #expect(whole.finalMatrix == results.flatMap(\.finalMatrix))

            let g = whole.output.map { 1 - $0 }
            let gradients = SelfReferentialMatrix.backward(problem, outputGradient: g)
            let width = problem.shape.heads * problem.shape.outputWidth
            let ofParts = zip(sequences(problem), parts).map { rows, part in
                SelfReferentialMatrix.backward(
                    part,
                    outputGradient: Array(g[rows.lowerBound * width..<rows.upperBound * width]))
            }
            #expect(gradients.x == ofParts.flatMap(\.x))
            if case .sequences = problem.start {
                #expect(gradients.start == ofParts.flatMap(\.start))
            } else {
                let sum = ofParts.dropFirst().reduce(ofParts[0].start) { sum, part in
                    zip(sum, part.start).map { $0 + $1 }
                }
                #expect(worstError(gradients.start, sum) < rounding)
            }
        }
    }

    @Test func splitAndResume() {
        let all = problem(options: 0b1010)
        let whole = slice(all, 0..<5, start: start(all, 0))
        let expected = SelfReferentialMatrix.forward(whole)
        for cut in 0...5 {
            let first = SelfReferentialMatrix.forward(
                slice(whole, 0..<cut, start: start(whole, 0)))
            let second = SelfReferentialMatrix.forward(
                slice(whole, cut..<5, start: first.finalMatrix))
            #expect(first.output + second.output == expected.output)
            #expect(second.finalMatrix == expected.finalMatrix)
        }
    }

    @Test func noTokens() {
        let shape = SelfReferentialMatrix.Shape(
            batch: 2, tokens: 0, heads: 1, width: 1, outputWidth: 1)
        let matrix: [Double] = [1, 2, 3, 4, 5, 6, 7]
        let problem = SelfReferentialMatrix.Problem(shape: shape, x: [], start: .shared(matrix))
        let result = SelfReferentialMatrix.forward(problem)
        #expect(result.output == [] && result.finalMatrix == matrix + matrix)
        let gradients = SelfReferentialMatrix.backward(
            problem, outputGradient: [], finalMatrixGradient: matrix + matrix)
        #expect(gradients.x == [] && gradients.start == matrix.map { 2 * $0 })
    }
}
