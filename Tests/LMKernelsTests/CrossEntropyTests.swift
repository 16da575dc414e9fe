import LMKernels
import LMKernelsReference
import Testing

/// Tolerances as relative Euclidean errors. Measured over every test of this file: 1.2e-6 for
/// losses, log-sum-exp, entropy and target logits (with one class, where the loss is the square of
/// a single logit; 3.0e-07 else), 4.5e-7 for gradients.
private let outputTolerance = 2e-6
private let gradientTolerance = 1e-6

extension KernelSuite {
    @Suite struct CrossEntropyTests {
        // MARK: - Against the reference

        private func check(
            _ problem: CrossEntropyProblem, _ label: String,
            sets: [InstructionSet] = InstructionSet.allCases
        ) throws {
            let expected = problem.expected()
            try withEachInstructionSet(sets, of: .crossEntropy) { set in
                for way in CrossEntropyProblem.Way.allCases {
                    let found = try problem.run(way)
                    let errors = problem.errors(of: found, against: expected)
                    #expect(errors.outputs < outputTolerance, "\(label) \(set) \(way)")
                    #expect(errors.gradients < gradientTolerance, "\(label) \(set) \(way)")
                    #expect(found.result.predicted == expected.output.predicted, "\(label) \(set)")
                    #expect(found.result.correct == expected.correct, "\(label) \(set)")
                    #expect(problem.gapsKept(in: found.hidden), "\(label) \(set)")
                    #expect(problem.gapsKept(in: found.classifier), "\(label) \(set)")
                }
            }
        }

        @Test(arguments: 0..<256)
        func everyCombinationOfOptions(choice: Int) throws {
            var problem = CrossEntropyProblem(
                rows: 19, features: 21, vocabulary: 290, seed: UInt64(choice))
            problem.choose(choice, seed: UInt64(choice))
            problem.options.threads = 1 + choice % 3
            try check(problem, "choice \(choice)")
        }

        @Test(arguments: [1, 2, 15, 16, 17, 127, 128, 129, 256, 1023, 1024, 1025, 2050])
        func vocabularyAroundBlockEdges(vocabulary: Int) throws {
            var problem = CrossEntropyProblem(
                rows: 15, features: 9, vocabulary: vocabulary, seed: UInt64(vocabulary))
            problem.choose(0b1111_1101, seed: 5)
            try check(problem, "vocabulary \(vocabulary)")
        }

        @Test(arguments: [0, 1, 13, 14, 15, 29, 127, 129, 511, 512, 513, 1030])
        func rowsAroundBlockEdges(rows: Int) throws {
            var problem = CrossEntropyProblem(
                rows: rows, features: 8, vocabulary: 70, seed: UInt64(rows))
            problem.choose(0b1111_1011, seed: 6)
            try check(problem, "rows \(rows)")
        }

        @Test(arguments: [1, 2, 15, 16, 17, 31, 33, 127, 511, 512, 513, 1025])
        func featuresAroundBlockEdges(features: Int) throws {
            var problem = CrossEntropyProblem(
                rows: 17, features: features, vocabulary: 50, seed: UInt64(features))
            problem.choose(0b1111_1001, seed: 7)
            try check(problem, "features \(features)")
        }

        @Test func integerTargetsOf32Bits() throws {
            let problem = CrossEntropyProblem(rows: 20, features: 8, vocabulary: 33, seed: 3)
            let expected = try problem.run().result
            let narrow = problem.targets.map { Int32($0) }
            let found = try CrossEntropy.forward(
                hidden: problem.hidden.span, classifier: problem.classifier.span,
                targets: narrow.span, shape: problem.shape, options: problem.options,
                workspace: Workspace())
            #expect(bits(found.losses) == bits(expected.losses))
            #expect(found.loss == expected.loss)
        }

        @Test func shiftedTargetsAreTargetsWrittenOutShifted() throws {
            var shifted = CrossEntropyProblem(rows: 24, features: 8, vocabulary: 33, seed: 4)
            shifted.options.targetShift = 2
            shifted.options.tokensPerSequence = 6
            try check(shifted, "shifted")
            var written = shifted
            written.options.targetShift = 0
            written.options.tokensPerSequence = nil
            written.targets = (0..<24).map { $0 % 6 < 4 ? shifted.targets[$0 + 2] : -100 }
            let (one, other) = try (shifted.run(), written.run())
            #expect(allBits(one) == allBits(other))

            var beyond = shifted
            beyond.options.targetShift = 6
            let nothing = try beyond.run().result
            #expect(nothing.validRows == 0)
        }

