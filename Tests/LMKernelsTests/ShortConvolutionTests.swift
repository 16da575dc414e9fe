import LMKernels
import LMKernelsReference
import Testing

/// A random short convolution, as the kernel and as the reference see it.
private struct ConvolutionProblem<Element: TestElement> {
    var shape: LinearAttention.ChannelShape
    var width: Int
    var offsets: [Int]?
    var appliesSiLU: Bool
    var x: StageTensor<Element>
    var yGradient: StageTensor<Element>
    var weight: [Float]
    var bias: [Float]?
    var initialState: [Float]?
    var finalStateGradient: [Float]?
    var threads = 1

    static var filler: Float { -80 }

    struct Found {
        var y: StageTensor<Element>
        var finalState: [Float]
        var x: StageTensor<Element>
        var weight: [Float]
        var bias: [Float]
        var initialState: [Float]

        var bits: [[UInt64]] {
            [y.bits, x.bits]
                + [finalState, weight, bias, initialState].map {
                    $0.map { UInt64($0.bitPattern) }
                }
        }
    }

    init(
        batch: Int = 1, tokens: Int, channels: Int, width: Int, offsets: [Int]? = nil,
        hasAll: Bool = true, appliesSiLU: Bool = true, seed: UInt64 = 1
    ) {
        shape = .init(batch: batch, tokens: tokens, channels: channels)
        self.width = width
        self.offsets = offsets
        self.appliesSiLU = appliesSiLU
        x = .init(shape).filled(-2...2, seed: seed)
        yGradient = .init(shape, gap: 7).filled(-1...1, seed: seed &+ 1)
        var random = SeededGenerator(seed: seed &+ 2)
        weight = (0..<channels * width).map { _ in .random(in: -1...1, using: &random) }
        guard hasAll else { return }
        bias = (0..<channels).map { _ in .random(in: -1...1, using: &random) }
        let states = (offsets.map { $0.count - 1 } ?? batch) * (width - 1) * channels
        initialState = (0..<states).map { _ in .random(in: -2...2, using: &random) }
        finalStateGradient = (0..<states).map { _ in .random(in: -2...2, using: &random) }
    }

    func run(_ workspace: Workspace = Workspace()) throws -> Found {
        let sequences = offsets.map { $0.count - 1 } ?? shape.batch
        let states = sequences * (width - 1) * shape.channels
        var y = StageTensor<Element>(shape, gap: 2, filler: Self.filler)
        var dx = StageTensor<Element>(shape, gap: 1, filler: Self.filler)
        var finalState = [Float](repeating: Self.filler, count: states)
        var initialGradient = finalState
        var weightGradient = [Float](repeating: Self.filler, count: weight.count)
        var biasGradient = [Float](repeating: Self.filler, count: shape.channels)
        var strides = LinearAttention.ShortConvolution.Strides()
        strides.x = x.strides
        strides.y = y.strides
        strides.xGradient = dx.strides
        strides.yGradient = yGradient.strides
        let input = x.array.span.extracting(x.range)
        try withElements(of: &y) { y in
            var y = y
            try LinearAttention.ShortConvolution.forward(
                input, into: &y, weight: weight.span, width: width, bias: bias?.span,
                appliesSiLU: appliesSiLU, shape: shape, strides: strides, offsets: offsets?.span,
                initialState: initialState?.span, finalState: finalState.mutableSpan,
                threads: threads)
        }
        try withElements(of: &dx) { dx in
            try LinearAttention.ShortConvolution.backward(
                input, yGradient: yGradient.array.span.extracting(yGradient.range),
                finalStateGradient: finalStateGradient?.span, xGradient: dx,
                weightGradient: weightGradient.mutableSpan,
                biasGradient: biasGradient.mutableSpan,
                initialStateGradient: initialGradient.mutableSpan, weight: weight.span,
                width: width, bias: bias?.span, appliesSiLU: appliesSiLU, shape: shape,
                strides: strides, offsets: offsets?.span, initialState: initialState?.span,
                threads: threads, workspace: workspace)
        }
        return Found(
            y: y, finalState: finalState, x: dx, weight: weightGradient, bias: biasGradient,
            initialState: initialGradient)
    }

