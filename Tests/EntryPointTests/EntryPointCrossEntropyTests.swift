import CLMKCore
import CLMKCrossEntropy
import Testing

/// What the C functions of cross-entropy refuse.
@Suite struct EntryPointCrossEntropyTests {
    private static let (rows, features, vocabulary) = (4, 16, 5)

    private enum Phase: CaseIterable { case forward, backward, both }

    /// A call that would go well, but for `change`.
    private struct Call {
        var problem = lmk_cross_entropy()
        var gradients = lmk_cross_entropy_gradients()
        var outputs = lmk_cross_entropy_outputs()
        var hasRowStates = true
        var hasWorkspace = true
        var workspace: Int?
        /// Bytes past a multiple of 64 where the workspace begins.
        var offset = 0
    }

    private func refused(_ phase: Phase, _ change: (inout Call) -> Void) -> String? {
        let (rows, features, vocabulary) = (Self.rows, Self.features, Self.vocabulary)
        let (hidden, classifier) = (Floats(rows * features), Floats(vocabulary * features))
        let (hiddenGradient, classifierGradient) = (
            Floats(rows * features), Floats(vocabulary * features)
        )
        let targets: [Int64] = [0, 4, -100, 2]
        let states = [lmk_cross_entropy_row](
            repeating: .init(max: 1, sum: 5, target_loss: 1), count: rows)
        let loss = Floats(rows)
        return targets.withUnsafeBufferPointer { targets in
            var call = Call()
            (call.problem.rows, call.problem.features) = (rows, features)
            call.problem.vocabulary = vocabulary
            call.problem.hidden = UnsafePointer(hidden.pointer)
            call.problem.hidden_stride = features
            call.problem.classifier = UnsafePointer(classifier.pointer)
            call.problem.classifier_stride = features
            call.problem.targets = UnsafeRawPointer(targets.baseAddress)
            call.problem.ignore_index = -100
            call.problem.logit_scale = 1
            call.problem.reduction = .LMK_REDUCTION_MEAN
            call.problem.threads = 1
            call.gradients.loss_gradient = 1
            call.gradients.hidden = hiddenGradient.pointer
            call.gradients.hidden_stride = features
            call.gradients.classifier = classifierGradient.pointer
            call.gradients.classifier_stride = features
            change(&call)
            let found = run(phase, call, states: states, loss: loss)
            let outputs = [loss, hiddenGradient, classifierGradient]
            #expect(found == nil || outputs.allSatisfy(\.areUntouched), "nothing is written")
            return found
        }
    }

