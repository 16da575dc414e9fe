internal import CLMKCore
internal import CLMKCrossEntropy

extension CrossEntropy {
    /// Loss and what else is asked for. 2 N V D operations, with N rows, V classes and D features.
    ///
    /// A row with a logit of NaN or +inf has NaN for loss, log-sum-exp and entropy.
    ///
    /// - Parameters:
    ///   - hidden: Hidden states, [rows, features].
    ///   - classifier: [vocabulary, features]; may be an embedding table (tied weights).
    ///   - bias: Added to logits before the softcap, [vocabulary]. -inf takes a class out.
    ///   - classWeights: What each class counts for in the loss, [vocabulary], finite and at least
    ///     0; all 1 when nil.
    ///   - targets: Class of each token, [rows]: in 0 ..< vocabulary, or `ignoreIndex`.
    ///   - outputs: The arrays to return.
    ///   - workspace: Grows to the budget and 64 bytes for each row at most.
    /// - Throws: `outOfRange` for a value outside its range; `tooSmall` for a stride, a span or a
    ///   budget that does not suffice; `countMismatch` for `bias`, `classWeights` and `targets`;
    ///   `badEntry` for a target; `overflow`.
    public static func forward<Target: TargetElement>(
        hidden: Span<Float>, classifier: Span<Float>, bias: Span<Float>? = nil,
        classWeights: Span<Float>? = nil, targets: Span<Target>, shape: Shape,
        options: Options = Options(), outputs: Outputs = [.loss], workspace: Workspace
    ) throws(KernelError) -> Result {
        let problem = try unsafe problem(shape, options, Target.self)
        try checkInputs(
            shape, hidden: hidden.count, classifier: classifier.count, bias: bias?.count,
            classWeights: classWeights?.count, targets: targets.count)
        return try unsafe Result(rows: shape.rows, outputs: outputs) { arrays, summary, error in
            unsafe withInputs(problem, hidden, classifier, bias, classWeights, targets) { problem in
                let needed = unsafe lmk_cross_entropy_workspace_size(problem, nil)
                return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                    unsafe lmk_cross_entropy_forward(problem, arrays, summary, memory, size, error)
                }
            }
        }
    }

    /// Losses and gradients in one call: 6 N V D operations for both gradients in panel mode, 8 in
    /// recompute mode, which is taken when the memory budget does not hold a panel.
    ///
    /// The gradient of a loss that was reduced is scaled as the reduction is:
    ///
    ///     hiddenGradient = da classifier        classifierGradient = da^T hidden
    ///     biasGradient[j] = sum_i da[i, j]
    ///
    /// A gradient that is nil is not computed. Gradients overlap neither inputs nor each other.
    ///
    /// - Parameters:
    ///   - hidden: Hidden states, [rows, features].
    ///   - classifier: [vocabulary, features].
    ///   - bias: [vocabulary]
    ///   - classWeights: [vocabulary]
    ///   - targets: [rows]
    ///   - lossGradient: Upstream gradient of the reduced loss, for `.mean` and `.sum`.
    ///   - lossGradients: Upstream gradient of each row's loss, [rows]; for `.none`, where it is
    ///     needed unless one of the next two is given.
    ///   - logSumExpGradients: Upstream gradients of the log-sum-exp, [rows]. They act on ignored
    ///     rows too.
    ///   - entropyGradients: Upstream gradients of the entropy, [rows]. They act on ignored rows
    ///     too.
    ///   - hiddenGradient: [rows, features]; rows that no gradient reaches are 0.
    ///   - hiddenGradientStride: From one row of `hiddenGradient` to the next, in elements.
    ///   - classifierGradient: [vocabulary, features]
    ///   - classifierGradientStride: From one row of `classifierGradient` to the next.
    ///   - biasGradient: [vocabulary]
    ///   - accumulate: Gradients that are added to what is there; the others are overwritten.
    ///   - outputs: The arrays to return.
    ///   - workspace: Grows to the budget and 64 bytes for each row at most.
    /// - Throws: As `forward`, and `conflict` for `lossGradients` that the reduction does not go
    ///   with.
    public static func forwardBackward<Target: TargetElement>(
        hidden: Span<Float>, classifier: Span<Float>, bias: Span<Float>? = nil,
        classWeights: Span<Float>? = nil, targets: Span<Target>, shape: Shape,
        options: Options = Options(), lossGradient: Float = 1, lossGradients: Span<Float>? = nil,
        logSumExpGradients: Span<Float>? = nil, entropyGradients: Span<Float>? = nil,
        hiddenGradient: consuming MutableSpan<Float>? = nil, hiddenGradientStride: Int? = nil,
        classifierGradient: consuming MutableSpan<Float>? = nil,
        classifierGradientStride: Int? = nil, biasGradient: consuming MutableSpan<Float>? = nil,
        accumulate: Gradients = [], outputs: Outputs = [.loss], workspace: Workspace
    ) throws(KernelError) -> Result {
        let problem = try unsafe problem(shape, options, Target.self)
        try checkInputs(
            shape, hidden: hidden.count, classifier: classifier.count, bias: bias?.count,
            classWeights: classWeights?.count, targets: targets.count)
        let gradients = try unsafe gradients(
            shape, lossGradient, accumulate, lossGradients: lossGradients?.count,
            logSumExpGradients: logSumExpGradients?.count,
            entropyGradients: entropyGradients?.count, hidden: hiddenGradient?.count,
            hiddenStride: hiddenGradientStride, classifier: classifierGradient?.count,
            classifierStride: classifierGradientStride, bias: biasGradient?.count)
        return try unsafe Result(rows: shape.rows, outputs: outputs) { arrays, summary, error in
            unsafe withInputs(problem, hidden, classifier, bias, classWeights, targets) { problem in
                unsafe withGradients(
                    gradients, lossGradients, logSumExpGradients, entropyGradients, &hiddenGradient,
                    &classifierGradient, &biasGradient
                ) { gradients in
                    let needed = unsafe lmk_cross_entropy_workspace_size(problem, gradients)
                    return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                        unsafe lmk_cross_entropy_forward_backward(
                            problem, arrays, gradients, summary, memory, size, error)
                    }
                }
            }
        }
    }

    /// Gradients from the row states that `forward` left for the same inputs and options: recompute
    /// mode, 6 N V D operations for both gradients.
    ///
    /// Equations and parameters are those of `forwardBackward`, and:
    ///
    /// - Parameters:
    ///   - rowStates: `Result.rowStates` of `forward`, [rows].
    ///   - entropy: `Result.entropy` of `forward`, [rows]; needed with `entropyGradients`.
    /// - Returns: Summary fields, without loss and correct predictions.
    /// - Throws: As `forwardBackward`, and `conflict` for `entropy` that is missing.
    @discardableResult
    public static func backward<Target: TargetElement>(
        hidden: Span<Float>, classifier: Span<Float>, bias: Span<Float>? = nil,
        classWeights: Span<Float>? = nil, targets: Span<Target>, shape: Shape,
        options: Options = Options(), rowStates: Span<RowState>, entropy: Span<Float>? = nil,
        lossGradient: Float = 1, lossGradients: Span<Float>? = nil,
        logSumExpGradients: Span<Float>? = nil, entropyGradients: Span<Float>? = nil,
        hiddenGradient: consuming MutableSpan<Float>? = nil, hiddenGradientStride: Int? = nil,
        classifierGradient: consuming MutableSpan<Float>? = nil,
        classifierGradientStride: Int? = nil, biasGradient: consuming MutableSpan<Float>? = nil,
        accumulate: Gradients = [], workspace: Workspace
    ) throws(KernelError) -> Result {
        let problem = try unsafe problem(shape, options, Target.self)
        try checkInputs(
            shape, hidden: hidden.count, classifier: classifier.count, bias: bias?.count,
            classWeights: classWeights?.count, targets: targets.count)
        try checkCount("rowStates", rowStates.count, expected: shape.rows)
        try checkCount("entropy", entropy?.count, expected: shape.rows)
        if entropyGradients != nil, entropy == nil {
            throw .conflict(argument: "entropy", reason: "needed with entropyGradients")
        }
        let gradients = try unsafe gradients(
            shape, lossGradient, accumulate, lossGradients: lossGradients?.count,
            logSumExpGradients: logSumExpGradients?.count,
            entropyGradients: entropyGradients?.count, hidden: hiddenGradient?.count,
            hiddenStride: hiddenGradientStride, classifier: classifierGradient?.count,
            classifierStride: classifierGradientStride, bias: biasGradient?.count)
        return try unsafe Result(rows: 0, outputs: []) { _, summary, error in
            unsafe withInputs(problem, hidden, classifier, bias, classWeights, targets) { problem in
                unsafe withGradients(
                    gradients, lossGradients, logSumExpGradients, entropyGradients, &hiddenGradient,
                    &classifierGradient, &biasGradient
                ) { gradients in
                    unsafe withPointer(rowStates) { states in
                        unsafe withPointer(entropy) { entropy in
                            let needed = unsafe lmk_cross_entropy_workspace_size(problem, gradients)
                            return unsafe workspace.withMemory(byteCount: needed) { memory, size in
                                unsafe lmk_cross_entropy_backward(
                                    problem,
                                    UnsafeRawPointer(states)?.assumingMemoryBound(
                                        to: lmk_cross_entropy_row.self),
                                    entropy, gradients, summary, memory, size, error)
                            }
                        }
                    }
                }
            }
        }
    }

    /// Bytes of workspace that calls with these arguments take at most, to give to
    /// `Workspace.init(byteCount:)`.
    ///
    /// - Parameter gradients: Those that `forwardBackward` or `backward` will be asked for; none
    ///   for `forward`.
    /// - Returns: 0 when an argument is wrong or the budget too small; the call says which.
    public static func workspaceByteCount(
        shape: Shape, options: Options = Options(), gradients: Gradients = []
    ) -> Int {
        guard var problem = try? unsafe problem(shape, options, Int.self) else { return 0 }
        guard !gradients.isEmpty else {
            return unsafe lmk_cross_entropy_workspace_size(&problem, nil)
        }
        // Only which of them are null matters.
        var descriptor = unsafe lmk_cross_entropy_gradients()
        let some = unsafe UnsafeMutablePointer<Float>(mutating: placeholder())
        unsafe descriptor.hidden = gradients.contains(.hidden) ? some : nil
        unsafe descriptor.classifier = gradients.contains(.classifier) ? some : nil
        unsafe descriptor.bias = gradients.contains(.bias) ? some : nil
        return unsafe lmk_cross_entropy_workspace_size(&problem, &descriptor)
    }
}

