import Foundation
import LMKernels
import Testing

/// A function, the same in Double, and bounds on its error in units in the last place of the exact
/// result. The bounds are errors measured over every float32, rounded up.
private struct Function: CustomTestStringConvertible, Sendable {
    var name: String
    var run: @Sendable (Span<Float>, inout MutableSpan<Float>) throws(KernelError) -> Void
    var exact: @Sendable (Double) -> Double
    /// With fused multiply-add, and without.
    var bounds: (fused: Double, unfused: Double)
    var special: [(x: Float, y: Float)]

    var testDescription: String { name }

    func callAsFunction(_ x: [Float]) throws -> [Float] {
        var y = Array(repeating: Float(-777), count: x.count)
        var span = y.mutableSpan
        try run(x.span, &span)
        return y
    }
}

private let functions = [
    Function(
        name: "exp",
        run: { x, y throws(KernelError) in try Elementwise.exp(x, into: &y) },
        exact: { exp($0) },
        // On these samples, measured: 0.870, 1.115
        bounds: (0.92, 1.19),
        special: [
            (0, 1), (-0.0, 1), (.infinity, .infinity), (-.infinity, 0), (89, .infinity),
            (-104, 0), (1e30, .infinity), (-1e30, 0), (0x1p-149, 1),
            // The least denormal, and the largest argument that is not infinite.
            (-103.9, 0x1p-149), (88.72283, 0x1.ffff08p127),
        ]),
    Function(
        name: "log",
        run: { x, y throws(KernelError) in try Elementwise.log(x, into: &y) },
        exact: { log($0) },
        // On these samples, measured: 0.806, 0.888
        bounds: (0.92, 0.98),
        special: [
            (1, 0), (0, -.infinity), (-0.0, -.infinity), (.infinity, .infinity), (-1, .nan),
            (-.infinity, .nan), (-0x1p-149, .nan), (0x1p-149, -103.27893),
            (.greatestFiniteMagnitude, 88.72284),
        ]),
    Function(
        name: "log1p",
        run: { x, y throws(KernelError) in try Elementwise.log1p(x, into: &y) },
        exact: { log1p($0) },
        // On these samples, measured: 0.822, 0.824
        bounds: (0.92, 1.00),
        special: [
            (0, 0), (-0.0, -0.0), (-1, -.infinity), (.infinity, .infinity), (-1.5, .nan),
            (-.infinity, .nan), (0x1p-149, 0x1p-149), (-0x1p-149, -0x1p-149),
        ]),
    Function(
        name: "expm1",
        run: { x, y throws(KernelError) in try Elementwise.expm1(x, into: &y) },
        exact: { expm1($0) },
        // On these samples, measured: 1.160, 1.131
        bounds: (1.24, 1.26),
        special: [
            (0, 0), (-0.0, -0.0), (.infinity, .infinity), (-.infinity, -1), (-1e30, -1),
            (89, .infinity), (0x1p-149, 0x1p-149), (-0x1p-149, -0x1p-149),
        ]),
    Function(
        name: "tanh",
        run: { x, y throws(KernelError) in try Elementwise.tanh(x, into: &y) },
        exact: { tanh($0) },
        // On these samples, measured: 1.632, 1.728
        bounds: (1.75, 1.81),
        special: [
            (0, 0), (-0.0, -0.0), (.infinity, 1), (-.infinity, -1), (1e30, 1), (-1e30, -1),
            (20, 1), (0x1p-149, 0x1p-149), (-0x1p-149, -0x1p-149),
        ]),
    Function(
        name: "sigmoid",
        run: { x, y throws(KernelError) in try Elementwise.sigmoid(x, into: &y) },
        exact: { $0 < 0 ? exp($0) / (1 + exp($0)) : 1 / (1 + exp(-$0)) },
        // On these samples, measured: 1.526, 1.567
        bounds: (1.65, 1.99),
        special: [
            (0, 0.5), (-0.0, 0.5), (.infinity, 1), (-.infinity, 0), (1e30, 1), (-1e30, 0),
            (-103.9, 0x1p-149), (30, 1),
        ]),
]

/// Every 2039th float32 from one end of the bit patterns to the other, and all within 1000 of the
/// powers of two from 2^-8 to 2^8.
private let samples: [Float] = {
    var patterns = Array(stride(from: UInt32(0), to: .max, by: 2039))
    for exponent in UInt32(119)...135 {
        for sign in [UInt32(0), 0x8000_0000] {
            let power = sign | exponent << 23
            patterns += (power - 1000)...(power + 1000)
        }
    }
    return patterns.map(Float.init(bitPattern:))
}()

