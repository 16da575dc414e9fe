extension LinearAttention.Memories {
    /// Which tokens go to which memories. One routing serves forward and backward.
    public struct Routing: Sendable, Hashable {
        /// B.
        public let batch: Int
        /// T.
        public let tokens: Int
        /// M, the shared one not counted.
        public let memories: Int
        /// R, memories of a token.
        public let choices: Int
        /// Whether there is a memory that sees every token with weight 1. In states it comes last,
        /// as memory M.
        public let hasSharedMemory: Bool
        /// Whether keys, values and the decays of tokens have a further extent C after
        /// [batch, tokens]: one entry for each choice, and the last for the shared memory if there
        /// is one.
        public let isProjectedPerMemory: Bool

        /// A token in a memory.
        struct Use: Hashable {
            /// Of [batch, tokens].
            var row: Int
            /// In 0 ..< choices, or `choices` for the shared memory.
            var choice: Int
        }

        /// Sequence by sequence, in each memory by memory, in the order of tokens.
        let uses: [Use]
        /// Where the uses of sequence n in memory m begin, at n * states + m; the end comes last.
        let offsets: [Int]

        /// Sorts tokens by memory: work that grows with their number alone.
        ///
        /// - Parameters:
        ///   - selected: The memories of each token, all different, [batch, tokens, choices].
        ///   - offsets: Packed sequences, as for `LinearAttention.forward`.
        /// - Throws: `outOfRange` for a size; `countMismatch` for `selected`; `badEntry` for one of
        ///   its entries, or of the offsets; `conflict` for a token that has a memory twice, or
        ///   packed sequences in a batch.
        public init(
            selected: Span<Int>, batch: Int = 1, tokens: Int, memories: Int, choices: Int,
            hasSharedMemory: Bool = false, isProjectedPerMemory: Bool = false,
            offsets: Span<Int>? = nil
        ) throws(KernelError) {
            try checkNotNegative("batch", batch)
            try checkNotNegative("tokens", tokens)
            guard memories >= 1 else {
                throw .outOfRange(argument: "memories", allowed: ">= 1", actual: "\(memories)")
            }
            guard (1...memories).contains(choices) else {
                throw .outOfRange(
                    argument: "choices", allowed: "from 1 to memories", actual: "\(choices)")
            }
            let (rows, overflow) = batch.multipliedReportingOverflow(by: tokens)
            guard !overflow, rows <= Int.max / choices else {
                throw .overflow(argument: "selected")
            }
            try checkCount("selected", selected.count, expected: rows * choices)
            try Self.check(selected, memories: memories, choices: choices)
            let starts = try Self.starts(batch: batch, tokens: tokens, offsets)
            self.batch = batch
            self.tokens = tokens
            self.memories = memories
            self.choices = choices
            self.hasSharedMemory = hasSharedMemory
            self.isProjectedPerMemory = isProjectedPerMemory
            (uses, self.offsets) = Self.sort(
                selected, starts, memories: memories, choices: choices,
                hasSharedMemory: hasSharedMemory)
        }

        /// M, and one more with a shared memory.
        public var states: Int { memories + (hasSharedMemory ? 1 : 0) }

        /// C, or 1 where the memories share keys, values and decays.
        var projections: Int {
            isProjectedPerMemory ? choices + (hasSharedMemory ? 1 : 0) : 1
        }

        /// N.
        var sequences: Int { (offsets.count - 1) / states }

        /// Of the weights, [batch, tokens, choices]; nil in the shared memory.
        func weight(_ use: Use) -> Int? {
            use.choice < choices ? use.row * choices + use.choice : nil
        }

        /// Of keys, values and decays: [batch, tokens] or [batch, tokens, C].
        func projection(_ use: Use) -> Int {
            isProjectedPerMemory ? use.row * projections + use.choice : use.row
        }
    }
}

extension LinearAttention.Memories.Routing {
    private static func check(
        _ selected: Span<Int>, memories: Int, choices: Int
    ) throws(KernelError) {
        for i in selected.indices {
            let memory = selected[i]
            guard (0..<memories).contains(memory) else {
                throw .badEntry(argument: "selected", index: i, value: memory, limit: memories)
            }
            for j in (i - i % choices)..<i where selected[j] == memory {
                throw .conflict(argument: "selected", reason: "a token's memories are different")
            }
        }
    }

    /// Where the rows of each sequence begin, and where the last ends.
    private static func starts(
        batch: Int, tokens: Int, _ offsets: Span<Int>?
    ) throws(KernelError) -> [Int] {
        guard let offsets else { return (0...batch).map { $0 * tokens } }
        guard batch == 1 else {
            throw .conflict(argument: "offsets", reason: "packed sequences have batch 1")
        }
        guard offsets.count >= 1 else {
            throw .tooSmall(argument: "offsets", minimum: 1, actual: 0)
        }
        for n in offsets.indices {
            let isLast = n == offsets.count - 1
            let lowest = n == 0 ? 0 : offsets[n - 1]
            let highest = n == 0 ? 0 : tokens
            guard offsets[n] >= lowest, offsets[n] <= highest, !isLast || offsets[n] == tokens
            else {
                throw .badEntry(
                    argument: "offsets", index: n, value: offsets[n],
                    limit: (isLast ? tokens : highest) + 1)
            }
        }
        return offsets.indices.map { offsets[$0] }
    }

    /// A counting sort by sequence and memory; tokens keep their order.
    private static func sort(
        _ selected: Span<Int>, _ starts: [Int], memories: Int, choices: Int, hasSharedMemory: Bool
    ) -> (uses: [Use], offsets: [Int]) {
        let states = memories + (hasSharedMemory ? 1 : 0)
        var offsets = [0]
        var uses: [Use] = []
        offsets.reserveCapacity((starts.count - 1) * states + 1)
        uses.reserveCapacity(selected.count / choices * (choices + (hasSharedMemory ? 1 : 0)))
        for n in 0..<starts.count - 1 {
            let rows = starts[n]..<starts[n + 1]
            var next = [Int](repeating: 0, count: states)
            for i in rows.lowerBound * choices..<rows.upperBound * choices {
                next[selected[i]] += 1
            }
            if hasSharedMemory { next[memories] = rows.count }
            var place = uses.count
            for m in 0..<states {
                (place, next[m]) = (place + next[m], place)
                offsets.append(place)
            }
            let missing = place - uses.count
            uses.append(contentsOf: repeatElement(Use(row: 0, choice: 0), count: missing))
            for row in rows {
                for choice in 0..<choices {
                    let memory = selected[row * choices + choice]
                    uses[next[memory]] = Use(row: row, choice: choice)
                    next[memory] += 1
                }
                if hasSharedMemory {
                    uses[next[memories]] = Use(row: row, choice: choices)
                    next[memories] += 1
                }
            }
        }
        return (uses, offsets)
    }
}
