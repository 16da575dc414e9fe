internal import CLMKCore
internal import CLMKLinearAttention

// MARK: - Extents

extension LinearAttention {
    /// A tensor [batch, tokens, heads, width] in a span.
    struct TokenExtent {
        /// Name of the span.
        var argument: String
        var batch: Int
        var tokens: Int
        var heads: Int
        var width: Int
        /// nil: dense.
        var strides: Strides?

        /// Checks strides, then the number of elements in the span; sizes are known not to be
        /// negative.
        ///
        /// - Parameter actual: nil: there is no span.
        /// - Returns: The strides.
        @discardableResult
        func check(_ actual: Int?) throws(KernelError) -> Strides {
            try checkNotNegative("\(argument)Strides.batch", strides?.batch ?? 0)
            try checkNotNegative("\(argument)Strides.token", strides?.token ?? 0)
            try checkNotNegative("\(argument)Strides.head", strides?.head ?? 0)
            let strides = if let given = self.strides { given } else { try dense() }
            guard let actual, batch > 0, tokens > 0, heads > 0, width > 0 else { return strides }
            var last = try plus(times(batch - 1, strides.batch), times(tokens - 1, strides.token))
            last = try plus(last, times(heads - 1, strides.head))
            let minimum = try plus(last, width)
            try checkNoOverlap(strides)
            guard actual >= minimum else {
                throw .tooSmall(argument: argument, minimum: minimum, actual: actual)
            }
            return strides
        }

        private func dense() throws(KernelError) -> Strides {
            let token = try times(heads, width)
            return Strides(batch: try times(tokens, token), token: token, head: width)
        }

        /// From the smallest stride up, each is at least what lies between its steps.
        private func checkNoOverlap(_ strides: Strides) throws(KernelError) {
            let steps = [
                ("head", strides.head, heads), ("token", strides.token, tokens),
                ("batch", strides.batch, batch),
            ].sorted { $0.1 < $1.1 }
            var length = width
            for (name, stride, count) in steps where count > 1 {
                guard stride >= length else {
                    throw .tooSmall(
                        argument: "\(argument)Strides.\(name)", minimum: length, actual: stride)
                }
                length += (count - 1) * stride
            }
        }

        private func times(_ a: Int, _ b: Int) throws(KernelError) -> Int {
            let (product, overflow) = a.multipliedReportingOverflow(by: b)
            guard !overflow else { throw .overflow(argument: argument) }
            return product
        }

        private func plus(_ a: Int, _ b: Int) throws(KernelError) -> Int {
            let (sum, overflow) = a.addingReportingOverflow(b)
            guard !overflow else { throw .overflow(argument: argument) }
            return sum
        }
    }
}

extension LinearAttention.Shape {
    typealias Extent = LinearAttention.TokenExtent

    /// A tensor of query heads, `width` wide.
    func queryExtent(
        _ argument: String, width: Int, _ strides: LinearAttention.Strides?
    ) -> Extent {
        Extent(
            argument: argument, batch: batch, tokens: tokens, heads: heads, width: width,
            strides: strides)
    }

    /// A tensor of key and value heads, `width` wide.
    func keyExtent(
        _ argument: String, width: Int, _ strides: LinearAttention.Strides?
    ) -> Extent {
        Extent(
            argument: argument, batch: batch, tokens: tokens, heads: keyHeads, width: width,
            strides: strides)
    }

    /// Log-decays, or their gradients. A head's are one row of a single token.
    func logDecayExtent(
        _ argument: String, _ decay: LinearAttention.Decay, _ strides: LinearAttention.Strides?
    ) -> Extent {
        decay == .head
            ? Extent(argument: argument, batch: 1, tokens: 1, heads: heads, width: 1)
            : queryExtent(
                argument, width: decay == .key ? keyWidth : 1, strides)
    }

    /// `count` states of every head, or their normalisers.
    func stateCount(_ argument: String, _ count: Int, isNormalizer: Bool) throws(KernelError) -> Int
    {
        var product = count
        for factor in [heads, keyWidth, isNormalizer ? 1 : valueWidth] {
            let (next, overflow) = product.multipliedReportingOverflow(by: factor)
            guard !overflow else { throw .overflow(argument: argument) }
            product = next
        }
        return product
    }

