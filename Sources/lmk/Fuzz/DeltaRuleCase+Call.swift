import LMKernels

extension DeltaRuleCase {
    /// What one way of calling the kernel gives, dense; what is not asked for is empty.
    struct Found {
        var output: [Float] = []
        var finalState: [Float] = []
        var states: [Float] = []
        var query: [Float] = []
        var key: [Float] = []
        var value: [Float] = []
        var beta: [Float] = []
        var a: [Float] = []
        var b: [Float] = []
        var logDecay: [Float] = []
        var initialState: [Float] = []

        /// With the names for findings.
        var arrays: [(name: String, values: [Float])] {
            [
                ("o", output), ("state", finalState), ("states", states), ("dq", query),
                ("dk", key), ("dv", value), ("dbeta", beta), ("da", a), ("db", b),
                ("dg", logDecay), ("dS", initialState),
            ]
        }
    }

    func call(
        _ form: DeltaRule.Form, threads: Int, _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) -> Found {
        let options = options(form, threads: threads)
        switch storage {
        case .float32: return try call(options, as: Float.self, workspace, &findings)
        case .bfloat16: return try call(options, as: BFloat16.self, workspace, &findings)
        case .float16:
            #if os(macOS) && arch(x86_64)
                return Found()
            #else
                return try call(options, as: Float16.self, workspace, &findings)
            #endif
        }
    }

    /// Tensors in their layouts.
    private struct Inputs<Element: StorageValue> {
        var query, key, value: [Element]
        var beta: [Float]?
        var a, b: [Element]?
        var logDecay: [Float]?

        init(_ problem: DeltaRuleCase) {
            let grids = problem.grids
            query = grids.query.spread(problem.query, as: Element.self)
            key = grids.key.spread(problem.key, as: Element.self)
            value = grids.value.spread(problem.value, as: Element.self)
            beta = problem.beta.map { grids.beta.spread($0, as: Float.self) }
            a = problem.a.map { grids.a.spread($0, as: Element.self) }
            b = problem.b.map { grids.b.spread($0, as: Element.self) }
            logDecay = problem.logDecay.map { grids.logDecay.spread($0, as: Float.self) }
        }
    }

    private func call<Element: StorageValue>(
        _ options: DeltaRule.Options, as type: Element.Type, _ workspace: Workspace,
        _ findings: inout Findings
    ) throws(KernelError) -> Found {
        let inputs = Inputs<Element>(self)
        let (grids, shape) = (grids, shape)
        var o: [Element]? = grids.output.empty()
        var state = Array(repeating: Grid.filler, count: stateCount)
        var states = stateStride.map { stride in
            let stored = shape.storedStates(stride: stride, offsets: offsets?.span)
            return Array(repeating: Grid.filler, count: stored * heads * keyWidth * valueWidth)
        }
        try unsafe withPart(of: &o, grids.output) { o throws(KernelError) in
            try unsafe DeltaRule.forward(
                query: inputs.query.span.extracting(grids.query.range),
                key: inputs.key.span.extracting(grids.key.range),
                value: inputs.value.span.extracting(grids.value.range),
                beta: inputs.beta?.span.extracting(grids.beta.range),
                a: inputs.a?.span.extracting(grids.a.range),
                b: inputs.b?.span.extracting(grids.b.range),
                logDecay: inputs.logDecay?.span.extracting(grids.logDecay.range),
                initialState: initialState?.span, offsets: offsets?.span, output: o?.mutableSpan,
                finalState: state.mutableSpan, states: states?.mutableSpan, shape: shape,
                options: options, workspace: workspace)
        }
        var found = Found()
        found.finalState = state
        found.states = states ?? []
        if let o {
            findings.expect(grids.output.hasIntactGaps(o), "wrote outside o")
            found.output = grids.output.dense(o)
        }
        try callInPlace(inputs, options, found, workspace, &findings)
        try differentiate(inputs, options, &found, workspace, &findings)
        return found
    }

