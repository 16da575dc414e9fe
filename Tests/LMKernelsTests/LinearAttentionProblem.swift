import LMKernels
import LMKernelsReference

@testable import lmk

/// A random problem, as the kernel and as the reference see it. Arrays are dense and hold numbers
/// that the storage type has; calls lay them out as `layout` says, with NaN around the rows.
struct LinearAttentionProblem<Element: StorageValue> {
    var shape: LinearAttention.Shape
    var options = LinearAttention.Options(threads: 1)
    var layout = Layout.apart
    var query: [Float]
    var key: [Float]
    var value: [Float]
    var logDecay: [Float]?
    var bonus: [Float]?
    var initialState: [Float]?
    var initialNormalizer: [Float]?
    var offsets: [Int]?
    var outputGradient: [Float]
    var finalStateGradient: [Float]?
    var finalNormalizerGradient: [Float]?

    enum Layout: CaseIterable {
        case tokenMajor, headMajor, apart
    }

    /// Without states or options. A normaliser has positive queries and keys: its divisors are not
    /// near 0.
    init(
        batch: Int = 1, tokens: Int, heads: Int = 1, keyHeads: Int = 1, keyWidth: Int,
        valueWidth: Int, decay: LinearAttention.Decay = .none, isNormalized: Bool = false,
        offsets: [Int]? = nil, seed: UInt64 = 1
    ) {
        var random = SeededGenerator(seed: seed)
        shape = .init(
            batch: batch, tokens: tokens, heads: heads, keyHeads: keyHeads, keyWidth: keyWidth,
            valueWidth: valueWidth)
        options.decay = decay
        options.isNormalized = isNormalized
        self.offsets = offsets
        let rows = batch * tokens
        let range: ClosedRange<Float> = isNormalized ? 0.125...1 : -1...1
        func numbers(_ count: Int, _ range: ClosedRange<Float>) -> [Float] {
            (0..<count).map { _ in Element(.random(in: range, using: &random)).float }
        }
        query = numbers(rows * heads * keyWidth, range)
        key = numbers(rows * keyHeads * keyWidth, range)
        value = numbers(rows * keyHeads * valueWidth, -1...1)
        outputGradient = numbers(rows * heads * valueWidth, -1...1)
        setDecays(-0.2...0, seed: seed &+ 1)
    }

    /// Log-decays of this range, in the shape that the decay has.
    mutating func setDecays(_ range: ClosedRange<Float>, seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let rows = shape.batch * shape.tokens * shape.heads
        let count =
            switch options.decay {
            case .none: 0
            case .head: shape.heads
            case .token: rows
            case .key: rows * shape.keyWidth
            }
        logDecay =
            options.decay == .none
            ? nil : (0..<count).map { _ in Float.random(in: range, using: &random) }
    }

    /// Initial states and gradients of the last ones.
    mutating func addStates(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        func numbers(_ count: Int, _ range: ClosedRange<Float>) -> [Float] {
            (0..<count).map { _ in .random(in: range, using: &random) }
        }
        initialState = numbers(states * shape.valueWidth, -2...2)
        finalStateGradient = numbers(states * shape.valueWidth, -1...1)
        guard options.isNormalized else { return }
        initialNormalizer = numbers(states, 0.125...1)
        finalNormalizerGradient = numbers(states, -1...1)
    }

    mutating func addBonus(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let range: ClosedRange<Float> = options.isNormalized ? 0.25...1 : -1...1
        bonus = (0..<shape.heads * shape.keyWidth).map { _ in
            .random(in: range, using: &random)
        }
    }

    /// Options by the bits of `choice`: states, bonus, unit length, states at a stride.
    mutating func choose(_ choice: Int, seed: UInt64) {
        if choice & 1 != 0 { addStates(seed: seed &+ 2) }
        if choice & 2 != 0 { addBonus(seed: seed &+ 3) }
        if choice & 4 != 0 { options.unitLengthEpsilon = 1e-3 }
        if choice & 8 != 0 { options.stateStride = 5 }
    }

