import LMKernels

func deltaRuleBenchmarks() {
    for width in [64, 128] {
        for threads in [1, 2] {
            for decay in [DeltaRule.Decay.none, .token, .key] {
                forward(Float.self, .init(decay: decay, width: width), threads: threads)
                backward(Float.self, .init(decay: decay, width: width), threads: threads)
            }
            forward(Float.self, .init(decay: .token, width: width, steps: 2), threads: threads)
            forward(BFloat16.self, .init(decay: .token, width: width), threads: threads)
            forward(
                Float.self, .init(decay: .key, width: width, isGeneralized: true),
                threads: threads)
        }
        backward(Float.self, .init(decay: .token, width: width, steps: 2), threads: 1)
        backward(BFloat16.self, .init(decay: .token, width: width), threads: 1)
        for decay in [DeltaRule.Decay.token, .key] {
            forward(Float.self, .init(decay: decay, width: width), threads: 1, form: .chunked)
        }
        forward(BFloat16.self, .init(decay: .token, width: width), threads: 1, form: .chunked)
        // In cache, and not.
        for batch in [1, 128] { step(width, batch: batch) }
        plainLoop(width)
    }
}

// MARK: - What is compared

/// One sequence with as many heads; keys and values are as wide as each other.
private struct Rule {
    static let tokens = 2048
    static let heads = 16

    var decay: DeltaRule.Decay
    var width: Int
    /// R
    var steps = 1
    /// RWKV-7.
    var isGeneralized = false

    var shape: DeltaRule.Shape {
        .init(
            tokens: Self.tokens, steps: steps, heads: Self.heads, keyWidth: width,
            valueWidth: width)
    }

    func measurement(
        _ what: String, _ type: StorageType, threads: Int, _ way: String = ""
    ) -> Measurement {
        let kind = (steps > 1 ? "R = \(steps) " : "") + (isGeneralized ? "generalised " : "")
        return Measurement(
            name: "delta rule \(what) \(kind)\(decay) \(type) "
                + "\(Self.tokens)x\(Self.heads)x\(width), " + describe(threads: threads) + way,
            threads: threads, operations: entries * Double(4 * steps + 2), iterations: 7)
    }

    /// Of the states of all tokens and heads. What S^T k, a write and the read take is a multiply-add
    /// for each of them.
    var entries: Double { Double(Self.tokens * Self.heads * width * width) }
}

private func forward<Element: StorageElement>(
    _ type: Element.Type, _ rule: Rule, threads: Int, form: DeltaRule.Form = .automatic
) {
    let way = form == .automatic ? "" : ", \(form)"
    rule.measurement("forward", type.storageType, threads: threads, way).register {
        let inputs = try Inputs(type, rule)
        var output = inputs.query
        let workspace = Workspace()
        return {
            try DeltaRule.forward(
                query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
                beta: inputs.beta?.span, a: inputs.a?.span, b: inputs.b?.span,
                logDecay: inputs.logDecay?.span, output: output.mutableSpan, shape: rule.shape,
                options: .init(form: form, decay: rule.decay, threads: threads),
                workspace: workspace)
        }
    }
}

private func backward<Element: StorageElement>(_ type: Element.Type, _ rule: Rule, threads: Int) {
    var measurement = rule.measurement("backward", type.storageType, threads: threads)
    // A step: S^T k and a write once more, dS^T k for the gradient of what was written, two products
    // for that of k, and one that takes dS back over the step. A token: two for the read.
    measurement.operations = rule.entries * Double(12 * rule.steps + 4)
    measurement.register {
        let inputs = try Inputs(type, rule)
        let gradient = inputs.query
        var (queryGradient, keyGradient) = (inputs.query, inputs.key)
        var (valueGradient, betaGradient) = (inputs.value, inputs.beta)
        var logDecayGradient = inputs.logDecay
        let workspace = Workspace()
        return {
            try DeltaRule.backward(
                query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
                beta: inputs.beta?.span, logDecay: inputs.logDecay?.span,
                outputGradient: gradient.span, queryGradient: queryGradient.mutableSpan,
                keyGradient: keyGradient.mutableSpan, valueGradient: valueGradient.mutableSpan,
                betaGradient: betaGradient?.mutableSpan,
                logDecayGradient: logDecayGradient?.mutableSpan, shape: rule.shape,
                options: .init(decay: rule.decay, threads: threads), workspace: workspace)
        }
    }
}

