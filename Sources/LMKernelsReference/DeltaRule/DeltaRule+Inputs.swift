#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

extension DeltaRule.Beta {
    /// beta.
    var values: [Double] {
        switch self {
        case .value(let x): x
        case .sigmoid(let x): x.map(Self.sigmoid)
        case .twiceSigmoid(let x): x.map { 2 * Self.sigmoid($0) }
        }
    }

    /// The derivative of beta by x.
    var derivatives: [Double] {
        func derivative(_ x: Double) -> Double { Self.sigmoid(x) * Self.sigmoid(-x) }
        return switch self {
        case .value(let x): x.map { _ in 1 }
        case .sigmoid(let x): x.map(derivative)
        case .twiceSigmoid(let x): x.map { 2 * derivative($0) }
        }
    }

    private static func sigmoid(_ x: Double) -> Double { 1 / (1 + exp(-x)) }
}

extension DeltaRule.Problem {
    /// The same with beta as numbers, and with q and k of unit length where that is asked for.
    var plain: Self {
        var plain = self
        if case .delta(let beta) = update { plain.update = .delta(.value(beta.values)) }
        if let epsilon = unitLengthEpsilon {
            plain.query = unitLength(query, epsilon)
            plain.key = unitLength(key, epsilon)
            plain.unitLengthEpsilon = nil
        }
        return plain
    }

    private func unitLength(_ x: [Double], _ epsilon: Double) -> [Double] {
        LinearAttention.l2Normalize(
            x, rows: x.count / shape.keyWidth, columns: shape.keyWidth, epsilon: epsilon)
    }

    /// The gradients of this problem from those of `plain`.
    func gradients(ofPlain plain: DeltaRule.Gradients) -> DeltaRule.Gradients {
        var gradients = plain
        if case .delta(let beta) = update {
            gradients.beta = zip(beta.derivatives, plain.beta).map { $0 * $1 }
        }
        if let epsilon = unitLengthEpsilon {
            gradients.query = unitLengthGradient(query, plain.query, epsilon)
            gradients.key = unitLengthGradient(key, plain.key, epsilon)
        }
        return gradients
    }

    private func unitLengthGradient(
        _ x: [Double], _ gradient: [Double], _ epsilon: Double
    ) -> [Double] {
        LinearAttention.l2NormalizeBackward(
            x, outputGradient: gradient, rows: x.count / shape.keyWidth, columns: shape.keyWidth,
            epsilon: epsilon)
    }
}
