extension DeltaRule {
    /// The outputs and states of every sequence.
    public static func forward(_ problem: Problem) -> Output {
        let sequences = check(problem)
        let shape = problem.shape
        let stride = problem.stateStride
        let rows = shape.batch * shape.tokens
        let stored = sequences.map { rows in stride.map { rows.count / $0 } ?? 0 }.reduce(0, +)

        func zeros(_ count: Int) -> [Double] { Array(repeating: 0, count: count) }
        var output = Output(
            output: zeros(rows * shape.heads * shape.valueWidth),
            finalState: zeros(stateCount(shape, sequences: sequences.count)),
            states: zeros(stateCount(shape, sequences: stored)))

        let plain = problem.plain
        for h in 0..<shape.heads {
            let head = Head(h, of: plain)
            var storedBefore = 0
            for (n, rows) in sequences.enumerated() {
                var state = head.state(n, of: plain.initialState)
                for row in rows {
                    state = head.next(state, row)
                    output.output.replaceSubrange(
                        head.slice(row, shape.valueWidth), with: head.read(state, row))

                    let count = row - rows.lowerBound + 1
                    if let stride, count % stride == 0 {
                        head.store(state, storedBefore, in: &output.states)
                        storedBefore += 1
                    }
                }
                head.store(state, n, in: &output.finalState)
            }
        }
        return output
    }
}
