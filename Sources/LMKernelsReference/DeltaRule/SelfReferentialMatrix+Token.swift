#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

extension SelfReferentialMatrix {
    /// A matrix [M, D].
    typealias State = LinearAttention.State

    /// What one token of one head computes.
    struct Token {
        /// W_{t-1}.
        let matrix: State
        /// x.
        let x: [Double]
        let hasInputSoftmax: Bool
        /// phi(x), or x.
        let input: [Double]
        /// The parts of W phi(x).
        let y, key, query, beta: [Double]
        /// The rows of y, k, q and beta.
        let blocks: [Range<Int>]
        /// The rate of each row.
        let rates: [Double]
        /// phi(q) - phi(k).
        let direction: [Double]
        /// v - u.
        let difference: [Double]
        /// rate * (v - u).
        let change: [Double]

        init(_ matrix: State, _ problem: Problem, _ row: Int, _ head: Int) {
            let shape = problem.shape
            let (e, d) = (shape.outputWidth, shape.width)
            self.matrix = matrix
            x = Array(problem.x[slice(row, head, of: shape, d)])
            hasInputSoftmax = problem.hasInputSoftmax
            input = hasInputSoftmax ? phi(x) : x

            let produced = matrix.times(input)
            blocks = [0..<e, e..<e + d, e + d..<e + 2 * d, e + 2 * d..<e + 2 * d + 4]
            y = Array(produced[blocks[0]])
            key = Array(produced[blocks[1]])
            query = Array(produced[blocks[2]])
            beta = Array(produced[blocks[3]])

            rates = zip(blocks, beta).flatMap { rows, beta in
                Array(repeating: sigmoid(beta), count: rows.count)
            }
            direction = zip(phi(query), phi(key)).map { $0 - $1 }
            difference = matrix.times(direction)
            change = zip(rates, difference).map { $0 * $1 }
        }

        /// W_t.
        var next: State {
            var next = matrix
            next.add(change, phi(key))
            return next
        }

        /// Takes the gradient of W_t to that of W_{t-1}, and returns that of x_t.
        func backward(_ dy: [Double], _ gradient: inout State) -> [Double] {
            let ofChange = gradient.times(phi(key))
            let ofDifference = zip(rates, ofChange).map { $0 * $1 }
            let ofBeta = zip(blocks, beta).map { rows, beta in
                var sum = 0.0
                for i in rows { sum += difference[i] * ofChange[i] }
                return sum * sigmoid(beta) * sigmoid(-beta)
            }
            let ofPhiQuery = matrix.transposed(times: ofDifference)
            let ofPhiKey = zip(gradient.transposed(times: change), ofPhiQuery).map { $0 - $1 }
            let ofKey = phiGradient(key, ofPhiKey)
            let ofQuery = phiGradient(query, ofPhiQuery)
            let ofProduced = dy + ofKey + ofQuery + ofBeta

            gradient.add(ofDifference, direction)
            gradient.add(ofProduced, input)
            let ofInput = matrix.transposed(times: ofProduced)
            return hasInputSoftmax ? phiGradient(x, ofInput) : ofInput
        }
    }

    private static func phi(_ x: [Double]) -> [Double] {
        Softmax.softmax(x, rows: 1, columns: x.count)
    }

    private static func phiGradient(_ x: [Double], _ g: [Double]) -> [Double] {
        Softmax.softmaxBackward(x, outputGradient: g, rows: 1, columns: x.count).x
    }

    private static func sigmoid(_ x: Double) -> Double { 1 / (1 + exp(-x)) }
}
