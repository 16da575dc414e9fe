import LMKernels

typealias DeltaRule = LMKernels.DeltaRule

/// q [B, T, H, K], k [B, T * R, G, K], v [B, T * R, G, V], beta [B, T * R, H], and maybe log_decay,
/// initial_state [N, H, K, V] and cu_seqlens [N + 1]; o [B, T, H, V], and maybe final_state
/// [N, H, K, V].
struct DeltaRuleOperator: TokenOperator {
    static let names = ["delta_rule"]

    private let shape: DeltaRule.Shape
    private var options = DeltaRule.Options()
    let rows: TokenRows
    let states: TokenStates
    private let beta: [Float]
    private let logDecay: [Float]?

    init(_ reader: inout CaseReader) throws(ConformanceError) {
        rows = try TokenRows(&reader, keyTokens: "T * R")
        guard let beta = try reader.floatsIfPresent("in.beta", ["B", "T * R", "H"]) else {
            throw .inconsistent("in.beta is missing")
        }
        self.beta = beta
        shape = try Self.shape(&reader)
        options.scale = try reader.number("scale")
        let decay = try reader.string("decay")
        switch decay {
        case "none": logDecay = nil
        case "token":
            options.decay = .token
            logDecay = try reader.logDecay(["B", "T", "H"])
        case "key":
            options.decay = .key
            logDecay = try reader.logDecay(["B", "T", "H", "K"])
        default: throw .unsupported("decay \(quoted(decay)) is not in the library")
        }
        states = try TokenStates(
            &reader, rows.storage,
            gradientsOf: ["q", "k", "v", "beta", "log_decay", "initial_state"])
        try reader.finish()
        try checkOffsets(states.offsets, batch: shape.batch, tokens: shape.tokens)
        try checkSupport(
            reader.operation, widths: [shape.keyWidth, shape.valueWidth],
            limit: DeltaRule.maximumWidth, rows.storage)
    }

    private static func shape(
        _ reader: inout CaseReader
    ) throws(ConformanceError) -> DeltaRule.Shape {
        let steps = try reader.integer("householder_steps")
        guard steps >= 1 else {
            throw .inconsistent("attribute householder_steps is \(steps), at least 1 is needed")
        }
        let (tokens, rows) = (reader.length("T"), reader.length("T * R"))
        let (product, overflow) = tokens.multipliedReportingOverflow(by: steps)
        guard !overflow, product == rows else {
            throw .inconsistent("T * R is \(rows), but T is \(tokens) and R is \(steps)")
        }
        return DeltaRule.Shape(
            batch: reader.length("B"), tokens: tokens, steps: steps, heads: reader.length("H"),
            keyHeads: reader.length("G"), keyWidth: reader.length("K"),
            valueWidth: reader.length("V"))
    }
}

// MARK: - Ways to compute it

extension DeltaRuleOperator {
    var stateCount: Int { shape.heads * shape.keyWidth * shape.valueWidth }

