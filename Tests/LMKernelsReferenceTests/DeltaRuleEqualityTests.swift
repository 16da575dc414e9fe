import LMKernelsReference
import Testing

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Problems of different forms that have the same answer, and edges.
@Suite struct DeltaRuleEqualityTests {
    /// All that forward and backward compute with upstream gradients by their place.
    private func results(
        _ problem: DeltaRule.Problem
    ) -> (output: DeltaRule.Output, gradients: DeltaRule.Gradients) {
        let output = DeltaRule.forward(problem)
        let gradients = DeltaRule.backward(
            problem, outputGradient: output.output.indices.map { sin(Double($0)) },
            finalStateGradient: output.finalState.indices.map { cos(Double($0)) })
        return (output, gradients)
    }

    /// Steps with beta = 0 do nothing: not in the first place, nor in the middle, nor in the last.
    @Test(arguments: DeltaDecayKind.allCases, 0..<3)
    func stepsWithoutBeta(decay: DeltaDecayKind, place: Int) {
        for options in 0..<16 {
            let single = DeltaRuleCase.problem(.value, decay, options: options)
            var problem = single
            problem.shape.householderSteps = 3
            var generator = SeededGenerator(seed: 5)
            func part(_ x: [Double], _ row: Int, width: Int) -> [Double] {
                Array(x[row * width..<(row + 1) * width])
            }
            /// x in its place among the others, of which there are three for each row.
            func spread(_ x: [Double], _ others: [Double]) -> [Double] {
                let width = x.count / single.rows
                return (0..<3 * single.rows).flatMap { step -> [Double] in
                    let isPlace = step % 3 == place
                    return isPlace
                        ? part(x, step / 3, width: width) : part(others, step, width: width)
                }
            }
            func gather(_ x: [Double]) -> [Double] {
                let width = x.count / single.rows / 3
                return (0..<single.rows).flatMap { row -> [Double] in
                    part(x, 3 * row + place, width: width)
                }
            }
            let (keys, values) = (single.key, single.value)
            problem.key = spread(keys, generator.numbers(3 * keys.count, in: -1...1))
            problem.value = spread(values, generator.numbers(3 * values.count, in: -1...1))
            let beta = single.update.beta
            problem.update.beta = spread(beta, Array(repeating: 0, count: 3 * beta.count))

            let (found, expected) = (results(problem), results(single))
            #expect(found.output == expected.output, "options \(options)")
            #expect(found.gradients.query == expected.gradients.query)
            #expect(gather(found.gradients.key) == expected.gradients.key)
            #expect(gather(found.gradients.value) == expected.gradients.value)
            #expect(gather(found.gradients.beta) == expected.gradients.beta)
            #expect(found.gradients.decay == expected.gradients.decay)
            #expect(found.gradients.initialState == expected.gradients.initialState)
        }
    }

    /// R steps per token are R tokens, of which the last one reads and the first one decays.
    @Test func stepsAreTokens() {
        let problem = DeltaRuleCase.problem(.twiceSigmoid, .key, options: 0b11100)
        var longer = problem
        longer.shape.householderSteps = 1
        longer.shape.tokens *= 2
        func spread(_ x: [Double], last: Bool) -> [Double] {
            let width = x.count / problem.rows
            let zeros = Array(repeating: 0.0, count: width)
            return (0..<problem.rows).flatMap { row -> [Double] in
                let entries = Array(x[row * width..<(row + 1) * width])
                return last ? zeros + entries : entries + zeros
            }
        }
        longer.query = spread(problem.query, last: true)
        longer.decay = .key(spread(problem.decay.logarithms, last: false))
        let (found, expected) = (DeltaRule.forward(longer), DeltaRule.forward(problem))
        #expect(found.finalState == expected.finalState)
        #expect(found.output == spread(expected.output, last: true))
    }

    @Test(arguments: DeltaUpdateKind.allCases)
    func decayOfZero(update: DeltaUpdateKind) {
        for options in 0..<(1 << DeltaRuleCase.optionCount) {
            let none = DeltaRuleCase.problem(update, .none, options: options)
            let tokens = none.rows * none.shape.heads
            let expected = results(none)
            for decay in [
                DeltaRule.Decay.token(Array(repeating: 0, count: tokens)),
                .key(Array(repeating: 0, count: tokens * none.shape.keyWidth)),
            ] {
                var problem = none
                problem.decay = decay
                var found = results(problem)
                #expect(found.output == expected.output, "options \(options)")
                found.gradients.decay = []
                #expect(found.gradients == expected.gradients, "options \(options)")
            }
        }
    }

