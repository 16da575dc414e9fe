import LMKernels

extension LinearAttentionCase {
    /// What one way of calling the kernel gives, dense; what is not asked for is empty.
    struct Found {
        var output: [Float] = []
        var finalState: [Float] = []
        var finalNormalizer: [Float] = []
        var states: [Float] = []
        var normalizers: [Float] = []
        var query: [Float] = []
        var key: [Float] = []
        var value: [Float] = []
        var logDecay: [Float] = []
        var bonus: [Float] = []
        var initialState: [Float] = []
        var initialNormalizer: [Float] = []

        /// With the names for findings.
        var arrays: [(name: String, values: [Float])] {
            [
                ("o", output), ("state", finalState), ("normalizer", finalNormalizer),
                ("states", states), ("normalizers", normalizers), ("dq", query), ("dk", key),
                ("dv", value), ("dg", logDecay), ("du", bonus), ("dS", initialState),
                ("dz", initialNormalizer),
            ]
        }
    }

    func call(
        threads: Int, _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) -> Found {
        switch storage {
        case .float32: return try call(threads, as: Float.self, workspace, &findings)
        case .bfloat16: return try call(threads, as: BFloat16.self, workspace, &findings)
        case .float16:
            #if os(macOS) && arch(x86_64)
                return Found()
            #else
                return try call(threads, as: Float16.self, workspace, &findings)
            #endif
        }
    }

    /// An array that is written, with more behind it that is not.
    private func empty(_ count: Int, if isAskedFor: Bool = true) -> [Float]? {
        isAskedFor ? Array(repeating: Grid.filler, count: count) : nil
    }

    private func call<Element: StorageValue>(
        _ threads: Int, as type: Element.Type, _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) -> Found {
        let q = grids.query.spread(query, as: type)
        let k = grids.key.spread(key, as: type)
        let v = grids.value.spread(value, as: type)
        let g = logDecay.map { grids.logDecay.spread($0, as: Float.self) }
        var o = grids.output.empty(of: type)
        let rows = sequences * heads * keyWidth
        let stored = stateStride.map {
            shape.storedStates(stride: $0, offsets: offsets?.span) * heads * keyWidth
        }
        var finalState = empty(rows * valueWidth, if: !isBidirectional)
        var finalNormalizer = empty(rows, if: !isBidirectional && isNormalized)
        var states = empty((stored ?? 0) * valueWidth, if: stored != nil)
        var normalizers = empty(stored ?? 0, if: stored != nil && isNormalized)
        let (outputRange, decayRange) = (grids.output.range, grids.logDecay.range)
        try unsafe o.withUnsafeMutableBufferPointer { o throws(KernelError) in
            let part = o.extracting(outputRange)
            try unsafe LinearAttention.forward(
                query: q.span.extracting(grids.query.range),
                key: k.span.extracting(grids.key.range),
                value: v.span.extracting(grids.value.range),
                logDecay: g?.span.extracting(decayRange), bonus: bonus?.span,
                initialState: initialState?.span, initialNormalizer: initialNormalizer?.span,
                offsets: offsets?.span, output: part.mutableSpan,
                finalState: finalState?.mutableSpan,
                finalNormalizer: finalNormalizer?.mutableSpan, states: states?.mutableSpan,
                normalizers: normalizers?.mutableSpan, shape: shape,
                options: options(threads: threads), workspace: workspace)
        }
        findings.expect(grids.output.hasIntactGaps(o), "wrote outside o")
        var found = Found()
        found.output = grids.output.dense(o)
        found.finalState = finalState ?? []
        found.finalNormalizer = finalNormalizer ?? []
        found.states = states ?? []
        found.normalizers = normalizers ?? []
        try differentiate(q, k, v, g, threads, &found, workspace, &findings)
        return found
    }

    private func differentiate<Element: StorageValue>(
        _ q: [Element], _ k: [Element], _ v: [Element], _ g: [Float]?, _ threads: Int,
        _ found: inout Found, _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) {
        let upstream = grids.outputGradient.spread(outputGradient, as: Element.self)
        var dq = grids.queryGradient.empty(of: Element.self)
        var dk = grids.keyGradient.empty(of: Element.self)
        var dv = grids.valueGradient.empty(of: Element.self)
        var dg = logDecay == nil ? nil : grids.logDecayGradient.empty(of: Float.self)
        let rows = sequences * heads * keyWidth
        var du = empty(heads * keyWidth, if: bonus != nil)
        var state = empty(rows * valueWidth, if: !isBidirectional)
        var normalizer = empty(rows, if: !isBidirectional && isNormalized)
        let grids = grids
        try unsafe dq.withUnsafeMutableBufferPointer { dq throws(KernelError) in
            let dq = dq.extracting(grids.queryGradient.range)
            try unsafe dk.withUnsafeMutableBufferPointer { dk throws(KernelError) in
                let dk = dk.extracting(grids.keyGradient.range)
                try unsafe dv.withUnsafeMutableBufferPointer { dv throws(KernelError) in
                    let dv = dv.extracting(grids.valueGradient.range)
                    try unsafe withPart(of: &dg, grids.logDecayGradient) {
                        dg throws(KernelError) in
                        try unsafe LinearAttention.backward(
                            query: q.span.extracting(grids.query.range),
                            key: k.span.extracting(grids.key.range),
                            value: v.span.extracting(grids.value.range),
                            logDecay: g?.span.extracting(grids.logDecay.range),
                            bonus: bonus?.span, initialState: initialState?.span,
                            initialNormalizer: initialNormalizer?.span, offsets: offsets?.span,
                            outputGradient: upstream.span.extracting(grids.outputGradient.range),
                            finalStateGradient: finalStateGradient?.span,
                            finalNormalizerGradient: finalNormalizerGradient?.span,
                            queryGradient: dq.mutableSpan, keyGradient: dk.mutableSpan,
                            valueGradient: dv.mutableSpan, logDecayGradient: dg?.mutableSpan,
                            bonusGradient: du?.mutableSpan,
                            initialStateGradient: state?.mutableSpan,
                            initialNormalizerGradient: normalizer?.mutableSpan, shape: shape,
                            options: options(threads: threads), workspace: workspace)
                    }
                }
            }
        }
        findings.expect(grids.queryGradient.hasIntactGaps(dq), "wrote outside dq")
        findings.expect(grids.keyGradient.hasIntactGaps(dk), "wrote outside dk")
        findings.expect(grids.valueGradient.hasIntactGaps(dv), "wrote outside dv")
        found.query = grids.queryGradient.dense(dq)
        found.key = grids.keyGradient.dense(dk)
        found.value = grids.valueGradient.dense(dv)
        if let dg {
            findings.expect(grids.logDecayGradient.hasIntactGaps(dg), "wrote outside dg")
            found.logDecay = grids.logDecayGradient.dense(dg)
        }
        found.bonus = du ?? []
        found.initialState = state ?? []
        found.initialNormalizer = normalizer ?? []
    }
}
