import Foundation
import LMKernels
import Testing

#if os(Linux)

    /// LAPACK's slarft and slarfb, of the OpenBLAS that `make test` installs: nothing here links
    /// with it.
    private struct LAPACK {
        typealias Flag = UnsafePointer<CChar>
        typealias Count = UnsafePointer<Int32>
        typealias FormFactor =
            @convention(c) (
                Flag, Flag, Count, Count, UnsafePointer<Float>, Count, UnsafePointer<Float>,
                UnsafeMutablePointer<Float>, Count
            ) -> Void
        typealias ApplyFactor =
            @convention(c) (
                Flag, Flag, Flag, Flag, Count, Count, Count, UnsafePointer<Float>, Count,
                UnsafePointer<Float>, Count, UnsafeMutablePointer<Float>, Count,
                UnsafeMutablePointer<Float>, Count
            ) -> Void

        let slarft: FormFactor
        let slarfb: ApplyFactor

        init?() {
            guard let library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL),
                let slarft = dlsym(library, "slarft_"), let slarfb = dlsym(library, "slarfb_")
            else { return nil }
            self.slarft = unsafeBitCast(slarft, to: FormFactor.self)
            self.slarfb = unsafeBitCast(slarfb, to: ApplyFactor.self)
        }

        /// Where it is missing the test is skipped, but not in `make test`, which has installed it.
        static var isExpected: Bool {
            LAPACK() != nil || ProcessInfo.processInfo.environment["LMK_EXPECTS_OPENBLAS"] != nil
        }

        /// T of reflectors [factors, dimensions], each of a row, as rows.
        func triangle(_ k: [Float], _ beta: [Float], factors: Int, dimensions: Int) -> [Float] {
            var t = Array(repeating: Float(0), count: factors * factors)
            withSizes(dimensions, factors) { n, count in
                slarft("F", "C", n, count, k, n, beta, &t, count)
            }
            return (0..<factors * factors).map { t[$0 % factors * factors + $0 / factors] }
        }

        /// P C or P^T C from the left, or from the right, with C column by column, [dimensions,
        /// vectors] or [vectors, dimensions].
        func apply(
            _ k: [Float], _ beta: [Float], to c: [Float], factors: Int, dimensions: Int,
            vectors: Int, isLeft: Bool, isTransposed: Bool
        ) -> [Float] {
            var t = Array(repeating: Float(0), count: factors * factors)
            var (result, work) = (c, Array(repeating: Float(0), count: vectors * factors))
            withSizes(dimensions, factors) { n, count in
                slarft("F", "C", n, count, k, n, beta, &t, count)
                withSizes(vectors, 0) { vectors, _ in
                    let (rows, columns) = isLeft ? (n, vectors) : (vectors, n)
                    slarfb(
                        isLeft ? "L" : "R", isTransposed ? "T" : "N", "F", "C", rows, columns,
                        count, k, n, t, count, &result, rows, &work, vectors)
                }
            }
            return result
        }

        private func withSizes(_ a: Int, _ b: Int, _ body: (Count, Count) -> Void) {
            withUnsafePointer(to: Int32(a)) { a in
                withUnsafePointer(to: Int32(b)) { b in body(a, b) }
            }
        }
    }

    extension KernelSuite {
        @Suite struct HouseholderProductLAPACKTests {
            /// Reflectors as LAPACK wants them: i zeros, a one, and anything.
            private func reflectors(
                _ factors: Int, _ dimensions: Int
            ) -> (k: [Float], beta: [Float]) {
                var random = SeededGenerator(seed: 5)
                var k = Array(repeating: Float(0), count: factors * dimensions)
                var beta: [Float] = []
                for i in 0..<factors {
                    k[i * dimensions + i] = 1
                    for d in i + 1..<dimensions {
                        k[i * dimensions + d] = .random(in: -0.5...0.5, using: &random)
                    }
                    let row = k[i * dimensions..<(i + 1) * dimensions]
                    beta.append(2 / row.reduce(0) { $0 + $1 * $1 })
                }
                return (k, beta)
            }

            @Test(.enabled(if: LAPACK.isExpected))
            func triangleIsThatOfLAPACK() throws {
                let lapack = try #require(LAPACK())
                for (factors, dimensions) in [(1, 3), (16, 40), (70, 90), (130, 130)] {
                    let (k, beta) = reflectors(factors, dimensions)
                    var t = Array(repeating: Float.nan, count: factors * factors)
                    var span = t.mutableSpan
                    try HouseholderProduct.triangle(
                        k.span, beta: beta.span, into: &span,
                        shape: .init(factors: factors, dimensions: dimensions),
                        workspace: Workspace())
                    let theirs = lapack.triangle(k, beta, factors: factors, dimensions: dimensions)
                    // Measured: 6e-7
                    #expect(arrayError(t.map { Double($0) }, theirs.map { Double($0) }) < 3e-6)
                }
            }

            @Test(.enabled(if: LAPACK.isExpected))
            func applicationIsThatOfLAPACK() throws {
                let lapack = try #require(LAPACK())
                var random = SeededGenerator(seed: 6)
                for (factors, dimensions, vectors) in [(1, 3, 4), (16, 40, 33), (90, 90, 70)] {
                    let (k, beta) = reflectors(factors, dimensions)
                    let x = (0..<dimensions * vectors).map { _ in
                        Float.random(in: -1...1, using: &random)
                    }
                    for side in HouseholderProduct.Side.allCases {
                        for isTransposed in [false, true] {
                            var y = x
                            var span = y.mutableSpan
                            try HouseholderProduct.apply(
                                k.span, beta: beta.span, inPlace: &span,
                                shape: .init(
                                    factors: factors, dimensions: dimensions, vectors: vectors),
                                side: side, isTransposed: isTransposed, workspace: Workspace())
                            // Row by row x is the transpose of what it is column by column.
                            let theirs = lapack.apply(
                                k, beta, to: x, factors: factors, dimensions: dimensions,
                                vectors: vectors, isLeft: side == .right,
                                isTransposed: !isTransposed)
                            // Measured: 9e-7
                            #expect(
                                arrayError(y.map { Double($0) }, theirs.map { Double($0) }) < 3e-6)
                        }
                    }
                }
            }
        }
    }

#endif
