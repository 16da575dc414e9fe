/// Words to predict, each with the words before it.
struct Batch {
    /// [rows, context], the nearest word last.
    private(set) var contexts: [Int32] = []
    /// [rows]
    private(set) var targets: [Int32] = []

    var rows: Int { targets.count }

    /// The words at `positions` of a text; each has at least `context` words before it.
    init(_ text: [Int32], at positions: some Sequence<Int>, context: Int) {
        for position in positions {
            contexts += text[position - context..<position]
            targets.append(text[position])
        }
    }
}
