internal import CLMKCore
internal import CLMKSoftmax

extension Softmax {
    /// y = function of the rows of x, in the equations of `Softmax`.
    ///
    /// Error of float32: softmax is within 4.1 ulp of the exact function of the float32 differences
    /// u - m where those are above -10, within 5.2 above -40; logSoftmax within 1.5 ulp.
    ///
    /// Cost: a read and a write of a row that fits a cache, two reads and a write of one that does
    /// not. y does not overlap x: the form in place is the next.
    ///
    /// - Parameters:
    ///   - x: [rows, columns]
    ///   - y: [rows, columns]
    ///   - lengths: Row r keeps entries j < lengths[r], [rows], in 0 ... columns; nil: all.
    ///   - mask: Added to scale x, [maskRows, columns]; -inf takes an entry out, though x is read
    ///     there.
    ///   - logSumExp: Receives the [rows] of `softmax` and `logSoftmax`.
    ///   - workspace: Grows to 256 KB for each thread at most, and 20 bytes for each slice of rows
    ///     longer than 32768 columns. float32 output below 32 MB needs none.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride, a span or
    ///   `columns`; `countMismatch` for `lengths` and `logSumExp`; `badEntry` for a length;
    ///   `conflict` for `logSumExp` with a stable function; `overflow`.
    public static func forward<Element: StorageElement>(
        _ function: Function, _ x: Span<Element>, into y: inout MutableSpan<Element>, shape: Shape,
        options: Options = Options(), lengths: Span<Int>? = nil, mask: Span<Float>? = nil,
        logSumExp: consuming MutableSpan<Float>? = nil, workspace: Workspace
    ) throws(KernelError) {
        let softmax = try unsafe descriptor(
            function.rowFunction, shape, options, Element.storageType)
        try shape.extent("x", stride: shape.xStride).check(x.count)
        try shape.extent("y", stride: shape.yStride).check(y.count)
        try checkMasks(shape, lengths: lengths?.count, mask: mask?.count)
        try checkCount("logSumExp", logSumExp?.count, expected: shape.rows)
        try unsafe check { error in
            unsafe withMasks(softmax, lengths, mask, workspace) { softmax, memory, size in
                unsafe withPointer(x) { x in
                    unsafe withMutablePointer(&logSumExp) { logSumExp in
                        unsafe y.withUnsafeMutableBufferPointer { y in
                            unsafe softmax.x = UnsafeRawPointer(x)
                            return unsafe lmk_softmax_forward(
                                &softmax, y.baseAddress, shape.yStride ?? shape.columns, logSumExp,
                                memory, size, error)
                        }
                    }
                }
            }
        }
    }

    /// The same in place: x becomes y, bit for bit what the other form gives.
    ///
    /// - Parameter x: [rows, columns]
    /// - Throws: As the other form, and `conflict` for a `yStride` that is not `xStride`.
    public static func forward<Element: StorageElement>(
        _ function: Function, inPlace x: inout MutableSpan<Element>, shape: Shape,
        options: Options = Options(), lengths: Span<Int>? = nil, mask: Span<Float>? = nil,
        logSumExp: consuming MutableSpan<Float>? = nil, workspace: Workspace
    ) throws(KernelError) {
        let softmax = try unsafe descriptor(
            function.rowFunction, shape, options, Element.storageType)
        try shape.extent("x", stride: shape.xStride).check(x.count)
        try checkMasks(shape, lengths: lengths?.count, mask: mask?.count)
        try checkCount("logSumExp", logSumExp?.count, expected: shape.rows)
        try unsafe check { error in
            unsafe withMasks(softmax, lengths, mask, workspace) { softmax, memory, size in
                unsafe withMutablePointer(&logSumExp) { logSumExp in
                    unsafe x.withUnsafeMutableBufferPointer { x in
                        unsafe softmax.x = UnsafeRawPointer(x.baseAddress)
                        let stride = unsafe shape.yStride ?? softmax.x_stride
                        return unsafe lmk_softmax_forward(
                            &softmax, x.baseAddress, stride, logSumExp, memory, size, error)
                    }
                }
            }
        }
    }

    /// logSumExp[r] = log sum_j exp(u[r, j]), in float32 whatever the type of x.
    ///
    /// Cost: one read of x with `online` and `twoPass`, two with `threePass`. Of no columns it is
    /// -inf.
    ///
    /// - Parameters:
    ///   - x: [rows, columns]
    ///   - logSumExp: [rows]
    ///   - lengths: Row r keeps entries j < lengths[r], [rows], in 0 ... columns; nil: all.
    ///   - mask: Added to scale x, [maskRows, columns].
    ///   - workspace: Grows to 20 bytes for each slice of rows longer than 32768 columns.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
    ///   `countMismatch` for `lengths` and `logSumExp`; `badEntry` for a length; `overflow`.
    public static func logSumExp<Element: StorageElement>(
        _ x: Span<Element>, into logSumExp: inout MutableSpan<Float>, shape: Shape,
        options: Options = Options(), lengths: Span<Int>? = nil, mask: Span<Float>? = nil,
        workspace: Workspace
    ) throws(KernelError) {
        let softmax = try unsafe descriptor(
            .LMK_LOG_SUM_EXP, shape, options, Element.storageType)
        try shape.extent("x", stride: shape.xStride).check(x.count)
        try checkMasks(shape, lengths: lengths?.count, mask: mask?.count)
        try checkCount("logSumExp", logSumExp.count, expected: shape.rows)
        try unsafe check { error in
            unsafe withMasks(softmax, lengths, mask, workspace) { softmax, memory, size in
                unsafe withPointer(x) { x in
                    unsafe logSumExp.withUnsafeMutableBufferPointer { logSumExp in
                        unsafe softmax.x = UnsafeRawPointer(x)
                        return unsafe lmk_softmax_forward(
                            &softmax, logSumExp.baseAddress, 0, nil, memory, size, error)
                    }
                }
            }
        }
    }
}
