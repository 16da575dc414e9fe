internal import CLMKCore
internal import CLMKLinearAttention

extension LinearAttention {
    /// What a run of tokens does to the state, whatever came before it:
    ///
    ///     S_end = diag(decay) S_start + state        z_end = diag(decay) z_start + normalizer
    ///
    /// for N sequences, each with its own run. Machines that hold pieces of one long sequence
    /// exchange these, and not tokens.
    ///
    /// Sun et al., "LASP-2: Rethinking Sequence Parallelism for Linear Attention", 2025.
    public struct Segment: Sendable, Hashable {
        /// N times the heads.
        public let states: Int
        public let keyWidth: Int
        public let valueWidth: Int
        /// The product of the factors exp(g), [N, heads, keyWidth]; equal along `keyWidth` unless
        /// the decay is per key.
        public internal(set) var decay: [Float]
        /// The state after the run from a state of 0, [N, heads, keyWidth, valueWidth].
        public internal(set) var state: [Float]
        /// The normaliser after the run from 0, [N, heads, keyWidth]; empty without normaliser.
        public internal(set) var normalizer: [Float]

        /// A segment from its arrays, as another machine sent it. A decay of 1 and the start of a
        /// sequence make the run that leads to that start.
        ///
        /// - Parameters:
        ///   - states: N times the heads.
        ///   - decay: nil: all 1.
        ///   - normalizer: nil: there is none.
        /// - Throws: `outOfRange` for a negative size; `countMismatch` for an array; `overflow`.
        public init(
            states: Int, keyWidth: Int, valueWidth: Int, decay: [Float]? = nil, state: [Float],
            normalizer: [Float]? = nil
        ) throws(KernelError) {
            var shape = Shape(tokens: 0, heads: states, keyWidth: keyWidth, valueWidth: valueWidth)
            shape.keyHeads = 1
            try checkNotNegative("states", states)
            try shape.checkSizesOfTokens()
            let rows = try shape.normalizerCount("decay", 1)
            try checkCount("decay", decay?.count, expected: rows)
            try checkStates(shape, 1, ("state", state.count), ("normalizer", normalizer?.count))
            self.init(states, keyWidth, valueWidth, decay ?? [Float](repeating: 1, count: rows))
            self.state = state
            self.normalizer = normalizer ?? []
        }

        fileprivate init(_ states: Int, _ keyWidth: Int, _ valueWidth: Int, _ decay: [Float]) {
            self.states = states
            self.keyWidth = keyWidth
            self.valueWidth = valueWidth
            self.decay = decay
            state = []
            normalizer = []
        }

        var hasNormalizer: Bool { normalizer.count == decay.count }
    }

    /// The segment that the tokens of each sequence make. It needs no queries: 2 keyWidth valueWidth
    /// operations for a token and head.
    ///
    /// - Parameters:
    ///   - key: k, [batch, tokens, keyHeads, keyWidth].
    ///   - value: v, [batch, tokens, keyHeads, valueWidth].
    ///   - logDecay: g, as `options.decay` says.
    ///   - offsets: [N + 1], as for `forward`.
    ///   - options: The segment has a normaliser if `isNormalized` is set. Not bidirectional.
    ///   - workspace: Grows to what `forward` takes.
    /// - Throws: As `forward`.
    public static func partialState<Element: StorageElement>(
        key: Span<Element>, value: Span<Element>, logDecay: Span<Float>? = nil,
        offsets: Span<Int>? = nil, shape: Shape, options: Options = Options(),
        workspace: Workspace
    ) throws(KernelError) -> Segment {
        let counts = Counts(key: key.count, value: value.count, logDecay: logDecay?.count)
        let attention = try unsafe descriptor(
            shape, options, Element.storageType, counts, offsets)
        let sequences = shape.sequences(offsets)
        let rows = try shape.normalizerCount("decay", sequences)
        let count = try shape.stateCount("state", sequences)
        var segment = Segment(
            sequences * shape.heads, shape.keyWidth, shape.valueWidth,
            [Float](repeating: 1, count: rows))
        segment.state = [Float](repeating: 0, count: count)
        if options.isNormalized { segment.normalizer = [Float](repeating: 0, count: rows) }
        try unsafe checkTokenCall { error in
            unsafe withInputs(
                attention, query: nil, key: key, value: value, logDecay: logDecay, bonus: nil,
                initialState: nil, initialNormalizer: nil, offsets: offsets
            ) { attention in
                unsafe segment.withPiece(hasNormalizer: options.isNormalized) { piece in
                    let needed = unsafe lmk_linear_attention_workspace_size(&attention)
                    return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                        unsafe lmk_linear_attention_partial_state(
                            &attention, &piece, memory, size, error)
                    }
                }
            }
        }
        return segment
    }

    /// The segment of two runs, one after the other. Associative, not commutative.
    ///
    ///     decay = decay_1 decay_2
    ///     state = diag(decay_2) state_1 + state_2        normalizer likewise
    ///
    /// - Throws: `conflict` for segments of different shapes.
    public static func combine(
        _ first: Segment, _ second: Segment
    ) throws(KernelError) -> Segment {
        var result = first
        try result.append(second)
        return result
    }
}

extension LinearAttention.Segment {
    /// Makes it the segment of this run and the one after it, in place.
    ///
    /// - Throws: `conflict` for a segment of another shape.
    public mutating func append(_ next: LinearAttention.Segment) throws(KernelError) {
        guard states == next.states, keyWidth == next.keyWidth, valueWidth == next.valueWidth,
            hasNormalizer == next.hasNormalizer
        else {
            throw .conflict(argument: "segment", reason: "both have the same shape")
        }
        let (states, keyWidth, valueWidth) = (states, keyWidth, valueWidth)
        let isNormalized = hasNormalizer && !normalizer.isEmpty
        try unsafe checkTokenCall { error in
            unsafe withPiece(hasNormalizer: isNormalized) { result in
                unsafe next.withConstantPiece(hasNormalizer: isNormalized) { second in
                    var second = unsafe second
                    var first = unsafe result
                    return unsafe lmk_linear_attention_combine(
                        states, keyWidth, valueWidth, &first, &second, &result, error)
                }
            }
        }
    }

    /// Calls `body` with the arrays as C knows them.
    fileprivate mutating func withPiece(
        hasNormalizer: Bool, _ body: (inout lmk_linear_attention_piece) -> lmk_status
    ) -> lmk_status {
        unsafe decay.withUnsafeMutableBufferPointer { decay in
            unsafe state.withUnsafeMutableBufferPointer { state in
                unsafe normalizer.withUnsafeMutableBufferPointer { normalizer in
                    var piece = unsafe lmk_linear_attention_piece(
                        decay: decay.baseAddress, state: state.baseAddress,
                        normalizer: hasNormalizer ? normalizer.baseAddress : nil)
                    return unsafe body(&piece)
                }
            }
        }
    }

    /// The same for calls that only read.
    private func withConstantPiece(
        hasNormalizer: Bool, _ body: (lmk_linear_attention_piece) -> lmk_status
    ) -> lmk_status {
        unsafe withPointer(decay.span) { decay in
            unsafe withPointer(state.span) { state in
                unsafe withPointer(normalizer.span) { normalizer in
                    let piece = unsafe lmk_linear_attention_piece(
                        decay: UnsafeMutablePointer(mutating: decay),
                        state: UnsafeMutablePointer(mutating: state),
                        normalizer: hasNormalizer ? UnsafeMutablePointer(mutating: normalizer) : nil
                    )
                    return unsafe body(piece)
                }
            }
        }
    }
}
