import LMKernels
import Testing

/// float32 around every rounding decision: each half-precision number, the midpoint to its
/// neighbour, and what lies one float32 to either side; then every 4093rd float32.
private func roundingSamples(_ halves: [Float]) -> [Float] {
    var samples = halves
    for (low, high) in zip(halves, halves.dropFirst()) where low.isFinite && high.isFinite {
        let middle = Float((Double(low) + Double(high)) / 2)
        samples += [middle.nextDown, middle, middle.nextUp]
    }
    samples += stride(from: UInt32(0), to: .max, by: 4093).map(Float.init(bitPattern:))
    return samples
}

private func converted<Source: StorageElement, Destination: StorageElement>(
    _ x: [Source], to zero: Destination
) throws -> [Destination] {
    var y = Array(repeating: zero, count: x.count)
    var span = y.mutableSpan
    try Elementwise.convert(x.span, into: &span)
    return y
}

private let patterns = (0...UInt16.max).map { $0 }
private let allBFloat16 = patterns.map(BFloat16.init(bitPattern:))
private let allFloat16 = patterns.map(Float16.init(bitPattern:))

/// The nearest bfloat16 by comparing distances in Double, ties to the even one.
private func nearestBFloat16(_ x: Float) -> BFloat16 {
    if x.isNaN { return BFloat16(bitPattern: UInt16(x.bitPattern >> 16) | 0x40) }
    if x.isInfinite { return BFloat16(bitPattern: UInt16(x.bitPattern >> 16)) }
    let toZero = UInt16(x.bitPattern >> 16)
    // Beyond the largest bfloat16 stands 2^128, which means infinity.
    func value(_ pattern: UInt16) -> Double {
        let magnitude = pattern & 0x7fff
        return magnitude == 0x7f80
            ? 0x1p128 : Double(Float(bitPattern: UInt32(magnitude) << 16))
    }
    let below = Double(x.magnitude) - value(toZero)
    let above = value(toZero + 1) - Double(x.magnitude)
    let up = above < below || (above == below && toZero & 1 == 1)
    return BFloat16(bitPattern: up ? toZero + 1 : toZero)
}

extension KernelSuite {
    @Suite struct HalfTests {
        @Test func bfloat16ToFloatIsExact() throws {
            try withEachInstructionSet(of: .elementwise) { set in
                let y = try converted(allBFloat16, to: Float(0))
                for i in patterns.indices {
                    let expected = UInt32(patterns[i]) << 16
                    if Float(bitPattern: expected).isNaN {
                        #expect(y[i].isNaN, "\(patterns[i]), \(set)")
                    } else {
                        #expect(y[i].bitPattern == expected, "\(patterns[i]), \(set)")
                    }
                    #expect(Float(allBFloat16[i]).bitPattern == expected)
                }
            }
        }

        @Test func float16ToFloatIsExact() throws {
            try withEachInstructionSet(of: .elementwise) { set in
                let y = try converted(allFloat16, to: Float(0))
                for i in patterns.indices {
                    let expected = Float(allFloat16[i])
                    if expected.isNaN {
                        #expect(y[i].isNaN && y[i].sign == expected.sign, "\(patterns[i]), \(set)")
                    } else {
                        #expect(y[i].bitPattern == expected.bitPattern, "\(patterns[i]), \(set)")
                    }
                }
            }
        }

        @Test func floatToBFloat16RoundsToNearestEven() throws {
            let samples = roundingSamples(allBFloat16.map { Float($0) })
            let expected = samples.map(nearestBFloat16)
            #expect(samples.map { BFloat16($0) } == expected)
            try withEachInstructionSet(of: .elementwise) { set in
                let y = try converted(samples, to: BFloat16(bitPattern: 0))
                for i in y.indices where y[i] != expected[i] {
                    Issue.record("\(samples[i]) is \(y[i]), not \(expected[i]), \(set)")
                    return
                }
            }
        }

        @Test func floatToFloat16RoundsToNearestEven() throws {
            let samples = roundingSamples(allFloat16.map { Float($0) })
            try withEachInstructionSet(of: .elementwise) { set in
                let y = try converted(samples, to: Float16(0))
                for i in y.indices {
                    let expected = Float16(samples[i])
                    let isRight =
                        expected.isNaN
                        ? y[i].isNaN && y[i].sign == samples[i].sign && !y[i].isSignalingNaN
                        : y[i].bitPattern == expected.bitPattern
                    if !isRight {
                        Issue.record("\(samples[i]) is \(y[i]), not \(expected), \(set)")
                        return
                    }
                }
            }
        }

        @Test func betweenHalves() throws {
            let toFloat16 = allBFloat16.map { Float16(Float($0)) }
            let toBFloat16 = allFloat16.map { BFloat16(Float($0)) }
            try withEachInstructionSet(of: .elementwise) { set in
                let halves = try converted(allBFloat16, to: Float16(0))
                let brains = try converted(allFloat16, to: BFloat16(bitPattern: 0))
                for i in patterns.indices {
                    #expect(
                        halves[i].bitPattern == toFloat16[i].bitPattern
                            || halves[i].isNaN && toFloat16[i].isNaN, "\(patterns[i]), \(set)")
                    #expect(
                        brains[i] == toBFloat16[i]
                            || Float(brains[i]).isNaN && Float(toBFloat16[i]).isNaN,
                        "\(patterns[i]), \(set)")
                }
            }
        }

        @Test func sameTypeCopies() throws {
            try withEachInstructionSet(of: .elementwise) { set in
                let floats = stride(from: UInt32(0), to: .max, by: 65_521)
                    .map(Float.init(bitPattern:)).filter { !$0.isNaN }
                let floatCopies = try converted(floats, to: Float(0))
                #expect(bits(floatCopies) == bits(floats), "\(set)")
                let brains = allBFloat16.filter { !Float($0).isNaN }
                let brainCopies = try converted(brains, to: BFloat16(bitPattern: 0))
                #expect(brainCopies == brains, "\(set)")
                let halves = allFloat16.filter { !$0.isNaN }
                let halfCopies = try converted(halves, to: Float16(0))
                #expect(halfCopies.map(\.bitPattern) == halves.map(\.bitPattern), "\(set)")
            }
        }

        @Test func everyLengthAndStart() throws {
            let x = (0..<100).map { Float($0) * 1.37 - 50 }
            try withEachInstructionSet(of: .elementwise) { set in
                for count in Array(0...33) + [63, 64, 65] {
                    for offset in [0, 1, 3] {
                        let sentinel = BFloat16(bitPattern: 0xabcd)
                        var y = Array(repeating: sentinel, count: count + offset + 20)
                        try withPart(of: &y, offset..<offset + count) { part in
                            try Elementwise.convert(
                                x.span.extracting(offset..<offset + count), into: &part)
                        }
                        #expect(
                            Array(y[offset..<offset + count])
                                == x[offset..<offset + count].map { BFloat16($0) },
                            "\(count) from \(offset), \(set)")
                        y.removeSubrange(offset..<offset + count)
                        #expect(y.allSatisfy { $0 == sentinel }, "wrote outside, \(set)")
                    }
                }
            }
        }

        @Test func countsMustMatch() {
            let x: [Float] = [1, 2, 3]
            var y = [BFloat16(1), BFloat16(1)]
            #expect(throws: KernelError.countMismatch(argument: "y", expected: 3, actual: 2)) {
                var span = y.mutableSpan
                try Elementwise.convert(x.span, into: &span)
            }
        }
    }
}
