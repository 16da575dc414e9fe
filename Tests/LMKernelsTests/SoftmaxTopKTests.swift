import LMKernels
import LMKernelsReference
import Testing

extension KernelSuite {
    @Suite struct SoftmaxTopKTests {
        private struct Found<Element: TestElement> {
            var indices: [Int32]
            var gates: [Element]
            var x: GappedMatrix<Element>
            var scale: [Float]
        }

        /// Forward and backward, with the gates' gradient 1, -2, 3, -4, ...
        private func run<Element: TestElement>(
            _ x: GappedMatrix<Element>, count: Int, scale: Float, threads: Int
        ) throws -> Found<Element> {
            let (rows, columns) = (x.rows, x.columns)
            var shape = Softmax.Shape(rows: rows, columns: columns, xStride: x.stride)
            shape.xGradientStride = columns + 3
            var indices = [Int32](repeating: -1, count: rows * count)
            var gates = [Element](repeating: Element(-80), count: rows * count)
            var indexSpan = indices.mutableSpan
            var gateSpan = gates.mutableSpan
            try Softmax.topK(
                x.array.span.extracting(x.range), count: count, indices: &indexSpan,
                gates: &gateSpan, shape: shape, scale: scale, threads: threads)
            let upstream = gates.indices.map { Element(Self.upstream($0)) }
            var dx = GappedMatrix<Element>(rows: rows, columns: columns, gap: 3, filler: -80)
            var scaleGradient = [Float](repeating: -80, count: rows)
            try withRows(of: &dx) { dx in
                try Softmax.topKBackward(
                    x: x.array.span.extracting(x.range), count: count, indices: indices.span,
                    gates: gates.span, gatesGradient: upstream.span, xGradient: dx,
                    scaleGradient: scaleGradient.mutableSpan, shape: shape, scale: scale,
                    threads: threads)
            }
            return Found(indices: indices, gates: gates, x: dx, scale: scaleGradient)
        }

        private static func upstream(_ i: Int) -> Float {
            Float(i % 7 + 1) * (i % 2 == 0 ? 0.25 : -0.25)
        }

        private func check<Element: TestElement>(
            _ x: GappedMatrix<Element>, count: Int, scale: Float, _ label: String
        ) throws {
            let (rows, columns) = (x.rows, x.columns)
            let expected = ReferenceSoftmax.topK(
                x.dense, rows: rows, columns: columns, count: count, scale: Double(scale))
            // Measured: 5.6e-7, 2.7e-3, 3.2e-4; of gradients 2.0e-7, 2.5e-3, 3.2e-4; of scales
            // 1.9e-6.
            let tolerance =
                switch Element.storageType {
                case .float32: 1e-6
                case .bfloat16: 4e-3
                case .float16: 6e-4
                }
            try withEachInstructionSet(of: .softmax) { set in
                for threads in [1, 3] {
                    let found = try run(x, count: count, scale: scale, threads: threads)
                    let label = "\(label) \(Element.storageType) \(set)"
                    #expect(found.indices.map { Int($0) } == expected.indices, "\(label)")
                    let gates = found.gates.map(\.double)
                    let error = relativeError(gates, expected.gates)
                    #expect(error < tolerance, "\(label): \(error)")
                    // From the gates as they are stored.
                    let gradient = ReferenceSoftmax.topKBackward(
                        x.dense, indices: expected.indices, gates: gates,
                        gateGradient: gates.indices.map { Double(Self.upstream($0)) }, rows: rows,
                        columns: columns, count: count, scale: Double(scale))
                    let dx = relativeError(found.x.dense, gradient.x, floor: 1e-2)
                    let ds = relativeError(
                        found.scale.map { Double($0) }, gradient.scale, floor: 1)
                    #expect(dx < tolerance, "\(label): dx \(dx)")
                    #expect(ds < 4e-6, "\(label): scale \(ds)")
                    #expect(found.x.isFillerKept, "\(label)")
                }
            }
        }

