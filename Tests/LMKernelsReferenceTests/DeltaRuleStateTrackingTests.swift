import LMKernelsReference
import Testing

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// What reflections can count, with keys of integers, so that nothing is rounded.
@Suite struct DeltaRuleStateTrackingTests {
    /// One head without values. Each token has R keys with their betas, and all have one query.
    private func outputs(
        _ tokens: [[(key: [Double], beta: Double)]], query: [Double], start: [Double]
    ) -> [Double] {
        let keyWidth = query.count
        let (steps, valueWidth) = (tokens[0].count, start.count / keyWidth)
        return DeltaRule.forward(
            DeltaRule.Problem(
                shape: DeltaRule.Shape(
                    batch: 1, tokens: tokens.count, heads: 1, keyHeads: 1, keyWidth: keyWidth,
                    valueWidth: valueWidth, householderSteps: steps),
                query: tokens.flatMap { _ in query }, key: tokens.flatMap { $0.flatMap(\.key) },
                value: Array(repeating: 0, count: tokens.count * steps * valueWidth),
                update: .delta(.value(tokens.flatMap { $0.map(\.beta) })), scale: 1,
                initialState: start)
        ).output
    }

    /// A one flips the sign, a zero leaves it: K = 1.
    @Test func parity() {
        var generator = SeededGenerator(seed: 11)
        let bits = (0..<5000).map { _ in Int.random(in: 0...1, using: &generator) }
        let found = outputs(
            bits.map { [([1], $0 == 1 ? 2 : 0)] }, query: [1], start: [1])
        var ones = 0
        let expected = bits.map { bit in
            ones += bit
            return ones % 2 == 0 ? 1.0 : -1.0
        }
        #expect(found == expected)
    }

    /// Two reflections per one turn three places round, (0 1) then (1 2).
    @Test func countingModuloThree() {
        var generator = SeededGenerator(seed: 12)
        let bits = (0..<5000).map { _ in Int.random(in: 0...1, using: &generator) }
        let found = outputs(
            bits.map { bit in
                [([1, -1, 0], Double(bit)), ([0, 1, -1], Double(bit))]
            }, query: [0, 2, 1], start: [1, 0, 0])
        var ones = 0
        let expected = bits.map { bit in
            ones += bit
            return Double(ones % 3)
        }
        #expect(found == expected)
    }

    /// The same in the plane: reflections at an angle of 60 degrees turn it by 120.
    @Test func turningByThirds() {
        let angle = Double.pi / 3
        let found = outputs(
            (0..<3000).map { _ in [([1, 0], 2), ([cos(angle), sin(angle)], 2)] }, query: [1, 0],
            start: [1, 0])
        let expected = (0..<3000).map { $0 % 3 == 2 ? 1 : -0.5 }
        // Measured: 7.1e-13.
        #expect(worstError(found, expected) < 1e-11)
    }

    /// S5: one reflection per swap of neighbours carries five items, the columns of the state, to
    /// their places, which the query numbers.
    @Test func permutationsOfFive() {
        var generator = SeededGenerator(seed: 13)
        let swaps = (0..<3000).map { _ in Int.random(in: 0..<4, using: &generator) }
        let found = outputs(
            swaps.map { i in
                var key = Array(repeating: 0.0, count: 5)
                (key[i], key[i + 1]) = (1, -1)
                return [(key, 1)]
            }, query: [0, 1, 2, 3, 4], start: Matrix(identity: 5).entries)
        var items = [0, 1, 2, 3, 4]
        let expected = swaps.flatMap { i in
            items.swapAt(i, i + 1)
            return (0..<5).map { item in Double(items.firstIndex(of: item)!) }
        }
        #expect(found == expected)
    }
}