/// The distance from `x` to `exact` in units in the last place of `exact` as a float32. Infinity
/// stands where the next number would be, at 2^128.
private func ulps(_ x: Float, _ exact: Double) -> Double {
    if exact.isNaN || x.isNaN { return exact.isNaN && x.isNaN ? 0 : .infinity }
    func clamped(_ value: Double) -> Double { min(max(value, -0x1p128), 0x1p128) }
    let unit = min(Float(exact).magnitude, .greatestFiniteMagnitude).ulp
    return (clamped(Double(x)) - clamped(exact)).magnitude / Double(unit)
}

extension KernelSuite {
    @Suite struct ElementwiseTests {
        @Test(arguments: functions)
        fileprivate func errorIsBounded(_ function: Function) throws {
            let exact = samples.map { function.exact(Double($0)) }
            try withEachInstructionSet(of: .elementwise) { set in
                let y = try function(samples)
                var worst = (error: 0.0, x: Float(0))
                for i in y.indices {
                    let error = ulps(y[i], exact[i])
                    if error > worst.error { worst = (error, samples[i]) }
                }
                let isFused = fusedSets.contains(set)
                let bound = isFused ? function.bounds.fused : function.bounds.unfused
                #expect(worst.error <= bound, "\(function.name) of \(worst.x), \(set)")
            }
        }

        @Test(arguments: functions)
        fileprivate func specialValues(_ function: Function) throws {
            try withEachInstructionSet(of: .elementwise) { set in
                for (x, y) in function.special {
                    let actual = try function([x])[0]
                    #expect(
                        y.isNaN ? actual.isNaN : actual.bitPattern == y.bitPattern,
                        "\(function.name) of \(x) is \(actual), not \(y), \(set)")
                }
                let nan = try function([.nan, -.nan, .signalingNaN])
                #expect(nan.allSatisfy { $0.isNaN && !$0.isSignalingNaN }, "\(set)")
            }
        }

        @Test(arguments: functions)
        fileprivate func fusedInstructionSetsAgree(_ function: Function) throws {
            var first: [UInt32]?
            try withEachInstructionSet(fusedSets, of: .elementwise) { set in
                let these = bits(try function(samples))
                if let first {
                    for i in these.indices where these[i] != first[i] {
                        // NaN has no bits to agree on.
                        if Float(bitPattern: these[i]).isNaN, Float(bitPattern: first[i]).isNaN {
                            continue
                        }
                        Issue.record("\(function.name) of \(samples[i]), \(set)")
                        return
                    }
                } else {
                    first = these
                }
            }
        }

        /// An element's result depends on neither its position nor its neighbours, and nothing
        /// outside is written.
        @Test(arguments: functions)
        fileprivate func everyLengthAndStart(_ function: Function) throws {
            let x = (0..<300).map { 0.01 + 0.05 * Float($0) }
            try withEachInstructionSet(of: .elementwise) { set in
                let alone = try x.map { try function([$0])[0] }
                for count in Array(0...49) + [63, 64, 65, 127, 255, 256, 257] {
                    for offset in [0, 1, 3] {
                        let sentinel: Float = -777
                        var y = Array(repeating: sentinel, count: count + offset + 20)
                        try withPart(of: &y, offset..<offset + count) { part in
                            try function.run(x.span.extracting(offset..<offset + count), &part)
                        }
                        let result = Array(y[offset..<offset + count])
                        #expect(
                            bits(result) == bits(Array(alone[offset..<offset + count])),
                            "\(function.name) of \(count) from \(offset), \(set)")
                        y.removeSubrange(offset..<offset + count)
                        #expect(y.allSatisfy { $0 == sentinel }, "wrote outside, \(set)")
                    }
                }
            }
        }

        @Test(arguments: functions)
        fileprivate func countsMustMatch(_ function: Function) {
            let x: [Float] = [1, 2, 3]
            for count in [0, 2, 4] {
                var y = Array(repeating: Float(5), count: count)
                do throws(KernelError) {
                    var span = y.mutableSpan
                    try function.run(x.span, &span)
                    Issue.record("no error for \(count)")
                } catch {
                    #expect(error == .countMismatch(argument: "y", expected: 3, actual: count))
                }
                #expect(y.allSatisfy { $0 == 5 })
            }
        }
    }
}
