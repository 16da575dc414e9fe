import LMKernels
import LMKernelsReference
import Testing

@testable import lmk

extension KernelSuite {
    /// Mixture of memories.
    @Suite struct LinearAttentionMemoriesTests {
        private typealias Memories = LinearAttention.Memories

        private struct Problem<Element: StorageValue> {
            var shape: LinearAttention.Shape
            var options: LinearAttention.Options
            var memories = 4
            var choices = 2
            var hasSharedMemory: Bool
            var isProjectedPerMemory: Bool
            var offsets: [Int]?
            var selected: [Int]
            var weights: [Float]
            var query: [Float]
            var key: [Float]
            var value: [Float]
            var logDecay: [Float]?
            var initialState: [Float]?
            var outputGradient: [Float]
            var finalStateGradient: [Float]?

            /// Shared memory, projections, packed sequences and states by bits of `choice`.
            init(_ decay: LinearAttention.Decay, choice: Int) {
                var random = SeededGenerator(seed: UInt64(choice))
                func numbers(_ count: Int, _ range: ClosedRange<Float> = -1...1) -> [Float] {
                    (0..<count).map { _ in Element(.random(in: range, using: &random)).float }
                }
                hasSharedMemory = choice & 1 != 0
                isProjectedPerMemory = choice & 2 != 0
                offsets = choice & 4 != 0 ? [0, 9, 9, 60] : nil
                let batch = offsets == nil ? 2 : 1
                shape = .init(
                    batch: batch, tokens: 60, heads: 4, keyHeads: 2, keyWidth: 17, valueWidth: 20)
                options = .init(decay: decay, threads: 1 + choice % 3)
                let rows = batch * 60
                let states = memories + (hasSharedMemory ? 1 : 0)
                let projections = isProjectedPerMemory ? choices + (hasSharedMemory ? 1 : 0) : 1
                // Memory 3 is nobody's first choice, and many tokens have none of it.
                selected = (0..<rows).flatMap { _ in
                    let first = Int.random(in: 0..<3, using: &random)
                    return [first, (first + Int.random(in: 1..<4, using: &random)) % 4]
                }
                weights = (0..<rows * choices).map { _ in .random(in: 0...1, using: &random) }
                query = numbers(rows * 4 * 17)
                key = numbers(rows * projections * 2 * 17)
                value = numbers(rows * projections * 2 * 20)
                outputGradient = numbers(rows * 4 * 20)
                let decays =
                    switch decay {
                    case .none: 0
                    case .head: 4
                    case .token: rows * projections * 4
                    case .key: rows * projections * 4 * 17
                    }
                logDecay =
                    decay == .none
                    ? nil
                    : (0..<decays).map { _ in .random(in: -0.3...0, using: &random) }
                guard choice & 8 != 0 else { return }
                let count = (offsets == nil ? 2 : 3) * states * 4 * 17 * 20
                initialState = (0..<count).map { _ in .random(in: -1...1, using: &random) }
                finalStateGradient = (0..<count).map { _ in .random(in: -1...1, using: &random) }
            }

            var routing: Memories.Routing {
                get throws {
                    try Memories.Routing(
                        selected: selected.span, batch: shape.batch, tokens: shape.tokens,
                        memories: memories, choices: choices, hasSharedMemory: hasSharedMemory,
                        isProjectedPerMemory: isProjectedPerMemory, offsets: offsets?.span)
                }
            }

            var reference: ReferenceLinearAttention.Memories.Problem {
                func doubles(_ x: [Float]) -> [Double] { x.map { Double($0) } }
                let g = doubles(logDecay ?? [])
                return .init(
                    shape: .init(
                        batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
                        keyHeads: shape.keyHeads, keyWidth: shape.keyWidth,
                        valueWidth: shape.valueWidth),
                    memories: memories, choices: choices, selected: selected,
                    weights: doubles(weights), hasSharedMemory: hasSharedMemory,
                    isProjectedPerMemory: isProjectedPerMemory, query: doubles(query),
                    key: doubles(key), value: doubles(value),
                    decay: {
                        switch options.decay {
                        case .none: .none
                        case .head: .head(g)
                        case .token: .token(g)
                        case .key: .key(g)
                        }
                    }(), initialState: initialState.map(doubles), offsets: offsets)
            }

            var stateCount: Int {
                (offsets?.count ?? shape.batch + 1) - 1
            }

            func forward() throws -> (output: [Float], state: [Float]) {
                let (q, k, v) = (stored(query), stored(key), stored(value))
                let routing = try routing
                var output = stored(outputGradient.map { _ in .nan })
                var state = [Float](
                    repeating: .nan, count: stateCount * routing.states * 4 * 17 * 20)
                try Memories.forward(
                    query: q.span, key: k.span, value: v.span, logDecay: logDecay?.span,
                    weights: weights.span, initialState: initialState?.span,
                    output: output.mutableSpan, finalState: state.mutableSpan, routing: routing,
                    shape: shape, options: options, workspace: Workspace())
                return (output.map(\.float), state)
            }

            func stored(_ x: [Float]) -> [Element] { x.map { Element($0) } }

