import LMKernelsReference
import Testing

@Suite struct MatmulTests {
    /// [1 2 3; 4 5 6] [7 8; 9 10; 11 12], each operand as it lies in memory for the layout.
    @Test(arguments: Matmul.Layout.allCases)
    func byHand(layout: Matmul.Layout) {
        let a: [Double] = layout == .tn ? [1, 4, 2, 5, 3, 6] : [1, 2, 3, 4, 5, 6]
        let b: [Double] = layout == .nt ? [7, 9, 11, 8, 10, 12] : [7, 8, 9, 10, 11, 12]
        let shape = Matmul.Shape(layout: layout, rows: 2, columns: 2, depth: 3)
        #expect(Matmul.product(shape, a, b) == [58, 64, 139, 154])
    }

    /// The same product from larger arrays; what lies between the rows of c stays.
    @Test(arguments: Matmul.Layout.allCases)
    func strides(layout: Matmul.Layout) {
        let gap = 99.0
        let a: [Double] =
            layout == .tn ? [1, 4, gap, 2, 5, gap, 3, 6] : [1, 2, 3, gap, 4, 5, 6]
        let b: [Double] =
            layout == .nt ? [7, 9, 11, gap, gap, 8, 10, 12] : [7, 8, gap, 9, 10, gap, 11, 12]
        let shape = Matmul.Shape(
            layout: layout, rows: 2, columns: 2, depth: 3, aStride: layout == .tn ? 3 : 4,
            bStride: layout == .nt ? 5 : 3, cStride: 4)
        var c = Array(repeating: -1.0, count: 7)
        Matmul.multiply(shape, a, b, into: &c)
        #expect(c == [58, 64, -1, -1, 139, 154, -1])
        Matmul.multiply(shape, a, b, into: &c, accumulate: true)
        #expect(c == [116, 128, -1, -1, 278, 308, -1])
        #expect(Matmul.product(shape, a, b) == [58, 64, 139, 154])
    }

    /// Three products with one shared b, against the products one by one, in every layout.
    @Test(arguments: Matmul.Layout.allCases)
    func batch(layout: Matmul.Layout) {
        var generator = SeededGenerator(seed: 5)
        func integers(_ count: Int) -> [Double] {
            (0..<count).map { _ in Double(Int.random(in: -9...9, using: &generator)) }
        }
        let one = Matmul.Shape(layout: layout, rows: 3, columns: 4, depth: 2)
        let a = integers(3 * 7)
        let b = integers(8)
        var batched = one
        batched.batch = 3
        batched.aBatchStride = 7
        batched.bBatchStride = 0
        batched.cBatchStride = 13
        var c = Array(repeating: -1.0, count: 38)
        Matmul.multiply(batched, a, b, into: &c)
        for n in 0..<3 {
            let alone = Matmul.product(one, Array(a[(7 * n)..<(7 * n + 6)]), b)
            #expect(Array(c[(13 * n)..<(13 * n + 12)]) == alone)
        }
        #expect(c[12] == -1 && c[25] == -1)
        // Dense strides are the default.
        let dense = Matmul.Shape(layout: layout, batch: 2, rows: 3, columns: 4, depth: 2)
        let other = integers(8)
        var products = Array(repeating: 0.0, count: 24)
        Matmul.multiply(dense, Array(a[..<12]), b + other, into: &products)
        #expect(Array(products[..<12]) == Matmul.product(one, Array(a[..<6]), b))
        #expect(Array(products[12...]) == Matmul.product(one, Array(a[6..<12]), other))
        #expect(Matmul.product(dense, Array(a[..<12]), b + other) == products)
    }

    /// Transposing the operands by hand gives the same product, to the last bit.
    @Test func layoutsAgree() {
        var generator = SeededGenerator(seed: 6)
        let (rows, columns, depth) = (5, 7, 9)
        let a = generator.numbers(rows * depth, in: -1...1)
        let b = generator.numbers(depth * columns, in: -1...1)
        func transposed(_ x: [Double], columns: Int) -> [Double] {
            let rows = x.count / columns
            return (0..<x.count).map { x[$0 % rows * columns + $0 / rows] }
        }
        func shape(_ layout: Matmul.Layout) -> Matmul.Shape {
            Matmul.Shape(layout: layout, rows: rows, columns: columns, depth: depth)
        }
        let expected = Matmul.product(shape(.nn), a, b)
        #expect(Matmul.product(shape(.nt), a, transposed(b, columns: columns)) == expected)
        #expect(Matmul.product(shape(.tn), transposed(a, columns: depth), b) == expected)
    }

    @Test func emptyProducts() {
        let noDepth = Matmul.Shape(rows: 2, columns: 2, depth: 0)
        var c = [1.0, 2, 3, 4]
        Matmul.multiply(noDepth, [], [], into: &c, accumulate: true)
        #expect(c == [1, 2, 3, 4])
        Matmul.multiply(noDepth, [], [], into: &c)
        #expect(c == [0, 0, 0, 0])
        #expect(Matmul.product(Matmul.Shape(rows: 0, columns: 2, depth: 1), [], [1, 2]) == [])
        #expect(Matmul.product(Matmul.Shape(rows: 2, columns: 0, depth: 1), [1, 2], []) == [])
        let noBatch = Matmul.Shape(batch: 0, rows: 1, columns: 1, depth: 1)
        #expect(Matmul.product(noBatch, [], []) == [])
    }
}