        private func random<Element: TestElement>(
            rows: Int, columns: Int, seed: UInt64, of type: Element.Type,
            _ value: (inout SeededGenerator) -> Float
        ) -> GappedMatrix<Element> {
            var random = SeededGenerator(seed: seed)
            var x = GappedMatrix<Element>(rows: rows, columns: columns, gap: 5, filler: .nan)
            for r in 0..<rows {
                for j in 0..<columns { x[r, j] = Element(value(&random)) }
            }
            return x
        }

        private func sizes<Element: TestElement>(of type: Element.Type) throws {
            for columns in [1, 2, 15, 16, 17, 31, 33, 64, 100, 1000] {
                for count in [1, 2, 7, 16, 17, 40, columns] where count <= columns {
                    for (k, scale) in ([1, 0.6, -1.5] as [Float]).enumerated() {
                        let plain = random(
                            rows: 5, columns: columns, seed: UInt64(columns + k), of: type
                        ) { .random(in: -4...4, using: &$0) }
                        let label = "\(count) of \(columns), scale \(scale)"
                        try check(plain, count: count, scale: scale, label)
                        // Half of them equal to others.
                        let tied = random(
                            rows: 5, columns: columns, seed: UInt64(columns + k), of: type
                        ) { Float(Int.random(in: -3...3, using: &$0)) }
                        try check(tied, count: count, scale: scale, "tied \(label)")
                    }
                }
            }
        }

        @Test func everySizeFloat() throws { try sizes(of: Float.self) }
        @Test func everySizeBFloat16() throws { try sizes(of: BFloat16.self) }
        @Test func everySizeFloat16() throws { try sizes(of: Float16.self) }

        @Test func manyRows() throws {
            let x = random(rows: 3000, columns: 33, seed: 1, of: Float.self) {
                .random(in: -4...4, using: &$0)
            }
            try check(x, count: 4, scale: 1, "3000 rows")
            let long = random(rows: 3, columns: 40000, seed: 2, of: BFloat16.self) {
                .random(in: -4...4, using: &$0)
            }
            try check(long, count: 50, scale: 1, "40000 columns")
        }

        @Test func ascendingAndDescending() throws {
            var x = GappedMatrix<Float>(rows: 3, columns: 200, gap: 1, filler: .nan)
            for j in 0..<200 {
                x[0, j] = Float(j) / 40
                x[1, j] = -Float(j) / 40
                x[2, j] = 1
            }
            for count in [1, 20, 200] { try check(x, count: count, scale: 1, "ordered") }
        }

        private func special<Element: TestElement>(of type: Element.Type) throws {
            let (inf, nan) = (Float.infinity, Float.nan)
            let rows: [[Float]] = [
                [1, nan, inf, nan], [inf, -1, inf, 0], [-inf, inf, -inf, 1],
                [-inf, -inf, 2, -inf], [-inf, -inf, -inf, -inf], [-0.0, 0, -0.0, -1],
                [0, -0.0, 1e-30, -1e-30], [-nan, 3, 4, 5], [65504, -65504, 65504, 1],
            ]
            for padding in [0, 30] {
                var x = GappedMatrix<Element>(
                    rows: rows.count, columns: 4 + padding, gap: 2, filler: .nan)
                for (r, row) in rows.enumerated() {
                    for j in 0..<4 + padding {
                        x[r, j] = Element(j < padding ? -.infinity : row[j - padding])
                    }
                }
                for count in [1, 2, 3, 4] {
                    for scale in [1, 0.5, -1] as [Float] {
                        try check(x, count: count, scale: scale, "special, \(count) \(scale)")
                    }
                }
            }
        }

        @Test func infinitiesAndNaN() throws {
            try special(of: Float.self)
            try special(of: BFloat16.self)
            try special(of: Float16.self)
        }

        @Test func noRows() throws {
            let none = GappedMatrix<Float>(rows: 0, columns: 4, gap: 0, filler: .nan)
            #expect(try run(none, count: 2, scale: 1, threads: 1).indices.isEmpty)
        }
    }
}
