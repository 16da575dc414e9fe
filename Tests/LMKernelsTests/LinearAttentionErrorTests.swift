import LMKernels
import Testing

extension KernelSuite {
    /// What is refused, by exact value; nothing is written then.
    @Suite struct LinearAttentionErrorTests {
        /// Everything a call takes: batch 2, 3 tokens, 4 heads on 2, widths 5 and 6.
        private struct Arguments {
            var shape = LinearAttention.Shape(
                batch: 2, tokens: 3, heads: 4, keyHeads: 2, keyWidth: 5, valueWidth: 6)
            var options = LinearAttention.Options(decay: .token)
            var query = [Float](repeating: 1, count: 2 * 3 * 4 * 5)
            var key = [Float](repeating: 1, count: 2 * 3 * 2 * 5)
            var value = [Float](repeating: 1, count: 2 * 3 * 2 * 6)
            var logDecay: [Float]? = [Float](repeating: -1, count: 2 * 3 * 4)
            var bonus: [Float]?
            var initialState: [Float]?
            var initialNormalizer: [Float]?
            var offsets: [Int]?
            var output: [Float]? = [Float](repeating: -80, count: 2 * 3 * 4 * 6)
            var finalState: [Float]? = [Float](repeating: -80, count: 2 * 4 * 5 * 6)
            var finalNormalizer: [Float]?
            var states: [Float]?
            var normalizers: [Float]?
            // Of backward alone.
            var outputGradient = [Float](repeating: 1, count: 2 * 3 * 4 * 6)
            var finalStateGradient: [Float]?
            var finalNormalizerGradient: [Float]?
            var queryGradient: [Float]? = [Float](repeating: -80, count: 2 * 3 * 4 * 5)
            var keyGradient: [Float]? = [Float](repeating: -80, count: 2 * 3 * 2 * 5)
            var valueGradient: [Float]? = [Float](repeating: -80, count: 2 * 3 * 2 * 6)
            var logDecayGradient: [Float]?
            var bonusGradient: [Float]?
            var initialStateGradient: [Float]?
            var initialNormalizerGradient: [Float]?

            mutating func pack(_ offsets: [Int]) {
                shape.batch = 1
                shape.tokens = 6
                self.offsets = offsets
                finalState = [Float](repeating: -80, count: (offsets.count - 1) * 4 * 5 * 6)
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
            var a = Arguments()
            change(&a)
            // Copies: spans of two fields of one struct overlap.
            let (query, key, value, logDecay) = (a.query, a.key, a.value, a.logDecay)
            let (bonus, initialState, initialNormalizer) =
                (a.bonus, a.initialState, a.initialNormalizer)
            let offsets = a.offsets
            var (output, finalState, finalNormalizer) = (a.output, a.finalState, a.finalNormalizer)
            var (states, normalizers) = (a.states, a.normalizers)
            let found = error {
                try LinearAttention.forward(
                    query: query.span, key: key.span, value: value.span, logDecay: logDecay?.span,
                    bonus: bonus?.span, initialState: initialState?.span,
                    initialNormalizer: initialNormalizer?.span, offsets: offsets?.span,
                    output: output?.mutableSpan, finalState: finalState?.mutableSpan,
                    finalNormalizer: finalNormalizer?.mutableSpan, states: states?.mutableSpan,
                    normalizers: normalizers?.mutableSpan, shape: a.shape, options: a.options,
                    workspace: Workspace())
            }
            if found != nil {
                let isUntouched =
                    output == a.output && finalState == a.finalState && states == a.states
                #expect(isUntouched, "nothing is written")
            }
            return found
        }

