import LMKernels

/// Problems in bfloat16, which amx computes by chunks of 64 tokens on tiles.
extension LinearAttentionProblem<BFloat16> {
    /// amx, and those that stand for sets without tiles.
    static var setsAroundTiles: [InstructionSet] { [.avx512, .amx, .neon] }

    /// Two groups of 32 columns and a part of one.
    static func sequence(
        _ decay: LinearAttention.Decay, _ form: LinearAttention.Form, tokens: Int = 150
    ) -> Self {
        var problem = Self(
            tokens: tokens, heads: 2, keyHeads: 1, keyWidth: 40, valueWidth: 72, decay: decay,
            seed: 21)
        problem.addStates(seed: 8)
        problem.options.form = form
        problem.options.threads = 2
        return problem
    }
}
