/// The matrix product as three nested loops in Double.
public enum Matmul {
    /// How the operands lie in memory, named as in BLAS. N: as written. T: transposed.
    public enum Layout: Sendable, CaseIterable {
        /// a [rows, depth], b [depth, columns]
        case nn
        /// a [rows, depth], b [columns, depth]
        case nt
        /// a [depth, rows], b [depth, columns]
        case tn
    }

    /// Sizes and strides of a batch of products. Strides are in elements.
    public struct Shape: Sendable, Equatable {
        public var layout: Layout
        /// Number of products.
        public var batch: Int
        /// Rows of c.
        public var rows: Int
        /// Columns of c.
        public var columns: Int
        /// Length of the sum behind each element of c.
        public var depth: Int
        /// From one row of a, as it lies in memory, to the next.
        public var aStride: Int
        /// From one matrix of a to the next; 0 uses the same a throughout.
        public var aBatchStride: Int
        /// From one row of b, as it lies in memory, to the next.
        public var bStride: Int
        /// From one matrix of b to the next; 0 uses the same b throughout.
        public var bBatchStride: Int
        /// From one row of c to the next.
        public var cStride: Int
        /// From one matrix of c to the next.
        public var cBatchStride: Int

        /// A stride that is left out is that of a dense array: no gaps between rows, nor between
        /// matrices of that row stride.
        public init(
            layout: Layout = .nn, batch: Int = 1, rows: Int, columns: Int, depth: Int,
            aStride: Int? = nil, aBatchStride: Int? = nil, bStride: Int? = nil,
            bBatchStride: Int? = nil, cStride: Int? = nil, cBatchStride: Int? = nil
        ) {
            let (aRows, aColumns) = layout == .tn ? (depth, rows) : (rows, depth)
            let (bRows, bColumns) = layout == .nt ? (columns, depth) : (depth, columns)
            self.layout = layout
            self.batch = batch
            self.rows = rows
            self.columns = columns
            self.depth = depth
            self.aStride = aStride ?? aColumns
            self.aBatchStride = aBatchStride ?? aRows * self.aStride
            self.bStride = bStride ?? bColumns
            self.bBatchStride = bBatchStride ?? bRows * self.bStride
            self.cStride = cStride ?? columns
            self.cBatchStride = cBatchStride ?? rows * self.cStride
        }
    }

    /// c = a b, or c += a b, for each matrix of a batch:
    ///
    ///     c[n][i][j] = sum_k a[n][i][k] b[n][k][j]
    ///
    /// Elements of c between rows and between matrices are left alone. A depth of 0 makes c zero.
    ///
    /// - Parameters:
    ///   - a: Left operands, [batch, rows, depth] or transposed.
    ///   - b: Right operands, [batch, depth, columns] or transposed.
    ///   - c: Products, [batch, rows, columns].
    ///   - accumulate: Add to c.
    public static func multiply(
        _ shape: Shape, _ a: [Double], _ b: [Double], into c: inout [Double],
        accumulate: Bool = false
    ) {
        for n in 0..<shape.batch {
            let aStart = n * shape.aBatchStride
            let bStart = n * shape.bBatchStride
            let cStart = n * shape.cBatchStride
            for i in 0..<shape.rows {
                for j in 0..<shape.columns {
                    var sum = 0.0
                    for k in 0..<shape.depth {
                        let aIndex =
                            shape.layout == .tn ? k * shape.aStride + i : i * shape.aStride + k
                        let bIndex =
                            shape.layout == .nt ? j * shape.bStride + k : k * shape.bStride + j
                        sum += a[aStart + aIndex] * b[bStart + bIndex]
                    }
                    let cIndex = cStart + i * shape.cStride + j
                    c[cIndex] = accumulate ? c[cIndex] + sum : sum
                }
            }
        }
    }

    /// a b in a dense array [batch, rows, columns]; the strides of c in `shape` are not used.
    public static func product(_ shape: Shape, _ a: [Double], _ b: [Double]) -> [Double] {
        var dense = shape
        dense.cStride = shape.columns
        dense.cBatchStride = shape.rows * shape.columns
        var c = Array(repeating: 0.0, count: dense.batch * dense.cBatchStride)
        multiply(dense, a, b, into: &c)
        return c
    }
}
