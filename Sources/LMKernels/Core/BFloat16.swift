/// A 16-bit number with the exponent of float32 and 8 bits of precision: the upper half of a
/// float32.
///
/// This is a storage type. It has conversions and no arithmetic: convert to `Float` to calculate,
/// with `Elementwise.convert(_:into:)` for arrays.
///
/// `==` and `hash(into:)` compare bit patterns, so that a NaN equals itself and 0 differs from -0.
@frozen public struct BFloat16: Sendable, Hashable, BitwiseCopyable {
    /// Sign, 8 bits of exponent, 7 bits of fraction.
    public var bitPattern: UInt16

    public init(bitPattern: UInt16) {
        self.bitPattern = bitPattern
    }

    /// The nearest bfloat16, of two equally near ones the even one.
    ///
    /// From 0x1.ffp127, halfway past the largest bfloat16, the result is infinite. NaN becomes a
    /// quiet NaN with the same sign and upper payload.
    @inlinable public init(_ value: Float) {
        let bits = value.bitPattern
        if value.isNaN {
            bitPattern = UInt16(truncatingIfNeeded: bits >> 16) | 0x40
        } else {
            bitPattern = UInt16(truncatingIfNeeded: (bits + 0x7fff + ((bits >> 16) & 1)) >> 16)
        }
    }
}

extension Float {
    /// The same number; every bfloat16 is a float32.
    @inlinable public init(_ value: BFloat16) {
        self.init(bitPattern: UInt32(value.bitPattern) << 16)
    }
}

extension BFloat16: CustomStringConvertible {
    public var description: String { Float(self).description }
}
