import LMKernels
import Testing

extension KernelSuite {
    /// What is refused, by exact value; nothing is written then.
    @Suite struct DeltaRuleErrorTests {
        /// Everything a call takes: batch 2, 3 tokens of 2 steps, 4 heads on 2, widths 5 and 6.
        private struct Arguments {
            var shape = DeltaRule.Shape(
                batch: 2, tokens: 3, steps: 2, heads: 4, keyHeads: 2, keyWidth: 5, valueWidth: 6)
            var options = DeltaRule.Options(decay: .token)
            var query = [Float](repeating: 1, count: 2 * 3 * 4 * 5)
            var key = [Float](repeating: 0.25, count: 2 * 6 * 2 * 5)
            var value = [Float](repeating: 1, count: 2 * 6 * 2 * 6)
            var beta: [Float]? = [Float](repeating: 1, count: 2 * 6 * 4)
            var a: [Float]?
            var b: [Float]?
            var logDecay: [Float]? = [Float](repeating: -1, count: 2 * 3 * 4)
            var initialState: [Float]?
            var offsets: [Int]?
            var output: [Float]? = [Float](repeating: -80, count: 2 * 3 * 4 * 6)
            var finalState: [Float]? = [Float](repeating: -80, count: 2 * 4 * 5 * 6)
            var states: [Float]?
            // Of backward alone.
            var outputGradient = [Float](repeating: 1, count: 2 * 3 * 4 * 6)
            var finalStateGradient: [Float]?
            var queryGradient: [Float]? = [Float](repeating: -80, count: 2 * 3 * 4 * 5)
            var keyGradient: [Float]? = [Float](repeating: -80, count: 2 * 6 * 2 * 5)
            var valueGradient: [Float]? = [Float](repeating: -80, count: 2 * 6 * 2 * 6)
            var betaGradient: [Float]?
            var aGradient: [Float]?
            var bGradient: [Float]?
            var logDecayGradient: [Float]?
            var initialStateGradient: [Float]?

            mutating func pack(_ offsets: [Int]) {
                shape.batch = 1
                shape.tokens = 6
                self.offsets = offsets
                finalState = [Float](repeating: -80, count: (offsets.count - 1) * 4 * 5 * 6)
            }

            /// One step, with a and b.
            mutating func generalize() {
                shape.steps = 1
                beta = nil
                a = [Float](repeating: 0.1, count: 60)
                b = [Float](repeating: 0.1, count: 60)
            }
        }

        private func error(_ call: () throws -> Void) -> KernelError? {
            do {
                try call()
                return nil
            } catch {
                return error as? KernelError
            }
        }

        private func forward(_ change: (inout Arguments) -> Void) -> KernelError? {
            var x = Arguments()
            change(&x)
            // Copies: spans of two fields of one struct overlap.
            let (query, key, value, beta) = (x.query, x.key, x.value, x.beta)
            let (a, b, logDecay, initialState) = (x.a, x.b, x.logDecay, x.initialState)
            let offsets = x.offsets
            var (output, finalState, states) = (x.output, x.finalState, x.states)
            let found = error {
                try DeltaRule.forward(
                    query: query.span, key: key.span, value: value.span, beta: beta?.span,
                    a: a?.span, b: b?.span, logDecay: logDecay?.span,
                    initialState: initialState?.span, offsets: offsets?.span,
                    output: output?.mutableSpan, finalState: finalState?.mutableSpan,
                    states: states?.mutableSpan, shape: x.shape, options: x.options,
                    workspace: Workspace())
            }
            if found != nil {
                let isUntouched =
                    output == x.output && finalState == x.finalState && states == x.states
                #expect(isUntouched, "nothing is written")
            }
            return found
        }

