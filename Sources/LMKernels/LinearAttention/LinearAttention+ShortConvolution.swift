internal import CLMKCore
internal import CLMKLinearAttention

extension LinearAttention {
    /// Short causal convolution of each channel by itself, before queries, keys and values.
    ///
    /// With the inputs before the first token in a state of W - 1 of them, the oldest first:
    ///
    ///     z_td = b_d + sum_j w_dj x_{t-W+1+j, d},  j = 0 ..< W        y = z, or z sigmoid(z)
    ///
    /// so that w_d,W-1 multiplies the current token, as in PyTorch's conv1d and causal-conv1d.
    ///
    /// float32 results have the same bits for any number of threads and on every instruction set
    /// with fused multiply-add. N is the number of sequences: `batch`, or one less than there are
    /// offsets.
    public enum ShortConvolution {
        /// Strides of the tensors [batch, tokens, channels] of a call.
        public struct Strides: Sendable, Hashable {
            public var x = StageStrides()
            public var y = StageStrides()
            public var xGradient = StageStrides()
            public var yGradient = StageStrides()

            public init() {}
        }

        /// Computes y. Cost: a read of x and a write of y.
        ///
        /// - Parameters:
        ///   - x: [batch, tokens, channels]
        ///   - y: [batch, tokens, channels]
        ///   - weight: w, [channels, W]
        ///   - width: W, in 2 ... 8.
        ///   - bias: b, [channels]; nil: 0.
        ///   - appliesSiLU: Whether y = z sigmoid(z).
        ///   - offsets: Sequence n has the tokens offsets[n] ..< offsets[n + 1], maybe none; from 0
        ///     to `tokens`, not descending. No token reaches into another sequence. nil: each of
        ///     the batch is one.
        ///   - initialState: The inputs before each sequence, [N, W - 1, channels]; nil: 0.
        ///   - finalState: The last inputs of each sequence, [N, W - 1, channels], which reach back
        ///     into the initial state where it is shorter.
        ///   - threads: Threads at most; 0 is the default of the runtime.
        /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
        ///   `countMismatch` for weight, bias and states; `conflict` for offsets of a batch;
        ///   `overflow`.
        public static func forward<Element: StorageElement>(
            _ x: Span<Element>, into y: inout MutableSpan<Element>, weight: Span<Float>,
            width: Int, bias: Span<Float>? = nil, appliesSiLU: Bool = false, shape: ChannelShape,
            strides: Strides = Strides(), offsets: Span<Int>? = nil,
            initialState: Span<Float>? = nil, finalState: consuming MutableSpan<Float>? = nil,
            threads: Int = 0
        ) throws(KernelError) {
            var convolution = try unsafe descriptor(
                shape, width, weight.count, bias?.count, offsets?.count, initialState?.count,
                threads, Element.storageType)
            unsafe convolution.has_silu = appliesSiLU ? 1 : 0
            unsafe convolution.x_strides = try shape.extent("x").check(x.count, strides.x)
            let yStrides = try shape.extent("y").check(y.count, strides.y)
            try checkCount(
                "finalState", finalState?.count,
                expected: shape.stateCount(
                    "finalState", shape.sequences(offsets?.count), rows: width - 1))
            try unsafe check { error in
                unsafe withInputs(&convolution, x, weight, bias, offsets, initialState) {
                    convolution in
                    unsafe y.withUnsafeMutableBufferPointer { y in
                        unsafe withMutablePointer(&finalState) { finalState in
                            unsafe lmk_short_convolution_forward(
                                &convolution, y.baseAddress, yStrides, finalState, error)
                        }
                    }
                }
            }
        }