            /// By the names of the reference.
            func backward() throws -> [String: [Float]] {
                let (q, k, v) = (stored(query), stored(key), stored(value))
                let gradient = stored(outputGradient)
                let routing = try routing
                func empty(_ x: [Float]) -> [Float] { x.map { _ in .nan } }
                var dq = stored(empty(query))
                var dk = stored(empty(key))
                var dv = stored(empty(value))
                var dg = logDecay.map(empty)
                var dw = empty(weights)
                var state = [Float](
                    repeating: .nan, count: stateCount * routing.states * 4 * 17 * 20)
                try Memories.backward(
                    query: q.span, key: k.span, value: v.span, logDecay: logDecay?.span,
                    weights: weights.span, initialState: initialState?.span,
                    outputGradient: gradient.span, finalStateGradient: finalStateGradient?.span,
                    queryGradient: dq.mutableSpan, keyGradient: dk.mutableSpan,
                    valueGradient: dv.mutableSpan, logDecayGradient: dg?.mutableSpan,
                    weightsGradient: dw.mutableSpan, initialStateGradient: state.mutableSpan,
                    routing: routing, shape: shape, options: options, workspace: Workspace())
                return [
                    "query": dq.map(\.float), "key": dk.map(\.float), "value": dv.map(\.float),
                    "decay": dg ?? [], "weights": dw, "state": state,
                ]
            }
        }

