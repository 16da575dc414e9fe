/// Products of Householder-like factors, in Double.
///
/// With n vectors k_i [K] and numbers beta_i, any of both:
///
///     H_i = I - beta_i k_i k_i^T        P = H_1 H_2 ... H_n        P^T = H_n ... H_2 H_1
///
/// H_i is symmetric; it reflects, and P is orthogonal, where beta_i |k_i|^2 = 2. In the delta rule
/// the n steps of a run, without decay and values, take the state S to P^T S.
///
/// The compact WY form (Schreiber and Van Loan) has one triangle for all factors. With V [K, n],
/// whose column i is k_i, and T [n, n] upper triangular:
///
///     P = I - V T V^T                   P^T = I - V T^T V^T
///     T_ii = beta_i                     T_ji = -beta_i sum_l T_jl (k_l . k_i),  j <= l < i
///
/// It is the T of LAPACK's larft with direct = 'F', storev = 'C' and tau = beta. That takes the top
/// of each column of V as 0 ... 0 1, whatever is stored there; here a column is all of k_i. The
/// array of keys [n, K], row by row, is V column by column, as LAPACK has it; T is row by row here.
/// Where no beta is 0, T is the inverse of diag(1 / beta) + (V^T V strictly above its diagonal).
///
/// Arrays are dense and row-major, and hold a batch of B products.
public enum HouseholderProduct {
    /// The factors of B products.
    public struct Factors: Sendable, Equatable {
        /// B.
        public var batch: Int
        /// n, maybe 0, with P = I.
        public var count: Int
        /// K, at least 1.
        public var width: Int
        /// k, [B, n, K].
        public var key: [Double]
        /// beta, [B, n].
        public var beta: [Double]

        public init(batch: Int, count: Int, width: Int, key: [Double], beta: [Double]) {
            self.batch = batch
            self.count = count
            self.width = width
            self.key = key
            self.beta = beta
        }
    }

    /// Where P stands.
    public enum Side: Sendable, CaseIterable {
        /// P X or P^T X, with M columns: X is [B, K, M].
        case left
        /// X P or X P^T, with M rows: X is [B, M, K].
        case right
    }

    /// The derivative of a scalar with respect to each input, in the input's shape.
    public struct Gradients: Sendable, Equatable {
        /// As X.
        public var x: [Double]
        /// [B, n, K].
        public var key: [Double]
        /// [B, n].
        public var beta: [Double]
    }

    /// T, [B, n, n]; 0 below the diagonal.
    public static func triangularFactor(_ factors: Factors) -> [Double] {
        check(factors)
        let n = factors.count
        var triangle = Array(repeating: 0.0, count: factors.batch * n * n)
        for b in 0..<factors.batch {
            for i in 0..<n {
                let (key, beta) = factors[b, i]
                for j in 0..<i {
                    var sum = 0.0
                    for l in j..<i {
                        sum += triangle[(b * n + j) * n + l] * dot(factors[b, l].key, key)
                    }
                    triangle[(b * n + j) * n + i] = -beta * sum
                }
                triangle[(b * n + i) * n + i] = beta
            }
        }
        return triangle
    }

    /// P X, P^T X, X P or X P^T, factor by factor.
    ///
    /// - Parameters:
    ///   - x: X, [B, K, M] or [B, M, K].
    ///   - vectors: M, maybe 0.
    ///   - isTransposed: Whether P^T stands in place of P.
    /// - Returns: As X.
    public static func apply(
        _ factors: Factors, to x: [Double], vectors: Int, side: Side = .left,
        isTransposed: Bool = false
    ) -> [Double] {
        check(factors, x, vectors)
        var y = x
        for b in 0..<factors.batch {
            for m in 0..<vectors {
                let places = side.places(of: m, vectors, b, factors.width)
                var vector = places.map { x[$0] }
                for i in side.order(factors.count, isTransposed) {
                    vector = applied(factors[b, i], vector)
                }
                for (place, entry) in zip(places, vector) { y[place] = entry }
            }
        }
        return y
    }

