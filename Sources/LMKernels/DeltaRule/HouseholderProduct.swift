internal import CLMKCore
internal import CLMKDeltaRule

/// Products of Householder-like factors, and their application to matrices:
///
///     P = H_1 H_2 ... H_n,    H_i = I - beta_i k_i k_i^T
///
/// With beta_i = 2 / |k_i|^2 a factor is a reflection and P is orthogonal; nothing here needs that.
/// n may be larger than the number of dimensions. Where |1 - beta_i |k_i|^2| > 1 a factor
/// stretches, and products of many grow without bound: that is the caller's to know.
///
/// P is never formed. Factors are taken in blocks of at most 32, each in its compact WY form, so
/// that applying P is a sequence of matrix products:
///
///     P = I - K^T T K,    K [n, dimensions] the rows k_i,    T [n, n] upper triangular
///     T_ii = beta_i,      T_ij = -beta_i sum_{i < l <= j} <k_i, k_l> T_lj,  j > i
///
/// k, x, y and their gradients are float32, bfloat16 or float16; beta and its gradient are float32,
/// and so is all arithmetic, with one rounding at the end. float32 results have the same bits for
/// any number of threads and on every instruction set with fused multiply-add.
///
/// Leading and trailing dimensions in which a whole block of factors is 0, as in the reflections of
/// a QR decomposition, are passed over: they cost nothing, and an infinity there stays one.
///
/// Schreiber and Van Loan, "A Storage-Efficient WY Representation for Products of Householder
/// Transformations", 1989.
public enum HouseholderProduct {
    /// Where P stands.
    @frozen public enum Side: Sendable, Hashable, CaseIterable {
        /// P x, with vectors in the columns of x [dimensions, vectors].
        case left
        /// x P, with vectors in the rows of x [vectors, dimensions].
        case right
    }

    /// Sizes of a batch of products, and of the matrices that they are applied to.
    public struct Shape: Sendable, Hashable {
        /// Products, each with a matrix of its own.
        public var batch: Int
        /// n. 0 makes P the identity.
        public var factors: Int
        /// Length of k_i.
        public var dimensions: Int
        /// Columns of x on the left, rows of x on the right. `triangle` does not use it.
        public var vectors: Int

        public init(batch: Int = 1, factors: Int, dimensions: Int, vectors: Int = 0) {
            self.batch = batch
            self.factors = factors
            self.dimensions = dimensions
            self.vectors = vectors
        }
    }

    /// Where the rows of a batch of matrices begin, in elements; elements between them are left
    /// alone. nil is that of a dense array.
    public struct MatrixStrides: Sendable, Hashable {
        public var row: Int?
        /// For inputs 0 uses the same matrix throughout.
        public var batch: Int?

        public init(row: Int? = nil, batch: Int? = nil) {
            self.row = row
            self.batch = batch
        }
    }

    /// Strides of all arrays of a call. The row of beta, one for each product, has none.
    public struct Strides: Sendable, Hashable {
        public var k = MatrixStrides()
        /// From the beta of one product to that of the next.
        public var betaBatch: Int?
        public var x = MatrixStrides()
        public var y = MatrixStrides()
        public var triangle = MatrixStrides()
        public var kGradient = MatrixStrides()
        public var betaGradientBatch: Int?
        public var xGradient = MatrixStrides()
        public var yGradient = MatrixStrides()

        public init() {}
    }

