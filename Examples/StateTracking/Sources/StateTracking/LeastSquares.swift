/// A linear read-out: scores of classes, of which the largest wins, from features and a constant.
struct LinearReadOut {
    /// [features + 1, outputs]
    private var weights: [Double]
    private let features: Int
    private let places: Int
    private let classes: Int

    /// Fitted by least squares to scores of 1 for what is right and 0 for what is not.
    ///
    /// - Parameters:
    ///   - x: [rows, features]
    ///   - answers: [rows, places]
    init(_ x: [[Float]], _ answers: [[Int]], places: Int, classes: Int) {
        features = x[0].count
        self.places = places
        self.classes = classes
        let (size, outputs) = (features + 1, places * classes)
        // The normal equations, lower half: (X^T X + ridge) W = X^T Y.
        var matrix = [Double](repeating: 0, count: size * size)
        weights = [Double](repeating: 0, count: size * outputs)
        for (row, answer) in zip(x, answers) {
            let row = row.map(Double.init) + [1]
            for i in 0..<size where row[i] != 0 {
                for j in 0...i { matrix[i * size + j] += row[i] * row[j] }
                for place in 0..<places {
                    weights[i * outputs + place * classes + answer[place]] += row[i]
                }
            }
        }
        for i in 0..<size { matrix[i * size + i] += 1e-9 * Double(x.count) }
        solve(&matrix, size, outputs)
    }

    /// By Cholesky's L L^T.
    private mutating func solve(_ matrix: inout [Double], _ size: Int, _ outputs: Int) {
        for i in 0..<size {
            for j in 0...i {
                var sum = matrix[i * size + j]
                for k in 0..<j { sum -= matrix[i * size + k] * matrix[j * size + k] }
                matrix[i * size + j] = i == j ? sum.squareRoot() : sum / matrix[j * size + j]
            }
        }
        for output in 0..<outputs {
            for i in 0..<size {
                var sum = weights[i * outputs + output]
                for k in 0..<i { sum -= matrix[i * size + k] * weights[k * outputs + output] }
                weights[i * outputs + output] = sum / matrix[i * size + i]
            }
            for i in (0..<size).reversed() {
                var sum = weights[i * outputs + output]
                for k in i + 1..<max(size, i + 1) {
                    sum -= matrix[k * size + i] * weights[k * outputs + output]
                }
                weights[i * outputs + output] = sum / matrix[i * size + i]
            }
        }
    }

    func answers(_ x: [Float]) -> [Int] {
        let outputs = places * classes
        var scores = Array(weights[features * outputs..<(features + 1) * outputs])
        for (i, x) in x.enumerated() {
            for output in 0..<outputs {
                scores[output] += Double(x) * weights[i * outputs + output]
            }
        }
        return (0..<places).map { place in
            let own = place * classes..<(place + 1) * classes
            return own.max { scores[$0] < scores[$1] }! - own.lowerBound
        }
    }
}
