/// Trains a model on a text: batches of positions drawn without replacement, Adam, and a learning
/// rate that rises shortly and then falls to 0 in a straight line.
struct Trainer {
    /// Found with the last tenth of what the bundled texts have to learn from.
    struct Options {
        /// Words to predict in a step.
        var batch = 512
        var rate: Float = 0.003
        var decay: Float = 0.01
        var inputDropout: Float = 0.25
        var hiddenDropout: Float = 0.25
        /// Steps until the rate is reached.
        var warmUp = 50
    }

    let options: Options
    var model: Model
    private var optimizer: Adam
    private var generator: SplitMix64
    private let text: [Int32]
    private var positions: [Int]
    private var next: Int
    private var dropout = Dropout()
    private(set) var steps = 0
    /// Words predicted so far.
    private(set) var words = 0

    /// - Precondition: `text` is longer than the model's context.
    init(
        _ model: Model, on text: [Int32], _ options: Options = Options(), generator: SplitMix64
    ) {
        precondition(text.count > model.shape.context)
        self.model = model
        self.text = text
        self.options = options
        self.generator = generator
        optimizer = Adam(model.shape, decay: options.decay)
        positions = Array(model.shape.context..<text.count)
        next = positions.count
    }

    /// Passes over the text so far.
    var epochs: Double { Double(words) / Double(positions.count) }

    /// One step; `progress`, from 0 to 1, is how far training has come.
    ///
    /// - Returns: The batch's mean loss before the step, in nats.
    mutating func step(progress: Double) throws -> Double {
        if next + options.batch > positions.count {
            positions.shuffle(using: &generator)
            next = 0
        }
        let end = min(next + options.batch, positions.count)
        let batch = Batch(text, at: positions[next..<end], context: model.shape.context)
        next = end
        dropout.draw(
            rows: batch.rows, model.shape, inputRate: options.inputDropout,
            hiddenRate: options.hiddenDropout, using: &generator)
        let loss = try model.learn(batch, dropout)
        steps += 1
        words += batch.rows
        let warmth = min(1, Float(steps) / Float(options.warmUp))
        let rate = options.rate * warmth * Float(max(0, 1 - progress))
        optimizer.update(&model.parameters, gradient: model.gradient, rate: rate)
        return loss
    }
}
