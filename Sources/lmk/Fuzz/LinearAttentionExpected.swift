import LMKernels
import LMKernelsReference

/// What the reference makes of a problem, and bounds on the distance of float32 from it.
///
/// An element's error is measured by its magnitude, the sum that the reference makes of the
/// magnitudes of everything: inputs, states, upstream gradients. A bound counts roundings of it,
/// which have either sign: one for every few steps of the longest chain of sums and products.
///
/// A normaliser is a further column of values, all 1. Then o = n / c, where c is a sum of positive
/// numbers, and the upstream gradients of n and c are do / c and -(do . o) / c.
struct LinearAttentionExpected {
    typealias Numbers = SoftmaxExpected.Numbers
    private typealias Reference = LMKernelsReference.LinearAttention

    /// By the names of Found.
    private(set) var numbers: [String: Numbers] = [:]
    /// Where forward runs on tiles of bfloat16: what they take as two of them, pairs, keys with
    /// their decays and the state that is read, has an error of up to 2^-17, which is 128 roundings,
    /// and so has the state that was written.
    private(set) var tiledNumbers: [String: Numbers] = [:]

    private let problem: LinearAttentionCase
    /// Roundings of 2^-24 of a magnitude.
    private let chain: Double
    /// What a number may lose at the lower end of float32, where products of decays end.
    private let least: Double

    init(_ problem: LinearAttentionCase) {
        self.problem = problem
        let tokens = Double(problem.length)
        let isShared = problem.decay == .head || problem.bonus != nil
        chain =
            8 + tokens / 2 + Double(problem.keyWidth + problem.valueWidth) / 16
            + (isShared ? Double(problem.batch * problem.tokens) / 8 : 0)
        let largest = [
            problem.query, problem.key, problem.value, problem.initialState ?? [],
            problem.outputGradient, problem.finalStateGradient ?? [],
        ].map { 1 + Double($0.lazy.map(\.magnitude).max() ?? 0) }.reduce(1, *)
        least =
            0x1p-126 * largest * (tokens + 1)
            * Double(problem.keyWidth * problem.valueWidth + 1)
        let exact = Values(of: problem, magnitudesOf: nil)
        let magnitudes = Values(of: problem, magnitudesOf: exact)
        for (name, values) in exact.arrays {
            let storage: StorageType =
                ["o", "dq", "dk", "dv"].contains(name) ? problem.storage : .float32
            func bounded(by chain: Double) -> Numbers {
                var numbers = Numbers()
                for (value, magnitude) in zip(values, magnitudes.arrays[name]!) {
                    numbers.add(
                        value, chain * SoftmaxExpected.unit * magnitude + least, storage)
                }
                return numbers
            }
            numbers[name] = bounded(by: chain)
            if problem.fitsTiles, ["o", "state", "states"].contains(name) {
                tiledNumbers[name] = bounded(by: chain + (name == "o" ? 256 : 128))
            }
        }
    }
}

extension LinearAttentionExpected {
    /// Results of the reference, or the sums of magnitudes that went into them.
    private struct Values {
        var arrays: [String: [Double]] = [:]
        /// Divisors of a normaliser, [B, T, H].
        var divisors: [Double] = []

        /// - Parameter exact: nil: the results themselves.
        init(of problem: LinearAttentionCase, magnitudesOf exact: Values?) {
            let takes = { (x: [Float]) in
                x.map { exact == nil ? Double($0) : Double($0.magnitude) }
            }
            let (q, k) = (problem.unit(problem.query), problem.unit(problem.key))
            var reference = Reference.Problem(
                shape: .init(
                    batch: problem.batch, tokens: problem.tokens, heads: problem.heads,
                    keyHeads: problem.keyHeads, keyWidth: problem.keyWidth,
                    valueWidth: problem.valueWidth),
                query: exact == nil ? q : q.map(\.magnitude),
                key: exact == nil ? k : k.map(\.magnitude), value: takes(problem.value),
                decay: problem.referenceDecay,
                scale: problem.scale.map { takes([$0])[0] }, bonus: problem.bonus.map(takes),
                initialState: problem.initialState.map(takes),
                initialNormalizer: problem.initialNormalizer.map(takes),
                offsets: problem.offsets, isCausal: !problem.isBidirectional,
                isNormalized: problem.isNormalized, stateStride: problem.stateStride)
            var upstream = takes(problem.outputGradient)
            var stateGradient = problem.finalStateGradient.map(takes)
            let normalizerGradient = problem.finalNormalizerGradient.map(takes)
            guard let exact, problem.isNormalized else {
                arrays = Self.outputs(Reference.forward(reference), problem)
                arrays.merge(
                    Self.gradients(
                        Reference.backward(
                            reference, outputGradient: upstream,
                            finalStateGradient: stateGradient,
                            finalNormalizerGradient: normalizerGradient), problem)
                ) { $1 }
                finish(problem, isMagnitude: exact != nil)
                return
            }
            // Numerators and divisors as columns of one problem without a normaliser.
            let width = problem.valueWidth
            reference.isNormalized = false
            reference.scale = 1
            reference.shape.valueWidth += 1
            reference.value = join(reference.value, nil, width, or: 1)
            if reference.initialState != nil || reference.initialNormalizer != nil {
                let count = problem.sequences * problem.heads * problem.keyWidth
                reference.initialState = join(
                    reference.initialState ?? Array(repeating: 0, count: count * width),
                    reference.initialNormalizer, width, or: 0)
                reference.initialNormalizer = nil
            }
            let output = Reference.forward(reference)
            let (numerators, divisors) = split(output.output, width)
            let o = exact.arrays["o"]!
            arrays["o"] = numerators.indices.map {
                numerators[$0] / divisors[$0 / width] + o[$0].magnitude
            }
            (arrays["state"], arrays["normalizer"]) = split(output.finalState, width)
            (arrays["states"], arrays["normalizers"]) = split(output.states, width)
            let divisorGradients = divisors.indices.map { row in
                (row * width..<(row + 1) * width).map {
                    upstream[$0] * arrays["o"]![$0]
                }.reduce(0, +) / divisors[row]
            }
            upstream = upstream.indices.map { 2 * upstream[$0] / divisors[$0 / width] }
            upstream = join(upstream, divisorGradients, width, or: 0)
            if stateGradient != nil || normalizerGradient != nil {
                let count = problem.sequences * problem.heads * problem.keyWidth
                stateGradient = join(
                    stateGradient ?? Array(repeating: 0, count: count * width),
                    normalizerGradient, width, or: 0)
            }
            var gradients = Reference.backward(
                reference, outputGradient: upstream, finalStateGradient: stateGradient)
            gradients.value = split(gradients.value, width).0
            (gradients.initialState, gradients.initialNormalizer) = split(
                gradients.initialState, width)
            arrays.merge(Self.gradients(gradients, problem)) { $1 }
            finish(problem, isMagnitude: true)
        }

