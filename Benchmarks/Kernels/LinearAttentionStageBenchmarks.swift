import LMKernels

/// The stages around linear attention, against the speed of memory.
func linearAttentionStageBenchmarks() {
    for threads in [1, 2] {
        recurrence(Float.self, tokens: 4096, channels: 4096, threads: threads)
        recurrenceBackward(tokens: 4096, channels: 4096, threads: threads)
        // One sequence of few channels, whose segments go to different threads.
        recurrence(Float.self, tokens: 1 << 20, channels: 16, threads: threads)
        convolution(Float.self, tokens: 4096, channels: 4096, threads: threads)
        convolutionBackward(tokens: 4096, channels: 4096, threads: threads)
    }
    recurrence(BFloat16.self, tokens: 4096, channels: 4096, threads: 1)
    convolution(BFloat16.self, tokens: 4096, channels: 4096, threads: 1)
    l2Norm(tokens: 8192, heads: 16, columns: 128)
    gatedNorm(tokens: 8192, heads: 16, columns: 128)
    let maps: [(String, LinearAttention.FeatureMap)] = [
        ("elu + 1", .eluPlusOne), ("squared relu", .squaredReLU), ("softmax", .softmax),
        ("exp pair", .expPair), ("softmax pair", .softmaxPair), ("focused", .focused(power: 3)),
    ]
    for (name, map) in maps { featureMap(name, map, rows: 65536, columns: 64) }
    featureMap("taylor", .taylor, rows: 65536, columns: 16)
}

private func recurrence<Element: StorageElement>(
    _ type: Element.Type, tokens: Int, channels: Int, threads: Int
) {
    // x and g are read, h is written.
    let bytes = 4 + 2 * MemoryLayout<Element>.stride
    measurement(
        "elementwise recurrence \(type.storageType)", tokens, channels, threads: threads,
        bytes: bytes
    ).register {
        let x = try converted(randomFloats(tokens * channels, seed: 1), to: type)
        let decays = randomFloats(tokens * channels, seed: 2).map { -$0.magnitude }
        var h = x
        let workspace = Workspace()
        return {
            var output = h.mutableSpan
            try LinearAttention.ElementwiseRecurrence.forward(
                x.span, logDecay: decays.span, into: &output,
                shape: .init(tokens: tokens, channels: channels), threads: threads,
                workspace: workspace)
        }
    }
}

private func recurrenceBackward(tokens: Int, channels: Int, threads: Int) {
    // g, h and dh are read, dx and dg written.
    measurement(
        "elementwise recurrence backward float32", tokens, channels, threads: threads, bytes: 20
    ).register {
        let h = randomFloats(tokens * channels, seed: 1)
        let decays = randomFloats(tokens * channels, seed: 2).map { -$0.magnitude }
        let gradient = randomFloats(tokens * channels, seed: 3)
        var xGradient = h
        var decayGradient = h
        let workspace = Workspace()
        return {
            try LinearAttention.ElementwiseRecurrence.backward(
                logDecay: decays.span, output: h.span, outputGradient: gradient.span,
                xGradient: xGradient.mutableSpan, logDecayGradient: decayGradient.mutableSpan,
                shape: .init(tokens: tokens, channels: channels), threads: threads,
                workspace: workspace)
        }
    }
}

private func convolution<Element: StorageElement>(
    _ type: Element.Type, tokens: Int, channels: Int, threads: Int
) {
    measurement(
        "convolution of 4, silu, \(type.storageType)", tokens, channels, threads: threads,
        bytes: 2 * MemoryLayout<Element>.stride
    ).register {
        let x = try converted(randomFloats(tokens * channels, seed: 1), to: type)
        let weight = randomFloats(4 * channels, seed: 2)
        var y = x
        return {
            var output = y.mutableSpan
            try LinearAttention.ShortConvolution.forward(
                x.span, into: &output, weight: weight.span, width: 4, appliesSiLU: true,
                shape: .init(tokens: tokens, channels: channels), threads: threads)
        }
    }
}

private func convolutionBackward(tokens: Int, channels: Int, threads: Int) {
    // x and dy are read, dx is written.
    measurement(
        "convolution of 4 backward, silu, float32", tokens, channels, threads: threads, bytes: 12
    ).register {
        let x = randomFloats(tokens * channels, seed: 1)
        let gradient = randomFloats(tokens * channels, seed: 3)
        let weight = randomFloats(4 * channels, seed: 2)
        var xGradient = x
        var weightGradient = weight
        let workspace = Workspace()
        return {
            try LinearAttention.ShortConvolution.backward(
                x.span, yGradient: gradient.span, xGradient: xGradient.mutableSpan,
                weightGradient: weightGradient.mutableSpan, weight: weight.span, width: 4,
                appliesSiLU: true, shape: .init(tokens: tokens, channels: channels),
                threads: threads, workspace: workspace)
        }
    }
}

private func l2Norm(tokens: Int, heads: Int, columns: Int) {
    measurement("l2 norm float32", tokens * heads, columns, threads: 1, bytes: 8).register {
        let x = randomFloats(tokens * heads * columns, seed: 1)
        var y = x
        return {
            var output = y.mutableSpan
            try LinearAttention.l2Normalize(
                x.span, into: &output,
                shape: .init(tokens: tokens, heads: heads, columns: columns), threads: 1)
        }
    }
}

private func gatedNorm(tokens: Int, heads: Int, columns: Int) {
    measurement("gated rms norm float32", tokens * heads, columns, threads: 1, bytes: 12)
        .register {
            let x = randomFloats(tokens * heads * columns, seed: 1)
            let gate = randomFloats(tokens * heads * columns, seed: 2)
            let weight = randomFloats(columns, seed: 3)
            var y = x
            return {
                var output = y.mutableSpan
                try LinearAttention.gatedRMSNorm(
                    x.span, gate: gate.span, weight: weight.span, into: &output,
                    shape: .init(tokens: tokens, heads: heads, columns: columns), threads: 1)
            }
        }
}

private func featureMap(
    _ name: String, _ map: LinearAttention.FeatureMap, rows: Int, columns: Int
) {
    let features = map.featureCount(columns: columns)
    measurement(
        "features \(name) float32", rows, columns, threads: 1,
        bytes: 4 * (columns + features) / columns
    ).register {
        let x = randomFloats(rows * columns, scale: 2, seed: 1)
        var phi = [Float](repeating: 0, count: rows * features)
        return {
            var output = phi.mutableSpan
            try map.forward(
                x.span, into: &output, shape: .init(tokens: rows, columns: columns), threads: 1)
        }
    }
}

/// `bytes` of memory traffic for each entry.
private func measurement(
    _ what: String, _ rows: Int, _ columns: Int, threads: Int, bytes: Int
) -> Measurement {
    let entries = rows * columns
    return Measurement(
        name: "\(what) \(rows)x\(columns), " + describe(threads: threads), limit: .copying,
        threads: threads, operations: Double(bytes * entries), entries: entries, iterations: 11,
        calls: .one)
}
