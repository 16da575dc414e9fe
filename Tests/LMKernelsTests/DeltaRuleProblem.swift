import LMKernels
import LMKernelsReference

@testable import lmk

typealias DeltaRule = LMKernels.DeltaRule
typealias ReferenceDeltaRule = LMKernelsReference.DeltaRule

/// A random problem, as the kernel and as the reference see it. Arrays are dense and hold numbers
/// that the storage type has; calls lay them out as `layout` says, with NaN around the rows.
struct DeltaRuleProblem<Element: StorageValue> {
    var shape: DeltaRule.Shape
    var options = DeltaRule.Options(threads: 1)
    var layout = Layout.apart
    var query: [Float]
    var key: [Float]
    var value: [Float]
    /// nil in the generalised form.
    var beta: [Float]?
    var a: [Float]?
    var b: [Float]?
    var logDecay: [Float]?
    var initialState: [Float]?
    var offsets: [Int]?
    var outputGradient: [Float]
    var finalStateGradient: [Float]?

    enum Layout: CaseIterable {
        case tokenMajor, headMajor, apart
    }

    /// Without states or options: keys just below unit length, rates from 0 to 2.
    init(
        batch: Int = 1, tokens: Int, steps: Int = 1, heads: Int = 1, keyHeads: Int = 1,
        keyWidth: Int, valueWidth: Int, decay: DeltaRule.Decay = .none,
        isGeneralized: Bool = false, offsets: [Int]? = nil, seed: UInt64 = 1
    ) {
        var random = SeededGenerator(seed: seed)
        shape = .init(
            batch: batch, tokens: tokens, steps: steps, heads: heads, keyHeads: keyHeads,
            keyWidth: keyWidth, valueWidth: valueWidth)
        options.decay = decay
        self.offsets = offsets
        let rows = batch * tokens
        func numbers(_ count: Int, _ range: ClosedRange<Float> = -1...1) -> [Float] {
            (0..<count).map { _ in Element(.random(in: range, using: &random)).float }
        }
        query = numbers(rows * heads * keyWidth)
        key = unitRows(numbers(rows * steps * keyHeads * keyWidth), keyWidth, Element.self)
        value = numbers(rows * steps * keyHeads * valueWidth)
        outputGradient = numbers(rows * heads * valueWidth)
        if isGeneralized {
            // D - beta n n^T has no eigenvalue outside [-1, 1].
            let n = key
            (a, b) = (n, n)
            key = numbers(key.count)
            for row in 0..<rows * keyHeads {
                let rate = Float.random(in: 0...1, using: &random)
                for i in row * keyWidth..<(row + 1) * keyWidth {
                    b![i] = Element(-rate * n[i]).float
                }
            }
        } else {
            setRates(0...2, seed: seed &+ 2)
        }
        setDecays(-0.2...0, seed: seed &+ 1)
    }

    /// Rates of this range.
    mutating func setRates(_ range: ClosedRange<Float>, seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        beta = (0..<shape.batch * shape.tokens * shape.steps * shape.heads).map { _ in
            .random(in: range, using: &random)
        }
    }

    /// Logits in place of rates.
    mutating func setLogits(_ kind: DeltaRule.Rates, seed: UInt64) {
        setRates(-4...4, seed: seed)
        options.rates = kind
    }

    /// Log-decays of this range, in the shape that the decay has.
    mutating func setDecays(_ range: ClosedRange<Float>, seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let rows = shape.batch * shape.tokens * shape.heads
        let count = options.decay == .key ? rows * shape.keyWidth : rows
        logDecay =
            options.decay == .none
            ? nil : (0..<count).map { _ in Float.random(in: range, using: &random) }
    }

    /// Initial states and gradients of the last ones.
    mutating func addStates(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        initialState = (0..<stateCount).map { _ in .random(in: -2...2, using: &random) }
        finalStateGradient = (0..<stateCount).map { _ in .random(in: -1...1, using: &random) }
    }

