import LMKernels

typealias LinearAttention = LMKernels.LinearAttention

/// q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], and maybe log_decay, initial_state
/// [N, H, K, V] and cu_seqlens [N + 1]; o [B, T, H, V], and maybe final_state [N, H, K, V].
struct LinearAttentionOperator: TokenOperator {
    static let names = ["linear_attention"]

    private let shape: LinearAttention.Shape
    private var options = LinearAttention.Options()
    let rows: TokenRows
    let states: TokenStates
    private let logDecay: [Float]?

    init(_ reader: inout CaseReader) throws(ConformanceError) {
        rows = try TokenRows(&reader, keyTokens: "T")
        shape = LinearAttention.Shape(
            batch: reader.length("B"), tokens: reader.length("T"), heads: reader.length("H"),
            keyHeads: reader.length("G"), keyWidth: reader.length("K"),
            valueWidth: reader.length("V"))

        options.isBidirectional = try !reader.bool("causal")
        options.isNormalized = try reader.bool("normalize")
        options.scale = try reader.number("scale")
        options.decay = try Self.decay(&reader)
        logDecay = try Self.logDecay(&reader, options.decay)
        states = try TokenStates(
            &reader, rows.storage, gradientsOf: ["q", "k", "v", "log_decay", "initial_state"])
        if states.arePresent, options.isBidirectional {
            throw .inconsistent("states of the bidirectional form")
        }
        try reader.finish()
        try checkOffsets(states.offsets, batch: shape.batch, tokens: shape.tokens)
        if options.isBidirectional, options.decay != .none {
            throw .inconsistent("a decay of the bidirectional form")
        }
        try checkSupport(
            reader.operation, widths: [shape.keyWidth, shape.valueWidth],
            limit: LinearAttention.maximumWidth, rows.storage)
    }

    private static func decay(
        _ reader: inout CaseReader
    ) throws(ConformanceError) -> LinearAttention.Decay {
        let name = try reader.string("decay")
        switch name {
        case "none": return .none
        case "head": return .head
        case "token": return .token
        case "key": return .key
        default: throw .unsupported("decay \(quoted(name)) is not in the library")
        }
    }

    private static func logDecay(
        _ reader: inout CaseReader, _ decay: LinearAttention.Decay
    ) throws(ConformanceError) -> [Float]? {
        switch decay {
        case .none: nil
        case .head: try reader.logDecay(["H"])
        case .token: try reader.logDecay(["B", "T", "H"])
        case .key: try reader.logDecay(["B", "T", "H", "K"])
        }
    }
}

// MARK: - Ways to compute it

extension LinearAttentionOperator {
    var stateCount: Int { shape.heads * shape.keyWidth * shape.valueWidth }

    func options(_ settings: CheckSettings) -> LinearAttention.Options {
        var options = options
        options.threads = settings.threads
        options.form =
            switch settings.form {
            case .auto: .automatic
            case .recurrent: .recurrent
            case .chunked: .chunked
            }
        return options
    }

    func withLeastMemory(_ options: LinearAttention.Options) -> LinearAttention.Options {
        var options = options
        options.memoryBudget = 1
        return options
    }

    private func grid(_ layout: TokenLayout, heads: Int, width: Int) -> TokenGrid {
        layout.grid(batch: shape.batch, tokens: shape.tokens, heads: heads, width: width)
    }

    func compute<Element: StorageValue>(
        _ layout: TokenLayout, _ options: LinearAttention.Options, as type: Element.Type,
        _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay {
        let queries = grid(layout, heads: shape.heads, width: shape.keyWidth)
        let keys = grid(layout, heads: shape.keyHeads, width: shape.keyWidth)
        let values = grid(layout, heads: shape.keyHeads, width: shape.valueWidth)
        let outputs = grid(layout, heads: shape.heads, width: shape.valueWidth)
        var shape = shape
        (shape.queryStrides, shape.queryGradientStrides) = (queries.strides, queries.strides)
        (shape.keyStrides, shape.keyGradientStrides) = (keys.strides, keys.strides)
        (shape.valueStrides, shape.valueGradientStrides) = (values.strides, values.strides)
        (shape.outputStrides, shape.outputGradientStrides) = (outputs.strides, outputs.strides)
        let q = queries.spread(rows.query, as: type)
        let k = keys.spread(rows.key, as: type)
        let v = values.spread(rows.value, as: type)
        var o = outputs.empty(of: type)
        let hasState = !options.isBidirectional
        var state = hasState ? emptyState : nil
        try LinearAttention.forward(
            query: q.span, key: k.span, value: v.span, logDecay: logDecay?.span,
            initialState: states.initialState?.span, offsets: states.offsets?.span,
            output: o.mutableSpan,
            finalState: state?.mutableSpan, shape: shape, options: options,
            workspace: workspace)
        var tensors = ["out.o": outputs.dense(o)]
        tensors["out.final_state"] = state
        guard states.wantsGradients else {
            return ComputedWay(name: layout.rawValue, tensors: tensors)
        }

        let zeros = [Float](repeating: 0, count: shape.batch * shape.tokens * outputs.rowCount)
        let gradient = outputs.spread(states.outputGradient ?? zeros, as: type)
        var dq = queries.empty(of: type)
        var dk = keys.empty(of: type)
        var dv = values.empty(of: type)
        var dg = logDecay
        state = hasState ? emptyState : nil
        try LinearAttention.backward(
            query: q.span, key: k.span, value: v.span, logDecay: logDecay?.span,
            initialState: states.initialState?.span, offsets: states.offsets?.span,
            outputGradient: gradient.span, finalStateGradient: states.finalStateGradient?.span,
            queryGradient: dq.mutableSpan, keyGradient: dk.mutableSpan,
            valueGradient: dv.mutableSpan, logDecayGradient: dg?.mutableSpan,
            initialStateGradient: state?.mutableSpan, shape: shape,
            options: options, workspace: workspace)
        tensors["grad.q"] = queries.dense(dq)
        tensors["grad.k"] = keys.dense(dk)
        tensors["grad.v"] = values.dense(dv)
        tensors["grad.log_decay"] = dg
        tensors["grad.initial_state"] = state
        return ComputedWay(name: layout.rawValue, tensors: tensors)
    }

    func inPlace<Element: StorageValue>(
        _ options: LinearAttention.Options, as type: Element.Type, _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay? {
        guard !options.isBidirectional else { return nil }
        let (q, k, v) = (
            rows.query.map { type.init($0) }, rows.key.map { type.init($0) },
            rows.value.map { type.init($0) }
        )
        let outputs = grid(.tokenMajor, heads: shape.heads, width: shape.valueWidth)
        var o = outputs.empty(of: type)
        var state = states.initialState ?? emptyState.map { _ in 0 }
        var normalizer =
            options.isNormalized
            ? [Float](repeating: 0, count: states.sequences * shape.heads * shape.keyWidth) : nil
        var span = state.mutableSpan
        try LinearAttention.forward(
            query: q.span, key: k.span, value: v.span, logDecay: logDecay?.span, inPlace: &span,
            normalizer: normalizer?.mutableSpan, offsets: states.offsets?.span,
            output: o.mutableSpan,
            shape: shape, options: options, workspace: workspace)
        return ComputedWay(
            name: "state in place", tensors: ["out.o": outputs.dense(o), "out.final_state": state])
    }
}