        private func check<Element: StorageValue>(
            _ problem: Problem<Element>, _ label: String, tolerance: Double
        ) throws {
            let expected = ReferenceLinearAttention.Memories.forward(problem.reference)
            let gradients = ReferenceLinearAttention.Memories.backward(
                problem.reference, outputGradient: problem.outputGradient.map { Double($0) },
                finalStateGradient: problem.finalStateGradient?.map { Double($0) })
            let slopes = [
                "query": gradients.query, "key": gradients.key, "value": gradients.value,
                "decay": gradients.decay, "weights": gradients.weights,
                "state": gradients.initialState,
            ]
            try withEachInstructionSet(of: .linearAttention(Element.storageType)) { set in
                let (output, state) = try problem.forward()
                let error = relativeError(output, expected.output)
                #expect(error < tolerance, "\(label) \(set): o \(error)")
                let stateError = relativeError(state, expected.finalState)
                // Measured on tiles: 2.2e-6, else 3.9e-7.
                let isTiled = Element.storageType == .bfloat16 && set == .amx
                #expect(stateError < (isTiled ? 5e-6 : 1e-6), "\(label) \(set): \(stateError)")
                for (name, values) in try problem.backward() {
                    let error = relativeError(values, slopes[name]!)
                    #expect(error < tolerance, "\(label) \(set): \(name) \(error)")
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases, 0..<16)
        func againstTheReference(decay: LinearAttention.Decay, choice: Int) throws {
            try check(
                Problem<Float>(decay, choice: choice), "\(decay) \(choice)", tolerance: 2e-6)
            guard choice % 5 == 0 else { return }
            try check(
                Problem<BFloat16>(decay, choice: choice), "\(decay) \(choice)", tolerance: 8e-3)
            try check(
                Problem<Float16>(decay, choice: choice), "\(decay) \(choice)", tolerance: 1e-3)
        }

        /// One call for each memory, on the tokens that it gets.
        @Test func equalsTheLoop() throws {
            var problem = Problem<Float>(.token, choice: 1)
            problem.options.form = .chunked
            let found = try problem.forward()
            var sum = [Float](repeating: 0, count: found.output.count)
            let shape = problem.shape
            for memory in 0...problem.memories {
                for sequence in 0..<2 {
                    var uses: [(row: Int, weight: Float)] = []
                    for row in sequence * 60..<(sequence + 1) * 60 {
                        if memory == problem.memories { uses.append((row, 1)) }
                        for r in 0..<2 where problem.selected[row * 2 + r] == memory {
                            uses.append((row, problem.weights[row * 2 + r]))
                        }
                    }
                    func rows(_ x: [Float]) -> [Float] {
                        let width = x.count / 120
                        return uses.flatMap { x[$0.row * width..<($0.row + 1) * width] }
                    }
                    let (q, k, v) = (rows(problem.query), rows(problem.key), rows(problem.value))
                    let g = rows(problem.logDecay!)
                    var output = [Float](repeating: 0, count: uses.count * 80)
                    var state = [Float](repeating: 0, count: 4 * 17 * 20)
                    var part = shape
                    part.batch = 1
                    part.tokens = uses.count
                    try LinearAttention.forward(
                        query: q.span, key: k.span, value: v.span, logDecay: g.span,
                        output: output.mutableSpan, finalState: state.mutableSpan, shape: part,
                        options: problem.options, workspace: Workspace())
                    let place = (sequence * 5 + memory) * state.count
                    #expect(
                        bits(Array(found.state[place..<place + state.count])) == bits(state),
                        "memory \(memory)")
                    for (i, use) in uses.enumerated() {
                        for e in 0..<80 { sum[use.row * 80 + e] += use.weight * output[i * 80 + e] }
                    }
                }
            }
            #expect(relativeError(found.output, sum.map { Double($0) }) < 2e-7)
        }

        @Test func nothing() throws {
            let empty: [Int] = []
            let floats: [Float] = []
            for batch in [0, 2] {
                let routing = try Memories.Routing(
                    selected: empty.span, batch: batch, tokens: 0, memories: 3, choices: 2)
                let shape = LinearAttention.Shape(
                    batch: batch, tokens: 0, heads: 1, keyWidth: 2, valueWidth: 2)
                var output = floats
                var state = [Float](repeating: .nan, count: batch * 3 * 4)
                try Memories.forward(
                    query: floats.span, key: floats.span, value: floats.span,
                    weights: floats.span, output: output.mutableSpan,
                    finalState: state.mutableSpan, routing: routing, shape: shape,
                    workspace: Workspace())
                #expect(state.allSatisfy { $0 == 0 })
            }
        }

        // MARK: - Refusals

        private func error(_ call: () throws -> Void) -> KernelError? {
            do {
                try call()
                return nil
            } catch {
                return error as? KernelError
            }
        }

        @Test func routings() {
            func refusal(
                _ selected: [Int], batch: Int = 1, tokens: Int = 2, memories: Int = 3,
                choices: Int = 2, offsets: [Int]? = nil
            ) -> KernelError? {
                error {
                    _ = try Memories.Routing(
                        selected: selected.span, batch: batch, tokens: tokens,
                        memories: memories, choices: choices, offsets: offsets?.span)
                }
            }
            #expect(refusal([0, 1, 2, 0]) == nil)
            #expect(
                refusal([0, 1, 2])
                    == .countMismatch(argument: "selected", expected: 4, actual: 3))
            #expect(
                refusal([0, 1, 2, 3])
                    == .badEntry(argument: "selected", index: 3, value: 3, limit: 3))
            #expect(
                refusal([0, -1, 2, 1])
                    == .badEntry(argument: "selected", index: 1, value: -1, limit: 3))
            #expect(
                refusal([0, 1, 2, 2])
                    == .conflict(argument: "selected", reason: "a token's memories are different"))
            #expect(
                refusal([], memories: 0)
                    == .outOfRange(argument: "memories", allowed: ">= 1", actual: "0"))
            for choices in [0, 4] {
                #expect(
                    refusal([], choices: choices)
                        == .outOfRange(
                            argument: "choices", allowed: "from 1 to memories",
                            actual: "\(choices)"))
            }
            #expect(
                refusal([], tokens: -1)
                    == .outOfRange(argument: "tokens", allowed: ">= 0", actual: "-1"))
            #expect(refusal([], tokens: .max) == .overflow(argument: "selected"))
            #expect(
                refusal([0, 1, 2, 0], batch: 2, tokens: 1, offsets: [0, 1])
                    == .conflict(argument: "offsets", reason: "packed sequences have batch 1"))
            let wrong: [([Int], index: Int, value: Int, limit: Int)] = [
                ([1, 2], 0, 1, 1), ([0, 2, 1, 2], 2, 1, 3), ([0, 3, 2], 1, 3, 3),
                ([0, 1], 1, 1, 3),
            ]
            for (offsets, index, value, limit) in wrong {
                #expect(
                    refusal([0, 1, 2, 0], offsets: offsets)
                        == .badEntry(
                            argument: "offsets", index: index, value: value, limit: limit))
            }
        }

        @Test func calls() throws {
            func refusal(_ change: (inout Problem<Float>) -> Void) -> KernelError? {
                var problem = Problem<Float>(.token, choice: 8)
                change(&problem)
                return error { _ = try problem.forward() }
            }
            #expect(refusal { _ in } == nil)
            #expect(
                refusal { $0.query.removeLast() }
                    == .countMismatch(argument: "query", expected: 8160, actual: 8159))
            #expect(
                refusal { $0.key.append(0) }
                    == .countMismatch(argument: "key", expected: 4080, actual: 4081))
            #expect(
                refusal { $0.value.removeLast() }
                    == .countMismatch(argument: "value", expected: 4800, actual: 4799))
            #expect(
                refusal { $0.logDecay!.removeLast() }
                    == .countMismatch(argument: "logDecay", expected: 480, actual: 479))
            #expect(
                refusal { $0.weights.removeLast() }
                    == .countMismatch(argument: "weights", expected: 240, actual: 239))
            #expect(
                refusal { $0.initialState!.removeLast() }
                    == .countMismatch(argument: "initialState", expected: 10880, actual: 10879))
            #expect(
                refusal { $0.logDecay = nil }
                    == .conflict(argument: "logDecay", reason: "needed with a decay"))
            #expect(
                refusal { $0.shape = $0.shape.headMajor }
                    == .conflict(argument: "shape", reason: "no strides with memories"))
            #expect(
                refusal { $0.options.isNormalized = true }
                    == .conflict(argument: "isNormalized", reason: "not with memories"))
            #expect(
                refusal { $0.options.isBidirectional = true }
                    == .conflict(argument: "isBidirectional", reason: "not with memories"))
        }
    }
}