    /// The same with the state in place, without states on the way.
    private func callInPlace<Element: StorageValue>(
        _ inputs: Inputs<Element>, _ options: DeltaRule.Options, _ apart: Found,
        _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) {
        let (grids, shape) = (grids, shape)
        var o: [Element]? = grids.output.empty()
        var state = initialState ?? Array(repeating: 0, count: stateCount)
        try unsafe withPart(of: &o, grids.output) { o throws(KernelError) in
            var span = state.mutableSpan
            try unsafe DeltaRule.forward(
                query: inputs.query.span.extracting(grids.query.range),
                key: inputs.key.span.extracting(grids.key.range),
                value: inputs.value.span.extracting(grids.value.range),
                beta: inputs.beta?.span.extracting(grids.beta.range),
                a: inputs.a?.span.extracting(grids.a.range),
                b: inputs.b?.span.extracting(grids.b.range),
                logDecay: inputs.logDecay?.span.extracting(grids.logDecay.range),
                inPlace: &span, offsets: offsets?.span, output: o?.mutableSpan, shape: shape,
                options: options, workspace: workspace)
        }
        findings.compareBits("state", state, with: apart.finalState, of: "a state apart")
        if let o {
            findings.compareBits(
                "o", grids.output.dense(o), with: apart.output, of: "a state apart")
        }
    }

    private func differentiate<Element: StorageValue>(
        _ inputs: Inputs<Element>, _ options: DeltaRule.Options, _ found: inout Found,
        _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) {
        let (grids, shape) = (grids, shape)
        let upstream = grids.outputGradient.spread(outputGradient, as: Element.self)
        var dq: [Element]? = grids.queryGradient.empty()
        var dk: [Element]? = grids.keyGradient.empty()
        var dv: [Element]? = grids.valueGradient.empty()
        var da = a.map { _ in grids.aGradient.empty(of: Element.self) }
        var db = b.map { _ in grids.bGradient.empty(of: Element.self) }
        var dbeta = beta.map { _ in grids.betaGradient.empty(of: Float.self) }
        var dg = logDecay.map { _ in grids.logDecayGradient.empty(of: Float.self) }
        var state = Array(repeating: Grid.filler, count: stateCount)
        try unsafe withParts(of: &dq, grids.queryGradient, &dk, grids.keyGradient) {
            dq, dk throws(KernelError) in
            try unsafe withPart(of: &dv, grids.valueGradient) { dv throws(KernelError) in
                try unsafe withParts(of: &da, grids.aGradient, &db, grids.bGradient) {
                    da, db throws(KernelError) in
                    try unsafe withParts(
                        of: &dbeta, grids.betaGradient, &dg, grids.logDecayGradient
                    ) { dbeta, dg throws(KernelError) in
                        try unsafe DeltaRule.backward(
                            query: inputs.query.span.extracting(grids.query.range),
                            key: inputs.key.span.extracting(grids.key.range),
                            value: inputs.value.span.extracting(grids.value.range),
                            beta: inputs.beta?.span.extracting(grids.beta.range),
                            a: inputs.a?.span.extracting(grids.a.range),
                            b: inputs.b?.span.extracting(grids.b.range),
                            logDecay: inputs.logDecay?.span.extracting(grids.logDecay.range),
                            initialState: initialState?.span, offsets: offsets?.span,
                            outputGradient: upstream.span.extracting(grids.outputGradient.range),
                            finalStateGradient: finalStateGradient?.span,
                            queryGradient: dq?.mutableSpan, keyGradient: dk?.mutableSpan,
                            valueGradient: dv?.mutableSpan, betaGradient: dbeta?.mutableSpan,
                            aGradient: da?.mutableSpan, bGradient: db?.mutableSpan,
                            logDecayGradient: dg?.mutableSpan,
                            initialStateGradient: state.mutableSpan, shape: shape,
                            options: options, workspace: workspace)
                    }
                }
            }
        }
        func dense<Number: StorageValue>(
            _ array: [Number]?, _ grid: TokenGrid, _ name: String, _ findings: inout Findings
        ) -> [Float] {
            guard let array else { return [] }
            findings.expect(grid.hasIntactGaps(array), "wrote outside \(name)")
            return grid.dense(array)
        }
        found.query = dense(dq, grids.queryGradient, "dq", &findings)
        found.key = dense(dk, grids.keyGradient, "dk", &findings)
        found.value = dense(dv, grids.valueGradient, "dv", &findings)
        found.beta = dense(dbeta, grids.betaGradient, "dbeta", &findings)
        found.a = dense(da, grids.aGradient, "da", &findings)
        found.b = dense(db, grids.bGradient, "db", &findings)
        found.logDecay = dense(dg, grids.logDecayGradient, "dg", &findings)
        found.initialState = state
    }
}