    /// Some tokens of a problem with batch 1.
    func part(_ tokens: Range<Int>) -> Self {
        var part = self
        let all = shape.tokens
        part.shape.tokens = tokens.count
        func rows(_ x: [Float]) -> [Float] {
            let width = x.count / all
            return Array(x[tokens.lowerBound * width..<tokens.upperBound * width])
        }
        part.query = rows(query)
        part.key = rows(key)
        part.value = rows(value)
        part.beta = beta.map(rows)
        part.a = a.map(rows)
        part.b = b.map(rows)
        part.logDecay = logDecay.map(rows)
        part.outputGradient = rows(outputGradient)
        return part
    }

    /// Options by the bits of `choice`: states, unit length, states at a stride, logits.
    mutating func choose(_ choice: Int, seed: UInt64) {
        if choice & 1 != 0 { addStates(seed: seed &+ 2) }
        if choice & 2 != 0 {
            options.unitLengthEpsilon = 1e-3
            key = key.map { Element($0 * 3).float }
        }
        if choice & 4 != 0 { options.stateStride = 5 }
        if choice & 8 != 0, beta != nil {
            setLogits(choice & 1 != 0 ? .sigmoid : .twiceSigmoid, seed: seed &+ 3)
        }
    }

    var sequences: Int { offsets.map { $0.count - 1 } ?? shape.batch }
    /// Elements of all states.
    var stateCount: Int { sequences * shape.heads * shape.keyWidth * shape.valueWidth }
}

/// Rows of just below unit length, so that rounding does not take them above it.
func unitRows<Element: StorageValue>(
    _ x: [Float], _ width: Int, _ type: Element.Type
) -> [Float] {
    let most = 1 - 2 * Float(Element.storageType.unit)
    var x = x
    for row in 0..<x.count / width {
        let range = row * width..<(row + 1) * width
        let norm = x[range].reduce(0) { $0 + $1 * $1 }.squareRoot()
        for i in range { x[i] = Element(x[i] * (most / max(norm, 0x1p-20))).float }
    }
    return x
}

/// Where two arrays first differ in a bit, and nowhere for NaN. A comparison of whole arrays would
/// print them, and search for the shortest way from one to the other.
func place(_ found: [Float], _ expected: [Float]) -> Int? {
    found.count == expected.count ? firstDifference(found, expected) : -1
}

// MARK: - The kernel

extension DeltaRuleProblem {
    /// What calls give, dense; what was not asked for is empty.
    struct Found: Equatable {
        var output: [Float] = []
        var finalState: [Float] = []
        var states: [Float] = []
        var query: [Float] = []
        var key: [Float] = []
        var value: [Float] = []
        var beta: [Float] = []
        var a: [Float] = []
        var b: [Float] = []
        var logDecay: [Float] = []
        var initialState: [Float] = []
        /// Whether what lies around rows was left alone.
        var isFillerKept = true

        var arrays: [(name: String, values: [Float])] {
            [
                ("o", output), ("state", finalState), ("states", states), ("dq", query),
                ("dk", key), ("dv", value), ("dbeta", beta), ("da", a), ("db", b),
                ("dg", logDecay), ("dS", initialState),
            ]
        }

        /// The first place where a bit is not that of `other`. NaN has none to compare.
        func difference(from other: Found) -> String? {
            for (array, expected) in zip(arrays, other.arrays) {
                if let i = place(array.values, expected.values) { return "\(array.name)[\(i)]" }
            }
            return nil
        }
    }

    private struct Grids {
        var query, key, value, beta, vector, logDecay, output: TokenGrid
    }

    private func grids(gap: Int) -> Grids {
        func grid(_ tokens: Int, _ heads: Int, _ width: Int) -> TokenGrid {
            var grid = TokenGrid(
                batch: shape.batch, tokens: tokens, heads: heads, width: width)
            grid.isHeadMajor = layout == .headMajor
            if layout == .apart { (grid.gap, grid.tail) = (gap, 4) }
            return grid
        }
        let (tokens, rows) = (shape.tokens, shape.tokens * shape.steps)
        return Grids(
            query: grid(tokens, shape.heads, shape.keyWidth),
            key: grid(rows, shape.keyHeads, shape.keyWidth),
            value: grid(rows, shape.keyHeads, shape.valueWidth), beta: grid(rows, shape.heads, 1),
            vector: grid(tokens, shape.keyHeads, shape.keyWidth),
            logDecay: grid(tokens, shape.heads, options.decay == .key ? shape.keyWidth : 1),
            output: grid(tokens, shape.heads, shape.valueWidth))
    }

