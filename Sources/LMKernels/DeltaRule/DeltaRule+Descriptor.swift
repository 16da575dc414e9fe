internal import CLMKCore
internal import CLMKDeltaRule
internal import CLMKLinearAttention

// MARK: - Extents

extension DeltaRule.Shape: TokenShape {
    /// Steps of a sequence; `checkSizes` has seen that they can be counted.
    var keyTokens: Int { tokens &* steps }

    func checkSizes() throws(KernelError) {
        try checkSizesOfTokens()
        try checkNotNegative("steps", steps)
        _ = try product("steps", tokens, steps)
    }

    /// Rates, or their gradients.
    func betaExtent(_ argument: String, _ strides: TokenStrides?) -> TokenExtent {
        TokenExtent(
            argument: argument, batch: batch, tokens: keyTokens, heads: heads, width: 1,
            strides: strides)
    }

    /// a or b, or their gradients: R is 1.
    func vectorExtent(_ argument: String, _ strides: TokenStrides?) -> TokenExtent {
        TokenExtent(
            argument: argument, batch: batch, tokens: tokens, heads: keyHeads, width: keyWidth,
            strides: strides)
    }

    /// Log-decays, or their gradients.
    func logDecayExtent(
        _ argument: String, _ decay: DeltaRule.Decay, _ strides: TokenStrides?
    ) -> TokenExtent {
        queryExtent(argument, width: decay == .key ? keyWidth : 1, strides)
    }
}

// MARK: - The descriptor

extension DeltaRule {
    /// How many elements the spans of a call have; nil: there is no span.
    struct Counts {
        var query: Int
        var key: Int
        var value: Int
        var beta: Int?
        var a: Int?
        var b: Int?
        var logDecay: Int?
        var initialState: Int?

        var isGeneralized: Bool { a != nil || b != nil }
    }

    /// The problem without its arrays. Checks what would not survive on its way into C types, and
    /// the spans; C checks the rest.
    static func descriptor(
        _ shape: Shape, _ options: Options, _ type: StorageType, _ counts: Counts,
        _ offsets: Span<Int>?
    ) throws(KernelError) -> lmk_delta_rule {
        try shape.checkSizes()
        var rule = unsafe lmk_delta_rule()
        unsafe rule.form =
            switch options.form {
            case .automatic: .LMK_DELTA_RULE_AUTOMATIC
            case .recurrent: .LMK_DELTA_RULE_RECURRENT
            case .chunked: .LMK_DELTA_RULE_CHUNKED
            }
        unsafe rule.dtype = type.dtype
        unsafe rule.decay =
            switch options.decay {
            case .none: .LMK_DECAY_NONE
            case .token: .LMK_DECAY_TOKEN
            case .key: .LMK_DECAY_KEY
            }
        unsafe rule.beta_kind =
            switch options.rates {
            case .rate: .LMK_BETA_RATE
            case .sigmoid: .LMK_BETA_SIGMOID
            case .twiceSigmoid: .LMK_BETA_TWICE_SIGMOID
            }
        unsafe rule.batch = shape.batch
        unsafe rule.tokens = shape.tokens
        unsafe rule.steps = shape.steps
        unsafe rule.heads = shape.heads
        unsafe rule.key_heads = shape.keyHeads
        unsafe rule.key_dim = shape.keyWidth
        unsafe rule.value_dim = shape.valueWidth
        unsafe rule.is_generalized = counts.isGeneralized ? 1 : 0
        unsafe rule.scale = options.scale ?? 1 / Float(max(shape.keyWidth, 1)).squareRoot()
        unsafe rule.has_unit_length = options.unitLengthEpsilon == nil ? 0 : 1
        unsafe rule.epsilon = options.unitLengthEpsilon ?? 0
        if let offsets { unsafe rule.sequences = try checkedSequences(offsets) }
        unsafe rule.memory_budget = try checkedMemoryBudget(options.memoryBudget)
        unsafe rule.threads = try Threads.checked(options.threads)
        try unsafe checkInputs(counts, shape, options, shape.sequences(offsets), &rule)
        return unsafe rule
    }

    private static func checkInputs(
        _ counts: Counts, _ shape: Shape, _ options: Options, _ sequences: Int,
        _ rule: inout lmk_delta_rule
    ) throws(KernelError) {
        let (keyWidth, valueWidth) = (shape.keyWidth, shape.valueWidth)
        let query = shape.queryExtent("query", width: keyWidth, shape.queryStrides)
        unsafe rule.q_strides = try query.check(counts.query).inC
        let key = shape.keyExtent("key", width: keyWidth, shape.keyStrides)
        unsafe rule.k_strides = try key.check(counts.key).inC
        let value = shape.keyExtent("value", width: valueWidth, shape.valueStrides)
        unsafe rule.v_strides = try value.check(counts.value).inC

        try checkUpdate(counts)
        let beta = shape.betaExtent("beta", shape.betaStrides)
        unsafe rule.beta_strides = try beta.check(counts.beta).inC
        let a = shape.vectorExtent("a", shape.aStrides)
        unsafe rule.a_strides = try a.check(counts.a).inC
        let b = shape.vectorExtent("b", shape.bStrides)
        unsafe rule.b_strides = try b.check(counts.b).inC

        try checkLogDecay(isGiven: counts.logDecay != nil, isNeeded: options.decay != .none)
        let logDecay = shape.logDecayExtent("logDecay", options.decay, shape.logDecayStrides)
        unsafe rule.log_decay_strides = try logDecay.check(counts.logDecay).inC
        try shape.checkStates("initialState", counts.initialState, sequences)
    }

    /// Either rates, or a and b.
    private static func checkUpdate(_ counts: Counts) throws(KernelError) {
        guard counts.isGeneralized else {
            if counts.beta == nil {
                throw .conflict(argument: "beta", reason: "needed without a and b")
            }
            return
        }
        if counts.a == nil { throw .conflict(argument: "a", reason: "needed with b") }
        if counts.b == nil { throw .conflict(argument: "b", reason: "needed with a") }
        if counts.beta != nil { throw .conflict(argument: "beta", reason: "not with a and b") }
    }
}

// MARK: - Calls

extension DeltaRule {
    /// Calls `body` with the problem and its arrays.
    static func withInputs<Element: StorageElement>(
        _ rule: lmk_delta_rule, query: Span<Element>, key: Span<Element>, value: Span<Element>,
        beta: Span<Float>?, a: Span<Element>?, b: Span<Element>?, logDecay: Span<Float>?,
        initialState: Span<Float>?, offsets: Span<Int>?,
        _ body: (inout lmk_delta_rule) -> lmk_status
    ) -> lmk_status {
        var rule = unsafe rule
        return unsafe withPointers(query, key, value) { query, key, value in
            unsafe withPointers(a, b, nil) { a, b, _ in
                unsafe withPointers(beta, logDecay, initialState) { beta, logDecay, state in
                    unsafe withOffsets(offsets) { offsets in
                        unsafe rule.q = UnsafeRawPointer(query)
                        unsafe rule.k = UnsafeRawPointer(key)
                        unsafe rule.v = UnsafeRawPointer(value)
                        unsafe rule.a = UnsafeRawPointer(a)
                        unsafe rule.b = UnsafeRawPointer(b)
                        unsafe rule.beta = beta
                        unsafe rule.log_decay = logDecay
                        unsafe rule.initial_state = state
                        unsafe rule.offsets = offsets
                        return unsafe body(&rule)
                    }
                }
            }
        }
    }
}
