import LMKernels
import LMKernelsReference

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

extension SoftmaxProblem {
    /// What a function and its gradients should be; matrices are dense.
    struct Expected {
        var y: [Double]
        var x: [Double]
        var scale: [Double]
    }

    private var scale: Double { Double(options.scale) }

    func expected(_ function: Softmax.Function) -> Expected {
        switch function {
        case .softmax: return expected(ReferenceSoftmax.softmax, ReferenceSoftmax.softmaxBackward)
        case .logSoftmax:
            return expected(ReferenceSoftmax.logSoftmax, ReferenceSoftmax.logSoftmaxBackward)
        case .stableMax, .logStableMax: return expectedStable(isLog: function == .logStableMax)
        }
    }

    private func expected(
        _ forward: ([Double], Int, Int, Double, ReferenceSoftmax.Mask) -> [Double],
        _ backward: ([Double], [Double], Int, Int, Double, ReferenceSoftmax.Mask) ->
            ReferenceSoftmax.Gradient
    ) -> Expected {
        let (x, g) = (x.dense, yGradient.dense)
        let (rows, columns, mask) = (shape.rows, shape.columns, referenceMask)
        let gradient = backward(x, g, rows, columns, scale, mask)
        return Expected(
            y: forward(x, rows, columns, scale, mask), x: gradient.x, scale: gradient.scale)
    }

    func expectedLogSumExp() -> Expected {
        let gradient = ReferenceSoftmax.logSumExpBackward(
            x.dense, outputGradient: logSumExpGradient.map { Double($0) }, rows: shape.rows,
            columns: shape.columns, scale: scale, mask: referenceMask)
        return Expected(y: logSumExpReference(), x: gradient.x, scale: gradient.scale)
    }

    func logSumExpReference() -> [Double] {
        ReferenceSoftmax.logSumExp(
            x.dense, rows: shape.rows, columns: shape.columns, scale: scale, mask: referenceMask)
    }

    /// The reference of the stable functions has no mask: it is given the entries of each row that
    /// take part, as u.
    private func expectedStable(isLog: Bool) -> Expected {
        let absent = isLog ? -Double.infinity : 0
        var expected = Expected(y: [], x: [], scale: [])
        for r in 0..<shape.rows {
            let count = count(ofRow: r)
            let x = (0..<count).map { self.x[r, $0].double }
            let u = x.enumerated().map { scale * $1 + (addend(row: r, column: $0)) }
            let g = (0..<count).map { yGradient[r, $0].double }
            let left = Array(repeating: 0.0, count: shape.columns - count)
            guard count > 0 else {
                expected.y += left.map { _ in absent }
                expected.x += left
                expected.scale.append(0)
                continue
            }
            let y =
                isLog
                ? ReferenceSoftmax.logStableMax(u, rows: 1, columns: count)
                : ReferenceSoftmax.stableMax(u, rows: 1, columns: count)
            let du =
                isLog
                ? ReferenceSoftmax.logStableMaxBackward(
                    u, outputGradient: g, rows: 1, columns: count)
                : ReferenceSoftmax.stableMaxBackward(u, outputGradient: g, rows: 1, columns: count)
            expected.y += y + left.map { _ in absent }
            expected.x += du.x.map { scale * $0 } + left
            expected.scale.append(
                zip(zip(x, u), du.x).reduce(0) { sum, entry in
                    let ((x, u), du) = entry
                    return u == -.infinity && !du.isNaN ? sum : sum + x * du
                })
        }
        return expected
    }

    private func addend(row: Int, column: Int) -> Double {
        mask.map { Double($0[row % 3 * (shape.columns + 4) + column]) } ?? 0
    }

    /// The gradients of softmax and log-softmax from y as it is stored: what 16 bits lose of y is
    /// no error of the kernel.
    func expectedGradient(_ function: Softmax.Function, y: [Double]) -> Expected {
        var expected = Expected(y: y, x: [], scale: [])
        for r in 0..<shape.rows {
            let count = count(ofRow: r)
            let y = (0..<count).map { y[r * shape.columns + $0] }
            let g = (0..<count).map { yGradient[r, $0].double }
            var sum = 0.0
            for (y, g) in zip(y, g) { sum += function == .softmax ? y * g : g }
            let du = zip(y, g).map { y, g in
                function == .softmax ? y * (g - sum) : g - exp(y) * sum
            }
            var scaleGradient = 0.0
            for (j, du) in du.enumerated() where y[j] != (function == .softmax ? 0 : -.infinity) {
                scaleGradient += x[r, j].double * du
            }
            expected.x += du.map { scale * $0 }
            expected.x += Array(repeating: 0, count: shape.columns - count)
            expected.scale.append(scaleGradient)
        }
        return expected
    }
}

/// ||found - expected|| / ||expected||, where entries that are expected to be smaller than `floor`
/// on average count as if they were that: logarithms near 0 have an absolute error. Entries that
/// are not finite must be equal in kind and place, and are left out.
func relativeError(_ found: [Double], _ expected: [Double], floor: Double) -> Double {
    let finite = expected.count { $0.isFinite }
    let norm = expected.reduce(0) { $1.isFinite ? $0 + $1 * $1 : $0 }.squareRoot()
    let least = floor * Double(finite).squareRoot()
    let error = relativeError(found, expected)
    guard norm < least, error.isFinite else { return error }
    // The other function gives the absolute error where the norm is 0.
    return norm < 1e-30 ? error / least : error * (norm / least)
}
