internal import CLMKCore
internal import CLMKDeltaRule
internal import CLMKLinearAttention

/// The self-referential weight matrix, which writes itself.
///
/// Each sequence has, for every head, a matrix W [rows, D] with rows = E + 2 D + 4, in four blocks
/// of E, D, D and 4 rows that make the output, the key, the query and four rates. With inputs x_t
/// [D] and phi the softmax over D entries:
///
///     [y_t, k_t, q_t, beta_t] = W_{t-1} phi(x_t)
///     v_t = W_{t-1} phi(q_t)        u_t = W_{t-1} phi(k_t)
///     W_t = W_{t-1} + rate_t (v_t - u_t) phi(k_t)^T        row by row
///
/// rate_t is sigmoid(beta_t1) in the rows of y, sigmoid(beta_t2) in those of k, sigmoid(beta_t3) in
/// those of q and sigmoid(beta_t4) in those of beta. y_t comes before the change.
///
/// These are the equations of Irie, Schlag, Csordás and Schmidhuber, "A Modern Self-Referential
/// Weight Matrix That Learns to Modify Itself", 2022, with a rate for each block as their published
/// code has it. That code has E = D, holds the blocks as matrices [D, rows] in the order y, q, k,
/// beta with rates in that order, and leaves phi(x) to the caller, who may leave it out.
///
/// x, y and their gradients are float32, bfloat16 or float16; matrices are float32, and so is all
/// arithmetic. float32 results have the same bits for any number of threads and on every
/// instruction set with fused multiply-add, and those of a token do not depend on later ones.
///
/// A batch [batch, tokens] holds as many sequences, or, with offsets and a batch of 1, N sequences
/// one after the other. N is the batch in the first case.
public enum SelfReferentialMatrix {
    /// Sizes of a call.
    public struct Shape: Sendable, Hashable {
        /// 1 where sequences are packed.
        public var batch: Int
        /// Of all sequences together where they are packed.
        public var tokens: Int
        public var heads: Int
        /// D, of inputs, keys and queries, in 1 ... 512.
        public var keyDimension: Int
        /// E, of outputs, in 1 ... 512.
        public var valueDimension: Int

        public init(
            batch: Int = 1, tokens: Int, heads: Int = 1, keyDimension: Int, valueDimension: Int
        ) {
            self.batch = batch
            self.tokens = tokens
            self.heads = heads
            self.keyDimension = keyDimension
            self.valueDimension = valueDimension
        }

        /// Rows of a matrix, E + 2 D + 4.
        public var rows: Int { valueDimension + 2 * keyDimension + 4 }
    }

    /// Strides of the tensors of a call.
    public struct Strides: Sendable, Hashable {
        public var x = LinearAttention.StageStrides()
        public var y = LinearAttention.StageStrides()
        public var xGradient = LinearAttention.StageStrides()
        public var yGradient = LinearAttention.StageStrides()

        public init() {}
    }

