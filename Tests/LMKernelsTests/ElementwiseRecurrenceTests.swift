import LMKernels
import LMKernelsReference
import Testing

extension KernelSuite {
    @Suite struct ElementwiseRecurrenceTests {
        private func check<Element: TestElement>(
            _ problem: RecurrenceProblem<Element>, _ label: String
        ) throws {
            let expected = problem.expected()
            // Measured: 5.9e-7 in float32, of states too; 2.3e-3 and 3.7e-4 in others.
            let float32 = 1e-6
            let tolerance = stageTolerance(Element.storageType, float32: float32)
            try withEachInstructionSet(of: .tokenStages) { set in
                let found = try problem.run()
                let label = "\(label) \(Element.storageType) \(set)"
                func expect(_ error: Double, below limit: Double, _ what: String) {
                    #expect(error < limit, "\(label): \(what) \(error)")
                }
                let gradients = expected.gradients
                expect(relativeError(found.output.dense, expected.output), below: tolerance, "h")
                expect(
                    relativeError(found.finalState, expected.finalState), below: float32, "final")
                expect(relativeError(found.x.dense, gradients.x), below: tolerance, "dx")
                // From h as it is stored.
                expect(
                    relativeError(found.logDecay.dense, gradients.logDecay), below: tolerance, "dg")
                expect(
                    relativeError(found.initialState, gradients.initialState), below: float32,
                    "dh0")
                #expect(
                    found.output.isFillerKept && found.x.isFillerKept
                        && found.logDecay.isFillerKept, "\(label)")
            }
        }

        private func sizes<Element: TestElement>(of type: Element.Type) throws {
            for channels in [0, 1, 15, 16, 17, 33, 64, 65, 130] {
                for tokens in [0, 1, 2, 17] {
                    for batch in [1, 3] {
                        try check(
                            RecurrenceProblem<Element>(
                                batch: batch, tokens: tokens, channels: channels,
                                hasStates: tokens != 2, seed: UInt64(channels + tokens)),
                            "\(batch) x \(tokens) x \(channels)")
                    }
                }
            }
        }

        @Test func everySizeFloat() throws { try sizes(of: Float.self) }
        @Test func everySizeBFloat16() throws { try sizes(of: BFloat16.self) }
        @Test func everySizeFloat16() throws { try sizes(of: Float16.self) }

        /// Sequences that are cut into segments, and more channels than a slot has.
        @Test func longSequences() throws {
            for (tokens, channels) in [(2047, 3), (2048, 17), (5000, 16), (4100, 70)] {
                try check(
                    RecurrenceProblem<Float>(tokens: tokens, channels: channels, resets: false),
                    "\(tokens) x \(channels)")
            }
            try check(RecurrenceProblem<BFloat16>(tokens: 3000, channels: 5), "bfloat16")
            try check(RecurrenceProblem<Float>(tokens: 9, channels: 2500), "2500 channels")
        }

        @Test func packedSequences() throws {
            for offsets in [[0, 0, 1, 1, 18, 20, 20], [0, 2500, 2500, 2501, 5000], [0, 20]] {
                for channels in [1, 40] {
                    let problem = RecurrenceProblem<Float>(
                        tokens: offsets.last!, channels: channels, offsets: offsets)
                    try check(problem, "\(offsets) x \(channels)")
                    try check(
                        RecurrenceProblem<Float16>(
                            tokens: offsets.last!, channels: channels, offsets: offsets,
                            hasStates: false), "\(offsets) x \(channels)")
                }
            }
            // No sequence at all.
            try check(RecurrenceProblem<Float>(tokens: 0, channels: 3, offsets: [0]), "none")
        }

        private func sameBits<Element: TestElement>(
            _ problem: RecurrenceProblem<Element>, _ label: String
        ) throws {
            var problem = problem
            let workspace = Workspace()
            var expected: [[UInt64]]?
            try withEachInstructionSet(fusedSets, of: .tokenStages) { set in
                for threads in [1, 2, 3, 8] {
                    problem.threads = threads
                    let found = try problem.run(workspace).bits
                    if let expected {
                        let isSame = found == expected
                        #expect(isSame, "\(label) \(set) \(threads) threads")
                    }
                    expected = expected ?? found
                }
            }
        }

        /// Threads take channels of sequences, or segments of them.
        @Test func threadsAndInstructionSets() throws {
            try sameBits(RecurrenceProblem<Float>(batch: 3, tokens: 70, channels: 200), "batch")
            try sameBits(RecurrenceProblem<Float>(tokens: 40, channels: 3000), "channels")
            for channels in [1, 16, 100] {
                try sameBits(
                    RecurrenceProblem<Float>(tokens: 9000, channels: channels, resets: false),
                    "9000 x \(channels)")
            }
            try sameBits(RecurrenceProblem<BFloat16>(tokens: 6000, channels: 20), "bfloat16")
            try sameBits(
                RecurrenceProblem<Float16>(
                    tokens: 9000, channels: 9, offsets: [0, 100, 100, 5000, 9000]), "packed")
        }