    /// The same log-decay for each key dimension, and for the token.
    @Test(arguments: DeltaUpdateKind.allCases)
    func decayPerKeyOfEqualOnes(update: DeltaUpdateKind) {
        for options in 0..<(1 << DeltaRuleCase.optionCount) {
            let problem = DeltaRuleCase.problem(update, .token, options: options)
            let keyWidth = problem.shape.keyWidth
            var perKey = problem
            perKey.decay = .key(
                problem.decay.logarithms.flatMap { Array(repeating: $0, count: keyWidth) })
            let (found, expected) = (results(perKey), results(problem))
            #expect(found.output == expected.output)
            let sums = stride(from: 0, to: found.gradients.decay.count, by: keyWidth).map {
                found.gradients.decay[$0..<$0 + keyWidth].reduce(0, +)
            }
            #expect(worstError(sums, expected.gradients.decay) < rounding)
            #expect(found.gradients.key == expected.gradients.key)
            #expect(found.gradients.initialState == expected.gradients.initialState)
        }
    }

    /// a = D_t k, b = -beta k, and beta v in place of v. H = G, as beta is per query head.
    @Test(arguments: DeltaDecayKind.allCases)
    func generalForm(decay: DeltaDecayKind) {
        for options in [0, 2, 4, 6] {
            let delta = DeltaRuleCase.problem(.value, decay, options: options)
            let (keyWidth, valueWidth) = (delta.shape.keyWidth, delta.shape.valueWidth)
            let beta = delta.update.beta
            func factor(_ i: Int) -> Double {
                switch delta.decay {
                case .none: 1
                case .token(let g): exp(g[i / keyWidth])
                case .key(let g): exp(g[i])
                }
            }
            var general = delta
            general.update = .general(
                a: delta.key.indices.map { factor($0) * delta.key[$0] },
                b: delta.key.indices.map { -beta[$0 / keyWidth] * delta.key[$0] })
            general.value = delta.value.indices.map { beta[$0 / valueWidth] * delta.value[$0] }
            let (found, expected) = (results(general), results(delta))
            // Measured: 3.4e-16.
            #expect(worstError(found.output.output, expected.output.output) < rounding)
            #expect(worstError(found.output.finalState, expected.output.finalState) < rounding)

            // By the chain rule, through a, b and beta v, to the gradients of the delta rule.
            var key = found.gradients.key
            for i in key.indices {
                key[i] += factor(i) * found.gradients.a[i]
                key[i] -= beta[i / keyWidth] * found.gradients.b[i]
            }
            var value = found.gradients.value
            for i in value.indices { value[i] *= beta[i / valueWidth] }
            var ofBeta = beta.map { _ in 0.0 }
            for i in key.indices {
                ofBeta[i / keyWidth] -= delta.key[i] * found.gradients.b[i]
            }
            for i in value.indices {
                ofBeta[i / valueWidth] += delta.value[i] * found.gradients.value[i]
            }
            var ofDecay = found.gradients.decay
            for i in key.indices where !ofDecay.isEmpty {
                ofDecay[decay == .key ? i : i / keyWidth] +=
                    factor(i) * delta.key[i] * found.gradients.a[i]
            }
            let expectedGradients = expected.gradients
            #expect(worstError(found.gradients.query, expectedGradients.query) < rounding)
            #expect(worstError(key, expectedGradients.key) < rounding)
            #expect(worstError(value, expectedGradients.value) < rounding)
            #expect(worstError(ofBeta, expectedGradients.beta) < rounding)
            #expect(worstError(ofDecay, expectedGradients.decay) < rounding)
            #expect(
                worstError(found.gradients.initialState, expectedGradients.initialState)
                    < rounding)
        }
    }

    /// With a = 0 the general form is linear attention.
    @Test(arguments: DeltaDecayKind.allCases)
    func linearAttention(decay: DeltaDecayKind) {
        for options in 0..<8 {
            var problem = DeltaRuleCase.problem(.general, decay, options: options)
            problem.update.a = problem.key.map { _ in 0 }
            let shape = problem.shape
            let linear = LinearAttention.Problem(
                shape: LinearAttention.Shape(
                    batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
                    keyHeads: shape.keyHeads, keyWidth: shape.keyWidth,
                    valueWidth: shape.valueWidth),
                query: problem.query, key: problem.key, value: problem.value,
                decay: {
                    switch problem.decay {
                    case .none: .none
                    case .token(let g): .token(g)
                    case .key(let g): .key(g)
                    }
                }(), scale: problem.scale, initialState: problem.initialState,
                offsets: problem.offsets)
            let (found, expected) = (
                DeltaRule.forward(problem), LinearAttention.forward(linear)
            )
            #expect(worstError(found.output, expected.output) < rounding)
            #expect(worstError(found.finalState, expected.finalState) < rounding)
        }
    }

    /// Unit length inside is that of `LinearAttention.l2Normalize` outside, and logits inside are
    /// betas outside.
    @Test func preparedOutside() {
        let problem = DeltaRuleCase.problem(.twiceSigmoid, .key, options: 0b11111)
        var prepared = problem
        prepared.unitLengthEpsilon = nil
        prepared.query = LinearAttention.l2Normalize(
            problem.query, rows: problem.query.count / 3, columns: 3, epsilon: 0.25)
        prepared.key = LinearAttention.l2Normalize(
            problem.key, rows: problem.key.count / 3, columns: 3, epsilon: 0.25)
        prepared.update = .delta(.value(problem.update.beta.map { 2 / (1 + exp(-$0)) }))
        #expect(DeltaRule.forward(problem) == DeltaRule.forward(prepared))
    }

    /// beta = 2 / |k|^2 without decay and values is a reflection: the columns of the state keep
    /// their lengths and their angles, and a second one takes the first one back.
    @Test func reflection() {
        var generator = SeededGenerator(seed: 9)
        let (keyWidth, valueWidth, steps) = (5, 3, 4)
        let key = LinearAttention.l2Normalize(
            generator.numbers(keyWidth * steps, in: -1...1), rows: steps, columns: keyWidth,
            epsilon: 0)
        let start = Matrix(
            rows: keyWidth, columns: valueWidth,
            entries: generator.numbers(keyWidth * valueWidth, in: -1...1))
        func state(_ key: [Double]) -> Matrix {
            let steps = key.count / keyWidth
            let problem = DeltaRule.Problem(
                shape: DeltaRule.Shape(
                    batch: 1, tokens: 1, heads: 1, keyHeads: 1, keyWidth: keyWidth,
                    valueWidth: valueWidth, householderSteps: steps),
                query: Array(repeating: 0, count: keyWidth), key: key,
                value: Array(repeating: 0, count: valueWidth * steps),
                update: .delta(.value(Array(repeating: 2, count: steps))),
                initialState: start.entries)
            return Matrix(
                rows: keyWidth, columns: valueWidth, entries: DeltaRule.forward(problem).finalState)
        }
        let end = state(key)
        #expect(worstError(end.entries, start.entries) > 0.1)
        #expect(
            worstError((end.transposed * end).entries, (start.transposed * start).entries)
                < rounding)
        let backwards = (0..<steps).reversed().flatMap { key[$0 * keyWidth..<($0 + 1) * keyWidth] }
        #expect(worstError(state(key + backwards).entries, start.entries) < rounding)
    }

    /// With a reset at tokens 0 and 2 the sequence is two, 0 ..< 2 and 2 ..< 5, from nothing.
    @Test(arguments: [DeltaUpdateKind.twiceSigmoid, .general], [DeltaDecayKind.token, .key])
    func reset(update: DeltaUpdateKind, decay: DeltaDecayKind) {
        var generator = SeededGenerator(seed: 1)
        let shape = DeltaRule.Shape(
            batch: 1, tokens: 5, heads: 2, keyHeads: 1, keyWidth: 3, valueWidth: 2,
            householderSteps: update == .general ? 1 : 2)
        let steps = shape.householderSteps
        var problem = DeltaRule.Problem(
            shape: shape, query: generator.numbers(30, in: -1...1),
            key: generator.numbers(15 * steps, in: -1...1),
            value: generator.numbers(10 * steps, in: -1...1),
            update: update.update(rows: 5, shape, &generator),
            decay: decay.decay(rows: 5, shape, &generator),
            initialState: generator.numbers(12, in: -1...1))
        var g = problem.decay.logarithms
        let width = g.count / 5
        for row in [0, 2] {
            for i in row * width..<(row + 1) * width { g[i] = -.infinity }
            // In the general form what a reads is not decayed: it reads nothing here.
            if update == .general {
                problem.update.a.replaceSubrange(row * 3..<(row + 1) * 3, with: [0, 0, 0])
            }
        }
        problem.decay = problem.decay.with(g)

        func part(_ rows: Range<Int>) -> DeltaRule.Problem {
            var part = problem.slice(rows, sequence: 0)
            part.initialState = nil
            part.decay = part.decay.with(part.decay.logarithms.map { $0.isFinite ? $0 : -3 })
            return part
        }
        let (first, second) = (part(0..<2), part(2..<5))
        let result = DeltaRule.forward(problem)
        #expect(
            result.output
                == DeltaRule.forward(first).output + DeltaRule.forward(second).output)
        #expect(result.finalState == DeltaRule.forward(second).finalState)

        let outputGradient = generator.numbers(result.output.count, in: -1...1)
        let stateGradient = generator.numbers(result.finalState.count, in: -1...1)
        let found = DeltaRule.backward(
            problem, outputGradient: outputGradient, finalStateGradient: stateGradient)
        let cut = 2 * outputGradient.count / 5
        let ofFirst = DeltaRule.backward(
            first, outputGradient: Array(outputGradient[..<cut]))
        let ofSecond = DeltaRule.backward(
            second, outputGradient: Array(outputGradient[cut...]),
            finalStateGradient: stateGradient)
        #expect(found.query == ofFirst.query + ofSecond.query)
        #expect(found.key == ofFirst.key + ofSecond.key)
        #expect(found.value == ofFirst.value + ofSecond.value)
        #expect(found.beta == ofFirst.beta + ofSecond.beta)
        #expect(found.b == ofFirst.b + ofSecond.b)
        // Nothing was there before a part's first token, so its decay has gradient 0 too.
        #expect(found.decay == ofFirst.decay + ofSecond.decay)
        #expect(found.initialState.allSatisfy { $0 == 0 })
    }

    /// -inf for one key dimension alone, K = 2: that row of the state starts anew.
    @Test func resetOfOneDimension() {
        let problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: 1, heads: 1, keyHeads: 1, keyWidth: 2, valueWidth: 1),
            query: [1, 10], key: [1, 1], value: [7], update: .delta(.value([2])),
            decay: .key([0, -.infinity]), scale: 1, initialState: [3, 5])
        // 3 and 0, and 2 (7 - 3) more in both.
        #expect(DeltaRule.forward(problem).finalState == [11, 8])
        let gradients = DeltaRule.backward(
            problem, outputGradient: [0], finalStateGradient: [1, 0])
        // dS = (1, 0) - 2 (1, 1).
        #expect(gradients.initialState == [-1, 0])
        #expect(gradients.decay == [-3, 0])
    }

    @Test func noTokens() {
        var problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 2, tokens: 0, heads: 1, keyHeads: 1, keyWidth: 1, valueWidth: 2,
                householderSteps: 2),
            query: [], key: [], value: [], update: .delta(.sigmoid([])), decay: .token([]),
            unitLengthEpsilon: 1e-6, stateStride: 1)
        var result = DeltaRule.forward(problem)
        #expect(result.output == [] && result.states == [])
        #expect(result.finalState == [0, 0, 0, 0])

        problem.initialState = [1, 2, 3, 4]
        result = DeltaRule.forward(problem)
        #expect(result.finalState == [1, 2, 3, 4])
        let gradients = DeltaRule.backward(
            problem, outputGradient: [], finalStateGradient: [5, 6, 7, 8])
        #expect(gradients.initialState == [5, 6, 7, 8])
        #expect(gradients.query == [] && gradients.beta == [] && gradients.decay == [])

        problem.initialState = nil
        problem.shape.batch = 0
        #expect(DeltaRule.forward(problem).finalState == [])
        problem.shape.batch = 1
        problem.offsets = [0]
        #expect(DeltaRule.forward(problem).finalState == [])
        problem.offsets = [0, 0, 0]
        #expect(DeltaRule.forward(problem).finalState == [0, 0, 0, 0])
        problem.shape.householderSteps = 1
        problem.update = .general(a: [], b: [])
        #expect(DeltaRule.forward(problem).finalState == [0, 0, 0, 0])
    }
}
