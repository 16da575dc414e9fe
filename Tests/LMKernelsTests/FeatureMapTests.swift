import LMKernels
import LMKernelsReference
import Testing

private typealias FeatureMap = LinearAttention.FeatureMap
private typealias ReferenceMap = ReferenceLinearAttention.FeatureMap

/// Random rows, as the kernel and as the reference see them.
private struct FeatureProblem<Element: TestElement> {
    var map: FeatureMap
    var shape: LinearAttention.RowShape
    var x: StageTensor<Element>
    var featuresGradient: StageTensor<Element>
    var positions: [Int]?
    var threads = 1

    static var filler: Float { -80 }

    init(
        _ map: FeatureMap, _ shape: LinearAttention.RowShape, isHeadMajor: Bool = false,
        spread: Float = 2, seed: UInt64 = 1
    ) {
        self.map = map
        self.shape = shape
        x = .init(shape, gap: 3, isHeadMajor: isHeadMajor).filled(-spread...spread, seed: seed)
        var features = shape
        features.columns = map.featureCount(columns: shape.columns)
        featuresGradient = .init(features, gap: 2, isHeadMajor: !isHeadMajor).filled(
            -1...1, seed: seed &+ 1)
        if case .cosine(let length) = map {
            positions = (0..<shape.batch * shape.tokens).map { $0 * 7 % (length + 1) }
        }
    }

    func run() throws -> (features: StageTensor<Element>, x: StageTensor<Element>) {
        var features = StageTensor<Element>(
            featuresGradient.shape, gap: 4, isHeadMajor: true, filler: Self.filler)
        var dx = StageTensor<Element>(shape, gap: 1, filler: Self.filler)
        var strides = FeatureMap.Strides()
        strides.x = x.strides
        strides.features = features.strides
        strides.featuresGradient = featuresGradient.strides
        strides.xGradient = dx.strides
        let input = x.array.span.extracting(x.range)
        try withElements(of: &features) { features in
            var features = features
            try map.forward(
                input, into: &features, shape: shape, strides: strides,
                positions: positions?.span, threads: threads)
        }
        try withElements(of: &dx) { dx in
            var dx = dx
            try map.backward(
                input,
                featuresGradient: featuresGradient.array.span.extracting(featuresGradient.range),
                xGradient: &dx, shape: shape, strides: strides, positions: positions?.span,
                threads: threads)
        }
        return (features, dx)
    }

    private var rows: Int { shape.batch * shape.tokens * shape.heads }

    var reference: ReferenceMap {
        switch map {
        case .identity: .identity
        case .eluPlusOne: .eluPlusOne
        case .relu: .relu
        case .squaredReLU: .squaredReLU
        case .softmax: .softmax
        case .expPair: .expPair
        case .softmaxPair: .softmaxPair
        case .taylor: .taylor
        case .focused(let power, let epsilon):
            .focused(power: Double(power), epsilon: Double(epsilon))
        case .cosine(let length):
            .cosine(
                positions: (0..<rows).map { positions![$0 / shape.heads] }, length: length)
        }
    }

    func expected() -> (features: [Double], x: [Double]) {
        (
            reference.forward(x.dense, rows: rows, columns: shape.columns),
            reference.backward(
                x.dense, outputGradient: featuresGradient.dense, rows: rows,
                columns: shape.columns)
        )
    }
}

extension KernelSuite {
    @Suite struct FeatureMapTests {
        private static let maps: [FeatureMap] = [
            .identity, .eluPlusOne, .relu, .squaredReLU, .softmax, .expPair, .softmaxPair, .taylor,
            .focused(power: 3), .focused(power: 1), .focused(power: 2.5, epsilon: 0),
            .focused(power: 40, epsilon: 0.5), .cosine(length: 30), .cosine(length: 1),
        ]

