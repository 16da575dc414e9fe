/// The self-referential weight matrix (Irie, Schlag, Csordas and Schmidhuber, "A Modern
/// Self-Referential Weight Matrix That Learns to Modify Itself", 2022), in Double.
///
/// Each sequence has, per head, a matrix W [M, D] that produces the outputs, and the keys, queries
/// and rates by which it changes itself with the delta rule. With the inputs x_t [D], the outputs
/// y_t [E], M = E + 2D + 4, and phi the softmax over D entries:
///
///     [y_t, k_t, q_t, beta_t] = W_{t-1} phi(x_t)             k_t, q_t [D], beta_t [4]
///     v_t = W_{t-1} phi(q_t)                                 [M]
///     u_t = W_{t-1} phi(k_t)                                 [M]
///     W_t = W_{t-1} + rate_t * (v_t - u_t) phi(k_t)^T        * entry by entry
///
/// The rows of W are four blocks, y, k, q and beta, of E, D, D and 4 rows, and each has its rate,
/// in this order: rate_t [M] is sigmoid(beta_t1) in the rows of y, sigmoid(beta_t2) in those of k,
/// sigmoid(beta_t3) of q and sigmoid(beta_t4) of beta. y_t is from before the change.
///
/// These are the paper's equations, with a rate for each block as its published code has them.
/// That code (IDSIA/modern-srwm) has E = D, keeps the blocks as four matrices [D, rows] in the
/// order y, q, k, beta with their rates in that order, and leaves phi(x) to the caller, who may
/// leave it out: see `hasInputSoftmax`.
///
/// Arrays are dense and row-major. A batch [B, T] holds B sequences of T tokens, or, with offsets
/// and B = 1, N sequences one after the other. N is B in the first case.
public enum SelfReferentialMatrix {
    /// The extents of the arrays.
    public struct Shape: Sendable, Equatable {
        /// B.
        public var batch: Int
        /// T, of all sequences together where they are packed.
        public var tokens: Int
        /// H.
        public var heads: Int
        /// D, at least 1.
        public var width: Int
        /// E, at least 1.
        public var outputWidth: Int

        public init(batch: Int, tokens: Int, heads: Int, width: Int, outputWidth: Int) {
            self.batch = batch
            self.tokens = tokens
            self.heads = heads
            self.width = width
            self.outputWidth = outputWidth
        }

        /// M = E + 2D + 4, the rows of W.
        public var rows: Int { outputWidth + 2 * width + 4 }
    }

    /// W_0.
    public enum Start: Sendable, Equatable {
        /// The same for every sequence, [H, M, D].
        case shared([Double])
        /// That of each sequence, [N, H, M, D].
        case sequences([Double])

        /// W_0.
        public var entries: [Double] {
            switch self {
            case .shared(let w), .sequences(let w): w
            }
        }
    }

    /// The inputs.
    public struct Problem: Sendable {
        /// The extents of the arrays below.
        public var shape: Shape
        /// x, [B, T, H, D].
        public var x: [Double]
        /// W_0.
        public var start: Start
        /// Whether phi is applied to x; x_t stands in place of phi(x_t) otherwise. phi(k_t) and
        /// phi(q_t) stay.
        public var hasInputSoftmax: Bool
        /// Sequence n has the tokens offsets[n] ..< offsets[n + 1], maybe none, [N + 1].
        public var offsets: [Int]?

        public init(
            shape: Shape, x: [Double], start: Start, hasInputSoftmax: Bool = true,
            offsets: [Int]? = nil
        ) {
            self.shape = shape
            self.x = x
            self.start = start
            self.hasInputSoftmax = hasInputSoftmax
            self.offsets = offsets
        }
    }

    /// What `forward` computes.
    public struct Output: Sendable, Equatable {
        /// y, [B, T, H, E].
        public var output: [Double]
        /// W after the last token, [N, H, M, D]; W_0 for a sequence without tokens.
        public var finalMatrix: [Double]
    }

    /// The derivative of a scalar with respect to each input, in the input's shape.
    public struct Gradients: Sendable, Equatable {
        /// [B, T, H, D].
        public var x: [Double]
        /// Of W_0, [H, M, D] where it is shared, summed over the sequences, or [N, H, M, D].
        public var start: [Double]
    }

    /// The outputs and last matrices of every sequence.
    public static func forward(_ problem: Problem) -> Output {
        let sequences = check(problem)
        let shape = problem.shape
        func zeros(_ count: Int) -> [Double] { Array(repeating: 0, count: count) }
        var output = Output(
            output: zeros(shape.batch * shape.tokens * shape.heads * shape.outputWidth),
            finalMatrix: zeros(sequences.count * shape.heads * shape.rows * shape.width))
        for (n, tokens) in sequences.enumerated() {
            for h in 0..<shape.heads {
                var matrix = start(problem, n, h)
                for row in tokens {
                    let token = Token(matrix, problem, row, h)
                    output.output.replaceSubrange(
                        slice(row, h, of: shape, shape.outputWidth), with: token.y)
                    matrix = token.next
                }
                output.finalMatrix.replaceSubrange(
                    slice(n, h, of: shape, shape.rows * shape.width), with: matrix.entries)
            }
        }
        return output
    }