        /// Gradients of  <dy, y> + <ds, final state>. A gradient that is nil is not computed.
        ///
        ///     dz = dy, or dy silu'(z)        db_d = sum_t dz_td
        ///     dw_dj = sum_t dz_td x_{t-W+1+j, d}
        ///     dx_{t-W+1+j, d} += w_dj dz_td        and ds, for the inputs in the final state
        ///
        /// z is computed again. Sums over tokens are taken in blocks that depend on sizes alone.
        ///
        /// - Parameters:
        ///   - x: As given to `forward`, as are the other inputs.
        ///   - yGradient: dy, [batch, tokens, channels]
        ///   - finalStateGradient: ds, [N, W - 1, channels]; nil: 0.
        ///   - xGradient: [batch, tokens, channels]
        ///   - weightGradient: [channels, W]
        ///   - biasGradient: [channels]
        ///   - initialStateGradient: [N, W - 1, channels]
        ///   - workspace: Grows to 4 (W + 1) bytes for each channel of at most 64 blocks of tokens.
        /// - Throws: As `forward`.
        public static func backward<Element: StorageElement>(
            _ x: Span<Element>, yGradient: Span<Element>, finalStateGradient: Span<Float>? = nil,
            xGradient: consuming MutableSpan<Element>? = nil,
            weightGradient: consuming MutableSpan<Float>? = nil,
            biasGradient: consuming MutableSpan<Float>? = nil,
            initialStateGradient: consuming MutableSpan<Float>? = nil, weight: Span<Float>,
            width: Int, bias: Span<Float>? = nil, appliesSiLU: Bool = false, shape: ChannelShape,
            strides: Strides = Strides(), offsets: Span<Int>? = nil,
            initialState: Span<Float>? = nil, threads: Int = 0, workspace: Workspace
        ) throws(KernelError) {
            var convolution = try unsafe descriptor(
                shape, width, weight.count, bias?.count, offsets?.count, initialState?.count,
                threads, Element.storageType)
            unsafe convolution.has_silu = appliesSiLU ? 1 : 0
            unsafe convolution.x_strides = try shape.extent("x").check(x.count, strides.x)
            var gradients = unsafe lmk_short_convolution_gradients()
            unsafe gradients.dy_strides = try shape.extent("yGradient").check(
                yGradient.count, strides.yGradient)
            if let count = xGradient?.count {
                unsafe gradients.dx_strides = try shape.extent("xGradient").check(
                    count, strides.xGradient)
            }
            let states = try shape.stateCount(
                "state", shape.sequences(offsets?.count), rows: width - 1)
            try checkCount("finalStateGradient", finalStateGradient?.count, expected: states)
            try checkCount("initialStateGradient", initialStateGradient?.count, expected: states)
            try checkCount("weightGradient", weightGradient?.count, expected: weight.count)
            try checkCount("biasGradient", biasGradient?.count, expected: shape.channels)
            try unsafe check { error in
                unsafe withInputs(&convolution, x, weight, bias, offsets, initialState) {
                    convolution in
                    unsafe withPointer(yGradient) { dy in
                        unsafe withPointer(finalStateGradient) { dfinal in
                            unsafe gradients.dy = UnsafeRawPointer(dy)
                            unsafe gradients.dfinal_state = dfinal
                            return unsafe withMutablePointer(&xGradient) { dx in
                                unsafe withMutablePointer(&weightGradient) { dweight in
                                    unsafe withMutablePointer(&biasGradient) { dbias in
                                        unsafe withMutablePointer(&initialStateGradient) { ds in
                                            unsafe gradients.dx = UnsafeMutableRawPointer(dx)
                                            unsafe gradients.dweight = dweight
                                            unsafe gradients.dbias = dbias
                                            unsafe gradients.dinitial_state = ds
                                            return unsafe backward(
                                                &convolution, &gradients, workspace, error)
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }

        private static func backward(
            _ convolution: inout lmk_short_convolution,
            _ gradients: inout lmk_short_convolution_gradients, _ workspace: Workspace,
            _ error: UnsafeMutablePointer<lmk_error>
        ) -> lmk_status {
            let needed = unsafe lmk_short_convolution_backward_workspace_size(&convolution)
            return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                unsafe lmk_short_convolution_backward(
                    &convolution, &gradients, memory, size, error)
            }
        }

        private static func descriptor(
            _ shape: ChannelShape, _ width: Int, _ weight: Int, _ bias: Int?, _ offsets: Int?,
            _ initialState: Int?, _ threads: Int, _ type: StorageType
        ) throws(KernelError) -> lmk_short_convolution {
            try shape.check()
            guard (2...8).contains(width) else {
                throw .outOfRange(argument: "width", allowed: "from 2 to 8", actual: "\(width)")
            }
            let sequences = try shape.sequences(offsets)
            var convolution = unsafe lmk_short_convolution()
            unsafe convolution.dtype = type.dtype
            unsafe convolution.batch = shape.batch
            unsafe convolution.tokens = shape.tokens
            unsafe convolution.channels = shape.channels
            unsafe convolution.width = width
            unsafe convolution.sequences = sequences
            unsafe convolution.threads = try Threads.checked(threads)
            try checkCount(
                "weight", weight, expected: shape.stateCount("weight", 1, rows: width))
            try checkCount("bias", bias, expected: shape.channels)
            try checkCount(
                "initialState", initialState,
                expected: shape.stateCount("initialState", sequences, rows: width - 1))
            return unsafe convolution
        }

        /// Calls `body` with what both directions read.
        private static func withInputs<Element: StorageElement>(
            _ convolution: inout lmk_short_convolution, _ x: Span<Element>, _ weight: Span<Float>,
            _ bias: Span<Float>?, _ offsets: Span<Int>?, _ initialState: Span<Float>?,
            _ body: (inout lmk_short_convolution) -> lmk_status
        ) -> lmk_status {
            unsafe withPointer(x) { x in
                unsafe withPointer(weight) { weight in
                    unsafe withPointer(bias) { bias in
                        unsafe withPointer(initialState) { initialState in
                            unsafe withOffsets(offsets) { offsets in
                                unsafe convolution.x = UnsafeRawPointer(x)
                                unsafe convolution.weight = weight
                                unsafe convolution.bias = bias
                                unsafe convolution.initial_state = initialState
                                unsafe convolution.offsets = offsets
                                return unsafe body(&convolution)
                            }
                        }
                    }
                }
            }
        }
    }
}
