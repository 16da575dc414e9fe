import LMKernels

/// A tensor [batch, tokens, heads, columns] in an array where rows, tokens, heads and batches are
/// apart by more than they are long, in either order of tokens and heads. What lies between holds a
/// filler that no call may use or change.
struct StageTensor<Element: TestElement> {
    let shape: LinearAttention.RowShape
    let strides: LinearAttention.StageStrides
    let filler: Float
    var array: [Element]

    /// Elements before the first: no vector begins there.
    private static var lead: Int { 3 }
    private static var trail: Int { 20 }

    init(
        _ shape: LinearAttention.RowShape, gap: Int = 5, isHeadMajor: Bool = false,
        filler: Float = .nan
    ) {
        self.shape = shape
        self.filler = filler
        let row = shape.columns + gap
        let (head, token, batch) =
            isHeadMajor
            ? (row * shape.tokens + gap, row, (row * shape.tokens + gap) * shape.heads)
            : (row, row * shape.heads + gap, (row * shape.heads + gap) * shape.tokens)
        strides = .init(batch: batch + gap, token: token, head: head)
        let count = Self.lead + (batch + gap) * shape.batch + Self.trail
        array = Array(repeating: Element(filler), count: count)
    }

    init(
        _ shape: LinearAttention.ChannelShape, gap: Int = 5, filler: Float = .nan
    ) {
        self.init(
            .init(batch: shape.batch, tokens: shape.tokens, columns: shape.channels), gap: gap,
            filler: filler)
    }

    var count: Int { shape.batch * shape.tokens * shape.heads * shape.columns }

    /// Where element i of the dense tensor is.
    func place(_ i: Int) -> Int {
        let (row, column) = i.quotientAndRemainder(dividingBy: shape.columns)
        let (token, head) = row.quotientAndRemainder(dividingBy: shape.heads)
        let (batch, tokenOfBatch) = token.quotientAndRemainder(dividingBy: shape.tokens)
        return Self.lead + batch * strides.batch! + tokenOfBatch * strides.token!
            + head * strides.head! + column
    }

    /// What a call is given: no more than the elements and what lies between them.
    var range: Range<Int> { Self.lead..<(count > 0 ? place(count - 1) + 1 : Self.lead) }

    /// By the index in the dense tensor.
    subscript(i: Int) -> Element {
        get { array[place(i)] }
        set { array[place(i)] = newValue }
    }

    func filled(_ value: (Int) -> Float) -> StageTensor {
        var tensor = self
        for i in 0..<count { tensor[i] = Element(value(i)) }
        return tensor
    }

    func filled(_ range: ClosedRange<Float>, seed: UInt64) -> StageTensor {
        var random = SeededGenerator(seed: seed)
        return filled { _ in .random(in: range, using: &random) }
    }

    var dense: [Double] { (0..<count).map { self[$0].double } }

    /// To compare NaN and signs of zero as well.
    var bits: [UInt64] { (0..<count).map { self[$0].double.bitPattern } }

    /// Whether what lies around the elements is still the filler.
    var isFillerKept: Bool {
        var rest = array
        for i in 0..<count { rest[place(i)] = Element(filler) }
        return rest.allSatisfy { filler.isNaN ? $0.double.isNaN : $0.double == Double(filler) }
    }
}

/// Calls `body` with the elements of a tensor to write to.
func withElements<Element>(
    of tensor: inout StageTensor<Element>,
    _ body: (consuming MutableSpan<Element>) throws -> Void
) rethrows {
    try withElements(of: &tensor.array, tensor.range, body)
}

/// The same for part of an array.
func withElements<Element>(
    of array: inout [Element], _ range: Range<Int>,
    _ body: (consuming MutableSpan<Element>) throws -> Void
) rethrows {
    try unsafe array.withUnsafeMutableBufferPointer { buffer in
        let part = buffer.extracting(range)
        try unsafe body(part.mutableSpan)
    }
}

/// The same for two tensors.
func withElements<A, B>(
    of a: inout StageTensor<A>, and b: inout StageTensor<B>,
    _ body: (consuming MutableSpan<A>, consuming MutableSpan<B>) throws -> Void
) rethrows {
    let (aRange, bRange) = (a.range, b.range)
    try withElements(of: &a.array, aRange, and: &b.array, bRange, body)
}

func withElements<A, B>(
    of a: inout [A], _ aRange: Range<Int>, and b: inout [B], _ bRange: Range<Int>,
    _ body: (consuming MutableSpan<A>, consuming MutableSpan<B>) throws -> Void
) rethrows {
    try unsafe a.withUnsafeMutableBufferPointer { a in
        try unsafe b.withUnsafeMutableBufferPointer { b in
            let (a, b) = (a.extracting(aRange), b.extracting(bRange))
            try unsafe body(a.mutableSpan, b.mutableSpan)
        }
    }
}

/// The error of a call, if any.
func refusal(_ call: () throws -> Void) -> KernelError? {
    do {
        try call()
        return nil
    } catch {
        return error as? KernelError
    }
}

/// Relative errors that roundings to a storage type and in float32 may come to.
func stageTolerance(_ type: StorageType, float32: Double) -> Double {
    switch type {
    case .float32: float32
    case .bfloat16: 4e-3
    case .float16: 5e-4
    }
}
