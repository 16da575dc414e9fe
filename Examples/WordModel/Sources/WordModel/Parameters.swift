/// Sizes of the model.
struct ModelShape {
    var vocabulary: Int
    /// Words that are looked at.
    var context = 6
    /// Numbers for a word.
    var embedding = 128
    var hidden = 256

    /// Numbers for a context.
    var inputs: Int { context * embedding }
}

/// What the model learns. Gradients and Adam's averages have the same form.
struct Parameters {
    /// [vocabulary, embedding]: the words as they are read, and the classifier that predicts them.
    var embedding: [Float]
    /// [hidden, context x embedding]
    var mixing: [Float]
    /// [hidden]
    var mixingBias: [Float]
    /// [embedding, hidden]
    var projection: [Float]
    /// [vocabulary]
    var outputBias: [Float]

    static let tensors: [WritableKeyPath<Parameters, [Float]> & Sendable] = [
        \.embedding, \.mixing, \.mixingBias, \.projection, \.outputBias,
    ]

    init(zeros shape: ModelShape) {
        embedding = Array(repeating: 0, count: shape.vocabulary * shape.embedding)
        mixing = Array(repeating: 0, count: shape.hidden * shape.inputs)
        mixingBias = Array(repeating: 0, count: shape.hidden)
        projection = Array(repeating: 0, count: shape.embedding * shape.hidden)
        outputBias = Array(repeating: 0, count: shape.vocabulary)
    }

    /// Random weights; `logFrequencies` as bias makes the untrained model nearly the unigram model.
    init(
        random shape: ModelShape, logFrequencies: [Float], using generator: inout SplitMix64
    ) {
        self.init(zeros: shape)
        embedding = generator.uniform(embedding.count, bound: 0.1)
        mixing = generator.uniform(mixing.count, bound: (3 / Float(shape.inputs)).squareRoot())
        projection = generator.uniform(
            projection.count, bound: (3 / Float(shape.hidden)).squareRoot())
        outputBias = logFrequencies
    }

    var count: Int {
        Self.tensors.reduce(0) { $0 + self[keyPath: $1].count }
    }
}