    var sequences: Int { offsets.map { $0.count - 1 } ?? shape.batch }
    /// Rows of all states.
    var states: Int { sequences * shape.heads * shape.keyWidth }
}

// MARK: - Parts of a problem

extension LinearAttentionProblem {
    /// The first `count` tokens of a batch of 1.
    func prefix(_ count: Int) -> Self { tokens(0..<count) }

    /// The tokens of a batch of 1 from `start` on.
    func suffix(from start: Int) -> Self { tokens(start..<shape.tokens) }

    private func tokens(_ range: Range<Int>) -> Self {
        let all = shape.tokens
        func rows(_ x: [Float]) -> [Float] {
            let width = x.count / all
            return Array(x[range.lowerBound * width..<range.upperBound * width])
        }
        var part = self
        part.shape.tokens = range.count
        part.query = rows(query)
        part.key = rows(key)
        part.value = rows(value)
        part.outputGradient = rows(outputGradient)
        if options.decay == .token || options.decay == .key { part.logDecay = logDecay.map(rows) }
        return part
    }

    /// Packed sequence n by itself, with its states.
    func sequence(_ n: Int) -> Self {
        var part = tokens(offsets![n]..<offsets![n + 1])
        part.offsets = nil
        func state(_ x: [Float]?, _ width: Int) -> [Float]? {
            let size = shape.heads * shape.keyWidth * width
            return x.map { Array($0[n * size..<(n + 1) * size]) }
        }
        part.initialState = state(initialState, shape.valueWidth)
        part.initialNormalizer = state(initialNormalizer, 1)
        part.finalStateGradient = state(finalStateGradient, shape.valueWidth)
        part.finalNormalizerGradient = state(finalNormalizerGradient, 1)
        return part
    }
}

extension [Float] {
    /// Of a tensor [tokens, ..].
    func firstTokens(_ count: Int, of tokens: Int) -> [Float] {
        Array(prefix(self.count / tokens * count))
    }
}

// MARK: - The kernel

extension LinearAttentionProblem {
    /// What calls give, dense; what was not asked for is empty.
    struct Found: Equatable {
        var output: [Float] = []
        var finalState: [Float] = []
        var finalNormalizer: [Float] = []
        var states: [Float] = []
        var normalizers: [Float] = []
        var query: [Float] = []
        var key: [Float] = []
        var value: [Float] = []
        var logDecay: [Float] = []
        var bonus: [Float] = []
        var initialState: [Float] = []
        var initialNormalizer: [Float] = []
        /// Whether what lies around rows was left alone.
        var isFillerKept = true

        var arrays: [(name: String, values: [Float])] {
            [
                ("o", output), ("state", finalState), ("normalizer", finalNormalizer),
                ("states", states), ("normalizers", normalizers), ("dq", query), ("dk", key),
                ("dv", value), ("dg", logDecay), ("du", bonus), ("dS", initialState),
                ("dz", initialNormalizer),
            ]
        }

        /// Of everything.
        var bits: [[UInt32]] { arrays.map { $0.values.map(\.bitPattern) } }
    }

    private struct Grids {
        var query, key, value, logDecay, output: TokenGrid
    }

    private func grids(gap: Int) -> Grids {
        func grid(_ heads: Int, _ width: Int) -> TokenGrid {
            var grid = TokenGrid(
                batch: shape.batch, tokens: shape.tokens, heads: heads, width: width)
            grid.isHeadMajor = layout == .headMajor
            if layout == .apart { (grid.gap, grid.tail) = (gap, 4) }
            return grid
        }
        var logDecay = grid(shape.heads, options.decay == .key ? shape.keyWidth : 1)
        if options.decay == .head || options.decay == .none {
            logDecay = TokenGrid(batch: 1, tokens: 1, heads: shape.heads, width: 1)
        }
        return Grids(
            query: grid(shape.heads, shape.keyWidth), key: grid(shape.keyHeads, shape.keyWidth),
            value: grid(shape.keyHeads, shape.valueWidth), logDecay: logDecay,
            output: grid(shape.heads, shape.valueWidth))
    }

