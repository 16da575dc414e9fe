import LMKernels

func linearAttentionBenchmarks() {
    for width in [64, 128] {
        for threads in [1, 2] {
            for decay in [LinearAttention.Decay.none, .token, .key] {
                forward(Float.self, decay, width, threads: threads)
                backward(Float.self, decay, width, threads: threads)
            }
            forward(BFloat16.self, .token, width, threads: threads)
            backward(BFloat16.self, .token, width, threads: threads)
        }
        // In cache, and not.
        for batch in [1, 128] { step(width, batch: batch) }
    }
    forward(Float.self, .token, 64, threads: 1, form: .recurrent)
    plainLoop(64)
}

// MARK: - What is compared

/// Tokens and heads of a measurement; widths of keys and values are the same.
private let tokens = 2048
private let heads = 16

private func forward<Element: StorageElement>(
    _ type: Element.Type, _ decay: LinearAttention.Decay, _ width: Int, threads: Int,
    form: LinearAttention.Form = .automatic
) {
    let way = form == .automatic ? "" : ", \(form)"
    measurement("forward \(decay) \(type.storageType)", width, threads: threads, way).register {
        let inputs = try LinearAttentionInputs(type, decay, width)
        var output = inputs.value
        let workspace = Workspace()
        return {
            try LinearAttention.forward(
                query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
                logDecay: inputs.logDecay?.span, output: output.mutableSpan, shape: inputs.shape,
                options: .init(form: form, decay: decay, threads: threads), workspace: workspace)
        }
    }
}

private func backward<Element: StorageElement>(
    _ type: Element.Type, _ decay: LinearAttention.Decay, _ width: Int, threads: Int
) {
    var measurement = measurement("backward \(decay) \(type.storageType)", width, threads: threads)
    // The states again, their gradient, and a product for each of q, k and v.
    measurement.operations *= 2.5
    measurement.register {
        let inputs = try LinearAttentionInputs(type, decay, width)
        let gradient = inputs.value
        var queryGradient = inputs.query
        var keyGradient = inputs.key
        var valueGradient = inputs.value
        var logDecayGradient = inputs.logDecay
        let workspace = Workspace()
        return {
            try LinearAttention.backward(
                query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
                logDecay: inputs.logDecay?.span, outputGradient: gradient.span,
                queryGradient: queryGradient.mutableSpan, keyGradient: keyGradient.mutableSpan,
                valueGradient: valueGradient.mutableSpan,
                logDecayGradient: logDecayGradient?.mutableSpan, shape: inputs.shape,
                options: .init(decay: decay, threads: threads), workspace: workspace)
        }
    }
}

/// Decoding: the states are read and written.
private func step(_ width: Int, batch: Int) {
    let floats = batch * heads * width * width
    Measurement(
        name: "linear attention step \(batch)x\(heads)x\(width)x\(width), 1 thread",
        limit: .copying, operations: Double(2 * MemoryLayout<Float>.stride * floats),
        iterations: 11, calls: floats < 1 << 20 ? .kilo : .one
    ).register {
        let shape = LinearAttention.Shape(
            batch: batch, tokens: 1, heads: heads, keyWidth: width, valueWidth: width)
        let x = randomFloats(batch * heads * width, seed: 1)
        let logDecay = randomFloats(batch * heads, seed: 2).map { -$0.magnitude }
        var state = [Float](repeating: 0, count: floats)
        var output = x
        let workspace = Workspace()
        return {
            var span = state.mutableSpan
            try LinearAttention.step(
                query: x.span, key: x.span, value: x.span, logDecay: logDecay.span, state: &span,
                output: output.mutableSpan, shape: shape,
                options: .init(decay: .token, threads: 1), workspace: workspace)
        }
    }
}

private func plainLoop(_ width: Int) {
    measurement("forward token float32", width, threads: 1, ", plain loop").register {
        let inputs = try LinearAttentionInputs(Float.self, .token, width)
        var output = inputs.value
        var state = [Float](repeating: 0, count: width * width)
        return {
            for head in 0..<heads {
                linearAttentionPlainly(
                    query: inputs.query, key: inputs.key, value: inputs.value,
                    logDecay: inputs.logDecay!, tokens: tokens, heads: heads, head: head,
                    width: width, state: &state, output: &output)
            }
        }
    }
}

// MARK: - Problems

/// Counts what the recurrence takes for a token and head: a multiply-add for each entry of the
/// state to write, and one to read.
private func measurement(
    _ what: String, _ width: Int, threads: Int, _ way: String = ""
) -> Measurement {
    Measurement(
        name: "linear attention \(what) \(tokens)x\(heads)x\(width), "
            + describe(threads: threads) + way, threads: threads,
        operations: 4 * Double(tokens * heads * width * width), iterations: 7)
}

/// Of one sequence.
struct LinearAttentionInputs<Element: StorageElement>: Sendable {
    let shape: LinearAttention.Shape
    let query: [Element]
    let key: [Element]
    let value: [Element]
    let logDecay: [Float]?

    init(
        _ type: Element.Type, _ decay: LinearAttention.Decay, _ width: Int,
        tokens: Int = 2048, heads: Int = 16
    ) throws {
        shape = .init(tokens: tokens, heads: heads, keyWidth: width, valueWidth: width)
        let rows = tokens * heads
        query = try converted(randomFloats(rows * width, seed: 1), to: type)
        key = try converted(randomFloats(rows * width, seed: 2), to: type)
        value = try converted(randomFloats(rows * width, seed: 3), to: type)
        let count = decay == .token ? rows : decay == .key ? rows * width : nil
        logDecay = count.map { randomFloats($0, seed: 4).map { -0.1 * $0.magnitude } }
    }
}