        /// What a state is worth after a few tokens, exactly.
        @Test func smallIntegers() throws {
            for tokens in [3, 3000] {
                let shape = LinearAttention.ChannelShape(tokens: tokens, channels: 2)
                // Nothing decays in the first channel, all is forgotten in the second.
                let decays: [Float] = (0..<tokens).flatMap { _ in [0, -Float.infinity] }
                let x = [Float](repeating: 1, count: 2 * tokens)
                var h = x
                var final: [Float] = [0, 0]
                let initial: [Float] = [5, 7]
                try withEachInstructionSet(of: .tokenStages) { _ in
                    var output = h.mutableSpan
                    try LinearAttention.ElementwiseRecurrence.forward(
                        x.span, logDecay: decays.span, into: &output, shape: shape,
                        initialState: initial.span, finalState: final.mutableSpan, threads: 2,
                        workspace: Workspace())
                    let sums: [Float] = (0..<tokens).flatMap { t -> [Float] in [Float(t + 6), 1] }
                    #expect(zip(h, sums).allSatisfy { $0 == $1 })
                    #expect(final == [Float(tokens + 5), 1])
                    var dx = h
                    var dg = h
                    var initialGradient: [Float] = [9, 9]
                    try LinearAttention.ElementwiseRecurrence.backward(
                        logDecay: decays.span, output: h.span, outputGradient: x.span,
                        xGradient: dx.mutableSpan, logDecayGradient: dg.mutableSpan,
                        initialStateGradient: initialGradient.mutableSpan, shape: shape,
                        initialState: initial.span, threads: 2, workspace: Workspace())
                    for t in 0..<tokens {
                        let left = Float(tokens - t)
                        #expect(dx[2 * t] == left && dx[2 * t + 1] == 1)
                        #expect(dg[2 * t] == left * Float(t + 5) && dg[2 * t + 1] == 0)
                    }
                    #expect(initialGradient == [Float(tokens), 0])
                }
            }
        }

        /// NaN and infinity stay in their channel, a reset does not clear them.
        @Test func infinitiesAndNaN() throws {
            for tokens in [20, 2500] {
                var problem = RecurrenceProblem<Float>(tokens: tokens, channels: 20)
                problem.x[3 * 20 + 1] = .nan
                problem.x[3 * 20 + 17] = .infinity
                problem.outputGradient[5 * 20 + 2] = .nan
                problem.outputGradient[6 * 20 + 18] = -.infinity
                let expected = problem.expected()
                try withEachInstructionSet(of: .tokenStages) { _ in
                    let found = try problem.run()
                    func isSame(_ found: [Double], _ expected: [Double]) -> Bool {
                        zip(found, expected).allSatisfy { $0.isFinite == $1.isFinite }
                    }
                    #expect(isSame(found.output.dense, expected.output))
                    #expect(isSame(found.x.dense, expected.gradients.x))
                    #expect(isSame(found.logDecay.dense, expected.gradients.logDecay))
                    #expect(found.output[3 * 20 + 17] == .infinity)
                }
            }
        }

        /// Which gradients are asked for changes none of the others.
        @Test func gradientsOneByOne() throws {
            for tokens in [30, 4100] {
                var problem = RecurrenceProblem<Float>(tokens: tokens, channels: 18)
                problem.threads = 3
                let all = try problem.run()
                let h = all.output
                var strides = LinearAttention.ElementwiseRecurrence.Strides()
                strides.logDecay = problem.logDecay.strides
                strides.output = h.strides
                strides.outputGradient = problem.outputGradient.strides
                var (dx, dg) = (all.x, all.logDecay)
                strides.xGradient = dx.strides
                strides.logDecayGradient = dg.strides
                var initial = [Float](repeating: 0, count: 18)
                let g = problem.logDecay.array.span.extracting(problem.logDecay.range)
                let a = problem.outputGradient.array.span.extracting(problem.outputGradient.range)
                try withElements(of: &dx) { dx in
                    try LinearAttention.ElementwiseRecurrence.backward(
                        logDecay: g, outputGradient: a,
                        finalStateGradient: problem.finalStateGradient?.span, xGradient: dx,
                        shape: problem.shape, strides: strides, threads: 2, workspace: Workspace())
                }
                try withElements(of: &dg) { dg in
                    try LinearAttention.ElementwiseRecurrence.backward(
                        logDecay: g, output: h.array.span.extracting(h.range), outputGradient: a,
                        finalStateGradient: problem.finalStateGradient?.span,
                        logDecayGradient: dg, shape: problem.shape, strides: strides,
                        initialState: problem.initialState?.span, workspace: Workspace())
                }
                try LinearAttention.ElementwiseRecurrence.backward(
                    logDecay: g, outputGradient: a,
                    finalStateGradient: problem.finalStateGradient?.span,
                    initialStateGradient: initial.mutableSpan, shape: problem.shape,
                    strides: strides, workspace: Workspace())
                #expect(zip(dx.bits, all.x.bits).allSatisfy { $0 == $1 })
                #expect(zip(dg.bits, all.logDecay.bits).allSatisfy { $0 == $1 })
                #expect(initial == all.initialState)
            }
        }

