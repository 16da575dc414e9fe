extension LinearAttention.Memories {
    /// The inputs of all memories, gathered into packed sequences.
    struct Packed<Element: StorageElement> {
        var shape: Shape
        /// [uses, heads, keyWidth]
        var query: [Element]
        /// [uses, keyHeads, keyWidth]
        var key: [Element]
        /// [uses, keyHeads, valueWidth]
        var value: [Element]
        /// [heads] or [uses, heads(, keyWidth)]
        var logDecay: [Float]?

        init(
            _ query: Span<Element>, _ key: Span<Element>, _ value: Span<Element>,
            _ logDecay: Span<Float>?, _ routing: Routing, _ shape: Shape, _ options: Options
        ) {
            var packed = shape
            packed.batch = 1
            packed.tokens = routing.uses.count
            self.shape = packed
            let projections = routing.uses.map(routing.projection)
            self.query = gather(
                query, routing.uses.map(\.row), width: shape.heads * shape.keyWidth)
            self.key = gather(key, projections, width: shape.keyHeads * shape.keyWidth)
            self.value = gather(value, projections, width: shape.keyHeads * shape.valueWidth)
            guard let logDecay else { return }
            switch options.decay {
            case .none: self.logDecay = []
            case .head: self.logDecay = gather(logDecay, [0], width: shape.heads)
            case .token: self.logDecay = gather(logDecay, projections, width: shape.heads)
            case .key:
                self.logDecay = gather(
                    logDecay, projections, width: shape.heads * shape.keyWidth)
            }
        }
    }

    /// do of every use, times its weight.
    static func weighted<Element: StorageElement>(
        _ outputGradient: Span<Element>, _ weights: Span<Float>, _ packed: Packed<Element>,
        _ routing: Routing
    ) throws(KernelError) -> [Element] {
        let width = packed.shape.heads * packed.shape.valueWidth
        let gradient = try floats(outputGradient)
        var weighted = [Float](repeating: 0, count: routing.uses.count * width)
        for (i, use) in routing.uses.enumerated() {
            let weight = routing.weight(use).map { weights[$0] } ?? 1
            add(gradient, row: use.row, times: weight, to: &weighted, row: i, width: width)
        }
        var result = zeros(of: Element.self, count: weighted.count)
        var span = result.mutableSpan
        try Elementwise.convert(weighted.span, into: &span)
        return result
    }

    /// The gradients of the weights, do . o^(m) with the outputs computed again.
    static func differentiateWeights<Element: StorageElement>(
        _ packed: Packed<Element>, _ outputGradient: Span<Element>, _ initialState: Span<Float>?,
        _ routing: Routing, _ options: Options, _ workspace: Workspace,
        into weights: inout MutableSpan<Float>
    ) throws(KernelError) {
        let width = packed.shape.heads * packed.shape.valueWidth
        var part = zeros(of: Element.self, count: routing.uses.count * width)
        try LinearAttention.forward(
            query: packed.query.span, key: packed.key.span, value: packed.value.span,
            logDecay: packed.logDecay?.span, initialState: initialState,
            offsets: routing.offsets.span, output: part.mutableSpan, shape: packed.shape,
            options: options, workspace: workspace)
        let read = try floats(part.span)
        let gradient = try floats(outputGradient)
        for (i, use) in routing.uses.enumerated() {
            guard let index = routing.weight(use) else { continue }
            var sum: Float = 0
            for e in 0..<width { sum += gradient[use.row * width + e] * read[i * width + e] }
            weights[index] = sum
        }
    }
}

// MARK: - Rows

extension LinearAttention.Memories {
    static func zeros<Element: StorageElement>(of type: Element.Type, count: Int) -> [Element] {
        unsafe [Element](unsafeUninitializedCapacity: count) { buffer, initialized in
            unsafe UnsafeMutableRawBufferPointer(buffer).initializeMemory(
                as: UInt8.self, repeating: 0)
            initialized = count
        }
    }

    static func floats<Element: StorageElement>(
        _ x: Span<Element>
    ) throws(KernelError) -> [Float] {
        var y = [Float](repeating: 0, count: x.count)
        var span = y.mutableSpan
        try Elementwise.convert(x, into: &span)
        return y
    }

    /// The rows of this width, one after the other.
    static func gather<Element: StorageElement>(
        _ x: Span<Element>, _ rows: [Int], width: Int
    ) -> [Element] {
        let count = rows.count * width
        // Whole rows: the loop over their elements is not ours.
        return unsafe [Element](unsafeUninitializedCapacity: count) { buffer, initialized in
            unsafe x.withUnsafeBufferPointer { x in
                guard let from = x.baseAddress, let to = buffer.baseAddress else { return }
                for (i, row) in rows.enumerated() {
                    unsafe (to + i * width).initialize(from: from + row * width, count: width)
                }
            }
            initialized = count
        }
    }

    /// Adds row i of `x` to row rows[i] of `sum`, for all i.
    static func scatter<Element: StorageElement>(
        _ x: Span<Element>, _ rows: [Int], into sum: inout MutableSpan<Element>
    ) throws(KernelError) {
        let x = try floats(x)
        var floats = [Float](repeating: 0, count: sum.count)
        let width = rows.isEmpty ? 0 : x.count / rows.count
        for (i, row) in rows.enumerated() {
            add(x, row: i, times: 1, to: &floats, row: row, width: width)
        }
        try Elementwise.convert(floats.span, into: &sum)
    }

    /// sum[row] += weight x[row]
    static func add(
        _ x: [Float], row from: Int, times weight: Float, to sum: inout [Float], row to: Int,
        width: Int
    ) {
        for e in 0..<width { sum[to * width + e] += weight * x[from * width + e] }
    }
}
