internal import CLMKCore
internal import CLMKLinearAttention

// MARK: - Extents

extension LinearAttention.Shape: TokenShape {
    /// Log-decays, or their gradients. A head's are one row of a single token.
    func logDecayExtent(
        _ argument: String, _ decay: LinearAttention.Decay, _ strides: TokenStrides?
    ) -> TokenExtent {
        decay == .head
            ? TokenExtent(argument: argument, batch: 1, tokens: 1, heads: heads, width: 1)
            : queryExtent(
                argument, width: decay == .key ? keyWidth : 1, strides)
    }

    /// Elements of `count` normalisers of every head.
    func normalizerCount(_ argument: String, _ count: Int) throws(KernelError) -> Int {
        try product(argument, count, heads, keyWidth)
    }
}

// MARK: - The descriptor

extension LinearAttention {
    /// How many elements the spans of a call have; nil: there is no span.
    struct Counts {
        /// nil: the call has no queries.
        var query: Int?
        var key: Int
        var value: Int
        var logDecay: Int?
        var bonus: Int?
        var initialState: Int?
        var initialNormalizer: Int?
    }

    /// The problem without its arrays. Checks what would not survive on its way into C types, and
    /// the spans; C checks the rest.
    static func descriptor(
        _ shape: Shape, _ options: Options, _ type: StorageType, _ counts: Counts,
        _ offsets: Span<Int>?
    ) throws(KernelError) -> lmk_linear_attention {
        try shape.checkSizesOfTokens()
        var attention = unsafe lmk_linear_attention()
        unsafe attention.form =
            switch options.form {
            case .automatic: .LMK_LINEAR_ATTENTION_AUTOMATIC
            case .recurrent: .LMK_LINEAR_ATTENTION_RECURRENT
            case .chunked: .LMK_LINEAR_ATTENTION_CHUNKED
            }
        unsafe attention.dtype = type.dtype
        unsafe attention.decay =
            switch options.decay {
            case .none: .LMK_DECAY_NONE
            case .head: .LMK_DECAY_HEAD
            case .token: .LMK_DECAY_TOKEN
            case .key: .LMK_DECAY_KEY
            }
        unsafe attention.batch = shape.batch
        unsafe attention.tokens = shape.tokens
        unsafe attention.heads = shape.heads
        unsafe attention.key_heads = shape.keyHeads
        unsafe attention.key_dim = shape.keyWidth
        unsafe attention.value_dim = shape.valueWidth
        unsafe attention.scale = options.scale ?? 1 / Float(max(shape.keyWidth, 1)).squareRoot()
        unsafe attention.is_bidirectional = options.isBidirectional ? 1 : 0
        unsafe attention.is_normalized = options.isNormalized ? 1 : 0
        unsafe attention.has_unit_length = options.unitLengthEpsilon == nil ? 0 : 1
        unsafe attention.epsilon = options.unitLengthEpsilon ?? 0
        if let offsets { unsafe attention.sequences = try checkedSequences(offsets) }
        unsafe attention.memory_budget = try checkedMemoryBudget(options.memoryBudget)
        unsafe attention.threads = try Threads.checked(options.threads)
        try unsafe checkInputs(counts, shape, options, shape.sequences(offsets), &attention)
        return unsafe attention
    }

    private static func checkInputs(
        _ counts: Counts, _ shape: Shape, _ options: Options, _ sequences: Int,
        _ attention: inout lmk_linear_attention
    ) throws(KernelError) {
        let (keyWidth, valueWidth) = (shape.keyWidth, shape.valueWidth)
        let query = shape.queryExtent("query", width: keyWidth, shape.queryStrides)
        unsafe attention.q_strides = try query.check(counts.query).inC
        let key = shape.keyExtent("key", width: keyWidth, shape.keyStrides)
        unsafe attention.k_strides = try key.check(counts.key).inC
        let value = shape.keyExtent("value", width: valueWidth, shape.valueStrides)
        unsafe attention.v_strides = try value.check(counts.value).inC

        try checkLogDecay(isGiven: counts.logDecay != nil, isNeeded: options.decay != .none)
        let logDecay = shape.logDecayExtent("logDecay", options.decay, shape.logDecayStrides)
        if options.decay == .head {
            try checkCount("logDecay", counts.logDecay, expected: shape.heads)
        }
        unsafe attention.log_decay_strides = try logDecay.check(counts.logDecay).inC
        try checkCount("bonus", counts.bonus, expected: shape.normalizerCount("bonus", 1))
        try checkStates(
            shape, sequences, ("initialState", counts.initialState),
            ("initialNormalizer", counts.initialNormalizer))
    }

    /// Checks the lengths of states and normalisers, `sequences` of them for each head.
    static func checkStates(
        _ shape: Shape, _ sequences: Int, _ state: (name: String, count: Int?),
        _ normalizer: (name: String, count: Int?)
    ) throws(KernelError) {
        try shape.checkStates(state.name, state.count, sequences)
        try checkCount(
            normalizer.name, normalizer.count,
            expected: shape.normalizerCount(normalizer.name, sequences))
    }
}

// MARK: - Calls

extension LinearAttention {
    /// Calls `body` with the problem and its arrays.
    static func withInputs<Element: StorageElement>(
        _ attention: lmk_linear_attention, query: Span<Element>?, key: Span<Element>,
        value: Span<Element>, logDecay: Span<Float>?, bonus: Span<Float>?,
        initialState: Span<Float>?, initialNormalizer: Span<Float>?, offsets: Span<Int>?,
        _ body: (inout lmk_linear_attention) -> lmk_status
    ) -> lmk_status {
        var attention = unsafe attention
        return unsafe withPointers(query, key, value) { query, key, value in
            unsafe withPointers(logDecay, bonus, initialState) { logDecay, bonus, state in
                unsafe withPointer(initialNormalizer) { normalizer in
                    unsafe withOffsets(offsets) { offsets in
                        unsafe attention.q = UnsafeRawPointer(query)
                        unsafe attention.k = UnsafeRawPointer(key)
                        unsafe attention.v = UnsafeRawPointer(value)
                        unsafe attention.log_decay = logDecay
                        unsafe attention.bonus = bonus
                        unsafe attention.initial_state = state
                        unsafe attention.initial_normalizer = normalizer
                        unsafe attention.offsets = offsets
                        return unsafe body(&attention)
                    }
                }
            }
        }
    }
}