    /// T of the compact WY form, zero below its diagonal.
    ///
    /// It is the T of LAPACK's larft with direct 'F' (forward) and storev 'C', whose V is K^T and
    /// tau is beta, row by row. LAPACK wants k_i to begin with i - 1 zeros and a one; here it is any
    /// row.
    ///
    /// Costs about n^2 dimensions + n^3 / 3 multiply-adds for each of the batch.
    ///
    /// - Parameters:
    ///   - k: [batch, factors, dimensions]
    ///   - beta: [batch, factors]
    ///   - t: [batch, factors, factors]
    ///   - threads: Threads at most; 0 is the default of the runtime.
    ///   - workspace: Grows to about 8 n (n + dimensions + 16) bytes.
    /// - Throws: `outOfRange` for a negative size, stride or number of threads; `tooSmall` for a
    ///   stride or a span that the sizes do not fit in; `overflow`.
    public static func triangle<Element: StorageElement>(
        _ k: Span<Element>, beta: Span<Float>, into t: inout MutableSpan<Float>, shape: Shape,
        strides: Strides = Strides(), threads: Int = 0, workspace: Workspace
    ) throws(KernelError) {
        let product = try unsafe descriptor(
            k.count, beta.count, shape, strides, threads, Element.storageType)
        let extent = matrix("triangle", shape.batch, shape.factors, shape.factors, strides.triangle)
        let batchStride = try extent.checkApart(t.count)
        try unsafe check { error in
            unsafe withFactors(product, k, beta) { product in
                unsafe t.withUnsafeMutableBufferPointer { t in
                    let needed = unsafe lmk_householder_wy_workspace_size(&product)
                    return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                        unsafe lmk_householder_wy(
                            &product, t.baseAddress, extent.stride, batchStride, memory, size, error
                        )
                    }
                }
            }
        }
    }

    /// y = P x, P^T x, x P or x P^T.
    ///
    /// Costs 4 · factors · dimensions operations for each vector, and a little for the forms of
    /// blocks. The largest error of an entry is a few 10^-7 of the largest entry of y where factors
    /// do not stretch.
    ///
    /// - Parameters:
    ///   - k: [batch, factors, dimensions]
    ///   - beta: [batch, factors]
    ///   - x: [batch, dimensions, vectors] on the left, [batch, vectors, dimensions] on the right.
    ///   - y: As x.
    ///   - isTransposed: Whether P^T takes the place of P.
    ///   - threads: Threads at most; 0 is the default of the runtime.
    ///   - workspace: Grows to about 12 · factors · dimensions bytes, for each thread where the
    ///     batch is large, and 512 · dimensions bytes for each thread.
    /// - Throws: As `triangle`.
    public static func apply<Element: StorageElement>(
        _ k: Span<Element>, beta: Span<Float>, to x: Span<Element>,
        into y: inout MutableSpan<Element>, shape: Shape, side: Side = .left,
        isTransposed: Bool = false, strides: Strides = Strides(), threads: Int = 0,
        workspace: Workspace
    ) throws(KernelError) {
        var application = try unsafe application(
            k.count, beta.count, x.count, shape, side, isTransposed, strides, threads,
            Element.storageType)
        let extent = vectors("y", shape, side, strides.y)
        let batchStride = try extent.checkApart(y.count)
        try unsafe check { error in
            unsafe withFactors(application.product, k, beta) { product in
                unsafe withPointer(x) { x in
                    unsafe y.withUnsafeMutableBufferPointer { y in
                        unsafe application.product = product
                        unsafe application.x = UnsafeRawPointer(x)
                        return unsafe run(
                            &application, y.baseAddress, extent.stride, batchStride, workspace,
                            error)
                    }
                }
            }
        }
    }

    /// The same in place: x becomes y, at the strides of x.
    public static func apply<Element: StorageElement>(
        _ k: Span<Element>, beta: Span<Float>, inPlace x: inout MutableSpan<Element>, shape: Shape,
        side: Side = .left, isTransposed: Bool = false, strides: Strides = Strides(),
        threads: Int = 0, workspace: Workspace
    ) throws(KernelError) {
        var application = try unsafe application(
            k.count, beta.count, x.count, shape, side, isTransposed, strides, threads,
            Element.storageType)
        let extent = vectors("x", shape, side, strides.x)
        let batchStride = try extent.checkApart(x.count)
        try unsafe check { error in
            unsafe withFactors(application.product, k, beta) { product in
                unsafe x.withUnsafeMutableBufferPointer { x in
                    unsafe application.product = product
                    unsafe application.x = UnsafeRawPointer(x.baseAddress)
                    return unsafe run(
                        &application, x.baseAddress, extent.stride, batchStride, workspace, error)
                }
            }
        }
    }

    /// Gradients of  <dy, y>. A gradient that is nil is not computed.
    ///
    /// With z_i what factor i is applied to and e_i the gradient of what it makes of that, summed
    /// over vectors:
    ///
    ///     dbeta_i = -<k_i, z_i> <k_i, e_i>
    ///     dk_i = -beta_i (<k_i, z_i> e_i + <k_i, e_i> z_i)        dx = P^T dy, or P dy
    ///
    /// What each block of factors is applied to is kept; nothing is divided by 1 - beta |k|^2, which
    /// may be 0. Sums over vectors are taken in at most 16 groups that depend on sizes alone.
    ///
    /// Costs three times `apply`.
    ///
    /// - Parameters:
    ///   - k: As given to `apply`, as are the other inputs.
    ///   - yGradient: dy, as x.
    ///   - kGradient: dk, [batch, factors, dimensions]
    ///   - betaGradient: dbeta, [batch, factors]
    ///   - xGradient: dx, as x.
    ///   - workspace: Grows to 128 · dimensions bytes for each block of factors and each of at most
    ///     16 groups and for each thread, and to what `apply` takes.
    /// - Throws: As `triangle`.
    public static func backward<Element: StorageElement>(
        _ k: Span<Element>, beta: Span<Float>, x: Span<Element>, yGradient: Span<Element>,
        kGradient: consuming MutableSpan<Element>? = nil,
        betaGradient: consuming MutableSpan<Float>? = nil,
        xGradient: consuming MutableSpan<Element>? = nil, shape: Shape, side: Side = .left,
        isTransposed: Bool = false, strides: Strides = Strides(), threads: Int = 0,
        workspace: Workspace
    ) throws(KernelError) {
        var application = try unsafe application(
            k.count, beta.count, x.count, shape, side, isTransposed, strides, threads,
            Element.storageType)
        var gradients = unsafe lmk_householder_gradients()
        let dy = vectors("yGradient", shape, side, strides.yGradient)
        unsafe gradients.dy_stride = dy.stride
        unsafe gradients.dy_batch_stride = try dy.check(yGradient.count)
        if let count = xGradient?.count {
            let dx = vectors("xGradient", shape, side, strides.xGradient)
            unsafe gradients.dx_stride = dx.stride
            unsafe gradients.dx_batch_stride = try dx.checkApart(count)
        }
        if let count = kGradient?.count {
            let dk = factors("kGradient", shape, strides.kGradient)
            unsafe gradients.dk_stride = dk.stride
            unsafe gradients.dk_batch_stride = try dk.checkApart(count)
        }
        if let count = betaGradient?.count {
            unsafe gradients.dbeta_batch_stride = try rates(
                "betaGradient", shape, strides.betaGradientBatch
            ).checkApart(count)
        }
        try unsafe check { error in
            unsafe withFactors(application.product, k, beta) { product in
                unsafe withPointer(x) { x in
                    unsafe withPointer(yGradient) { dy in
                        unsafe withMutablePointer(&kGradient) { dk in
                            unsafe withMutablePointer(&betaGradient) { dbeta in
                                unsafe withMutablePointer(&xGradient) { dx in
                                    unsafe application.product = product
                                    unsafe application.x = UnsafeRawPointer(x)
                                    unsafe gradients.dy = UnsafeRawPointer(dy)
                                    unsafe gradients.dk = UnsafeMutableRawPointer(dk)
                                    unsafe gradients.dbeta = dbeta
                                    unsafe gradients.dx = UnsafeMutableRawPointer(dx)
                                    return unsafe run(
                                        &application, &gradients, workspace, error)
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

// MARK: - Descriptors

extension HouseholderProduct {
    private static func run(
        _ application: inout lmk_householder_application, _ y: UnsafeMutableRawPointer?,
        _ stride: Int, _ batchStride: Int, _ workspace: Workspace,
        _ error: UnsafeMutablePointer<lmk_error>
    ) -> lmk_status {
        let needed = unsafe lmk_householder_apply_workspace_size(&application)
        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
            unsafe lmk_householder_apply(
                &application, y, stride, batchStride, memory, size, error)
        }
    }

    private static func run(
        _ application: inout lmk_householder_application,
        _ gradients: inout lmk_householder_gradients, _ workspace: Workspace,
        _ error: UnsafeMutablePointer<lmk_error>
    ) -> lmk_status {
        let needed = unsafe lmk_householder_backward_workspace_size(&application)
        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
            unsafe lmk_householder_backward(&application, &gradients, memory, size, error)
        }
    }

    private static func matrix(
        _ argument: String, _ batch: Int, _ rows: Int, _ columns: Int, _ strides: MatrixStrides
    ) -> MatrixExtent {
        MatrixExtent(
            argument: argument, batch: batch, rows: rows, columns: columns,
            stride: strides.row ?? columns, batchStride: strides.batch)
    }

    private static func factors(
        _ argument: String, _ shape: Shape, _ strides: MatrixStrides
    ) -> MatrixExtent {
        matrix(argument, shape.batch, shape.factors, shape.dimensions, strides)
    }

    private static func rates(
        _ argument: String, _ shape: Shape, _ batchStride: Int?
    ) -> MatrixExtent {
        matrix(argument, shape.batch, 1, shape.factors, MatrixStrides(batch: batchStride))
    }

    private static func vectors(
        _ argument: String, _ shape: Shape, _ side: Side, _ strides: MatrixStrides
    ) -> MatrixExtent {
        let (dimensions, vectors) = (shape.dimensions, shape.vectors)
        return side == .left
            ? matrix(argument, shape.batch, dimensions, vectors, strides)
            : matrix(argument, shape.batch, vectors, dimensions, strides)
    }

    private static func descriptor(
        _ k: Int, _ beta: Int, _ shape: Shape, _ strides: Strides, _ threads: Int,
        _ type: StorageType
    ) throws(KernelError) -> lmk_householder {
        try checkNotNegative("batch", shape.batch)
        try checkNotNegative("factors", shape.factors)
        try checkNotNegative("dimensions", shape.dimensions)
        try checkNotNegative("vectors", shape.vectors)
        let extent = factors("k", shape, strides.k)
        var product = unsafe lmk_householder()
        unsafe product.dtype = type.dtype
        unsafe product.batch = shape.batch
        unsafe product.factors = shape.factors
        unsafe product.dim = shape.dimensions
        unsafe product.k_stride = extent.stride
        unsafe product.k_batch_stride = try extent.check(k)
        unsafe product.beta_batch_stride = try rates("beta", shape, strides.betaBatch).check(beta)
        unsafe product.threads = try Threads.checked(threads)
        return unsafe product
    }

    private static func application(
        _ k: Int, _ beta: Int, _ x: Int, _ shape: Shape, _ side: Side, _ isTransposed: Bool,
        _ strides: Strides, _ threads: Int, _ type: StorageType
    ) throws(KernelError) -> lmk_householder_application {
        var application = unsafe lmk_householder_application()
        unsafe application.product = try descriptor(k, beta, shape, strides, threads, type)
        let extent = vectors("x", shape, side, strides.x)
        unsafe application.side = side == .left ? .LMK_HOUSEHOLDER_LEFT : .LMK_HOUSEHOLDER_RIGHT
        unsafe application.is_transposed = isTransposed ? 1 : 0
        unsafe application.vectors = shape.vectors
        unsafe application.x_stride = extent.stride
        unsafe application.x_batch_stride = try extent.check(x)
        return unsafe application
    }

    /// Calls `body` with the descriptor of the factors and their addresses.
    private static func withFactors<Element: StorageElement>(
        _ product: lmk_householder, _ k: Span<Element>, _ beta: Span<Float>,
        _ body: (inout lmk_householder) -> lmk_status
    ) -> lmk_status {
        var product = unsafe product
        return unsafe withPointer(k) { k in
            unsafe withPointer(beta) { beta in
                unsafe product.k = UnsafeRawPointer(k)
                unsafe product.beta = beta
                return unsafe body(&product)
            }
        }
    }
}

extension MatrixExtent {
    /// The same for an output, whose matrices must not overlap.
    fileprivate func checkApart(_ actual: Int) throws(KernelError) -> Int {
        let batchStride = try check(actual)
        // These do not overflow: the last element of all has been counted.
        let reach = rows > 0 && columns > 0 ? (rows - 1) * stride + columns : 0
        guard batch <= 1 || batchStride >= reach else {
            throw .tooSmall(argument: argument + "BatchStride", minimum: reach, actual: batchStride)
        }
        return batchStride
    }
}