// MARK: - Validation

extension CrossEntropy {
    private static func checkInputs(
        _ shape: Shape, hidden: Int, classifier: Int, bias: Int?, classWeights: Int?, targets: Int
    ) throws(KernelError) {
        try MatrixExtent(
            argument: "hidden", rows: shape.rows, columns: shape.features,
            stride: shape.hiddenStride ?? shape.features
        ).check(hidden)
        try MatrixExtent(
            argument: "classifier", rows: shape.vocabulary, columns: shape.features,
            stride: shape.classifierStride ?? shape.features
        ).check(classifier)
        try checkCount("bias", bias, expected: shape.vocabulary)
        try checkCount("classWeights", classWeights, expected: shape.vocabulary)
        try checkCount("targets", targets, expected: shape.rows)
    }
}

// MARK: - Descriptors

extension CrossEntropy {
    /// The problem without its arrays. Checks what would not survive on its way into C types; C
    /// checks the rest.
    private static func problem<Target: TargetElement>(
        _ shape: Shape, _ options: Options, _ type: Target.Type
    ) throws(KernelError) -> lmk_cross_entropy {
        try checkNotNegative("rows", shape.rows)
        try checkNotNegative("features", shape.features)
        try checkNotNegative("vocabulary", shape.vocabulary)
        try checkNotNegative("targetShift", options.targetShift)
        try checkNotNegative("tokensPerSequence", options.tokensPerSequence ?? 0)
        if let budget = options.memoryBudget, budget <= 0 {
            throw .outOfRange(argument: "memoryBudget", allowed: "> 0", actual: "\(budget)")
        }
        var problem = unsafe lmk_cross_entropy()
        unsafe problem.rows = shape.rows
        unsafe problem.features = shape.features
        unsafe problem.vocabulary = shape.vocabulary
        unsafe problem.hidden_stride = shape.hiddenStride ?? shape.features
        unsafe problem.classifier_stride = shape.classifierStride ?? shape.features
        unsafe problem.target_type =
            MemoryLayout<Target>.size == 4 ? .LMK_TARGET_INT32 : .LMK_TARGET_INT64
        unsafe problem.ignore_index = Int64(options.ignoreIndex)
        unsafe problem.target_shift = options.targetShift
        unsafe problem.tokens_per_sequence = options.tokensPerSequence ?? Swift.max(shape.rows, 1)
        unsafe problem.softcap = options.softcap ?? 0
        unsafe problem.logit_scale = options.logitScale
        unsafe problem.label_smoothing = options.labelSmoothing
        unsafe problem.z_loss = options.zLoss
        unsafe problem.reduction =
            switch options.reduction {
            case .none: .LMK_REDUCTION_NONE
            case .mean: .LMK_REDUCTION_MEAN
            case .sum: .LMK_REDUCTION_SUM
            }
        unsafe problem.memory_budget = options.memoryBudget ?? 0
        unsafe problem.threads = try Threads.checked(options.threads)
        return unsafe problem
    }

