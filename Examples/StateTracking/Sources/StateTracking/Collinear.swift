import Foundation
import LMKernels
import LMKernelsReference

/// Errors of both forms with keys that are nearly the same, against Double.
///
/// Keys are `angle` away from one direction, each into a direction of its own. A chunk solves a
/// triangular system of their products, which are then all nearly 1.
struct Collinear {
    /// In degrees; keys in all directions come first.
    static let angles = [90, 30, 10, 3, 1, 0.3, 0.1]
    static let rates: [Float] = [0.5, 1, 1.9, 2]
    private static let (tokens, width) = (512, 64)

    /// [angles][rates], of the largest output.
    var recurrent: [[Double]] = []
    var chunked: [[Double]] = []

    init() throws {
        for angle in Self.angles {
            let errors = try Self.rates.map { try Self.errors(angle: angle, rate: $0) }
            recurrent.append(errors.map(\.recurrent))
            chunked.append(errors.map(\.chunked))
        }
    }

    private static func errors(
        angle: Double, rate: Float
    ) throws -> (recurrent: Double, chunked: Double) {
        var generator = SplitMix64(seed: 3)
        let axis = generator.direction(width)
        let (along, across) = (cos(angle * .pi / 180), sin(angle * .pi / 180))
        let key = (0..<tokens).flatMap { _ in
            let other = generator.direction(width)
            let overlap = zip(axis, other).reduce(0) { $0 + $1.0 * $1.1 }
            let normal = zip(axis, other).map { $1 - overlap * $0 }.unitLength
            return zip(axis, normal).map { Float(along * $0 + across * $1) }
        }
        let query = (0..<tokens).flatMap { _ in generator.direction(width).map(Float.init) }
        let value = (0..<tokens).flatMap { _ in generator.direction(width).map(Float.init) }
        let beta = [Float](repeating: rate, count: tokens)

        let exact = LMKernelsReference.DeltaRule.forward(
            .init(
                shape: .init(
                    batch: 1, tokens: tokens, heads: 1, keyHeads: 1, keyWidth: width,
                    valueWidth: width, householderSteps: 1),
                query: query.map(Double.init), key: key.map(Double.init),
                value: value.map(Double.init), update: .delta(.value(beta.map(Double.init))),
                scale: 1)
        ).output
        let largest = exact.map(\.magnitude).max()!
        func error(_ form: LMKernels.DeltaRule.Form) throws -> Double {
            var output = value
            try LMKernels.DeltaRule.forward(
                query: query.span, key: key.span, value: value.span, beta: beta.span,
                output: output.mutableSpan,
                shape: .init(tokens: tokens, heads: 1, keyWidth: width, valueWidth: width),
                options: .init(form: form, scale: 1), workspace: Workspace())
            return zip(output, exact).map { (Double($0) - $1).magnitude }.max()! / largest
        }
        return (try error(.recurrent), try error(.chunked))
    }
}
