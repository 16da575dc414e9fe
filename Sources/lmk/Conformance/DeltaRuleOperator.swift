import LMKernels

typealias DeltaRule = LMKernels.DeltaRule

/// q [B, T, H, K], k [B, T * R, G, K], v [B, T * R, G, V], beta [B, T * R, H], and maybe log_decay,
/// initial_state [N, H, K, V] and cu_seqlens [N + 1]; o [B, T, H, V], and maybe final_state
/// [N, H, K, V].
struct DeltaRuleOperator: ConformanceOperator {
    static let names = ["delta_rule"]

    private let shape: DeltaRule.Shape
    private let sequences: Int
    private var options = DeltaRule.Options()
    private let rows: TokenRows
    private let beta: [Float]
    private let logDecay: [Float]?
    private let initialState: [Float]?
    private let offsets: [Int]?
    private let outputGradient: [Float]?
    private let finalStateGradient: [Float]?
    private let wantsGradients: Bool

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
        for name in ["q", "k", "v", "beta", "log_decay", "initial_state"] {
            try reader.expectGradient(of: name)
        }
        if hasFinalState || initialState != nil {
            try reader.checkStates(sequences: sequences, isPacked: offsets != nil)
        }
        try reader.finish()
        try checkOffsets(offsets, batch: shape.batch, tokens: shape.tokens)
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
        ways.append(try inPlace(usual, as: type, workspace))
        if wantsGradients {
            var tight = usual
            tight.memoryBudget = 1
            var way = try compute(.tokenMajor, tight, as: type, workspace)
            way.name = "least memory"
            ways.append(way)
        }
        return ways
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

    private func compute<Element: StorageValue>(
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
            initialState: initialState?.span, offsets: offsets?.span, output: o.mutableSpan,
            finalState: state.mutableSpan, shape: shape, options: options, workspace: workspace)
        var tensors = ["out.o": grids.output.dense(o), "out.final_state": state]
        guard wantsGradients else { return ComputedWay(name: layout.rawValue, tensors: tensors) }

        let zeros = [Float](
            repeating: 0, count: shape.batch * shape.tokens * grids.output.rowCount)
        let gradient = grids.output.spread(outputGradient ?? zeros, as: type)
        var dq = grids.query.empty(of: type)
        var dk = grids.key.empty(of: type)
        var dv = grids.value.empty(of: type)
        var db = grids.beta.empty(of: Float.self)
        var dg = g.map { _ in grids.logDecay.empty(of: Float.self) }
        state = emptyState
        try DeltaRule.backward(
            query: q.span, key: k.span, value: v.span, beta: rates.span, logDecay: g?.span,
            initialState: initialState?.span, offsets: offsets?.span,
            outputGradient: gradient.span, finalStateGradient: finalStateGradient?.span,
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

    private var emptyState: [Float] {
        let width = shape.heads * shape.keyWidth * shape.valueWidth
        return Array(repeating: Grid.filler, count: sequences * width)
    }

    private func inPlace<Element: StorageValue>(
        _ options: DeltaRule.Options, as type: Element.Type, _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay {
        let (q, k, v) = (
            rows.query.map { type.init($0) }, rows.key.map { type.init($0) },
            rows.value.map { type.init($0) }
        )
        let outputs = grids(.tokenMajor).output
        var o = outputs.empty(of: type)
        var state = initialState ?? emptyState.map { _ in 0 }
        var span = state.mutableSpan
        try DeltaRule.forward(
            query: q.span, key: k.span, value: v.span, beta: beta.span, logDecay: logDecay?.span,
            inPlace: &span, offsets: offsets?.span, output: o.mutableSpan, shape: shape,
            options: options, workspace: workspace)
        return ComputedWay(
            name: "state in place", tensors: ["out.o": outputs.dense(o), "out.final_state": state])
    }
}