        /// More than 32 MB of output is written past the caches; two halves of it are not. Nothing
        /// is cut into segments.
        private func streams<Element: TestElement>(
            tokens: Int, channels: Int, of type: Element.Type
        ) throws {
            typealias Recurrence = LinearAttention.ElementwiseRecurrence
            #expect(tokens * channels * MemoryLayout<Element>.size > 32 << 20)
            let count = tokens * channels
            var random = SeededGenerator(seed: 3)
            let numbers = (0..<count).map { _ in Float(random.next() >> 48) / 65536 }
            let x = numbers.map { Element($0 - 0.5) }
            let g = numbers.map { -2 * $0 }
            // One element off a line, so that the first channels are a vector by themselves.
            let place = { (part: Range<Int>) in
                part.lowerBound * channels + 1..<part.upperBound * channels + 1
            }
            let elements = { (part: Range<Int>) in
                part.lowerBound * channels..<part.upperBound * channels
            }
            func forward(_ parts: [Range<Int>]) throws -> [Element] {
                var h = [Element](repeating: Element(-80), count: count + 2)
                var state = [Float](repeating: 0.5, count: channels)
                for part in parts {
                    let before = state
                    try withPart(of: &h, place(part)) { h in
                        try Recurrence.forward(
                            x.span.extracting(elements(part)),
                            logDecay: g.span.extracting(elements(part)), into: &h,
                            shape: .init(tokens: part.count, channels: channels),
                            initialState: before.span, finalState: state.mutableSpan, threads: 2,
                            workspace: Workspace())
                    }
                }
                #expect(h[0].double == -80 && h[count + 1].double == -80)
                return h
            }
            func backward(_ parts: [Range<Int>], h: [Element]) throws -> ([Element], [Float]) {
                var dx = [Element](repeating: Element(-80), count: count + 2)
                var dg = [Float](repeating: -80, count: count + 2)
                var gradient = [Float](repeating: 0.5, count: channels)
                for part in parts.reversed() {
                    let after = gradient
                    // What lies before the part, as it is stored.
                    let begin = place(part).lowerBound
                    let before =
                        part.lowerBound == 0
                        ? [Float](repeating: 0.5, count: channels)
                        : h[begin - channels..<begin].map { Float($0.double) }
                    try withElements(of: &dx, place(part), and: &dg, place(part)) { dx, dg in
                        try Recurrence.backward(
                            logDecay: g.span.extracting(elements(part)),
                            output: h.span.extracting(place(part)),
                            outputGradient: x.span.extracting(elements(part)),
                            finalStateGradient: after.span, xGradient: dx,
                            logDecayGradient: dg, initialStateGradient: gradient.mutableSpan,
                            shape: .init(tokens: part.count, channels: channels),
                            initialState: before.span, threads: 2, workspace: Workspace())
                    }
                }
                #expect(dx[0].double == -80 && dx[count + 1].double == -80)
                #expect(dg[0] == -80 && dg[count + 1] == -80)
                return (dx, dg)
            }
            let halves = [0..<tokens / 2, tokens / 2..<tokens]
            try withEachInstructionSet(fusedSets, of: .tokenStages) { set in
                let whole = try forward([0..<tokens])
                let h = try forward(halves)
                #expect(zip(whole, h).allSatisfy { $0.double == $1.double }, "\(set)")
                let (dx, dg) = try backward([0..<tokens], h: h)
                let parts = try backward(halves, h: h)
                #expect(zip(dx, parts.0).allSatisfy { $0.double == $1.double }, "\(set)")
                #expect(zip(dg, parts.1).allSatisfy { $0 == $1 }, "\(set)")
            }
        }

        @Test func streaming() throws {
            try streams(tokens: 4100, channels: 2064, of: Float.self)
            try streams(tokens: 4100, channels: 4112, of: BFloat16.self)
        }

        // MARK: - Refusals

