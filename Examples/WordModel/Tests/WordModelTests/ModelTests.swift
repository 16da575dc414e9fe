import Foundation
import Testing

@testable import WordModel

@Suite struct ModelTests {
    let shape = ModelShape(vocabulary: 23, context: 3, embedding: 5, hidden: 7)
    let batch = Batch([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 22, 0, 7], at: 3..<14, context: 3)

    /// Every parameter's gradient, through embedding, mixing, tanh, dropout, projection and
    /// softmax, against differences of the loss written out in Double.
    @Test(arguments: [Float(0), 0.5])
    func gradientMatchesFiniteDifferences(dropoutRate: Float) throws {
        var generator = SplitMix64(seed: 7)
        let bias = generator.uniform(shape.vocabulary, bound: 1)
        var parameters = Parameters(random: shape, logFrequencies: bias, using: &generator)
        // Larger than a model begins with, so that nothing is nearly linear.
        parameters.embedding = generator.uniform(parameters.embedding.count, bound: 1)
        parameters.mixingBias = generator.uniform(shape.hidden, bound: 1)
        var dropout = Dropout()
        dropout.draw(
            rows: batch.rows, shape, inputRate: dropoutRate, hiddenRate: dropoutRate,
            using: &generator)
        var model = Model(shape, parameters: parameters)
        let loss = try model.learn(batch, dropout)
        var reference = Reference(shape, parameters)
        #expect(abs(loss - reference.loss(batch, dropout)) < 1e-6)

        for (index, tensor) in Parameters.tensors.enumerated() {
            let gradient = model.gradient[keyPath: tensor]
            for i in gradient.indices {
                let expected = reference.difference(index, i, batch, dropout)
                #expect(
                    abs(Double(gradient[i]) - expected) < 1e-6 + 1e-5 * abs(expected),
                    "tensor \(index), entry \(i): \(gradient[i]), expected \(expected)")
            }
        }
    }

    @Test func lossWithoutGradientIsTheSame() throws {
        var generator = SplitMix64(seed: 8)
        let bias = generator.uniform(shape.vocabulary, bound: 1)
        let parameters = Parameters(random: shape, logFrequencies: bias, using: &generator)
        var model = Model(shape, parameters: parameters)
        let learned = try model.learn(batch)
        let outputs = try model.predict(batch.contexts)
        #expect(try model.loss(outputs: outputs, targets: batch.targets) == learned)
    }

    @Test func logitsGiveTheLoss() throws {
        var generator = SplitMix64(seed: 9)
        let bias = generator.uniform(shape.vocabulary, bound: 1)
        let parameters = Parameters(random: shape, logFrequencies: bias, using: &generator)
        var model = Model(shape, parameters: parameters)
        let row = Batch([1, 2, 3, 4], at: [3], context: 3)
        let output = try model.predict(row.contexts)
        let logits = try model.logits(output: output).map(Double.init)
        let expected = log(logits.map(exp).reduce(0, +)) - logits[4]
        #expect(abs(try model.loss(outputs: output, targets: row.targets) - expected) < 1e-6)
    }

    /// A text that can be learned by heart: the same seed learns it twice to the last bit.
    @Test func trainingLearnsAndRepeats() throws {
        let corpus = Corpus([String(repeating: "one two three four, five six. ", count: 40)])
        func train() throws -> (loss: Double, parameters: Parameters, words: [Int32]) {
            let shape = ModelShape(
                vocabulary: corpus.vocabulary.count, context: 3, embedding: 16, hidden: 32)
            var generator = SplitMix64(seed: 1)
            let parameters = Parameters(
                random: shape, logFrequencies: corpus.logFrequencies, using: &generator)
            var options = Trainer.Options()
            options.batch = 64
            options.rate = 0.01
            var trainer = Trainer(
                Model(shape, parameters: parameters), on: corpus.training, options,
                generator: generator)
            for step in 0..<100 { _ = try trainer.step(progress: Double(step) / 100) }
            let loss = try meanLoss(of: &trainer.model, on: corpus.heldOut)
            let words = try trainer.model.continuation(
                of: corpus.vocabulary.encode(["one"]), count: 6, temperature: 0.5,
                isEnd: { corpus.vocabulary.words[Int($0)] == "." }, using: &generator)
            return (loss, trainer.model.parameters, words)
        }
        let (first, second) = (try train(), try train())
        #expect(first.loss < 0.1)
        #expect(corpus.vocabulary.decode(first.words).hasPrefix("One two three four, five six."))
        #expect(first.loss == second.loss)
        for tensor in Parameters.tensors {
            #expect(first.parameters[keyPath: tensor] == second.parameters[keyPath: tensor])
        }
    }
}

/// The model in Double, a row and a number at a time.
private struct Reference {
    let shape: ModelShape
    var tensors: [[Double]]

    init(_ shape: ModelShape, _ parameters: Parameters) {
        self.shape = shape
        tensors = Parameters.tensors.map { parameters[keyPath: $0].map(Double.init) }
    }

    /// Mean loss of a batch.
    func loss(_ batch: Batch, _ dropout: Dropout) -> Double {
        let (embedding, mixing, mixingBias) = (tensors[0], tensors[1], tensors[2])
        let (projection, outputBias) = (tensors[3], tensors[4])
        let inputs = shape.context * shape.embedding
        func factor(_ factors: [Float], _ i: Int) -> Double {
            factors.isEmpty ? 1 : Double(factors[i])
        }
        var sum = 0.0
        for row in 0..<batch.rows {
            let x = (0..<inputs).map { i in
                let word = Int(batch.contexts[row * shape.context + i / shape.embedding])
                return embedding[word * shape.embedding + i % shape.embedding]
                    * factor(dropout.inputs, row * inputs + i)
            }
            let h = (0..<shape.hidden).map { j in
                let dot = (0..<inputs).reduce(mixingBias[j]) {
                    $0 + mixing[j * inputs + $1] * x[$1]
                }
                return tanh(dot) * factor(dropout.hidden, row * shape.hidden + j)
            }
            let y = (0..<shape.embedding).map { k in
                (0..<shape.hidden).reduce(0) { $0 + projection[k * shape.hidden + $1] * h[$1] }
            }
            let logits = (0..<shape.vocabulary).map { j in
                (0..<shape.embedding).reduce(outputBias[j]) {
                    $0 + embedding[j * shape.embedding + $1] * y[$1]
                }
            }
            sum += log(logits.map(exp).reduce(0, +)) - logits[Int(batch.targets[row])]
        }
        return sum / Double(batch.rows)
    }

    mutating func difference(
        _ tensor: Int, _ i: Int, _ batch: Batch, _ dropout: Dropout
    ) -> Double {
        let (value, step) = (tensors[tensor][i], 1e-5)
        tensors[tensor][i] = value + step
        let above = loss(batch, dropout)
        tensors[tensor][i] = value - step
        let below = loss(batch, dropout)
        tensors[tensor][i] = value
        return (above - below) / (2 * step)
    }
}
