import LMKernels
import LMKernelsReference
import Testing

/// Tolerances as relative Euclidean errors. Measured over every test of this file, for float32,
/// bfloat16 and float16: outputs 2.2e-7, 2.5e-3, 3.4e-4; log-sum-exp 6.6e-8; gradients 5.2e-7,
/// 2.9e-3, 3.0e-4; gradients of the scale 1.4e-6, 3.1e-6, 2.4e-6.
private struct Tolerance {
    var output, logSumExp, gradient, scale: Double

    init(_ type: StorageType) {
        switch type {
        case .float32: self.init(4e-7, 1.3e-7, 1e-6, 3e-6)
        case .bfloat16: self.init(4e-3, 1.3e-7, 4e-3, 6e-6)
        case .float16: self.init(6e-4, 1.3e-7, 6e-4, 5e-6)
        }
    }

    init(_ output: Double, _ logSumExp: Double, _ gradient: Double, _ scale: Double) {
        self.output = output
        self.logSumExp = logSumExp
        self.gradient = gradient
        self.scale = scale
    }
}

extension KernelSuite {
    @Suite struct SoftmaxTests {
        // MARK: - Against the reference

        private func check<Element: TestElement>(
            _ problem: SoftmaxProblem<Element>, _ label: String,
            functions: [Softmax.Function] = Softmax.Function.allCases
        ) throws {
            let type = Element.storageType
            let tolerance = Tolerance(type)
            // Below it float16 is denormal and has an absolute error.
            let denormal = type == .float16 ? 1e-4 : 0
            let sums = problem.logSumExpReference()
            for function in functions {
                let expected = problem.expected(function)
                try withEachInstructionSet(of: .softmax) { set in
                    let label = "\(label) \(function) \(type) \(set)"
                    let (y, logSumExp) = try problem.forward(function)
                    let dense = y.dense
                    let isLog = function == .logSoftmax || function == .logStableMax
                    let output = relativeError(dense, expected.y, floor: isLog ? 1 : denormal)
                    #expect(output < tolerance.output, "\(label): \(output)")
                    #expect(y.isFillerKept, "\(label)")
                    if !logSumExp.isEmpty {
                        let error = relativeError(logSumExp, sums)
                        #expect(error < tolerance.logSumExp, "\(label): \(error)")
                    }
                    let isFromY = function == .softmax || function == .logSoftmax
                    let gradients =
                        isFromY && type != .float32
                        ? problem.expectedGradient(function, y: dense) : expected
                    try checkGradients(
                        problem.backward(function, y: y), gradients, tolerance,
                        floor: isLog ? 0.1 : denormal, label)
                }
            }
        }

        private func checkLogSumExp<Element: TestElement>(
            _ problem: SoftmaxProblem<Element>, _ label: String
        ) throws {
            let tolerance = Tolerance(Element.storageType)
            let expected = problem.expectedLogSumExp()
            try withEachInstructionSet(of: .softmax) { set in
                let label = "\(label) logSumExp \(Element.storageType) \(set)"
                let error = try relativeError(problem.logSumExp(), expected.y)
                #expect(error < tolerance.logSumExp, "\(label): \(error)")
                try checkGradients(
                    problem.logSumExpBackward(), expected, tolerance,
                    floor: Element.storageType == .float16 ? 1e-4 : 0, label)
            }
        }

        private func checkGradients<Element>(
            _ found: (x: GappedMatrix<Element>, scale: [Float]),
            _ expected: SoftmaxProblem<Element>.Expected, _ tolerance: Tolerance,
            floor: Double, _ label: String
        ) {
            let x = relativeError(found.x.dense, expected.x, floor: floor)
            // A sum of terms of either sign, up to 1 or so together, or each, for logarithms.
            let scale = relativeError(
                found.scale.map { Double($0) }, expected.scale, floor: floor == 0.1 ? 10 : 0.1)
            #expect(x < tolerance.gradient, "\(label): gradient \(x)")
            #expect(scale < tolerance.scale, "\(label): scale \(scale)")
            #expect(found.x.isFillerKept, "\(label)")
        }

        private static let scales: [Float] = [1, 0.7, -1.3, 0]

        private func combination<Element: TestElement>(
            _ choice: Int, of type: Element.Type
        ) throws {
            var problem = SoftmaxProblem<Element>(rows: 13, columns: 150, seed: UInt64(choice))
            problem.options.algorithm = Softmax.Algorithm.allCases[choice & 3]
            problem.options.scale = Self.scales[(choice >> 2) & 3]
            problem.options.threads = 1 + choice % 3
            problem.choose(choice >> 4, seed: UInt64(choice))
            try check(problem, "choice \(choice)")
            try checkLogSumExp(problem, "choice \(choice)")
        }

        @Test(arguments: 0..<128)
        func everyCombinationOfOptions(choice: Int) throws {
            try combination(choice, of: Float.self)
            try combination(choice, of: BFloat16.self)
            try combination(choice, of: Float16.self)
        }

        private func size<Element: TestElement>(
            rows: Int, columns: Int, of type: Element.Type
        ) throws {
            for algorithm in Softmax.Algorithm.allCases {
                var problem = SoftmaxProblem<Element>(
                    rows: rows, columns: columns, seed: UInt64(columns + rows))
                problem.options.algorithm = algorithm
                problem.options.scale = columns % 2 == 0 ? 1 : 0.7
                problem.options.threads = 2
                let label = "\(rows) x \(columns) \(algorithm)"
                try check(problem, label)
                try checkLogSumExp(problem, label)
            }
        }

        @Test(arguments: [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257, 4095, 4096, 4097])
        func columnsAroundBlockEdges(columns: Int) throws {
            try size(rows: 5, columns: columns, of: Float.self)
            try size(rows: 5, columns: columns, of: BFloat16.self)
            try size(rows: 5, columns: columns, of: Float16.self)
        }

        /// Slices have 16384 columns; automatic takes three passes up to 65536.
        @Test(arguments: [16383, 16384, 16385, 32768, 32769, 65536, 65537, 70000])
        func columnsAroundSlices(columns: Int) throws {
            try size(rows: 2, columns: columns, of: Float.self)
            try size(rows: 1, columns: columns, of: BFloat16.self)
            try size(rows: 1, columns: columns, of: Float16.self)
        }

        @Test(arguments: [0, 1, 2, 15, 63, 64, 65, 240, 241, 500])
        func rowsAroundSlots(rows: Int) throws {
            for columns in [1, 17] {
                try size(rows: rows, columns: columns, of: Float.self)
                try size(rows: rows, columns: columns, of: BFloat16.self)
            }
        }

        /// Rows that end in each slice, before it, and behind it.
        @Test func longRowsWithMasks() throws {
            for choice in [5, 2] {
                for algorithm in Softmax.Algorithm.allCases {
                    var problem = SoftmaxProblem<Float>(rows: 6, columns: 50000, seed: 3)
                    problem.options.algorithm = algorithm
                    problem.options.threads = 2
                    problem.choose(choice & 6, seed: 1)
                    if choice & 1 != 0 {
                        problem.lengths = [0, 16384, 16385, 32768, 49999, 50000]
                        for r in 0..<6 {
                            for j in problem.count(ofRow: r)..<50000 { problem.x[r, j] = .nan }
                        }
                    }
                    try check(problem, "choice \(choice) \(algorithm)")
                    try checkLogSumExp(problem, "choice \(choice) \(algorithm)")
                }
            }
        }
    }
}
