import Foundation
import LMKernels

/// A row's logits in Double, with what follows from rounding them in float32.
struct CrossEntropyLogits {
    private(set) var z: [Double]
    /// Scale of the errors of z.
    private(set) var error: [Double]
    /// |dz / da|, and the scale of its relative errors.
    private(set) var slope: [Double]
    private(set) var slopeError: [Double]
    private(set) var quality = Quality.proportional

    enum Quality {
        /// Errors are in proportion to scales.
        case proportional
        /// Results are finite.
        case uncertain
        /// Results are NaN.
        case notFinite
        /// Results may be anything.
        case mayOverflow
    }

    /// The error of a logit is at most this times its scale: 2^-24 and some more for the length of
    /// sums.
    static let unit = 8 * 0x1p-24
    /// Changes of logits below this change probabilities in proportion.
    private static let proportional = 0.02
    /// Half of the least denormal number, in units of `unit`.
    private static let underflow = 0x1p-128

    init(_ problem: CrossEntropyCase, row: Int) {
        let (features, vocabulary) = (problem.features, problem.vocabulary)
        let zeros = Array(repeating: 0.0, count: vocabulary)
        (z, error, slope, slopeError) = (zeros, zeros, zeros, zeros)
        for j in 0..<vocabulary {
            var a = Double(problem.bias?[j] ?? 0)
            var magnitude = a.magnitude + Double(features + 4) * Self.underflow
            for k in 0..<features {
                let product =
                    Double(problem.hidden[row * features + k])
                    * Double(problem.classifier[j * features + k])
                a += product
                magnitude += product.magnitude
            }
            take(a, magnitude, j, problem.options)
        }
        if quality != .mayOverflow { judge() }
    }

    /// - Parameter magnitude: Scale of the errors of a.
    private mutating func take(
        _ a: Double, _ magnitude: Double, _ j: Int, _ options: CrossEntropy.Options
    ) {
        let scale = Double(options.logitScale)
        if magnitude.isFinite, magnitude * max(1, scale.magnitude) > CrossEntropyScales.overflow {
            quality = .mayOverflow
        }
        guard let cap = options.softcap.map({ Double($0) }) else {
            z[j] = scale * a
            error[j] = scale.magnitude * magnitude + Self.underflow
            slope[j] = scale.magnitude
            slopeError[j] = 1
            return
        }
        let x = a / cap
        let s = cap * tanh(x)
        let derivative = 1 / (cosh(x) * cosh(x))
        z[j] = scale * s
        slope[j] = scale.magnitude * derivative
        // e^-2x is nothing in float32, whatever rounding does to x.
        let isSaturated = x.isInfinite || x.magnitude - Self.unit * (magnitude / cap) > 60
        error[j] =
            scale.magnitude * (s.magnitude + (isSaturated ? 0 : derivative * magnitude))
            + (1 + scale.magnitude * cap) * Self.underflow
        slopeError[j] = 1 + (isSaturated ? 0 : 2 * magnitude / cap)
        if !isSaturated, Self.unit * magnitude / cap > Self.proportional, quality == .proportional {
            quality = .uncertain
        }
    }

    /// Whether probabilities are certain: rounding the logits that matter changes little.
    private mutating func judge() {
        guard z.allSatisfy({ $0 < .infinity }), let largest = z.indices.max(by: { z[$0] < z[$1] }),
            z[largest] > -.infinity
        else {
            quality = .notFinite
            return
        }
        // e^-104 is less than the least number.
        let least = z[largest] - Self.unit * error[largest] - 110
        for j in z.indices where z[j] > -.infinity {
            let error = Self.unit * error[j]
            if z[j] + error >= least, error > Self.proportional { quality = .uncertain }
        }
    }
}
