/// Where the rows of matrices lie in an array: apart by more than they are long, beginning
/// somewhere, with something after them.
struct Grid {
    var matrices = 1
    var rows: Int
    var columns: Int
    /// Elements after each row and after each matrix.
    var gap = 0
    /// Elements before the first.
    var offset = 0

    /// Elements after the last, to be left alone.
    private static let tail = 5

    /// Fills gaps: a NaN, so that a result that depends on it shows, with bits to be found again.
    static let filler = Float(bitPattern: 0x7fc5_ca1e)

    var stride: Int { columns + gap }
    var matrixStride: Int { rows * stride + gap }
    /// Elements of the whole array.
    var count: Int { offset + matrices * matrixStride + Self.tail }
    /// Elements of what a kernel is given: up to the end of the array, or to the last element.
    var range: Range<Int> { offset..<count }
    var elementCount: Int { matrices * rows * columns }

    /// The place of a dense array's element.
    func place(_ index: Int) -> Int {
        let (row, column) = index.quotientAndRemainder(dividingBy: columns)
        let (matrix, rowInMatrix) = row.quotientAndRemainder(dividingBy: rows)
        return offset + matrix * matrixStride + rowInMatrix * stride + column
    }

    func spread<Element>(_ dense: [Element], filler: Element) -> [Element] {
        var array = Array(repeating: filler, count: count)
        for (i, value) in dense.enumerated() { array[place(i)] = value }
        return array
    }

    func dense<Element>(_ array: [Element]) -> [Element] {
        (0..<elementCount).map { array[place($0)] }
    }

    /// Whether everything around the elements still has the bits of `filler`.
    func hasIntactGaps(_ array: [Float]) -> Bool {
        var rest = array
        for i in 0..<elementCount { rest[place(i)] = Self.filler }
        return rest.allSatisfy { $0.bitPattern == Self.filler.bitPattern }
    }
}

extension Grid {
    /// The same matrices with drawn gaps.
    init(
        matrices: Int = 1, rows: Int, columns: Int, gapsFrom random: inout SplitMix64
    ) {
        self.init(matrices: matrices, rows: rows, columns: columns)
        if random.once(in: 2) { gap = random.integer(1...19) }
        if random.once(in: 2) { offset = random.integer(1...17) }
    }
}
