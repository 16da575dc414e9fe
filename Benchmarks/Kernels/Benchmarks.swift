import Benchmark

/// All benchmarks. Each runs in a process of its own, in the order of their names, so that a
/// kernel and what it is compared with stand in neighbouring rows.
let benchmarks: @Sendable () -> Void = {
    matmulBenchmarks()
    crossEntropyBenchmarks()
    softmaxBenchmarks()
    softmaxCurve()
    linearAttentionBenchmarks()
    linearAttentionCurve()
    linearAttentionStageBenchmarks()
    deltaRuleBenchmarks()
    householderBenchmarks()
}
