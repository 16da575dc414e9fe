import LMKernelsReference
import Testing

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

@Suite struct HouseholderProductTests {
    /// B = 2 and K = 4, with M = 3.
    private func random(
        count: Int, isOrthogonal: Bool = false
    ) -> (factors: HouseholderProduct.Factors, x: [Double]) {
        var generator = SeededGenerator(seed: UInt64(count))
        var factors = HouseholderProduct.Factors(
            batch: 2, count: count, width: 4, key: generator.numbers(8 * count, in: -1...1),
            beta: generator.numbers(2 * count, in: -1...3))
        if isOrthogonal {
            for i in factors.beta.indices {
                let key = factors.key[4 * i..<4 * i + 4]
                factors.beta[i] = 2 / key.map { $0 * $0 }.reduce(0, +)
            }
        }
        return (factors, generator.numbers(24, in: -1...1))
    }

    /// P of product b by its definition, as a matrix.
    private func product(_ factors: HouseholderProduct.Factors, _ b: Int) -> Matrix {
        (0..<factors.count).reduce(Matrix(identity: factors.width)) { product, i in
            let k = column(factors, b, i)
            let beta = factors.beta[b * factors.count + i]
            return product
                * (Matrix(identity: factors.width) + (k * k.transposed).scaled(by: -beta))
        }
    }

    private func column(_ factors: HouseholderProduct.Factors, _ b: Int, _ i: Int) -> Matrix {
        let row = b * factors.count + i
        return Matrix(
            column: Array(factors.key[row * factors.width..<(row + 1) * factors.width]))
    }

    /// V of product b.
    private func columns(_ factors: HouseholderProduct.Factors, _ b: Int) -> Matrix {
        let count = factors.count * factors.width
        return Matrix(
            rows: factors.count, columns: factors.width,
            entries: Array(factors.key[b * count..<(b + 1) * count])
        ).transposed
    }

    /// T of product b.
    private func triangle(_ factors: HouseholderProduct.Factors, _ b: Int) -> Matrix {
        let n = factors.count
        let all = HouseholderProduct.triangularFactor(factors)
        return Matrix(rows: n, columns: n, entries: Array(all[b * n * n..<(b + 1) * n * n]))
    }

    /// H_1 = diag(-1, 1) and H_2 = (0 -1, -1 0).
    @Test func byHand() {
        let factors = HouseholderProduct.Factors(
            batch: 1, count: 2, width: 2, key: [1, 0, 1, 1], beta: [2, 1])
        func applied(_ x: [Double], _ side: HouseholderProduct.Side, _ isTransposed: Bool)
            -> [Double]
        {
            HouseholderProduct.apply(
                factors, to: x, vectors: x.count / 2, side: side, isTransposed: isTransposed)
        }
        // P = (0 1, -1 0).
        #expect(applied([1, 0, 0, 1], .left, false) == [0, 1, -1, 0])
        #expect(applied([1, 2, 3, 4, 5, 6], .left, false) == [4, 5, 6, -1, -2, -3])
        #expect(applied([1, 2, 3, 4, 5, 6], .left, true) == [-4, -5, -6, 1, 2, 3])
        #expect(applied([1, 2, 3, 4, 5, 6], .right, false) == [-2, 1, -4, 3, -6, 5])
        #expect(applied([1, 2, 3, 4, 5, 6], .right, true) == [2, -1, 4, -3, 6, -5])
        #expect(HouseholderProduct.triangularFactor(factors) == [2, -2, 0, 1])
    }

    @Test(arguments: [0, 1, 2, 5], HouseholderProduct.Side.allCases)
    func matrices(count: Int, side: HouseholderProduct.Side) {
        let (factors, x) = random(count: count)
        for isTransposed in [false, true] {
            let found = HouseholderProduct.apply(
                factors, to: x, vectors: 3, side: side, isTransposed: isTransposed)
            let expected = (0..<2).flatMap { b -> [Double] in
                let entries = Array(x[12 * b..<12 * b + 12])
                let p = product(factors, b)
                let factor = isTransposed ? p.transposed : p
                switch side {
                case .left: return (factor * Matrix(rows: 4, columns: 3, entries: entries)).entries
                case .right: return (Matrix(rows: 3, columns: 4, entries: entries) * factor).entries
                }
            }
            // Measured: 5.1e-16.
            #expect(worstError(found, expected) < rounding)
        }
    }

    /// P = I - V T V^T, T is upper triangular, and its inverse is as stated.
    @Test(arguments: [0, 1, 2, 5])
    func compactForm(count: Int) {
        let (factors, _) = random(count: count)
        for b in 0..<2 {
            let (v, t) = (columns(factors, b), triangle(factors, b))
            let found = Matrix(identity: 4) + (v * t * v.transposed).scaled(by: -1)
            // Measured: 4.6e-16 and, of the inverse, 4.5e-16.
            #expect(worstError(found.entries, product(factors, b).entries) < rounding)

            var inverse = v.transposed * v
            for i in 0..<count {
                for j in 0..<i {
                    #expect(t[i, j] == 0)
                    inverse[i, j] = 0
                }
                inverse[i, i] = 1 / factors.beta[b * count + i]
            }
            let identity = Matrix(identity: count).entries
            #expect(worstError((t * inverse).entries, identity) < rounding)
        }
    }