        private func check<Element>(_ problem: FeatureProblem<Element>, _ label: String) throws {
            let expected = problem.expected()
            // Measured: 3.6e-7 in float32, 1.1e-6 of the focused map's power 40; 2.2e-3 and 3.1e-4
            // in others.
            let tolerance = stageTolerance(Element.storageType, float32: 2e-6)
            try withEachInstructionSet(of: .tokenStages) { set in
                let found = try problem.run()
                let label = "\(label) \(problem.map) \(Element.storageType) \(set)"
                let features = relativeError(found.features.dense, expected.features)
                // Differences of gradients, of which a single column leaves nothing.
                let dx = relativeError(found.x.dense, expected.x, floor: 0.02)
                #expect(features < tolerance, "\(label): \(features)")
                #expect(dx < tolerance, "\(label): dx \(dx)")
                #expect(found.features.isFillerKept && found.x.isFillerKept, "\(label)")
            }
        }

        private func sizes<Element: TestElement>(of type: Element.Type) throws {
            for map in Self.maps {
                for columns in [1, 2, 7, 15, 16, 17, 33, 64, 65] {
                    let shape = LinearAttention.RowShape(
                        batch: 2, tokens: 3, heads: 2, columns: columns)
                    try check(
                        FeatureProblem<Element>(
                            map, shape, isHeadMajor: columns % 2 == 0, seed: UInt64(columns)),
                        "\(columns)")
                }
                try check(
                    FeatureProblem<Element>(map, .init(tokens: 0, columns: 3)), "no rows")
            }
        }

        @Test func everySizeFloat() throws { try sizes(of: Float.self) }
        @Test func everySizeBFloat16() throws { try sizes(of: BFloat16.self) }
        @Test func everySizeFloat16() throws { try sizes(of: Float16.self) }

        /// Rows of more columns than the Taylor map keeps at a time, and of many rounds.
        @Test func longRows() throws {
            for columns in [256, 257, 300, 530] {
                try check(
                    FeatureProblem<Float>(.taylor, .init(tokens: 2, columns: columns)), "long")
            }
            for map in Self.maps where map != .taylor {
                try check(FeatureProblem<Float>(map, .init(tokens: 3, columns: 1500)), "long")
            }
        }

        @Test func threadsAndInstructionSets() throws {
            for map in Self.maps {
                var problem = FeatureProblem<Float>(
                    map, .init(batch: 2, tokens: map == .taylor ? 60 : 300, heads: 3, columns: 33))
                var expected: [[UInt64]]?
                try withEachInstructionSet(fusedSets, of: .tokenStages) { set in
                    for threads in [1, 2, 3, 8] {
                        problem.threads = threads
                        let (features, dx) = try problem.run()
                        let found = [features.bits, dx.bits]
                        if let expected {
                            let isSame = found == expected
                            #expect(isSame, "\(map) \(set) \(threads) threads")
                        }
                        expected = expected ?? found
                    }
                }
            }
        }

        /// Rows of large and of small numbers, of equal ones, of zeros and of nothing above 0.
        @Test func extremes() throws {
            for map in Self.maps {
                for spread in [1e-12, 30] as [Float] {
                    // Beyond the range of float32: powers of sums.
                    try check(
                        FeatureProblem<Float>(
                            map, .init(tokens: 4, columns: 20), spread: spread),
                        "spread \(spread)")
                }
            }
            for map in [FeatureMap.focused(power: 3, epsilon: 0), .focused(power: 3)] {
                for value in [0, -1, 1e-30, 1e30, 2] as [Float] {
                    var problem = FeatureProblem<Float>(map, .init(tokens: 2, columns: 18))
                    for i in 0..<36 { problem.x[i] = value }
                    try check(problem, "\(value)")
                }
            }
        }

