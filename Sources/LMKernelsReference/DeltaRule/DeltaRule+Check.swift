extension DeltaRule {
    /// Checks a problem, and returns the rows of [B, T] that each sequence has.
    static func check(_ problem: Problem) -> [Range<Int>] {
        let shape = problem.shape
        precondition(shape.batch >= 0 && shape.tokens >= 0, "batch and tokens >= 0")
        precondition(shape.keyWidth >= 1 && shape.valueWidth >= 1, "keyWidth and valueWidth >= 1")
        precondition(
            shape.heads >= 1 && shape.keyHeads >= 1 && shape.heads % shape.keyHeads == 0,
            "keyHeads divides heads, both >= 1")
        precondition(shape.householderSteps >= 1, "householderSteps >= 1")

        let rows = shape.batch * shape.tokens
        let steps = rows * shape.householderSteps
        precondition(
            problem.query.count == rows * shape.heads * shape.keyWidth, "query is [B, T, H, K]")
        precondition(
            problem.key.count == steps * shape.keyHeads * shape.keyWidth, "key is [B, T R, G, K]")
        precondition(
            problem.value.count == steps * shape.keyHeads * shape.valueWidth,
            "value is [B, T R, G, V]")
        switch problem.update {
        case .delta(let beta):
            precondition(beta.inputs.count == steps * shape.heads, "beta is [B, T R, H]")
        case .general(let a, let b):
            precondition(shape.householderSteps == 1, "the general form has one step per token")
            precondition(a.count == problem.key.count, "a is [B, T, G, K]")
            precondition(b.count == problem.key.count, "b is [B, T, G, K]")
        }
        switch problem.decay {
        case .none: break
        case .token(let g):
            precondition(g.count == rows * shape.heads, "a token's decay is [B, T, H]")
        case .key(let g):
            precondition(
                g.count == rows * shape.heads * shape.keyWidth, "a key's decay is [B, T, H, K]")
        }
        precondition(
            LinearAttention.areDecays(problem.decay.logarithms), "log-decays are at most 0")
        precondition(!((problem.unitLengthEpsilon ?? 0) < 0), "unitLengthEpsilon >= 0")
        let sequences = LinearAttention.sequences(
            batch: shape.batch, tokens: shape.tokens, offsets: problem.offsets)
        if let state = problem.initialState {
            precondition(
                state.count == stateCount(shape, sequences: sequences.count),
                "initialState is [N, H, K, V]")
        }
        precondition((problem.stateStride ?? 1) >= 1, "stateStride >= 1")
        return sequences
    }

    /// Entries of [N, H, K, V].
    static func stateCount(_ shape: Shape, sequences: Int) -> Int {
        sequences * shape.heads * shape.keyWidth * shape.valueWidth
    }
}
