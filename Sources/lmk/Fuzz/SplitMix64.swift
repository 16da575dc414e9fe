/// SplitMix64 and the draws that random problems are made of, all by our own arithmetic: a seed
/// gives the same problem on every platform and with every compiler.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    /// The generator of one case, which depends on nothing but these three.
    init(seed: UInt64, operation: String, index: Int) {
        var hash = Self.mixed(seed)
        for byte in operation.utf8 { hash = Self.mixed(hash ^ UInt64(byte)) }
        state = Self.mixed(hash ^ UInt64(truncatingIfNeeded: index))
    }

    private static func mixed(_ value: UInt64) -> UInt64 {
        var generator = SplitMix64(seed: value)
        return generator.next()
    }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

extension SplitMix64 {
    /// In 0 ..< `count`, which is at least 1.
    mutating func below(_ count: Int) -> Int {
        Int(next().multipliedFullWidth(by: UInt64(count)).high)
    }

    mutating func integer(_ range: ClosedRange<Int>) -> Int {
        range.lowerBound + below(range.upperBound - range.lowerBound + 1)
    }

    /// In -1 ..< 1, a multiple of 2^-23.
    mutating func unit() -> Float { Float(Int(next() >> 40)) * 0x1p-23 - 1 }

    mutating func number(_ range: ClosedRange<Float>) -> Float {
        let share = Float(next() >> 40) * 0x1p-24
        return range.lowerBound + share * (range.upperBound - range.lowerBound)
    }

    /// A power of two, its exponent drawn.
    mutating func power(_ exponents: ClosedRange<Int>) -> Float {
        Float(sign: .plus, exponent: integer(exponents), significand: 1)
    }

    /// True once in `count` times.
    mutating func once(in count: Int) -> Bool { below(count) == 0 }

    mutating func pick<Element>(_ elements: [Element]) -> Element {
        elements[below(elements.count)]
    }

    /// A length up to `limit`: often around the edges of vectors, register tiles and blocks, often
    /// small, rarely 0.
    mutating func length(upTo limit: Int, orZero: Bool = true) -> Int {
        if orZero, once(in: 24) { return 0 }
        let edges = [
            1, 2, 13, 14, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129, 255, 256,
            257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049,
        ]
        let possible = edges.filter { $0 <= limit }
        if once(in: 2), !possible.isEmpty { return pick(possible) }
        return integer(1...max(1, once(in: 2) ? min(limit, 40) : limit))
    }

    mutating func threads() -> Int { pick([1, 2, 3, 8]) }
}
