import LMKernelsReference
import Testing

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// The forward pass against values by hand and identities.
@Suite struct DeltaRuleTests {
    /// K = V = 1.
    @Test func byHand() {
        var problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: 3, heads: 1, keyHeads: 1, keyWidth: 1, valueWidth: 1),
            query: [1, 2, 8], key: [2, 1, -1], value: [6, 7, 1],
            update: .delta(.value([0.5, 1, 2])),
            decay: .token([log(0.5), log(0.5), log(0.25)]), stateStride: 2)
        // S = 0 + 2 3, then 3 + 4 = 7, then 7/4 - 2 (1 + 7/4) = -15/4.
        var result = DeltaRule.forward(problem)
        #expect(worstError(result.output, [6, 14, -30]) < rounding)
        #expect(worstError(result.finalState, [-3.75]) < rounding)
        #expect(worstError(result.states, [7]) < rounding)

        // The first decay acts on the initial state, before the write: 8 + (6 - 16) = -2.
        problem.initialState = [16]
        result = DeltaRule.forward(problem)
        #expect(worstError(result.output, [-2, 14, -30]) < rounding)

        // Two steps of a token: the decay acts once. 5 / 2 + (3 - 5 / 2), then 3 + 2 (1 - 3).
        problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: 1, heads: 1, keyHeads: 1, keyWidth: 1, valueWidth: 1,
                householderSteps: 2),
            query: [10], key: [1, 1], value: [3, 1], update: .delta(.value([1, 2])),
            decay: .key([log(0.5)]), initialState: [5])
        #expect(worstError(DeltaRule.forward(problem).output, [-10]) < rounding)

        // Unit length with an epsilon: k = 3 / 5, q = 3 / 5; beta = 3 / 2 from its logit.
        problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: 1, heads: 1, keyHeads: 1, keyWidth: 1, valueWidth: 1),
            query: [3], key: [3], value: [2], update: .delta(.twiceSigmoid([log(3)])),
            unitLengthEpsilon: 16)
        #expect(worstError(DeltaRule.forward(problem).output, [1.08]) < rounding)
        problem.update = .delta(.sigmoid([log(3)]))
        #expect(worstError(DeltaRule.forward(problem).output, [0.54]) < rounding)
    }

    /// Far logits: 1 and 2, and 0.
    @Test func farLogits() {
        let shape = DeltaRule.Shape(
            batch: 1, tokens: 1, heads: 1, keyHeads: 1, keyWidth: 1, valueWidth: 1)
        func state(_ beta: DeltaRule.Beta) -> [Double] {
            DeltaRule.forward(
                DeltaRule.Problem(
                    shape: shape, query: [0], key: [1], value: [3], update: .delta(beta))
            ).finalState
        }
        #expect(state(.sigmoid([1000])) == [3] && state(.sigmoid([-1000])) == [0])
        #expect(state(.twiceSigmoid([1000])) == [6] && state(.twiceSigmoid([-1000])) == [0])
    }

    /// The scale is K^-1/2 unless given.
    @Test func defaultScale() {
        let problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: 1, heads: 1, keyHeads: 1, keyWidth: 4, valueWidth: 1),
            query: [1, 1, 1, 1], key: [1, 2, 3, 4], value: [1], update: .delta(.value([1])))
        #expect(DeltaRule.forward(problem).output == [5])
    }

    /// Keys are orthonormal, so with beta = 1 a read of one gives the last value written to it.
    @Test func overwrites() {
        let problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: 4, heads: 1, keyHeads: 1, keyWidth: 2, valueWidth: 1),
            query: [1, 0, 0, 1, 1, 0, 0, 1], key: [1, 0, 0, 1, 1, 0, 1, 0], value: [3, 4, 5, 6],
            update: .delta(.value([1, 1, 1, 1])), scale: 1)
        let result = DeltaRule.forward(problem)
        #expect(result.output == [3, 4, 5, 4] && result.finalState == [6, 4])
    }

    /// o by the transitions as matrices: S_t = A_t S_{t-1} + W_t with A_t = prod_j (I - beta k k^T)
    /// D_t, or D_t + b a^T, and o_t = scale q^T (A_t ... A_1 S_0 + sum_i A_t ... A_{i+1} W_i).
    @Test(arguments: DeltaUpdateKind.allCases, DeltaDecayKind.allCases)
    func transitions(update: DeltaUpdateKind, decay: DeltaDecayKind) {
        for options in 0..<(1 << DeltaRuleCase.optionCount) {
            let problem = DeltaRuleCase.problem(update, decay, options: options)
            let expected = byTransitions(problem)
            let found = DeltaRule.forward(problem)
            // Measured: 7.0e-16.
            #expect(worstError(found.output, expected.output) < rounding, "options \(options)")
            #expect(worstError(found.finalState, expected.state) < rounding, "options \(options)")
        }
    }

    private func byTransitions(
        _ problem: DeltaRule.Problem
    ) -> (output: [Double], state: [Double]) {
        let shape = problem.shape
        let (heads, keyWidth, valueWidth) = (shape.heads, shape.keyWidth, shape.valueWidth)
        let scale = problem.scale ?? 1 / Double(keyWidth).squareRoot()
        func vector(_ x: [Double], _ i: Int, _ width: Int) -> [Double] {
            Array(x[i * width..<(i + 1) * width])
        }
        func unit(_ x: [Double]) -> [Double] {
            guard let epsilon = problem.unitLengthEpsilon else { return x }
            let length = (x.map { $0 * $0 }.reduce(0, +) + epsilon).squareRoot()
            return x.map { $0 / length }
        }
        func beta(_ i: Int) -> Double {
            guard case .delta(let beta) = problem.update else { return .nan }
            return switch beta {
            case .value(let x): x[i]
            case .sigmoid(let x): exp(x[i]) / (1 + exp(x[i]))
            case .twiceSigmoid(let x): 2 * exp(x[i]) / (1 + exp(x[i]))
            }
        }
        var output = Array(repeating: 0.0, count: problem.rows * heads * valueWidth)
        var states: [Double] = []
        for (n, rows) in problem.sequences.enumerated() {
            for h in 0..<heads {
                let keyHead = h / (heads / shape.keyHeads)
                func keyVector(_ x: [Double], _ step: Int) -> Matrix {
                    Matrix(
                        column: vector(x, step * shape.keyHeads + keyHead, keyWidth))
                }
                func key(_ step: Int) -> Matrix {
                    Matrix(column: unit(keyVector(problem.key, step).entries))
                }
                func value(_ step: Int) -> Matrix {
                    Matrix(
                        column: vector(problem.value, step * shape.keyHeads + keyHead, valueWidth))
                }
                func decayMatrix(_ row: Int) -> Matrix {
                    let g =
                        switch problem.decay {
                        case .none: Array(repeating: 0.0, count: keyWidth)
                        case .token(let g): Array(repeating: g[row * heads + h], count: keyWidth)
                        case .key(let g): vector(g, row * heads + h, keyWidth)
                        }
                    return Matrix(diagonal: g.map { exp($0) })
                }
                /// A and W of a token.
                func transition(_ row: Int) -> (Matrix, Matrix) {
                    if case .general(let a, let b) = problem.update {
                        return (
                            decayMatrix(row)
                                + keyVector(b, row) * keyVector(a, row).transposed,
                            key(row) * value(row).transposed
                        )
                    }
                    var a = decayMatrix(row)
                    var w = Matrix(rows: keyWidth, columns: valueWidth)
                    for j in 0..<shape.householderSteps {
                        let step = row * shape.householderSteps + j
                        let beta = beta(step * heads + h)
                        let k = key(step)
                        let factor =
                            Matrix(identity: keyWidth) + (k * k.transposed).scaled(by: -beta)
                        a = factor * a
                        w = factor * w + (k * value(step).transposed).scaled(by: beta)
                    }
                    return (a, w)
                }
                /// S after the rows up to the end, term by term.
                func state(_ end: Int) -> Matrix {
                    func product(from start: Int) -> Matrix {
                        (start..<max(start, end)).reduce(Matrix(identity: keyWidth)) {
                            transition($1).0 * $0
                        }
                    }
                    var initial = Matrix(rows: keyWidth, columns: valueWidth)
                    if let states = problem.initialState {
                        initial.entries = vector(states, n * heads + h, keyWidth * valueWidth)
                    }
                    return (rows.lowerBound..<end).reduce(
                        product(from: rows.lowerBound) * initial
                    ) { $0 + product(from: $1 + 1) * transition($1).1 }
                }
                for row in rows {
                    let q = Matrix(column: unit(vector(problem.query, row * heads + h, keyWidth)))
                    let o = (q.transposed * state(row + 1)).scaled(by: scale)
                    for e in 0..<valueWidth {
                        output[(row * heads + h) * valueWidth + e] = o[0, e]
                    }
                }
                states += state(rows.upperBound).entries
            }
        }
        return (output, states)
    }

    /// The states that a stride gives are those where the sequence can be taken up again.
    @Test(arguments: DeltaUpdateKind.allCases, DeltaDecayKind.allCases)
    func splitAndResume(update: DeltaUpdateKind, decay: DeltaDecayKind) {
        for steps in update == .general ? [1] : [1, 3] {
            let whole = sevenTokens(update, decay, steps: steps)
            let expected = DeltaRule.forward(whole)
            let stateCount = expected.finalState.count
            for stride in 1...8 {
                var strided = whole
                strided.stateStride = stride
                let result = DeltaRule.forward(strided)
                #expect(result.output == expected.output)
                #expect(result.states.count == 7 / stride * stateCount)
                for m in 0..<7 / stride {
                    let cut = (m + 1) * stride
                    let first = DeltaRule.forward(whole.slice(0..<cut, sequence: 0))
                    let state = Array(result.states[m * stateCount..<(m + 1) * stateCount])
                    #expect(state == first.finalState)

                    var rest = whole.slice(cut..<7, sequence: 0)
                    rest.initialState = state
                    let second = DeltaRule.forward(rest)
                    #expect(first.output + second.output == expected.output)
                    #expect(second.finalState == expected.finalState)
                }
            }
        }
    }

    private func sevenTokens(
        _ update: DeltaUpdateKind, _ decay: DeltaDecayKind, steps: Int
    ) -> DeltaRule.Problem {
        var generator = SeededGenerator(seed: 77)
        let shape = DeltaRule.Shape(
            batch: 1, tokens: 7, heads: 2, keyHeads: 1, keyWidth: 3, valueWidth: 2,
            householderSteps: steps)
        return DeltaRule.Problem(
            shape: shape, query: generator.numbers(42, in: -1...1),
            key: generator.numbers(21 * steps, in: -1...1),
            value: generator.numbers(14 * steps, in: -1...1),
            update: update.update(rows: 7, shape, &generator),
            decay: decay.decay(rows: 7, shape, &generator), unitLengthEpsilon: 1e-6)
    }

    /// A batch and packed sequences are the loop over sequences, states of a stride included.
    @Test(arguments: DeltaUpdateKind.allCases, DeltaDecayKind.allCases)
    func packedIsTheLoop(update: DeltaUpdateKind, decay: DeltaDecayKind) {
        for options in 0..<(1 << DeltaRuleCase.optionCount) {
            var problem = DeltaRuleCase.problem(update, decay, options: options)
            problem.stateStride = 2
            let parts = problem.sequences.enumerated().map { n, rows in
                DeltaRule.forward(problem.slice(rows, sequence: n))
            }
            let whole = DeltaRule.forward(problem)
            #expect(whole.output == parts.flatMap(\.output), "options \(options)")
            #expect(whole.finalState == parts.flatMap(\.finalState))
            #expect(whole.states == parts.flatMap(\.states))

            let g = whole.output.map { 1 - $0 }
            let s = whole.finalState.map { 2 - $0 }
            let gradients = DeltaRule.backward(problem, outputGradient: g, finalStateGradient: s)
            let (width, states) = (g.count / problem.rows, s.count / problem.sequences.count)
            let ofParts = problem.sequences.enumerated().map { n, rows in
                DeltaRule.backward(
                    problem.slice(rows, sequence: n),
                    outputGradient: Array(g[rows.lowerBound * width..<rows.upperBound * width]),
                    finalStateGradient: Array(s[n * states..<(n + 1) * states]))
            }
            #expect(gradients.query == ofParts.flatMap(\.query))
            #expect(gradients.key == ofParts.flatMap(\.key))
            #expect(gradients.value == ofParts.flatMap(\.value))
            #expect(gradients.beta == ofParts.flatMap(\.beta))
            #expect(gradients.a == ofParts.flatMap(\.a))
            #expect(gradients.b == ofParts.flatMap(\.b))
            #expect(gradients.decay == ofParts.flatMap(\.decay))
            #expect(gradients.initialState == ofParts.flatMap(\.initialState))
        }
    }
}