    /// beta = 2 / |k|^2: P^T P X = X = P P^T X, and lengths stay.
    @Test(arguments: HouseholderProduct.Side.allCases, [false, true])
    func orthogonal(side: HouseholderProduct.Side, isTransposed: Bool) {
        let (factors, x) = random(count: 5, isOrthogonal: true)
        let once = HouseholderProduct.apply(
            factors, to: x, vectors: 3, side: side, isTransposed: isTransposed)
        let back = HouseholderProduct.apply(
            factors, to: once, vectors: 3, side: side, isTransposed: !isTransposed)
        #expect(worstError(once, x) > 0.1)
        #expect(worstError(back, x) < rounding)
        func squares(_ x: [Double]) -> Double { x.map { $0 * $0 }.reduce(0, +) }
        #expect(relativeError(squares(once), squares(x)) < rounding)
    }

    @Test(arguments: HouseholderProduct.Side.allCases, [false, true])
    func matchFiniteDifferences(side: HouseholderProduct.Side, isTransposed: Bool) {
        var generator = SeededGenerator(seed: 4)
        for count in [0, 1, 4] {
            let (factors, x) = random(count: count)
            let g = generator.numbers(24, in: -1...1)
            let found = HouseholderProduct.applyBackward(
                factors, to: x, outputGradient: g, vectors: 3, side: side,
                isTransposed: isTransposed)
            func objective(_ factors: HouseholderProduct.Factors, _ x: [Double]) -> Double {
                let y = HouseholderProduct.apply(
                    factors, to: x, vectors: 3, side: side, isTransposed: isTransposed)
                return zip(g, y).map { $0 * $1 }.reduce(0, +)
            }
            let errors = [
                worstError(found.x, differences(of: { objective(factors, $0) }, at: x)),
                worstError(
                    found.key,
                    differences(
                        of: { key in
                            var moved = factors
                            moved.key = key
                            return objective(moved, x)
                        }, at: factors.key)),
                worstError(
                    found.beta,
                    differences(
                        of: { beta in
                            var moved = factors
                            moved.beta = beta
                            return objective(moved, x)
                        }, at: factors.beta)),
            ]
            // Measured: 1.2e-12.
            for error in errors {
                #expect(error < 1e-11, "count \(count)")
            }
        }
    }

    /// Steps of the delta rule without values take the state to P^T S, and its gradients are those
    /// of P^T.
    @Test(arguments: 1...3)
    func deltaRule(steps: Int) {
        var generator = SeededGenerator(seed: 6)
        let (tokens, keyWidth, valueWidth) = (4, 3, 2)
        let count = tokens * steps
        let factors = HouseholderProduct.Factors(
            batch: 1, count: count, width: keyWidth,
            key: generator.numbers(count * keyWidth, in: -1...1),
            beta: generator.numbers(count, in: 0...2))
        let state = generator.numbers(keyWidth * valueWidth, in: -1...1)
        let problem = DeltaRule.Problem(
            shape: DeltaRule.Shape(
                batch: 1, tokens: tokens, heads: 1, keyHeads: 1, keyWidth: keyWidth,
                valueWidth: valueWidth, householderSteps: steps),
            query: generator.numbers(tokens * keyWidth, in: -1...1), key: factors.key,
            value: Array(repeating: 0, count: count * valueWidth),
            update: .delta(.value(factors.beta)), initialState: state)
        let expected = HouseholderProduct.apply(
            factors, to: state, vectors: valueWidth, isTransposed: true)
        #expect(worstError(DeltaRule.forward(problem).finalState, expected) < rounding)

        let g = generator.numbers(state.count, in: -1...1)
        let found = DeltaRule.backward(
            problem, outputGradient: Array(repeating: 0, count: tokens * valueWidth),
            finalStateGradient: g)
        let gradients = HouseholderProduct.applyBackward(
            factors, to: state, outputGradient: g, vectors: valueWidth, isTransposed: true)
        #expect(worstError(found.initialState, gradients.x) < rounding)
        #expect(worstError(found.key, gradients.key) < rounding)
        #expect(worstError(found.beta, gradients.beta) < rounding)
    }

    @Test func nothing() {
        var factors = HouseholderProduct.Factors(
            batch: 0, count: 2, width: 3, key: [], beta: [])
        #expect(HouseholderProduct.triangularFactor(factors) == [])
        #expect(HouseholderProduct.apply(factors, to: [], vectors: 2) == [])
        factors = HouseholderProduct.Factors(
            batch: 1, count: 1, width: 2, key: [1, 1], beta: [0])
        #expect(HouseholderProduct.apply(factors, to: [], vectors: 0, side: .right) == [])
        #expect(HouseholderProduct.apply(factors, to: [3, 4], vectors: 1) == [3, 4])
        let gradients = HouseholderProduct.applyBackward(
            factors, to: [3, 4], outputGradient: [5, 6], vectors: 1)
        #expect(gradients.x == [5, 6] && gradients.key == [0, 0] && gradients.beta == [-77])
    }
}
