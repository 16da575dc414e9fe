import Foundation
import LMKernels
import LMKernelsReference

/// What the reference makes of a problem, and bounds on the distance of float32 from it.
///
/// Sums of the magnitudes of everything, which are bounds elsewhere, grow with the tokens
/// exponentially here, and a step's errors do not. So a bound counts roundings of a head's largest
/// number, and of what becomes of roundings of the inputs: the reference is computed again with
/// every input changed by 2^-20 of itself, up or down, and the largest difference in a head is 2^20
/// times as large as the one meant. What is small because its terms cancel is measured against these:
/// see `reads`, `finish` and `DeltaRuleTerms`.
struct DeltaRuleExpected {
    typealias Numbers = SoftmaxExpected.Numbers

    /// By the names of Found.
    private(set) var numbers: [String: Numbers] = [:]
    /// The same where numbers that are not bfloat16 are sums of two: 32 roundings of float32.
    private(set) var numbersOnTiles: [String: Numbers] = [:]

    private static let change = 0x1p-20

    init(_ problem: DeltaRuleCase) {
        // One for every few steps of the longest chain of sums and products.
        let chain =
            16 + Double(problem.length) / 2
            + Double(problem.keyWidth + problem.valueWidth) / 16
        let exact = Values(of: problem, isChanged: false)
        let changed = Values(of: problem, isChanged: true)
        let terms = DeltaRuleTerms(problem).terms.merging(exact.terms) { a, b in
            zip(a, b).map { $0 + $1 }
        }
        for (name, values) in exact.arrays {
            let (heads, width) = problem.layout(of: name)
            /// The largest number of each head.
            func largest(_ x: [Double]) -> [Double] {
                var result = [Double](repeating: 0, count: heads)
                for (i, x) in x.enumerated() {
                    let head = i / width % heads
                    result[head] = max(result[head], x.magnitude)
                }
                return result
            }
            let differences = largest(zip(values, changed.arrays[name]!).map { $0 - $1 })
            let ofTerms = largest(terms[name] ?? [])
            let bounds = zip(zip(largest(values), ofTerms), differences).map {
                chain * SoftmaxExpected.unit * ($0.0 + $0.1 + $1 / Self.change) + 0x1p-120
            }
            let storage: StorageType = problem.isStored(name) ? problem.storage : .float32
            var numbers = Numbers()
            var numbersOnTiles = Numbers()
            for (i, x) in values.enumerated() {
                let bound = bounds[i / width % heads]
                numbers.add(x, bound, storage)
                numbersOnTiles.add(x, 32 * bound, storage)
            }
            self.numbers[name] = numbers
            self.numbersOnTiles[name] = numbersOnTiles
        }
    }
}

extension DeltaRuleExpected {
    /// Results of the reference.
    private struct Values {
        private(set) var arrays: [String: [Double]]
        /// Sums of magnitudes.
        private(set) var terms: [String: [Double]] = [:]

