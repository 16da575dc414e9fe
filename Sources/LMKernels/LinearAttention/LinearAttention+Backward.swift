internal import CLMKCore
internal import CLMKLinearAttention

extension LinearAttention {
    /// Gradients of  <do, o> + <dS, final state> + <dz, final normaliser>,  in the shapes of the
    /// inputs. A gradient that is nil is not computed; they overlap neither inputs nor each other.
    ///
    /// Chunks go from last to first. States at their starts are kept at intervals that the memory
    /// budget allows and computed again in between. The gradient of a log-decay is a sum of its own
    /// terms, without those that cancel, and is accurate relative to itself where it is small.
    /// Keys, values and what heads share sum over the query heads that use them. The bidirectional
    /// form has no gradients of states.
    ///
    /// - Parameters:
    ///   - query: What `forward` was given, as are the other inputs, `shape` and `options`.
    ///   - outputGradient: do, [batch, tokens, heads, valueWidth].
    ///   - finalStateGradient: dS, [N, heads, keyWidth, valueWidth]; nil: 0.
    ///   - finalNormalizerGradient: dz, [N, heads, keyWidth]; nil: 0.
    ///   - queryGradient: [batch, tokens, heads, keyWidth]
    ///   - keyGradient: [batch, tokens, keyHeads, keyWidth]
    ///   - valueGradient: [batch, tokens, keyHeads, valueWidth]
    ///   - logDecayGradient: In the shape of `logDecay`.
    ///   - bonusGradient: [heads, keyWidth]
    ///   - initialStateGradient: [N, heads, keyWidth, valueWidth]. Given without an initial state
    ///     too, where it is the gradient at 0.
    ///   - initialNormalizerGradient: [N, heads, keyWidth]; the same.
    ///   - workspace: Grows to what the call needs.
    /// - Throws: As `forward`.
    public static func backward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>,
        logDecay: Span<Float>? = nil, bonus: Span<Float>? = nil,
        initialState: Span<Float>? = nil, initialNormalizer: Span<Float>? = nil,
        offsets: Span<Int>? = nil, outputGradient: Span<Element>,
        finalStateGradient: Span<Float>? = nil, finalNormalizerGradient: Span<Float>? = nil,
        queryGradient: consuming MutableSpan<Element>? = nil,
        keyGradient: consuming MutableSpan<Element>? = nil,
        valueGradient: consuming MutableSpan<Element>? = nil,
        logDecayGradient: consuming MutableSpan<Float>? = nil,
        bonusGradient: consuming MutableSpan<Float>? = nil,
        initialStateGradient: consuming MutableSpan<Float>? = nil,
        initialNormalizerGradient: consuming MutableSpan<Float>? = nil, shape: Shape,
        options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        let counts = Counts(
            query: query.count, key: key.count, value: value.count, logDecay: logDecay?.count,
            bonus: bonus?.count, initialState: initialState?.count,
            initialNormalizer: initialNormalizer?.count)
        let attention = try unsafe descriptor(
            shape, options, Element.storageType, counts, offsets)
        let gradients = try unsafe gradients(
            shape, options, output: outputGradient.count, query: queryGradient?.count,
            key: keyGradient?.count, value: valueGradient?.count,
            logDecay: logDecayGradient?.count, bonus: bonusGradient?.count)
        let sequences = shape.sequences(offsets)
        try checkStates(
            shape, sequences, ("finalStateGradient", finalStateGradient?.count),
            ("finalNormalizerGradient", finalNormalizerGradient?.count))
        try checkStates(
            shape, sequences, ("initialStateGradient", initialStateGradient?.count),
            ("initialNormalizerGradient", initialNormalizerGradient?.count))
        try unsafe checkTokenCall { error in
            unsafe withInputs(
                attention, query: query, key: key, value: value, logDecay: logDecay, bonus: bonus,
                initialState: initialState, initialNormalizer: initialNormalizer, offsets: offsets
            ) { attention in
                unsafe withGradients(
                    gradients, outputGradient, finalStateGradient, finalNormalizerGradient,
                    &queryGradient, &keyGradient, &valueGradient, &logDecayGradient,
                    &bonusGradient, &initialStateGradient, &initialNormalizerGradient
                ) { gradients in
                    let needed = unsafe lmk_linear_attention_backward_workspace_size(&attention)
                    return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                        unsafe lmk_linear_attention_backward(
                            &attention, &gradients, memory, size, error)
                    }
                }
            }
        }
    }

    /// Checks the spans that have strides or the length of an input, and takes down their strides.
    private static func gradients(
        _ shape: Shape, _ options: Options, output: Int, query: Int?, key: Int?, value: Int?,
        logDecay: Int?, bonus: Int?
    ) throws(KernelError) -> lmk_linear_attention_gradients {
        let (keyWidth, valueWidth) = (shape.keyWidth, shape.valueWidth)
        var gradients = unsafe lmk_linear_attention_gradients()
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
        if options.decay == .none, logDecay != nil {
            throw .conflict(argument: "logDecayGradient", reason: "not without a decay")
        }
        if options.decay == .head {
            try checkCount("logDecayGradient", logDecay, expected: shape.heads)
        }
        unsafe gradients.log_decay_strides = try shape.logDecayExtent(
            "logDecayGradient", options.decay, shape.logDecayGradientStrides
        ).check(logDecay).inC
        try checkCount(
            "bonusGradient", bonus,
            expected: shape.normalizerCount("bonusGradient", 1))
        return unsafe gradients
    }

    private static func withGradients<Element: StorageElement>(
        _ gradients: lmk_linear_attention_gradients, _ output: Span<Element>,
        _ finalState: Span<Float>?, _ finalNormalizer: Span<Float>?,
        _ query: inout MutableSpan<Element>?, _ key: inout MutableSpan<Element>?,
        _ value: inout MutableSpan<Element>?, _ logDecay: inout MutableSpan<Float>?,
        _ bonus: inout MutableSpan<Float>?, _ initialState: inout MutableSpan<Float>?,
        _ initialNormalizer: inout MutableSpan<Float>?,
        _ body: (inout lmk_linear_attention_gradients) -> lmk_status
    ) -> lmk_status {
        var gradients = unsafe gradients
        return unsafe withPointer(output) { output in
            unsafe withPointers(finalState, finalNormalizer, nil) { finalState, normalizer, _ in
                unsafe withMutablePointers(&query, &key, &value) { query, key, value in
                    unsafe gradients.output = UnsafeRawPointer(output)
                    unsafe gradients.final_state = finalState
                    unsafe gradients.final_normalizer = normalizer
                    unsafe gradients.q = UnsafeMutableRawPointer(query)
                    unsafe gradients.k = UnsafeMutableRawPointer(key)
                    unsafe gradients.v = UnsafeMutableRawPointer(value)
                    return unsafe withFloats(
                        &gradients, &logDecay, &bonus, &initialState, &initialNormalizer, body)
                }
            }
        }
    }

    /// Those that are float32 whatever the storage type.
    private static func withFloats(
        _ gradients: inout lmk_linear_attention_gradients, _ logDecay: inout MutableSpan<Float>?,
        _ bonus: inout MutableSpan<Float>?, _ initialState: inout MutableSpan<Float>?,
        _ initialNormalizer: inout MutableSpan<Float>?,
        _ body: (inout lmk_linear_attention_gradients) -> lmk_status
    ) -> lmk_status {
        unsafe withMutablePointers(&logDecay, &bonus, &initialState) { logDecay, bonus, state in
            unsafe withMutablePointer(&initialNormalizer) { normalizer in
                unsafe gradients.log_decay = logDecay
                unsafe gradients.bonus = bonus
                unsafe gradients.initial_state = state
                unsafe gradients.initial_normalizer = normalizer
                return unsafe body(&gradients)
            }
        }
    }
}