        /// What is not finite where the reference's result is not, and nowhere else.
        @Test func infinitiesAndNaN() throws {
            for map in Self.maps {
                for value in [Float.nan, .infinity, -.infinity] {
                    var problem = FeatureProblem<Float>(map, .init(tokens: 3, columns: 20))
                    problem.x[20 + 18] = value
                    let expected = problem.expected()
                    try withEachInstructionSet(of: .tokenStages) { set in
                        let found = try problem.run()
                        let label = "\(map) \(value) \(set)"
                        #expect(
                            zip(found.features.dense, expected.features).allSatisfy {
                                $0.isNaN == $1.isNaN && $0.isFinite == $1.isFinite
                            }, "\(label)")
                        #expect(
                            zip(found.x.dense, expected.x).allSatisfy {
                                $0.isFinite == $1.isFinite
                            },
                            "\(label) dx")
                    }
                }
            }
            // A row of -infinity.
            var problem = FeatureProblem<Float>(.softmax, .init(tokens: 2, columns: 20))
            for i in 0..<20 { problem.x[i] = -.infinity }
            let found = try problem.run()
            let features = found.features.dense
            #expect(features[..<20].allSatisfy { $0.isNaN })
            #expect(features[20...].allSatisfy { $0.isFinite })
        }

        /// phi(q) . phi(k) is the kernel that each map stands for.
        @Test func kernels() throws {
            let columns = 16
            let shape = LinearAttention.RowShape(tokens: 2, columns: columns)
            let problem = FeatureProblem<Float>(.taylor, shape)
            let x = problem.x.dense
            func dot(_ values: [Double]) -> Double {
                let half = values.count / 2
                return (0..<half).reduce(0) { $0 + values[$1] * values[half + $1] }
            }
            let s = dot(x) / 4
            let taylor = try problem.run().features.dense
            #expect(abs(dot(taylor) - (1 + s + s * s / 2)) < 1e-5)
            var cosine = FeatureProblem<Float>(.cosine(length: 3), shape)
            cosine.positions = [0, 3]
            cosine.x = cosine.x.filled { _ in 1 }
            let apart = try cosine.run().features.dense
            #expect(dot(apart) == 0)
            cosine.positions = [1, 3]
            let closer = try cosine.run().features.dense
            #expect(abs(dot(closer) - 8) < 1e-5)
        }

        // MARK: - Refusals

        private func refused(
            _ map: FeatureMap, columns: Int = 4, count: Int? = nil, positions: [Int]? = nil,
            _ change: (inout FeatureMap.Strides) -> Void = { _ in }
        ) -> KernelError? {
            let x = [Float](repeating: 1, count: 8)
            var features = [Float](repeating: -80, count: count ?? 100)
            var strides = FeatureMap.Strides()
            change(&strides)
            let found = refusal {
                var output = features.mutableSpan
                try map.forward(
                    x.span, into: &output, shape: .init(tokens: 2, columns: columns),
                    strides: strides, positions: positions?.span)
            }
            if found != nil { #expect(features.allSatisfy { $0 == -80 }) }
            return found
        }

        @Test func refusals() {
            #expect(refused(.relu) == nil)
            #expect(
                refused(.relu, columns: 0)
                    == .tooSmall(argument: "columns", minimum: 1, actual: 0))
            #expect(
                refused(.relu, columns: 5) == .tooSmall(argument: "x", minimum: 10, actual: 8))
            #expect(
                refused(.taylor, columns: 1 << 31)
                    == .outOfRange(
                        argument: "columns", allowed: "below 2^31", actual: "2147483648"))
            #expect(
                refused(.taylor, count: 41)
                    == .tooSmall(argument: "features", minimum: 42, actual: 41))
            #expect(
                refused(.expPair) { $0.features.token = 7 }
                    == .tooSmall(argument: "featuresStrides.token", minimum: 8, actual: 7))
            for power in [0.5, .nan, .infinity] as [Float] {
                #expect(
                    refused(.focused(power: power))
                        == .outOfRange(
                            argument: "power", allowed: "finite and at least 1",
                            actual: "\(power)"))
            }
            #expect(
                refused(.focused(power: 2, epsilon: -1))
                    == .outOfRange(
                        argument: "epsilon", allowed: "finite and at least 0", actual: "-1.0"))
            #expect(
                refused(.cosine(length: 5))
                    == .conflict(argument: "positions", reason: "needed by the cosine map"))
            #expect(
                refused(.relu, positions: [1, 2])
                    == .conflict(argument: "positions", reason: "only with the cosine map"))
            #expect(
                refused(.cosine(length: 5), positions: [1])
                    == .countMismatch(argument: "positions", expected: 2, actual: 1))
            #expect(
                refused(.cosine(length: 0), positions: [1, 2])
                    == .outOfRange(argument: "length", allowed: "at least 1", actual: "0"))
            #expect(
                refused(.cosine(length: 5), positions: [1, 6])
                    == .outOfRange(
                        argument: "positions[1]", allowed: "from 0 to length", actual: "6"))
        }
    }
}
