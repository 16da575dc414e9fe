import LMKernels
import Testing

extension KernelSuite {
    @Suite struct MatmulErrorTests {
        private let workspace = Workspace()

        /// The error of a product with arrays of these numbers of elements.
        private func error(
            a: Int = 1000, b: Int = 1000, c: Int = 1000, _ shape: Matmul.Shape,
            layout: Matmul.Layout = .nn, threads: Int = 0
        ) -> KernelError? {
            let sentinel: Float = 7
            let operand = Array(repeating: Float(1), count: max(a, b))
            var result = Array(repeating: sentinel, count: c)
            do throws(KernelError) {
                var span = result.mutableSpan
                try Matmul.multiply(
                    operand.span.extracting(first: a), operand.span.extracting(first: b),
                    into: &span, shape: shape, layout: layout, threads: threads,
                    workspace: workspace)
            } catch {
                #expect(result.allSatisfy { $0 == sentinel }, "wrote before \(error)")
                return error
            }
            return nil
        }

        @Test func negativeSizes() {
            func outOfRange(_ argument: String, _ actual: String) -> KernelError {
                .outOfRange(argument: argument, allowed: ">= 0", actual: actual)
            }
            #expect(
                error(.init(rows: -1, columns: 2, depth: 3)) == outOfRange("rows", "-1"))
            #expect(
                error(.init(rows: 1, columns: -2, depth: 3)) == outOfRange("columns", "-2"))
            #expect(error(.init(rows: 1, columns: 2, depth: -3)) == outOfRange("depth", "-3"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3, batch: -4)) == outOfRange("batch", "-4"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3, aStride: -5))
                    == outOfRange("aStride", "-5"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3, bBatchStride: -6))
                    == outOfRange("bBatchStride", "-6"))
            #expect(
                error(.init(rows: 1, columns: 2, depth: 3), threads: -1)
                    == outOfRange("threads", "-1"))
        }

        @Test func stridesAndSpansTooSmall() {
            func tooSmall(_ argument: String, _ minimum: Int, _ actual: Int) -> KernelError {
                .tooSmall(argument: argument, minimum: minimum, actual: actual)
            }
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, aStride: 5)) == tooSmall("aStride", 6, 5)
            )
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, bStride: 4)) == tooSmall("bStride", 5, 4)
            )
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, bStride: 5), layout: .nt)
                    == tooSmall("bStride", 6, 5))
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, cStride: 0)) == tooSmall("cStride", 5, 0)
            )
            #expect(
                error(.init(rows: 4, columns: 5, depth: 6, batch: 2, cBatchStride: 19))
                    == tooSmall("cBatchStride", 20, 19))
            #expect(error(a: 23, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("a", 24, 23))
            #expect(error(a: 24, b: 30, c: 20, .init(rows: 4, columns: 5, depth: 6)) == nil)
            #expect(error(b: 29, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("b", 30, 29))
            #expect(error(c: 19, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("c", 20, 19))
            // Rows apart; the last row needs no gap.
            let gaps = Matmul.Shape(rows: 4, columns: 5, depth: 6, aStride: 10, cStride: 9)
            #expect(error(a: 35, gaps) == tooSmall("a", 36, 35))
            #expect(error(c: 31, gaps) == tooSmall("c", 32, 31))
            #expect(error(a: 36, c: 32, gaps) == nil)
            #expect(
                error(a: 24, .init(rows: 4, columns: 5, depth: 6, batch: 2, aBatchStride: 1))
                    == tooSmall("a", 25, 24))
            #expect(
                error(a: 0, .init(rows: 4, columns: 5, depth: 6)) == tooSmall("a", 24, 0))
        }

        @Test func sizesThatOverflow() {
            let half = Int.max / 2
            #expect(
                error(.init(rows: 3, columns: 1, depth: 1, aStride: half + 1))
                    == .overflow(argument: "a"))
            #expect(
                error(.init(rows: 2, columns: 2, depth: 1, batch: half))
                    == .tooSmall(argument: "a", minimum: 2 * half, actual: 1000))
            #expect(
                error(.init(rows: 1 << 40, columns: 1 << 40, depth: 0))
                    == .overflow(argument: "c"))
        }

        @Test func emptySizesDoNothing() {
            #expect(error(a: 0, b: 0, c: 0, .init(rows: 0, columns: 5, depth: 6, batch: 0)) == nil)
            #expect(error(a: 0, c: 0, .init(rows: 0, columns: 5, depth: 6)) == nil)
            #expect(error(b: 0, c: 0, .init(rows: 4, columns: 0, depth: 6)) == nil)
            #expect(error(a: 0, b: 0, c: 20, .init(rows: 4, columns: 5, depth: 0)) == nil)
        }
    }
}
