internal import CLMKCore

/// Products of matrices of float32, bfloat16 or float16, accumulated in float32.
public enum Matmul {
    /// How the operands lie in memory, named as in BLAS. N: as written. T: transposed.
    @frozen public enum Layout: Sendable, Hashable, CaseIterable {
        /// a [rows, depth], b [depth, columns]
        case nn
        /// a [rows, depth], b [columns, depth]
        case nt
        /// a [depth, rows], b [depth, columns]
        case tn
    }

    /// Sizes and strides of a batch of products. Strides are in elements; nil is that of a dense
    /// array, without gaps between rows or between matrices of that row stride.
    public struct Shape: Sendable, Hashable {
        /// Rows of c.
        public var rows: Int
        /// Columns of c.
        public var columns: Int
        /// Length of the sum behind each element of c. 0 makes sums of nothing: 0.
        public var depth: Int
        /// Number of products.
        public var batch: Int
        /// From one row of a, as it lies in memory, to the next.
        public var aStride: Int?
        /// From one row of b, as it lies in memory, to the next.
        public var bStride: Int?
        /// From one row of c to the next.
        public var cStride: Int?
        /// From one matrix of a to the next; 0 uses the same a throughout.
        public var aBatchStride: Int?
        /// From one matrix of b to the next; 0 uses the same b throughout.
        public var bBatchStride: Int?
        /// From one matrix of c to the next.
        public var cBatchStride: Int?

        public init(
            rows: Int, columns: Int, depth: Int, batch: Int = 1, aStride: Int? = nil,
            bStride: Int? = nil, cStride: Int? = nil, aBatchStride: Int? = nil,
            bBatchStride: Int? = nil, cBatchStride: Int? = nil
        ) {
            self.rows = rows
            self.columns = columns
            self.depth = depth
            self.batch = batch
            self.aStride = aStride
            self.bStride = bStride
            self.cStride = cStride
            self.aBatchStride = aBatchStride
            self.bBatchStride = bBatchStride
            self.cBatchStride = cBatchStride
        }
    }

    /// c = a b, or c += a b, for each matrix of a batch:
    ///
    ///     c[n, i, j] = sum_k a[n, i, k] b[n, k, j]
    ///
    /// Sums run over blocks of the depth, 512 elements long (1024 for bfloat16 with AVX512-BF16):
    /// a block is one chain of fused multiply-adds in ascending order from zero, and blocks are
    /// added in order, to what is in c if `accumulate` says so. With AMX blocks of bfloat16 are 32
    /// elements, summed as the processor does it. Results are bitwise the same for any number of
    /// threads, any strides and any position in a batch, and on every instruction set with fused
    /// multiply-add, but for bfloat16 with AVX512-BF16 and AMX, which count denormal numbers as 0.
    ///
    /// Costs 2 · batch · rows · columns · depth operations. Elements of c between rows and between
    /// matrices are left alone; c overlaps neither a nor b.
    ///
    /// - Parameters:
    ///   - a: Left operands, [batch, rows, depth], or [batch, depth, rows] for `.tn`.
    ///   - b: Right operands, [batch, depth, columns], or [batch, columns, depth] for `.nt`.
    ///   - c: Products, [batch, rows, columns].
    ///   - accumulate: Add to c.
    ///   - threads: Threads at most; 0 is the default of the runtime.
    ///   - workspace: Grows to 512 KB for each thread and at most 8 MB for packed operands; a batch
    ///     of small products has those 8 MB for each thread.
    /// - Throws: `outOfRange` for a negative size, stride or number of threads; `tooSmall` for a
    ///   stride or a span that the sizes do not fit in; `overflow`.
    public static func multiply<Element: StorageElement>(
        _ a: Span<Element>, _ b: Span<Element>, into c: inout MutableSpan<Float>, shape: Shape,
        layout: Layout = .nn, accumulate: Bool = false, threads: Int = 0, workspace: Workspace
    ) throws(KernelError) {
        try checkSizes(shape)
        let (aExtent, bExtent, cExtent) = extents(shape, layout)
        let aBatchStride = try aExtent.check(a.count)
        let bBatchStride = try bExtent.check(b.count)
        let cBatchStride = try cExtent.check(c.count)
        var matmul = unsafe lmk_matmul()
        unsafe matmul.layout = layout.cLayout
        unsafe matmul.dtype = Element.storageType.dtype
        unsafe matmul.batch = shape.batch
        unsafe matmul.rows = shape.rows
        unsafe matmul.columns = shape.columns
        unsafe matmul.depth = shape.depth
        unsafe matmul.a_stride = aExtent.stride
        unsafe matmul.a_batch_stride = aBatchStride
        unsafe matmul.b_stride = bExtent.stride
        unsafe matmul.b_batch_stride = bBatchStride
        unsafe matmul.c_stride = cExtent.stride
        unsafe matmul.c_batch_stride = cBatchStride
        unsafe matmul.accumulate = accumulate ? 1 : 0
        unsafe matmul.threads = try Threads.checked(threads)
        let byteCount = unsafe lmk_matmul_workspace_size(&matmul)
        try unsafe check { error in
            unsafe withPointer(a) { a in
                unsafe withPointer(b) { b in
                    unsafe c.withUnsafeMutableBufferPointer { c in
                        unsafe matmul.a = UnsafeRawPointer(a)
                        unsafe matmul.b = UnsafeRawPointer(b)
                        unsafe matmul.c = c.baseAddress
                        return unsafe workspace.withMemory(byteCount: byteCount) { memory, size in
                            unsafe lmk_matmul_run(&matmul, memory, size, error)
                        }
                    }
                }
            }
        }
    }
}

extension Matmul.Layout {
    fileprivate var cLayout: lmk_layout {
        switch self {
        case .nn: .LMK_NN
        case .nt: .LMK_NT
        case .tn: .LMK_TN
        }
    }
}

extension Matmul {
    private static func checkSizes(_ shape: Shape) throws(KernelError) {
        try checkNotNegative("rows", shape.rows)
        try checkNotNegative("columns", shape.columns)
        try checkNotNegative("depth", shape.depth)
        try checkNotNegative("batch", shape.batch)
    }

    /// The three operands as they lie in memory.
    private static func extents(
        _ shape: Shape, _ layout: Layout
    ) -> (a: MatrixExtent, b: MatrixExtent, c: MatrixExtent) {
        func extent(
            _ argument: String, _ rows: Int, _ columns: Int, _ stride: Int?, _ batchStride: Int?
        ) -> MatrixExtent {
            MatrixExtent(
                argument: argument, batch: shape.batch, rows: rows, columns: columns,
                stride: stride ?? columns, batchStride: batchStride)
        }
        let (rows, columns, depth) = (shape.rows, shape.columns, shape.depth)
        let (aStride, aBatchStride) = (shape.aStride, shape.aBatchStride)
        let (bStride, bBatchStride) = (shape.bStride, shape.bBatchStride)
        let a =
            layout == .tn
            ? extent("a", depth, rows, aStride, aBatchStride)
            : extent("a", rows, depth, aStride, aBatchStride)
        let b =
            layout == .nt
            ? extent("b", columns, depth, bStride, bBatchStride)
            : extent("b", depth, columns, bStride, bBatchStride)
        return (a, b, extent("c", rows, columns, shape.cStride, shape.cBatchStride))
    }
}
