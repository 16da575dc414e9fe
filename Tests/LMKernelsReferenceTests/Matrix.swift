/// A matrix, row by row.
struct Matrix {
    var rows: Int
    var columns: Int
    var entries: [Double]

    init(rows: Int, columns: Int, entries: [Double]? = nil) {
        self.rows = rows
        self.columns = columns
        self.entries = entries ?? Array(repeating: 0, count: rows * columns)
    }

    init(column: [Double]) { self.init(rows: column.count, columns: 1, entries: column) }

    init(diagonal: [Double]) {
        self.init(rows: diagonal.count, columns: diagonal.count)
        for i in diagonal.indices { self[i, i] = diagonal[i] }
    }

    init(identity size: Int) { self.init(diagonal: Array(repeating: 1, count: size)) }

    subscript(i: Int, j: Int) -> Double {
        get { entries[i * columns + j] }
        set { entries[i * columns + j] = newValue }
    }

    var transposed: Self {
        var result = Self(rows: columns, columns: rows)
        for i in 0..<rows {
            for j in 0..<columns { result[j, i] = self[i, j] }
        }
        return result
    }

    func scaled(by factor: Double) -> Self {
        Self(rows: rows, columns: columns, entries: entries.map { factor * $0 })
    }

    static func + (a: Self, b: Self) -> Self {
        Self(rows: a.rows, columns: a.columns, entries: zip(a.entries, b.entries).map { $0 + $1 })
    }

    static func * (a: Self, b: Self) -> Self {
        var result = Self(rows: a.rows, columns: b.columns)
        for i in 0..<a.rows {
            for j in 0..<b.columns {
                for l in 0..<a.columns { result[i, j] += a[i, l] * b[l, j] }
            }
        }
        return result
    }
}
