extension DeltaRule {
    /// Gradients of  <do, o> + <dS, final state>.
    ///
    /// The reverse recurrence over the stored states. dS is the gradient of the state that was
    /// made last, and starts with the final state's. For token t:
    ///
    ///     dq_t = scale S_t do_t                   dS += scale q_t do_t^T
    ///     for j = R ... 1, with S the state that step j found, and u = beta (v - S^T k):
    ///         du = dS^T k                         dv = beta du
    ///         dbeta = du . (v - S^T k)            dk = dS u - beta S du
    ///         dS -= beta k du^T
    ///     dg_td = exp(g_td) sum_e S_{t-1},de dS_de,  summed over what shares g
    ///     dS = D_t dS                             now the gradient of S_{t-1}
    ///
    /// In the general form, with z = S_{t-1}^T a_t, what stands in place of the steps is
    ///
    ///     dk_t = dS v_t        dv_t = dS^T k_t        db_t = dS z        dz = dS^T b_t
    ///     da_t = S_{t-1} dz    and, after D_t,        dS += a_t dz^T
    ///
    /// Keys, values, a and b sum over the query heads that use them. A logit's gradient is beta's
    /// times beta'; unit length passes its own on as `LinearAttention.l2NormalizeBackward` does.
    ///
    /// - Parameters:
    ///   - outputGradient: do, [B, T, H, V].
    ///   - finalStateGradient: dS, [N, H, K, V]; 0 when absent.
    public static func backward(
        _ problem: Problem, outputGradient: [Double], finalStateGradient: [Double]? = nil
    ) -> Gradients {
        let sequences = check(problem)
        let shape = problem.shape
        let stateCount = stateCount(shape, sequences: sequences.count)
        precondition(
            outputGradient.count == shape.batch * shape.tokens * shape.heads * shape.valueWidth,
            "outputGradient is [B, T, H, V]")
        precondition(
            (finalStateGradient?.count ?? stateCount) == stateCount,
            "finalStateGradient is [N, H, K, V]")

        func zeros(_ count: Int) -> [Double] { Array(repeating: 0, count: count) }
        var gradients = Gradients(
            query: zeros(problem.query.count), key: zeros(problem.key.count),
            value: zeros(problem.value.count), beta: [], a: [], b: [],
            decay: zeros(problem.decay.logarithms.count), initialState: zeros(stateCount))
        switch problem.update {
        case .delta(let beta): gradients.beta = zeros(beta.inputs.count)
        case .general(let a, let b): (gradients.a, gradients.b) = (zeros(a.count), zeros(b.count))
        }

        let plain = problem.plain
        for h in 0..<shape.heads {
            let head = Head(h, of: plain)
            for (n, rows) in sequences.enumerated() {
                var states = [head.state(n, of: plain.initialState)]
                for (t, row) in rows.enumerated() { states.append(head.next(states[t], row)) }

                var stateGradient = head.state(n, of: finalStateGradient)
                for (t, row) in rows.enumerated().reversed() {
                    let output = Array(outputGradient[head.slice(row, shape.valueWidth)])
                    read(head, states[t + 1], row, output, &stateGradient, &gradients)
                    switch plain.update {
                    case .delta(let beta):
                        write(head, states[t], row, beta.inputs, &stateGradient, &gradients)
                        decay(head, states[t], row, &stateGradient, &gradients)
                    case .general(let a, let b):
                        writeGeneral(head, states[t], row, a, b, &stateGradient, &gradients)
                    }
                }
                head.store(stateGradient, n, in: &gradients.initialState)
            }
        }
        return problem.gradients(ofPlain: gradients)
    }

    private static func add(_ term: [Double], to sum: inout [Double], _ slice: Range<Int>) {
        for (i, x) in zip(slice, term) { sum[i] += x }
    }

    /// Adds to dq of a token and to dS.
    private static func read(
        _ head: Head, _ state: State, _ row: Int, _ outputGradient: [Double],
        _ stateGradient: inout State, _ gradients: inout Gradients
    ) {
        let readGradient = outputGradient.map { head.scale * $0 }
        add(state.times(readGradient), to: &gradients.query, head.slice(row, head.keyWidth))
        stateGradient.add(head.query(row), readGradient)
    }

    /// The steps of a token, from dS after the last to dS before the first.
    private static func write(
        _ head: Head, _ before: State, _ row: Int, _ beta: [Double],
        _ stateGradient: inout State, _ gradients: inout Gradients
    ) {
        var found = [head.decayed(before, row)]
        for step in head.steps(row) {
            found.append(
                head.written(found[found.count - 1], step, beta: beta[head.betaIndex(step)]))
        }
        for (step, state) in zip(head.steps(row), found).reversed() {
            let (key, index) = (head.key(step), head.betaIndex(step))
            let error = zip(head.value(step), state.transposed(times: key)).map { $0 - $1 }
            let u = error.map { beta[index] * $0 }
            let uGradient = stateGradient.transposed(times: key)
            let valueGradient = uGradient.map { beta[index] * $0 }

            for (x, y) in zip(error, uGradient) { gradients.beta[index] += x * y }
            add(valueGradient, to: &gradients.value, head.keySlice(step, head.valueWidth))
            let keySlice = head.keySlice(step, head.keyWidth)
            add(stateGradient.times(u), to: &gradients.key, keySlice)
            add(state.times(valueGradient).map { -$0 }, to: &gradients.key, keySlice)
            stateGradient.add(key, valueGradient.map { -$0 })
        }
    }

    /// D_t: adds to dg and takes dS from after the decay to before it.
    private static func decay(
        _ head: Head, _ before: State, _ row: Int, _ stateGradient: inout State,
        _ gradients: inout Gradients
    ) {
        for d in 0..<head.keyWidth {
            guard let index = head.decayIndex(row, d) else { continue }
            let decay = head.decay(row, d)
            var sum = 0.0
            for e in 0..<head.valueWidth {
                sum += before[d, e] * stateGradient[d, e]
                stateGradient[d, e] *= decay
            }
            gradients.decay[index] += decay * sum
        }
    }

    /// A token of the general form, from dS after it to dS before it.
    private static func writeGeneral(
        _ head: Head, _ before: State, _ row: Int, _ a: [Double], _ b: [Double],
        _ stateGradient: inout State, _ gradients: inout Gradients
    ) {
        let keySlice = head.keySlice(row, head.keyWidth)
        let (a, b) = (Array(a[keySlice]), Array(b[keySlice]))
        let zGradient = stateGradient.transposed(times: b)
        add(stateGradient.times(head.value(row)), to: &gradients.key, keySlice)
        add(
            stateGradient.transposed(times: head.key(row)), to: &gradients.value,
            head.keySlice(row, head.valueWidth))
        add(stateGradient.times(before.transposed(times: a)), to: &gradients.b, keySlice)
        add(before.times(zGradient), to: &gradients.a, keySlice)
        decay(head, before, row, &stateGradient, &gradients)
        stateGradient.add(a, zGradient)
    }
}
