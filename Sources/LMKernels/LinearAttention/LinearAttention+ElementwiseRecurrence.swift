internal import CLMKCore
internal import CLMKLinearAttention

extension LinearAttention {
    /// A recurrence of independent channels: HGRN, RG-LRU, QRNN.
    ///
    ///     h_t = exp(g_t) h_{t-1} + x_t
    ///
    /// The log-decay g is at most 0, which is not looked at; -inf is a reset, a factor of 0 that no
    /// gradient passes. 0 times an infinite or NaN state is NaN, so that a reset does not hide one.
    ///
    /// A long sequence of few channels is cut into segments that different threads compute; where
    /// depends on sizes alone. float32 results have the same bits for any number of threads and on
    /// every instruction set with fused multiply-add. Where a state is infinite, the first of the
    /// next segment may be NaN instead.
    ///
    /// N is the number of sequences: `batch`, or one less than there are offsets.
    public enum ElementwiseRecurrence {
        /// Strides of the tensors [batch, tokens, channels] of a call.
        public struct Strides: Sendable, Hashable {
            public var x = StageStrides()
            public var logDecay = StageStrides()
            public var output = StageStrides()
            public var outputGradient = StageStrides()
            public var xGradient = StageStrides()
            public var logDecayGradient = StageStrides()

            public init() {}
        }

        /// Computes h.
        ///
        /// Cost: a read of x and g and a write of h, at the speed of memory. Where segments go to
        /// different threads, x and g are read twice.
        ///
        /// - Parameters:
        ///   - x: [batch, tokens, channels]
        ///   - logDecay: g, [batch, tokens, channels]
        ///   - output: h, [batch, tokens, channels]
        ///   - offsets: Sequence n has the tokens offsets[n] ..< offsets[n + 1], maybe none; from 0
        ///     to `tokens`, not descending. nil: each of the batch is one.
        ///   - initialState: h_0, [N, channels]; nil: 0.
        ///   - finalState: The h after the last token, [N, channels], not rounded to its storage;
        ///     h_0 for a sequence without tokens.
        ///   - threads: Threads at most; 0 is the default of the runtime.
        ///   - workspace: Grows to 8 bytes for each channel of each segment.
        /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride or a span;
        ///   `countMismatch` for a state; `conflict` for offsets of a batch; `overflow`.
        public static func forward<Element: StorageElement>(
            _ x: Span<Element>, logDecay: Span<Float>, into output: inout MutableSpan<Element>,
            shape: ChannelShape, strides: Strides = Strides(), offsets: Span<Int>? = nil,
            initialState: Span<Float>? = nil, finalState: consuming MutableSpan<Float>? = nil,
            threads: Int = 0, workspace: Workspace
        ) throws(KernelError) {
            var recurrence = try unsafe descriptor(
                shape, strides, logDecay.count, offsets?.count, initialState?.count, threads,
                Element.storageType)
            let sequences = try shape.sequences(offsets?.count)
            unsafe recurrence.x_strides = try shape.extent("x").check(x.count, strides.x)
            let hStrides = try shape.extent("output").check(output.count, strides.output)
            try checkCount(
                "finalState", finalState?.count,
                expected: shape.stateCount("finalState", sequences))
            try unsafe check { error in
                unsafe withInputs(&recurrence, logDecay, offsets, initialState, workspace) {
                    recurrence, memory, size in
                    unsafe withPointer(x) { x in
                        unsafe output.withUnsafeMutableBufferPointer { h in
                            unsafe withMutablePointer(&finalState) { finalState in
                                unsafe recurrence.x = UnsafeRawPointer(x)
                                return unsafe lmk_elementwise_recurrence_forward(
                                    &recurrence, h.baseAddress, hStrides, finalState, memory, size,
                                    error)
                            }
                        }
                    }
                }
            }
        }

