import LMKernels
import LMKernelsReference

typealias ReferenceLinearAttention = LMKernelsReference.LinearAttention

/// Linear attention with its gradients: every decay, option and form, random layouts.
struct LinearAttentionCase: FuzzCase {
    static let operation = "linear-attention"

    var storage: StorageType
    var form: LinearAttention.Form
    var decay: LinearAttention.Decay
    var decays: LogDecays
    var batch: Int
    var tokens: Int
    var heads: Int
    var keyHeads: Int
    var keyWidth: Int
    var valueWidth: Int
    var scale: Float?
    var isNormalized: Bool
    var isBidirectional: Bool
    var epsilon: Float?
    var offsets: [Int]?
    var stateStride: Int?
    var memoryBudget: Int?
    var threads: Int
    var grids: Grids

    /// Rounded to the storage type, as are the next two.
    var query: [Float] = []
    var key: [Float] = []
    var value: [Float] = []
    var logDecay: [Float]?
    var bonus: [Float]?
    var initialState: [Float]?
    var initialNormalizer: [Float]?
    /// Rounded to the storage type.
    var outputGradient: [Float] = []
    var finalStateGradient: [Float]?
    var finalNormalizerGradient: [Float]?

    /// Where tensors lie.
    struct Grids {
        var query, key, value, logDecay, output: TokenGrid
        var outputGradient, queryGradient, keyGradient, valueGradient, logDecayGradient: TokenGrid
    }

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .float32, .bfloat16, .float16])
        form = random.pick(LinearAttention.Form.allCases)
        isBidirectional = random.once(in: 8)
        decay = isBidirectional ? .none : random.pick(LinearAttention.Decay.allCases)
        decays = random.pick(LogDecays.allCases)
        isNormalized = random.once(in: 4)
        keyHeads = random.pick([1, 1, 2, 3])
        heads = keyHeads * random.pick([1, 1, 2, 3])
        let isWide = random.once(in: 16)
        keyWidth = random.length(upTo: isWide ? 512 : 200, orZero: false)
        valueWidth = random.length(upTo: isWide ? 512 : 200, orZero: false)
        tokens = random.length(upTo: random.once(in: 4) ? 40 : 200)
        batch = random.pick([1, 1, 2, 3])
        let isPacked = random.once(in: 3)
        if isPacked { batch = 1 }
        let limit = random.once(in: 8) ? 2_000_000 : 400_000
        while batch * tokens * heads * keyWidth * valueWidth > limit {
            if keyWidth * valueWidth > 64 * tokens {
                keyWidth = (keyWidth + 1) / 2
                valueWidth = (valueWidth + 1) / 2
            } else {
                tokens /= 2
            }
        }
        scale = random.pick([nil, nil, 1, 0.3, -2])
        if random.once(in: 4) { epsilon = random.pick([0, 1e-6, 0.01]) }
        if isPacked { offsets = random.offsets(tokens: tokens) }
        if !isBidirectional, random.once(in: 3) { stateStride = random.integer(1...40) }
        if random.once(in: 2) { memoryBudget = random.pick([1, 4096, 1 << 20]) }
        threads = random.threads()
        grids = Grids(
            batch: batch, tokens: tokens, heads: heads, keyHeads: keyHeads, keyWidth: keyWidth,
            valueWidth: valueWidth, decay: decay, using: &random)
        draw(&random)
    }

    /// Whether amx computes forward on tiles of bfloat16, if the sequences are long enough.
    var fitsTiles: Bool {
        storage == .bfloat16 && decay != .key && bonus == nil && !isNormalized && !isBidirectional
            && form != .recurrent
    }

    var sequences: Int { offsets.map { $0.count - 1 } ?? batch }

    /// The longest sequence.
    var length: Int {
        offsets.map { zip($0, $0.dropFirst()).map { $1 - $0 }.max() ?? 0 } ?? tokens
    }

    var shape: LinearAttention.Shape {
        var shape = LinearAttention.Shape(
            batch: batch, tokens: tokens, heads: heads, keyHeads: keyHeads, keyWidth: keyWidth,
            valueWidth: valueWidth)
        shape.queryStrides = grids.query.strides
        shape.keyStrides = grids.key.strides
        shape.valueStrides = grids.value.strides
        shape.logDecayStrides = grids.logDecay.strides
        shape.outputStrides = grids.output.strides
        shape.outputGradientStrides = grids.outputGradient.strides
        shape.queryGradientStrides = grids.queryGradient.strides
        shape.keyGradientStrides = grids.keyGradient.strides
        shape.valueGradientStrides = grids.valueGradient.strides
        shape.logDecayGradientStrides = grids.logDecayGradient.strides
        return shape
    }

    func options(threads: Int) -> LinearAttention.Options {
        .init(
            form: form, decay: decay, scale: scale, isNormalized: isNormalized,
            isBidirectional: isBidirectional, unitLengthEpsilon: epsilon,
            stateStride: stateStride ?? 1, memoryBudget: memoryBudget, threads: threads)
    }

    var description: String {
        "\(storage) \(form) \(isBidirectional ? "bidirectional" : "decay \(decay) \(decays)")"
            + " batch \(batch) tokens \(tokens) heads \(heads)/\(keyHeads)"
            + " widths \(keyWidth)x\(valueWidth) threads \(threads)"
            + (isNormalized ? " normalized" : "") + (scale.map { " scale \($0)" } ?? "")
            + (epsilon.map { " unit length \($0)" } ?? "") + (bonus == nil ? "" : " bonus")
            + (initialState == nil ? "" : " state")
            + (initialNormalizer == nil ? "" : " normalizer")
            + (finalStateGradient == nil ? "" : " state gradient")
            + (offsets.map { " offsets \($0)" } ?? "")
            + (stateStride.map { " states at \($0)" } ?? "")
            + (memoryBudget.map { " budget \($0)" } ?? "")
    }
}

