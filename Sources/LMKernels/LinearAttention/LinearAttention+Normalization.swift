internal import CLMKCore
internal import CLMKLinearAttention

/// Rows that are divided by their length or root mean square. Squares and their sum are float32:
/// entries above 1e19 make it infinite and the row 0, and what is below 1e-19 counts as 0. NaN makes
/// its row NaN, an infinity is NaN in its place among zeros. float32 results have the same bits for
/// any number of threads and on every instruction set with fused multiply-add.
extension LinearAttention {
    /// Strides of the tensors [batch, tokens, heads, columns] of a normalisation.
    public struct NormStrides: Sendable, Hashable {
        public var x = StageStrides()
        public var gate = StageStrides()
        public var y = StageStrides()
        public var xGradient = StageStrides()
        public var gateGradient = StageStrides()
        public var yGradient = StageStrides()

        public init() {}
    }

    /// Rows of length 1, for queries and keys:
    ///
    ///     y_j = r x_j        r = 1 / sqrt(sum_j x_j^2 + epsilon)
    ///
    /// A row of zeros stays zero, and is NaN with an epsilon of 0. Cost: a read of x and a write
    /// of y.
    ///
    /// - Parameters:
    ///   - x: [batch, tokens, heads, columns]
    ///   - y: [batch, tokens, heads, columns]
    ///   - epsilon: At least 0.
    ///   - threads: Threads at most; 0 is the default of the runtime.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
    ///   `overflow`.
    public static func l2Normalize<Element: StorageElement>(
        _ x: Span<Element>, into y: inout MutableSpan<Element>, shape: RowShape,
        strides: NormStrides = NormStrides(), epsilon: Float = 1e-6, threads: Int = 0
    ) throws(KernelError) {
        var norm = try unsafe normDescriptor(
            shape, strides, x.count, epsilon, threads, Element.storageType)
        let yStrides = try shape.extent("y").check(y.count, strides.y)
        try unsafe check { error in
            unsafe withPointer(x) { x in
                unsafe y.withUnsafeMutableBufferPointer { y in
                    unsafe norm.x = UnsafeRawPointer(x)
                    return unsafe lmk_l2_normalize_forward(&norm, y.baseAddress, yStrides, error)
                }
            }
        }
    }

    /// The gradient of x:  dx_j = r (dy_j - r^2 x_j sum_i x_i dy_i).
    ///
    /// - Parameters:
    ///   - x: As given to `l2Normalize`.
    ///   - yGradient: dy, [batch, tokens, heads, columns]
    ///   - xGradient: [batch, tokens, heads, columns]
    /// - Throws: As `l2Normalize`.
    public static func l2NormalizeBackward<Element: StorageElement>(
        _ x: Span<Element>, yGradient: Span<Element>, xGradient: inout MutableSpan<Element>,
        shape: RowShape, strides: NormStrides = NormStrides(), epsilon: Float = 1e-6,
        threads: Int = 0
    ) throws(KernelError) {
        var norm = try unsafe normDescriptor(
            shape, strides, x.count, epsilon, threads, Element.storageType)
        let dyStrides = try shape.extent("yGradient").check(yGradient.count, strides.yGradient)
        let dxStrides = try shape.extent("xGradient").check(xGradient.count, strides.xGradient)
        try unsafe check { error in
            unsafe withPointer(x) { x in
                unsafe withPointer(yGradient) { dy in
                    unsafe xGradient.withUnsafeMutableBufferPointer { dx in
                        unsafe norm.x = UnsafeRawPointer(x)
                        return unsafe lmk_l2_normalize_backward(
                            &norm, dy, dyStrides, dx.baseAddress, dxStrides, error)
                    }
                }
            }
        }
    }

    /// The output stage: RMS norm with a weight, then a SiLU gate.
    ///
    ///     y_j = r x_j w_j gate_j sigmoid(gate_j)        r = 1 / sqrt(mean_j x_j^2 + epsilon)
    ///
    /// Cost: a read of x and the gate and a write of y.
    ///
    /// - Parameters:
    ///   - x: [batch, tokens, heads, columns], columns at least 1.
    ///   - gate: [batch, tokens, heads, columns]
    ///   - weight: w, [columns]
    ///   - y: [batch, tokens, heads, columns]
    ///   - epsilon: At least 0.
    ///   - threads: Threads at most; 0 is the default of the runtime.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for `columns`, a stride or
    ///   a span; `countMismatch` for the weight; `overflow`.
    public static func gatedRMSNorm<Element: StorageElement>(
        _ x: Span<Element>, gate: Span<Element>, weight: Span<Float>,
        into y: inout MutableSpan<Element>, shape: RowShape, strides: NormStrides = NormStrides(),
        epsilon: Float = 1e-5, threads: Int = 0
    ) throws(KernelError) {
        var norm = try unsafe normDescriptor(
            shape, strides, x.count, epsilon, threads, Element.storageType)
        var open = try unsafe gateDescriptor(shape, strides, gate.count, weight.count)
        let yStrides = try shape.extent("y").check(y.count, strides.y)
        try unsafe check { error in
            unsafe withPointer(x) { x in
                unsafe withPointer(gate) { gate in
                    unsafe withPointer(weight) { weight in
                        unsafe y.withUnsafeMutableBufferPointer { y in
                            unsafe norm.x = UnsafeRawPointer(x)
                            unsafe open.gate = UnsafeRawPointer(gate)
                            unsafe open.weight = weight
                            return unsafe lmk_gated_rms_norm_forward(
                                &norm, &open, y.baseAddress, yStrides, error)
                        }
                    }
                }
            }
        }
    }