    private typealias Reference = ReferenceLinearAttention.ShortConvolution

    func expected() -> (
        y: [Double], finalState: [Double], ReferenceLinearAttention.ShortConvolution.Gradients
    ) {
        let problem = Reference.Problem(
            batch: shape.batch, tokens: shape.tokens, channels: shape.channels, width: width,
            x: x.dense, weight: weight.map { Double($0) }, bias: bias?.map { Double($0) },
            initialState: initialState?.map { Double($0) }, offsets: offsets,
            appliesSiLU: appliesSiLU)
        let (y, finalState) = Reference.forward(problem)
        let gradients = Reference.backward(
            problem, outputGradient: yGradient.dense,
            finalStateGradient: finalStateGradient?.map { Double($0) })
        return (y, finalState, gradients)
    }
}

extension KernelSuite {
    @Suite struct ShortConvolutionTests {
        private func check<Element>(
            _ problem: ConvolutionProblem<Element>, _ label: String
        ) throws {
            let (y, finalState, gradients) = problem.expected()
            // Measured: 3.1e-7 in float32, 6.3e-7 of sums over tokens; 3.2e-3 and 3.4e-4 in
            // others.
            let float32 = 1e-6
            let tolerance = stageTolerance(Element.storageType, float32: float32)
            try withEachInstructionSet(of: .tokenStages) { set in
                let found = try problem.run()
                let label = "\(label) \(Element.storageType) \(set)"
                func expect(_ error: Double, below limit: Double, _ what: String) {
                    #expect(error < limit, "\(label): \(what) \(error)")
                }
                expect(relativeError(found.y.dense, y), below: tolerance, "y")
                #expect(
                    zip(found.finalState, finalState).allSatisfy { Double($0) == $1 }, "\(label)")
                expect(relativeError(found.x.dense, gradients.x), below: tolerance, "dx")
                // Sums of terms of either sign, each up to 1 or so.
                let (dw, db) = (found.weight.map { Double($0) }, found.bias.map { Double($0) })
                expect(relativeError(dw, gradients.weight, floor: 1), below: float32, "dw")
                expect(relativeError(db, gradients.bias, floor: 1), below: float32, "db")
                expect(
                    relativeError(found.initialState, gradients.initialState), below: float32,
                    "ds")
                #expect(found.y.isFillerKept && found.x.isFillerKept, "\(label)")
            }
        }

        private func sizes<Element: TestElement>(of type: Element.Type) throws {
            for width in 2...8 {
                for channels in [0, 1, 15, 16, 17, 65] {
                    for tokens in [0, 1, 2, width - 1, width, 19] {
                        try check(
                            ConvolutionProblem<Element>(
                                batch: 1 + tokens % 3, tokens: tokens, channels: channels,
                                width: width, hasAll: tokens != 19 || channels != 17,
                                appliesSiLU: (tokens + channels) % 2 == 0,
                                seed: UInt64(channels + tokens)),
                            "\(tokens) x \(channels), width \(width)")
                    }
                }
            }
        }

        @Test func everySizeFloat() throws { try sizes(of: Float.self) }
        @Test func everySizeBFloat16() throws { try sizes(of: BFloat16.self) }
        @Test func everySizeFloat16() throws { try sizes(of: Float16.self) }

        /// Blocks of tokens, tiles of channels.
        @Test func largeProblems() throws {
            for width in [2, 4, 7] {
                try check(
                    ConvolutionProblem<Float>(tokens: 600, channels: 35, width: width),
                    "600 x 35, width \(width)")
                try check(
                    ConvolutionProblem<Float>(batch: 3, tokens: 300, channels: 530, width: width),
                    "3 x 300 x 530, width \(width)")
            }
        }

