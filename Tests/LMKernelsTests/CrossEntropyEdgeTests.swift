import LMKernels
import Testing

extension KernelSuite {
    /// Extremes, empty input, and what is refused.
    @Suite struct CrossEntropyEdgeTests {
        /// A problem of one feature, where the classifier's entries are the logits of a hidden 1.
        private func logits(
            _ z: [Float], target: Int, _ change: (inout CrossEntropy.Options) -> Void = { _ in }
        ) throws -> (result: CrossEntropy.Result, hidden: [Float], classifier: [Float]) {
            var options = CrossEntropy.Options(reduction: .sum)
            change(&options)
            let (one, targets) = ([1] as [Float], [target])
            var hidden: [Float] = [0]
            var classifier = [Float](repeating: 0, count: z.count)
            let result = try CrossEntropy.forwardBackward(
                hidden: one.span, classifier: z.span, targets: targets.span,
                shape: .init(rows: 1, features: 1, vocabulary: z.count), options: options,
                hiddenGradient: hidden.mutableSpan, classifierGradient: classifier.mutableSpan,
                outputs: CrossEntropyProblem.allOutputs, workspace: Workspace())
            return (result, hidden, classifier)
        }

        // MARK: - Precision

        /// lse - z_y is 0 in float32 where the truth is 9.1e-9; so is p_y - 1.
        @Test func lossNearZeroKeepsItsDigits() throws {
            let found = try logits([20, 0.5, 1, -3], target: 0)
            // log(1 + e^-19.5 + e^-19 + e^-23)
            let loss = 9.103683011910835e-09
            #expect(abs(Double(found.result.losses[0]) / loss - 1) < 3e-7)
            #expect(abs(Double(-found.classifier[0]) / loss - 1) < 3e-7)
        }

        @Test func lossIsNeverNegative() throws {
            var random = SeededGenerator(seed: 1)
            for _ in 0..<500 {
                let z = (0..<40).map { _ in Float.random(in: -40...40, using: &random) }
                let target = z.indices.max { z[$0] < z[$1] }!
                let found = try logits(z, target: target)
                #expect(found.result.losses[0] >= 0)
                #expect(found.result.predicted == [target])
            }
        }

        /// Where tanh has rounded to 1, its derivative is still 4 e^-2x.
        @Test func softcapSaturatedKeepsItsGradient() throws {
            let found = try logits([24, 0], target: 1) { $0.softcap = 2 }
            // p_0 = e^2 / (e^2 + 1), slope 4 e^-24 / (1 + e^-24)^2
            let gradient = 0.880_797_077_977_882_3 * 1.510_053_817_627_15e-10
            #expect(abs(Double(found.classifier[0]) / gradient - 1) < 3e-7)
        }

        @Test(arguments: [3e38, 1e30, 1e6, -1e6] as [Float])
        func hugeLogitsStayFinite(offset: Float) throws {
            let found = try logits([offset, offset / 2, 0], target: 0)
            #expect(found.result.losses[0].isFinite)
            #expect(found.classifier.allSatisfy { $0.isFinite })
            #expect(found.result.logSumExp[0] == max(offset, 0))
        }

        @Test func uniformLogits() throws {
            let found = try logits([Float](repeating: 7, count: 1000), target: 512)
            #expect(abs(found.result.losses[0] - 6.907_755_3) < 1e-6)
            #expect(abs(found.result.entropy[0] - 6.907_755_3) < 1e-6)
            #expect(found.result.predicted == [0], "the lowest of equal ones")
        }

        /// Of two classes in one block of columns, in two, in two chunks; the target among them or
        /// not.
        @Test(arguments: [(3, 9), (3, 300), (3, 1030), (1500, 2100)])
        func predictedIsTheLowestOfEqualClasses(first: Int, second: Int) throws {
            var values = [Float](repeating: 0, count: 2600)
            (values[first], values[second]) = (7, 7)
            for target in [0, first, second, 2599] {
                let found = try logits(values, target: target)
                #expect(found.result.predicted == [first], "target \(target)")
            }
        }

        // MARK: - Values that are not finite

        @Test func notANumberStaysInItsRow() throws {
            for bad in [Float.nan, .infinity] {
                var problem = CrossEntropyProblem(rows: 3, features: 2, vocabulary: 300, seed: 1)
                problem.targets = [5, 6, 7]
                let good = try problem.run()
                problem.hidden[1 * (2 + CrossEntropyProblem.gap)] = bad
                let found = try problem.run()
                let result = found.result
                #expect(result.losses[1].isNaN)
                #expect(result.logSumExp[1].isNaN)
                #expect(result.entropy[1].isNaN)
                #expect(result.predicted[1] == -1)
                #expect(result.loss.isNaN)
                for row in [0, 2] {
                    #expect(result.losses[row] == good.result.losses[row])
                    #expect(result.predicted[row] == good.result.predicted[row])
                }
                let dense = problem.dense(found.hidden, rows: 3)
                #expect(dense[2].isNaN && dense[3].isNaN)
                #expect(!dense[0].isNaN && !dense[5].isNaN)
            }
        }

