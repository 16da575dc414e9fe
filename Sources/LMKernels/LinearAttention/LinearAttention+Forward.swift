internal import CLMKCore
internal import CLMKLinearAttention

extension LinearAttention {
    /// Outputs and states. What is nil is not computed.
    ///
    /// The chunked form takes 16 tokens at a time: with P = tril(q k^T o E), E_ij the decay from j
    /// to i,
    ///
    ///     o = scale [ (D_1..i q) S + P v ]          S+ = D_1..n S + (D_j+1..n k)^T v
    ///
    /// E is made of running products of decays, never of differences of sums, so that -inf and
    /// strong decays cost no accuracy. Cost: 4 keyWidth valueWidth + 24 (keyWidth + valueWidth)
    /// operations for a token and head; where few heads have many tokens, segments of a sequence go
    /// to different threads for 2 keyWidth valueWidth more.
    ///
    /// bfloat16 with `InstructionSet.amx`: 64 tokens at a time on tiles, without a bonus or a
    /// normaliser and with no decay, or one per head or token, in the chunked form, and in the
    /// automatic one from 32 tokens on. P, S as it is read and k with its decays are sums of two
    /// bfloat16 there. S is right to about 3e-6 of its norm where other sets have 1e-6, o as far as
    /// bfloat16 goes. Numbers below 2^-126 count as 0. q is multiplied with S before decays and
    /// scale, so that a product beyond the range of float32 is infinite, or NaN, even if it would
    /// come back. The bits differ from those of other sets; they do not depend on threads or later
    /// tokens, and a sequence that is cut at a multiple of 64 tokens, 16 elsewhere, has the same in
    /// the chunked form. Backward is that of other sets.
    ///
    /// Outputs overlap neither inputs nor each other; see `forward(...inPlace:)` for a state that is
    /// carried along.
    ///
    /// - Parameters:
    ///   - query: q, [batch, tokens, heads, keyWidth].
    ///   - key: k, [batch, tokens, keyHeads, keyWidth].
    ///   - value: v, [batch, tokens, keyHeads, valueWidth].
    ///   - logDecay: g, as `options.decay` says.
    ///   - bonus: u, [heads, keyWidth].
    ///   - initialState: S_0, [N, heads, keyWidth, valueWidth]; nil: 0.
    ///   - initialNormalizer: z_0, [N, heads, keyWidth], with a normaliser; nil: 0.
    ///   - offsets: Packed sequences: [N + 1], from 0 to `tokens`, not descending. Sequence n has
    ///     the tokens offsets[n] ..< offsets[n + 1], maybe none.
    ///   - output: o, [batch, tokens, heads, valueWidth].
    ///   - finalState: S after the last token, [N, heads, keyWidth, valueWidth]; S_0 for a sequence
    ///     without tokens.
    ///   - finalNormalizer: z after the last token, [N, heads, keyWidth].
    ///   - states: S after stateStride, 2 stateStride, ... tokens of a sequence, as far as it goes,
    ///     sequence by sequence: [shape.storedStates, heads, keyWidth, valueWidth].
    ///   - normalizers: z at the same places, [shape.storedStates, heads, keyWidth].
    ///   - workspace: Grows to what the call needs.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
    ///   `countMismatch` for arrays without strides; `badEntry` for offsets; `conflict` for options
    ///   and arrays that do not go together; `overflow`.
    public static func forward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>,
        logDecay: Span<Float>? = nil, bonus: Span<Float>? = nil,
        initialState: Span<Float>? = nil, initialNormalizer: Span<Float>? = nil,
        offsets: Span<Int>? = nil, output: consuming MutableSpan<Element>? = nil,
        finalState: consuming MutableSpan<Float>? = nil,
        finalNormalizer: consuming MutableSpan<Float>? = nil,
        states: consuming MutableSpan<Float>? = nil,
        normalizers: consuming MutableSpan<Float>? = nil, shape: Shape,
        options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        let counts = Counts(
            query: query.count, key: key.count, value: value.count, logDecay: logDecay?.count,
            bonus: bonus?.count, initialState: initialState?.count,
            initialNormalizer: initialNormalizer?.count)
        let attention = try unsafe descriptor(
            shape, options, Element.storageType, counts, offsets)
        let outputStrides = try shape.queryExtent(
            "output", width: shape.valueWidth, shape.outputStrides
        ).check(output?.count)
        try checkStates(
            shape, shape.sequences(offsets), ("finalState", finalState?.count),
            ("finalNormalizer", finalNormalizer?.count))
        try checkStored(
            shape, options, offsets, states: states?.count, normalizers: normalizers?.count)
        try unsafe checkTokenCall { error in
            unsafe withInputs(
                attention, query: query, key: key, value: value, logDecay: logDecay, bonus: bonus,
                initialState: initialState, initialNormalizer: initialNormalizer, offsets: offsets
            ) { attention in
                unsafe withMutablePointer(&output) { output in
                    unsafe withMutablePointers(&finalState, &finalNormalizer, &states) {
                        finalState, finalNormalizer, states in
                        unsafe withMutablePointer(&normalizers) { normalizers in
                            var results = unsafe lmk_linear_attention_results(
                                o: output, o_strides: outputStrides.inC, final_state: finalState,
                                final_normalizer: finalNormalizer, states: states,
                                normalizers: normalizers, state_stride: options.stateStride)
                            return unsafe run(&attention, &results, workspace, error)
                        }
                    }
                }
            }
        }
    }

    /// The same with the state in place: S_0 becomes the last S, and z_0 the last z.
    ///
    /// - Parameters:
    ///   - state: [N, heads, keyWidth, valueWidth]
    ///   - normalizer: [N, heads, keyWidth]; needed with a normaliser, and only then.
    /// - Throws: As the other form.
    public static func forward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>,
        logDecay: Span<Float>? = nil, bonus: Span<Float>? = nil,
        inPlace state: inout MutableSpan<Float>,
        normalizer: consuming MutableSpan<Float>? = nil, offsets: Span<Int>? = nil,
        output: consuming MutableSpan<Element>? = nil, shape: Shape,
        options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        if options.isNormalized, normalizer == nil {
            throw .conflict(argument: "normalizer", reason: "needed with isNormalized")
        }
        if !options.isNormalized, normalizer != nil {
            throw .conflict(argument: "normalizer", reason: "only with isNormalized")
        }
        let counts = Counts(
            query: query.count, key: key.count, value: value.count, logDecay: logDecay?.count,
            bonus: bonus?.count)
        let attention = try unsafe descriptor(
            shape, options, Element.storageType, counts, offsets)
        try checkStates(
            shape, shape.sequences(offsets), ("state", state.count),
            ("normalizer", normalizer?.count))
        let outputStrides = try shape.queryExtent(
            "output", width: shape.valueWidth, shape.outputStrides
        ).check(output?.count)
        try unsafe checkTokenCall { error in
            unsafe withInputs(
                attention, query: query, key: key, value: value, logDecay: logDecay, bonus: bonus,
                initialState: nil, initialNormalizer: nil, offsets: offsets
            ) { attention in
                unsafe state.withUnsafeMutableBufferPointer { state in
                    unsafe withMutablePointer(&normalizer) { normalizer in
                        unsafe withMutablePointer(&output) { output in
                            unsafe attention.initial_state = UnsafePointer(state.baseAddress)
                            unsafe attention.initial_normalizer = UnsafePointer(normalizer)
                            var results = unsafe lmk_linear_attention_results()
                            unsafe results.o = UnsafeMutableRawPointer(output)
                            unsafe results.o_strides = outputStrides.inC
                            unsafe results.final_state = state.baseAddress
                            unsafe results.final_normalizer = normalizer
                            return unsafe run(&attention, &results, workspace, error)
                        }
                    }
                }
            }
        }
    }

    /// Decoding: one token of each of `shape.batch` sequences, with the state in place, which is
    /// read and written once. The form is recurrent whatever `options` says.
    ///
    /// - Parameters:
    ///   - query: q, [batch, heads, keyWidth].
    ///   - key: k, [batch, keyHeads, keyWidth].
    ///   - value: v, [batch, keyHeads, valueWidth].
    ///   - logDecay: g, [heads], [batch, heads] or [batch, heads, keyWidth].
    ///   - bonus: u, [heads, keyWidth].
    ///   - state: [batch, heads, keyWidth, valueWidth]
    ///   - normalizer: [batch, heads, keyWidth]; needed with a normaliser, and only then.
    ///   - output: o, [batch, heads, valueWidth].
    ///   - shape: Of which `tokens` has to be 1.
    ///   - workspace: Grows to what the call needs.
    /// - Throws: As `forward`, and `outOfRange` for `tokens`.
    public static func step<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>,
        logDecay: Span<Float>? = nil, bonus: Span<Float>? = nil,
        state: inout MutableSpan<Float>, normalizer: consuming MutableSpan<Float>? = nil,
        output: consuming MutableSpan<Element>, shape: Shape, options: Options = Options(),
        workspace: Workspace
    ) throws(KernelError) {
        guard shape.tokens == 1 else {
            throw .outOfRange(argument: "tokens", allowed: "1", actual: "\(shape.tokens)")
        }
        var options = options
        options.form = .recurrent
        try forward(
            query: query, key: key, value: value, logDecay: logDecay, bonus: bonus,
            inPlace: &state, normalizer: normalizer, output: output, shape: shape,
            options: options, workspace: workspace)
    }

    /// Checks the lengths of states on the way.
    private static func checkStored(
        _ shape: Shape, _ options: Options, _ offsets: Span<Int>?, states: Int?, normalizers: Int?
    ) throws(KernelError) {
        guard states != nil || normalizers != nil else { return }
        guard
            let stored = try shape.checkedStatesOnTheWay(stride: options.stateStride, offsets)
        else { return }
        try checkStates(shape, stored, ("states", states), ("normalizers", normalizers))
    }

    private static func run(
        _ attention: inout lmk_linear_attention, _ results: inout lmk_linear_attention_results,
        _ workspace: Workspace, _ error: UnsafeMutablePointer<lmk_error>
    ) -> lmk_status {
        let needed = unsafe lmk_linear_attention_workspace_size(&attention)
        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
            unsafe lmk_linear_attention_forward(&attention, &results, memory, size, error)
        }
    }
}