        @Test func packedSequences() throws {
            for offsets in [[0, 0, 1, 1, 18, 20, 20], [0, 255, 258, 300, 600], [0, 257]] {
                for width in [3, 4, 8] {
                    try check(
                        ConvolutionProblem<Float>(
                            tokens: offsets.last!, channels: 20, width: width, offsets: offsets),
                        "\(offsets), width \(width)")
                    try check(
                        ConvolutionProblem<BFloat16>(
                            tokens: offsets.last!, channels: 5, width: width, offsets: offsets,
                            hasAll: false), "\(offsets), width \(width)")
                }
            }
            try check(
                ConvolutionProblem<Float>(tokens: 0, channels: 3, width: 3, offsets: [0]), "none")
        }

        @Test func threadsAndInstructionSets() throws {
            for (tokens, channels) in [(700, 40), (30, 1100)] {
                for width in [2, 4, 5] {
                    var problem = ConvolutionProblem<Float>(
                        batch: 3, tokens: tokens, channels: channels, width: width)
                    let workspace = Workspace()
                    var expected: [[UInt64]]?
                    try withEachInstructionSet(fusedSets, of: .tokenStages) { set in
                        for threads in [1, 2, 3, 8] {
                            problem.threads = threads
                            let found = try problem.run(workspace).bits
                            if let expected {
                                let isSame = found == expected
                                #expect(isSame, "\(tokens) \(width) \(set) \(threads)")
                            }
                            expected = expected ?? found
                        }
                    }
                }
            }
        }

        /// Tokens one by one, with the state carried, have the bits of all at once.
        @Test func decoding() throws {
            for width in [2, 4, 8] {
                let (tokens, channels) = (20, 37)
                var random = SeededGenerator(seed: 5)
                func numbers(_ count: Int) -> [Float] {
                    (0..<count).map { _ in .random(in: -2...2, using: &random) }
                }
                let (x, w) = (numbers(tokens * channels), numbers(channels * width))
                let start = numbers((width - 1) * channels)
                var whole = x
                var finalState = start
                var y = whole.mutableSpan
                try LinearAttention.ShortConvolution.forward(
                    x.span, into: &y, weight: w.span, width: width, appliesSiLU: true,
                    shape: .init(tokens: tokens, channels: channels), initialState: start.span,
                    finalState: finalState.mutableSpan)
                var state = start
                var found: [Float] = []
                for t in 0..<tokens {
                    let before = state
                    var row = [Float](repeating: 0, count: channels)
                    var y = row.mutableSpan
                    try LinearAttention.ShortConvolution.forward(
                        x.span.extracting(t * channels..<(t + 1) * channels), into: &y,
                        weight: w.span, width: width, appliesSiLU: true,
                        shape: .init(tokens: 1, channels: channels), initialState: before.span,
                        finalState: state.mutableSpan)
                    found += row
                }
                #expect(zip(found, whole).allSatisfy { $0 == $1 })
                #expect(state == finalState)
            }
        }