    /// The gradients without their arrays, whose numbers of elements are checked.
    private static func gradients(
        _ shape: Shape, _ lossGradient: Float, _ accumulate: Gradients, lossGradients: Int?,
        logSumExpGradients: Int?, entropyGradients: Int?, hidden: Int?, hiddenStride: Int?,
        classifier: Int?, classifierStride: Int?, bias: Int?
    ) throws(KernelError) -> lmk_cross_entropy_gradients {
        try checkCount("lossGradients", lossGradients, expected: shape.rows)
        try checkCount("logSumExpGradients", logSumExpGradients, expected: shape.rows)
        try checkCount("entropyGradients", entropyGradients, expected: shape.rows)
        if let hidden {
            try MatrixExtent(
                argument: "hiddenGradient", rows: shape.rows, columns: shape.features,
                stride: hiddenStride ?? shape.features
            ).check(hidden)
        }
        if let classifier {
            try MatrixExtent(
                argument: "classifierGradient", rows: shape.vocabulary, columns: shape.features,
                stride: classifierStride ?? shape.features
            ).check(classifier)
        }
        try checkCount("biasGradient", bias, expected: shape.vocabulary)
        var gradients = unsafe lmk_cross_entropy_gradients()
        unsafe gradients.loss_gradient = lossGradient
        unsafe gradients.hidden_stride = hiddenStride ?? shape.features
        unsafe gradients.classifier_stride = classifierStride ?? shape.features
        unsafe gradients.accumulate_hidden = accumulate.contains(.hidden) ? 1 : 0
        unsafe gradients.accumulate_classifier = accumulate.contains(.classifier) ? 1 : 0
        unsafe gradients.accumulate_bias = accumulate.contains(.bias) ? 1 : 0
        return unsafe gradients
    }

