extension LinearAttention {
    /// Mixture of memories: M states, of which each token uses R.
    ///
    /// Memory m sees, in their order, the tokens routed to it, and for them alone it decays, writes
    /// and reads, as `LinearAttention` does with a sequence of these tokens:
    ///
    ///     o_t = sum_r weight_tr o_t^(m),  m = selected_tr        + o_t^(shared)
    ///
    /// The shared memory, where there is one, sees every token and has weight 1. Queries are those
    /// of the token. Keys, values and log-decays are too, or, as in the paper, whose memories each
    /// have their projections, one for each memory that the token uses.
    ///
    /// All memories are one call on packed sequences: tokens are gathered by memory, and outputs
    /// added up where they belong, in float32. Outputs of a memory have been rounded to the storage
    /// type before they are weighted. These functions allocate what they gather.
    ///
    /// Du, Sun, Hu, Cheng and others, "MoM: Linear Sequence Modeling with Mixture-of-Memories",
    /// 2025.
    public enum Memories {}
}

extension LinearAttention.Memories {
    public typealias Shape = LinearAttention.Shape
    public typealias Options = LinearAttention.Options

    /// Outputs and last states. Arrays are dense, token-major.
    ///
    /// - Parameters:
    ///   - query: q, [batch, tokens, heads, keyWidth].
    ///   - key: k, [batch, tokens(, C), keyHeads, keyWidth].
    ///   - value: v, [batch, tokens(, C), keyHeads, valueWidth].
    ///   - logDecay: g, [heads] for all memories, or [batch, tokens(, C), heads(, keyWidth)].
    ///   - weights: [batch, tokens, choices]
    ///   - initialState: [N, routing.states, heads, keyWidth, valueWidth]; nil: 0.
    ///   - output: o, [batch, tokens, heads, valueWidth].
    ///   - finalState: [N, routing.states, heads, keyWidth, valueWidth]
    ///   - shape: Without strides.
    ///   - options: Neither normalised nor bidirectional.
    ///   - workspace: Grows to what the call needs.
    /// - Throws: As `LinearAttention.forward`; `countMismatch` for every array; `conflict` for
    ///   strides, options, or a routing of other tokens.
    public static func forward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>,
        logDecay: Span<Float>? = nil, weights: Span<Float>, initialState: Span<Float>? = nil,
        output: consuming MutableSpan<Element>, finalState: consuming MutableSpan<Float>? = nil,
        routing: Routing, shape: Shape, options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        try checkInputs(
            shape, options, routing, query: query.count, key: key.count, value: value.count,
            logDecay: logDecay?.count, weights: weights.count)
        let outputWidth = shape.heads * shape.valueWidth
        try checkCount(
            "output", output.count, expected: shape.batch * shape.tokens * outputWidth)
        try checkStates(
            shape, routing, ("initialState", initialState?.count),
            ("finalState", finalState?.count))
        let packed = Packed(query, key, value, logDecay, routing, shape, options)
        var part = zeros(of: Element.self, count: routing.uses.count * outputWidth)
        try LinearAttention.forward(
            query: packed.query.span, key: packed.key.span, value: packed.value.span,
            logDecay: packed.logDecay?.span, initialState: initialState,
            offsets: routing.offsets.span, output: part.mutableSpan, finalState: finalState,
            shape: packed.shape, options: options, workspace: workspace)

