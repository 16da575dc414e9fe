import LMKernels

typealias CrossEntropy = LMKernels.CrossEntropy

/// A cross-entropy problem with losses, gradients, and ways to call it.
struct CrossEntropyCase: FuzzCase {
    static let operation = "cross-entropy"

    var values: Values
    var rows: Int
    var features: Int
    var vocabulary: Int
    var options = CrossEntropy.Options()
    var hidden: [Float]
    var classifier: [Float]
    var bias: [Float]?
    var classWeights: [Float]?
    var targets: [Int]
    var targetType: TargetType
    var lossGradient: Float
    var lossGradients: [Float]
    var logSumExpGradients: [Float]?
    var entropyGradients: [Float]?
    var hiddenGrid: Grid
    var classifierGrid: Grid
    var hiddenGradientGrid: Grid
    var classifierGradientGrid: Grid
    var accumulate: CrossEntropy.Gradients
    /// What gradients are added to.
    var initial: Float
    /// How the kernel is called besides once for everything: the same bits every time.
    var variants: [Variant]

    /// What the entries of hidden states, classifier and bias are like.
    enum Values: CaseIterable {
        /// Logits spread over a few units.
        case even
        /// Exact logits, many of them equal.
        case integers
        /// Logits over many units: nearly all of the probability in one class.
        case confident
        /// Classes that occur several times.
        case repeated
        /// Logits up to 1e30.
        case huge
        /// Hidden states and classifiers of very different sizes, some denormal.
        case tiny
        case zero
        /// Classes taken out by a bias of -inf.
        case masked
        /// Some entries infinite, some NaN.
        case special
    }

    enum TargetType: CaseIterable {
        case int32, int64, int
    }

    /// A way to call the kernel.
    struct Variant {
        /// Forward and backward in one call.
        var isTogether: Bool
        var threads: Int
        /// Of the least memory budget and, in quarters of it, how much more; nil for the default.
        var budgetQuarters: Int?
        var outputs: CrossEntropy.Outputs
        var gradients: CrossEntropy.Gradients

        static let everything = Variant(
            isTogether: true, threads: 1, budgetQuarters: nil, outputs: .all, gradients: .all)
    }

    init(using random: inout SplitMix64) {
        let values = random.pick(Values.allCases)
        let (rows, features, vocabulary) = Self.drawSizes(&random)
        let hiddenScale: Float =
            switch values {
            case .huge: random.power(-20...50)
            case .tiny: random.power(-140 ... -20)
            default: 1
            }
        let spread: Float =
            switch values {
            case .huge: random.power(4...50)
            case .tiny: random.power(-20...100)
            case .confident: random.power(3...8)
            default: random.power(-3...3)
            }
        let classifierScale = spread / Float(features).squareRoot()
        func draw(_ scale: Float, _ random: inout SplitMix64) -> Float {
            switch values {
            case .zero: return 0
            case .integers: return Float(random.integer(-2...2))
            case .special where random.once(in: 200):
                return random.pick([.infinity, -.infinity, .nan])
            default: return random.unit() * scale
            }
        }
        hidden = (0..<rows * features).map { _ in draw(hiddenScale, &random) }
        classifier = (0..<vocabulary * features).map { _ in draw(classifierScale, &random) }
        if random.once(in: 2) || values == .masked {
            let biasScale = hiddenScale * spread
            bias = (0..<vocabulary).map { _ in draw(biasScale, &random) }
        }
        switch values {
        case .repeated:
            for j in 1..<max(vocabulary, 1) where random.once(in: 3) {
                let other = random.below(j)
                for k in 0..<features {
                    classifier[j * features + k] = classifier[other * features + k]
                }
                if bias != nil { bias![j] = bias![other] }
            }
        case .masked:
            // A few, most, or all but one.
            let share = random.integer(1...8)
            let kept = random.below(vocabulary)
            for j in 0..<vocabulary where j != kept && random.below(8) < share {
                bias![j] = -.infinity
            }
        default: break
        }

        self.values = values
        self.rows = rows
        self.features = features
        self.vocabulary = vocabulary
        options.ignoreIndex = random.pick([-100, -1, 0, vocabulary - 1, .max])
        let ignored = random.pick([0, 1, 1, 4, 8])
        let ignoreIndex = Int(Int32(clamping: options.ignoreIndex))
        options.ignoreIndex = ignoreIndex
        targets = (0..<rows).map { _ in
            random.below(8) < ignored ? ignoreIndex : random.below(vocabulary)
        }
        targetType = random.pick(TargetType.allCases)

        lossGradient = random.pick([1, 1, -0.5, 0.001, 0, 1000])
        func upstream(_ random: inout SplitMix64) -> [Float] {
            (0..<rows).map { _ in random.once(in: 8) ? 0 : random.unit() }
        }
        lossGradients = upstream(&random)
        if random.once(in: 3) { logSumExpGradients = upstream(&random) }
        if random.once(in: 3) { entropyGradients = upstream(&random) }

        hiddenGrid = Grid(rows: rows, columns: features, gapsFrom: &random)
        classifierGrid = Grid(rows: vocabulary, columns: features, gapsFrom: &random)
        hiddenGradientGrid = Grid(rows: rows, columns: features, gapsFrom: &random)
        classifierGradientGrid = Grid(rows: vocabulary, columns: features, gapsFrom: &random)
        accumulate = random.once(in: 2) ? [] : .init(rawValue: random.below(8))
        initial = random.unit()
        variants = [Variant(using: &random), Variant(using: &random)]
        drawOptions(&random)
    }

