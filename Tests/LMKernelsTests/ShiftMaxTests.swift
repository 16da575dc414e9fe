import LMKernels
import LMKernelsReference
import Testing

extension KernelSuite {
    /// Shiftmax is integers: equal to the reference or wrong.
    @Suite struct ShiftMaxTests {
        private func check(
            _ x: [Int32], rows: Int, columns: Int, inverseScale: Int, outputBits: Int,
            dividendBits: Int, threads: Int = 1
        ) throws {
            let expected = ReferenceSoftmax.shiftMax(
                x, rows: rows, columns: columns, inverseScale: inverseScale,
                outputBits: outputBits, dividendBits: dividendBits)
            let (xStride, yStride) = (columns + 3, columns + 2)
            var gapped = [Int32](repeating: .max, count: rows * xStride)
            for i in x.indices { gapped[i / columns * xStride + i % columns] = x[i] }
            let label = """
                \(rows) x \(columns), 1 / \(inverseScale), \(outputBits) of \(dividendBits)
                """
            func isExpected(_ y: [Int32], _ stride: Int, _ filler: Int32) -> Bool {
                y.indices.allSatisfy { i in
                    let (r, j) = (i / stride, i % stride)
                    return y[i] == (j < columns ? expected[r * columns + j] : filler)
                }
            }
            try withEachInstructionSet(of: .softmax) { set in
                var y = [Int32](repeating: -7, count: rows * yStride)
                var span = y.mutableSpan
                var shape = Softmax.Shape(rows: rows, columns: columns, xStride: xStride)
                shape.yStride = yStride
                try Softmax.shiftMax(
                    gapped.span, into: &span, shape: shape, inverseScale: inverseScale,
                    outputBits: outputBits, dividendBits: dividendBits, threads: threads)
                #expect(isExpected(y, yStride, -7), "\(label) \(set)")
                var both = gapped
                var bothSpan = both.mutableSpan
                shape.yStride = nil
                try Softmax.shiftMax(
                    inPlace: &bothSpan, shape: shape, inverseScale: inverseScale,
                    outputBits: outputBits, dividendBits: dividendBits, threads: threads)
                #expect(isExpected(both, xStride, .max), "\(label) \(set)")
            }
        }

        private func random(_ count: Int, in range: ClosedRange<Int32>, seed: UInt64) -> [Int32] {
            var random = SeededGenerator(seed: seed)
            return (0..<count).map { _ in .random(in: range, using: &random) }
        }

        @Test(arguments: [1, 2, 3, 20, 64, 255, 1024, 65537, (1 << 24) - 1])
        func everyScale(inverseScale: Int) throws {
            let span = Int32(clamping: 9 * inverseScale)
            for range in [-span...span, -100...100, .min ... .max] as [ClosedRange<Int32>] {
                let x = random(3 * 197, in: range, seed: UInt64(inverseScale))
                for outputBits in [2, 3, 8, 15, 16] {
                    for dividendBits in [31, 32, 45, 62] {
                        try check(
                            x, rows: 3, columns: 197, inverseScale: inverseScale,
                            outputBits: outputBits, dividendBits: dividendBits)
                    }
                }
            }
        }

        @Test(arguments: [1, 7, 8, 9, 15, 16, 17, 33, 100, 4095, 4096, 4097, 20000])
        func everySize(columns: Int) throws {
            for (rows, threads) in [(1, 1), (5, 2), (130, 3)] where rows * columns < 700_000 {
                let x = random(rows * columns, in: -900...900, seed: UInt64(columns))
                try check(
                    x, rows: rows, columns: columns, inverseScale: 100, outputBits: 16,
                    dividendBits: 62, threads: threads)
            }
        }

        /// Sums on both sides of the dividend, and equal to it.
        @Test func sumsAroundTheDividend() throws {
            // Equal entries: e = inverseScale 2^15 each.
            for columns in [1, 2, 3, 4] {
                for inverseScale in [1 << 14, 1 << 15, 1 << 16, (1 << 16) - 1, (1 << 16) + 1] {
                    let x = [Int32](repeating: 5, count: columns)
                    try check(
                        x, rows: 1, columns: columns, inverseScale: inverseScale, outputBits: 16,
                        dividendBits: 31)
                }
            }
        }

        @Test func noRows() throws {
            var none: [Int32] = []
            var span = none.mutableSpan
            try Softmax.shiftMax(
                inPlace: &span, shape: .init(rows: 0, columns: 4), inverseScale: 3, outputBits: 8)
        }
    }
}
