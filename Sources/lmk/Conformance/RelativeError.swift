/// The distance of computed values from expected ones, by the rule of the conformance vectors:
///
///     ||found - expected|| / ||expected||          Euclidean norms over the whole tensor
///
/// or ||found|| where ||expected|| is nothing. Expected values that are not finite have to be found
/// in kind and place, and are left out of the norms.
struct RelativeError: Equatable {
    /// Infinite where a value is of the wrong kind.
    var value: Double
    /// What `value` may be: the tolerance, or where nothing is expected the bound on ||found||.
    var limit: Double
    var isWithinLimit: Bool
    /// Where the first value of the wrong kind is.
    var wrongKind: Int?

    /// An expected norm below this is nothing.
    static let leastNorm = 1e-30
    /// The bound on ||found|| then.
    static let absoluteLimit = 1e-6

    /// The arrays have equal numbers of elements.
    init(_ found: [Float], expected: [Double], tolerance: Double) {
        precondition(found.count == expected.count)
        var difference = Norm()
        var expectedNorm = Norm()
        var foundNorm = Norm()
        for (i, (x, y)) in zip(found, expected).enumerated() {
            guard hasSameKind(x, y) else {
                wrongKind = wrongKind ?? i
                continue
            }
            guard y.isFinite else { continue }
            difference.add(Double(x) - y)
            expectedNorm.add(y)
            foundNorm.add(Double(x))
        }
        let expectsNothing = expectedNorm.value < Self.leastNorm
        limit = expectsNothing ? Self.absoluteLimit : tolerance
        if wrongKind != nil {
            value = .infinity
            isWithinLimit = false
        } else if expectsNothing {
            value = foundNorm.value
            isWithinLimit = value < limit
        } else {
            value = difference.value / expectedNorm.value
            isWithinLimit = value <= limit
        }
    }

    /// How much of the limit is used up; orders errors of different tensors.
    var share: Double {
        if !isWithinLimit { return value == .infinity ? .infinity : max(value / limit, 1) }
        return limit > 0 ? value / limit : 0
    }
}

/// Whether both are finite, both NaN, or both infinite with the same sign.
func hasSameKind(_ x: Float, _ y: Double) -> Bool {
    y.isFinite ? x.isFinite : y.isNaN ? x.isNaN : Double(x) == y
}

/// A Euclidean norm whose squares neither overflow nor underflow.
struct Norm {
    private var largest = 0.0
    /// Sum of squares over `largest` squared.
    private var sum = 0.0

    var value: Double { largest * sum.squareRoot() }

    mutating func add(_ x: Double) {
        let magnitude = x.magnitude
        guard magnitude > 0 else { return }
        if magnitude > largest {
            let ratio = largest / magnitude
            sum = sum * ratio * ratio + 1
            largest = magnitude
        } else {
            let ratio = magnitude / largest
            sum += ratio * ratio
        }
    }
}