    /// Gradients of  <g, Y>  with Y what `apply` returns.
    ///
    /// Each vector x of X, a column on the left and a row on the right, goes through the factors on
    /// its own. Where one takes x to x - beta (k . x) k, and g is the gradient of the latter,
    ///
    ///     dbeta -= (k . x) (k . g)        dk -= beta ((k . g) x + (k . x) g)
    ///     g <- g - beta (k . g) k         now the gradient of x
    ///
    /// from the factor that was applied last to the first.
    ///
    /// - Parameters:
    ///   - g: As X.
    public static func applyBackward(
        _ factors: Factors, to x: [Double], outputGradient g: [Double], vectors: Int,
        side: Side = .left, isTransposed: Bool = false
    ) -> Gradients {
        check(factors, x, vectors)
        precondition(g.count == x.count, "outputGradient is as x")
        var gradients = Gradients(
            x: g, key: factors.key.map { _ in 0 }, beta: factors.beta.map { _ in 0 })
        for b in 0..<factors.batch {
            for m in 0..<vectors {
                let places = side.places(of: m, vectors, b, factors.width)
                let order = side.order(factors.count, isTransposed)
                var found = [places.map { x[$0] }]
                for i in order { found.append(applied(factors[b, i], found[found.count - 1])) }

                var gradient = places.map { g[$0] }
                for (i, vector) in zip(order, found).reversed() {
                    let (key, beta) = factors[b, i]
                    let (z, w) = (dot(key, vector), dot(key, gradient))
                    gradients.beta[b * factors.count + i] -= z * w
                    for d in key.indices {
                        gradients.key[(b * factors.count + i) * factors.width + d] -=
                            beta * (w * vector[d] + z * gradient[d])
                    }
                    gradient = applied((key, beta), gradient)
                }
                for (place, entry) in zip(places, gradient) { gradients.x[place] = entry }
            }
        }
        return gradients
    }

    /// x - beta (k . x) k.
    private static func applied(
        _ factor: (key: [Double], beta: Double), _ x: [Double]
    ) -> [Double] {
        let z = dot(factor.key, x)
        return zip(x, factor.key).map { $0 - factor.beta * z * $1 }
    }

    private static func dot(_ x: [Double], _ y: [Double]) -> Double {
        zip(x, y).reduce(0) { $0 + $1.0 * $1.1 }
    }

    private static func check(_ factors: Factors) {
        let (batch, count, width) = (factors.batch, factors.count, factors.width)
        precondition(batch >= 0 && count >= 0, "batch and count >= 0")
        precondition(width >= 1, "width >= 1")
        precondition(factors.key.count == batch * count * width, "key is [B, n, K]")
        precondition(factors.beta.count == batch * count, "beta is [B, n]")
    }

    private static func check(_ factors: Factors, _ x: [Double], _ vectors: Int) {
        check(factors)
        precondition(vectors >= 0, "vectors >= 0")
        precondition(
            x.count == factors.batch * factors.width * vectors, "x is [B, K, M] or [B, M, K]")
    }
}

extension HouseholderProduct.Factors {
    /// Factor i of product b.
    subscript(b: Int, i: Int) -> (key: [Double], beta: Double) {
        let row = b * count + i
        return (Array(key[row * width..<(row + 1) * width]), beta[row])
    }
}

extension HouseholderProduct.Side {
    /// Where vector m of the matrix of product b is: a column on the left, a row on the right.
    func places(of m: Int, _ vectors: Int, _ b: Int, _ width: Int) -> [Int] {
        (0..<width).map { d in
            switch self {
            case .left: (b * width + d) * vectors + m
            case .right: (b * vectors + m) * width + d
            }
        }
    }

    /// The factors in the order in which a vector meets them: P x starts with the last one, and
    /// x^T P is (P^T x)^T.
    func order(_ count: Int, _ isTransposed: Bool) -> [Int] {
        let startsWithFirst = (self == .right) != isTransposed
        return startsWithFirst ? Array(0..<count) : (0..<count).reversed()
    }
}
