import LMKernels
import LMKernelsReference

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
        var options = options
        options.threads = variant.threads
        var arrays = Arrays(self)
        guard let quarters = variant.budgetQuarters else {
            return try call(variant, targets, options, &arrays, workspace, &findings)
        }
        options.memoryBudget = 1
        do {
            return try call(variant, targets, options, &arrays, workspace, &findings)
        } catch .tooSmall("memoryBudget", let least, _) {
            findings.expect(arrays.areUntouched, "wrote before it refused a budget of 1")
            options.memoryBudget = least + least / 4 * quarters
            return try call(variant, targets, options, &arrays, workspace, &findings)
        }
    }

    /// Inputs with their gaps, and gradients to be.
    private struct Arrays {
        var hidden: [Float]
        var classifier: [Float]
        var hiddenGradient: [Float]
        var classifierGradient: [Float]
        var biasGradient: [Float]
        private var before: [[Float]]

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
            before = []
            before = [hiddenGradient, classifierGradient, biasGradient]
        }

        /// Whether the gradients are as they were made.
        var areUntouched: Bool {
            let now = [hiddenGradient, classifierGradient, biasGradient]
            return now.map { $0.map(\.bitPattern) } == before.map { $0.map(\.bitPattern) }
        }
    }

    private func call<Target: TargetElement>(
        _ variant: Variant, _ targets: [Target], _ options: CrossEntropy.Options,
        _ arrays: inout Arrays, _ workspace: Workspace, _ findings: inout Findings
    ) throws(KernelError) -> Found {
        let hidden = arrays.hidden.span.extracting(hiddenGrid.range)
        let classifier = arrays.classifier.span.extracting(classifierGrid.range)
        let shape = CrossEntropy.Shape(
            rows: rows, features: features, vocabulary: vocabulary,
            hiddenStride: hiddenGrid.stride, classifierStride: classifierGrid.stride)
        let upstream = options.reduction == .none ? lossGradients : nil
        // Backward needs what forward can leave for it.
        var outputs = variant.outputs
        if !variant.isTogether { outputs.formUnion([.rowStates, .entropy]) }

        var (e, c, b) = (arrays.hiddenGradient, arrays.classifierGradient, arrays.biasGradient)
        var (noE, noC, noB): ([Float], [Float], [Float]) = ([], [], [])
        _ = (noE.count, noC.count, noB.count)
        fatalError()
    }
}
