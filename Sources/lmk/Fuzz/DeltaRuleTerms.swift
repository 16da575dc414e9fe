import LMKernels
import LMKernelsReference

/// Sums of magnitudes for gradients whose terms cancel: without what steps take away, which makes
/// nothing larger, the rule is linear attention, of rates times values. Each step is a token there;
/// the first of a token has its decay, the last its query.
struct DeltaRuleTerms {
    /// By the names of Found: of dg, dS and dbeta.
    private(set) var terms: [String: [Double]] = [:]

    private let problem: DeltaRuleCase
    private typealias Reference = LMKernelsReference.LinearAttention

    init(_ problem: DeltaRuleCase) {
        self.problem = problem
        let (heads, steps) = (problem.heads, problem.steps)
        let key = steppedHeads(
            problem.unit(problem.key.map { Double($0) }), width: problem.keyWidth)
        var value = steppedHeads(
            problem.value.map { Double($0) }, width: problem.valueWidth)
        let rates = problem.beta?.map { problem.rate(Double($0)) }
        if let rates {
            for i in value.indices { value[i] *= rates[i / problem.valueWidth] }
        }
        let query = lastSteps(
            problem.unit(problem.query.map { Double($0) }), width: heads * problem.keyWidth)
        let upstream = lastSteps(
            problem.outputGradient.map { Double($0) }, width: heads * problem.valueWidth)
        var linear = Reference.Problem(
            shape: .init(
                batch: problem.batch, tokens: problem.tokens * steps, heads: heads,
                keyHeads: heads, keyWidth: problem.keyWidth, valueWidth: problem.valueWidth),
            query: query, key: key, value: value, decay: decay,
            scale: problem.scale.map { Double($0).magnitude },
            initialState: problem.initialState?.map { Double($0.magnitude) },
            offsets: problem.offsets?.map { $0 * steps })
        let gradients = Reference.backward(
            linear, outputGradient: upstream,
            finalStateGradient: problem.finalStateGradient?.map { Double($0.magnitude) })
        terms["dS"] = gradients.initialState
        let width = heads * (problem.decay == .key ? problem.keyWidth : 1)
        terms["dg"] = firstSteps(gradients.decay, width: width)
        guard let rates else { return }
        // (v - S^T k) . dS^T k, where S^T k is what a query of k reads.
        linear.query = key
        linear.scale = 1
        let read = Reference.forward(linear).output
        terms["dbeta"] = rates.indices.map { row in
            (row * problem.valueWidth..<(row + 1) * problem.valueWidth).reduce(0) { sum, i in
                let error = read[i] + (rates[row] > 0 ? value[i] / rates[row] : 0)
                return sum + error * gradients.value[i]
            }
        }
    }

    /// Log-decays of steps.
    private var decay: Reference.Decay {
        guard let logDecay = problem.logDecay else { return .none }
        let width = problem.heads * (problem.decay == .key ? problem.keyWidth : 1)
        var g = [Double](repeating: 0, count: logDecay.count * problem.steps)
        for i in logDecay.indices {
            g[i / width * width * problem.steps + i % width] = Double(logDecay[i])
        }
        return problem.decay == .key ? .key(g) : .token(g)
    }

    /// Magnitudes of [.., keyHeads, width] for each query head.
    private func steppedHeads(_ x: [Double], width: Int) -> [Double] {
        let (heads, keyHeads) = (problem.heads, problem.keyHeads)
        return (0..<x.count / keyHeads * heads).map { i in
            let (row, rest) = (i / (heads * width), i % (heads * width))
            let head = rest / width / (heads / keyHeads)
            return x[(row * keyHeads + head) * width + rest % width].magnitude
        }
    }

    /// Magnitudes of rows of tokens at their last steps, and 0 at the others.
    private func lastSteps(_ x: [Double], width: Int) -> [Double] {
        var result = [Double](repeating: 0, count: x.count * problem.steps)
        for i in x.indices {
            let row = i / width * problem.steps + problem.steps - 1
            result[row * width + i % width] = x[i].magnitude
        }
        return result
    }

    /// The rows of first steps.
    private func firstSteps(_ x: [Double], width: Int) -> [Double] {
        (0..<x.count / problem.steps).map { i in
            x[i / width * width * problem.steps + i % width]
        }
    }
}
