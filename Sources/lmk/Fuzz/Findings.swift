/// What checking a case came to: errors with their tolerances, and failures in words.
struct Findings {
    struct Worst {
        var error: Double
        var tolerance: Double
        /// Of the case it occurred in; filled in by the fuzzer.
        var index = 0
    }

    /// The largest error of each quantity, measured by its tolerance.
    private(set) var worst: [String: Worst] = [:]
    private(set) var failures: [String] = []
    /// How the kernel at hand was called, for messages.
    var context = ""

    /// Beyond these nobody reads.
    private static let maximumFailures = 8

    /// Takes note of an error.
    ///
    /// - Parameter place: Where it occurred and which values differ there, if it is too large.
    mutating func note(
        _ quantity: String, error: Double, tolerance: Double, place: @autoclosure () -> String
    ) {
        let known = worst[quantity]
        if known == nil || error / tolerance > known!.error / known!.tolerance {
            worst[quantity] = Worst(error: error, tolerance: tolerance)
        }
        if !(error <= tolerance) {
            fail(
                "\(quantity) has error \(scientific(error)), tolerance \(scientific(tolerance)): "
                    + place())
        }
    }

    mutating func fail(_ message: String) {
        guard failures.count < Self.maximumFailures else { return }
        failures.append(context.isEmpty ? message : "\(context): \(message)")
    }

    mutating func expect(_ condition: Bool, _ message: @autoclosure () -> String) {
        if !condition { fail(message()) }
    }
}

// MARK: - Arrays

extension Findings {
    /// Compares with the reference, element by element:
    ///
    ///     error = max |found[i] - expected[i]| / scale[i]
    ///
    /// Expected values that are not finite have to be found in kind.
    ///
    /// - Parameter scale: What rounding errors at each element are measured against: the sum of the
    ///   magnitudes that went into it, each times its sensitivity. Infinity lets any finite value
    ///   pass, NaN any value: float32 may overflow where the reference in Double does not.
    mutating func compare(
        _ quantity: String, _ found: [Float], _ expected: [Double], scale: [Double],
        tolerance: Double
    ) {
        guard found.count == expected.count, found.count == scale.count else {
            fail("\(quantity) has \(found.count) elements, not \(expected.count)")
            return
        }
        var largest = (error: 0.0, at: -1)
        for i in found.indices where !scale[i].isNaN {
            guard hasSameKind(found[i], expected[i]) else {
                fail("\(quantity)[\(i)] is \(found[i]), the reference has \(expected[i])")
                return
            }
            guard expected[i].isFinite, scale[i].isFinite else { continue }
            let difference = (Double(found[i]) - expected[i]).magnitude
            if difference == 0 { continue }
            let error = difference / scale[i]
            if error > largest.error { largest = (error, i) }
        }
        note(
            quantity, error: largest.error, tolerance: tolerance,
            place: "[\(largest.at)] is \(found[largest.at]), the reference has "
                + "\(expected[largest.at])")
    }

    /// Compares bits with those of another call; NaN has none to agree on.
    mutating func compareBits(
        _ quantity: String, _ found: [Float], with other: [Float], of way: String
    ) {
        guard found.count == other.count else {
            fail("\(quantity) has \(found.count) elements, \(other.count) by \(way)")
            return
        }
        if let i = firstDifference(found, other) {
            fail("\(quantity)[\(i)] is \(found[i]), but \(other[i]) by \(way)")
        }
    }

    /// Takes in what another case found.
    mutating func merge(_ other: Findings, index: Int) {
        for (quantity, theirs) in other.worst {
            let ours = worst[quantity]
            if ours == nil || theirs.error / theirs.tolerance > ours!.error / ours!.tolerance {
                worst[quantity] = Worst(
                    error: theirs.error, tolerance: theirs.tolerance, index: index)
            }
        }
    }
}