    /// Calls `body` with the problem and its arrays.
    private static func withInputs<Target: TargetElement>(
        _ problem: lmk_cross_entropy, _ hidden: Span<Float>, _ classifier: Span<Float>,
        _ bias: Span<Float>?, _ classWeights: Span<Float>?, _ targets: Span<Target>,
        _ body: (UnsafePointer<lmk_cross_entropy>) -> lmk_status
    ) -> lmk_status {
        var problem = unsafe problem
        return unsafe withPointer(hidden) { hidden in
            unsafe withPointer(classifier) { classifier in
                unsafe withPointer(bias) { bias in
                    unsafe withPointer(classWeights) { classWeights in
                        unsafe withPointer(targets) { targets in
                            unsafe problem.hidden = hidden
                            unsafe problem.classifier = classifier
                            unsafe problem.bias = bias
                            unsafe problem.class_weights = classWeights
                            unsafe problem.targets = UnsafeRawPointer(targets)
                            return unsafe body(&problem)
                        }
                    }
                }
            }
        }
    }

    /// Calls `body` with the gradients and their arrays.
    private static func withGradients(
        _ gradients: lmk_cross_entropy_gradients, _ lossGradients: Span<Float>?,
        _ logSumExpGradients: Span<Float>?, _ entropyGradients: Span<Float>?,
        _ hidden: inout MutableSpan<Float>?, _ classifier: inout MutableSpan<Float>?,
        _ bias: inout MutableSpan<Float>?,
        _ body: (UnsafePointer<lmk_cross_entropy_gradients>) -> lmk_status
    ) -> lmk_status {
        var gradients = unsafe gradients
        return unsafe withPointer(lossGradients) { lossGradients in
            unsafe withPointer(logSumExpGradients) { logSumExpGradients in
                unsafe withPointer(entropyGradients) { entropyGradients in
                    unsafe withMutablePointer(&hidden) { hidden in
                        unsafe withMutablePointer(&classifier) { classifier in
                            unsafe withMutablePointer(&bias) { bias in
                                unsafe gradients.loss_gradients = lossGradients
                                unsafe gradients.log_sum_exp_gradients = logSumExpGradients
                                unsafe gradients.entropy_gradients = entropyGradients
                                unsafe gradients.hidden = hidden
                                unsafe gradients.classifier = classifier
                                unsafe gradients.bias = bias
                                return unsafe body(&gradients)
                            }
                        }
                    }
                }
            }
        }
    }
}