        private struct Arguments {
            var shape = LinearAttention.ChannelShape(batch: 2, tokens: 3, channels: 4)
            var strides = LinearAttention.ElementwiseRecurrence.Strides()
            var x = [Float](repeating: 1, count: 24)
            var logDecay = [Float](repeating: -1, count: 24)
            var offsets: [Int]?
            var initialState: [Float]?
            var finalState: [Float]?
            var threads = 1
        }

        private func refused(_ change: (inout Arguments) -> Void) -> KernelError? {
            var a = Arguments()
            change(&a)
            let (x, logDecay, offsets, initial) = (a.x, a.logDecay, a.offsets, a.initialState)
            var (h, final) = ([Float](repeating: -80, count: 24), a.finalState)
            let found = refusal {
                var output = h.mutableSpan
                try LinearAttention.ElementwiseRecurrence.forward(
                    x.span, logDecay: logDecay.span, into: &output, shape: a.shape,
                    strides: a.strides, offsets: offsets?.span, initialState: initial?.span,
                    finalState: final?.mutableSpan, threads: a.threads, workspace: Workspace())
            }
            if found != nil {
                #expect(h == [Float](repeating: -80, count: 24) && final == a.finalState)
            }
            return found
        }

        @Test func refusals() {
            #expect(refused { _ in } == nil)
            #expect(
                refused { $0.shape.tokens = -1 }
                    == .outOfRange(argument: "tokens", allowed: ">= 0", actual: "-1"))
            #expect(
                refused { $0.x.removeLast() } == .tooSmall(argument: "x", minimum: 24, actual: 23))
            #expect(
                refused { $0.logDecay.removeLast() }
                    == .tooSmall(argument: "logDecay", minimum: 24, actual: 23))
            #expect(
                refused { $0.strides.x.token = 3 }
                    == .tooSmall(argument: "xStrides.token", minimum: 4, actual: 3))
            #expect(
                refused { $0.strides.output.batch = 11 }
                    == .tooSmall(argument: "outputStrides.batch", minimum: 12, actual: 11))
            #expect(
                refused { $0.strides.output.token = 5 }
                    == .tooSmall(argument: "output", minimum: 29, actual: 24))
            #expect(
                refused { $0.strides.x.token = -5 }
                    == .outOfRange(argument: "xStrides.token", allowed: ">= 0", actual: "-5"))
            #expect(
                refused { $0.initialState = [1] }
                    == .countMismatch(argument: "initialState", expected: 8, actual: 1))
            #expect(
                refused { $0.finalState = [1] }
                    == .countMismatch(argument: "finalState", expected: 8, actual: 1))
            #expect(
                refused { $0.threads = -1 }
                    == .outOfRange(argument: "threads", allowed: ">= 0", actual: "-1"))
        }

        @Test func refusedOffsets() {
            func refusedOffsets(_ offsets: [Int], batch: Int = 1) -> KernelError? {
                refused {
                    $0.shape = .init(batch: batch, tokens: 6, channels: batch == 1 ? 4 : 2)
                    $0.offsets = offsets
                }
            }
            #expect(refusedOffsets([0, 2, 2, 6]) == nil)
            #expect(
                refusedOffsets([0, 6], batch: 2)
                    == .conflict(argument: "offsets", reason: "only with batch 1"))
            #expect(
                refusedOffsets([]) == .tooSmall(argument: "offsets", minimum: 1, actual: 0))
            #expect(
                refusedOffsets([1, 6])
                    == .outOfRange(argument: "offsets[0]", allowed: "0", actual: "1"))
            #expect(
                refusedOffsets([0, 4, 3, 6])
                    == .outOfRange(
                        argument: "offsets[2]", allowed: "not below the one before", actual: "3"))
            #expect(
                refusedOffsets([0, 4, 5])
                    == .outOfRange(
                        argument: "offsets[2]", allowed: "the number of tokens", actual: "5"))
        }

        @Test func refusedGradients() {
            let numbers = [Float](repeating: 1, count: 12)
            var gradient = numbers
            let missing = refusal {
                try LinearAttention.ElementwiseRecurrence.backward(
                    logDecay: numbers.span, outputGradient: numbers.span,
                    logDecayGradient: gradient.mutableSpan, shape: .init(tokens: 3, channels: 4),
                    workspace: Workspace())
            }
            #expect(
                missing == .conflict(argument: "output", reason: "needed with logDecayGradient"))
            let short = refusal {
                try LinearAttention.ElementwiseRecurrence.backward(
                    logDecay: numbers.span, outputGradient: numbers.span,
                    finalStateGradient: numbers.span, xGradient: gradient.mutableSpan,
                    shape: .init(tokens: 3, channels: 4), workspace: Workspace())
            }
            #expect(
                short == .countMismatch(argument: "finalStateGradient", expected: 4, actual: 12))
            #expect(gradient == numbers)
        }
    }
}
