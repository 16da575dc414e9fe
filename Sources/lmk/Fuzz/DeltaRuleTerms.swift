import LMKernels
import LMKernelsReference

/// Sums of magnitudes for gradients whose terms cancel. Without what steps take away, which makes
/// nothing larger, the rule is linear attention: of rates times values, with a token for each step,
/// of which the first of a token has its decay and the last its query.
struct DeltaRuleTerms {
    /// By the names of Found.
    private(set) var terms: [String: [Double]] = [:]

    private let problem: DeltaRuleCase
    private typealias Reference = LMKernelsReference.LinearAttention

    init(_ problem: DeltaRuleCase) {
        self.problem = problem
        let (heads, steps) = (problem.heads, problem.steps)
        let (keyWidth, valueWidth) = (problem.keyWidth, problem.valueWidth)
        func doubles(_ x: [Float]) -> [Double] { x.map { Double($0) } }
        let key = perHead(problem.unit(doubles(problem.key)), width: keyWidth)
        let value = perHead(doubles(problem.value), width: valueWidth)
        // What a step does with what it reads: beta, or in the generalised form 1.
        let rates =
            problem.beta?.map { problem.rate(Double($0)) }
            ?? Array(repeating: 1, count: value.count / valueWidth)
        func rated(_ x: [Double]) -> [Double] {
            x.indices.map { rates[$0 / valueWidth] * x[$0] }
        }
        let query = lastSteps(problem.unit(doubles(problem.query)), width: heads * keyWidth)
        let upstream = lastSteps(doubles(problem.outputGradient), width: heads * valueWidth)
        let stateGradient = problem.finalStateGradient?.map { Double($0.magnitude) }
        var linear = Reference.Problem(
            shape: .init(
                batch: problem.batch, tokens: problem.tokens * steps, heads: heads,
                keyHeads: heads, keyWidth: keyWidth, valueWidth: valueWidth),
            query: query, key: key, value: rated(value), decay: decay,
            scale: problem.scale.map { Double($0).magnitude },
            initialState: problem.initialState?.map { Double($0.magnitude) },
            offsets: problem.offsets?.map { $0 * steps })
        let gradients = Reference.backward(
            linear, outputGradient: upstream, finalStateGradient: stateGradient)
        terms["dS"] = gradients.initialState
        terms["dq"] = problem.unitTerms(
            ofSteps(gradients.query, last: true, width: heads * keyWidth), problem.query)
        let width = heads * (problem.decay == .key ? keyWidth : 1)
        terms["dg"] = ofSteps(gradients.decay, last: false, width: width)
        terms["dv"] = perKeyHead(
            problem.beta == nil ? gradients.value : rated(gradients.value), width: valueWidth)

        // What is read for the write, S^T k or S^T a, and the gradients of k and b by it.
        let a = problem.a.map { perHead(doubles($0), width: keyWidth) }
        let states = stateBounds(key, rated(value))
        let read = products(states, a ?? key)
        linear.key = problem.b.map { perHead(doubles($0), width: keyWidth) } ?? key
        linear.value = a == nil ? rated(zip(read, value).map { $0 + $1 }) : read
        let ofRead = Reference.backward(
            linear, outputGradient: upstream, finalStateGradient: stateGradient)
        let ofReader = products(states, rated(ofRead.value), isTransposed: true)
        guard a == nil else {
            terms["da"] = perKeyHead(ofReader, width: keyWidth)
            terms["db"] = perKeyHead(ofRead.key, width: keyWidth)
            terms["dk"] = problem.unitTerms(
                perKeyHead(gradients.key, width: keyWidth), problem.key)
            return
        }
        terms["dk"] = problem.unitTerms(
            perKeyHead(zip(ofRead.key, ofReader).map { $0 + $1 }, width: keyWidth), problem.key)
        terms["dbeta"] = rates.indices.map { row in
            (row * valueWidth..<(row + 1) * valueWidth).reduce(0) { sum, i in
                sum + (read[i] + value[i]) * ofRead.value[i]
            }
        }
    }
}

// MARK: - Steps and heads