        /// An infinite or NaN input reaches the next `width` tokens of its channel, and no more.
        @Test func infinitiesAndNaN() throws {
            var problem = ConvolutionProblem<Float>(
                tokens: 30, channels: 20, width: 4, appliesSiLU: false)
            problem.x[6 * 20 + 1] = .nan
            problem.x[7 * 20 + 17] = .infinity
            problem.yGradient[9 * 20 + 3] = .nan
            let (y, _, gradients) = problem.expected()
            try withEachInstructionSet(of: .tokenStages) { _ in
                let found = try problem.run()
                #expect(
                    zip(found.y.dense, y).allSatisfy {
                        $0.isNaN == $1.isNaN && $0.isFinite == $1.isFinite
                    })
                #expect(
                    zip(found.x.dense, gradients.x).allSatisfy { $0.isFinite == $1.isFinite })
                #expect(
                    zip(found.weight, gradients.weight).allSatisfy { $0.isFinite == $1.isFinite })
            }
        }

        /// More than 32 MB of output is written past the caches, parts of it are not.
        private func streams<Element: TestElement>(
            tokens: Int, channels: Int, of type: Element.Type
        ) throws {
            #expect(tokens * channels * MemoryLayout<Element>.size > 32 << 20)
            let count = tokens * channels
            var random = SeededGenerator(seed: 3)
            let x = (0..<count).map { _ in Element(Float(random.next() >> 48) / 65536 - 0.5) }
            let weight = (0..<4 * channels).map { _ in Float(random.next() >> 48) / 65536 - 0.5 }
            func run(_ parts: [Range<Int>]) throws -> [Element] {
                var y = [Element](repeating: Element(-80), count: count + 2)
                var state = [Float](repeating: 0.5, count: 3 * channels)
                for part in parts {
                    let before = state
                    let begin = part.lowerBound * channels
                    let size = part.count * channels
                    try withPart(of: &y, begin + 1..<begin + 1 + size) { y in
                        try LinearAttention.ShortConvolution.forward(
                            x.span.extracting(begin..<begin + size), into: &y,
                            weight: weight.span, width: 4, appliesSiLU: true,
                            shape: .init(tokens: part.count, channels: channels),
                            initialState: before.span, finalState: state.mutableSpan, threads: 2)
                    }
                }
                #expect(y[0].double == -80 && y[count + 1].double == -80)
                return y
            }
            try withEachInstructionSet(fusedSets, of: .tokenStages) { set in
                let whole = try run([0..<tokens])
                let parts = try run([0..<tokens / 3, tokens / 3..<tokens / 2, tokens / 2..<tokens])
                #expect(zip(whole, parts).allSatisfy { $0.double == $1.double }, "\(set)")
            }
        }

        @Test func streaming() throws {
            try streams(tokens: 4100, channels: 2064, of: Float.self)
            try streams(tokens: 70_000, channels: 256, of: Float16.self)
        }

        // MARK: - Refusals

        private struct Arguments {
            var shape = LinearAttention.ChannelShape(batch: 2, tokens: 3, channels: 4)
            var strides = LinearAttention.ShortConvolution.Strides()
            var width = 3
            var x = [Float](repeating: 1, count: 24)
            var weight = [Float](repeating: 1, count: 12)
            var bias: [Float]?
            var offsets: [Int]?
            var initialState: [Float]?
        }

        private func refused(_ change: (inout Arguments) -> Void) -> KernelError? {
            var a = Arguments()
            change(&a)
            let (x, weight, bias) = (a.x, a.weight, a.bias)
            let (offsets, initial) = (a.offsets, a.initialState)
            var outputs = [Float](repeating: -80, count: 24)
            let found = refusal {
                var y = outputs.mutableSpan
                try LinearAttention.ShortConvolution.forward(
                    x.span, into: &y, weight: weight.span, width: a.width, bias: bias?.span,
                    shape: a.shape, strides: a.strides, offsets: offsets?.span,
                    initialState: initial?.span)
            }
            if found != nil { #expect(outputs == [Float](repeating: -80, count: 24)) }
            return found
        }

        @Test func refusals() {
            #expect(refused { _ in } == nil)
            for width in [1, 9] {
                #expect(
                    refused { $0.width = width }
                        == .outOfRange(
                            argument: "width", allowed: "from 2 to 8", actual: "\(width)"))
            }
            #expect(
                refused { $0.weight.removeLast() }
                    == .countMismatch(argument: "weight", expected: 12, actual: 11))
            #expect(
                refused { $0.bias = [1] }
                    == .countMismatch(argument: "bias", expected: 4, actual: 1))
            #expect(
                refused { $0.initialState = [1] }
                    == .countMismatch(argument: "initialState", expected: 16, actual: 1))
            #expect(
                refused { $0.x.removeLast() } == .tooSmall(argument: "x", minimum: 24, actual: 23))
            #expect(
                refused { $0.strides.y.token = 3 }
                    == .tooSmall(argument: "yStrides.token", minimum: 4, actual: 3))
            #expect(
                refused { $0.offsets = [0, 3] }
                    == .conflict(argument: "offsets", reason: "only with batch 1"))
        }
    }
}