    func checkSizes() throws(KernelError) {
        for (name, size) in [
            ("batch", batch), ("tokens", tokens), ("heads", heads), ("keyHeads", keyHeads),
            ("keyWidth", keyWidth), ("valueWidth", valueWidth),
        ] {
            try checkNotNegative(name, size)
        }
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
        try shape.checkSizes()
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
        if let offsets {
            guard offsets.count >= 1 else {
                throw .tooSmall(argument: "offsets", minimum: 1, actual: 0)
            }
            unsafe attention.sequences = offsets.count - 1
        }
        if let budget = options.memoryBudget, budget < 1 {
            throw .outOfRange(argument: "memoryBudget", allowed: ">= 1", actual: "\(budget)")
        }
        unsafe attention.memory_budget = options.memoryBudget ?? 0
        unsafe attention.threads = try Threads.checked(options.threads)
        let sequences = sequences(shape, offsets)
        try unsafe checkInputs(counts, shape, options, sequences, &attention)
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

        if options.decay != .none, counts.logDecay == nil {
            throw .conflict(argument: "logDecay", reason: "needed with a decay")
        }
        if options.decay == .none, counts.logDecay != nil {
            throw .conflict(argument: "logDecay", reason: "not without a decay")
        }
        let logDecay = shape.logDecayExtent("logDecay", options.decay, shape.logDecayStrides)
        if options.decay == .head {
            try checkCount("logDecay", counts.logDecay, expected: shape.heads)
        }
        unsafe attention.log_decay_strides = try logDecay.check(counts.logDecay).inC
        try checkCount(
            "bonus", counts.bonus,
            expected: shape.stateCount("bonus", 1, isNormalizer: true))
        try checkStates(
            shape, sequences, ("initialState", counts.initialState),
            ("initialNormalizer", counts.initialNormalizer))
    }

    /// N.
    static func sequences(_ shape: Shape, _ offsets: Span<Int>?) -> Int {
        guard let offsets else { return shape.batch }
        return max(0, offsets.count - 1)
    }

    /// Checks the lengths of states and normalisers, `sequences` of them for each head.
    static func checkStates(
        _ shape: Shape, _ sequences: Int, _ state: (name: String, count: Int?),
        _ normalizer: (name: String, count: Int?)
    ) throws(KernelError) {
        try checkCount(
            state.name, state.count,
            expected: shape.stateCount(state.name, sequences, isNormalizer: false))
        try checkCount(
            normalizer.name, normalizer.count,
            expected: shape.stateCount(normalizer.name, sequences, isNormalizer: true))
    }
}

extension LinearAttention.Strides {
    var inC: lmk_token_strides { lmk_token_strides(batch: batch, token: token, head: head) }
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
        return unsafe withPointer(query) { query in
            unsafe withPointer(key) { key in
                unsafe withPointer(value) { value in
                    unsafe withPointer(logDecay) { logDecay in
                        unsafe withPointer(bonus) { bonus in
                            unsafe withPointer(initialState) { state in
                                unsafe withPointer(initialNormalizer) { normalizer in
                                    unsafe withPointer(offsets) { offsets in
                                        unsafe attention.q = UnsafeRawPointer(query)
                                        unsafe attention.k = UnsafeRawPointer(key)
                                        unsafe attention.v = UnsafeRawPointer(value)
                                        unsafe attention.log_decay = logDecay
                                        unsafe attention.bonus = bonus
                                        unsafe attention.initial_state = state
                                        unsafe attention.initial_normalizer = normalizer
                                        // Int has 64 bits wherever the kernels run.
                                        unsafe attention.offsets = UnsafeRawPointer(offsets)?
                                            .assumingMemoryBound(to: Int64.self)
                                        return unsafe body(&attention)
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Runs a C function, and throws what it reports in the names of Swift.
    static func checkCall(
        _ call: (UnsafeMutablePointer<lmk_error>) -> lmk_status
    ) throws(KernelError) {
        do throws(KernelError) {
            try unsafe check(call)
        } catch {
            throw error.inSwift
        }
    }
}

extension KernelError {
    /// With the names that Swift has for arguments of linear attention in C.
    fileprivate var inSwift: KernelError {
        func name(_ argument: String) -> String {
            Self.names[argument] ?? argument
        }
        func words(_ text: String) -> String {
            text.split(separator: " ", omittingEmptySubsequences: false)
                .map { name(String($0)) }.joined(separator: " ")
        }
        return switch self {
        case .outOfRange(let argument, let allowed, let actual):
            .outOfRange(argument: name(argument), allowed: words(allowed), actual: actual)
        case .tooSmall(let argument, let minimum, let actual):
            .tooSmall(argument: name(argument), minimum: minimum, actual: actual)
        case .countMismatch(let argument, let expected, let actual):
            .countMismatch(argument: name(argument), expected: expected, actual: actual)
        case .overflow(let argument):
            .overflow(argument: name(argument))
        case .badEntry(let argument, let index, let value, let limit):
            .badEntry(argument: name(argument), index: index, value: value, limit: limit)
        case .conflict(let argument, let reason):
            .conflict(argument: name(argument), reason: words(reason))
        }
    }

    private static let names = [
        "q": "query", "k": "key", "v": "value", "o": "output", "keyDim": "keyWidth",
        "valueDim": "valueWidth", "epsilon": "unitLengthEpsilon",
    ]
}