        private static func outputs(
            _ output: Reference.Output, _ problem: LinearAttentionCase
        ) -> [String: [Double]] {
            [
                "o": output.output, "state": output.finalState,
                "normalizer": output.finalNormalizer, "states": output.states,
                "normalizers": output.normalizers,
            ]
        }

        private static func gradients(
            _ gradients: Reference.Gradients, _ problem: LinearAttentionCase
        ) -> [String: [Double]] {
            [
                "dq": gradients.query, "dk": gradients.key, "dv": gradients.value,
                "dg": gradients.decay, "du": gradients.bonus, "dS": gradients.initialState,
                "dz": gradients.initialNormalizer,
            ]
        }

        /// From gradients of rows of unit length to those of q and k.
        private mutating func finish(_ problem: LinearAttentionCase, isMagnitude: Bool) {
            guard let epsilon = problem.epsilon else { return }
            for (name, x) in [("dq", problem.query), ("dk", problem.key)] {
                let width = problem.keyWidth
                var gradient = arrays[name]!
                for row in 0..<x.count / width {
                    let range = row * width..<(row + 1) * width
                    let squares = range.map { Double(x[$0]) * Double(x[$0]) }.reduce(0, +)
                    let r = 1 / (squares + Double(epsilon)).squareRoot()
                    let sign = isMagnitude ? 1.0 : -1.0
                    let xs = range.map {
                        isMagnitude ? Double(x[$0].magnitude) : Double(x[$0])
                    }
                    let dot = zip(xs, gradient[range]).map { $0 * $1 }.reduce(0, +)
                    for (j, i) in range.enumerated() {
                        gradient[i] = r * gradient[i] + sign * r * r * r * xs[j] * dot
                    }
                }
                arrays[name] = gradient
            }
        }
    }
}

/// Rows of `width` with one more number behind each.
private func join(_ x: [Double], _ y: [Double]?, _ width: Int, or other: Double) -> [Double] {
    var rows: [Double] = []
    rows.reserveCapacity(x.count / width * (width + 1))
    for row in 0..<x.count / width {
        rows += x[row * width..<(row + 1) * width]
        rows.append(y?[row] ?? other)
    }
    return rows
}

/// The way back.
private func split(_ x: [Double], _ width: Int) -> ([Double], [Double]) {
    var (rows, last): ([Double], [Double]) = ([], [])
    for row in 0..<x.count / (width + 1) {
        let start = row * (width + 1)
        rows += x[start..<start + width]
        last.append(x[start + width])
    }
    return (rows, last)
}

extension LinearAttentionCase {
    /// q or k as it is read.
    fileprivate func unit(_ x: [Float]) -> [Double] {
        let x = x.map { Double($0) }
        guard let epsilon else { return x }
        return LMKernelsReference.LinearAttention.l2Normalize(
            x, rows: x.count / keyWidth, columns: keyWidth, epsilon: Double(epsilon))
    }

    fileprivate var referenceDecay: LMKernelsReference.LinearAttention.Decay {
        let g = (logDecay ?? []).map { Double($0) }
        return switch decay {
        case .none: .none
        case .head: .head(g)
        case .token: .token(g)
        case .key: .key(g)
        }
    }
}