    /// With strides: those of inputs, and those of gradients.
    private func strided(_ inputs: Grids, _ gradients: Grids) -> LinearAttention.Shape {
        var shape = shape
        shape.queryStrides = inputs.query.strides
        shape.keyStrides = inputs.key.strides
        shape.valueStrides = inputs.value.strides
        shape.logDecayStrides = inputs.logDecay.strides
        shape.outputStrides = gradients.output.strides
        shape.outputGradientStrides = inputs.output.strides
        shape.queryGradientStrides = gradients.query.strides
        shape.keyGradientStrides = gradients.key.strides
        shape.valueGradientStrides = gradients.value.strides
        shape.logDecayGradientStrides = gradients.logDecay.strides
        return shape
    }

    private func empty(_ grid: TokenGrid) -> [Element] {
        Array(repeating: Element(Grid.filler), count: grid.count)
    }

    private func empty(_ count: Int, if isAskedFor: Bool = true) -> [Float]? {
        isAskedFor ? Array(repeating: Grid.filler, count: count) : nil
    }

    func forward(workspace: Workspace = Workspace()) throws -> Found {
        let (inputs, outputs) = (grids(gap: 3), grids(gap: 5))
        let shape = strided(inputs, outputs)
        let q = inputs.query.spread(query, as: Element.self)
        let k = inputs.key.spread(key, as: Element.self)
        let v = inputs.value.spread(value, as: Element.self)
        let g = logDecay.map { inputs.logDecay.spread($0, as: Float.self) }
        var o = empty(outputs.output)
        let hasState = !options.isBidirectional
        let hasNormalizer = hasState && options.isNormalized
        let hasStored = hasState && options.stateStride > 1
        let stored =
            shape.storedStates(stride: options.stateStride, offsets: offsets?.span)
            * shape.heads * shape.keyWidth
        var state = empty(states * shape.valueWidth, if: hasState)
        var normalizer = empty(states, if: hasNormalizer)
        var stops = empty(stored * shape.valueWidth, if: hasStored)
        var stopNormalizers = empty(stored, if: hasStored && hasNormalizer)
        try LinearAttention.forward(
            query: q.span, key: k.span, value: v.span, logDecay: g?.span, bonus: bonus?.span,
            initialState: initialState?.span, initialNormalizer: initialNormalizer?.span,
            offsets: offsets?.span, output: o.mutableSpan, finalState: state?.mutableSpan,
            finalNormalizer: normalizer?.mutableSpan, states: stops?.mutableSpan,
            normalizers: stopNormalizers?.mutableSpan, shape: shape, options: options,
            workspace: workspace)
        var found = Found(
            output: outputs.output.dense(o), finalState: state ?? [],
            finalNormalizer: normalizer ?? [], states: stops ?? [],
            normalizers: stopNormalizers ?? [])
        found.isFillerKept = outputs.output.hasIntactGaps(o)
        return found
    }