        private func backward(_ change: (inout Arguments) -> Void) -> KernelError? {
            var x = Arguments()
            change(&x)
            let (query, key, value, beta) = (x.query, x.key, x.value, x.beta)
            let (a, b, logDecay, initialState) = (x.a, x.b, x.logDecay, x.initialState)
            let (offsets, outputGradient) = (x.offsets, x.outputGradient)
            let stateGradient = x.finalStateGradient
            var (dq, dk, dv) = (x.queryGradient, x.keyGradient, x.valueGradient)
            var (dbeta, da, db) = (x.betaGradient, x.aGradient, x.bGradient)
            var (dg, ds) = (x.logDecayGradient, x.initialStateGradient)
            let found = error {
                try DeltaRule.backward(
                    query: query.span, key: key.span, value: value.span, beta: beta?.span,
                    a: a?.span, b: b?.span, logDecay: logDecay?.span,
                    initialState: initialState?.span, offsets: offsets?.span,
                    outputGradient: outputGradient.span, finalStateGradient: stateGradient?.span,
                    queryGradient: dq?.mutableSpan, keyGradient: dk?.mutableSpan,
                    valueGradient: dv?.mutableSpan, betaGradient: dbeta?.mutableSpan,
                    aGradient: da?.mutableSpan, bGradient: db?.mutableSpan,
                    logDecayGradient: dg?.mutableSpan, initialStateGradient: ds?.mutableSpan,
                    shape: x.shape, options: x.options, workspace: Workspace())
            }
            if found != nil {
                let isUntouched =
                    dq == x.queryGradient && dk == x.keyGradient && dv == x.valueGradient
                #expect(isUntouched, "nothing is written")
            }
            return found
        }

        /// The same refusal of both.
        private func both(_ change: (inout Arguments) -> Void) -> KernelError? {
            let (first, second) = (forward(change), backward(change))
            #expect(first == second)
            return first
        }

        private func floats(_ count: Int) -> [Float] { [Float](repeating: 0, count: count) }

        // MARK: - Inputs

