/// SplitMix64: the same numbers on every platform and in every run.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// Uniform numbers.
    mutating func numbers(_ count: Int, in range: ClosedRange<Double>) -> [Double] {
        (0..<count).map { _ in Double.random(in: range, using: &self) }
    }
}

/// The largest distance between two arrays, as a share of the largest expected magnitude, or of 1
/// where that is smaller. NaN when a difference is, so that a comparison with it fails.
func worstError(_ found: [Double], _ expected: [Double]) -> Double {
    guard found.count == expected.count else { return .infinity }
    let scale = expected.reduce(1) { max($0, abs($1)) }
    var worst = 0.0
    for (x, y) in zip(found, expected) {
        let error = abs(x - y) / scale
        if error.isNaN { return .nan }
        worst = max(worst, error)
    }
    return worst
}

/// |found - expected| / |expected|.
func relativeError(_ found: Double, _ expected: Double) -> Double {
    abs(found - expected) / abs(expected)
}

/// Bound of both errors for values computed by hand. Measured with glibc on x86-64: 5.5e-16; the
/// functions of other C libraries may differ in the last place.
let rounding = 2e-15