    func backward(workspace: Workspace = Workspace()) throws -> Found {
        let (inputs, outputs) = (grids(gap: 3), grids(gap: 5))
        let shape = strided(inputs, outputs)
        let q = inputs.query.spread(query, as: Element.self)
        let k = inputs.key.spread(key, as: Element.self)
        let v = inputs.value.spread(value, as: Element.self)
        let g = logDecay.map { inputs.logDecay.spread($0, as: Float.self) }
        let upstream = inputs.output.spread(outputGradient, as: Element.self)
        var dq = empty(outputs.query)
        var dk = empty(outputs.key)
        var dv = empty(outputs.value)
        var dg = g == nil ? nil : empty(outputs.logDecay.count)
        var du = empty(shape.heads * shape.keyWidth, if: bonus != nil)
        var state = empty(states * shape.valueWidth, if: !options.isBidirectional)
        var normalizer = empty(states, if: !options.isBidirectional && options.isNormalized)
        try LinearAttention.backward(
            query: q.span, key: k.span, value: v.span, logDecay: g?.span, bonus: bonus?.span,
            initialState: initialState?.span, initialNormalizer: initialNormalizer?.span,
            offsets: offsets?.span, outputGradient: upstream.span,
            finalStateGradient: finalStateGradient?.span,
            finalNormalizerGradient: finalNormalizerGradient?.span,
            queryGradient: dq.mutableSpan, keyGradient: dk.mutableSpan,
            valueGradient: dv.mutableSpan, logDecayGradient: dg?.mutableSpan,
            bonusGradient: du?.mutableSpan, initialStateGradient: state?.mutableSpan,
            initialNormalizerGradient: normalizer?.mutableSpan, shape: shape, options: options,
            workspace: workspace)
        var found = Found()
        found.query = outputs.query.dense(dq)
        found.key = outputs.key.dense(dk)
        found.value = outputs.value.dense(dv)
        found.logDecay = dg.map { outputs.logDecay.dense($0) } ?? []
        found.bonus = du ?? []
        found.initialState = state ?? []
        found.initialNormalizer = normalizer ?? []
        found.isFillerKept =
            outputs.query.hasIntactGaps(dq) && outputs.key.hasIntactGaps(dk)
            && outputs.value.hasIntactGaps(dv)
            && (dg.map { outputs.logDecay.hasIntactGaps($0) } ?? true)
        return found
    }
}

// MARK: - The reference

extension LinearAttentionProblem {
    var reference: ReferenceLinearAttention.Problem {
        func doubles(_ x: [Float]) -> [Double] { x.map { Double($0) } }
        let g = doubles(logDecay ?? [])
        return ReferenceLinearAttention.Problem(
            shape: .init(
                batch: shape.batch, tokens: shape.tokens, heads: shape.heads,
                keyHeads: shape.keyHeads, keyWidth: shape.keyWidth,
                valueWidth: shape.valueWidth),
            query: unit(query), key: unit(key), value: doubles(value),
            decay: {
                switch options.decay {
                case .none: .none
                case .head: .head(g)
                case .token: .token(g)
                case .key: .key(g)
                }
            }(), scale: options.scale.map { Double($0) }, bonus: bonus.map(doubles),
            initialState: initialState.map(doubles),
            initialNormalizer: initialNormalizer.map(doubles), offsets: offsets,
            isCausal: !options.isBidirectional, isNormalized: options.isNormalized,
            stateStride: options.stateStride > 1 ? options.stateStride : nil)
    }

    /// Rows as they are read.
    private func unit(_ x: [Float]) -> [Double] {
        let x = x.map { Double($0) }
        guard let epsilon = options.unitLengthEpsilon else { return x }
        return ReferenceLinearAttention.l2Normalize(
            x, rows: x.count / shape.keyWidth, columns: shape.keyWidth, epsilon: Double(epsilon))
    }

    private func unitGradient(_ x: [Float], _ gradient: [Double]) -> [Double] {
        guard let epsilon = options.unitLengthEpsilon else { return gradient }
        return ReferenceLinearAttention.l2NormalizeBackward(
            x.map { Double($0) }, outputGradient: gradient, rows: x.count / shape.keyWidth,
            columns: shape.keyWidth, epsilon: Double(epsilon))
    }

    /// By the names of Found.
    func expectedOutputs() -> [String: [Double]] {
        let output = ReferenceLinearAttention.forward(reference)
        return [
            "o": output.output, "state": output.finalState,
            "normalizer": output.finalNormalizer, "states": output.states,
            "normalizers": output.normalizers,
        ]
    }

    func expectedGradients() -> [String: [Double]] {
        let gradients = ReferenceLinearAttention.backward(
            reference, outputGradient: outputGradient.map { Double($0) },
            finalStateGradient: finalStateGradient?.map { Double($0) },
            finalNormalizerGradient: finalNormalizerGradient?.map { Double($0) })
        return [
            "dq": unitGradient(query, gradients.query), "dk": unitGradient(key, gradients.key),
            "dv": gradients.value, "dg": gradients.decay, "du": gradients.bonus,
            "dS": gradients.initialState, "dz": gradients.initialNormalizer,
        ]
    }
}
