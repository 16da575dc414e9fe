import LMKernelsReference

enum DeltaDecayKind: CaseIterable {
    case none, token, key

    /// Log-decays of -1 ... -0.1 for rows of [B, T].
    func decay(
        rows: Int, _ shape: DeltaRule.Shape, _ generator: inout SeededGenerator
    ) -> DeltaRule.Decay {
        let range = -1.0 ... -0.1
        return switch self {
        case .none: .none
        case .token: .token(generator.numbers(rows * shape.heads, in: range))
        case .key: .key(generator.numbers(rows * shape.heads * shape.keyWidth, in: range))
        }
    }
}

enum DeltaUpdateKind: CaseIterable {
    case value, sigmoid, twiceSigmoid, general

    /// Betas of 0.1 ... 1.9, logits, a and b of -1 ... 1.
    func update(
        rows: Int, _ shape: DeltaRule.Shape, _ generator: inout SeededGenerator
    ) -> DeltaRule.Update {
        let betas = rows * shape.householderSteps * shape.heads
        let keys = rows * shape.keyHeads * shape.keyWidth
        return switch self {
        case .value: .delta(.value(generator.numbers(betas, in: 0.1...1.9)))
        case .sigmoid: .delta(.sigmoid(generator.numbers(betas, in: -3...3)))
        case .twiceSigmoid: .delta(.twiceSigmoid(generator.numbers(betas, in: -3...3)))
        case .general:
            .general(a: generator.numbers(keys, in: -1...1), b: generator.numbers(keys, in: -1...1))
        }
    }
}

/// Problems with K = 3 and V = 2, each option by a bit: grouped heads (4 on 2, else 2 on 2), packed
/// sequences of 3, 0 and 2 tokens (else 2 of 3), an initial state, unit length, two steps per token
/// (not in the general form).
enum DeltaRuleCase {
    static let optionCount = 5

    static func problem(
        _ update: DeltaUpdateKind, _ decay: DeltaDecayKind, options: Int
    ) -> DeltaRule.Problem {
        var generator = SeededGenerator(seed: UInt64(options))
        func option(_ bit: Int) -> Bool { options >> bit & 1 == 1 }
        let isPacked = option(1)
        let shape = DeltaRule.Shape(
            batch: isPacked ? 1 : 2, tokens: isPacked ? 5 : 3, heads: option(0) ? 4 : 2,
            keyHeads: 2, keyWidth: 3, valueWidth: 2,
            householderSteps: option(4) && update != .general ? 2 : 1)
        let rows = shape.batch * shape.tokens
        let keys = rows * shape.householderSteps * shape.keyHeads
        let states = (isPacked ? 3 : 2) * shape.heads * shape.keyWidth * shape.valueWidth
        return DeltaRule.Problem(
            shape: shape,
            query: generator.numbers(rows * shape.heads * shape.keyWidth, in: -1...1),
            key: generator.numbers(keys * shape.keyWidth, in: -1...1),
            value: generator.numbers(keys * shape.valueWidth, in: -1...1),
            update: update.update(rows: rows, shape, &generator),
            decay: decay.decay(rows: rows, shape, &generator),
            scale: option(0) ? 0.7 : nil,
            unitLengthEpsilon: option(3) ? 0.25 : nil,
            initialState: option(2) ? generator.numbers(states, in: -1...1) : nil,
            offsets: isPacked ? [0, 3, 3, 5] : nil)
    }
}

extension DeltaRule.Decay {
    /// The same kind with other log-decays.
    func with(_ logarithms: [Double]) -> Self {
        switch self {
        case .none: .none
        case .token: .token(logarithms)
        case .key: .key(logarithms)
        }
    }
}

extension DeltaRule.Beta {
    /// The same kind with other inputs.
    func with(_ inputs: [Double]) -> Self {
        switch self {
        case .value: .value(inputs)
        case .sigmoid: .sigmoid(inputs)
        case .twiceSigmoid: .twiceSigmoid(inputs)
        }
    }
}

extension DeltaRule.Update {
    /// Inputs of beta; none in the general form.
    var beta: [Double] {
        get { if case .delta(let beta) = self { beta.inputs } else { [] } }
        set { if case .delta(let beta) = self { self = .delta(beta.with(newValue)) } }
    }

    /// a, empty unless in the general form.
    var a: [Double] {
        get { if case .general(let a, _) = self { a } else { [] } }
        set { if case .general(_, let b) = self { self = .general(a: newValue, b: b) } }
    }

    /// b, empty unless in the general form.
    var b: [Double] {
        get { if case .general(_, let b) = self { b } else { [] } }
        set { if case .general(let a, _) = self { self = .general(a: a, b: newValue) } }
    }
}

extension DeltaRule.Problem {
    var rows: Int { shape.batch * shape.tokens }

    /// The rows of each sequence.
    var sequences: [Range<Int>] {
        if let offsets { return zip(offsets, offsets.dropFirst()).map { $0..<$1 } }
        return (0..<shape.batch).map { $0 * shape.tokens..<($0 + 1) * shape.tokens }
    }

    /// The rows as one sequence, with the state from that of sequence n.
    func slice(_ rows: Range<Int>, sequence n: Int) -> Self {
        func cut(_ x: [Double], _ width: Int) -> [Double] {
            Array(x[rows.lowerBound * width..<rows.upperBound * width])
        }
        let (heads, keyWidth, valueWidth) = (shape.heads, shape.keyWidth, shape.valueWidth)
        let keys = shape.householderSteps * shape.keyHeads
        var part = self
        part.shape.batch = 1
        part.shape.tokens = rows.count
        part.offsets = nil
        part.query = cut(query, heads * keyWidth)
        part.key = cut(key, keys * keyWidth)
        part.value = cut(value, keys * valueWidth)
        switch update {
        case .delta(let beta):
            part.update = .delta(beta.with(cut(beta.inputs, shape.householderSteps * heads)))
        case .general(let a, let b):
            part.update = .general(a: cut(a, keys * keyWidth), b: cut(b, keys * keyWidth))
        }
        switch decay {
        case .none: break
        case .token(let g): part.decay = .token(cut(g, heads))
        case .key(let g): part.decay = .key(cut(g, heads * keyWidth))
        }
        let states = heads * keyWidth * valueWidth
        part.initialState = initialState.map { Array($0[n * states..<(n + 1) * states]) }
        return part
    }
}