    /// With strides: those of inputs, and those of gradients.
    private func strided(_ inputs: Grids, _ gradients: Grids) -> DeltaRule.Shape {
        var shape = shape
        shape.queryStrides = inputs.query.strides
        shape.keyStrides = inputs.key.strides
        shape.valueStrides = inputs.value.strides
        shape.betaStrides = inputs.beta.strides
        shape.aStrides = inputs.vector.strides
        shape.bStrides = inputs.vector.strides
        shape.logDecayStrides = inputs.logDecay.strides
        shape.outputStrides = gradients.output.strides
        shape.outputGradientStrides = inputs.output.strides
        shape.queryGradientStrides = gradients.query.strides
        shape.keyGradientStrides = gradients.key.strides
        shape.valueGradientStrides = gradients.value.strides
        shape.betaGradientStrides = gradients.beta.strides
        shape.aGradientStrides = gradients.vector.strides
        shape.bGradientStrides = gradients.vector.strides
        shape.logDecayGradientStrides = gradients.logDecay.strides
        return shape
    }

    /// Tensors in their layouts.
    private struct Inputs {
        var query, key, value: [Element]
        var beta: [Float]?
        var a, b: [Element]?
        var logDecay: [Float]?

        init(_ problem: DeltaRuleProblem, _ grids: Grids) {
            query = grids.query.spread(problem.query, as: Element.self)
            key = grids.key.spread(problem.key, as: Element.self)
            value = grids.value.spread(problem.value, as: Element.self)
            beta = problem.beta.map { grids.beta.spread($0, as: Float.self) }
            a = problem.a.map { grids.vector.spread($0, as: Element.self) }
            b = problem.b.map { grids.vector.spread($0, as: Element.self) }
            logDecay = problem.logDecay.map { grids.logDecay.spread($0, as: Float.self) }
        }
    }

    private func empty(_ count: Int) -> [Float] { Array(repeating: Grid.filler, count: count) }

    func forward(workspace: Workspace = Workspace()) throws -> Found {
        let (inputGrids, outputs) = (grids(gap: 3), grids(gap: 5))
        let shape = strided(inputGrids, outputs)
        let inputs = Inputs(self, inputGrids)
        var o = outputs.output.empty(of: Element.self)
        var state = empty(stateCount)
        let size = shape.heads * shape.keyWidth * shape.valueWidth
        var states =
            options.stateStride > 1
            ? empty(
                size * shape.storedStates(stride: options.stateStride, offsets: offsets?.span))
            : nil
        try DeltaRule.forward(
            query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
            beta: inputs.beta?.span, a: inputs.a?.span, b: inputs.b?.span,
            logDecay: inputs.logDecay?.span, initialState: initialState?.span,
            offsets: offsets?.span, output: o.mutableSpan, finalState: state.mutableSpan,
            states: states?.mutableSpan, shape: shape, options: options, workspace: workspace)
        var found = Found(
            output: outputs.output.dense(o), finalState: state, states: states ?? [])
        found.isFillerKept = outputs.output.hasIntactGaps(o)
        return found
    }

    /// Dense, with the state in place.
    func forwardInPlace(workspace: Workspace = Workspace()) throws -> Found {
        var dense = self
        dense.layout = .tokenMajor
        let grids = dense.grids(gap: 0)
        let inputs = Inputs(dense, grids)
        var o = grids.output.empty(of: Element.self)
        var state = initialState ?? [Float](repeating: 0, count: stateCount)
        var span = state.mutableSpan
        try DeltaRule.forward(
            query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
            beta: inputs.beta?.span, a: inputs.a?.span, b: inputs.b?.span,
            logDecay: inputs.logDecay?.span, inPlace: &span, offsets: offsets?.span,
            output: o.mutableSpan, shape: shape, options: options, workspace: workspace)
        return Found(output: grids.output.dense(o), finalState: state)
    }