        // MARK: - Same bits

        @Test(arguments: [0, 0b1101_1101, 0b0010_0010, 0b1111_1111])
        func sameBitsWhateverThreadsBudgetWayAndInstructionSet(choice: Int) throws {
            // More than one chunk of classes, more than two blocks of 512 rows.
            var problem = CrossEntropyProblem(rows: 1300, features: 20, vocabulary: 2500, seed: 9)
            problem.choose(choice, seed: 8)
            problem.options.threads = 1
            var expected: [[UInt32]]?
            var modes: Set<CrossEntropy.Mode> = []
            try withEachInstructionSet(fusedSets, of: .crossEntropy) { set in
                for threads in [1, 2, 3, 8] {
                    problem.options.threads = threads
                    for budget in [nil, try leastBudget(problem), 12 << 20] {
                        problem.options.memoryBudget = budget
                        for way in CrossEntropyProblem.Way.allCases {
                            let found = try problem.run(way)
                            if way == .together { modes.insert(found.result.mode) }
                            let these = allBits(found)
                            if let expected {
                                #expect(
                                    these == expected,
                                    "\(set) threads \(threads) budget \(budget ?? 0) \(way)")
                            }
                            expected = expected ?? these
                        }
                    }
                }
            }
            #expect(modes == [.panel, .recompute])
        }

        /// The smallest budget that is accepted, as the error says it.
        private func leastBudget(_ problem: CrossEntropyProblem) throws -> Int {
            let minimum = try #require(refusedBudget(problem, 1))
            #expect(refusedBudget(problem, minimum) == nil)
            #expect(refusedBudget(problem, minimum - 1) == minimum)
            return minimum
        }

        /// The budget that the error asks for, or nil where this one is accepted.
        private func refusedBudget(_ problem: CrossEntropyProblem, _ budget: Int) -> Int? {
            var problem = problem
            problem.options.memoryBudget = budget
            do {
                _ = try problem.run()
                return nil
            } catch {
                guard case .tooSmall(let argument, let minimum, let actual) = error else {
                    return -1
                }
                return argument == "memoryBudget" && actual == budget ? minimum : -2
            }
        }

        /// A budget that holds the panels of `backward` but not those of `forwardBackward`.
        @Test func workspaceOfBackwardWhereTheOtherCallIsRefused() throws {
            var problem = CrossEntropyProblem(rows: 17, features: 63, vocabulary: 256, seed: 6)
            problem.options.threads = 8
            let together = try #require(refusedBudget(problem, 1))
            let states = try problem.run().result.rowStates
            var gradient = [Float](repeating: 0, count: 256)
            var budgets = 0
            for budget in stride(from: together - 1, to: 0, by: -4096) {
                problem.options.memoryBudget = budget
                do {
                    try CrossEntropy.backward(
                        hidden: problem.hidden.span, classifier: problem.classifier.span,
                        targets: problem.targets.span, shape: problem.shape,
                        options: problem.options, rowStates: states.span,
                        biasGradient: gradient.mutableSpan, workspace: Workspace())
                    budgets += 1
                } catch {
                    guard case .tooSmall(let argument, _, _) = error else { throw error }
                    #expect(argument == "memoryBudget")
                    break
                }
            }
            #expect(budgets > 0)
        }

        @Test func workspaceStaysWithinTheBudget() throws {
            for (rows, features, vocabulary) in [(8192, 64, 256_000), (300, 1024, 5000), (1, 1, 1)]
            {
                let shape = CrossEntropy.Shape(
                    rows: rows, features: features, vocabulary: vocabulary)
                for budget in [16 << 20, 64 << 20, 512 << 20] {
                    for threads in [1, 2, 16] {
                        var options = CrossEntropy.Options(threads: threads)
                        options.memoryBudget = budget
                        for gradients in [[], [.hidden, .classifier, .bias]]
                            as [CrossEntropy.Gradients]
                        {
                            let bytes = CrossEntropy.workspaceByteCount(
                                shape: shape, options: options, gradients: gradients)
                            #expect(bytes <= budget + 64 * rows)
                            #expect(bytes > 0 || threads == 16)
                        }
                    }
                }
            }
        }

