import Foundation

/// Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019).
struct Adam {
    var decay: Float
    private static let meanRate: Float = 0.9
    private static let squareRate: Float = 0.999
    private var mean: Parameters
    private var square: Parameters
    private var steps = 0

    init(_ shape: ModelShape, decay: Float) {
        self.decay = decay
        mean = Parameters(zeros: shape)
        square = Parameters(zeros: shape)
    }

    mutating func update(_ parameters: inout Parameters, gradient: Parameters, rate: Float) {
        steps += 1
        let meanCorrection = 1 - pow(Self.meanRate, Float(steps))
        let squareCorrection = 1 - pow(Self.squareRate, Float(steps))
        let step = rate / meanCorrection * squareCorrection.squareRoot()
        for tensor in Parameters.tensors {
            // The bias knows how frequent a word is: that is not to be forgotten.
            let keep = tensor == \.outputBias ? 1 : 1 - rate * decay
            Self.update(
                &parameters[keyPath: tensor], gradient[keyPath: tensor],
                &mean[keyPath: tensor], &square[keyPath: tensor], step: step, keep: keep)
        }
    }

    /// Unsafe buffers, because a loop without bounds checks is vectorised: the embedding alone has
    /// more than half a million entries, all of which change in every step.
    private static func update(
        _ weights: inout [Float], _ gradient: [Float], _ mean: inout [Float],
        _ square: inout [Float], step: Float, keep: Float
    ) {
        let count = weights.count
        precondition(gradient.count == count && mean.count == count && square.count == count)
        let (b1, b2) = (meanRate, squareRate)
        weights.withUnsafeMutableBufferPointer { weights in
            gradient.withUnsafeBufferPointer { gradient in
                mean.withUnsafeMutableBufferPointer { mean in
                    square.withUnsafeMutableBufferPointer { square in
                        for i in 0..<count {
                            let g = gradient[i]
                            mean[i] = b1 * mean[i] + (1 - b1) * g
                            square[i] = b2 * square[i] + (1 - b2) * g * g
                            weights[i] =
                                keep * weights[i]
                                - step * mean[i] / (square[i].squareRoot() + 1e-8)
                        }
                    }
                }
            }
        }
    }
}
