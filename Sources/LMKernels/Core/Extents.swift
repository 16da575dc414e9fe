// Sizes of spans against sizes in shapes. C sees pointers only, so this is where a span that is too
// short is caught.

func checkNotNegative(_ argument: String, _ value: Int) throws(KernelError) {
    guard value >= 0 else {
        throw .outOfRange(argument: argument, allowed: ">= 0", actual: "\(value)")
    }
}

func checkCount(_ argument: String, _ actual: Int?, expected: Int) throws(KernelError) {
    guard let actual, actual != expected else { return }
    throw .countMismatch(argument: argument, expected: expected, actual: actual)
}

/// The product of sizes of `argument`.
func product(
    _ argument: String, _ a: Int, _ b: Int, _ c: Int = 1, _ d: Int = 1
) throws(KernelError) -> Int {
    let (ab, overflow) = a.multipliedReportingOverflow(by: b)
    let (abc, overflowOfThree) = ab.multipliedReportingOverflow(by: c)
    let (abcd, overflowOfFour) = abc.multipliedReportingOverflow(by: d)
    guard !overflow, !overflowOfThree, !overflowOfFour else { throw .overflow(argument: argument) }
    return abcd
}

func sum(_ argument: String, _ a: Int, _ b: Int) throws(KernelError) -> Int {
    let (sum, overflow) = a.addingReportingOverflow(b)
    guard !overflow else { throw .overflow(argument: argument) }
    return sum
}

/// A batch of matrices in a span: where rows and matrices begin.
struct MatrixExtent {
    /// Name of the span.
    var argument: String
    var batch = 1
    var rows: Int
    var columns: Int
    var stride: Int
    /// nil: matrices follow each other.
    var batchStride: Int?

    /// Checks strides, then the number of elements in the span; sizes are known not to be negative.
    ///
    /// - Returns: The batch stride.
    @discardableResult
    func check(_ actual: Int) throws(KernelError) -> Int {
        try checkNotNegative(argument + "Stride", stride)
        try checkNotNegative(argument + "BatchStride", batchStride ?? 0)
        guard batch > 0, rows > 0, columns > 0 else { return batchStride ?? 0 }
        guard stride >= columns else {
            throw .tooSmall(argument: argument + "Stride", minimum: columns, actual: stride)
        }
        let batchStride =
            if let given = self.batchStride { given } else { try times(rows, stride) }
        let last = try plus(times(batch - 1, batchStride), times(rows - 1, stride))
        let minimum = try plus(last, columns)
        guard actual >= minimum else {
            throw .tooSmall(argument: argument, minimum: minimum, actual: actual)
        }
        return batchStride
    }

    private func times(_ a: Int, _ b: Int) throws(KernelError) -> Int {
        try product(argument, a, b)
    }

    private func plus(_ a: Int, _ b: Int) throws(KernelError) -> Int {
        try sum(argument, a, b)
    }
}