/// Decoding: the states are read and written.
private func step(_ width: Int, batch: Int) {
    let heads = Rule.heads
    let bytes = 4 * batch * heads * width * width
    Measurement(
        name: "delta rule step \(batch)x\(heads)x\(width)x\(width), 1 thread",
        limit: .updating(bytes: bytes), operations: Double(2 * bytes), iterations: 11,
        calls: bytes < 4 << 20 ? .kilo : .one
    ).register {
        let shape = DeltaRule.Shape(
            batch: batch, tokens: 1, heads: heads, keyWidth: width, valueWidth: width)
        let x = unitLength(randomFloats(batch * heads * width, seed: 1), width)
        let beta = randomFloats(batch * heads, seed: 2).map(\.magnitude)
        let logDecay = randomFloats(batch * heads, seed: 3).map { -0.1 * $0.magnitude }
        var state = [Float](repeating: 0, count: bytes / 4)
        var output = x
        let workspace = Workspace()
        return {
            var span = state.mutableSpan
            try DeltaRule.step(
                query: x.span, key: x.span, value: x.span, beta: beta.span,
                logDecay: logDecay.span, state: &span, output: output.mutableSpan, shape: shape,
                options: .init(decay: .token, threads: 1), workspace: workspace)
        }
    }
}

private func plainLoop(_ width: Int) {
    let rule = Rule(decay: .token, width: width)
    rule.measurement("forward", .float32, threads: 1, ", plain loop").register {
        let inputs = try Inputs(Float.self, rule)
        var output = inputs.value
        var state = [Float](repeating: 0, count: width * width)
        var correction = [Float](repeating: 0, count: width)
        return {
            for head in 0..<Rule.heads {
                deltaRulePlainly(
                    query: inputs.query, key: inputs.key, value: inputs.value,
                    beta: inputs.beta!, logDecay: inputs.logDecay!, tokens: Rule.tokens,
                    heads: Rule.heads, head: head, width: width, state: &state,
                    correction: &correction, output: &output)
            }
        }
    }
}

// MARK: - Problems

/// Keys of unit length, rates in [0, 1]: states stay as large as values are.
private struct Inputs<Element: StorageElement>: Sendable {
    let query: [Element]
    let key: [Element]
    let value: [Element]
    let beta: [Float]?
    let a: [Element]?
    let b: [Element]?
    let logDecay: [Float]?

    init(_ type: Element.Type, _ rule: Rule) throws {
        let (rows, width) = (Rule.tokens * Rule.heads, rule.width)
        let steps = rows * rule.steps
        let key = unitLength(randomFloats(steps * width, seed: 2), width)
        query = try converted(randomFloats(rows * width, seed: 1), to: type)
        self.key = try converted(key, to: type)
        value = try converted(randomFloats(steps * width, seed: 3), to: type)
        beta = rule.isGeneralized ? nil : randomFloats(steps, seed: 4).map(\.magnitude)
        a = rule.isGeneralized ? self.key : nil
        b = rule.isGeneralized ? try converted(key.map { -0.5 * $0 }, to: type) : nil
        let count = rule.decay == .token ? rows : rule.decay == .key ? rows * width : nil
        logDecay = count.map { randomFloats($0, seed: 5).map { -0.1 * $0.magnitude } }
    }
}

private func unitLength(_ x: [Float], _ width: Int) -> [Float] {
    var y = x
    for start in stride(from: 0, to: x.count, by: width) {
        var sum: Float = 0
        for i in start..<start + width { sum += x[i] * x[i] }
        for i in start..<start + width { y[i] = x[i] / sum.squareRoot() }
    }
    return y
}
