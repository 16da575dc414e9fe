import Foundation

/// Mean loss on a text in nats per word; e to its power is the perplexity. The first words of the
/// text, which have too short a context, are not scored.
func meanLoss(of model: inout Model, on text: [Int32]) throws -> Double {
    let context = model.shape.context
    var outputs: [Float] = []
    for start in stride(from: context, to: text.count, by: 1024) {
        let positions = start..<min(start + 1024, text.count)
        outputs += try model.predict(Batch(text, at: positions, context: context).contexts)
    }
    // One call scores the whole text.
    return try model.loss(outputs: outputs, targets: Array(text[context...]))
}

/// The same for the model that knows how frequent words are, and nothing else.
func unigramMeanLoss(on text: [Int32], logFrequencies: [Float], context: Int) -> Double {
    let scored = text[context...]
    return -scored.reduce(0) { $0 + Double(logFrequencies[Int($1)]) } / Double(scored.count)
}

extension Model {
    /// Goes on from `prompt` until a sentence ends after `count` words, at twice that at the latest.
    ///
    /// Temperatures below 1 prefer likely words. Words that the model does not know are not drawn.
    mutating func continuation(
        of prompt: [Int32], count: Int, temperature: Float, isEnd: (Int32) -> Bool,
        using generator: inout SplitMix64
    ) throws -> [Int32] {
        let padding = [Int32](repeating: Vocabulary.unknown, count: shape.context)
        var words = padding + prompt
        for drawn in 1...2 * count {
            let output = try predict(Array(words.suffix(shape.context)))
            var logits = try logits(output: output)
            logits[Int(Vocabulary.unknown)] = -.infinity
            let largest = logits.max()!
            let weights = logits.map { exp(Double($0 - largest) / Double(temperature)) }
            var rest = Double(generator.unit()) * weights.reduce(0, +)
            let word = weights.firstIndex { weight in
                rest -= weight
                return rest < 0
            }
            words.append(Int32(word ?? weights.count - 1))
            if drawn >= count, isEnd(words.last!) { break }
        }
        return Array(words[padding.count...])
    }
}