// MARK: - Results

extension CrossEntropy.Result {
    /// Makes the arrays that are asked for, runs `call` on them and takes in what it leaves.
    fileprivate init(
        rows: Int, outputs: CrossEntropy.Outputs,
        _ call: (
            UnsafePointer<lmk_cross_entropy_outputs>,
            UnsafeMutablePointer<lmk_cross_entropy_summary>, UnsafeMutablePointer<lmk_error>
        ) -> lmk_status
    ) throws(KernelError) {
        func array<Element>(_ output: CrossEntropy.Outputs, of element: Element) -> [Element]? {
            outputs.contains(output) ? Array(repeating: element, count: rows) : nil
        }
        var losses: [Float]? = array(.loss, of: 0)
        var logSumExp: [Float]? = array(.logSumExp, of: 0)
        var entropy: [Float]? = array(.entropy, of: 0)
        var predicted: [Int]? = array(.predicted, of: 0)
        var targetLogit: [Float]? = array(.targetLogit, of: 0)
        var rowStates = array(.rowStates, of: CrossEntropy.RowState(max: 0, sum: 0, targetLoss: 0))
        var summary = lmk_cross_entropy_summary()
        try unsafe check { error in
            unsafe withElements(of: &losses) { losses in
                unsafe withElements(of: &logSumExp) { logSumExp in
                    unsafe withElements(of: &entropy) { entropy in
                        unsafe withElements(of: &predicted) { predicted in
                            unsafe withElements(of: &targetLogit) { targetLogit in
                                unsafe withElements(of: &rowStates) { rowStates in
                                    var arrays = unsafe lmk_cross_entropy_outputs()
                                    unsafe arrays.loss = losses
                                    unsafe arrays.log_sum_exp = logSumExp
                                    unsafe arrays.entropy = entropy
                                    // Int has 64 bits wherever the kernels run.
                                    unsafe arrays.predicted = UnsafeMutableRawPointer(predicted)?
                                        .assumingMemoryBound(to: Int64.self)
                                    unsafe arrays.target_logit = targetLogit
                                    unsafe arrays.row_states = UnsafeMutableRawPointer(rowStates)?
                                        .assumingMemoryBound(to: lmk_cross_entropy_row.self)
                                    return unsafe call(&arrays, &summary, error)
                                }
                            }
                        }
                    }
                }
            }
        }
        self.losses = losses ?? []
        self.logSumExp = logSumExp ?? []
        self.entropy = entropy ?? []
        self.predicted = predicted ?? []
        self.targetLogit = targetLogit ?? []
        self.rowStates = rowStates ?? []
        take(summary, outputs: outputs)
    }

    fileprivate mutating func take(
        _ summary: lmk_cross_entropy_summary, outputs: CrossEntropy.Outputs
    ) {
        loss = summary.loss
        validRows = summary.valid_rows
        weight = summary.weight
        correct = summary.correct
        if outputs.contains(.predicted), validRows > 0 {
            accuracy = Double(correct) / Double(validRows)
        }
        mode =
            switch summary.mode {
            case .LMK_MODE_FORWARD: .forward
            case .LMK_MODE_PANEL: .panel
            case .LMK_MODE_RECOMPUTE: .recompute
            }
        blockRows = summary.block_rows
        blockVocabulary = summary.block_vocabulary
    }
}