    private static func drawSizes(
        _ random: inout SplitMix64
    ) -> (rows: Int, features: Int, vocabulary: Int) {
        var rows = random.length(upTo: 600)
        var features = random.length(upTo: 300, orZero: false)
        var vocabulary = random.once(in: 20) ? 1 : random.length(upTo: 2600, orZero: false)
        // The reference and the scales of errors take some ten nanoseconds for each product.
        let limit = random.once(in: 16) ? 4_000_000 : 400_000
        while rows * features * vocabulary > limit {
            switch random.below(3) {
            case 0: rows = (rows + 1) / 2
            case 1: features = (features + 1) / 2
            default: vocabulary = (vocabulary + 1) / 2
            }
        }
        return (rows, features, vocabulary)
    }

    private mutating func drawOptions(_ random: inout SplitMix64) {
        if random.once(in: 3) { options.softcap = random.pick([0.5, 5, 30]) }
        if random.once(in: 4) { options.logitScale = random.pick([0.25, 3, -1]) }
        if random.once(in: 3) { options.labelSmoothing = random.pick([0.1, 0.5, 1]) }
        if random.once(in: 3) { options.zLoss = random.pick([1e-4, 0.1]) }
        options.reduction = random.pick([.none, .mean, .sum])
        if random.once(in: 3) {
            let isZero = random.once(in: 8)
            classWeights = (0..<vocabulary).map { _ in
                isZero || random.once(in: 6) ? 0 : random.number(0...2)
            }
        }
        if random.once(in: 4) {
            let lengths = (1...max(rows, 1)).filter { rows % $0 == 0 }
            options.tokensPerSequence = random.once(in: 3) ? nil : random.pick(lengths)
            options.targetShift = random.integer(0...3)
        }
    }

    var description: String {
        func name(_ isThere: Bool, _ text: String) -> String { isThere ? " \(text)" : "" }
        return "rows \(rows) features \(features) vocabulary \(vocabulary) values \(values)"
            + " targets \(targetType) ignore \(options.ignoreIndex)"
            + name(options.targetShift > 0, "shift \(options.targetShift)")
            + (options.tokensPerSequence.map { " sequences of \($0)" } ?? "")
            + (options.softcap.map { " softcap \($0)" } ?? "")
            + " scale \(options.logitScale) smoothing \(options.labelSmoothing)"
            + " z \(options.zLoss) reduction \(options.reduction)"
            + name(bias != nil, "bias") + name(classWeights != nil, "weights")
            + name(options.reduction != .none, "g \(lossGradient)")
            + name(logSumExpGradients != nil, "gl") + name(entropyGradients != nil, "gh")
            + name(!accumulate.isEmpty, "accumulate \(accumulate.rawValue)")
            + " gaps \(hiddenGrid.gap) \(classifierGrid.gap) \(hiddenGradientGrid.gap)"
            + " \(classifierGradientGrid.gap)"
            + " offsets \(hiddenGrid.offset) \(classifierGrid.offset)"
            + " \(hiddenGradientGrid.offset) \(classifierGradientGrid.offset)"
    }
}

extension CrossEntropyCase.Variant: CustomStringConvertible {
    fileprivate init(using random: inout SplitMix64) {
        isTogether = random.once(in: 2)
        threads = random.threads()
        budgetQuarters = random.once(in: 3) ? nil : random.pick([0, 0, 1, 4, 12, 40])
        outputs = random.once(in: 2) ? .all : .init(rawValue: random.below(64))
        gradients = random.once(in: 2) ? .all : .init(rawValue: random.below(8))
    }

    var description: String {
        (isTogether ? "one call" : "two calls") + ", threads \(threads), "
            + (budgetQuarters.map { "least budget + \($0)/4" } ?? "default budget")
            + (outputs == .all ? "" : ", outputs \(outputs.rawValue)")
            + (gradients == .all ? "" : ", gradients \(gradients.rawValue)")
    }
}

extension CrossEntropy.Outputs {
    static let all: Self = [.loss, .logSumExp, .entropy, .predicted, .targetLogit, .rowStates]
}

extension CrossEntropy.Gradients {
    static let all: Self = [.hidden, .classifier, .bias]
}
