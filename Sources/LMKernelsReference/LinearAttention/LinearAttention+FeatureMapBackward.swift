#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

extension LinearAttention.FeatureMap {
    /// Gradient of  <g, phi(x)>,  [rows, columns].
    ///
    /// - Parameters:
    ///   - x: [rows, columns], as given to `forward`.
    ///   - outputGradient: g, [rows, features].
    public func backward(
        _ x: [Double], outputGradient: [Double], rows: Int, columns: Int
    ) -> [Double] {
        check(x, rows: rows, columns: columns)
        let features = features(columns: columns)
        precondition(
            outputGradient.count == rows * features, "outputGradient is [rows, features]")
        return (0..<rows).flatMap { row in
            gradient(
                Array(x[row * columns..<(row + 1) * columns]),
                Array(outputGradient[row * features..<(row + 1) * features]), row)
        }
    }

    /// Of one row: x [K] and g [features].
    private func gradient(_ x: [Double], _ g: [Double], _ row: Int) -> [Double] {
        let columns = x.count
        switch self {
        case .identity: return g
        case .eluPlusOne: return x.indices.map { g[$0] * (x[$0] > 0 ? 1 : exp(x[$0])) }
        case .relu: return x.indices.map { x[$0] > 0 ? g[$0] : 0 }
        case .squaredReLU: return x.indices.map { 2 * relu(x[$0]) * g[$0] }
        case .softmax: return softmaxGradient(x, g, scale: 1)
        case .expPair:
            return x.indices.map { exp(x[$0]) * g[$0] - exp(-x[$0]) * g[columns + $0] }
        case .softmaxPair:
            let ofFirst = softmaxGradient(x, Array(g[..<columns]), scale: 1)
            let ofSecond = softmaxGradient(x, Array(g[columns...]), scale: -1)
            return x.indices.map { ofFirst[$0] + ofSecond[$0] }
        case .taylor: return taylorGradient(x, g)
        case .focused(let power, let epsilon):
            return focusedGradient(x, g, power: power, epsilon: epsilon)
        case .cosine(let positions, let length):
            let (cosine, sine) = LinearAttention.FeatureMap.direction(positions[row], length)
            return x.indices.map {
                x[$0] > 0 ? cosine * g[$0] + sine * g[columns + $0] : 0
            }
        }
    }

    private func softmaxGradient(_ x: [Double], _ g: [Double], scale: Double) -> [Double] {
        Softmax.softmaxBackward(x, outputGradient: g, rows: 1, columns: x.count, scale: scale).x
    }

    /// With a = c x and g = [., g1, g2]:
    ///
    ///     da_i = g1_i + sum_j (g2_ij + g2_ji) a_j / sqrt(2)        dx = c da
    private func taylorGradient(_ x: [Double], _ g: [Double]) -> [Double] {
        let columns = x.count
        let scale = LinearAttention.FeatureMap.taylorScale(columns)
        return x.indices.map { i in
            var sum = g[1 + i]
            for j in x.indices {
                let pair = g[1 + columns + i * columns + j] + g[1 + columns + j * columns + i]
                sum += pair * scale * x[j] / 2.0.squareRoot()
            }
            return scale * sum
        }
    }

    /// y = |r| u / |u| with u = r^p does not change its gradient when r is scaled, so s stands for
    /// r here. With c = g . u, where x > 0:
    ///
    ///     dr_j = r_j / |r| c / |u| + p r_j^(p-1) |r| / |u| (g_j - u_j c / |u|^2)
    private func focusedGradient(
        _ x: [Double], _ g: [Double], power: Double, epsilon: Double
    ) -> [Double] {
        let row = Focused(x, power: power, epsilon: epsilon)
        guard row.largest != 0 else { return x.map { _ in 0 } }
        let (length, powerLength) = (row.length, row.powerLength)
        var dot = 0.0
        for j in x.indices { dot += g[j] * row.powers[j] }
        return x.indices.map { j in
            guard x[j] > 0 else { return 0 }
            let slope = power * pow(row.scaled[j], power - 1)
            let across = g[j] - row.powers[j] * dot / (powerLength * powerLength)
            return row.scaled[j] / length * dot / powerLength + slope * length / powerLength
                * across
        }
    }
}
