import LMKernels

extension CrossEntropyCase {
    /// What one way of calling the kernel gives. Gradients that were not asked for are empty.
    struct Found {
        var result: CrossEntropy.Result
        /// Dense.
        var hidden: [Float] = []
        var classifier: [Float] = []
        var bias: [Float] = []
    }

    func call(
        _ variant: Variant, _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) -> Found {
        switch targetType {
        case .int32: try call(variant, targets.map { Int32($0) }, workspace, &findings)
        case .int64: try call(variant, targets.map { Int64($0) }, workspace, &findings)
        case .int: try call(variant, targets, workspace, &findings)
        }
    }

    private func call<Target: TargetElement>(
        _ variant: Variant, _ targets: [Target], _ workspace: Workspace,
        _ findings: inout Findings
    ) throws(KernelError) -> Found {
        var arrays = Arrays(self)
        let result: CrossEntropy.Result
        if variant.isTogether {
            result = try withBudget(variant, &arrays, &findings) {
                options, arrays throws(KernelError) in
                try together(variant, targets, options, &arrays, workspace)
            }
        } else {
            result = try withBudget(variant, &arrays, &findings) {
                options, arrays throws(KernelError) in
                try forward(variant, targets, options, arrays, workspace)
            }
            _ = try withBudget(variant, &arrays, &findings) { options, arrays throws(KernelError) in
                try backward(variant, targets, options, result, &arrays, workspace)
            }
        }
        findings.expect(
            hiddenGradientGrid.hasIntactGaps(arrays.hiddenGradient),
            "wrote outside the hidden gradients")
        findings.expect(
            classifierGradientGrid.hasIntactGaps(arrays.classifierGradient),
            "wrote outside the classifier gradients")
        let wanted = variant.gradients
        return Found(
            result: result,
            hidden: wanted.contains(.hidden)
                ? hiddenGradientGrid.dense(arrays.hiddenGradient) : [],
            classifier: wanted.contains(.classifier)
                ? classifierGradientGrid.dense(arrays.classifierGradient) : [],
            bias: wanted.contains(.bias) ? arrays.biasGradient : [])
    }

    /// Runs one call with the variant's options. The least budget of a call is found by giving it
    /// too little; it writes nothing then.
    private func withBudget(
        _ variant: Variant, _ arrays: inout Arrays, _ findings: inout Findings,
        _ call: (CrossEntropy.Options, inout Arrays) throws(KernelError) -> CrossEntropy.Result
    ) throws(KernelError) -> CrossEntropy.Result {
        var options = options
        options.threads = variant.threads
        guard let quarters = variant.budgetQuarters else { return try call(options, &arrays) }
        options.memoryBudget = 1
        let before = arrays
        do {
            return try call(options, &arrays)
        } catch .tooSmall("memoryBudget", let least, _) {
            findings.expect(arrays.hasSameBits(as: before), "wrote before it refused a budget of 1")
            options.memoryBudget = least + least / 4 * quarters
            return try call(options, &arrays)
        }
    }
}

// MARK: - Arrays

extension CrossEntropyCase {
    /// Inputs and gradients with their gaps.
    private struct Arrays {
        let hidden: [Float]
        let classifier: [Float]
        var hiddenGradient: [Float]
        var classifierGradient: [Float]
        var biasGradient: [Float]

        init(_ problem: CrossEntropyCase) {
            func gradient(_ gradient: CrossEntropy.Gradients, _ count: Int) -> [Float] {
                let isAdded = problem.accumulate.contains(gradient)
                // What is overwritten must not matter.
                return Array(repeating: isAdded ? problem.initial : Grid.filler, count: count)
            }
            let (rows, vocabulary) = (problem.rows, problem.vocabulary)
            hidden = problem.hiddenGrid.spread(problem.hidden, filler: Grid.filler)
            classifier = problem.classifierGrid.spread(problem.classifier, filler: Grid.filler)
            hiddenGradient = problem.hiddenGradientGrid.spread(
                gradient(.hidden, rows * problem.features), filler: Grid.filler)
            classifierGradient = problem.classifierGradientGrid.spread(
                gradient(.classifier, vocabulary * problem.features), filler: Grid.filler)
            biasGradient = gradient(.bias, vocabulary)
        }

        func hasSameBits(as other: Arrays) -> Bool {
            func bits(_ arrays: Arrays) -> [[UInt32]] {
                [arrays.hiddenGradient, arrays.classifierGradient, arrays.biasGradient].map {
                    $0.map(\.bitPattern)
                }
            }
            return bits(self) == bits(other)
        }