    /// Computes y and the last matrices.
    ///
    /// Costs 6 rows D operations for a token and head, in two passes over W.
    ///
    /// - Parameters:
    ///   - x: [batch, tokens, heads, D]
    ///   - y: [batch, tokens, heads, E]
    ///   - initialMatrix: W_0, [N, heads, rows, D], or [heads, rows, D] where sequences share it.
    ///   - sharesInitialMatrix: Whether all sequences begin with the same matrices.
    ///   - finalMatrix: W after the last token, [N, heads, rows, D]; W_0 for a sequence without
    ///     tokens.
    ///   - hasInputSoftmax: Whether phi is applied to x; x_t stands in place of phi(x_t) otherwise.
    ///   - offsets: Sequence n has the tokens offsets[n] ..< offsets[n + 1], maybe none; from 0 to
    ///     `tokens`, not descending. nil: each of the batch is one.
    ///   - threads: Threads at most; 0 is the default of the runtime. Sequences and heads go to
    ///     different ones.
    ///   - workspace: Grows to a matrix and a few rows for each thread.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
    ///   `countMismatch` for matrices; `badEntry` for offsets; `overflow`.
    public static func forward<Element: StorageElement>(
        _ x: Span<Element>, into y: inout MutableSpan<Element>, initialMatrix: Span<Float>,
        sharesInitialMatrix: Bool = false, finalMatrix: consuming MutableSpan<Float>? = nil,
        hasInputSoftmax: Bool = true, shape: Shape, strides: Strides = Strides(),
        offsets: Span<Int>? = nil, threads: Int = 0, workspace: Workspace
    ) throws(KernelError) {
        var matrix = try unsafe descriptor(
            shape, x.count, initialMatrix.count, sharesInitialMatrix, hasInputSoftmax, strides,
            offsets?.count, threads, Element.storageType)
        let yStrides = try extent("y", shape, shape.valueDimension).check(y.count, strides.y)
        try checkCount(
            "finalMatrix", finalMatrix?.count, expected: shape.entries(sequences(shape, offsets)))
        try unsafe check { error in
            unsafe withInputs(&matrix, x, initialMatrix, offsets) { matrix in
                unsafe y.withUnsafeMutableBufferPointer { y in
                    unsafe withMutablePointer(&finalMatrix) { finalMatrix in
                        let needed = unsafe lmk_self_referential_workspace_size(&matrix)
                        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                            unsafe lmk_self_referential_forward(
                                &matrix, y.baseAddress, yStrides, finalMatrix, memory, size, error)
                        }
                    }
                }
            }
        }
    }

    /// Gradients of  <dy, y> + <dW, final matrix>. A gradient that is nil is not computed.
    ///
    /// From the last token to the first, with W = W_{t-1}, f = phi(x_t), G the gradient of W_t and
    /// p = rate (v - u):
    ///
    ///     dp = G phi(k)        dd = rate dp        dbeta_i = sigmoid' sum of (v - u) dp over block i
    ///     dphi(q) = W^T dd        dphi(k) = G^T p - W^T dd        dr = [dy, dk, dq, dbeta]
    ///     G <- G + dd (phi(q) - phi(k))^T + dr f^T        df = W^T dr
    ///
    /// - Parameters:
    ///   - x: As given to `forward`, as are the other inputs.
    ///   - yGradient: dy, [batch, tokens, heads, E]
    ///   - finalMatrixGradient: dW, [N, heads, rows, D]; nil: 0.
    ///   - xGradient: [batch, tokens, heads, D]
    ///   - initialMatrixGradient: In the shape of `initialMatrix`, summed over sequences, in order,
    ///     where they share it; only heads go to different threads then.
    ///   - workspace: Grows for each thread to 5/8 sqrt(T) matrices and 8 rows each of 2 sqrt(T)
    ///     tokens, T being the tokens of the longest sequence: W is kept every 2 sqrt(T) tokens, and
    ///     computed again and kept every 16 in between.
    /// - Throws: As `forward`.
    public static func backward<Element: StorageElement>(
        _ x: Span<Element>, yGradient: Span<Element>, initialMatrix: Span<Float>,
        sharesInitialMatrix: Bool = false, finalMatrixGradient: Span<Float>? = nil,
        xGradient: consuming MutableSpan<Element>? = nil,
        initialMatrixGradient: consuming MutableSpan<Float>? = nil, hasInputSoftmax: Bool = true,
        shape: Shape, strides: Strides = Strides(), offsets: Span<Int>? = nil, threads: Int = 0,
        workspace: Workspace
    ) throws(KernelError) {
        var matrix = try unsafe descriptor(
            shape, x.count, initialMatrix.count, sharesInitialMatrix, hasInputSoftmax, strides,
            offsets?.count, threads, Element.storageType)
        var gradients = unsafe lmk_self_referential_gradients()
        unsafe gradients.dy_strides = try extent("yGradient", shape, shape.valueDimension).check(
            yGradient.count, strides.yGradient)
        if let count = xGradient?.count {
            unsafe gradients.dx_strides = try extent("xGradient", shape, shape.keyDimension).check(
                count, strides.xGradient)
        }
        try checkCount(
            "finalMatrixGradient", finalMatrixGradient?.count,
            expected: shape.entries(sequences(shape, offsets)))
        try checkCount(
            "initialMatrixGradient", initialMatrixGradient?.count, expected: initialMatrix.count)
        try unsafe check { error in
            unsafe withInputs(&matrix, x, initialMatrix, offsets) { matrix in
                unsafe withPointer(yGradient) { dy in
                    unsafe withPointer(finalMatrixGradient) { dfinal in
                        unsafe withMutablePointer(&xGradient) { dx in
                            unsafe withMutablePointer(&initialMatrixGradient) { dinitial in
                                unsafe gradients.dy = UnsafeRawPointer(dy)
                                unsafe gradients.dfinal_matrix = dfinal
                                unsafe gradients.dx = UnsafeMutableRawPointer(dx)
                                unsafe gradients.dinitial_matrix = dinitial
                                return unsafe run(&matrix, &gradients, workspace, error)
                            }
                        }
                    }
                }
            }
        }
    }
}

