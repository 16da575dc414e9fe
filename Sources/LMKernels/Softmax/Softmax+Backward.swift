internal import CLMKCore
internal import CLMKSoftmax

extension Softmax {
    /// The gradients of x and of the scale from that of y. With p = softmax, q = 1 / (1 + |u|), and
    /// dy for `yGradient`:
    ///
    ///     softmax          du_j = y_j (dy_j - sum_k y_k dy_k)
    ///     logSoftmax       du_j = dy_j - p_j sum_k dy_k
    ///     stableMax        du_j = q_j y_j (dy_j - sum_k y_k dy_k)
    ///     logStableMax     du_j = q_j (dy_j - stableMax_j sum_k dy_k)
    ///     xGradient_j = scale du_j        scaleGradient = sum_j x_j du_j
    ///
    /// The gradient of the mask is du. An entry of u = -inf adds nothing to `scaleGradient`. A
    /// gradient that is nil is not computed; they overlap neither inputs nor each other.
    ///
    /// Cost: two reads of y and `yGradient`, the second from cache where the row fits, and a write.
    ///
    /// - Parameters:
    ///   - x: What `forward` was given, [rows, columns]. Needed by the stable functions, and by the
    ///     others for `scaleGradient`.
    ///   - y: What `forward` returned, [rows, columns]. Needed by `softmax` and `logSoftmax`.
    ///   - yGradient: [rows, columns]
    ///   - xGradient: [rows, columns]
    ///   - scaleGradient: What each row adds to the gradient of the scale, [rows].
    ///   - options: As given to `forward`, as are `lengths` and `mask`.
    ///   - lengths: [rows]
    ///   - mask: [maskRows, columns]. Only the stable functions read it.
    ///   - workspace: Grows to what `forward` takes.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride, a span or
    ///   `columns`; `countMismatch` for `lengths` and `scaleGradient`; `badEntry` for a length;
    ///   `conflict` for an x or y that is missing; `overflow`.
    public static func backward<Element: StorageElement>(
        _ function: Function, x: Span<Element>? = nil, y: Span<Element>? = nil,
        yGradient: Span<Element>, xGradient: consuming MutableSpan<Element>? = nil,
        scaleGradient: consuming MutableSpan<Float>? = nil, shape: Shape,
        options: Options = Options(), lengths: Span<Int>? = nil, mask: Span<Float>? = nil,
        workspace: Workspace
    ) throws(KernelError) {
        let softmax = try unsafe descriptor(
            function.rowFunction, shape, options, Element.storageType)
        try checkInputs(
            function, shape, x: x?.count, y: y?.count, scaleGradient: scaleGradient?.count)
        try shape.extent("yGradient", stride: shape.yGradientStride).check(yGradient.count)
        if let count = xGradient?.count {
            try shape.extent("xGradient", stride: shape.xGradientStride).check(count)
        }
        try checkMasks(shape, lengths: lengths?.count, mask: mask?.count)
        try unsafe check { error in
            unsafe withMasks(softmax, lengths, mask, workspace) { softmax, memory, size in
                unsafe withInputs(&softmax, shape, x, y) { softmax, gradients in
                    unsafe withPointer(yGradient) { dy in
                        unsafe withMutablePointer(&xGradient) { dx in
                            unsafe withMutablePointer(&scaleGradient) { dscale in
                                unsafe gradients.dy = UnsafeRawPointer(dy)
                                unsafe gradients.dx = UnsafeMutableRawPointer(dx)
                                unsafe gradients.dscale = dscale
                                return unsafe lmk_softmax_backward(
                                    &softmax, &gradients, memory, size, error)
                            }
                        }
                    }
                }
            }
        }
    }

    /// The same in place: `yGradient` becomes the gradient of x, bit for bit what the other form
    /// gives.
    ///
    /// - Parameter yGradient: [rows, columns], at `yGradientStride`.
    /// - Throws: As the other form.
    public static func backward<Element: StorageElement>(
        _ function: Function, x: Span<Element>? = nil, y: Span<Element>? = nil,
        inPlace yGradient: inout MutableSpan<Element>,
        scaleGradient: consuming MutableSpan<Float>? = nil, shape: Shape,
        options: Options = Options(), lengths: Span<Int>? = nil, mask: Span<Float>? = nil,
        workspace: Workspace
    ) throws(KernelError) {
        let softmax = try unsafe descriptor(
            function.rowFunction, shape, options, Element.storageType)
        try checkInputs(
            function, shape, x: x?.count, y: y?.count, scaleGradient: scaleGradient?.count)
        try shape.extent("yGradient", stride: shape.yGradientStride).check(yGradient.count)
        try checkMasks(shape, lengths: lengths?.count, mask: mask?.count)
        try unsafe check { error in
            unsafe withMasks(softmax, lengths, mask, workspace) { softmax, memory, size in
                unsafe withInputs(&softmax, shape, x, y) { softmax, gradients in
                    unsafe withMutablePointer(&scaleGradient) { dscale in
                        unsafe yGradient.withUnsafeMutableBufferPointer { both in
                            unsafe gradients.dy = UnsafeRawPointer(both.baseAddress)
                            unsafe gradients.dx = UnsafeMutableRawPointer(both.baseAddress)
                            unsafe gradients.dx_stride = gradients.dy_stride
                            unsafe gradients.dscale = dscale
                            return unsafe lmk_softmax_backward(
                                &softmax, &gradients, memory, size, error)
                        }
                    }
                }
            }
        }
    }

