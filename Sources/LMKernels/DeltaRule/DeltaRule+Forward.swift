internal import CLMKCore
internal import CLMKDeltaRule

extension DeltaRule {
    /// Outputs and states. What is nil is not computed.
    ///
    /// Recurrent: with z = S^T k and y = S^T q known, one pass over a piece of S writes two steps
    /// and reads for the next two. Chunk of n = 16 steps, E_ij the decay from j to i:
    ///
    ///     (I + L) u = beta (v - (D_1..i k) S)        L_ij = beta_i <k_i, k_j> E_ij,  j < i
    ///     o = scale [ (D_1..i q) S + tril(q k^T o E) u ]        S+ = D_1..n S + (D_j+1..n k)^T u
    ///
    /// solved by forward substitution; the inverse is never formed. E is made of running products
    /// of decays, never of differences of sums, so that -inf and strong decays cost no accuracy.
    /// Cost: (4 R + 2) keyWidth valueWidth operations for a token and head; columns of S are
    /// independent, so that few heads still use every thread.
    ///
    /// Errors are those of float32 sums, below 1e-6 of o. Nearly collinear keys with beta near 2 are
    /// the weak spot of chunks: over 512 such tokens 2e-6, by the recurrence 7e-7.
    ///
    /// Outputs overlap neither inputs nor each other; see `forward(...inPlace:)` for a state that is
    /// carried along.
    ///
    /// - Parameters:
    ///   - query: q, [batch, tokens, heads, keyWidth].
    ///   - key: k, [batch, tokens R, keyHeads, keyWidth].
    ///   - value: v, [batch, tokens R, keyHeads, valueWidth].
    ///   - beta: Rates, or their logits, as `options.rates` says, [batch, tokens R, heads]; nil in
    ///     the generalised form.
    ///   - a: [batch, tokens, keyHeads, keyWidth], with b: the generalised form.
    ///   - b: [batch, tokens, keyHeads, keyWidth]
    ///   - logDecay: g, as `options.decay` says.
    ///   - initialState: S_0, [N, heads, keyWidth, valueWidth]; nil: 0.
    ///   - offsets: Packed sequences, in tokens: [N + 1], from 0 to `tokens`, not descending.
    ///     Sequence n has the tokens offsets[n] ..< offsets[n + 1], maybe none.
    ///   - output: o, [batch, tokens, heads, valueWidth].
    ///   - finalState: S after the last token, [N, heads, keyWidth, valueWidth]; S_0 for a sequence
    ///     without tokens.
    ///   - states: S after stateStride, 2 stateStride, ... tokens of a sequence, as far as it goes,
    ///     sequence by sequence: [shape.storedStates, heads, keyWidth, valueWidth].
    ///   - workspace: Grows to what the call needs.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
    ///   `countMismatch` for states; `badEntry` for offsets; `conflict` for options and arrays that
    ///   do not go together; `overflow`.
    public static func forward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>, beta: Span<Float>? = nil,
        a: Span<Element>? = nil, b: Span<Element>? = nil, logDecay: Span<Float>? = nil,
        initialState: Span<Float>? = nil, offsets: Span<Int>? = nil,
        output: consuming MutableSpan<Element>? = nil,
        finalState: consuming MutableSpan<Float>? = nil,
        states: consuming MutableSpan<Float>? = nil, shape: Shape, options: Options = Options(),
        workspace: Workspace
    ) throws(KernelError) {
        let counts = Counts(
            query: query.count, key: key.count, value: value.count, beta: beta?.count,
            a: a?.count, b: b?.count, logDecay: logDecay?.count,
            initialState: initialState?.count)
        let rule = try unsafe descriptor(shape, options, Element.storageType, counts, offsets)
        let outputStrides = try shape.queryExtent(
            "output", width: shape.valueWidth, shape.outputStrides
        ).check(output?.count)
        try shape.checkStates("finalState", finalState?.count, shape.sequences(offsets))
        if states != nil,
            let stored = try shape.checkedStatesOnTheWay(stride: options.stateStride, offsets)
        {
            try shape.checkStates("states", states?.count, stored)
        }
        try unsafe checkTokenCall { error in
            unsafe withInputs(
                rule, query: query, key: key, value: value, beta: beta, a: a, b: b,
                logDecay: logDecay, initialState: initialState, offsets: offsets
            ) { rule in
                unsafe withMutablePointer(&output) { output in
                    unsafe withMutablePointer(&finalState) { finalState in
                        unsafe withMutablePointer(&states) { states in
                            var results = unsafe lmk_delta_rule_results(
                                o: output, o_strides: outputStrides.inC, final_state: finalState,
                                states: states, state_stride: options.stateStride)
                            return unsafe run(&rule, &results, workspace, error)
                        }
                    }
                }
            }
        }
    }

    /// The same with the state in place: S_0 becomes the last S.
    ///
    /// - Parameter state: [N, heads, keyWidth, valueWidth]
    /// - Throws: As the other form.
    public static func forward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>, beta: Span<Float>? = nil,
        a: Span<Element>? = nil, b: Span<Element>? = nil, logDecay: Span<Float>? = nil,
        inPlace state: inout MutableSpan<Float>, offsets: Span<Int>? = nil,
        output: consuming MutableSpan<Element>? = nil, shape: Shape,
        options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        let counts = Counts(
            query: query.count, key: key.count, value: value.count, beta: beta?.count,
            a: a?.count, b: b?.count, logDecay: logDecay?.count)
        let rule = try unsafe descriptor(shape, options, Element.storageType, counts, offsets)
        try shape.checkStates("state", state.count, shape.sequences(offsets))
        let outputStrides = try shape.queryExtent(
            "output", width: shape.valueWidth, shape.outputStrides
        ).check(output?.count)
        try unsafe checkTokenCall { error in
            unsafe withInputs(
                rule, query: query, key: key, value: value, beta: beta, a: a, b: b,
                logDecay: logDecay, initialState: nil, offsets: offsets
            ) { rule in
                unsafe state.withUnsafeMutableBufferPointer { state in
                    unsafe withMutablePointer(&output) { output in
                        unsafe rule.initial_state = UnsafePointer(state.baseAddress)
                        var results = unsafe lmk_delta_rule_results()
                        unsafe results.o = UnsafeMutableRawPointer(output)
                        unsafe results.o_strides = outputStrides.inC
                        unsafe results.final_state = state.baseAddress
                        return unsafe run(&rule, &results, workspace, error)
                    }
                }
            }
        }
    }

    /// Decoding: one token of each of `shape.batch` sequences, with the state in place, which is
    /// read and written once for every two steps. The form is recurrent whatever `options` says.
    ///
    /// - Parameters:
    ///   - query: q, [batch, heads, keyWidth].
    ///   - key: k, [batch, R, keyHeads, keyWidth].
    ///   - value: v, [batch, R, keyHeads, valueWidth].
    ///   - beta: Rates, or their logits, [batch, R, heads]; nil in the generalised form.
    ///   - a: [batch, keyHeads, keyWidth], with b: the generalised form.
    ///   - b: [batch, keyHeads, keyWidth]
    ///   - logDecay: g, [batch, heads] or [batch, heads, keyWidth].
    ///   - state: [batch, heads, keyWidth, valueWidth]
    ///   - output: o, [batch, heads, valueWidth].
    ///   - shape: Of which `tokens` has to be 1.
    ///   - workspace: Grows to what the call needs.
    /// - Throws: As `forward`, and `outOfRange` for `tokens`.
    public static func step<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>, beta: Span<Float>? = nil,
        a: Span<Element>? = nil, b: Span<Element>? = nil, logDecay: Span<Float>? = nil,
        state: inout MutableSpan<Float>, output: consuming MutableSpan<Element>, shape: Shape,
        options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        guard shape.tokens == 1 else {
            throw .outOfRange(argument: "tokens", allowed: "1", actual: "\(shape.tokens)")
        }
        var options = options
        options.form = .recurrent
        try forward(
            query: query, key: key, value: value, beta: beta, a: a, b: b, logDecay: logDecay,
            inPlace: &state, output: output, shape: shape, options: options, workspace: workspace)
    }

    private static func run(
        _ rule: inout lmk_delta_rule, _ results: inout lmk_delta_rule_results,
        _ workspace: Workspace, _ error: UnsafeMutablePointer<lmk_error>
    ) -> lmk_status {
        let needed = unsafe lmk_delta_rule_workspace_size(&rule)
        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
            unsafe lmk_delta_rule_forward(&rule, &results, memory, size, error)
        }
    }
}
