import LMKernels

typealias LinearAttention = LMKernels.LinearAttention

/// q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], and maybe log_decay, initial_state
/// [N, H, K, V] and cu_seqlens [N + 1]; o [B, T, H, V], and maybe final_state [N, H, K, V].
struct LinearAttentionOperator: ConformanceOperator {
    static let names = ["linear_attention"]

    private let shape: LinearAttention.Shape
    private let sequences: Int
    private var options = LinearAttention.Options()
    private let storage: CaseReader.DType
    private let query: [Float]
    private let key: [Float]
    private let value: [Float]
    private let logDecay: [Float]?
    private let initialState: [Float]?
    private let offsets: [Int]?
    private let outputGradient: [Float]?
    private let finalStateGradient: [Float]?
    private let wantsGradients: Bool

    init(_ reader: inout CaseReader) throws(ConformanceError) {
        let q = try reader.tensor("in.q", ["B", "T", "H", "K"], CaseReader.storageTypes)
        storage = q.dtype
        let k = try reader.tensor("in.k", ["B", "T", "G", "K"], CaseReader.storageTypes)
        let v = try reader.tensor("in.v", ["B", "T", "G", "V"], CaseReader.storageTypes)
        for (name, tensor) in [("in.k", k), ("in.v", v)] where tensor.dtype != q.dtype {
            throw .inconsistent(
                "in.q is \(q.dtype.rawValue), but \(name) is \(tensor.dtype.rawValue)")
        }
        shape = try Self.shape(reader)
        query = try read(q.floats)
        key = try read(k.floats)
        value = try read(v.floats)

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
            "cotangent.o", ["B", "T", "H", "V"], [storage])
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
        if hasStates, reader.length("N") != sequences {
            let source = offsets == nil ? "B" : "the number of packed sequences"
            throw .inconsistent("N is \(reader.length("N")), but \(source) is \(sequences)")
        }
        if hasStates, options.isBidirectional {
            throw .inconsistent("states of the bidirectional form")
        }
        try reader.finish()
        try check()
    }

    private static func shape(
        _ reader: CaseReader
    ) throws(ConformanceError) -> LinearAttention.Shape {
        let shape = LinearAttention.Shape(
            batch: reader.length("B"), tokens: reader.length("T"), heads: reader.length("H"),
            keyHeads: reader.length("G"), keyWidth: reader.length("K"),
            valueWidth: reader.length("V"))
        for letter in ["H", "G", "K", "V"] where reader.length(letter) == 0 {
            throw .inconsistent("\(letter) is 0")
        }
        guard shape.heads % shape.keyHeads == 0 else {
            throw .inconsistent("G is \(shape.keyHeads), no divisor of H, \(shape.heads)")
        }
        return shape
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
        let letters: [String]
        switch decay {
        case .none: return nil
        case .head: letters = ["H"]
        case .token: letters = ["B", "T", "H"]
        case .key: letters = ["B", "T", "H", "K"]
        }
        guard let values = try reader.floatsIfPresent("in.log_decay", letters) else {
            throw .inconsistent("in.log_decay is missing")
        }
        for (i, value) in values.enumerated() where value > 0 {
            throw .inconsistent("in.log_decay[\(i)] is \(value), allowed is at most 0")
        }
        return values
    }

    /// What shapes do not say.
    private func check() throws(ConformanceError) {
        if let offsets {
            guard shape.batch == 1 else {
                throw .inconsistent("in.cu_seqlens with a B of \(shape.batch)")
            }
            guard offsets.first == 0, offsets.last == shape.tokens else {
                throw .inconsistent("in.cu_seqlens does not go from 0 to \(shape.tokens)")
            }
            for n in offsets.indices.dropFirst() where offsets[n] < offsets[n - 1] {
                throw .inconsistent(
                    "in.cu_seqlens[\(n)] is \(offsets[n]), less than the one before")
            }
        }
        if options.isBidirectional, options.decay != .none {
            throw .inconsistent("a decay of the bidirectional form")
        }
        let limit = LinearAttention.maximumWidth
        guard shape.keyWidth <= limit, shape.valueWidth <= limit else {
            throw .unsupported("K or V above \(limit) is not in the library")
        }
        #if os(macOS) && arch(x86_64)
            guard storage != .float16 else {
                throw .unsupported("linear_attention of F16 is not in the library here")
            }
        #endif
    }
}

// MARK: - Ways to compute it

extension LinearAttentionOperator {
    func compute(_ settings: CheckSettings) throws(KernelError) -> [ComputedWay] {
        switch storage {
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
        for layout in Layout.allCases {
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

    /// How tensors lie in memory.
    private enum Layout: String, CaseIterable {
        case tokenMajor = "token-major"
        case headMajor = "head-major"
        case apart = "rows apart"

        func grid(_ shape: LinearAttention.Shape, heads: Int, width: Int) -> TokenGrid {
            var grid = TokenGrid(
                batch: shape.batch, tokens: shape.tokens, heads: heads, width: width)
            grid.isHeadMajor = self == .headMajor
            grid.gap = self == .apart ? 3 : 0
            return grid
        }
    }

    /// Of a tensor's elements; NaN, so that one that is not written shows.
    private func empty<Element: StorageValue>(_ grid: TokenGrid, of type: Element.Type) -> [Element]
    {
        Array(repeating: Element(Grid.filler), count: grid.count)
    }

    private func compute<Element: StorageValue>(
        _ layout: Layout, _ options: LinearAttention.Options, as type: Element.Type,
        _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay {
        let queries = layout.grid(shape, heads: shape.heads, width: shape.keyWidth)
        let keys = layout.grid(shape, heads: shape.keyHeads, width: shape.keyWidth)
        let values = layout.grid(shape, heads: shape.keyHeads, width: shape.valueWidth)
        let outputs = layout.grid(shape, heads: shape.heads, width: shape.valueWidth)
        var shape = shape
        (shape.queryStrides, shape.queryGradientStrides) = (queries.strides, queries.strides)
        (shape.keyStrides, shape.keyGradientStrides) = (keys.strides, keys.strides)
        (shape.valueStrides, shape.valueGradientStrides) = (values.strides, values.strides)
        (shape.outputStrides, shape.outputGradientStrides) = (outputs.strides, outputs.strides)
        let q = queries.spread(query, as: type)
        let k = keys.spread(key, as: type)
        let v = values.spread(value, as: type)
        var o = empty(outputs, of: type)
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
        var dq = empty(queries, of: type)
        var dk = empty(keys, of: type)
        var dv = empty(values, of: type)
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
            query.map { type.init($0) }, key.map { type.init($0) },
            value.map { type.init($0) }
        )
        let outputs = Layout.tokenMajor.grid(shape, heads: shape.heads, width: shape.valueWidth)
        var o = empty(outputs, of: type)
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
