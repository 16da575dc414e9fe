import LMKernels

/// A next-word model in the manner of Bengio et al., "A Neural Probabilistic Language Model", 2003,
/// with the embedding as classifier (Press and Wolf, 2017):
///
///     x = [E(w[t-K]), ..., E(w[t-1])]       h = tanh(mixing x + mixingBias)
///     y = projection h                      p(w[t] = j) = softmax_j(E(j) . y + outputBias[j])
///
/// All rows of a batch go through each line together. The softmax over the whole vocabulary, with
/// its loss and gradients, is one call to `CrossEntropy`: the logits of a batch are never stored.
struct Model {
    let shape: ModelShape
    var parameters: Parameters
    /// What `learn` leaves: the gradient of its batch's mean loss.
    private(set) var gradient: Parameters

    private let classifier: Classifier
    private let workspace = Workspace()

    // The layers of the latest batch: [rows, context x embedding], [rows, hidden] twice, before and
    // after dropout, [rows, embedding]; and their gradients.
    private var inputs: [Float] = []
    private var activations: [Float] = []
    private var hidden: [Float] = []
    private var outputs: [Float] = []
    private var inputsGradient: [Float] = []
    private var hiddenGradient: [Float] = []
    private var outputsGradient: [Float] = []

    init(_ shape: ModelShape, parameters: Parameters) {
        self.shape = shape
        self.parameters = parameters
        gradient = Parameters(zeros: shape)
        classifier = Classifier(shape: shape)
    }

    /// The most bytes that cut cross-entropy has worked in.
    var lossByteCount: Int { classifier.workspace.byteCount }

    // MARK: Use

    /// y for each row of contexts, [rows, embedding].
    mutating func predict(_ contexts: [Int32]) throws -> [Float] {
        try forward(contexts, Dropout())
        return outputs
    }

    /// Mean loss of the words that came, from y as `predict` returns it.
    func loss(outputs: [Float], targets: [Int32]) throws -> Double {
        try classifier.loss(
            hidden: outputs, embedding: parameters.embedding, bias: parameters.outputBias,
            targets: targets)
    }

    /// Logits of every word for one y: to draw the next word from.
    func logits(output: [Float]) throws -> [Float] {
        var logits = parameters.outputBias
        try product(
            output, parameters.embedding, into: &logits, .nt, rows: 1, columns: shape.vocabulary,
            depth: shape.embedding, accumulate: true, workspace)
        return logits
    }

    // MARK: Learning

    /// Computes the gradient for a batch, and returns the batch's mean loss.
    mutating func learn(_ batch: Batch, _ dropout: Dropout = Dropout()) throws -> Double {
        try forward(batch.contexts, dropout)
        let loss = try classifier.loss(
            hidden: outputs, embedding: parameters.embedding, bias: parameters.outputBias,
            targets: batch.targets, hiddenGradient: &outputsGradient,
            embeddingGradient: &gradient.embedding, biasGradient: &gradient.outputBias)
        try backward(batch, dropout)
        return loss
    }

    private mutating func forward(_ contexts: [Int32], _ dropout: Dropout) throws {
        let rows = contexts.count / shape.context

        inputs.removeAll(keepingCapacity: true)
        for word in contexts {
            let start = Int(word) * shape.embedding
            inputs += parameters.embedding[start..<start + shape.embedding]
        }
        multiply(&inputs, by: dropout.inputs)

        // `hidden` holds the sums until tanh is taken of them.
        hidden.removeAll(keepingCapacity: true)
        for _ in 0..<rows { hidden += parameters.mixingBias }
        try product(
            inputs, parameters.mixing, into: &hidden, .nt, rows: rows, columns: shape.hidden,
            depth: shape.inputs, accumulate: true, workspace)
        try tanh(hidden, into: &activations)
        hidden.replaceSubrange(hidden.indices, with: activations)
        multiply(&hidden, by: dropout.hidden)

        try product(
            hidden, parameters.projection, into: &outputs, .nt, rows: rows,
            columns: shape.embedding, depth: shape.hidden, workspace)
    }

    /// From the gradient of y back to the words. `gradient.embedding` has the classifier's part.
    private mutating func backward(_ batch: Batch, _ dropout: Dropout) throws {
        let rows = batch.rows
        try product(
            outputsGradient, hidden, into: &gradient.projection, .tn, rows: shape.embedding,
            columns: shape.hidden, depth: rows, workspace)
        try product(
            outputsGradient, parameters.projection, into: &hiddenGradient, .nn, rows: rows,
            columns: shape.hidden, depth: shape.embedding, workspace)
        multiply(&hiddenGradient, by: dropout.hidden)
        multiply(&hiddenGradient, byTanhSlopeAt: activations)

        try product(
            hiddenGradient, inputs, into: &gradient.mixing, .tn, rows: shape.hidden,
            columns: shape.inputs, depth: rows, workspace)
        try product(
            Array(repeating: 1, count: rows), hiddenGradient, into: &gradient.mixingBias, .nn,
            rows: 1, columns: shape.hidden, depth: rows, workspace)
        try product(
            hiddenGradient, parameters.mixing, into: &inputsGradient, .nn, rows: rows,
            columns: shape.inputs, depth: shape.hidden, workspace)
        multiply(&inputsGradient, by: dropout.inputs)
        addRows(inputsGradient, to: &gradient.embedding, at: batch.contexts, shape.embedding)
    }
}
