#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

/// Published log-decays of heads, [heads], for `LinearAttention.Decay.head`; `heads` is not
/// negative. Computed in Double and rounded once.
extension LinearAttention.Decay {
    /// RetNet (Sun et al., "Retentive Network", 2023):  g_h = log(1 - 2^(-5 - h)), h = 0 ..< heads.
    public static func retention(heads: Int) -> [Float] {
        precondition(heads >= 0, "heads is negative")
        return (0..<heads).map { h in Float(log1p(-exp2(Double(-5 - h)))) }
    }

    /// Lightning Attention (Qin et al., 2024):  g_h = -slope_h, with the slopes of ALiBi.
    ///
    ///     slope_h = 2^(-8 (h + 1) / heads), h = 0 ..< heads        for a power of two
    ///
    /// For another number and P the power of two below it: the P slopes of P heads, then of those
    /// of 2P heads every second one from the first, until there are enough.
    public static func lightning(heads: Int) -> [Float] {
        slopes(heads: heads).map { Float(-$0) }
    }

    /// TransNormerLLM (Qin et al., 2023), as its published model computes it: the decays of
    /// Lightning Attention, weaker in later layers.
    ///
    ///     g_h = -slope_h (1 - layer / (layers - 1) + 1e-5)        layer = 0 ..< layers
    ///
    /// layer / (layers - 1) is 0 for a single layer.
    public static func transNormer(heads: Int, layer: Int, layers: Int) -> [Float] {
        precondition((0..<max(0, layers)).contains(layer), "layer is in 0 ..< layers")
        let share = layers == 1 ? 0 : Double(layer) / Double(layers - 1)
        return slopes(heads: heads).map { Float(-$0 * (1 - share + 1e-5)) }
    }

    private static func slopes(heads: Int) -> [Double] {
        precondition(heads >= 0, "heads is negative")
        var power = 1
        while 2 * power <= heads { power *= 2 }
        return (0..<heads).map { h in
            let exponent =
                h < power
                ? 8 * Double(h + 1) / Double(power)
                : 8 * Double(2 * (h - power) + 1) / Double(2 * power)
            return exp2(-exponent)
        }
    }
}
