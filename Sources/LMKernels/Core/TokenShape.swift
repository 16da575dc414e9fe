// What families with a state for each sequence and head check alike.

/// A tensor [batch, tokens, heads, width] in a span.
struct TokenExtent {
    /// Name of the span.
    var argument: String
    var batch: Int
    var tokens: Int
    var heads: Int
    var width: Int
    /// nil: dense.
    var strides: TokenStrides?

    /// Checks strides, then the number of elements in the span; sizes are known not to be negative.
    ///
    /// - Parameter actual: nil: there is no span.
    /// - Returns: The strides.
    @discardableResult
    func check(_ actual: Int?) throws(KernelError) -> TokenStrides {
        try checkNotNegative("\(argument)Strides.batch", strides?.batch ?? 0)
        try checkNotNegative("\(argument)Strides.token", strides?.token ?? 0)
        try checkNotNegative("\(argument)Strides.head", strides?.head ?? 0)
        let strides = if let given = self.strides { given } else { try dense() }
        guard let actual, batch > 0, tokens > 0, heads > 0, width > 0 else { return strides }
        var last = try plus(times(batch - 1, strides.batch), times(tokens - 1, strides.token))
        last = try plus(last, times(heads - 1, strides.head))
        let minimum = try plus(last, width)
        try checkNoOverlap(strides)
        guard actual >= minimum else {
            throw .tooSmall(argument: argument, minimum: minimum, actual: actual)
        }
        return strides
    }

    private func dense() throws(KernelError) -> TokenStrides {
        let token = try times(heads, width)
        return TokenStrides(batch: try times(tokens, token), token: token, head: width)
    }

    /// From the smallest stride up, each is at least what lies between its steps.
    private func checkNoOverlap(_ strides: TokenStrides) throws(KernelError) {
        let steps = [
            ("head", strides.head, heads), ("token", strides.token, tokens),
            ("batch", strides.batch, batch),
        ].sorted { $0.1 < $1.1 }
        var length = width
        for (name, stride, count) in steps where count > 1 {
            guard stride >= length else {
                throw .tooSmall(
                    argument: "\(argument)Strides.\(name)", minimum: length, actual: stride)
            }
            length += (count - 1) * stride
        }
    }

    private func times(_ a: Int, _ b: Int) throws(KernelError) -> Int {
        try product(argument, a, b)
    }

    private func plus(_ a: Int, _ b: Int) throws(KernelError) -> Int {
        try sum(argument, a, b)
    }
}

/// Sizes of sequences with a state [keyWidth, valueWidth] for each query head.
protocol TokenShape {
    var batch: Int { get }
    var tokens: Int { get }
    /// Rows of keys and values in a sequence: as many as there are tokens, or several for each.
    var keyTokens: Int { get }
    var heads: Int { get }
    var keyHeads: Int { get }
    var keyWidth: Int { get }
    var valueWidth: Int { get }
}

extension TokenShape {
    var keyTokens: Int { tokens }

    /// A tensor of query heads, `width` wide.
    func queryExtent(_ argument: String, width: Int, _ strides: TokenStrides?) -> TokenExtent {
        TokenExtent(
            argument: argument, batch: batch, tokens: tokens, heads: heads, width: width,
            strides: strides)
    }

    /// A tensor of key and value heads, `width` wide.
    func keyExtent(_ argument: String, width: Int, _ strides: TokenStrides?) -> TokenExtent {
        TokenExtent(
            argument: argument, batch: batch, tokens: keyTokens, heads: keyHeads, width: width,
            strides: strides)
    }

    func checkSizesOfTokens() throws(KernelError) {
        for (name, size) in [
            ("batch", batch), ("tokens", tokens), ("heads", heads), ("keyHeads", keyHeads),
            ("keyWidth", keyWidth), ("valueWidth", valueWidth),
        ] {
            try checkNotNegative(name, size)
        }
    }

    /// N.
    func sequences(_ offsets: Span<Int>?) -> Int {
        guard let offsets else { return batch }
        return max(0, offsets.count - 1)
    }

    /// Elements of `count` states of every head.
    func stateCount(_ argument: String, _ count: Int) throws(KernelError) -> Int {
        try product(argument, count, heads, keyWidth, valueWidth)
    }

    /// Checks the length of `count` states of every head.
    func checkStates(_ argument: String, _ actual: Int?, _ count: Int) throws(KernelError) {
        try checkCount(argument, actual, expected: stateCount(argument, count))
    }

    /// States after stride, 2 stride, ... tokens of a sequence, of every sequence; `stride` is at
    /// least 1.
    func statesOnTheWay(stride: Int, _ offsets: Span<Int>?) -> Int {
        precondition(stride >= 1, "stride is at least 1")
        guard let offsets else { return batch * (tokens / stride) }
        var count = 0
        for n in 0..<max(0, offsets.count - 1) {
            count += (offsets[n + 1] - offsets[n]) / stride
        }
        return count
    }

    /// The same for a stride and offsets that may be wrong.
    ///
    /// - Returns: nil for wrong offsets, which are for C to refuse.
    func checkedStatesOnTheWay(
        stride: Int, _ offsets: Span<Int>?
    ) throws(KernelError) -> Int? {
        guard stride >= 1 else {
            throw .outOfRange(argument: "stateStride", allowed: ">= 1", actual: "\(stride)")
        }
        if let offsets {
            var last = 0
            for n in offsets.indices {
                guard offsets[n] >= last, n > 0 || offsets[n] == 0 else { return nil }
                last = offsets[n]
            }
            guard last == tokens else { return nil }
        } else if batch > 0, tokens > Int.max / batch {
            throw .overflow(argument: "states")
        }
        return statesOnTheWay(stride: stride, offsets)
    }
}

/// `sequences` of offsets for C: one less than there are.
func checkedSequences(_ offsets: Span<Int>) throws(KernelError) -> Int {
    guard offsets.count >= 1 else {
        throw .tooSmall(argument: "offsets", minimum: 1, actual: 0)
    }
    return offsets.count - 1
}

/// Bytes that `backward` may use for states, for C.
func checkedMemoryBudget(_ budget: Int?) throws(KernelError) -> Int {
    if let budget, budget < 1 {
        throw .outOfRange(argument: "memoryBudget", allowed: ">= 1", actual: "\(budget)")
    }
    return budget ?? 0
}

/// Log-decays are there when there is a decay, and not otherwise.
func checkLogDecay(isGiven: Bool, isNeeded: Bool) throws(KernelError) {
    if isNeeded, !isGiven { throw .conflict(argument: "logDecay", reason: "needed with a decay") }
    if isGiven, !isNeeded { throw .conflict(argument: "logDecay", reason: "not without a decay") }
}
