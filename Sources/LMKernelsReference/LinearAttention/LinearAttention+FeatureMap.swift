#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

extension LinearAttention {
    /// phi, a map of each row of queries or keys to features, so that phi(q) . phi(k) stands for
    /// a kernel of q and k. K is the number of columns of a row x.
    public enum FeatureMap: Sendable, Equatable {
        /// x.
        case identity
        /// elu(x) + 1:  x + 1 where x > 0, exp(x) elsewhere. Katharopoulos et al.
        case eluPlusOne
        /// max(x, 0), with derivative 0 at 0.
        case relu
        /// max(x, 0)^2.
        case squaredReLU
        /// exp(x_j) / sum_i exp(x_i). Edges as for `Softmax`.
        case softmax
        /// [exp(x), exp(-x)], 2K features: Hedgehog (Zhang et al.). x is already projected.
        case expPair
        /// [softmax(x), softmax(-x)], 2K features: the form in which the authors of Hedgehog run
        /// it, within the range of the type. They also raise the result to at least 1e-12.
        case softmaxPair
        /// [1, a, (a a^T) / sqrt(2)] with a = x K^-1/4, 1 + K + K^2 features, the square row by
        /// row: Based (Arora et al.). phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(K).
        case taylor
        /// FLatten (Han et al.): the direction of r^p with the length of r.
        ///
        ///     r = max(x, 0) + epsilon        |r| r^p / |r^p|
        ///
        /// The power, published as 3, is at least 1; the epsilon, published as 1e-6, at least 0.
        /// A row with r = 0 stays 0 with gradient 0. The published layer divides r by a learned
        /// scale per channel first, which is left to the caller.
        case focused(power: Double, epsilon: Double = 1e-6)
        /// cosFormer (Qin et al.): [r cos(a), r sin(a)] with r = max(x, 0) and a = pi i / (2M) for
        /// a row at position i, 2K features, so that
        /// phi(q_i) . phi(k_j) = relu(q_i) . relu(k_j) cos(pi (i - j) / (2M)).
        ///
        /// One position in 0 ... M per row, published as 1, 2, ...; M is the length, at least 1.
        case cosine(positions: [Int], length: Int)

        /// The number of features of a row of K = `columns`.
        public func features(columns: Int) -> Int {
            switch self {
            case .identity, .eluPlusOne, .relu, .squaredReLU, .softmax, .focused: columns
            case .expPair, .softmaxPair, .cosine: 2 * columns
            case .taylor: 1 + columns + columns * columns
            }
        }

        /// phi of each row, [rows, features].
        ///
        /// - Parameters:
        ///   - x: [rows, columns], columns at least 1.
        public func forward(_ x: [Double], rows: Int, columns: Int) -> [Double] {
            check(x, rows: rows, columns: columns)
            return (0..<rows).flatMap { row in
                map(Array(x[row * columns..<(row + 1) * columns]), row)
            }
        }

        private func map(_ x: [Double], _ row: Int) -> [Double] {
            switch self {
            case .identity: return x
            case .eluPlusOne: return x.map { $0 > 0 ? $0 + 1 : exp($0) }
            case .relu: return x.map(relu)
            case .squaredReLU: return x.map { relu($0) * relu($0) }
            case .softmax: return Softmax.softmax(x, rows: 1, columns: x.count)
            case .expPair: return x.map { exp($0) } + x.map { exp(-$0) }
            case .softmaxPair:
                return Softmax.softmax(x, rows: 1, columns: x.count)
                    + Softmax.softmax(x, rows: 1, columns: x.count, scale: -1)
            case .taylor:
                let a = x.map { $0 * FeatureMap.taylorScale(x.count) }
                return [1] + a + a.flatMap { left in a.map { left * $0 / 2.0.squareRoot() } }
            case .focused(let power, let epsilon):
                return Focused(x, power: power, epsilon: epsilon).features
            case .cosine(let positions, let length):
                let (cosine, sine) = FeatureMap.direction(positions[row], length)
                return x.map { relu($0) * cosine } + x.map { relu($0) * sine }
            }
        }

        /// max(x, 0); NaN stays.
        func relu(_ x: Double) -> Double { x < 0 ? 0 : x }

        static func taylorScale(_ columns: Int) -> Double { pow(Double(columns), -0.25) }

        /// cos and sin of pi i / (2M). The cosine as the sine of what is left to a right angle, so
        /// that it is 0 at i = M, which cos of a rounded pi / 2 is not.
        static func direction(_ position: Int, _ length: Int) -> (cosine: Double, sine: Double) {
            func sine(_ part: Int) -> Double {
                sin(Double.pi * Double(part) / (2 * Double(length)))
            }
            return (sine(length - position), sine(position))
        }

        func check(_ x: [Double], rows: Int, columns: Int) {
            precondition(rows >= 0 && columns >= 1, "rows >= 0 and columns >= 1")
            precondition(x.count == rows * columns, "x is [rows, columns]")
            switch self {
            case .focused(let power, let epsilon):
                precondition(power >= 1, "power >= 1")
                precondition(epsilon >= 0, "epsilon >= 0")
            case .cosine(let positions, let length):
                precondition(length >= 1, "length >= 1")
                precondition(positions.count == rows, "positions is [rows]")
                precondition(
                    positions.allSatisfy { (0...length).contains($0) }, "positions in 0...length")
            default: break
            }
        }

        /// One row of the focused map, computed from s = r / max(r) so that no power leaves the
        /// range: |r| r^p / |r^p| = max(r) |s| s^p / |s^p|.
        struct Focused {
            /// s, all 0 where r is.
            var scaled: [Double]
            /// max(r).
            var largest = 0.0
            /// s^p.
            var powers: [Double] = []
            /// |s|.
            var length = 0.0
            /// |s^p|.
            var powerLength = 0.0

            init(_ x: [Double], power: Double, epsilon: Double) {
                scaled = x.map { ($0 < 0 ? 0 : $0) + epsilon }
                for r in scaled { largest = r > largest || r.isNaN ? r : largest }
                guard largest != 0 else { return }
                for j in scaled.indices {
                    scaled[j] /= largest
                    powers.append(pow(scaled[j], power))
                    length += scaled[j] * scaled[j]
                    powerLength += powers[j] * powers[j]
                }
                length = length.squareRoot()
                powerLength = powerLength.squareRoot()
            }

            var features: [Double] {
                largest == 0 ? scaled : powers.map { largest * length * $0 / powerLength }
            }
        }
    }
}
