internal import CLMKCore
internal import CLMKLinearAttention

extension LinearAttention {
    /// phi, a map of each row of queries or keys to features, so that phi(q) . phi(k) stands for
    /// a kernel of q and k. K is the number of columns of a row x.
    ///
    /// float32 results have the same bits for any number of threads and on every instruction set
    /// with fused multiply-add. NaN stays in its place, or is all of its row where the map is of
    /// rows; the gradient of the ReLU maps is 0 there.
    public enum FeatureMap: Sendable, Hashable {
        /// x.
        case identity
        /// elu(x) + 1:  x + 1 where x > 0, exp(x) elsewhere. Katharopoulos et al.
        case eluPlusOne
        /// max(x, 0), with derivative 0 at 0.
        case relu
        /// max(x, 0)^2.
        case squaredReLU
        /// exp(x_j) / sum_i exp(x_i). NaN and +inf make their row NaN, and so does a row of -inf.
        case softmax
        /// [exp(x), exp(-x)], 2K features: Hedgehog (Zhang et al.). x is already projected.
        case expPair
        /// [softmax(x), softmax(-x)], 2K features: the form in which the authors of Hedgehog run
        /// it, within the range of the type. They also raise the result to at least 1e-12.
        case softmaxPair
        /// [1, a, (a a^T) / sqrt(2)] with a = x K^-1/4, 1 + K + K^2 features, the square row by
        /// row: Based (Arora et al.). phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(K).
        case taylor
        /// FLatten (Han et al.): the direction of r^p with the length of r.
        ///
        ///     r = max(x, 0) + epsilon        |r| r^p / |r^p|
        ///
        /// The power, published as 3, is finite and at least 1; integers up to 16 are computed by
        /// products, others by logarithms. The epsilon, published as 1e-6, is finite and at least
        /// 0. A row with r = 0 stays 0 with gradient 0. The published layer divides r by a learned
        /// scale per channel first, which is left to the caller.
        case focused(power: Float, epsilon: Float = 1e-6)
        /// cosFormer (Qin et al.): [r cos(a), r sin(a)] with r = max(x, 0) and a = pi i / (2M) for
        /// a token at position i, 2K features, so that
        /// phi(q_i) . phi(k_j) = relu(q_i) . relu(k_j) cos(pi (i - j) / (2M)).
        ///
        /// Positions, published as 1, 2, ..., are given to the call; M is the length, at least 1.
        case cosine(length: Int)

        /// Strides of the tensors of a call: x and its gradient [batch, tokens, heads, columns],
        /// the features and theirs [batch, tokens, heads, features].
        public struct Strides: Sendable, Hashable {
            public var x = StageStrides()
            public var features = StageStrides()
            public var xGradient = StageStrides()
            public var featuresGradient = StageStrides()

            public init() {}
        }

        /// The number of features of a row of K = `columns`.
        public func featureCount(columns: Int) -> Int {
            switch self {
            case .identity, .eluPlusOne, .relu, .squaredReLU, .softmax, .focused: columns
            case .expPair, .softmaxPair, .cosine: 2 * columns
            case .taylor: 1 + columns + columns * columns
            }
        }

        /// phi of each row. Cost: a read of x and a write of the features.
        ///
        /// - Parameters:
        ///   - x: [batch, tokens, heads, columns], columns at least 1, below 2^31 for the Taylor
        ///     map.
        ///   - features: [batch, tokens, heads, `featureCount(columns:)`]
        ///   - positions: [batch, tokens], in 0 ... length; for the cosine map, and only for it.
        ///   - threads: Threads at most; 0 is the default of the runtime.
        /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for `columns`, a stride
        ///   or a span; `countMismatch` for positions; `conflict` for positions that are missing or
        ///   not wanted; `overflow`.
        public func forward<Element: StorageElement>(
            _ x: Span<Element>, into features: inout MutableSpan<Element>, shape: RowShape,
            strides: Strides = Strides(), positions: Span<Int>? = nil, threads: Int = 0
        ) throws(KernelError) {
            var map = try unsafe descriptor(
                shape, strides, x.count, positions?.count, threads, Element.storageType)
            let phiStrides = try shape.extent(
                "features", columns: featureCount(columns: shape.columns)
            ).check(features.count, strides.features)
            try unsafe check { error in
                unsafe withPointer(x) { x in
                    unsafe withOffsets(positions) { positions in
                        unsafe features.withUnsafeMutableBufferPointer { phi in
                            unsafe map.x = UnsafeRawPointer(x)
                            unsafe map.positions = positions
                            return unsafe lmk_feature_map_forward(
                                &map, phi.baseAddress, phiStrides, error)
                        }
                    }
                }
            }
        }