// MARK: - Values

extension LinearAttentionCase {
    private mutating func draw(_ random: inout SplitMix64) {
        let rows = batch * tokens
        let storage = storage
        // Divisors of a normaliser are sums of positive numbers.
        let isPositive = isNormalized
        func numbers(_ count: Int, size: Float = 1, isPositive: Bool = false) -> [Float] {
            (0..<count).map { _ in
                let x = random.unit()
                return storage.rounded((isPositive ? x.magnitude + 0.125 : x) * size)
            }
        }
        let size = random.once(in: 3) ? random.power(storage == .float16 ? -4...4 : -20...20) : 1
        query = numbers(rows * heads * keyWidth, isPositive: isPositive)
        key = numbers(rows * keyHeads * keyWidth, isPositive: isPositive)
        value = numbers(rows * keyHeads * valueWidth, size: size)
        outputGradient = numbers(rows * heads * valueWidth)
        drawDecays(&random)
        let states = sequences * heads * keyWidth
        func floats(_ count: Int, size: Float = 1, isPositive: Bool = false) -> [Float] {
            (0..<count).map { _ in
                let x = random.unit()
                return (isPositive ? x.magnitude + 0.125 : x) * size
            }
        }
        if !isBidirectional {
            if random.once(in: 4) { bonus = floats(heads * keyWidth, isPositive: isPositive) }
            if random.once(in: 2) { initialState = floats(states * valueWidth, size: 4 * size) }
            if random.once(in: 2) { finalStateGradient = floats(states * valueWidth) }
            if isNormalized {
                if random.once(in: 2) { initialNormalizer = floats(states, isPositive: true) }
                if random.once(in: 2) { finalNormalizerGradient = floats(states) }
            }
        }
        // A bonus does not leave masked tokens alone, nor does a length of 0.
        if random.once(in: 4), bonus == nil, !isNormalized, (epsilon ?? 1) > 0 { mask(&random) }
    }

    private mutating func drawDecays(_ random: inout SplitMix64) {
        let count: Int
        switch decay {
        case .none: return
        case .head: count = heads
        case .token: count = batch * tokens * heads
        case .key: count = batch * tokens * heads * keyWidth
        }
        logDecay = decays.draw(count, using: &random)
    }

    /// Tokens without a key, whose decay is 1 where it is a token's.
    private mutating func mask(_ random: inout SplitMix64) {
        for row in 0..<batch * tokens where random.once(in: 4) {
            for i in 0..<keyHeads * keyWidth { key[row * keyHeads * keyWidth + i] = 0 }
            let width = decay == .token ? heads : decay == .key ? heads * keyWidth : 0
            for i in 0..<width { logDecay?[row * width + i] = 0 }
        }
    }
}

extension LinearAttentionCase.Grids {
    fileprivate init(
        batch: Int, tokens: Int, heads: Int, keyHeads: Int, keyWidth: Int, valueWidth: Int,
        decay: LinearAttention.Decay, using random: inout SplitMix64
    ) {
        func grid(_ heads: Int, _ width: Int) -> TokenGrid {
            TokenGrid(
                batch: batch, tokens: tokens, heads: heads, width: width, gapsFrom: &random)
        }
        query = grid(heads, keyWidth)
        key = grid(keyHeads, keyWidth)
        value = grid(keyHeads, valueWidth)
        output = grid(heads, valueWidth)
        outputGradient = grid(heads, valueWidth)
        queryGradient = grid(heads, keyWidth)
        keyGradient = grid(keyHeads, keyWidth)
        valueGradient = grid(keyHeads, valueWidth)
        // A head's decays have no gaps.
        let isDense = decay == .head || decay == .none
        let width = decay == .key ? keyWidth : 1
        let dense = TokenGrid(batch: 1, tokens: 1, heads: heads, width: 1)
        logDecay = isDense ? dense : grid(heads, width)
        logDecayGradient = isDense ? dense : grid(heads, width)
    }
}