    func options(_ settings: CheckSettings) -> DeltaRule.Options {
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

    func withLeastMemory(_ options: DeltaRule.Options) -> DeltaRule.Options {
        var options = options
        options.memoryBudget = 1
        return options
    }

    /// Where the tensors of a call lie; gradients as what they belong to.
    private struct Grids {
        var query, key, value, beta, logDecay, output: TokenGrid
    }

    private func grids(_ layout: TokenLayout) -> Grids {
        func grid(_ tokens: Int, _ heads: Int, _ width: Int) -> TokenGrid {
            layout.grid(batch: shape.batch, tokens: tokens, heads: heads, width: width)
        }
        let (tokens, rows) = (shape.tokens, shape.tokens * shape.steps)
        return Grids(
            query: grid(tokens, shape.heads, shape.keyWidth),
            key: grid(rows, shape.keyHeads, shape.keyWidth),
            value: grid(rows, shape.keyHeads, shape.valueWidth), beta: grid(rows, shape.heads, 1),
            logDecay: grid(tokens, shape.heads, options.decay == .key ? shape.keyWidth : 1),
            output: grid(tokens, shape.heads, shape.valueWidth))
    }

    private func strided(_ grids: Grids) -> DeltaRule.Shape {
        var shape = shape
        shape.queryStrides = grids.query.strides
        shape.keyStrides = grids.key.strides
        shape.valueStrides = grids.value.strides
        shape.betaStrides = grids.beta.strides
        shape.logDecayStrides = grids.logDecay.strides
        shape.outputStrides = grids.output.strides
        shape.outputGradientStrides = shape.outputStrides
        shape.queryGradientStrides = shape.queryStrides
        shape.keyGradientStrides = shape.keyStrides
        shape.valueGradientStrides = shape.valueStrides
        shape.betaGradientStrides = shape.betaStrides
        shape.logDecayGradientStrides = shape.logDecayStrides
        return shape
    }

    func compute<Element: StorageValue>(
        _ layout: TokenLayout, _ options: DeltaRule.Options, as type: Element.Type,
        _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay {
        let grids = grids(layout)
        let shape = strided(grids)
        let q = grids.query.spread(rows.query, as: type)
        let k = grids.key.spread(rows.key, as: type)
        let v = grids.value.spread(rows.value, as: type)
        let rates = grids.beta.spread(beta, as: Float.self)
        let g = logDecay.map { grids.logDecay.spread($0, as: Float.self) }
        var o = grids.output.empty(of: type)
        var state = emptyState
        try DeltaRule.forward(
            query: q.span, key: k.span, value: v.span, beta: rates.span, logDecay: g?.span,
            initialState: states.initialState?.span, offsets: states.offsets?.span,
            output: o.mutableSpan,
            finalState: state.mutableSpan, shape: shape, options: options, workspace: workspace)
        var tensors = ["out.o": grids.output.dense(o), "out.final_state": state]
        guard states.wantsGradients else {
            return ComputedWay(name: layout.rawValue, tensors: tensors)
        }

        let zeros = [Float](
            repeating: 0, count: shape.batch * shape.tokens * grids.output.rowCount)
        let gradient = grids.output.spread(states.outputGradient ?? zeros, as: type)
        var dq = grids.query.empty(of: type)
        var dk = grids.key.empty(of: type)
        var dv = grids.value.empty(of: type)
        var db = grids.beta.empty(of: Float.self)
        var dg = g.map { _ in grids.logDecay.empty(of: Float.self) }
        state = emptyState
        try DeltaRule.backward(
            query: q.span, key: k.span, value: v.span, beta: rates.span, logDecay: g?.span,
            initialState: states.initialState?.span, offsets: states.offsets?.span,
            outputGradient: gradient.span, finalStateGradient: states.finalStateGradient?.span,
            queryGradient: dq.mutableSpan, keyGradient: dk.mutableSpan,
            valueGradient: dv.mutableSpan, betaGradient: db.mutableSpan,
            logDecayGradient: dg?.mutableSpan, initialStateGradient: state.mutableSpan,
            shape: shape, options: options, workspace: workspace)
        tensors["grad.q"] = grids.query.dense(dq)
        tensors["grad.k"] = grids.key.dense(dk)
        tensors["grad.v"] = grids.value.dense(dv)
        tensors["grad.beta"] = grids.beta.dense(db)
        tensors["grad.log_decay"] = dg.map { grids.logDecay.dense($0) }
        tensors["grad.initial_state"] = state
        return ComputedWay(name: layout.rawValue, tensors: tensors)
    }

    func inPlace<Element: StorageValue>(
        _ options: DeltaRule.Options, as type: Element.Type, _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay? {
        let (q, k, v) = (
            rows.query.map { type.init($0) }, rows.key.map { type.init($0) },
            rows.value.map { type.init($0) }
        )
        let outputs = grids(.tokenMajor).output
        var o = outputs.empty(of: type)
        var state = states.initialState ?? emptyState.map { _ in 0 }
        var span = state.mutableSpan
        try DeltaRule.forward(
            query: q.span, key: k.span, value: v.span, beta: beta.span, logDecay: logDecay?.span,
            inPlace: &span, offsets: states.offsets?.span, output: o.mutableSpan, shape: shape,
            options: options, workspace: workspace)
        return ComputedWay(
            name: "state in place", tensors: ["out.o": outputs.dense(o), "out.final_state": state])
    }
}