        @Test func concurrentCallsDoNotDisturbEachOther() async throws {
            var problem = CrossEntropyProblem(rows: 70, features: 20, vocabulary: 1100, seed: 11)
            problem.choose(0b0101_1101, seed: 2)
            problem.options.threads = 2
            let expected = try allBits(problem.run())
            let shared = problem
            await withTaskGroup(of: Bool.self) { group in
                for _ in 0..<4 {
                    group.addTask {
                        (0..<5).allSatisfy { _ in
                            guard let found = try? shared.run() else { return false }
                            return allBits(found) == expected
                        }
                    }
                }
                for await isSame in group { #expect(isSame) }
            }
        }

        // MARK: - What is asked for

        @Test func gradientsAddToWhatIsThere() throws {
            for budget in [nil, 9 << 20] {
                var problem = CrossEntropyProblem(
                    rows: 530, features: 20, vocabulary: 2500, seed: 12)
                problem.choose(1, seed: 1)
                problem.options.memoryBudget = budget
                let fresh = try problem.run()
                let added = try problem.run(accumulate: [.hidden, .classifier, .bias], initial: 2)
                func isSum(_ sum: [Float], _ part: [Float]) -> Bool {
                    zip(sum, part).allSatisfy { $1.isNaN ? $0 == 2 : abs($0 - 2 - $1) < 3e-6 }
                }
                #expect(isSum(added.hidden, fresh.hidden))
                #expect(isSum(added.classifier, fresh.classifier))
                #expect(isSum(added.bias, fresh.bias))
                // Only what is named is added to.
                let some = try problem.run(accumulate: [.classifier], initial: 0)
                #expect(bits(some.hidden).count == bits(fresh.hidden).count)
                #expect(
                    problem.dense(some.hidden, rows: 530) == problem.dense(fresh.hidden, rows: 530))
            }
        }

        @Test func outputsThatAreNotAskedForStayEmpty() throws {
            let problem = CrossEntropyProblem(rows: 20, features: 8, vocabulary: 33, seed: 13)
            let all = try problem.run().result
            for raw in 0..<64 {
                let outputs = CrossEntropy.Outputs(rawValue: raw)
                let result = try CrossEntropy.forward(
                    hidden: problem.hidden.span, classifier: problem.classifier.span,
                    targets: problem.targets.span, shape: problem.shape, options: problem.options,
                    outputs: outputs, workspace: Workspace())
                func same<T: Equatable>(_ x: [T], _ y: [T], _ output: CrossEntropy.Outputs) -> Bool
                {
                    outputs.contains(output) ? x == y : x.isEmpty
                }
                #expect(same(result.losses, all.losses, .loss))
                #expect(same(result.logSumExp, all.logSumExp, .logSumExp))
                #expect(same(result.entropy, all.entropy, .entropy))
                #expect(same(result.predicted, all.predicted, .predicted))
                #expect(same(result.targetLogit, all.targetLogit, .targetLogit))
                #expect(result.loss == all.loss)
                #expect(result.accuracy == (outputs.contains(.predicted) ? all.accuracy : nil))
            }
        }

        @Test func eachGradientAloneIsTheSame() throws {
            var problem = CrossEntropyProblem(rows: 40, features: 8, vocabulary: 1200, seed: 14)
            problem.choose(1, seed: 3)
            problem.options.reduction = .sum
            let all = try problem.run()
            let stride = problem.shape.features + CrossEntropyProblem.gap
            var hidden = [Float](repeating: .nan, count: 40 * stride)
            var classifier = [Float](repeating: .nan, count: 1200 * stride)
            var bias = [Float](repeating: .nan, count: 1200)
            func call(
                _ hidden: consuming MutableSpan<Float>?,
                _ classifier: consuming MutableSpan<Float>?,
                _ bias: consuming MutableSpan<Float>?
            ) throws {
                _ = try CrossEntropy.forwardBackward(
                    hidden: problem.hidden.span, classifier: problem.classifier.span,
                    bias: problem.bias?.span, targets: problem.targets.span, shape: problem.shape,
                    options: problem.options, lossGradient: problem.lossGradient,
                    hiddenGradient: hidden, hiddenGradientStride: stride,
                    classifierGradient: classifier, classifierGradientStride: stride,
                    biasGradient: bias, workspace: Workspace())
            }
            try call(hidden.mutableSpan, nil, nil)
            try call(nil, classifier.mutableSpan, nil)
            try call(nil, nil, bias.mutableSpan)
            #expect(bits(hidden) == bits(all.hidden))
            #expect(bits(classifier) == bits(all.classifier))
            #expect(bits(bias) == bits(all.bias))
        }
    }
}