// MARK: - Descriptors

extension SelfReferentialMatrix.Shape {
    /// Entries of the matrices of `sequences` sequences.
    fileprivate func entries(_ sequences: Int) throws(KernelError) -> Int {
        let (ofHeads, overflow) = (rows * keyDimension).multipliedReportingOverflow(by: heads)
        let (count, overflowOfAll) = ofHeads.multipliedReportingOverflow(by: sequences)
        guard !overflow, !overflowOfAll else { throw .overflow(argument: "initialMatrix") }
        return count
    }
}

extension SelfReferentialMatrix {
    private static func run(
        _ matrix: inout lmk_self_referential, _ gradients: inout lmk_self_referential_gradients,
        _ workspace: Workspace, _ error: UnsafeMutablePointer<lmk_error>
    ) -> lmk_status {
        let needed = unsafe lmk_self_referential_backward_workspace_size(&matrix)
        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
            unsafe lmk_self_referential_backward(&matrix, &gradients, memory, size, error)
        }
    }

    private static func extent(_ argument: String, _ shape: Shape, _ columns: Int) -> StageExtent {
        StageExtent(
            argument: argument, batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
            columns: columns)
    }

    private static func sequences(_ shape: Shape, _ offsets: Span<Int>?) -> Int {
        if let offsets { offsets.count - 1 } else { shape.batch }
    }

    private static func descriptor(
        _ shape: Shape, _ x: Int, _ initialMatrix: Int, _ sharesInitialMatrix: Bool,
        _ hasInputSoftmax: Bool, _ strides: Strides, _ offsets: Int?, _ threads: Int,
        _ type: StorageType
    ) throws(KernelError) -> lmk_self_referential {
        try checkNotNegative("batch", shape.batch)
        try checkNotNegative("tokens", shape.tokens)
        guard shape.heads >= 1 else {
            throw .outOfRange(argument: "heads", allowed: ">= 1", actual: "\(shape.heads)")
        }
        for (name, dimension) in [
            ("keyDimension", shape.keyDimension), ("valueDimension", shape.valueDimension),
        ] where !(1...512).contains(dimension) {
            throw .outOfRange(argument: name, allowed: "from 1 to 512", actual: "\(dimension)")
        }
        if let offsets {
            guard offsets >= 1 else {
                throw .tooSmall(argument: "offsets", minimum: 1, actual: offsets)
            }
        }
        let sequences = offsets.map { $0 - 1 } ?? shape.batch
        try checkCount(
            "initialMatrix", initialMatrix,
            expected: shape.entries(sharesInitialMatrix ? 1 : sequences))
        var matrix = unsafe lmk_self_referential()
        unsafe matrix.dtype = type.dtype
        unsafe matrix.batch = shape.batch
        unsafe matrix.tokens = shape.tokens
        unsafe matrix.heads = shape.heads
        unsafe matrix.key_dim = shape.keyDimension
        unsafe matrix.value_dim = shape.valueDimension
        unsafe matrix.x_strides = try extent("x", shape, shape.keyDimension).check(x, strides.x)
        unsafe matrix.has_input_softmax = hasInputSoftmax ? 1 : 0
        unsafe matrix.shares_initial_matrix = sharesInitialMatrix ? 1 : 0
        unsafe matrix.sequences = sequences
        unsafe matrix.threads = try Threads.checked(threads)
        return unsafe matrix
    }

    /// Calls `body` with what both directions read.
    private static func withInputs<Element: StorageElement>(
        _ matrix: inout lmk_self_referential, _ x: Span<Element>, _ initialMatrix: Span<Float>,
        _ offsets: Span<Int>?, _ body: (inout lmk_self_referential) -> lmk_status
    ) -> lmk_status {
        unsafe withPointer(x) { x in
            unsafe withPointer(initialMatrix) { initialMatrix in
                unsafe withOffsets(offsets) { offsets in
                    unsafe matrix.x = UnsafeRawPointer(x)
                    unsafe matrix.initial_matrix = initialMatrix
                    unsafe matrix.offsets = offsets
                    return unsafe body(&matrix)
                }
            }
        }
    }
}
