import ArgumentParser
import Foundation
import LMKernels

@main
struct WordModelCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "WordModel",
        abstract: "Trains a next-word model on a text, scores it and lets it write.",
        discussion: """
            Without --text it reads two novels by Jane Austen. Training ends after --steps or \
            --seconds, whichever comes first; where only --steps is given, time does not matter \
            and the same seed gives the same model.
            """)

    @Option(help: "A text file (UTF-8) to learn from instead; may be given again.")
    var text: [String] = []

    @Option(help: "Steps to train for. (default: 2500)")
    var steps: Int?

    @Option(help: "Seconds to train for. (default: 60 without --steps)")
    var seconds: Double?

    @Option(help: "Seed of everything random.")
    var seed: UInt64 = 1

    @Option(help: "Words that continuations begin with; may be given again.")
    var prompt: [String] = []

    func validate() throws {
        if let steps, steps < 1 { throw ValidationError("--steps must be at least 1.") }
        if let seconds, !(seconds > 0) { throw ValidationError("--seconds must be above 0.") }
    }

    mutating func run() throws {
        let start = ContinuousClock.now
        let corpus = Corpus(try texts())
        let shape = ModelShape(vocabulary: corpus.vocabulary.count)
        guard min(corpus.training.count, corpus.heldOut.count) > shape.context else {
            throw ValidationError("The text is too short.")
        }
        var generator = SplitMix64(seed: seed)
        let parameters = Parameters(
            random: shape, logFrequencies: corpus.logFrequencies, using: &generator)
        let model = Model(shape, parameters: parameters)
        print(
            """
            \(corpus.training.count) words to learn from, \(corpus.heldOut.count) held out; \
            vocabulary of \(shape.vocabulary), \(parameters.count) parameters
            \(Threads.count()) threads (\(Threads.runtime)), \(InstructionSet.current.rawValue)

            """)

        var trainer = Trainer(model, on: corpus.training, generator: generator)
        let duration = try train(&trainer)
        try report(&trainer, corpus, duration: duration)
        try write(&trainer.model, corpus)
        print("\nAll in \(elapsed(since: start), digits: 1) s")
    }
}

extension WordModelCommand {
    private func texts() throws -> [String] {
        var paths = text
        if paths.isEmpty {
            let package = URL(filePath: #filePath).deletingLastPathComponent()
                .deletingLastPathComponent().deletingLastPathComponent()
            paths = ["sense-and-sensibility.txt", "pride-and-prejudice.txt"].map {
                package.appending(components: "Data", $0).path
            }
        }
        return try paths.map { path in
            do {
                return try String(contentsOfFile: path, encoding: .utf8)
            } catch {
                throw ValidationError("\(path) cannot be read as UTF-8 text.")
            }
        }
    }

    /// Trains with a line of progress now and then.
    ///
    /// - Returns: Seconds it took.
    private func train(_ trainer: inout Trainer) throws -> Double {
        let allSteps = steps ?? 2500
        let allSeconds = seconds ?? (steps == nil ? 60 : .infinity)
        let start = ContinuousClock.now
        var losses: [Double] = []
        var (shown, shownWords) = (0.0, 0)
        print("   step  epoch   loss  perplexity  words/s   memory")
        while true {
            let now = elapsed(since: start)
            let progress = max(Double(trainer.steps) / Double(allSteps), now / allSeconds)
            let isLast = progress >= 1 && trainer.steps > 0
            if isLast || (now - shown >= 2 && !losses.isEmpty) {
                let loss = losses.reduce(0, +) / Double(losses.count)
                let speed = Double(trainer.words - shownWords) / (now - shown)
                print(
                    String(
                        format: "%7d %6.2f %6.3f %11.1f %8.0f %5.0f MB", trainer.steps,
                        trainer.epochs, loss, exp(loss), speed, Double(Memory.resident) * 1e-6))
                fflush(nil)
                (shown, shownWords, losses) = (now, trainer.words, [])
            }
            if isLast { return now }
            losses.append(try trainer.step(progress: progress))
        }
    }

    private func report(_ trainer: inout Trainer, _ corpus: Corpus, duration: Double) throws {
        let shape = trainer.model.shape
        let batch = trainer.options.batch
        let learningBytes = trainer.model.lossByteCount
        let start = ContinuousClock.now
        let loss = try meanLoss(of: &trainer.model, on: corpus.heldOut)
        let scoring = elapsed(since: start)
        let unigram = unigramMeanLoss(
            on: corpus.heldOut, logFrequencies: corpus.logFrequencies, context: shape.context)
        let unknown = corpus.heldOut.count { $0 == Vocabulary.unknown }
        let scored = corpus.heldOut.count - shape.context
        func megabytes(_ bytes: Int) -> String { "\(Double(bytes) * 1e-6, digits: 1) MB" }
        print(
            """

            Held-out perplexity
              unigram  \(exp(unigram), digits: 1)
              model    \(exp(loss), digits: 1), \(100 * exp(loss - unigram), digits: 1)% of it: \
            \(unigram - loss, digits: 2) nats a word better
            \(100 * Double(unknown) / Double(corpus.heldOut.count), digits: 1)% of the held-out words \
            are not in the vocabulary; both models predict them as one word, <unk>.

            Memory for the softmax over \(shape.vocabulary) words
              a step of \(batch) words     \(megabytes(learningBytes)); logits alone are \
            \(megabytes(4 * batch * shape.vocabulary))
              \(scored) held-out words \(megabytes(trainer.model.lossByteCount)); logits alone are \
            \(megabytes(4 * scored * shape.vocabulary))
            Largest memory of the process: \(megabytes(Memory.peak))

            Training took \(duration, digits: 1) s \
            (\(Double(trainer.words) / duration, digits: 0) words/s), \
            scoring \(scoring, digits: 1) s.

            """)
    }

    /// A few continuations: of the prompts, or of what the text itself has here and there.
    private func write(_ model: inout Model, _ corpus: Corpus) throws {
        let (vocabulary, heldOut) = (corpus.vocabulary, corpus.heldOut)
        let usual = ["It is a truth", "“My dear Elizabeth,", "She was", "Mr. Darcy"]
        var prompts = (text.isEmpty && prompt.isEmpty ? usual : prompt)
            .map { vocabulary.encode(tokenize($0)) }
        if prompts.isEmpty {
            prompts = (0..<4).map { Array(heldOut[($0 * heldOut.count / 4)...].prefix(4)) }
        }
        var generator = SplitMix64(seed: seed)
        for prompt in prompts {
            let words = try model.continuation(
                of: prompt, count: 25, temperature: 0.7,
                isEnd: { ".!?".contains(vocabulary.words[Int($0)]) }, using: &generator)
            print("> " + vocabulary.decode(words))
        }
    }

    private func elapsed(since start: ContinuousClock.Instant) -> Double {
        (ContinuousClock.now - start) / .seconds(1)
    }
}

extension DefaultStringInterpolation {
    fileprivate mutating func appendInterpolation(_ value: Double, digits: Int) {
        appendInterpolation(String(format: "%.\(digits)f", value))
    }
}