        /// The gradient of x from that of the features; everything is computed from x again.
        ///
        /// - Parameters:
        ///   - x: As given to `forward`.
        ///   - featuresGradient: [batch, tokens, heads, `featureCount(columns:)`]
        ///   - xGradient: [batch, tokens, heads, columns]
        ///   - positions: As given to `forward`.
        /// - Throws: As `forward`.
        public func backward<Element: StorageElement>(
            _ x: Span<Element>, featuresGradient: Span<Element>,
            xGradient: inout MutableSpan<Element>, shape: RowShape, strides: Strides = Strides(),
            positions: Span<Int>? = nil, threads: Int = 0
        ) throws(KernelError) {
            var map = try unsafe descriptor(
                shape, strides, x.count, positions?.count, threads, Element.storageType)
            let phiStrides = try shape.extent(
                "featuresGradient", columns: featureCount(columns: shape.columns)
            ).check(featuresGradient.count, strides.featuresGradient)
            let dxStrides = try shape.extent("xGradient").check(
                xGradient.count, strides.xGradient)
            try unsafe check { error in
                unsafe withPointer(x) { x in
                    unsafe withOffsets(positions) { positions in
                        unsafe withPointer(featuresGradient) { dphi in
                            unsafe xGradient.withUnsafeMutableBufferPointer { dx in
                                unsafe map.x = UnsafeRawPointer(x)
                                unsafe map.positions = positions
                                return unsafe lmk_feature_map_backward(
                                    &map, dphi, phiStrides, dx.baseAddress, dxStrides, error)
                            }
                        }
                    }
                }
            }
        }

        private func descriptor(
            _ shape: RowShape, _ strides: Strides, _ x: Int, _ positions: Int?, _ threads: Int,
            _ type: StorageType
        ) throws(KernelError) -> lmk_feature_map {
            try shape.check()
            if case .taylor = self, shape.columns > Int(Int32.max) {
                throw .outOfRange(
                    argument: "columns", allowed: "below 2^31", actual: "\(shape.columns)")
            }
            guard shape.columns <= Int.max / 4 else { throw .overflow(argument: "columns") }
            var map = unsafe lmk_feature_map()
            unsafe map.features = features
            unsafe map.dtype = type.dtype
            unsafe map.batch = shape.batch
            unsafe map.tokens = shape.tokens
            unsafe map.heads = shape.heads
            unsafe map.columns = shape.columns
            unsafe map.threads = try Threads.checked(threads)
            unsafe map.x_strides = try shape.extent("x").check(x, strides.x)
            if case .focused(let power, let epsilon) = self {
                unsafe map.power = power
                unsafe map.epsilon = epsilon
            }
            if case .cosine(let length) = self {
                unsafe map.length = Int64(length)
                guard let positions else {
                    throw .conflict(argument: "positions", reason: "needed by the cosine map")
                }
                let (count, overflow) = shape.batch.multipliedReportingOverflow(by: shape.tokens)
                guard !overflow else { throw .overflow(argument: "positions") }
                try checkCount("positions", positions, expected: count)
            } else if positions != nil {
                throw .conflict(argument: "positions", reason: "only with the cosine map")
            }
            return unsafe map
        }

        private var features: lmk_features {
            switch self {
            case .identity: .LMK_FEATURES_IDENTITY
            case .eluPlusOne: .LMK_FEATURES_ELU_PLUS_ONE
            case .relu: .LMK_FEATURES_RELU
            case .squaredReLU: .LMK_FEATURES_SQUARED_RELU
            case .softmax: .LMK_FEATURES_SOFTMAX
            case .expPair: .LMK_FEATURES_EXP_PAIR
            case .softmaxPair: .LMK_FEATURES_SOFTMAX_PAIR
            case .taylor: .LMK_FEATURES_TAYLOR
            case .focused: .LMK_FEATURES_FOCUSED
            case .cosine: .LMK_FEATURES_COSINE
            }
        }
    }
}
