import LMKernels

typealias LinearAttention = LMKernels.LinearAttention

/// q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], and maybe log_decay, initial_state
/// [N, H, K, V] and cu_seqlens [N + 1]; o [B, T, H, V], and maybe final_state [N, H, K, V].
struct LinearAttentionOperator: ConformanceOperator {
    static let names = ["linear_attention"]

    private let shape: LinearAttention.Shape
    private let sequences: Int
    private var options = LinearAttention.Options()
    private let rows: TokenRows
    private let logDecay: [Float]?
    private let initialState: [Float]?
    private let offsets: [Int]?
    private let outputGradient: [Float]?
    private let finalStateGradient: [Float]?
    private let wantsGradients: Bool

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
        offsets = try reader.integersIfPresent("in.cu_seqlens", ["N + 1"])
        sequences = offsets.map { $0.count - 1 } ?? shape.batch
        initialState = try reader.floatsIfPresent("in.initial_state", ["N", "H", "K", "V"])

        try reader.expect("out.o", ["B", "T", "H", "V"])
        let hasFinalState = try reader.expect(
            "out.final_state", ["N", "H", "K", "V"], isRequired: false)
        let cotangent = try reader.tensorIfPresent(
            "cotangent.o", ["B", "T", "H", "V"], [rows.storage])
        outputGradient = try cotangent.map { tensor throws(ConformanceError) in
            try read(tensor.floats)
        }
        finalStateGradient = try reader.floatsIfPresent(
            "cotangent.final_state", ["N", "H", "K", "V"])
        wantsGradients = reader.wantsGradients
        for name in ["q", "k", "v", "log_decay", "initial_state"] {
            try reader.expectGradient(of: name)
        }
        let hasStates = hasFinalState || initialState != nil
        if hasStates { try reader.checkStates(sequences: sequences, isPacked: offsets != nil) }
        if hasStates, options.isBidirectional {
            throw .inconsistent("states of the bidirectional form")
        }
        try reader.finish()
        try checkOffsets(offsets, batch: shape.batch, tokens: shape.tokens)
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
    func compute(_ settings: CheckSettings) throws(KernelError) -> [ComputedWay] {
        switch rows.storage {
        case .bfloat16: return try compute(settings, as: BFloat16.self)
        #if !(os(macOS) && arch(x86_64))
            case .float16: return try compute(settings, as: Float16.self)
        #endif
        default: return try compute(settings, as: Float.self)
        }
    }

    private func compute<Element: StorageValue>(
        _ settings: CheckSettings, as type: Element.Type
    ) throws(KernelError) -> [ComputedWay] {
        var usual = options
        usual.threads = settings.threads
        usual.form =
            switch settings.form {
            case .auto: .automatic
            case .recurrent: .recurrent
            case .chunked: .chunked
            }
        let workspace = Workspace()
        var ways: [ComputedWay] = []
        for layout in TokenLayout.allCases {
            ways.append(try compute(layout, usual, as: type, workspace))
        }
        if !options.isBidirectional {
            ways.append(try inPlace(usual, as: type, workspace))
        }
        if wantsGradients {
            var tight = usual
            tight.memoryBudget = 1
            var way = try compute(.tokenMajor, tight, as: type, workspace)
            way.name = "least memory"
            ways.append(way)
        }
        return ways
    }

    private func grid(_ layout: TokenLayout, heads: Int, width: Int) -> TokenGrid {
        layout.grid(batch: shape.batch, tokens: shape.tokens, heads: heads, width: width)
    }

    private func compute<Element: StorageValue>(
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
            initialState: initialState?.span, offsets: offsets?.span, output: o.mutableSpan,
            finalState: state?.mutableSpan, shape: shape, options: options,
            workspace: workspace)
        var tensors = ["out.o": outputs.dense(o)]
        tensors["out.final_state"] = state
        guard wantsGradients else { return ComputedWay(name: layout.rawValue, tensors: tensors) }

        let zeros = [Float](repeating: 0, count: shape.batch * shape.tokens * outputs.rowCount)
        let gradient = outputs.spread(outputGradient ?? zeros, as: type)
        var dq = queries.empty(of: type)
        var dk = keys.empty(of: type)
        var dv = values.empty(of: type)
        var dg = logDecay
        state = hasState ? emptyState : nil
        try LinearAttention.backward(
            query: q.span, key: k.span, value: v.span, logDecay: logDecay?.span,
            initialState: initialState?.span, offsets: offsets?.span,
            outputGradient: gradient.span, finalStateGradient: finalStateGradient?.span,
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

    private var emptyState: [Float] {
        let width = shape.heads * shape.keyWidth * shape.valueWidth
        return Array(repeating: Grid.filler, count: sequences * width)
    }

    private func inPlace<Element: StorageValue>(
        _ options: LinearAttention.Options, as type: Element.Type, _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay {
        let (q, k, v) = (
            rows.query.map { type.init($0) }, rows.key.map { type.init($0) },
            rows.value.map { type.init($0) }
        )
        let outputs = grid(.tokenMajor, heads: shape.heads, width: shape.valueWidth)
        var o = outputs.empty(of: type)
        var state = initialState ?? emptyState.map { _ in 0 }
        var normalizer =
            options.isNormalized
            ? [Float](repeating: 0, count: sequences * shape.heads * shape.keyWidth) : nil
        var span = state.mutableSpan
        try LinearAttention.forward(
            query: q.span, key: k.span, value: v.span, logDecay: logDecay?.span, inPlace: &span,
            normalizer: normalizer?.mutableSpan, offsets: offsets?.span, output: o.mutableSpan,
            shape: shape, options: options, workspace: workspace)
        return ComputedWay(
            name: "state in place", tensors: ["out.o": outputs.dense(o), "out.final_state": state])
    }
}