        let read = try floats(part.span)
        var sum = [Float](repeating: 0, count: output.count)
        for (i, use) in routing.uses.enumerated() {
            let weight = routing.weight(use).map { weights[$0] } ?? 1
            add(read, row: i, times: weight, to: &sum, row: use.row, width: outputWidth)
        }
        try Elementwise.convert(sum.span, into: &output)
    }

    /// Gradients of  <do, o> + <dS, final states>. What is nil is not computed.
    ///
    /// The memory's output o^(m) has the gradient weight do, and the weight do . o^(m), for which
    /// the outputs are computed again; the rest is `LinearAttention.backward`, summed in float32
    /// over what memories share.
    ///
    /// - Parameters:
    ///   - query: What `forward` was given, as are the other inputs.
    ///   - outputGradient: do, [batch, tokens, heads, valueWidth].
    ///   - finalStateGradient: dS, [N, routing.states, heads, keyWidth, valueWidth]; nil: 0.
    ///   - queryGradient: In the shape of its input, as are the next four.
    ///   - initialStateGradient: [N, routing.states, heads, keyWidth, valueWidth]
    ///   - workspace: Grows to what the call needs.
    /// - Throws: As `forward`.
    public static func backward<Element: StorageElement>(
        query: Span<Element>, key: Span<Element>, value: Span<Element>,
        logDecay: Span<Float>? = nil, weights: Span<Float>, initialState: Span<Float>? = nil,
        outputGradient: Span<Element>, finalStateGradient: Span<Float>? = nil,
        queryGradient: consuming MutableSpan<Element>? = nil,
        keyGradient: consuming MutableSpan<Element>? = nil,
        valueGradient: consuming MutableSpan<Element>? = nil,
        logDecayGradient: consuming MutableSpan<Float>? = nil,
        weightsGradient: consuming MutableSpan<Float>? = nil,
        initialStateGradient: consuming MutableSpan<Float>? = nil, routing: Routing,
        shape: Shape, options: Options = Options(), workspace: Workspace
    ) throws(KernelError) {
        try checkInputs(
            shape, options, routing, query: query.count, key: key.count, value: value.count,
            logDecay: logDecay?.count, weights: weights.count)
        try checkCount(
            "outputGradient", outputGradient.count,
            expected: shape.batch * shape.tokens * shape.heads * shape.valueWidth)
        try checkCount("queryGradient", queryGradient?.count, expected: query.count)
        try checkCount("keyGradient", keyGradient?.count, expected: key.count)
        try checkCount("valueGradient", valueGradient?.count, expected: value.count)
        try checkCount("logDecayGradient", logDecayGradient?.count, expected: logDecay?.count ?? 0)
        try checkCount("weightsGradient", weightsGradient?.count, expected: weights.count)
        try checkStates(
            shape, routing, ("initialState", initialState?.count),
            ("finalStateGradient", finalStateGradient?.count))
        try checkStates(
            shape, routing, ("initialStateGradient", initialStateGradient?.count), nil)

        let packed = Packed(query, key, value, logDecay, routing, shape, options)
        if var span = weightsGradient.take() {
            try differentiateWeights(
                packed, outputGradient, initialState, routing, options, workspace, into: &span)
        }
        let weighted = try weighted(outputGradient, weights, packed, routing)
        var queries = zeros(of: Element.self, count: packed.query.count)
        var keys = zeros(of: Element.self, count: packed.key.count)
        var values = zeros(of: Element.self, count: packed.value.count)
        var decays = logDecayGradient == nil ? nil : packed.logDecay
        try LinearAttention.backward(
            query: packed.query.span, key: packed.key.span, value: packed.value.span,
            logDecay: packed.logDecay?.span, initialState: initialState,
            offsets: routing.offsets.span, outputGradient: weighted.span,
            finalStateGradient: finalStateGradient, queryGradient: queries.mutableSpan,
            keyGradient: keys.mutableSpan, valueGradient: values.mutableSpan,
            logDecayGradient: decays?.mutableSpan, initialStateGradient: initialStateGradient,
            shape: packed.shape, options: options, workspace: workspace)
        if var span = queryGradient.take() {
            try scatter(queries.span, routing.uses.map(\.row), into: &span)
        }
        let projections = routing.uses.map(routing.projection)
        if var span = keyGradient.take() { try scatter(keys.span, projections, into: &span) }
        if var span = valueGradient.take() { try scatter(values.span, projections, into: &span) }
        if var span = logDecayGradient.take(), let decays {
            try scatter(decays.span, options.decay == .head ? [0] : projections, into: &span)
        }
    }
}

// MARK: - Checks

extension LinearAttention.Memories {
    private static func checkInputs(
        _ shape: Shape, _ options: Options, _ routing: Routing, query: Int, key: Int, value: Int,
        logDecay: Int?, weights: Int
    ) throws(KernelError) {
        try shape.checkSizesOfTokens()
        guard shape.batch == routing.batch, shape.tokens == routing.tokens else {
            throw .conflict(argument: "routing", reason: "of the shape's batch and tokens")
        }
        let dense = Shape(
            batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
            keyHeads: shape.keyHeads, keyWidth: shape.keyWidth, valueWidth: shape.valueWidth)
        guard dense == shape else {
            throw .conflict(argument: "shape", reason: "no strides with memories")
        }
        if options.isNormalized || options.isBidirectional {
            let argument = options.isNormalized ? "isNormalized" : "isBidirectional"
            throw .conflict(argument: argument, reason: "not with memories")
        }
        // Less than the routing's own array has: no overflow.
        let rows = shape.batch * shape.tokens
        let projections = routing.projections
        try checkCount(
            "query", query, expected: product("query", rows, shape.heads, shape.keyWidth))
        try checkCount(
            "key", key,
            expected: product("key", rows, projections, shape.keyHeads, shape.keyWidth))
        try checkCount(
            "value", value,
            expected: product("value", rows, projections, shape.keyHeads, shape.valueWidth))
        switch options.decay {
        case .none, .head: try checkCount("logDecay", logDecay, expected: shape.heads)
        case .token:
            try checkCount(
                "logDecay", logDecay, expected: product("logDecay", rows, projections, shape.heads))
        case .key:
            try checkCount(
                "logDecay", logDecay,
                expected: product("logDecay", rows, projections, shape.heads, shape.keyWidth))
        }
        try checkCount("weights", weights, expected: rows * routing.choices)
    }

    private static func checkStates(
        _ shape: Shape, _ routing: Routing, _ first: (name: String, count: Int?),
        _ second: (name: String, count: Int?)?
    ) throws(KernelError) {
        let states = routing.sequences * routing.states
        for index in 0..<2 {
            guard let (name, count) = index == 0 ? first : second else { continue }
            try shape.checkStates(name, count, states)
        }
    }
}