    func backward(workspace: Workspace = Workspace()) throws -> Found {
        let (inputGrids, outputs) = (grids(gap: 3), grids(gap: 5))
        let shape = strided(inputGrids, outputs)
        let inputs = Inputs(self, inputGrids)
        let upstream = inputGrids.output.spread(outputGradient, as: Element.self)
        var dq = outputs.query.empty(of: Element.self)
        var dk = outputs.key.empty(of: Element.self)
        var dv = outputs.value.empty(of: Element.self)
        var dbeta = beta.map { _ in outputs.beta.empty(of: Float.self) }
        var da = a.map { _ in outputs.vector.empty(of: Element.self) }
        var db = b.map { _ in outputs.vector.empty(of: Element.self) }
        var dg = logDecay.map { _ in outputs.logDecay.empty(of: Float.self) }
        var state = empty(stateCount)
        try DeltaRule.backward(
            query: inputs.query.span, key: inputs.key.span, value: inputs.value.span,
            beta: inputs.beta?.span, a: inputs.a?.span, b: inputs.b?.span,
            logDecay: inputs.logDecay?.span, initialState: initialState?.span,
            offsets: offsets?.span, outputGradient: upstream.span,
            finalStateGradient: finalStateGradient?.span, queryGradient: dq.mutableSpan,
            keyGradient: dk.mutableSpan, valueGradient: dv.mutableSpan,
            betaGradient: dbeta?.mutableSpan, aGradient: da?.mutableSpan,
            bGradient: db?.mutableSpan, logDecayGradient: dg?.mutableSpan,
            initialStateGradient: state.mutableSpan, shape: shape, options: options,
            workspace: workspace)
        var found = Found()
        func dense<Number: StorageValue>(_ array: [Number]?, _ grid: TokenGrid) -> [Float] {
            guard let array else { return [] }
            found.isFillerKept = found.isFillerKept && grid.hasIntactGaps(array)
            return grid.dense(array)
        }
        found.query = dense(dq, outputs.query)
        found.key = dense(dk, outputs.key)
        found.value = dense(dv, outputs.value)
        found.beta = dense(dbeta, outputs.beta)
        found.a = dense(da, outputs.vector)
        found.b = dense(db, outputs.vector)
        found.logDecay = dense(dg, outputs.logDecay)
        found.initialState = state
        return found
    }
}

// MARK: - The reference

extension DeltaRuleProblem {
    var reference: ReferenceDeltaRule.Problem {
        func doubles(_ x: [Float]?) -> [Double] { (x ?? []).map { Double($0) } }
        let rates: ReferenceDeltaRule.Beta =
            switch options.rates {
            case .rate: .value(doubles(beta))
            case .sigmoid: .sigmoid(doubles(beta))
            case .twiceSigmoid: .twiceSigmoid(doubles(beta))
            }
        let update: ReferenceDeltaRule.Update =
            a == nil ? .delta(rates) : .general(a: doubles(a), b: doubles(b))
        let decay: ReferenceDeltaRule.Decay =
            switch options.decay {
            case .none: .none
            case .token: .token(doubles(logDecay))
            case .key: .key(doubles(logDecay))
            }
        return ReferenceDeltaRule.Problem(
            shape: .init(
                batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
                keyHeads: shape.keyHeads, keyWidth: shape.keyWidth,
                valueWidth: shape.valueWidth, householderSteps: shape.steps),
            query: doubles(query), key: doubles(key), value: doubles(value), update: update,
            decay: decay, scale: options.scale.map { Double($0) },
            unitLengthEpsilon: options.unitLengthEpsilon.map { Double($0) },
            initialState: initialState.map(doubles), offsets: offsets,
            stateStride: options.stateStride > 1 ? options.stateStride : nil)
    }

    /// By the names of Found.
    func expectedOutputs() -> [String: [Double]] {
        let output = ReferenceDeltaRule.forward(reference)
        return ["o": output.output, "state": output.finalState, "states": output.states]
    }

    func expectedGradients() -> [String: [Double]] {
        let gradients = ReferenceDeltaRule.backward(
            reference, outputGradient: outputGradient.map { Double($0) },
            finalStateGradient: finalStateGradient?.map { Double($0) })
        return [
            "dq": gradients.query, "dk": gradients.key, "dv": gradients.value,
            "dbeta": gradients.beta, "da": gradients.a, "db": gradients.b,
            "dg": gradients.decay, "dS": gradients.initialState,
        ]
    }
}
