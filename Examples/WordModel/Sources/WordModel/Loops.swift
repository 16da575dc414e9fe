// Loops over arrays. They run on unsafe buffers, because without bounds checks the compiler
// vectorises them.

/// x[i] *= y[i]; an empty y is all ones.
func multiply(_ x: inout [Float], by y: [Float]) {
    if y.isEmpty { return }
    precondition(x.count == y.count)
    x.withUnsafeMutableBufferPointer { x in
        y.withUnsafeBufferPointer { y in
            for i in 0..<x.count { x[i] *= y[i] }
        }
    }
}

/// x[i] *= 1 - y[i]^2, with y a tanh
func multiply(_ x: inout [Float], byTanhSlopeAt y: [Float]) {
    precondition(x.count == y.count)
    x.withUnsafeMutableBufferPointer { x in
        y.withUnsafeBufferPointer { y in
            for i in 0..<x.count { x[i] *= 1 - y[i] * y[i] }
        }
    }
}

/// Adds row i of `rows` to row numbers[i] of `table`; rows have `width` elements.
func addRows(_ rows: [Float], to table: inout [Float], at numbers: [Int32], _ width: Int) {
    precondition(rows.count == numbers.count * width)
    table.withUnsafeMutableBufferPointer { table in
        rows.withUnsafeBufferPointer { rows in
            for (row, number) in numbers.enumerated() {
                let target = Int(number) * width
                precondition(target >= 0 && target + width <= table.count)
                for i in 0..<width { table[target + i] += rows[row * width + i] }
            }
        }
    }
}

/// Makes room for `count` elements, of any value.
func resize(_ array: inout [Float], to count: Int) {
    if array.count != count { array = Array(repeating: 0, count: count) }
}