    /// Gradients of  <dy, y> + <dW, final matrix>.
    ///
    /// The reverse recurrence over the stored matrices. With f = phi(x_t) and G the gradient of
    /// W_t, which starts with the final matrix's, token t has, W being W_{t-1}:
    ///
    ///     dp = G phi(k)                           the gradient of p = rate * (v - u)
    ///     dd = rate * dp                          that of v - u = W (phi(q) - phi(k))
    ///     drate_i = sum over the rows of block i of (v - u) * dp
    ///     dphi(q) = W^T dd                        dphi(k) = G^T p - W^T dd
    ///     dr = [dy, dk, dq, dbeta]                through phi and the sigmoids
    ///     G += dd (phi(q) - phi(k))^T + dr f^T    now the gradient of W_{t-1}
    ///     df = W^T dr
    ///
    /// - Parameters:
    ///   - outputGradient: dy, [B, T, H, E].
    ///   - finalMatrixGradient: dW, [N, H, M, D]; 0 when absent.
    public static func backward(
        _ problem: Problem, outputGradient: [Double], finalMatrixGradient: [Double]? = nil
    ) -> Gradients {
        let sequences = check(problem)
        let shape = problem.shape
        let matrixCount = shape.rows * shape.width
        precondition(
            outputGradient.count == shape.batch * shape.tokens * shape.heads * shape.outputWidth,
            "outputGradient is [B, T, H, E]")
        if let gradient = finalMatrixGradient {
            precondition(
                gradient.count == sequences.count * shape.heads * matrixCount,
                "finalMatrixGradient is [N, H, M, D]")
        }
        var gradients = Gradients(
            x: problem.x.map { _ in 0 }, start: problem.start.entries.map { _ in 0 })
        for (n, tokens) in sequences.enumerated() {
            for h in 0..<shape.heads {
                var matrices = [start(problem, n, h)]
                for (t, row) in tokens.enumerated() {
                    matrices.append(Token(matrices[t], problem, row, h).next)
                }
                var gradient = State(rows: shape.rows, columns: shape.width)
                if let last = finalMatrixGradient {
                    gradient.entries = Array(last[slice(n, h, of: shape, matrixCount)])
                }
                for (t, row) in tokens.enumerated().reversed() {
                    let token = Token(matrices[t], problem, row, h)
                    let dy = Array(outputGradient[slice(row, h, of: shape, shape.outputWidth)])
                    gradients.x.replaceSubrange(
                        slice(row, h, of: shape, shape.width),
                        with: token.backward(dy, &gradient))
                }
                for (i, entry) in zip(startSlice(problem, n, h), gradient.entries) {
                    gradients.start[i] += entry
                }
            }
        }
        return gradients
    }

    /// Where entry h of row n is in [rows, H, count].
    static func slice(_ n: Int, _ h: Int, of shape: Shape, _ count: Int) -> Range<Int> {
        let start = (n * shape.heads + h) * count
        return start..<start + count
    }

    /// Where W_0 of sequence n and head h is.
    private static func startSlice(_ problem: Problem, _ n: Int, _ h: Int) -> Range<Int> {
        let count = problem.shape.rows * problem.shape.width
        return switch problem.start {
        case .shared: slice(0, h, of: problem.shape, count)
        case .sequences: slice(n, h, of: problem.shape, count)
        }
    }

    private static func start(_ problem: Problem, _ n: Int, _ h: Int) -> State {
        var matrix = State(rows: problem.shape.rows, columns: problem.shape.width)
        matrix.entries = Array(problem.start.entries[startSlice(problem, n, h)])
        return matrix
    }

    /// Checks a problem, and returns the rows of [B, T] that each sequence has.
    private static func check(_ problem: Problem) -> [Range<Int>] {
        let shape = problem.shape
        precondition(shape.batch >= 0 && shape.tokens >= 0, "batch and tokens >= 0")
        precondition(shape.heads >= 1, "heads >= 1")
        precondition(shape.width >= 1 && shape.outputWidth >= 1, "width and outputWidth >= 1")
        precondition(
            problem.x.count == shape.batch * shape.tokens * shape.heads * shape.width,
            "x is [B, T, H, D]")
        let sequences = LinearAttention.sequences(
            batch: shape.batch, tokens: shape.tokens, offsets: problem.offsets)
        let count = shape.heads * shape.rows * shape.width
        switch problem.start {
        case .shared(let w): precondition(w.count == count, "a shared start is [H, M, D]")
        case .sequences(let w):
            precondition(w.count == sequences.count * count, "a start is [N, H, M, D]")
        }
        return sequences
    }
}
