import LMKernels

/// Where the rows of a tensor [batch, tokens, heads, width] lie in an array: in one of two orders,
/// apart by more than they are long, beginning somewhere, with something after them.
struct TokenGrid {
    var batch: Int
    var tokens: Int
    var heads: Int
    var width: Int
    var isHeadMajor = false
    /// Elements after each row, after each group of rows, and after each sequence.
    var gap = 0
    /// Elements before the first.
    var offset = 0
    /// Elements after the last, to be left alone.
    var tail = 0

    init(batch: Int, tokens: Int, heads: Int, width: Int) {
        self.batch = batch
        self.tokens = tokens
        self.heads = heads
        self.width = width
    }

    var strides: LinearAttention.Strides {
        let row = width + gap
        let group = row * (isHeadMajor ? tokens : heads) + gap
        return .init(
            batch: group * (isHeadMajor ? heads : tokens) + gap, token: isHeadMajor ? row : group,
            head: isHeadMajor ? group : row)
    }

    /// Elements of the whole array.
    var count: Int { offset + batch * strides.batch + tail }
    /// Elements of what a kernel is given: up to the end of the array.
    var range: Range<Int> { offset..<count }
    /// Elements of a token.
    var rowCount: Int { heads * width }

    /// The places of a dense tensor's elements, in order.
    private var places: [Int] {
        let strides = strides
        var places: [Int] = []
        places.reserveCapacity(batch * tokens * heads * width)
        for b in 0..<batch {
            for t in 0..<tokens {
                for h in 0..<heads {
                    let first = offset + b * strides.batch + t * strides.token + h * strides.head
                    places.append(contentsOf: first..<first + width)
                }
            }
        }
        return places
    }

    // Tests call these from another module, where they took most of the time without being
    // specialised.

    /// A dense tensor, rounded to the storage type, with NaN around its rows.
    @_specialize(where Element == Float)
    @_specialize(where Element == BFloat16)
    func spread<Element: StorageValue>(_ dense: [Float], as type: Element.Type) -> [Element] {
        var array = Array(repeating: Element(Grid.filler), count: count)
        for (place, value) in zip(places, dense) { array[place] = Element(value) }
        return array
    }

    /// An array to write to; NaN, so that an element that is not written shows.
    func empty<Element: StorageValue>(of type: Element.Type = Element.self) -> [Element] {
        Array(repeating: Element(Grid.filler), count: count)
    }

    @_specialize(where Element == Float)
    @_specialize(where Element == BFloat16)
    func dense<Element: StorageValue>(_ array: [Element]) -> [Float] {
        places.map { array[$0].float }
    }

    /// Whether everything around the rows still is the filler.
    @_specialize(where Element == Float)
    @_specialize(where Element == BFloat16)
    func hasIntactGaps<Element: StorageValue>(_ array: [Element]) -> Bool {
        var isRow = [Bool](repeating: false, count: array.count)
        for place in places { isRow[place] = true }
        let filler = Element(Grid.filler).float.bitPattern
        return zip(array, isRow).allSatisfy { $1 || $0.float.bitPattern == filler }
    }
}

extension TokenGrid {
    /// The same tensor with a drawn order and drawn gaps.
    init(
        batch: Int, tokens: Int, heads: Int, width: Int, gapsFrom random: inout SplitMix64
    ) {
        self.init(batch: batch, tokens: tokens, heads: heads, width: width)
        isHeadMajor = random.once(in: 3)
        if random.once(in: 2) { gap = random.integer(1...19) }
        if random.once(in: 2) { offset = random.integer(1...17) }
        tail = 5
    }
}

// MARK: - Parts of arrays, which may be missing, that a kernel writes to

func withPart<Element: BitwiseCopyable>(
    of array: inout [Element]?, _ grid: TokenGrid,
    _ body: (UnsafeMutableBufferPointer<Element>?) throws(KernelError) -> Void
) throws(KernelError) {
    guard var elements = array.take() else { return try body(nil) }
    defer { array = elements }
    try unsafe elements.withUnsafeMutableBufferPointer { buffer throws(KernelError) in
        try unsafe body(buffer.extracting(grid.range))
    }
}

func withParts<Element: BitwiseCopyable>(
    of x: inout [Element]?, _ xGrid: TokenGrid, _ y: inout [Element]?, _ yGrid: TokenGrid,
    _ body: (
        UnsafeMutableBufferPointer<Element>?, UnsafeMutableBufferPointer<Element>?
    ) throws(KernelError) -> Void
) throws(KernelError) {
    try unsafe withPart(of: &x, xGrid) { x throws(KernelError) in
        try unsafe withPart(of: &y, yGrid) { y throws(KernelError) in try unsafe body(x, y) }
    }
}