    /// Gradients of `gatedRMSNorm`, with D columns and t_j = dy_j w_j silu(gate_j):
    ///
    ///     dx_j = r (t_j - r^2 x_j (sum_i x_i t_i) / D)
    ///     dgate_j = dy_j r x_j w_j silu'(gate_j)
    ///     dw_j = sum of dy_j r x_j silu(gate_j) over the rows
    ///
    /// A gradient that is nil is not computed. The sum over rows is taken in blocks that depend on
    /// sizes alone.
    ///
    /// - Parameters:
    ///   - x: As given to `gatedRMSNorm`, as are the other inputs.
    ///   - yGradient: dy, [batch, tokens, heads, columns]
    ///   - xGradient: [batch, tokens, heads, columns]
    ///   - gateGradient: [batch, tokens, heads, columns]
    ///   - weightGradient: [columns]
    ///   - workspace: Grows to 4 bytes for each column of at most 64 blocks of rows.
    /// - Throws: As `gatedRMSNorm`.
    public static func gatedRMSNormBackward<Element: StorageElement>(
        _ x: Span<Element>, gate: Span<Element>, weight: Span<Float>, yGradient: Span<Element>,
        xGradient: consuming MutableSpan<Element>? = nil,
        gateGradient: consuming MutableSpan<Element>? = nil,
        weightGradient: consuming MutableSpan<Float>? = nil, shape: RowShape,
        strides: NormStrides = NormStrides(), epsilon: Float = 1e-5, threads: Int = 0,
        workspace: Workspace
    ) throws(KernelError) {
        var norm = try unsafe normDescriptor(
            shape, strides, x.count, epsilon, threads, Element.storageType)
        var open = try unsafe gateDescriptor(shape, strides, gate.count, weight.count)
        var gradients = unsafe lmk_gated_rms_norm_gradients()
        unsafe gradients.dy_strides = try shape.extent("yGradient").check(
            yGradient.count, strides.yGradient)
        if let count = xGradient?.count {
            unsafe gradients.dx_strides = try shape.extent("xGradient").check(
                count, strides.xGradient)
        }
        if let count = gateGradient?.count {
            unsafe gradients.dgate_strides = try shape.extent("gateGradient").check(
                count, strides.gateGradient)
        }
        try checkCount("weightGradient", weightGradient?.count, expected: shape.columns)
        try unsafe check { error in
            unsafe withPointer(x) { x in
                unsafe withPointer(gate) { gate in
                    unsafe withPointer(weight) { weight in
                        unsafe withPointer(yGradient) { dy in
                            unsafe norm.x = UnsafeRawPointer(x)
                            unsafe open.gate = UnsafeRawPointer(gate)
                            unsafe open.weight = weight
                            unsafe gradients.dy = UnsafeRawPointer(dy)
                            return unsafe withMutablePointer(&xGradient) { dx in
                                unsafe withMutablePointer(&gateGradient) { dgate in
                                    unsafe withMutablePointer(&weightGradient) { dweight in
                                        unsafe gradients.dx = UnsafeMutableRawPointer(dx)
                                        unsafe gradients.dgate = UnsafeMutableRawPointer(dgate)
                                        unsafe gradients.dweight = dweight
                                        return unsafe gatedBackward(
                                            &norm, &open, &gradients, workspace, error)
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    private static func gatedBackward(
        _ norm: inout lmk_row_norm, _ gate: inout lmk_norm_gate,
        _ gradients: inout lmk_gated_rms_norm_gradients, _ workspace: Workspace,
        _ error: UnsafeMutablePointer<lmk_error>
    ) -> lmk_status {
        let needed = unsafe lmk_gated_rms_norm_backward_workspace_size(&norm)
        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
            unsafe lmk_gated_rms_norm_backward(&norm, &gate, &gradients, memory, size, error)
        }
    }

    private static func normDescriptor(
        _ shape: RowShape, _ strides: NormStrides, _ x: Int, _ epsilon: Float, _ threads: Int,
        _ type: StorageType
    ) throws(KernelError) -> lmk_row_norm {
        try shape.check()
        var norm = unsafe lmk_row_norm()
        unsafe norm.dtype = type.dtype
        unsafe norm.batch = shape.batch
        unsafe norm.tokens = shape.tokens
        unsafe norm.heads = shape.heads
        unsafe norm.columns = shape.columns
        unsafe norm.epsilon = epsilon
        unsafe norm.threads = try Threads.checked(threads)
        unsafe norm.x_strides = try shape.extent("x").check(x, strides.x)
        return unsafe norm
    }

    private static func gateDescriptor(
        _ shape: RowShape, _ strides: NormStrides, _ gate: Int, _ weight: Int
    ) throws(KernelError) -> lmk_norm_gate {
        var open = unsafe lmk_norm_gate()
        unsafe open.gate_strides = try shape.extent("gate").check(gate, strides.gate)
        try checkCount("weight", weight, expected: shape.columns)
        return unsafe open
    }
}
