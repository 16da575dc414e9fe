#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

extension DeltaRule {
    typealias State = LinearAttention.State

    /// One head of a plain problem: its vectors by row, and what a token does. A row is a token of
    /// [B, T], or a step of [B, T R].
    struct Head {
        let problem: Problem
        /// h.
        let head: Int
        /// The key and value head.
        let keyHead: Int
        let keyWidth: Int
        let valueWidth: Int
        let scale: Double

        init(_ head: Int, of problem: Problem) {
            let shape = problem.shape
            self.problem = problem
            self.head = head
            keyHead = head / (shape.heads / shape.keyHeads)
            keyWidth = shape.keyWidth
            valueWidth = shape.valueWidth
            scale = problem.scale ?? 1 / Double(shape.keyWidth).squareRoot()
        }

        /// The steps of a token.
        func steps(_ row: Int) -> Range<Int> {
            let count = problem.shape.householderSteps
            return row * count..<(row + 1) * count
        }

        /// Where the head's vector is in [rows, H, width].
        func slice(_ row: Int, _ width: Int) -> Range<Int> {
            let start = (row * problem.shape.heads + head) * width
            return start..<start + width
        }

        /// Where the key head's vector is in [rows, G, width].
        func keySlice(_ row: Int, _ width: Int) -> Range<Int> {
            let start = (row * problem.shape.keyHeads + keyHead) * width
            return start..<start + width
        }

        /// q of a token.
        func query(_ row: Int) -> [Double] { Array(problem.query[slice(row, keyWidth)]) }

        /// k of a step.
        func key(_ step: Int) -> [Double] { Array(problem.key[keySlice(step, keyWidth)]) }

        /// v of a step.
        func value(_ step: Int) -> [Double] { Array(problem.value[keySlice(step, valueWidth)]) }

        /// Where beta of a step is.
        func betaIndex(_ step: Int) -> Int { step * problem.shape.heads + head }

        /// Where the log-decay of a token and key dimension is, or nil for the identity.
        func decayIndex(_ row: Int, _ d: Int) -> Int? {
            switch problem.decay {
            case .none: nil
            case .token: row * problem.shape.heads + head
            case .key: slice(row, keyWidth).lowerBound + d
            }
        }

        /// exp(g_d).
        func decay(_ row: Int, _ d: Int) -> Double {
            guard let index = decayIndex(row, d) else { return 1 }
            return exp(problem.decay.logarithms[index])
        }

        /// Matrix n of [.., H, K, V], zero where absent.
        func state(_ n: Int, of states: [Double]?) -> State {
            var state = State(rows: keyWidth, columns: valueWidth)
            if let states { state.entries = Array(states[slice(n, keyWidth * valueWidth)]) }
            return state
        }

        /// The way back.
        func store(_ state: State, _ n: Int, in states: inout [Double]) {
            states.replaceSubrange(slice(n, keyWidth * valueWidth), with: state.entries)
        }

        /// D S.
        func decayed(_ state: State, _ row: Int) -> State {
            var decayed = state
            for d in 0..<keyWidth {
                let decay = decay(row, d)
                for e in 0..<valueWidth { decayed[d, e] *= decay }
            }
            return decayed
        }

        /// S + k u^T with u = beta (v - S^T k).
        func written(_ state: State, _ step: Int, beta: Double) -> State {
            let key = key(step)
            let u = zip(value(step), state.transposed(times: key)).map { beta * ($0 - $1) }
            var written = state
            written.add(key, u)
            return written
        }

        /// S_t from S_{t-1}.
        func next(_ state: State, _ row: Int) -> State {
            var next = decayed(state, row)
            switch problem.update {
            case .delta(let beta):
                for step in steps(row) {
                    next = written(next, step, beta: beta.inputs[betaIndex(step)])
                }
            case .general(let a, let b):
                let slice = keySlice(row, keyWidth)
                next.add(Array(b[slice]), state.transposed(times: Array(a[slice])))
                next.add(key(row), value(row))
            }
            return next
        }

        /// scale S^T q.
        func read(_ state: State, _ row: Int) -> [Double] {
            state.transposed(times: query(row)).map { scale * $0 }
        }
    }
}

extension LinearAttention.State {
    /// S^T x.
    func transposed(times x: [Double]) -> [Double] {
        (0..<columns).map { e in
            var sum = 0.0
            for d in x.indices { sum += x[d] * self[d, e] }
            return sum
        }
    }

    /// S y.
    func times(_ y: [Double]) -> [Double] {
        (0..<entries.count / columns).map { d in
            var sum = 0.0
            for e in y.indices { sum += self[d, e] * y[e] }
            return sum
        }
    }

    /// Adds x y^T.
    mutating func add(_ x: [Double], _ y: [Double]) {
        for d in x.indices {
            for e in y.indices { self[d, e] += x[d] * y[e] }
        }
    }
}
