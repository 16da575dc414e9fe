import LMKernels
import LMKernelsReference

typealias ReferenceDeltaRule = LMKernelsReference.DeltaRule

/// The delta rule with its gradients: decays, rates, steps, the generalised form, random layouts. No
/// step makes a state grow: beta |k|^2 is at most 2.
struct DeltaRuleCase: FuzzCase {
    static let operation = "delta-rule"

    var storage: StorageType
    var decay: DeltaRule.Decay
    var decays: LogDecays
    var rates: DeltaRule.Rates
    var keys: Keys
    var isGeneralized: Bool
    var batch: Int
    var tokens: Int
    var steps: Int
    var heads: Int
    var keyHeads: Int
    var keyWidth: Int
    var valueWidth: Int
    var scale: Float?
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
    /// nil in the generalised form.
    var beta: [Float]?
    /// Rounded to the storage type, as is b; nil but in the generalised form.
    var a: [Float]?
    var b: [Float]?
    var logDecay: [Float]?
    var initialState: [Float]?
    /// Rounded to the storage type.
    var outputGradient: [Float] = []
    var finalStateGradient: [Float]?

    /// What keys are like, before they are brought to a length.
    enum Keys: CaseIterable {
        case even
        /// Near one another, so that a chunk's system is far from the identity.
        case collinear
        /// Unit vectors along the axes.
        case axes
        /// Of different lengths, up to 1.
        case short
    }

    /// Where tensors lie.
    struct Grids {
        var query, key, value, beta, a, b, logDecay, output: TokenGrid
        var outputGradient, queryGradient, keyGradient, valueGradient: TokenGrid
        var betaGradient, aGradient, bGradient, logDecayGradient: TokenGrid
    }

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .float32, .bfloat16, .float16])
        decay = random.pick(DeltaRule.Decay.allCases)
        decays = random.pick(LogDecays.allCases)
        rates = random.pick(DeltaRule.Rates.allCases)
        keys = random.pick(Keys.allCases)
        isGeneralized = random.once(in: 6)
        steps = isGeneralized ? 1 : random.pick([1, 1, 2, 3, 4])
        keyHeads = random.pick([1, 1, 2, 3])
        heads = keyHeads * random.pick([1, 1, 2, 3])
        let limit = random.once(in: 16) ? 512 : random.once(in: 4) ? 140 : 70
        keyWidth = random.length(upTo: limit, orZero: false)
        valueWidth = random.length(upTo: limit, orZero: false)
        tokens = random.length(upTo: random.once(in: 4) ? 150 : 40)
        batch = random.pick([1, 1, 2, 3])
        let isPacked = random.once(in: 3)
        if isPacked { batch = 1 }
        let most = random.once(in: 8) ? 1_000_000 : 200_000
        while batch * tokens * steps * heads * keyWidth * valueWidth > most {
            if keyWidth * valueWidth > 64 * tokens {
                keyWidth = (keyWidth + 1) / 2
                valueWidth = (valueWidth + 1) / 2
            } else {
                tokens /= 2
            }
        }
        scale = random.pick([nil, nil, 1, 0.3, -2])
        if random.once(in: 3) { epsilon = random.pick([0, 1e-6, 0.01]) }
        if isPacked { offsets = random.offsets(tokens: tokens) }
        if random.once(in: 3) { stateStride = random.integer(1...20) }
        if random.once(in: 2) { memoryBudget = random.pick([1, 4096, 1 << 20]) }
        threads = random.threads()
        grids = Grids(
            batch: batch, tokens: tokens, steps: steps, heads: heads, keyHeads: keyHeads,
            keyWidth: keyWidth, valueWidth: valueWidth, decay: decay, using: &random)
        draw(&random)
    }

    var sequences: Int { offsets.map { $0.count - 1 } ?? batch }

    /// The longest sequence, in steps.
    var length: Int {
        let tokens = offsets.map { zip($0, $0.dropFirst()).map { $1 - $0 }.max() ?? 0 } ?? tokens
        return tokens * steps
    }

    /// Elements of all states.
    var stateCount: Int { sequences * heads * keyWidth * valueWidth }

    var shape: DeltaRule.Shape {
        var shape = DeltaRule.Shape(
            batch: batch, tokens: tokens, steps: steps, heads: heads, keyHeads: keyHeads,
            keyWidth: keyWidth, valueWidth: valueWidth)
        shape.queryStrides = grids.query.strides
        shape.keyStrides = grids.key.strides
        shape.valueStrides = grids.value.strides
        shape.betaStrides = grids.beta.strides
        shape.aStrides = grids.a.strides
        shape.bStrides = grids.b.strides
        shape.logDecayStrides = grids.logDecay.strides
        shape.outputStrides = grids.output.strides
        shape.outputGradientStrides = grids.outputGradient.strides
        shape.queryGradientStrides = grids.queryGradient.strides
        shape.keyGradientStrides = grids.keyGradient.strides
        shape.valueGradientStrides = grids.valueGradient.strides
        shape.betaGradientStrides = grids.betaGradient.strides
        shape.aGradientStrides = grids.aGradient.strides
        shape.bGradientStrides = grids.bGradient.strides
        shape.logDecayGradientStrides = grids.logDecayGradient.strides
        return shape
    }

    func options(_ form: DeltaRule.Form, threads: Int) -> DeltaRule.Options {
        .init(
            form: form, decay: decay, rates: rates, scale: scale, unitLengthEpsilon: epsilon,
            stateStride: stateStride ?? 1, memoryBudget: memoryBudget, threads: threads)
    }

    var description: String {
        "\(storage) \(isGeneralized ? "generalised" : "\(rates)") keys \(keys)"
            + " decay \(decay)\(decay == .none ? "" : " \(decays)")"
            + " batch \(batch) tokens \(tokens) steps \(steps) heads \(heads)/\(keyHeads)"
            + " widths \(keyWidth)x\(valueWidth) threads \(threads)"
            + (scale.map { " scale \($0)" } ?? "") + (epsilon.map { " unit length \($0)" } ?? "")
            + (initialState == nil ? "" : " state")
            + (finalStateGradient == nil ? "" : " state gradient")
            + (offsets.map { " offsets \($0)" } ?? "")
            + (stateStride.map { " states at \($0)" } ?? "")
            + (memoryBudget.map { " budget \($0)" } ?? "")
    }
}