extension DeltaRuleTerms {
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
    private func perHead(_ x: [Double], width: Int) -> [Double] {
        let (heads, keyHeads) = (problem.heads, problem.keyHeads)
        return (0..<x.count / keyHeads * heads).map { i in
            let (row, rest) = (i / (heads * width), i % (heads * width))
            let head = rest / width / (heads / keyHeads)
            return x[(row * keyHeads + head) * width + rest % width].magnitude
        }
    }

    /// Sums over the query heads of each key head.
    private func perKeyHead(_ x: [Double], width: Int) -> [Double] {
        let (heads, keyHeads) = (problem.heads, problem.keyHeads)
        var result = [Double](repeating: 0, count: x.count / heads * keyHeads)
        for i in x.indices {
            let (row, rest) = (i / (heads * width), i % (heads * width))
            let head = rest / width / (heads / keyHeads)
            result[(row * keyHeads + head) * width + rest % width] += x[i]
        }
        return result
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

    /// The rows of last or first steps.
    private func ofSteps(_ x: [Double], last: Bool, width: Int) -> [Double] {
        let steps = problem.steps
        return (0..<x.count / steps).map { i in
            x[(i / width * steps + (last ? steps - 1 : 0)) * width + i % width]
        }
    }

    // MARK: - States

    /// Rows of steps of each sequence.
    private var sequences: [Range<Int>] {
        let steps = problem.steps
        guard let offsets = problem.offsets else {
            let count = problem.tokens * steps
            return (0..<problem.batch).map { $0 * count..<($0 + 1) * count }
        }
        return zip(offsets, offsets.dropFirst()).map { $0 * steps..<$1 * steps }
    }

    /// What no state of a sequence and head exceeds: everything that is ever written, and S_0.
    private func stateBounds(_ key: [Double], _ value: [Double]) -> [Double] {
        let (heads, keyWidth, valueWidth) = (problem.heads, problem.keyWidth, problem.valueWidth)
        var states =
            problem.initialState?.map { Double($0.magnitude) }
            ?? Array(repeating: 0, count: problem.stateCount)
        for (n, rows) in sequences.enumerated() {
            for row in rows {
                for h in 0..<heads {
                    let (place, state) = (row * heads + h, (n * heads + h) * keyWidth)
                    for d in 0..<keyWidth {
                        let k = key[place * keyWidth + d]
                        for e in 0..<valueWidth {
                            states[(state + d) * valueWidth + e] +=
                                k * value[place * valueWidth + e]
                        }
                    }
                }
            }
        }
        return states
    }

    /// S^T x for each step and head, or S x.
    private func products(
        _ states: [Double], _ x: [Double], isTransposed: Bool = false
    ) -> [Double] {
        let (heads, keyWidth, valueWidth) = (problem.heads, problem.keyWidth, problem.valueWidth)
        let (inner, outer) = isTransposed ? (valueWidth, keyWidth) : (keyWidth, valueWidth)
        var result = [Double](repeating: 0, count: x.count / inner * outer)
        for (n, rows) in sequences.enumerated() {
            for row in rows {
                for h in 0..<heads {
                    let (place, state) = (row * heads + h, (n * heads + h) * keyWidth)
                    for d in 0..<keyWidth {
                        for e in 0..<valueWidth {
                            let (i, j) = isTransposed ? (e, d) : (d, e)
                            result[place * outer + j] +=
                                states[(state + d) * valueWidth + e] * x[place * inner + i]
                        }
                    }
                }
            }
        }
        return result
    }
}

extension DeltaRuleCase {
    /// Magnitudes of gradients of rows x of unit length as those of x: twice what they are times
    /// the factor that brings x to that length.
    fileprivate func unitTerms(_ gradient: [Double], _ x: [Float]) -> [Double] {
        guard let epsilon else { return gradient }
        return gradient.indices.map { i in
            let row = x[i / keyWidth * keyWidth..<(i / keyWidth + 1) * keyWidth]
            let squares = row.reduce(Double(epsilon)) { $0 + Double($1) * Double($1) }
            return 2 * gradient[i] / squares.squareRoot()
        }
    }
}
