internal import CLMKCore
internal import CLMKLinearAttention

extension LinearAttention {
    /// Where the rows of a tensor [batch, tokens, channels] or [batch, tokens, heads, columns]
    /// begin, in elements; the last dimension is contiguous. nil is that of a dense array. Rows do
    /// not overlap, and elements between them are left alone.
    ///
    /// The strides of [batch, heads, tokens, columns] describe a head-major tensor.
    public struct StageStrides: Sendable, Hashable {
        public var batch: Int?
        public var token: Int?
        /// Without effect on a tensor that has no heads.
        public var head: Int?

        public init(batch: Int? = nil, token: Int? = nil, head: Int? = nil) {
            self.batch = batch
            self.token = token
            self.head = head
        }
    }

    /// Tokens of independent channels, [batch, tokens, channels].
    public struct ChannelShape: Sendable, Hashable {
        /// 1 where sequences are packed.
        public var batch: Int
        /// Of all sequences together where they are packed.
        public var tokens: Int
        public var channels: Int

        public init(batch: Int = 1, tokens: Int, channels: Int) {
            self.batch = batch
            self.tokens = tokens
            self.channels = channels
        }

        func check() throws(KernelError) {
            try checkNotNegative("batch", batch)
            try checkNotNegative("tokens", tokens)
            try checkNotNegative("channels", channels)
        }

        func extent(_ argument: String) -> StageExtent {
            StageExtent(
                argument: argument, batch: batch, tokens: tokens, heads: 1, columns: channels)
        }

        /// Sequences: those of the batch, or those that offsets give.
        func sequences(_ offsets: Int?) throws(KernelError) -> Int {
            guard let offsets else { return batch }
            guard offsets >= 1 else {
                throw .tooSmall(argument: "offsets", minimum: 1, actual: offsets)
            }
            return offsets - 1
        }

        /// The number of elements of a state of `rows` rows for each sequence.
        func stateCount(_ argument: String, _ sequences: Int, rows: Int = 1) throws(KernelError)
            -> Int
        {
            try product(argument, channels, rows, sequences)
        }
    }

    /// Rows of heads, [batch, tokens, heads, columns]. Other matrices have a batch and a head of 1.
    public struct RowShape: Sendable, Hashable {
        public var batch: Int
        public var tokens: Int
        public var heads: Int
        public var columns: Int

        public init(batch: Int = 1, tokens: Int, heads: Int = 1, columns: Int) {
            self.batch = batch
            self.tokens = tokens
            self.heads = heads
            self.columns = columns
        }

        func check() throws(KernelError) {
            try checkNotNegative("batch", batch)
            try checkNotNegative("tokens", tokens)
            try checkNotNegative("heads", heads)
            try checkNotNegative("columns", columns)
        }

        func extent(_ argument: String, columns: Int? = nil) -> StageExtent {
            StageExtent(
                argument: argument, batch: batch, tokens: tokens, heads: heads,
                columns: columns ?? self.columns)
        }
    }
}

/// A tensor [batch, tokens, heads, columns] in a span.
struct StageExtent {
    /// Name of the span.
    var argument: String
    var batch: Int
    var tokens: Int
    var heads: Int
    var columns: Int

    /// Checks strides against each other as C does, then the number of elements in the span; sizes
    /// are known not to be negative.
    ///
    /// - Returns: The strides for C.
    @discardableResult
    func check(
        _ actual: Int, _ strides: LinearAttention.StageStrides
    ) throws(KernelError) -> lmk_token_strides {
        for (name, stride) in [
            ("batch", strides.batch), ("token", strides.token), ("head", strides.head),
        ] {
            try checkNotNegative("\(argument)Strides.\(name)", stride ?? 0)
        }
        let head = strides.head ?? columns
        let token = if let given = strides.token { given } else { try times(heads, head) }
        let batchStride = if let given = strides.batch { given } else { try times(tokens, token) }
        if batch > 0, tokens > 0, heads > 0, columns > 0 {
            var reach = columns
            let dimensions = [
                ("head", heads, head), ("token", tokens, token), ("batch", batch, batchStride),
            ]
            for (name, count, stride) in stablySorted(dimensions) where count > 1 {
                guard stride >= reach else {
                    throw .tooSmall(
                        argument: "\(argument)Strides.\(name)", minimum: reach, actual: stride)
                }
                reach = try plus(reach, times(count - 1, stride))
            }
            guard actual >= reach else {
                throw .tooSmall(argument: argument, minimum: reach, actual: actual)
            }
        }
        return lmk_token_strides(batch: batchStride, token: token, head: head)
    }

    private func stablySorted(
        _ dimensions: [(String, Int, Int)]
    ) -> [(String, Int, Int)] {
        dimensions.enumerated().sorted { ($0.1.2, $0.0) < ($1.1.2, $1.0) }.map(\.1)
    }

    private func times(_ a: Int, _ b: Int) throws(KernelError) -> Int {
        try product(argument, a, b)
    }

    private func plus(_ a: Int, _ b: Int) throws(KernelError) -> Int {
        try sum(argument, a, b)
    }
}