        /// - Parameter isChanged: Every input by 2^-20 of itself.
        init(of problem: DeltaRuleCase, isChanged: Bool) {
            // Signs of a generator of their own.
            var random = SplitMix64(seed: 1)
            func doubles(_ x: [Float]) -> [Double] {
                x.map { x in
                    guard isChanged else { return Double(x) }
                    return Double(x) * (random.once(in: 2) ? 1 + change : 1 - change)
                }
            }
            let g = doubles(problem.logDecay ?? [])
            let (query, key) = (doubles(problem.query), doubles(problem.key))
            let logits = doubles(problem.beta ?? [])
            let reference = ReferenceDeltaRule.Problem(
                shape: .init(
                    batch: problem.batch, tokens: problem.tokens, heads: problem.heads,
                    keyHeads: problem.keyHeads, keyWidth: problem.keyWidth,
                    valueWidth: problem.valueWidth, householderSteps: problem.steps),
                query: problem.unit(query), key: problem.unit(key),
                value: doubles(problem.value),
                update: problem.beta == nil
                    ? .general(a: doubles(problem.a!), b: doubles(problem.b!))
                    : .delta(.value(logits.map(problem.rate))),
                decay: {
                    switch problem.decay {
                    case .none: .none
                    case .token: .token(g)
                    case .key: .key(g)
                    }
                }(), scale: problem.scale.map { Double($0) },
                initialState: problem.initialState.map(doubles), offsets: problem.offsets,
                stateStride: problem.stateStride)
            let output = ReferenceDeltaRule.forward(reference)
            let gradients = ReferenceDeltaRule.backward(
                reference, outputGradient: doubles(problem.outputGradient),
                finalStateGradient: problem.finalStateGradient.map(doubles))
            arrays = [
                "o": output.output, "state": output.finalState, "states": output.states,
                "dq": gradients.query, "dk": gradients.key, "dv": gradients.value,
                "dbeta": gradients.beta, "da": gradients.a, "db": gradients.b,
                "dg": gradients.decay, "dS": gradients.initialState,
            ]
            if !isChanged { terms["o"] = Self.reads(reference) }
            finish("dq", query, problem)
            finish("dk", key, problem)
            guard problem.rates != .rate else { return }
            terms["dbeta"] = zip(logits, gradients.beta).map { (problem.rate($0) * $1).magnitude }
            arrays["dbeta"] = zip(logits, gradients.beta).map {
                // rate(-x) is what 1 or 2 leaves.
                problem.rate($0) * problem.rate(-$0) / (problem.rates == .sigmoid ? 1 : 2) * $1
            }
        }

        /// scale |S_t|^T |q_t|, of every token.
        private static func reads(_ reference: ReferenceDeltaRule.Problem) -> [Double] {
            var reference = reference
            reference.stateStride = 1
            let states = ReferenceDeltaRule.forward(reference).states
            let (keyWidth, valueWidth) = (reference.shape.keyWidth, reference.shape.valueWidth)
            let scale = reference.scale ?? 1 / Double(keyWidth).squareRoot()
            var result = [Double](repeating: 0, count: states.count / keyWidth)
            for (i, q) in reference.query.enumerated() {
                for e in 0..<valueWidth {
                    result[i / keyWidth * valueWidth + e] +=
                        (scale * q * states[i * valueWidth + e]).magnitude
                }
            }
            return result
        }

        /// From gradients of rows of unit length to those of q or k.
        private mutating func finish(_ name: String, _ x: [Double], _ problem: DeltaRuleCase) {
            guard let epsilon = problem.epsilon else { return }
            let width = problem.keyWidth
            let gradient = arrays[name]!
            terms[name] = gradient.indices.map { i in
                let row = x[i / width * width..<(i / width + 1) * width]
                let squares = row.reduce(Double(epsilon)) { $0 + $1 * $1 }
                return gradient[i].magnitude / squares.squareRoot()
            }
            arrays[name] = ReferenceLinearAttention.l2NormalizeBackward(
                x, outputGradient: gradient, rows: x.count / width, columns: width,
                epsilon: Double(epsilon))
        }
    }
}

extension DeltaRuleCase {
    /// q or k as it is read.
    func unit(_ x: [Double]) -> [Double] {
        guard let epsilon else { return x }
        return ReferenceLinearAttention.l2Normalize(
            x, rows: x.count / keyWidth, columns: keyWidth, epsilon: Double(epsilon))
    }

    /// The rate that a number of `beta` stands for.
    func rate(_ x: Double) -> Double {
        switch rates {
        case .rate: x
        case .sigmoid: 1 / (1 + exp(-x))
        case .twiceSigmoid: 2 / (1 + exp(-x))
        }
    }

    /// How many heads an array has, and how many numbers of one lie together.
    fileprivate func layout(of name: String) -> (heads: Int, width: Int) {
        switch name {
        case "o": (heads, valueWidth)
        case "dq": (heads, keyWidth)
        case "dk", "da", "db": (keyHeads, keyWidth)
        case "dv": (keyHeads, valueWidth)
        case "dbeta": (heads, 1)
        case "dg": (heads, decay == .key ? keyWidth : 1)
        default: (heads, keyWidth * valueWidth)
        }
    }
}
