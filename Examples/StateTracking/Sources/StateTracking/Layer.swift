import LMKernels

/// Heads of the delta rule side by side, by the package's kernel in float32. They have the same
/// keys, and each a rate for each step of a token.
struct Layer {
    let task: Task
    /// [heads, R]
    let rates: [[Float]]
    private let workspace = Workspace()

    init(_ task: Task, rates: [[Float]]) {
        self.task = task
        self.rates = rates
    }

    /// - Parameters:
    ///   - sequences: Inputs, all sequences of the same length.
    ///   - lengths: In ascending order.
    /// - Returns: For each length, S after so many tokens: [sequences, heads, width, width].
    func states(_ sequences: [[Int]], after lengths: [Int]) throws -> [[Float]] {
        var state = [Float]()
        for _ in 0..<sequences.count * rates.count { state += identity }
        var (states, done) = ([[Float]](), 0)
        for length in lengths {
            let inputs = sequences.map { Array($0[done..<length]) }
            let tokens = length - done
            let rows = sequences.count * tokens
            let query = [Float](repeating: 0, count: rows * rates.count * task.width)
            let (key, value, beta) = arrays(inputs)
            var span = state.mutableSpan
            try DeltaRule.forward(
                query: query.span, key: key.span, value: value.span, beta: beta.span,
                inPlace: &span, shape: shape(batch: sequences.count, tokens: tokens),
                workspace: workspace)
            states.append(state)
            done = length
        }
        return states
    }

    /// Reads S at every token, by as many copies of a head as S has rows: copy r asks for row r.
    ///
    /// - Parameter rate: Of all steps.
    /// - Returns: [tokens, width, width]
    static func outputs(
        _ task: Task, _ inputs: [Int], rate: Float, form: DeltaRule.Form
    ) throws -> [Float] {
        let layer = Layer(
            task,
            rates: Array(repeating: Array(repeating: rate, count: task.steps), count: task.width))
        let start = [[Float]](repeating: layer.identity, count: task.width).flatMap { $0 }
        let query = [[Float]](repeating: layer.identity, count: inputs.count).flatMap { $0 }
        let (key, value, beta) = layer.arrays([inputs])
        var output = query
        try DeltaRule.forward(
            query: query.span, key: key.span, value: value.span, beta: beta.span,
            initialState: start.span, output: output.mutableSpan,
            shape: layer.shape(batch: 1, tokens: inputs.count),
            options: .init(form: form, scale: 1), workspace: layer.workspace)
        return output
    }

    private var identity: [Float] {
        (0..<task.width * task.width).map { $0 % (task.width + 1) == 0 ? 1 : 0 }
    }

    private func shape(batch: Int, tokens: Int) -> DeltaRule.Shape {
        .init(
            batch: batch, tokens: tokens, steps: task.steps, heads: rates.count, keyHeads: 1,
            keyWidth: task.width, valueWidth: task.width)
    }

    /// Keys, values of 0, and rates of all steps.
    private func arrays(_ sequences: [[Int]]) -> (key: [Float], value: [Float], beta: [Float]) {
        let key = sequences.flatMap { $0.flatMap { task.keys[$0] } }
        let ofToken = (0..<task.steps).flatMap { step in rates.map { $0[step] } }
        let tokens = sequences.count * (sequences.first?.count ?? 0)
        let beta = [[Float]](repeating: ofToken, count: tokens).flatMap { $0 }
        return (key, [Float](repeating: 0, count: key.count), beta)
    }
}