    private func run(
        _ phase: Phase, _ call: Call, states: [lmk_cross_entropy_row], loss: Floats
    ) -> String? {
        var problem = call.problem
        var gradients = call.gradients
        var outputs = call.outputs
        outputs.loss = loss.pointer
        let needed =
            phase == .forward
            ? lmk_cross_entropy_workspace_size(&problem, nil)
            : lmk_cross_entropy_workspace_size(&problem, &gradients)
        let size = call.workspace ?? needed
        let memory = Scratch(size, offset: call.offset)
        let workspace = call.hasWorkspace ? memory.pointer : nil
        defer { #expect(memory.isWithinBounds, "\(phase) \(call.offset)") }
        return refusal { error in
            switch phase {
            case .forward:
                lmk_cross_entropy_forward(
                    &problem, &outputs, nil, workspace, size, error)
            case .backward:
                lmk_cross_entropy_backward(
                    &problem, call.hasRowStates ? states : nil, nil, &gradients, nil,
                    workspace, size, error)
            case .both:
                lmk_cross_entropy_forward_backward(
                    &problem, &outputs, &gradients, nil, workspace, size, error)
            }
        }
    }

    private func expect(_ message: String?, _ change: (inout Call) -> Void) {
        for phase in Phase.allCases {
            #expect(refused(phase, change) == message, "\(phase)")
        }
    }

    @Test func options() {
        expect(nil) { _ in }
        expect("rows is 4294967296, allowed is at most 2^32 - 1") {
            $0.problem.rows = 1 << 32
        }
        expect("features is 0, at least 1") { $0.problem.features = 0 }
        expect("vocabulary is 0, at least 1") { $0.problem.vocabulary = 0 }
        expect("vocabulary is 2147483648, allowed is at most 2^31 - 1") {
            $0.problem.vocabulary = 1 << 31
        }
        expect("target_type is 2, allowed is int64 or int32") {
            $0.problem.target_type = outside(2)
        }
        expect("reduction is 3, allowed is none, mean or sum") {
            $0.problem.reduction = outside(3)
        }
        expect("softcap is -1.0, allowed is finite and above 0, or 0 for none") {
            $0.problem.softcap = -1
        }
        expect("logit_scale is 0.0, allowed is finite and not 0") {
            $0.problem.logit_scale = 0
        }
        expect("label_smoothing is nan, allowed is from 0 to 1") {
            $0.problem.label_smoothing = .nan
        }
        expect("z_loss is inf, allowed is finite and at least 0") {
            $0.problem.z_loss = .infinity
        }
        expect("tokens_per_sequence is 0, at least 1") {
            $0.problem.target_shift = 1
        }
        expect("tokens_per_sequence is 3, allowed is a divisor of rows") {
            ($0.problem.target_shift, $0.problem.tokens_per_sequence) = (1, 3)
        }
    }

    @Test func inputs() {
        expect("hidden is null") { $0.problem.hidden = nil }
        expect("classifier is null") { $0.problem.classifier = nil }
        expect("targets is null") { $0.problem.targets = nil }
        expect("hidden_stride is 15, at least 16") { $0.problem.hidden_stride = 15 }
        expect("classifier_stride is 15, at least 16") {
            $0.problem.classifier_stride = 15
        }
        // 4 rows of 2^62 are 2^64 elements, which would be none.
        expect("hidden overflows") { $0.problem.hidden_stride = 1 << 62 }
        expect("classifier overflows") { $0.problem.classifier_stride = 1 << 61 }
        let weights: [Float] = [1, 0, .infinity, 1, 1]
        weights.withUnsafeBufferPointer { weights in
            expect("class_weights[2] is inf, allowed is finite and at least 0") {
                $0.problem.class_weights = weights.baseAddress
            }
        }
        let targets: [Int64] = [0, 5, 0, -1]
        targets.withUnsafeBytes { targets in
            expect("targets[1] is 5, below 5") {
                $0.problem.targets = targets.baseAddress
            }
        }
        let negative: [Int32] = [0, 4, 4, -1]
        negative.withUnsafeBytes { targets in
            expect("targets[3] is -1, below 5") {
                $0.problem.target_type = .LMK_TARGET_INT32
                $0.problem.targets = targets.baseAddress
            }
        }
    }

    @Test func noRows() {
        expect(nil) {
            ($0.problem.rows, $0.hasRowStates) = (0, false)
            ($0.problem.hidden, $0.problem.classifier) = (nil, nil)
            $0.problem.targets = nil
        }
    }

    @Test func gradients() {
        for phase in [Phase.backward, .both] {
            func found(_ change: (inout Call) -> Void) -> String? {
                refused(phase, change)
            }
            #expect(
                found { $0.problem.reduction = .LMK_REDUCTION_NONE }
                    == "loss_gradients: needed when the reduction is none")
            let upstream = Floats(Self.rows)
            #expect(
                found { $0.gradients.loss_gradients = .init(upstream.pointer) }
                    == "loss_gradients: only for the reduction none; mean and sum take loss_gradient"
            )
            #expect(
                found { $0.gradients.hidden_stride = 15 }
                    == "hidden_gradient_stride is 15, at least 16")
            #expect(
                found { $0.gradients.classifier_stride = 15 }
                    == "classifier_gradient_stride is 15, at least 16")
            #expect(
                found { $0.gradients.hidden_stride = 1 << 62 }
                    == "hidden_gradient overflows")
            #expect(
                found { $0.gradients.classifier_stride = 1 << 61 }
                    == "classifier_gradient overflows")
        }
        #expect(
            refused(.backward) { $0.hasRowStates = false }
                == "row_states is null")
        let upstream = Floats(Self.rows)
        #expect(
            refused(.backward) {
                $0.gradients.entropy_gradients = .init(upstream.pointer)
            } == "entropy: needed with entropy_gradients")
    }

    @Test func workspace() throws {
        for phase in Phase.allCases {
            let message = try #require(refused(phase) { $0.workspace = 1 })
            let words = message.split(separator: " ")
            #expect(message.hasPrefix("workspace is 1, at least "))
            let needed = try #require(words.last.flatMap { Int($0) })
            #expect(
                refused(phase) { $0.workspace = needed - 1 }
                    == "workspace is \(needed - 1), at least \(needed)")
            #expect(refused(phase) { $0.workspace = needed } == nil)
            #expect(
                refused(phase) { $0.hasWorkspace = false }
                    == "workspace is null")
        }
    }

    /// The least budget that a call names does for it; forward's memory ends with scratch, that of
    /// gradients with those of hidden.
    @Test(arguments: [0, 1, 60])
    func budget(offset: Int) throws {
        for phase in Phase.allCases {
            let message = try #require(refused(phase) { $0.problem.memory_budget = 1 })
            #expect(message.hasPrefix("memory_budget is 1, at least "))
            let needed = try #require(message.split(separator: " ").last.flatMap { Int($0) })
            #expect(
                refused(phase) { $0.problem.memory_budget = needed - 1 }
                    == "memory_budget is \(needed - 1), at least \(needed)", "\(phase)")
            let found = refused(phase) {
                ($0.problem.memory_budget, $0.offset) = (needed, offset)
            }
            #expect(found == nil, "\(phase)")
        }
    }

    /// An ignored row is computed only for what does not depend on targets.
    @Test func ignoredRows() {
        for asksForLogSumExp in [false, true] {
            let states = UnsafeMutablePointer<lmk_cross_entropy_row>.allocate(capacity: Self.rows)
            defer { states.deallocate() }
            let logSumExp = Floats(Self.rows)
            let found = refused(.forward) {
                $0.outputs.row_states = states
                if asksForLogSumExp { $0.outputs.log_sum_exp = logSumExp.pointer }
            }
            #expect(found == nil)
            #expect(
                (0..<Self.rows).map { states[$0].sum != 0 }
                    == [true, true, asksForLogSumExp, true])
        }
    }

    /// Wrong arguments ask for no workspace.
    @Test func workspaceSize() {
        var problem = lmk_cross_entropy()
        (problem.rows, problem.features, problem.vocabulary) = (4, 3, 5)
        #expect(lmk_cross_entropy_workspace_size(&problem, nil) == 0)
        problem.logit_scale = 1
        #expect(lmk_cross_entropy_workspace_size(&problem, nil) > 0)
        problem.vocabulary = 0
        #expect(lmk_cross_entropy_workspace_size(&problem, nil) == 0)
    }
}