        private func backward(_ change: (inout Arguments) -> Void) -> KernelError? {
            var a = Arguments()
            change(&a)
            let (query, key, value, logDecay) = (a.query, a.key, a.value, a.logDecay)
            let (bonus, initialState, initialNormalizer) =
                (a.bonus, a.initialState, a.initialNormalizer)
            let (offsets, outputGradient) = (a.offsets, a.outputGradient)
            let (stateGradient, normalizerGradient) =
                (a.finalStateGradient, a.finalNormalizerGradient)
            var (dq, dk, dv) = (a.queryGradient, a.keyGradient, a.valueGradient)
            var (dg, du) = (a.logDecayGradient, a.bonusGradient)
            var (ds, dz) = (a.initialStateGradient, a.initialNormalizerGradient)
            let found = error {
                try LinearAttention.backward(
                    query: query.span, key: key.span, value: value.span, logDecay: logDecay?.span,
                    bonus: bonus?.span, initialState: initialState?.span,
                    initialNormalizer: initialNormalizer?.span, offsets: offsets?.span,
                    outputGradient: outputGradient.span, finalStateGradient: stateGradient?.span,
                    finalNormalizerGradient: normalizerGradient?.span,
                    queryGradient: dq?.mutableSpan, keyGradient: dk?.mutableSpan,
                    valueGradient: dv?.mutableSpan, logDecayGradient: dg?.mutableSpan,
                    bonusGradient: du?.mutableSpan, initialStateGradient: ds?.mutableSpan,
                    initialNormalizerGradient: dz?.mutableSpan, shape: a.shape,
                    options: a.options, workspace: Workspace())
            }
            if found != nil {
                let isUntouched =
                    dq == a.queryGradient && dk == a.keyGradient && dv == a.valueGradient
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
            let fields: [(String, WritableKeyPath<LinearAttention.Shape, Int>)] = [
                ("batch", \.batch), ("tokens", \.tokens), ("heads", \.heads),
                ("keyHeads", \.keyHeads), ("keyWidth", \.keyWidth), ("valueWidth", \.valueWidth),
            ]
            for (name, field) in fields {
                #expect(
                    both { $0.shape[keyPath: field] = -1 }
                        == .outOfRange(argument: name, allowed: ">= 0", actual: "-1"))
            }
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
                    $0.key = floats(90)
                    $0.value = floats(108)
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
                    == .tooSmall(argument: "key", minimum: 60, actual: 59))
            #expect(
                both { $0.value.removeLast() }
                    == .tooSmall(argument: "value", minimum: 72, actual: 71))
            #expect(
                both { $0.logDecay!.removeLast() }
                    == .tooSmall(argument: "logDecay", minimum: 24, actual: 23))
            #expect(
                both {
                    $0.options.decay = .key
                    $0.logDecay = floats(119)
                } == .tooSmall(argument: "logDecay", minimum: 120, actual: 119))
            for count in [3, 5] {
                #expect(
                    both {
                        $0.options.decay = .head
                        $0.logDecay = floats(count)
                    } == .countMismatch(argument: "logDecay", expected: 4, actual: count))
                #expect(
                    both { $0.bonus = floats(count) }
                        == .countMismatch(argument: "bonus", expected: 20, actual: count))
                #expect(
                    both { $0.initialState = floats(count) }
                        == .countMismatch(argument: "initialState", expected: 240, actual: count))
                #expect(
                    both {
                        $0.options.isNormalized = true
                        $0.initialNormalizer = floats(count)
                    }
                        == .countMismatch(
                            argument: "initialNormalizer", expected: 40, actual: count))
            }
        }

        @Test func strides() {
            #expect(
                both { $0.shape.queryStrides = .init(batch: 60, token: -20, head: 5) }
                    == .outOfRange(
                        argument: "queryStrides.token", allowed: ">= 0", actual: "-20"))
            #expect(
                both { $0.shape.keyStrides = .init(batch: 30, token: 10, head: 4) }
                    == .tooSmall(argument: "keyStrides.head", minimum: 5, actual: 4))
            #expect(
                both { $0.shape.valueStrides = .init(batch: 36, token: 11, head: 6) }
                    == .tooSmall(argument: "valueStrides.token", minimum: 12, actual: 11))
            #expect(
                both { $0.shape.logDecayStrides = .init(batch: 11, token: 4, head: 1) }
                    == .tooSmall(argument: "logDecayStrides.batch", minimum: 12, actual: 11))
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
        }

        @Test func whatGoesTogether() {
            #expect(
                both { $0.logDecay = nil }
                    == .conflict(argument: "logDecay", reason: "needed with a decay"))
            #expect(
                both { $0.options.decay = .none }
                    == .conflict(argument: "logDecay", reason: "not without a decay"))
            #expect(
                both { $0.initialNormalizer = floats(40) }
                    == .conflict(argument: "initialNormalizer", reason: "only with a normaliser"))
            #expect(
                forward { $0.finalNormalizer = floats(40) }
                    == .conflict(argument: "finalNormalizer", reason: "only with a normaliser"))
            #expect(
                forward { $0.normalizers = floats(120) }
                    == .conflict(argument: "finalNormalizer", reason: "only with a normaliser"))
        }

        @Test func bidirectional() {
            func make(_ a: inout Arguments) {
                a.options.isBidirectional = true
                a.options.decay = .none
                a.logDecay = nil
                a.finalState = nil
            }
            #expect(both { make(&$0) } == nil)
            let reason = "none in the bidirectional form"
            #expect(
                both {
                    make(&$0)
                    $0.options.decay = .token
                    $0.logDecay = floats(24)
                } == .conflict(argument: "decay", reason: reason))
            #expect(
                both {
                    make(&$0)
                    $0.bonus = floats(20)
                } == .conflict(argument: "bonus", reason: reason))
            #expect(
                both {
                    make(&$0)
                    $0.initialState = floats(240)
                } == .conflict(argument: "initialState", reason: reason))
            #expect(
                forward {
                    make(&$0)
                    $0.finalState = floats(240)
                } == .conflict(argument: "finalState", reason: reason))
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
            let wrong: [([Int], index: Int, value: Int, limit: Int)] = [
                ([1, 6], 0, 1, 1), ([0, 4, 3, 6], 2, 3, 7), ([0, 7, 6], 1, 7, 7),
                ([0, 5], 1, 5, 7), ([-1, 6], 0, -1, 1), ([0], 0, 0, 7),
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
                    $0.initialState = floats(240 * 3)
                } == .countMismatch(argument: "initialState", expected: 240, actual: 720))
        }

        // MARK: - Results

        @Test func results() {
            #expect(
                forward { $0.output!.removeLast() }
                    == .tooSmall(argument: "output", minimum: 144, actual: 143))
            #expect(
                forward { $0.finalState!.removeLast() }
                    == .countMismatch(argument: "finalState", expected: 240, actual: 239))
            #expect(
                forward {
                    $0.options.isNormalized = true
                    $0.finalNormalizer = floats(41)
                } == .countMismatch(argument: "finalNormalizer", expected: 40, actual: 41))
            // 2 sequences with a state after 2 of 3 tokens.
            #expect(
                forward {
                    $0.options.stateStride = 2
                    $0.states = floats(239)
                } == .countMismatch(argument: "states", expected: 240, actual: 239))
            #expect(
                forward {
                    $0.options.stateStride = 2
                    $0.options.isNormalized = true
                    $0.normalizers = floats(39)
                } == .countMismatch(argument: "normalizers", expected: 40, actual: 39))
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
                    == .tooSmall(argument: "keyGradient", minimum: 60, actual: 59))
            #expect(
                backward { $0.valueGradient!.removeLast() }
                    == .tooSmall(argument: "valueGradient", minimum: 72, actual: 71))
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
                backward {
                    $0.options.decay = .head
                    $0.logDecay = floats(4)
                    $0.logDecayGradient = floats(5)
                } == .countMismatch(argument: "logDecayGradient", expected: 4, actual: 5))
            #expect(
                backward { $0.shape.keyGradientStrides = .init(batch: 30, token: 9, head: 5) }
                    == .tooSmall(argument: "keyGradientStrides.token", minimum: 10, actual: 9))
            #expect(
                backward {
                    $0.bonus = floats(20)
                    $0.bonusGradient = floats(19)
                } == .countMismatch(argument: "bonusGradient", expected: 20, actual: 19))
            #expect(
                backward { $0.finalStateGradient = floats(1) }
                    == .countMismatch(argument: "finalStateGradient", expected: 240, actual: 1))
            #expect(
                backward { $0.initialStateGradient = floats(1) }
                    == .countMismatch(argument: "initialStateGradient", expected: 240, actual: 1))
            #expect(
                backward {
                    $0.options.isNormalized = true
                    $0.finalNormalizerGradient = floats(1)
                }
                    == .countMismatch(
                        argument: "finalNormalizerGradient", expected: 40, actual: 1))
            #expect(
                backward {
                    $0.options.isNormalized = true
                    $0.initialNormalizerGradient = floats(1)
                }
                    == .countMismatch(
                        argument: "initialNormalizerGradient", expected: 40, actual: 1))
        }

        // MARK: - The state in place

        @Test func inPlaceAndSteps() {
            func refusal(
                tokens: Int = 1, isNormalized: Bool = false, state: Int = 240,
                normalizer: Int? = nil, isStep: Bool = true
            ) -> KernelError? {
                let x = floats(120)
                var (state, output) = (floats(state), floats(144))
                var normalizer = normalizer.map(floats)
                let shape = LinearAttention.Shape(
                    batch: 2, tokens: tokens, heads: 4, keyWidth: 5, valueWidth: 6)
                let options = LinearAttention.Options(isNormalized: isNormalized)
                return error {
                    var span = state.mutableSpan
                    if isStep {
                        try LinearAttention.step(
                            query: x.span, key: x.span, value: x.span, state: &span,
                            normalizer: normalizer?.mutableSpan, output: output.mutableSpan,
                            shape: shape, options: options, workspace: Workspace())
                    } else {
                        try LinearAttention.forward(
                            query: x.span, key: x.span, value: x.span, inPlace: &span,
                            normalizer: normalizer?.mutableSpan, output: output.mutableSpan,
                            shape: shape, options: options, workspace: Workspace())
                    }
                }
            }
            #expect(refusal() == nil)
            #expect(refusal(isNormalized: true, normalizer: 40) == nil)
            #expect(
                refusal(tokens: 2) == .outOfRange(argument: "tokens", allowed: "1", actual: "2"))
            #expect(refusal(tokens: 2, isStep: false) == nil)
            for isStep in [false, true] {
                #expect(
                    refusal(state: 239, isStep: isStep)
                        == .countMismatch(argument: "state", expected: 240, actual: 239))
                #expect(
                    refusal(isNormalized: true, isStep: isStep)
                        == .conflict(argument: "normalizer", reason: "needed with isNormalized"))
                #expect(
                    refusal(normalizer: 40, isStep: isStep)
                        == .conflict(argument: "normalizer", reason: "only with isNormalized"))
                #expect(
                    refusal(isNormalized: true, normalizer: 41, isStep: isStep)
                        == .countMismatch(argument: "normalizer", expected: 40, actual: 41))
            }
        }
    }
}
