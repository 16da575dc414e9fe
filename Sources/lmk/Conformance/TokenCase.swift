import LMKernels

// What cases of operators with a state for each sequence and head have alike.

/// q [B, T, H, K], k and v [B, T, G, .], or [B, T * R, G, .], all of one type.
struct TokenRows {
    let storage: CaseReader.DType
    let query: [Float]
    let key: [Float]
    let value: [Float]

    /// - Parameter keyTokens: The letters of rows of keys and values.
    init(_ reader: inout CaseReader, keyTokens: String) throws(ConformanceError) {
        let q = try reader.tensor("in.q", ["B", "T", "H", "K"], CaseReader.storageTypes)
        let k = try reader.tensor("in.k", ["B", keyTokens, "G", "K"], CaseReader.storageTypes)
        let v = try reader.tensor("in.v", ["B", keyTokens, "G", "V"], CaseReader.storageTypes)
        for (name, tensor) in [("in.k", k), ("in.v", v)] where tensor.dtype != q.dtype {
            throw .inconsistent(
                "in.q is \(q.dtype.rawValue), but \(name) is \(tensor.dtype.rawValue)")
        }
        for letter in ["H", "G", "K", "V"] where reader.length(letter) == 0 {
            throw .inconsistent("\(letter) is 0")
        }
        let (heads, keyHeads) = (reader.length("H"), reader.length("G"))
        guard heads % keyHeads == 0 else {
            throw .inconsistent("G is \(keyHeads), no divisor of H, \(heads)")
        }
        storage = q.dtype
        query = try read(q.floats)
        key = try read(k.floats)
        value = try read(v.floats)
    }
}

/// What such cases have beside q, k and v and their rates and decays: states [N, H, K, V] before and
/// after, offsets [N + 1] of packed sequences, and what gradients begin with.
struct TokenStates {
    let offsets: [Int]?
    let sequences: Int
    let initialState: [Float]?
    let outputGradient: [Float]?
    let finalStateGradient: [Float]?
    let wantsGradients: Bool
    /// Whether a state is given or expected.
    let arePresent: Bool

    /// - Parameter names: Inputs whose gradients may be expected.
    init(
        _ reader: inout CaseReader, _ storage: CaseReader.DType, gradientsOf names: [String]
    ) throws(ConformanceError) {
        let shape = ["N", "H", "K", "V"]
        offsets = try reader.integersIfPresent("in.cu_seqlens", ["N + 1"])
        sequences = offsets.map { $0.count - 1 } ?? reader.length("B")
        initialState = try reader.floatsIfPresent("in.initial_state", shape)

        try reader.expect("out.o", ["B", "T", "H", "V"])
        let hasFinalState = try reader.expect("out.final_state", shape, isRequired: false)
        let cotangent = try reader.tensorIfPresent(
            "cotangent.o", ["B", "T", "H", "V"], [storage])
        outputGradient = try cotangent.map { tensor throws(ConformanceError) in
            try read(tensor.floats)
        }
        finalStateGradient = try reader.floatsIfPresent("cotangent.final_state", shape)
        wantsGradients = reader.wantsGradients
        for name in names { try reader.expectGradient(of: name) }
        arePresent = hasFinalState || initialState != nil
        if arePresent {
            try reader.checkStates(sequences: sequences, isPacked: offsets != nil)
        }
    }
}

/// An operation whose sequences have states: every layout of its tensors, the state in place, and
/// gradients with as little memory as there can be.
protocol TokenOperator: ConformanceOperator {
    associatedtype Options

    var rows: TokenRows { get }
    var states: TokenStates { get }
    /// Of one sequence, all heads.
    var stateCount: Int { get }

    func options(_ settings: CheckSettings) -> Options
    func compute<Element: StorageValue>(
        _ layout: TokenLayout, _ options: Options, as type: Element.Type, _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay
    /// Nil where there is no state.
    func inPlace<Element: StorageValue>(
        _ options: Options, as type: Element.Type, _ workspace: Workspace
    ) throws(KernelError) -> ComputedWay?
    func withLeastMemory(_ options: Options) -> Options
}

extension TokenOperator {
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
        let usual = options(settings)
        let workspace = Workspace()
        var ways: [ComputedWay] = []
        for layout in TokenLayout.allCases {
            ways.append(try compute(layout, usual, as: type, workspace))
        }
        if let way = try inPlace(usual, as: type, workspace) { ways.append(way) }
        if states.wantsGradients {
            let tight = withLeastMemory(usual)
            var way = try compute(.tokenMajor, tight, as: type, workspace)
            way.name = "least memory"
            ways.append(way)
        }
        return ways
    }

    var emptyState: [Float] {
        Array(repeating: Grid.filler, count: states.sequences * stateCount)
    }
}

extension CaseReader {
    /// Log-decays, which have to be there.
    mutating func logDecay(_ shape: [String]) throws(ConformanceError) -> [Float] {
        guard let values = try floatsIfPresent("in.log_decay", shape) else {
            throw .inconsistent("in.log_decay is missing")
        }
        for (i, value) in values.enumerated() where value > 0 {
            throw .inconsistent("in.log_decay[\(i)] is \(value), allowed is at most 0")
        }
        return values
    }

    /// N is what the batch or the offsets say.
    func checkStates(sequences: Int, isPacked: Bool) throws(ConformanceError) {
        guard length("N") == sequences else {
            let source = isPacked ? "the number of packed sequences" : "B"
            throw .inconsistent("N is \(length("N")), but \(source) is \(sequences)")
        }
    }
}

/// What shapes do not say of packed sequences.
func checkOffsets(_ offsets: [Int]?, batch: Int, tokens: Int) throws(ConformanceError) {
    guard let offsets else { return }
    guard batch == 1 else { throw .inconsistent("in.cu_seqlens with a B of \(batch)") }
    guard offsets.first == 0, offsets.last == tokens else {
        throw .inconsistent("in.cu_seqlens does not go from 0 to \(tokens)")
    }
    for n in offsets.indices.dropFirst() where offsets[n] < offsets[n - 1] {
        throw .inconsistent("in.cu_seqlens[\(n)] is \(offsets[n]), less than the one before")
    }
}

/// Sizes and types that are well formed, but not in the library.
func checkSupport(
    _ operation: String, widths: [Int], limit: Int, _ storage: CaseReader.DType
) throws(ConformanceError) {
    guard widths.allSatisfy({ $0 <= limit }) else {
        throw .unsupported("K or V above \(limit) is not in the library")
    }
    #if os(macOS) && arch(x86_64)
        guard storage != .float16 else {
            throw .unsupported("\(operation) of F16 is not in the library here")
        }
    #endif
}

/// How tensors of tokens lie in memory.
enum TokenLayout: String, CaseIterable {
    case tokenMajor = "token-major"
    case headMajor = "head-major"
    case apart = "rows apart"

    func grid(batch: Int, tokens: Int, heads: Int, width: Int) -> TokenGrid {
        var grid = TokenGrid(batch: batch, tokens: tokens, heads: heads, width: width)
        grid.isHeadMajor = self == .headMajor
        grid.gap = self == .apart ? 3 : 0
        return grid
    }
}
