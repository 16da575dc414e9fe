import LMKernelsReference
import Testing

/// The backward pass against finite differences of the forward pass.
@Suite struct DeltaRuleGradientTests {
    @Test(arguments: DeltaUpdateKind.allCases, DeltaDecayKind.allCases)
    func matchFiniteDifferences(update: DeltaUpdateKind, decay: DeltaDecayKind) {
        for options in 0..<(1 << DeltaRuleCase.optionCount) {
            check(DeltaRuleCase.problem(update, decay, options: options), "options \(options)")
        }
    }

    private func check(_ problem: DeltaRule.Problem, _ comment: Comment) {
        var generator = SeededGenerator(seed: 3)
        let output = DeltaRule.forward(problem)
        let outputGradient = generator.numbers(output.output.count, in: -1...1)
        let stateGradient = generator.numbers(output.finalState.count, in: -1...1)
        let found = DeltaRule.backward(
            problem, outputGradient: outputGradient, finalStateGradient: stateGradient)

        func dot(_ a: [Double], _ b: [Double]) -> Double {
            zip(a, b).map { $0 * $1 }.reduce(0, +)
        }
        func derivative(
            at x: [Double], _ set: (inout DeltaRule.Problem, [Double]) -> Void
        ) -> [Double] {
            differences(
                of: { x in
                    var moved = problem
                    set(&moved, x)
                    let output = DeltaRule.forward(moved)
                    return dot(outputGradient, output.output)
                        + dot(stateGradient, output.finalState)
                }, at: x)
        }
        let zeroState = output.finalState.map { _ in 0.0 }
        let pairs = [
            (found.query, derivative(at: problem.query) { $0.query = $1 }),
            (found.key, derivative(at: problem.key) { $0.key = $1 }),
            (found.value, derivative(at: problem.value) { $0.value = $1 }),
            (found.beta, derivative(at: problem.update.beta) { $0.update.beta = $1 }),
            (found.a, derivative(at: problem.update.a) { $0.update.a = $1 }),
            (found.b, derivative(at: problem.update.b) { $0.update.b = $1 }),
            (
                found.decay,
                derivative(at: problem.decay.logarithms) { $0.decay = $0.decay.with($1) }
            ),
            (
                found.initialState,
                derivative(at: problem.initialState ?? zeroState) { $0.initialState = $1 }
            ),
        ]
        // Measured over all problems: 2.0e-12, and 1.9e-11 with unit length.
        let bound = problem.unitLengthEpsilon == nil ? 2e-11 : 1e-10
        for (i, pair) in pairs.enumerated() {
            #expect(worstError(pair.0, pair.1) < bound, "gradient \(i), \(comment)")
        }
    }

    /// Without an upstream gradient of the final state it is zero.
    @Test func noFinalStateGradient() {
        let problem = DeltaRuleCase.problem(.value, .key, options: 0b10111)
        let output = DeltaRule.forward(problem)
        let g = output.output.map { 1 - $0 }
        #expect(
            DeltaRule.backward(problem, outputGradient: g)
                == DeltaRule.backward(
                    problem, outputGradient: g,
                    finalStateGradient: output.finalState.map { _ in 0 }))
    }

    /// K = V = 1, each gradient by hand. From S = 2: u = 3 (7 - 2 5) = -9, S = 2 + 5 u = -43, and
    /// o = 2 6 S.
    @Test func byHand() {
        let problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: 1, heads: 1, keyHeads: 1, keyWidth: 1, valueWidth: 1),
            query: [6], key: [5], value: [7], update: .delta(.value([3])), decay: .key([0]),
            scale: 2, initialState: [2])
        let output = DeltaRule.forward(problem)
        #expect(output.output == [-516] && output.finalState == [-43])
        // dS = 2 6 + 100.
        let gradients = DeltaRule.backward(
            problem, outputGradient: [1], finalStateGradient: [100])
        #expect(gradients.query == [2 * -43])
        // S_1 = 2 + 5 beta (7 - 10); by k: beta (7 - 20); by v: 5 beta; by S: 1 - 25 beta.
        #expect(gradients.key == [112 * 3 * -13])
        #expect(gradients.value == [112 * 15])
        #expect(gradients.beta == [112 * -15])
        #expect(gradients.decay == [112 * -74 * 2])
        #expect(gradients.initialState == [112 * -74])
        #expect(gradients.a == [] && gradients.b == [])

        // S_1 = 2 + 10 (2 9) + 5 7, and dS = 112.
        var general = problem
        general.update = .general(a: [9], b: [10])
        #expect(DeltaRule.forward(general).finalState == [217])
        let ofGeneral = DeltaRule.backward(
            general, outputGradient: [1], finalStateGradient: [100])
        #expect(ofGeneral.query == [2 * 217])
        #expect(ofGeneral.key == [112 * 7] && ofGeneral.value == [112 * 5])
        #expect(ofGeneral.a == [112 * 20] && ofGeneral.b == [112 * 18])
        // z is from before the decay.
        #expect(ofGeneral.decay == [112 * 2])
        #expect(ofGeneral.initialState == [112 * 91])
        #expect(ofGeneral.beta == [])
    }
}