// MARK: - Values

extension DeltaRuleCase {
    private mutating func draw(_ random: inout SplitMix64) {
        let rows = batch * tokens
        let storage = storage
        func floats(_ count: Int, size: Float = 1) -> [Float] {
            (0..<count).map { _ in random.unit() * size }
        }
        func numbers(_ count: Int, size: Float = 1) -> [Float] {
            floats(count, size: size).map { storage.rounded($0) }
        }
        let size = random.once(in: 3) ? random.power(storage == .float16 ? -4...4 : -20...20) : 1
        query = numbers(rows * heads * keyWidth)
        value = numbers(rows * steps * keyHeads * valueWidth, size: size)
        outputGradient = numbers(rows * heads * valueWidth)
        if random.once(in: 2) { initialState = floats(stateCount, size: 4 * size) }
        if random.once(in: 2) { finalStateGradient = floats(stateCount) }
        switch decay {
        case .none: break
        case .token: logDecay = decays.draw(rows * heads, using: &random)
        case .key: logDecay = decays.draw(rows * heads * keyWidth, using: &random)
        }
        if isGeneralized {
            key = numbers(rows * keyHeads * keyWidth)
            drawGeneralized(&random)
        } else {
            // Their length is of no account where they are brought to that of 1.
            let length = epsilon == nil ? 1 : random.power(-3...3)
            key = drawKeys(rows * steps, length: length, &random)
            drawRates(&random)
        }
    }

    /// Just below unit length, so that rounding does not take them above it.
    private func drawKeys(
        _ rows: Int, length: Float, _ random: inout SplitMix64
    ) -> [Float] {
        let most = 1 - 2 * Float(storage.unit)
        let common = (0..<keyHeads * keyWidth).map { _ in random.unit() }
        var result: [Float] = []
        result.reserveCapacity(rows * keyHeads * keyWidth)
        for _ in 0..<rows {
            for head in 0..<keyHeads {
                var row = (0..<keyWidth).map { _ in random.unit() }
                switch keys {
                case .even, .short: break
                case .collinear:
                    for i in row.indices {
                        row[i] = common[head * keyWidth + i] + row[i] * 0.03
                    }
                case .axes:
                    let axis = random.below(keyWidth)
                    row = row.indices.map { $0 == axis ? 1 : 0 }
                }
                let share = keys == .short ? random.number(0.1...1) : 1
                let norm = row.reduce(0) { $0 + $1 * $1 }.squareRoot()
                let factor = keys == .axes ? length : most * share * length / max(norm, 0x1p-20)
                result += row.map { storage.rounded($0 * factor) }
            }
        }
        return result
    }

    private mutating func drawRates(_ random: inout SplitMix64) {
        let most: Float = random.pick([1, 2, 2])
        let isExact = random.once(in: 4)
        beta = (0..<batch * tokens * steps * heads).map { _ in
            switch rates {
            case .rate: isExact ? random.pick([0, 1, most]) : random.number(0...most)
            case .sigmoid, .twiceSigmoid:
                isExact ? random.pick([-30, 0, 4, 30]) : random.number(-4...4)
            }
        }
    }

    /// D - beta n n^T has no eigenvalue outside [-1, 1] for beta in [0, 1].
    private mutating func drawGeneralized(_ random: inout SplitMix64) {
        let n = drawKeys(batch * tokens, length: 1, &random)
        a = n
        b = n
        for row in 0..<n.count / keyWidth {
            let rate = random.number(0...1)
            for i in row * keyWidth..<(row + 1) * keyWidth { b![i] = storage.rounded(-rate * n[i]) }
        }
    }
}

extension DeltaRuleCase.Grids {
    fileprivate init(
        batch: Int, tokens: Int, steps: Int, heads: Int, keyHeads: Int, keyWidth: Int,
        valueWidth: Int, decay: DeltaRule.Decay, using random: inout SplitMix64
    ) {
        func grid(_ tokens: Int, _ heads: Int, _ width: Int) -> TokenGrid {
            TokenGrid(
                batch: batch, tokens: tokens, heads: heads, width: width, gapsFrom: &random)
        }
        let rows = tokens * steps
        query = grid(tokens, heads, keyWidth)
        key = grid(rows, keyHeads, keyWidth)
        value = grid(rows, keyHeads, valueWidth)
        beta = grid(rows, heads, 1)
        a = grid(tokens, keyHeads, keyWidth)
        b = grid(tokens, keyHeads, keyWidth)
        output = grid(tokens, heads, valueWidth)
        outputGradient = grid(tokens, heads, valueWidth)
        queryGradient = grid(tokens, heads, keyWidth)
        keyGradient = grid(rows, keyHeads, keyWidth)
        valueGradient = grid(rows, keyHeads, valueWidth)
        betaGradient = grid(rows, heads, 1)
        aGradient = grid(tokens, keyHeads, keyWidth)
        bGradient = grid(tokens, keyHeads, keyWidth)
        let width = decay == .key ? keyWidth : 1
        logDecay = grid(tokens, heads, width)
        logDecayGradient = grid(tokens, heads, width)
    }
}