        @Test func minusInfinityTakesAClassOut() throws {
            var problem = CrossEntropyProblem(rows: 5, features: 4, vocabulary: 600, seed: 2)
            problem.targets = [1, 300, 599, 7, 8]
            problem.bias = [Float](repeating: 0, count: 600)
            for j in [0, 16, 298, 598] { problem.bias![j] = -.infinity }
            for j in 256..<290 { problem.bias![j] = -.infinity }
            problem.entropyGradients = [1, -1, 0.5, 2, 1]
            let expected = problem.expected()
            let masked = try problem.run()
            let errors = problem.errors(of: masked, against: expected)
            #expect(errors.outputs < 1e-6)
            #expect(errors.gradients < 2e-6)
            // A whole chunk of classes, and all but the target.
            problem.bias = (0..<600).map { $0 == 300 ? 0 : -.infinity }
            problem.targets = [300, 300, 300, 300, 300]
            let found = try problem.run()
            #expect(found.result.losses == [0, 0, 0, 0, 0])
            #expect(found.result.predicted == [300, 300, 300, 300, 300])
            #expect(found.bias.allSatisfy { $0 == 0 })
        }

        @Test func targetOfNoProbability() throws {
            let found = try logits([1, -.infinity, 2], target: 1)
            #expect(found.result.losses == [.infinity])
            #expect(found.result.targetLogit == [-.infinity])
            let one: [Float] = [1]
            let (classifier, weights, target) = (
                [1, -.infinity, 2] as [Float], [1, 0, 1] as [Float], [1]
            )
            let weighted = try CrossEntropy.forward(
                hidden: one.span, classifier: classifier.span, classWeights: weights.span,
                targets: target.span,
                shape: .init(rows: 1, features: 1, vocabulary: 3),
                options: .init(labelSmoothing: 0.1, reduction: .sum), workspace: Workspace())
            #expect(weighted.losses[0].isFinite)
        }

        @Test func allMinusInfinity() throws {
            let found = try logits([-.infinity, -.infinity], target: 1)
            #expect(found.result.losses[0].isNaN)
            #expect(found.result.logSumExp == [-.infinity])
            #expect(found.result.predicted == [-1])
        }

        // MARK: - Nothing to do

        @Test func noRows() throws {
            var classifier = [Float](repeating: 5, count: 12)
            let (none, noTargets, ones) = (
                [] as [Float], [] as [Int], [Float](repeating: 1, count: 12)
            )
            let result = try CrossEntropy.forwardBackward(
                hidden: none.span, classifier: ones.span, targets: noTargets.span,
                shape: .init(rows: 0, features: 4, vocabulary: 3),
                classifierGradient: classifier.mutableSpan, workspace: Workspace())
            #expect(result.loss == 0)
            #expect(result.validRows == 0)
            #expect(classifier.allSatisfy { $0 == 0 })
        }

        @Test func everyRowIgnored() throws {
            var problem = CrossEntropyProblem(rows: 30, features: 4, vocabulary: 50, seed: 3)
            problem.targets = [Int](repeating: -100, count: 30)
            for reduction in CrossEntropy.Reduction.allCases {
                problem.options.reduction = reduction
                problem.options.zLoss = 0.1
                let found = try problem.run(initial: 3)
                #expect(found.result.loss == 0)
                #expect(found.result.accuracy == nil)
                #expect(problem.dense(found.hidden, rows: 30).allSatisfy { $0 == 0 })
                #expect(problem.dense(found.classifier, rows: 50).allSatisfy { $0 == 0 })
                #expect(found.bias.allSatisfy { $0 == 0 })
                #expect(found.result.logSumExp.allSatisfy { $0 != 0 })
            }
        }

        @Test func weightsOfAllTargetsZero() throws {
            var problem = CrossEntropyProblem(rows: 30, features: 4, vocabulary: 50, seed: 3)
            problem.classWeights = [Float](repeating: 0, count: 50)
            let found = try problem.run()
            #expect(found.result.loss == 0)
            #expect(found.bias.allSatisfy { $0 == 0 })
        }

        // MARK: - Refused

        /// What a call with this change throws, and that it wrote nothing.
        private func refusal(
            _ change: (inout CrossEntropyProblem) -> Void
        ) -> KernelError? {
            var problem = CrossEntropyProblem(rows: 6, features: 4, vocabulary: 10, seed: 4)
            problem.targets = [0, 1, 2, 3, 4, 5]
            change(&problem)
            do {
                _ = try problem.run(workspace: Workspace())
                return nil
            } catch {
                return error
            }
        }

