import LMKernels
import LMKernelsReference

/// What the reference makes of a problem, and bounds on the distance of float32 from it.
///
/// Sums of the magnitudes of everything, which are bounds elsewhere, grow with the tokens
/// exponentially here, and a step's errors do not. So a bound counts roundings of a head's largest
/// number, and of what becomes of roundings of the inputs: the reference is computed again with
/// every input changed by 2^-20 of itself, up or down, and the largest difference in a head is 2^20
/// times as large as the one meant.
struct DeltaRuleExpected {
    typealias Numbers = SoftmaxExpected.Numbers

    /// By the names of Found.
    private(set) var numbers: [String: Numbers] = [:]

    private static let change = 0x1p-20

    init(_ problem: DeltaRuleCase) {
        // One for every few steps of the longest chain of sums and products.
        let chain =
            16 + Double(problem.length) / 2
            + Double(problem.keyWidth + problem.valueWidth) / 16
        let exact = Self.arrays(of: problem, isChanged: false)
        let changed = Self.arrays(of: problem, isChanged: true)
        for (name, values) in exact {
            let (heads, width) = problem.layout(of: name)
            let storage: StorageType = problem.isStored(name) ? problem.storage : .float32
            var largest = [Double](repeating: 0, count: heads)
            var differences = largest
            for (i, (x, y)) in zip(values, changed[name]!).enumerated() {
                let head = i / width % heads
                largest[head] = max(largest[head], x.magnitude)
                differences[head] = max(differences[head], (x - y).magnitude)
            }
            let bounds = zip(largest, differences).map {
                chain * SoftmaxExpected.unit * ($0 + $1 / Self.change) + 0x1p-120
            }
            var numbers = Numbers()
            for (i, x) in values.enumerated() { numbers.add(x, bounds[i / width % heads], storage) }
            self.numbers[name] = numbers
        }
    }

    private static func arrays(
        of problem: DeltaRuleCase, isChanged: Bool
    ) -> [String: [Double]] {
        // Signs of a generator of their own.
        var random = SplitMix64(seed: 1)
        func doubles(_ x: [Float]) -> [Double] {
            x.map { x in
                guard isChanged else { return Double(x) }
                return Double(x) * (random.once(in: 2) ? 1 + change : 1 - change)
            }
        }
        let g = doubles(problem.logDecay ?? [])
        let update: ReferenceDeltaRule.Update =
            if let a = problem.a, let b = problem.b {
                .general(a: doubles(a), b: doubles(b))
            } else {
                switch problem.rates {
                case .rate: .delta(.value(doubles(problem.beta!)))
                case .sigmoid: .delta(.sigmoid(doubles(problem.beta!)))
                case .twiceSigmoid: .delta(.twiceSigmoid(doubles(problem.beta!)))
                }
            }
        let reference = ReferenceDeltaRule.Problem(
            shape: .init(
                batch: problem.batch, tokens: problem.tokens, heads: problem.heads,
                keyHeads: problem.keyHeads, keyWidth: problem.keyWidth,
                valueWidth: problem.valueWidth, householderSteps: problem.steps),
            query: doubles(problem.query), key: doubles(problem.key),
            value: doubles(problem.value), update: update,
            decay: {
                switch problem.decay {
                case .none: .none
                case .token: .token(g)
                case .key: .key(g)
                }
            }(), scale: problem.scale.map { Double($0) },
            unitLengthEpsilon: problem.epsilon.map { Double($0) },
            initialState: problem.initialState.map(doubles), offsets: problem.offsets,
            stateStride: problem.stateStride)
        let output = ReferenceDeltaRule.forward(reference)
        let gradients = ReferenceDeltaRule.backward(
            reference, outputGradient: doubles(problem.outputGradient),
            finalStateGradient: problem.finalStateGradient.map(doubles))
        return [
            "o": output.output, "state": output.finalState, "states": output.states,
            "dq": gradients.query, "dk": gradients.key, "dv": gradients.value,
            "dbeta": gradients.beta, "da": gradients.a, "db": gradients.b,
            "dg": gradients.decay, "dS": gradients.initialState,
        ]
    }
}

extension DeltaRuleCase {
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
