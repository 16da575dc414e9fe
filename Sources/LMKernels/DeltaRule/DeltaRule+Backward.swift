internal import CLMKCore
internal import CLMKDeltaRule
internal import CLMKLinearAttention

extension DeltaRule {
    /// Gradients of  <do, o> + <dS, final state>,  in the shapes of the inputs. A gradient that is
    /// nil is not computed; they overlap neither inputs nor each other.
    ///
    /// Chunks go from last to first, whatever `options.form` says, after a recurrence that keeps
    /// what each step corrected, and the state at intervals that the memory budget allows. The
    /// solve of a chunk is passed by its transposed substitution. The gradient of a log-decay is a
    /// sum of its own terms, without those that cancel. Keys, values, a and b sum over the query
    /// heads that use them.
    ///
    /// - Parameters:
    ///   - query: What `forward` was given, as are the other inputs, `shape` and `options`.
    ///   - outputGradient: do, [batch, tokens, heads, valueWidth].
    ///   - finalStateGradient: dS, [N, heads, keyWidth, valueWidth]; nil: 0.
    ///   - queryGradient: [batch, tokens, heads, keyWidth]
    ///   - keyGradient: [batch, tokens R, keyHeads, keyWidth]
    ///   - valueGradient: [batch, tokens R, keyHeads, valueWidth]
    ///   - betaGradient: Of what `beta` holds, logits where it holds logits, [batch, tokens R,
    ///     heads].
    ///   - aGradient: [batch, tokens, keyHeads, keyWidth]
    ///   - bGradient: [batch, tokens, keyHeads, keyWidth]
    ///   - logDecayGradient: In the shape of `logDecay`.
    ///   - initialStateGradient: [N, heads, keyWidth, valueWidth]. Given without an initial state
    ///     too, where it is the gradient at 0.
    ///   - workspace: Grows to what the call needs.
    /// - Throws: As `forward`.
    public static func backward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>, beta: Span<Float>? = nil,
        a: Span<Element>? = nil, b: Span<Element>? = nil, logDecay: Span<Float>? = nil,
        initialState: Span<Float>? = nil, offsets: Span<Int>? = nil,
        outputGradient: Span<Element>, finalStateGradient: Span<Float>? = nil,
        queryGradient: consuming MutableSpan<Element>? = nil,
        keyGradient: consuming MutableSpan<Element>? = nil,
        valueGradient: consuming MutableSpan<Element>? = nil,
        betaGradient: consuming MutableSpan<Float>? = nil,
        aGradient: consuming MutableSpan<Element>? = nil,
        bGradient: consuming MutableSpan<Element>? = nil,
        logDecayGradient: consuming MutableSpan<Float>? = nil,
        initialStateGradient: consuming MutableSpan<Float>? = nil, shape: Shape,
        options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        let counts = Counts(
            query: query.count, key: key.count, value: value.count, beta: beta?.count,
            a: a?.count, b: b?.count, logDecay: logDecay?.count,
            initialState: initialState?.count)
        let rule = try unsafe descriptor(shape, options, Element.storageType, counts, offsets)
        var gradients = try unsafe gradients(
            shape, options, isGeneralized: counts.isGeneralized, output: outputGradient.count,
            query: queryGradient?.count, key: keyGradient?.count, value: valueGradient?.count)
        try unsafe checkUpdateGradients(
            &gradients, shape, options, isGeneralized: counts.isGeneralized,
            beta: betaGradient?.count,
            a: aGradient?.count, b: bGradient?.count, logDecay: logDecayGradient?.count)
        let sequences = shape.sequences(offsets)
        try shape.checkStates("finalStateGradient", finalStateGradient?.count, sequences)
        try shape.checkStates("initialStateGradient", initialStateGradient?.count, sequences)
        let strides = unsafe gradients
        try unsafe checkTokenCall { error in
            unsafe withInputs(
                rule, query: query, key: key, value: value, beta: beta, a: a, b: b,
                logDecay: logDecay, initialState: initialState, offsets: offsets
            ) { rule in
                unsafe withGradients(
                    strides, outputGradient, finalStateGradient, &queryGradient, &keyGradient,
                    &valueGradient, &betaGradient, &aGradient, &bGradient, &logDecayGradient,
                    &initialStateGradient
                ) { gradients in
                    let needed = unsafe lmk_delta_rule_backward_workspace_size(&rule)
                    return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                        unsafe lmk_delta_rule_backward(&rule, &gradients, memory, size, error)
                    }
                }
            }
        }
    }

    /// Checks the spans of rows that every form has, and takes down their strides.
    private static func gradients(
        _ shape: Shape, _ options: Options, isGeneralized: Bool, output: Int, query: Int?,
        key: Int?,
        value: Int?
    ) throws(KernelError) -> lmk_delta_rule_gradients {
        let (keyWidth, valueWidth) = (shape.keyWidth, shape.valueWidth)
        var gradients = unsafe lmk_delta_rule_gradients()
        unsafe gradients.output_strides = try shape.queryExtent(
            "outputGradient", width: valueWidth, shape.outputGradientStrides
        ).check(output).inC
        unsafe gradients.q_strides = try shape.queryExtent(
            "queryGradient", width: keyWidth, shape.queryGradientStrides
        ).check(query).inC
        unsafe gradients.k_strides = try shape.keyExtent(
            "keyGradient", width: keyWidth, shape.keyGradientStrides
        ).check(key).inC
        unsafe gradients.v_strides = try shape.keyExtent(
            "valueGradient", width: valueWidth, shape.valueGradientStrides
        ).check(value).inC
        return unsafe gradients
    }

    /// The same for the spans of what a form may lack.
    private static func checkUpdateGradients(
        _ gradients: inout lmk_delta_rule_gradients, _ shape: Shape, _ options: Options,
        isGeneralized: Bool, beta: Int?, a: Int?, b: Int?, logDecay: Int?
    ) throws(KernelError) {
        if isGeneralized, beta != nil {
            throw .conflict(argument: "betaGradient", reason: "not with a and b")
        }
        if !isGeneralized, a != nil || b != nil {
            throw .conflict(
                argument: a != nil ? "aGradient" : "bGradient", reason: "not without a and b")
        }
        if options.decay == .none, logDecay != nil {
            throw .conflict(argument: "logDecayGradient", reason: "not without a decay")
        }
        unsafe gradients.beta_strides = try shape.betaExtent(
            "betaGradient", shape.betaGradientStrides
        ).check(beta).inC
        unsafe gradients.a_strides = try shape.vectorExtent(
            "aGradient", shape.aGradientStrides
        ).check(a).inC
        unsafe gradients.b_strides = try shape.vectorExtent(
            "bGradient", shape.bGradientStrides
        ).check(b).inC
        unsafe gradients.log_decay_strides = try shape.logDecayExtent(
            "logDecayGradient", options.decay, shape.logDecayGradientStrides
        ).check(logDecay).inC
    }

    private static func withGradients<Element: StorageElement>(
        _ gradients: lmk_delta_rule_gradients, _ output: Span<Element>,
        _ finalState: Span<Float>?, _ query: inout MutableSpan<Element>?,
        _ key: inout MutableSpan<Element>?, _ value: inout MutableSpan<Element>?,
        _ beta: inout MutableSpan<Float>?, _ a: inout MutableSpan<Element>?,
        _ b: inout MutableSpan<Element>?, _ logDecay: inout MutableSpan<Float>?,
        _ initialState: inout MutableSpan<Float>?,
        _ body: (inout lmk_delta_rule_gradients) -> lmk_status
    ) -> lmk_status {
        var gradients = unsafe gradients
        return unsafe withPointer(output) { output in
            unsafe withPointer(finalState) { finalState in
                unsafe withMutablePointers(&query, &key, &value) { query, key, value in
                    unsafe gradients.output = UnsafeRawPointer(output)
                    unsafe gradients.final_state = finalState
                    unsafe gradients.q = UnsafeMutableRawPointer(query)
                    unsafe gradients.k = UnsafeMutableRawPointer(key)
                    unsafe gradients.v = UnsafeMutableRawPointer(value)
                    return unsafe withUpdateGradients(
                        &gradients, &beta, &a, &b, &logDecay, &initialState, body)
                }
            }
        }
    }

    private static func withUpdateGradients<Element: StorageElement>(
        _ gradients: inout lmk_delta_rule_gradients, _ beta: inout MutableSpan<Float>?,
        _ a: inout MutableSpan<Element>?, _ b: inout MutableSpan<Element>?,
        _ logDecay: inout MutableSpan<Float>?, _ initialState: inout MutableSpan<Float>?,
        _ body: (inout lmk_delta_rule_gradients) -> lmk_status
    ) -> lmk_status {
        unsafe withMutablePointers(&beta, &logDecay, &initialState) { beta, logDecay, state in
            unsafe withMutablePointer(&a) { a in
                unsafe withMutablePointer(&b) { b in
                    unsafe gradients.beta = beta
                    unsafe gradients.log_decay = logDecay
                    unsafe gradients.initial_state = state
                    unsafe gradients.a = UnsafeMutableRawPointer(a)
                    unsafe gradients.b = UnsafeMutableRawPointer(b)
                    return unsafe body(&gradients)
                }
            }
        }
    }
}