        @Test func targetsOutOfRange() {
            #expect(
                refusal { $0.targets[4] = 10 }
                    == .badEntry(argument: "targets", index: 4, value: 10, limit: 10))
            #expect(
                refusal { $0.targets[2] = -1 }
                    == .badEntry(argument: "targets", index: 2, value: -1, limit: 10))
            #expect(refusal { $0.targets[2] = -100 } == nil)
        }

        @Test func optionsOutOfRange() {
            func argument(_ change: (inout CrossEntropy.Options) -> Void) -> String? {
                guard case .outOfRange(let argument, _, _)? = refusal({ change(&$0.options) })
                else { return nil }
                return argument
            }
            for bad in [-1, Float.nan, .infinity] {
                #expect(argument { $0.softcap = bad } == "softcap")
                #expect(argument { $0.zLoss = bad } == "zLoss")
                #expect(argument { $0.labelSmoothing = bad } == "labelSmoothing")
            }
            #expect(argument { $0.labelSmoothing = 1.5 } == "labelSmoothing")
            #expect(argument { $0.logitScale = 0 } == "logitScale")
            #expect(argument { $0.logitScale = .nan } == "logitScale")
            #expect(argument { $0.threads = -1 } == "threads")
            #expect(
                argument {
                    $0.targetShift = 1
                    $0.tokensPerSequence = 4
                } == "tokensPerSequence")
        }

        @Test func sizesThatDoNotFit() {
            #expect(
                refusal { $0.shape.hiddenStride = 3 }
                    == .tooSmall(argument: "hiddenStride", minimum: 4, actual: 3))
            #expect(
                refusal { $0.hidden.removeLast(4) }
                    == .tooSmall(argument: "hidden", minimum: 39, actual: 38))
            #expect(
                refusal { $0.targets.removeLast() }
                    == .countMismatch(argument: "targets", expected: 6, actual: 5))
            #expect(
                refusal { $0.bias = [1, 2] }
                    == .countMismatch(argument: "bias", expected: 10, actual: 2))
            #expect(
                refusal { $0.classWeights = [] }
                    == .countMismatch(argument: "classWeights", expected: 10, actual: 0))
            #expect(
                refusal { $0.logSumExpGradients = [1] }
                    == .countMismatch(argument: "logSumExpGradients", expected: 6, actual: 1))
            guard
                case .outOfRange("classWeights[3]", _, "-1.0")? = refusal({
                    $0.classWeights = [1, 1, 1, -1, 1, 1, 1, 1, 1, 1]
                })
            else {
                Issue.record("a negative class weight was accepted")
                return
            }
        }

        @Test func overflowingShapes() {
            let shape = CrossEntropy.Shape(
                rows: 1 << 31, features: 1 << 40, vocabulary: 3, hiddenStride: .max)
            let (one, target) = ([1] as [Float], [0])
            #expect(throws: KernelError.self) {
                try CrossEntropy.forward(
                    hidden: one.span, classifier: one.span, targets: target.span, shape: shape,
                    workspace: Workspace())
            }
        }

        @Test func upstreamGradientsThatDoNotGoWithTheReduction() throws {
            let (one, x, target) = ([1] as [Float], [1, 2] as [Float], [0])
            var gradient: [Float] = [7]
            func call(_ reduction: CrossEntropy.Reduction, _ upstream: [Float]?) throws {
                _ = try CrossEntropy.forwardBackward(
                    hidden: one.span, classifier: x.span, targets: target.span,
                    shape: .init(rows: 1, features: 1, vocabulary: 2),
                    options: .init(reduction: reduction), lossGradients: upstream?.span,
                    hiddenGradient: gradient.mutableSpan, workspace: Workspace())
            }
            for (reduction, upstream) in [(.none, nil), (.mean, [1]), (.sum, [1])]
                as [(CrossEntropy.Reduction, [Float]?)]
            {
                do {
                    try call(reduction, upstream)
                    Issue.record("accepted")
                } catch KernelError.conflict(argument: "lossGradients", _) {
                }
            }
            #expect(gradient == [7], "nothing is written")
        }

        @Test func rowStatesThatWereNotComputed() throws {
            let problem = CrossEntropyProblem(rows: 6, features: 4, vocabulary: 10, seed: 4)
            let states = [CrossEntropy.RowState](
                repeating: .init(max: 0, sum: 0, targetLoss: 0), count: 6)
            var gradient = [Float](repeating: 7, count: 10)
            #expect(throws: KernelError.self) {
                try CrossEntropy.backward(
                    hidden: problem.hidden.span, classifier: problem.classifier.span,
                    targets: problem.targets.span, shape: problem.shape, options: problem.options,
                    rowStates: states.span, biasGradient: gradient.mutableSpan,
                    workspace: Workspace())
            }
            #expect(gradient.allSatisfy { $0 == 7 }, "nothing is written")
        }
    }
}