        /// Gradients of  <a, h> + <b, final h>, with e_T = b:
        ///
        ///     dx_t = a_t + e_t        e_{t-1} = exp(g_t) dx_t        dg_t = e_{t-1} h_{t-1}
        ///
        /// The gradient of h_0 is e_0. A gradient that is nil is not computed.
        ///
        /// - Parameters:
        ///   - logDecay: As given to `forward`.
        ///   - output: h, what `forward` returned; needed for `logDecayGradient`.
        ///   - outputGradient: a, [batch, tokens, channels]
        ///   - finalStateGradient: b, [N, channels]; nil: 0.
        ///   - xGradient: [batch, tokens, channels]
        ///   - logDecayGradient: [batch, tokens, channels]
        ///   - initialStateGradient: [N, channels]
        ///   - offsets: As given to `forward`.
        ///   - initialState: As given to `forward`.
        ///   - workspace: Grows to what `forward` takes.
        /// - Throws: As `forward`, and `conflict` for an output that is missing.
        public static func backward<Element: StorageElement>(
            logDecay: Span<Float>, output: Span<Element>? = nil, outputGradient: Span<Element>,
            finalStateGradient: Span<Float>? = nil,
            xGradient: consuming MutableSpan<Element>? = nil,
            logDecayGradient: consuming MutableSpan<Float>? = nil,
            initialStateGradient: consuming MutableSpan<Float>? = nil, shape: ChannelShape,
            strides: Strides = Strides(), offsets: Span<Int>? = nil,
            initialState: Span<Float>? = nil, threads: Int = 0, workspace: Workspace
        ) throws(KernelError) {
            var recurrence = try unsafe descriptor(
                shape, strides, logDecay.count, offsets?.count, initialState?.count, threads,
                Element.storageType)
            var gradients = try unsafe gradientDescriptor(
                shape, strides, output?.count, outputGradient.count, xGradient?.count,
                logDecayGradient?.count)
            let states = try shape.stateCount("state", shape.sequences(offsets?.count))
            try checkCount("finalStateGradient", finalStateGradient?.count, expected: states)
            try checkCount("initialStateGradient", initialStateGradient?.count, expected: states)
            try unsafe check { error in
                unsafe withInputs(&recurrence, logDecay, offsets, initialState, workspace) {
                    recurrence, memory, size in
                    unsafe withPointer(output) { h in
                        unsafe withPointer(outputGradient) { dh in
                            unsafe withPointer(finalStateGradient) { dfinal in
                                unsafe gradients.h = UnsafeRawPointer(h)
                                unsafe gradients.dh = UnsafeRawPointer(dh)
                                unsafe gradients.dfinal_state = dfinal
                                return unsafe withMutablePointer(&xGradient) { dx in
                                    unsafe withMutablePointer(&logDecayGradient) { dg in
                                        unsafe withMutablePointer(&initialStateGradient) { dh0 in
                                            unsafe gradients.dx = UnsafeMutableRawPointer(dx)
                                            unsafe gradients.dlog_decay = dg
                                            unsafe gradients.dinitial_state = dh0
                                            return unsafe lmk_elementwise_recurrence_backward(
                                                &recurrence, &gradients, memory, size, error)
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }

        private static func descriptor(
            _ shape: ChannelShape, _ strides: Strides, _ logDecay: Int, _ offsets: Int?,
            _ initialState: Int?, _ threads: Int, _ type: StorageType
        ) throws(KernelError) -> lmk_elementwise_recurrence {
            try shape.check()
            let sequences = try shape.sequences(offsets)
            var recurrence = unsafe lmk_elementwise_recurrence()
            unsafe recurrence.dtype = type.dtype
            unsafe recurrence.batch = shape.batch
            unsafe recurrence.tokens = shape.tokens
            unsafe recurrence.channels = shape.channels
            unsafe recurrence.sequences = sequences
            unsafe recurrence.threads = try Threads.checked(threads)
            unsafe recurrence.log_decay_strides = try shape.extent("logDecay").check(
                logDecay, strides.logDecay)
            try checkCount(
                "initialState", initialState, expected: shape.stateCount("initialState", sequences))
            return unsafe recurrence
        }

        private static func gradientDescriptor(
            _ shape: ChannelShape, _ strides: Strides, _ output: Int?, _ outputGradient: Int,
            _ xGradient: Int?, _ logDecayGradient: Int?
        ) throws(KernelError) -> lmk_elementwise_recurrence_gradients {
            var gradients = unsafe lmk_elementwise_recurrence_gradients()
            if let output {
                unsafe gradients.h_strides = try shape.extent("output").check(
                    output, strides.output)
            } else if logDecayGradient != nil {
                throw .conflict(argument: "output", reason: "needed with logDecayGradient")
            }
            unsafe gradients.dh_strides = try shape.extent("outputGradient").check(
                outputGradient, strides.outputGradient)
            if let xGradient {
                unsafe gradients.dx_strides = try shape.extent("xGradient").check(
                    xGradient, strides.xGradient)
            }
            if let logDecayGradient {
                unsafe gradients.dlog_decay_strides = try shape.extent("logDecayGradient").check(
                    logDecayGradient, strides.logDecayGradient)
            }
            return unsafe gradients
        }

        /// Calls `body` with what both directions read, and the workspace they need.
        private static func withInputs(
            _ recurrence: inout lmk_elementwise_recurrence, _ logDecay: Span<Float>,
            _ offsets: Span<Int>?, _ initialState: Span<Float>?, _ workspace: Workspace,
            _ body: (inout lmk_elementwise_recurrence, UnsafeMutableRawPointer?, Int) -> lmk_status
        ) -> lmk_status {
            unsafe withPointer(logDecay) { logDecay in
                unsafe withPointer(initialState) { initialState in
                    unsafe withOffsets(offsets) { offsets in
                        unsafe recurrence.log_decay = logDecay
                        unsafe recurrence.initial_state = initialState
                        unsafe recurrence.offsets = offsets
                        let needed = unsafe lmk_elementwise_recurrence_workspace_size(&recurrence)
                        return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                            unsafe body(&recurrence, memory, size)
                        }
                    }
                }
            }
        }
    }
}
