internal import CLMKCore

/// Elementwise functions on float32, and conversions between storage types.
///
/// Arrays have equal numbers of elements. All run on the calling thread, at a few operations for
/// an element; results have the same bits with AVX2, AVX-512 and NEON. Errors are the largest over
/// every float32, in units in the last place of the exact result.
public enum Elementwise {
    /// y[i] = e^x[i], with denormal results. 0 for -inf, inf for inf.
    ///
    /// Error: 0.92 ulp, 1.19 ulp without fused multiply-add.
    ///
    /// - Throws: `KernelError.countMismatch` for `y`.
    public static func exp(
        _ x: Span<Float>, into y: inout MutableSpan<Float>
    ) throws(KernelError) {
        try map(.LMK_EXP, x, into: &y)
    }

    /// y[i] = log x[i]. -inf for 0 and -0, NaN below.
    ///
    /// Error: 0.92 ulp, 0.98 ulp without fused multiply-add.
    ///
    /// - Throws: `KernelError.countMismatch` for `y`.
    public static func log(
        _ x: Span<Float>, into y: inout MutableSpan<Float>
    ) throws(KernelError) {
        try map(.LMK_LOG, x, into: &y)
    }

    /// y[i] = log(1 + x[i]), accurate near 0. -inf for -1, NaN below; 0 keeps its sign.
    ///
    /// Error: 0.92 ulp, 1.00 ulp without fused multiply-add.
    ///
    /// - Throws: `KernelError.countMismatch` for `y`.
    public static func log1p(
        _ x: Span<Float>, into y: inout MutableSpan<Float>
    ) throws(KernelError) {
        try map(.LMK_LOG1P, x, into: &y)
    }

    /// y[i] = e^x[i] - 1, accurate near 0. -1 for -inf; 0 keeps its sign.
    ///
    /// Error: 1.24 ulp, 1.26 ulp without fused multiply-add.
    ///
    /// - Throws: `KernelError.countMismatch` for `y`.
    public static func expm1(
        _ x: Span<Float>, into y: inout MutableSpan<Float>
    ) throws(KernelError) {
        try map(.LMK_EXPM1, x, into: &y)
    }

    /// y[i] = tanh x[i]. 0 keeps its sign.
    ///
    /// Error: 1.75 ulp, 1.81 ulp without fused multiply-add.
    ///
    /// - Throws: `KernelError.countMismatch` for `y`.
    public static func tanh(
        _ x: Span<Float>, into y: inout MutableSpan<Float>
    ) throws(KernelError) {
        try map(.LMK_TANH, x, into: &y)
    }

    /// y[i] = 1 / (1 + e^-x[i]), with denormal results. 0 for -inf, 1 for inf.
    ///
    /// Error: 1.65 ulp, 1.99 ulp without fused multiply-add.
    ///
    /// - Throws: `KernelError.countMismatch` for `y`.
    public static func sigmoid(
        _ x: Span<Float>, into y: inout MutableSpan<Float>
    ) throws(KernelError) {
        try map(.LMK_SIGMOID, x, into: &y)
    }

    /// y[i] = x[i] in another storage type, rounded to nearest, of two equally near values to the
    /// even one.
    ///
    /// Magnitudes that round past the largest number become infinite, small ones denormal or 0.
    /// NaN stays NaN, and quiet. Source and destination may have the same type: a copy.
    ///
    /// - Throws: `KernelError.countMismatch` for `y`.
    public static func convert<Source: StorageElement, Destination: StorageElement>(
        _ x: Span<Source>, into y: inout MutableSpan<Destination>
    ) throws(KernelError) {
        try checkCount("y", y.count, expected: x.count)
        let count = x.count
        try unsafe check { error in
            unsafe withPointer(x) { x in
                unsafe y.withUnsafeMutableBufferPointer { y in
                    unsafe lmk_convert(
                        x, Source.storageType.dtype, y.baseAddress,
                        Destination.storageType.dtype, count, error)
                }
            }
        }
    }

    private static func map(
        _ function: lmk_function, _ x: Span<Float>, into y: inout MutableSpan<Float>
    ) throws(KernelError) {
        try checkCount("y", y.count, expected: x.count)
        let count = x.count
        try unsafe check { error in
            unsafe withPointer(x) { x in
                unsafe y.withUnsafeMutableBufferPointer { y in
                    unsafe lmk_map(function, x, y.baseAddress, count, error)
                }
            }
        }
    }
}