        mutating func withGradients(
            _ body: (
                UnsafeMutableBufferPointer<Float>, UnsafeMutableBufferPointer<Float>,
                UnsafeMutableBufferPointer<Float>
            ) throws(KernelError) -> CrossEntropy.Result
        ) throws(KernelError) -> CrossEntropy.Result {
            var (e, c, b) = (hiddenGradient, classifierGradient, biasGradient)
            defer { (hiddenGradient, classifierGradient, biasGradient) = (e, c, b) }
            return try unsafe e.withUnsafeMutableBufferPointer { e throws(KernelError) in
                try unsafe c.withUnsafeMutableBufferPointer { c throws(KernelError) in
                    try unsafe b.withUnsafeMutableBufferPointer { b throws(KernelError) in
                        try unsafe body(e, c, b)
                    }
                }
            }
        }
    }

    private var shape: CrossEntropy.Shape {
        .init(
            rows: rows, features: features, vocabulary: vocabulary,
            hiddenStride: hiddenGrid.stride, classifierStride: classifierGrid.stride)
    }

    /// Upstream gradients of losses, which go with losses that are not reduced.
    private var lossGradientsOfRows: [Float]? { options.reduction == .none ? lossGradients : nil }
}

// MARK: - Calls

extension CrossEntropyCase {
    private func forward<Target: TargetElement>(
        _ variant: Variant, _ targets: [Target], _ options: CrossEntropy.Options, _ arrays: Arrays,
        _ workspace: Workspace
    ) throws(KernelError) -> CrossEntropy.Result {
        try CrossEntropy.forward(
            hidden: arrays.hidden.span.extracting(hiddenGrid.range),
            classifier: arrays.classifier.span.extracting(classifierGrid.range), bias: bias?.span,
            classWeights: classWeights?.span, targets: targets.span, shape: shape,
            options: options,
            // Backward needs what forward can leave for it.
            outputs: variant.outputs.union([.rowStates, .entropy]), workspace: workspace)
    }

    private func backward<Target: TargetElement>(
        _ variant: Variant, _ targets: [Target], _ options: CrossEntropy.Options,
        _ result: CrossEntropy.Result, _ arrays: inout Arrays, _ workspace: Workspace
    ) throws(KernelError) -> CrossEntropy.Result {
        let (hidden, classifier) = (arrays.hidden, arrays.classifier)
        let upstream = lossGradientsOfRows
        let wanted = variant.gradients
        return try unsafe arrays.withGradients { e, c, b throws(KernelError) in
            let e = e.extracting(hiddenGradientGrid.range)
            let c = c.extracting(classifierGradientGrid.range)
            return try unsafe CrossEntropy.backward(
                hidden: hidden.span.extracting(hiddenGrid.range),
                classifier: classifier.span.extracting(classifierGrid.range), bias: bias?.span,
                classWeights: classWeights?.span, targets: targets.span, shape: shape,
                options: options, rowStates: result.rowStates.span, entropy: result.entropy.span,
                lossGradient: lossGradient, lossGradients: upstream?.span,
                logSumExpGradients: logSumExpGradients?.span,
                entropyGradients: entropyGradients?.span,
                hiddenGradient: wanted.contains(.hidden) ? e.mutableSpan : nil,
                hiddenGradientStride: hiddenGradientGrid.stride,
                classifierGradient: wanted.contains(.classifier) ? c.mutableSpan : nil,
                classifierGradientStride: classifierGradientGrid.stride,
                biasGradient: wanted.contains(.bias) ? b.mutableSpan : nil,
                accumulate: accumulate, workspace: workspace)
        }
    }

    private func together<Target: TargetElement>(
        _ variant: Variant, _ targets: [Target], _ options: CrossEntropy.Options,
        _ arrays: inout Arrays, _ workspace: Workspace
    ) throws(KernelError) -> CrossEntropy.Result {
        let (hidden, classifier) = (arrays.hidden, arrays.classifier)
        let upstream = lossGradientsOfRows
        let wanted = variant.gradients
        return try unsafe arrays.withGradients { e, c, b throws(KernelError) in
            let e = e.extracting(hiddenGradientGrid.range)
            let c = c.extracting(classifierGradientGrid.range)
            return try unsafe CrossEntropy.forwardBackward(
                hidden: hidden.span.extracting(hiddenGrid.range),
                classifier: classifier.span.extracting(classifierGrid.range), bias: bias?.span,
                classWeights: classWeights?.span, targets: targets.span, shape: shape,
                options: options, lossGradient: lossGradient, lossGradients: upstream?.span,
                logSumExpGradients: logSumExpGradients?.span,
                entropyGradients: entropyGradients?.span,
                hiddenGradient: wanted.contains(.hidden) ? e.mutableSpan : nil,
                hiddenGradientStride: hiddenGradientGrid.stride,
                classifierGradient: wanted.contains(.classifier) ? c.mutableSpan : nil,
                classifierGradientStride: classifierGradientGrid.stride,
                biasGradient: wanted.contains(.bias) ? b.mutableSpan : nil,
                accumulate: accumulate, outputs: variant.outputs, workspace: workspace)
        }
    }
}