    /// The gradients of x and of the scale from those of the log-sum-exp, g:
    ///
    ///     du_j = softmax_j g        xGradient_j = scale du_j        scaleGradient = sum_j x_j du_j
    ///
    /// m and S are found again, by the algorithm of `options`: the cost of `forward`.
    ///
    /// - Parameters:
    ///   - x: What `logSumExp` was given, [rows, columns].
    ///   - gradient: Upstream gradients of the log-sum-exp, [rows].
    ///   - xGradient: [rows, columns]
    ///   - scaleGradient: What each row adds to the gradient of the scale, [rows].
    ///   - lengths: [rows]
    ///   - mask: [maskRows, columns]
    ///   - workspace: Grows to 20 bytes for each slice of rows longer than 32768 columns.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
    ///   `countMismatch` for `gradient`, `lengths` and `scaleGradient`; `badEntry` for a length;
    ///   `overflow`.
    public static func logSumExpBackward<Element: StorageElement>(
        _ x: Span<Element>, gradient: Span<Float>,
        xGradient: consuming MutableSpan<Element>? = nil,
        scaleGradient: consuming MutableSpan<Float>? = nil, shape: Shape,
        options: Options = Options(), lengths: Span<Int>? = nil, mask: Span<Float>? = nil,
        workspace: Workspace
    ) throws(KernelError) {
        let softmax = try unsafe descriptor(
            .LMK_LOG_SUM_EXP, shape, options, Element.storageType)
        try shape.extent("x", stride: shape.xStride).check(x.count)
        try checkCount("gradient", gradient.count, expected: shape.rows)
        if let count = xGradient?.count {
            try shape.extent("xGradient", stride: shape.xGradientStride).check(count)
        }
        try checkCount("scaleGradient", scaleGradient?.count, expected: shape.rows)
        try checkMasks(shape, lengths: lengths?.count, mask: mask?.count)
        try unsafe check { error in
            unsafe withMasks(softmax, lengths, mask, workspace) { softmax, memory, size in
                unsafe withInputs(&softmax, shape, x, nil) { softmax, gradients in
                    unsafe withPointer(gradient) { dy in
                        unsafe withMutablePointer(&xGradient) { dx in
                            unsafe withMutablePointer(&scaleGradient) { dscale in
                                unsafe gradients.dy = UnsafeRawPointer(dy)
                                unsafe gradients.dx = UnsafeMutableRawPointer(dx)
                                unsafe gradients.dscale = dscale
                                return unsafe lmk_softmax_backward(
                                    &softmax, &gradients, memory, size, error)
                            }
                        }
                    }
                }
            }
        }
    }

    private static func checkInputs(
        _ function: Function, _ shape: Shape, x: Int?, y: Int?, scaleGradient: Int?
    ) throws(KernelError) {
        if x == nil, !function.isDifferentiatedFromOutput {
            throw .conflict(argument: "x", reason: "needed by the stable functions")
        }
        if x == nil, scaleGradient != nil {
            throw .conflict(argument: "x", reason: "needed with scaleGradient")
        }
        if y == nil, function.isDifferentiatedFromOutput {
            throw .conflict(argument: "y", reason: "needed by softmax and logSoftmax")
        }
        if let x { try shape.extent("x", stride: shape.xStride).check(x) }
        if let y { try shape.extent("y", stride: shape.yStride).check(y) }
        try checkCount("scaleGradient", scaleGradient, expected: shape.rows)
    }

    /// Calls `body` with x and y in their places, and all strides.
    private static func withInputs<Element: StorageElement>(
        _ softmax: inout lmk_softmax, _ shape: Shape, _ x: Span<Element>?, _ y: Span<Element>?,
        _ body: (inout lmk_softmax, inout lmk_softmax_gradients) -> lmk_status
    ) -> lmk_status {
        unsafe withPointer(x) { x in
            unsafe withPointer(y) { y in
                unsafe softmax.x = UnsafeRawPointer(x)
                var gradients = unsafe lmk_softmax_gradients()
                unsafe gradients.y = UnsafeRawPointer(y)
                unsafe gradients.y_stride = shape.yStride ?? shape.columns
                unsafe gradients.dy_stride = shape.yGradientStride ?? shape.columns
                unsafe gradients.dx_stride = shape.xGradientStride ?? shape.columns
                return unsafe body(&softmax, &gradients)
            }
        }
    }
}