        @Test func sizes() {
            #expect(both { _ in } == nil)
            let fields: [(String, WritableKeyPath<DeltaRule.Shape, Int>)] = [
                ("batch", \.batch), ("tokens", \.tokens), ("steps", \.steps), ("heads", \.heads),
                ("keyHeads", \.keyHeads), ("keyWidth", \.keyWidth), ("valueWidth", \.valueWidth),
            ]
            for (name, field) in fields {
                #expect(
                    both { $0.shape[keyPath: field] = -1 }
                        == .outOfRange(argument: name, allowed: ">= 0", actual: "-1"))
            }
            #expect(
                both { $0.shape.steps = 0 } == .tooSmall(argument: "steps", minimum: 1, actual: 0))
            #expect(both { $0.shape.steps = .max } == .overflow(argument: "steps"))
            let empty: (inout Arguments) -> Void = {
                $0.shape.tokens = 0
                $0.shape.heads = 0
                $0.shape.keyHeads = 0
                $0.finalState = []
            }
            #expect(both(empty) == .tooSmall(argument: "heads", minimum: 1, actual: 0))
            #expect(
                both { $0.shape.keyHeads = 0 }
                    == .tooSmall(argument: "keyHeads", minimum: 1, actual: 0))
            #expect(
                both {
                    $0.shape.keyHeads = 3
                    $0.key = floats(180)
                    $0.value = floats(216)
                    $0.keyGradient = nil
                    $0.valueGradient = nil
                } == .outOfRange(argument: "keyHeads", allowed: "a divisor of heads", actual: "3"))
            for (name, field) in fields.suffix(2) {
                for width in [0, 513] {
                    #expect(
                        both {
                            $0.shape.tokens = 0
                            $0.finalState = nil
                            $0.shape[keyPath: field] = width
                        }
                            == .outOfRange(
                                argument: name, allowed: "from 1 to 512", actual: "\(width)"))
                }
            }
            #expect(both { $0.shape.tokens = .max / 4 } == .overflow(argument: "query"))
        }

        @Test func spans() {
            #expect(
                both { $0.query.removeLast() }
                    == .tooSmall(argument: "query", minimum: 120, actual: 119))
            #expect(
                both { $0.key.removeLast() }
                    == .tooSmall(argument: "key", minimum: 120, actual: 119))
            #expect(
                both { $0.value.removeLast() }
                    == .tooSmall(argument: "value", minimum: 144, actual: 143))
            #expect(
                both { $0.beta!.removeLast() }
                    == .tooSmall(argument: "beta", minimum: 48, actual: 47))
            #expect(
                both { $0.logDecay!.removeLast() }
                    == .tooSmall(argument: "logDecay", minimum: 24, actual: 23))
            #expect(
                both {
                    $0.options.decay = .key
                    $0.logDecay = floats(119)
                } == .tooSmall(argument: "logDecay", minimum: 120, actual: 119))
            #expect(
                both {
                    $0.generalize()
                    $0.a!.removeLast()
                } == .tooSmall(argument: "a", minimum: 60, actual: 59))
            #expect(
                both {
                    $0.generalize()
                    $0.b!.removeLast()
                } == .tooSmall(argument: "b", minimum: 60, actual: 59))
            for count in [239, 241] {
                #expect(
                    both { $0.initialState = floats(count) }
                        == .countMismatch(argument: "initialState", expected: 240, actual: count))
            }
        }

        @Test func strides() {
            #expect(
                both { $0.shape.queryStrides = .init(batch: 60, token: -20, head: 5) }
                    == .outOfRange(
                        argument: "queryStrides.token", allowed: ">= 0", actual: "-20"))
            #expect(
                both { $0.shape.keyStrides = .init(batch: 60, token: 10, head: 4) }
                    == .tooSmall(argument: "keyStrides.head", minimum: 5, actual: 4))
            #expect(
                both { $0.shape.valueStrides = .init(batch: 72, token: 11, head: 6) }
                    == .tooSmall(argument: "valueStrides.token", minimum: 12, actual: 11))
            // A batch has the steps of all its tokens.
            #expect(
                both { $0.shape.keyStrides = .init(batch: 59, token: 10, head: 5) }
                    == .tooSmall(argument: "keyStrides.batch", minimum: 60, actual: 59))
            #expect(
                both { $0.shape.betaStrides = .init(batch: 23, token: 4, head: 1) }
                    == .tooSmall(argument: "betaStrides.batch", minimum: 24, actual: 23))
            #expect(
                both { $0.shape.logDecayStrides = .init(batch: 11, token: 4, head: 1) }
                    == .tooSmall(argument: "logDecayStrides.batch", minimum: 12, actual: 11))
            #expect(
                both {
                    $0.generalize()
                    $0.shape.aStrides = .init(batch: 30, token: 9, head: 5)
                } == .tooSmall(argument: "aStrides.token", minimum: 10, actual: 9))
            #expect(
                both {
                    $0.generalize()
                    $0.shape.bStrides = .init(batch: 30, token: 10, head: 4)
                } == .tooSmall(argument: "bStrides.head", minimum: 5, actual: 4))
            // Head-major rows interleave with nothing.
            #expect(
                both { $0.shape.queryStrides = .init(batch: 60, token: 5, head: 14) }
                    == .tooSmall(argument: "queryStrides.head", minimum: 15, actual: 14))
            #expect(both { $0.shape.queryStrides = .init(batch: 60, token: 5, head: 15) } == nil)
            #expect(
                both { $0.shape.queryStrides = .init(batch: 61, token: 20, head: 5) }
                    == .tooSmall(argument: "query", minimum: 121, actual: 120))
            #expect(
                both { $0.shape.keyStrides = .init(batch: .max - 10, token: 10, head: 5) }
                    == .overflow(argument: "key"))
            #expect(
                forward { $0.shape.outputStrides = .init(batch: 72, token: 24, head: 5) }
                    == .tooSmall(argument: "outputStrides.head", minimum: 6, actual: 5))
            #expect(
                forward { $0.shape.outputStrides = .init(batch: 73, token: 24, head: 6) }
                    == .tooSmall(argument: "output", minimum: 145, actual: 144))
        }

        // MARK: - Options

        @Test func options() {
            for (scale, text) in [(Float.nan, "nan"), (.infinity, "inf"), (-.infinity, "-inf")] {
                #expect(
                    both { $0.options.scale = scale }
                        == .outOfRange(argument: "scale", allowed: "finite", actual: text))
            }
            for (epsilon, text) in [(Float.nan, "nan"), (.infinity, "inf"), (-1, "-1.0")] {
                #expect(
                    both { $0.options.unitLengthEpsilon = epsilon }
                        == .outOfRange(
                            argument: "unitLengthEpsilon", allowed: "finite, at least 0",
                            actual: text))
            }
            #expect(both { $0.options.unitLengthEpsilon = 0 } == nil)
            #expect(
                both { $0.options.threads = -1 }
                    == .outOfRange(argument: "threads", allowed: ">= 0", actual: "-1"))
            #expect(
                both { $0.options.memoryBudget = 0 }
                    == .outOfRange(argument: "memoryBudget", allowed: ">= 1", actual: "0"))
            #expect(both { $0.options.memoryBudget = 1 } == nil)
            for form in DeltaRule.Form.allCases {
                #expect(both { $0.options.form = form } == nil)
            }
        }

        @Test func whatGoesTogether() {
            #expect(
                both { $0.logDecay = nil }
                    == .conflict(argument: "logDecay", reason: "needed with a decay"))
            #expect(
                both { $0.options.decay = .none }
                    == .conflict(argument: "logDecay", reason: "not without a decay"))
            #expect(
                both { $0.beta = nil }
                    == .conflict(argument: "beta", reason: "needed without a and b"))
        }

        @Test func generalizedForm() {
            #expect(both { $0.generalize() } == nil)
            #expect(
                both {
                    $0.generalize()
                    $0.beta = floats(24)
                } == .conflict(argument: "beta", reason: "not with a and b"))
            #expect(
                both {
                    $0.generalize()
                    $0.a = nil
                } == .conflict(argument: "a", reason: "needed with b"))
            #expect(
                both {
                    $0.generalize()
                    $0.b = nil
                } == .conflict(argument: "b", reason: "needed with a"))
            #expect(
                both {
                    $0.generalize()
                    $0.shape.steps = 2
                }
                    == .outOfRange(
                        argument: "steps", allowed: "1 in the generalised form", actual: "2"))
        }

        // MARK: - Packed sequences

        @Test func offsets() {
            #expect(both { $0.pack([0, 2, 2, 6]) } == nil)
            #expect(
                both {
                    $0.pack([0, 6])
                    $0.offsets = []
                } == .tooSmall(argument: "offsets", minimum: 1, actual: 0))
            #expect(
                both {
                    $0.offsets = [0, 3]
                    $0.finalState = nil
                }
                    == .outOfRange(
                        argument: "batch", allowed: "1 for packed sequences", actual: "2"))
            // In tokens, not in steps.
            let wrong: [([Int], index: Int, value: Int, limit: Int)] = [
                ([1, 6], 0, 1, 1), ([0, 4, 3, 6], 2, 3, 7), ([0, 7, 6], 1, 7, 7),
                ([0, 5], 1, 5, 7), ([-1, 6], 0, -1, 1), ([0], 0, 0, 7), ([0, 12], 1, 12, 7),
            ]
            for (offsets, index, value, limit) in wrong {
                for hasStates in [false, true] {
                    let found = both {
                        $0.pack(offsets)
                        if hasStates { $0.states = floats(7) }
                    }
                    #expect(
                        found
                            == .badEntry(
                                argument: "offsets", index: index, value: value, limit: limit))
                }
            }
            #expect(
                both {
                    $0.pack([0, 2, 6])
                    $0.initialState = floats(120 * 3)
                } == .countMismatch(argument: "initialState", expected: 240, actual: 360))
        }

        // MARK: - Results

        @Test func results() {
            #expect(
                forward { $0.output!.removeLast() }
                    == .tooSmall(argument: "output", minimum: 144, actual: 143))
            #expect(
                forward { $0.finalState!.removeLast() }
                    == .countMismatch(argument: "finalState", expected: 240, actual: 239))
            // 2 sequences with a state after 2 of 3 tokens.
            #expect(
                forward {
                    $0.options.stateStride = 2
                    $0.states = floats(239)
                } == .countMismatch(argument: "states", expected: 240, actual: 239))
            #expect(
                forward {
                    $0.options.stateStride = 0
                    $0.states = floats(240)
                } == .outOfRange(argument: "stateStride", allowed: ">= 1", actual: "0"))
            #expect(forward { $0.options.stateStride = 0 } == nil)
            #expect(
                forward {
                    $0.output = nil
                    $0.finalState = nil
                } == nil)
        }

        @Test func gradients() {
            #expect(
                backward { $0.outputGradient.removeLast() }
                    == .tooSmall(argument: "outputGradient", minimum: 144, actual: 143))
            #expect(
                backward { $0.queryGradient!.removeLast() }
                    == .tooSmall(argument: "queryGradient", minimum: 120, actual: 119))
            #expect(
                backward { $0.keyGradient!.removeLast() }
                    == .tooSmall(argument: "keyGradient", minimum: 120, actual: 119))
            #expect(
                backward { $0.valueGradient!.removeLast() }
                    == .tooSmall(argument: "valueGradient", minimum: 144, actual: 143))
            #expect(
                backward { $0.betaGradient = floats(47) }
                    == .tooSmall(argument: "betaGradient", minimum: 48, actual: 47))
            #expect(
                backward { $0.logDecayGradient = floats(23) }
                    == .tooSmall(argument: "logDecayGradient", minimum: 24, actual: 23))
            #expect(
                backward {
                    $0.options.decay = .none
                    $0.logDecay = nil
                    $0.logDecayGradient = floats(24)
                } == .conflict(argument: "logDecayGradient", reason: "not without a decay"))
            #expect(
                backward { $0.shape.keyGradientStrides = .init(batch: 60, token: 9, head: 5) }
                    == .tooSmall(argument: "keyGradientStrides.token", minimum: 10, actual: 9))
            #expect(
                backward {
                    $0.betaGradient = floats(48)
                    $0.shape.betaGradientStrides = .init(batch: 24, token: 3, head: 1)
                } == .tooSmall(argument: "betaGradientStrides.token", minimum: 4, actual: 3))
            #expect(
                backward { $0.finalStateGradient = floats(1) }
                    == .countMismatch(argument: "finalStateGradient", expected: 240, actual: 1))
            #expect(
                backward { $0.initialStateGradient = floats(1) }
                    == .countMismatch(argument: "initialStateGradient", expected: 240, actual: 1))
            #expect(
                backward { $0.aGradient = floats(60) }
                    == .conflict(argument: "aGradient", reason: "not without a and b"))
            #expect(
                backward { $0.bGradient = floats(60) }
                    == .conflict(argument: "bGradient", reason: "not without a and b"))
            #expect(
                backward {
                    $0.generalize()
                    $0.betaGradient = floats(24)
                } == .conflict(argument: "betaGradient", reason: "not with a and b"))
            #expect(
                backward {
                    $0.generalize()
                    $0.aGradient = floats(59)
                } == .tooSmall(argument: "aGradient", minimum: 60, actual: 59))
            #expect(
                backward {
                    $0.generalize()
                    $0.bGradient = floats(60)
                    $0.shape.bGradientStrides = .init(batch: 29, token: 10, head: 5)
                } == .tooSmall(argument: "bGradientStrides.batch", minimum: 30, actual: 29))
        }

        // MARK: - The state in place

        @Test func inPlaceAndSteps() {
            func refusal(
                tokens: Int = 1, state: Int = 240, hasRates: Bool = true, isStep: Bool = true
            ) -> KernelError? {
                let (x, beta) = (floats(120), hasRates ? floats(16) : nil)
                var (state, output) = (floats(state), floats(144))
                let shape = DeltaRule.Shape(
                    batch: 2, tokens: tokens, heads: 4, keyWidth: 5, valueWidth: 6)
                return error {
                    var span = state.mutableSpan
                    if isStep {
                        try DeltaRule.step(
                            query: x.span, key: x.span, value: x.span, beta: beta?.span,
                            state: &span, output: output.mutableSpan, shape: shape,
                            workspace: Workspace())
                    } else {
                        try DeltaRule.forward(
                            query: x.span, key: x.span, value: x.span, beta: beta?.span,
                            inPlace: &span, output: output.mutableSpan, shape: shape,
                            workspace: Workspace())
                    }
                }
            }
            #expect(refusal() == nil)
            #expect(
                refusal(tokens: 2) == .outOfRange(argument: "tokens", allowed: "1", actual: "2"))
            #expect(refusal(tokens: 2, isStep: false) == nil)
            for isStep in [false, true] {
                #expect(
                    refusal(state: 239, isStep: isStep)
                        == .countMismatch(argument: "state", expected: 240, actual: 239))
                #expect(
                    refusal(hasRates: false, isStep: isStep)
                        == .conflict(argument: "beta", reason: "needed without a and b"))
            }
        }

        /// Sizes of what a caller asks for, and layouts.
        @Test func shapes() {
            var shape = DeltaRule.Shape(
                batch: 2, tokens: 7, steps: 3, heads: 4, keyWidth: 5, valueWidth: 6)
            #expect(shape.keyHeads == 4)
            #expect(shape.storedStates(stride: 2) == 6)
            #expect(shape.storedStates(stride: 8) == 0)
            shape.batch = 1
            let offsets = [0, 3, 3, 7]
            #expect(shape.storedStates(stride: 2, offsets: offsets.span) == 3)
            let major = shape.headMajor
            #expect(major.queryStrides == .init(batch: 140, token: 5, head: 35))
            #expect(major.keyStrides == .init(batch: 420, token: 5, head: 105))
            #expect(major.valueGradientStrides == .init(batch: 504, token: 6, head: 126))
            #expect(major.aStrides == .init(batch: 140, token: 5, head: 35))
            #expect(major.outputStrides == .init(batch: 168, token: 6, head: 42))
            #expect(major.betaStrides == nil)
        }
    }
}
