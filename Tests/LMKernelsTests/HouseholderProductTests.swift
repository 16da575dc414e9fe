import LMKernels
import LMKernelsReference
import Testing

/// Batch, factors, dimensions and vectors around the edges of blocks, panels and tiles.
private let sizes = [
    (1, 1, 1, 1), (2, 3, 5, 7), (3, 16, 16, 31), (1, 17, 64, 32), (1, 15, 65, 33), (2, 33, 63, 64),
    (1, 32, 127, 65), (1, 65, 128, 17), (1, 31, 257, 16), (1, 64, 129, 15), (1, 100, 20, 129),
    (1, 63, 33, 257), (20, 5, 9, 3), (1, 130, 300, 40),
]

private let ways: [(HouseholderProduct.Side, Bool)] = [
    (.left, false), (.left, true), (.right, false), (.right, true),
]

extension KernelSuite {
    @Suite struct HouseholderProductTests {
        // MARK: Against the reference

        private func worstErrors<Element: TestElement>(
            _ type: Element.Type
        ) throws -> (y: Double, k: Double, beta: Double, x: Double) {
            var worst = (y: 0.0, k: 0.0, beta: 0.0, x: 0.0)
            for (i, (batch, factors, dimensions, vectors)) in sizes.enumerated() {
                for (side, isTransposed) in ways {
                    let problem = HouseholderProblem<Element>(
                        batch: batch, factors: factors, dimensions: dimensions, vectors: vectors,
                        side: side, isTransposed: isTransposed, gap: [0, 5, 1][i % 3],
                        seed: UInt64(i))
                    let (y, gradients) = (problem.expected(), problem.expectedGradients())
                    try withEachInstructionSet(of: .householderProduct) { set in
                        let found = try problem.apply(threads: 2)
                        let back = try problem.backward(threads: 2)
                        #expect(found.isFillerKept && back.areFillersKept, "\(problem) \(set)")
                        worst.y = max(worst.y, arrayError(found.dense, y))
                        worst.k = max(worst.k, arrayError(back.k.dense, gradients.key))
                        worst.beta = max(worst.beta, arrayError(back.beta.dense, gradients.beta))
                        worst.x = max(worst.x, arrayError(back.x.dense, gradients.x))
                    }
                }
            }
            return worst
        }

        @Test func float32MatchesReference() throws {
            let worst = try worstErrors(Float.self)
            // Measured: 6.1e-7, 8.3e-7, 8.9e-7, 7.0e-7
            #expect(worst.y < 1.5e-6 && worst.k < 2e-6 && worst.beta < 2e-6 && worst.x < 1.5e-6)
        }

        @Test func halvesMatchReference() throws {
            let bfloat16 = try worstErrors(BFloat16.self)
            #expect(max(bfloat16.y, bfloat16.k, bfloat16.x) < 4e-3)
            #expect(bfloat16.beta < 2e-6)
            let float16 = try worstErrors(Float16.self)
            #expect(max(float16.y, float16.k, float16.x) < 5e-4)
            #expect(float16.beta < 2e-6)
        }

        @Test func triangleMatchesReference() throws {
            var worst = 0.0
            for (i, (batch, factors, dimensions, _)) in sizes.enumerated() {
                let problem = HouseholderProblem<Float>(
                    batch: batch, factors: factors, dimensions: dimensions, vectors: 1,
                    seed: UInt64(i))
                let expected = ReferenceHouseholderProduct.triangularFactor(problem.factors)
                try withEachInstructionSet(of: .householderProduct) { set in
                    let t = try problem.triangle(threads: 2)
                    #expect(t.isFillerKept, "\(problem) \(set)")
                    worst = max(worst, arrayError(t.dense, expected))
                    for b in 0..<batch {
                        for row in 0..<factors {
                            let start = (b * factors + row) * factors
                            #expect((start..<start + row).allSatisfy { t[$0].bitPattern == 0 })
                            #expect(t[start + row] == problem.beta[b * factors + row])
                        }
                    }
                }
            }
            // Measured: 3.5e-7
            #expect(worst < 1e-6)
        }

        /// Keys that are nearly the same, and beta = 2 / |k|^2: T is large where P is orthogonal.
        @Test func nearlyCollinearReflections() throws {
            var problem = HouseholderProblem<Float>(factors: 128, dimensions: 96, vectors: 20)
            let direction = (0..<96).map { problem.k[$0] }
            for i in 0..<128 {
                var square: Float = 0
                for d in 0..<96 {
                    problem.k[96 * i + d] = direction[d] + 1e-3 * problem.k[96 * i + d]
                    square += problem.k[96 * i + d] * problem.k[96 * i + d]
                }
                problem.beta[i] = 2 / square
            }
            let y = try problem.apply().dense
            let error = arrayError(y, problem.expected())
            // Measured: 1.3e-5
            #expect(error < 4e-5)
        }

        // MARK: Exactly

        /// Swaps of coordinates, k = e_a - e_b and beta = 1, and signs, k = e_a and beta = 2: whole
        /// numbers throughout.
        private func permutation(
            _ side: HouseholderProduct.Side, _ isTransposed: Bool, factors: Int, dimensions: Int
        ) -> HouseholderProblem<Float> {
            var random = SeededGenerator(seed: 9)
            var problem = HouseholderProblem<Float>(
                batch: 2, factors: factors, dimensions: dimensions, vectors: 37, side: side,
                isTransposed: isTransposed)
            for row in 0..<2 * factors {
                for d in 0..<dimensions { problem.k[row * dimensions + d] = 0 }
                let (a, b) = (
                    Int.random(in: 0..<dimensions, using: &random),
                    Int.random(in: 0..<dimensions, using: &random)
                )
                problem.k[row * dimensions + a] = 1
                if a != b { problem.k[row * dimensions + b] = -1 }
                problem.beta[row] = a == b ? 2 : 1
            }
            problem.x = problem.x.filled { _ in Float(Int.random(in: -9...9, using: &random)) }
            problem.dy = problem.dy.filled { _ in Float(Int.random(in: -9...9, using: &random)) }
            return problem
        }

        @Test func permutationsAreExact() throws {
            for (side, isTransposed) in ways {
                for (factors, dimensions) in [(5, 3), (70, 40), (200, 90)] {
                    let problem = permutation(
                        side, isTransposed, factors: factors, dimensions: dimensions)
                    let (y, gradients) = (problem.expected(), problem.expectedGradients())
                    try withEachInstructionSet(of: .householderProduct) { set in
                        #expect(try problem.apply().dense == y, "\(problem) \(set)")
                        let back = try problem.backward()
                        #expect(back.k.dense == gradients.key, "\(problem) \(set)")
                        #expect(back.beta.dense == gradients.beta, "\(problem) \(set)")
                        #expect(back.x.dense == gradients.x, "\(problem) \(set)")
                    }
                }
            }
        }

        /// A projection, 1 - beta |k|^2 = 0, cannot be undone; its gradients need not.
        @Test func gradientsOfProjections() throws {
            for (side, isTransposed) in ways {
                var problem = permutation(side, isTransposed, factors: 40, dimensions: 6)
                for i in 0..<80 {
                    let square = (0..<6).reduce(Float(0)) {
                        $0 + problem.k[6 * i + $1] * problem.k[6 * i + $1]
                    }
                    problem.beta[i] = 1 / square
                }
                let gradients = problem.expectedGradients()
                let back = try problem.backward()
                #expect(arrayError(back.k.dense, gradients.key) < 2e-6)
                #expect(arrayError(back.beta.dense, gradients.beta) < 2e-6)
                #expect(arrayError(back.x.dense, gradients.x) < 2e-6)
            }
        }

        @Test func transposeUndoesReflections() throws {
            var problem = HouseholderProblem<Float>(factors: 80, dimensions: 70, vectors: 50)
            for i in 0..<80 {
                let square = (0..<70).reduce(Float(0)) {
                    $0 + problem.k[70 * i + $1] * problem.k[70 * i + $1]
                }
                problem.beta[i] = 2 / square
            }
            let x = problem.x.dense
            problem.x = try problem.apply()
            problem.isTransposed = true
            // Measured: 2.3e-6
            #expect(arrayError(try problem.apply().dense, x) < 6e-6)
        }

        // MARK: Bits

        @Test func threadsAndInstructionSetsChangeNoBit() throws {
            for (batch, factors, dimensions, vectors) in [
                (1, 100, 130, 600), (1, 70, 40, 1100), (9, 40, 64, 70), (3, 33, 200, 100),
            ] {
                for (side, isTransposed) in ways {
                    let problem = HouseholderProblem<Float>(
                        batch: batch, factors: factors, dimensions: dimensions, vectors: vectors,
                        side: side, isTransposed: isTransposed)
                    var fused: (y: [UInt64], gradients: [[UInt64]], t: [UInt64])?
                    try withEachInstructionSet(of: .householderProduct) { set in
                        let y = try problem.apply().bits
                        let gradients = try problem.backward().bits
                        let t = try problem.triangle().bits
                        for threads in [2, 3, 8] {
                            #expect(try problem.apply(threads: threads).bits == y)
                            #expect(try problem.backward(threads: threads).bits == gradients)
                            #expect(try problem.triangle(threads: threads).bits == t)
                        }
                        guard fusedSets.contains(set) else { return }
                        if let fused {
                            #expect(fused == (y, gradients, t), "\(problem) \(set)")
                        }
                        fused = fused ?? (y, gradients, t)
                    }
                }
            }
        }

        @Test func inPlaceChangesNoBit() throws {
            for (side, isTransposed) in ways {
                let problem = HouseholderProblem<Float>(
                    batch: 2, factors: 40, dimensions: 50, vectors: 150, side: side,
                    isTransposed: isTransposed)
                let y = try problem.applyInPlace(threads: 2)
                #expect(y.isFillerKept)
                #expect(try y.bits == problem.apply().bits)
            }
        }

        /// A vector has the same bits wherever it stands.
        @Test func vectorsDoNotMeet() throws {
            let all = HouseholderProblem<Float>(
                factors: 40, dimensions: 50, vectors: 150, side: .right)
            var one = HouseholderProblem<Float>(
                factors: 40, dimensions: 50, vectors: 1, side: .right)
            let y = try all.apply()
            for row in [0, 31, 32, 149] {
                one.x = one.x.filled { all.x[50 * row + $0] }
                #expect(
                    try one.apply().bits == (0..<50).map { y[50 * row + $0].double.bitPattern })
            }
        }

        // MARK: Edges

        @Test func nothing() throws {
            for (side, isTransposed) in ways {
                // No factors: the identity, to the bit.
                let identity = HouseholderProblem<Float>(
                    batch: 2, factors: 0, dimensions: 5, vectors: 40, side: side,
                    isTransposed: isTransposed)
                #expect(try identity.apply().bits == identity.x.bits)
                #expect(try identity.backward().x.bits == identity.dy.bits)
                // No vectors: no gradients.
                let empty = HouseholderProblem<Float>(
                    batch: 2, factors: 3, dimensions: 5, vectors: 0, side: side)
                #expect(try empty.apply().count == 0)
                let gradients = try empty.backward()
                #expect(gradients.k.dense.allSatisfy { $0 == 0 })
                #expect(gradients.beta.dense.allSatisfy { $0 == 0 })
                #expect(gradients.areFillersKept)
                for problem in [
                    HouseholderProblem<Float>(
                        batch: 0, factors: 3, dimensions: 5, vectors: 4, side: side),
                    HouseholderProblem<Float>(factors: 3, dimensions: 0, vectors: 4, side: side),
                ] {
                    #expect(try problem.apply().count == 0)
                    #expect(try problem.backward().beta.dense.allSatisfy { $0 == 0 })
                }
            }
        }

        /// Dimensions that no factor of a block has are left alone.
        @Test func zerosArePassedOver() throws {
            for (side, isTransposed) in ways {
                var problem = HouseholderProblem<Float>(
                    factors: 10, dimensions: 20, vectors: 3, side: side,
                    isTransposed: isTransposed)
                for i in 0..<10 {
                    for d in 0..<20 where d < 4 || d >= 15 {
                        problem.k[20 * i + d] = d % 2 == 0 ? 0 : -0.0
                    }
                }
                let at = side == .left ? (4 - 1) * 3 + 1 : 1 * 20 + 3
                let last = side == .left ? 19 * 3 + 2 : 2 * 20 + 19
                problem.x[at] = .infinity
                problem.x[last] = .nan
                let y = try problem.apply()
                var changed = problem
                changed.x[at] = 0
                changed.x[last] = 0
                let other = try changed.apply()
                #expect(y[at] == .infinity && y[last].isNaN)
                #expect((0..<60).allSatisfy { $0 == at || $0 == last || y[$0] == other[$0] })
            }
        }

        @Test func notANumberStaysInItsVector() throws {
            var problem = HouseholderProblem<Float>(factors: 40, dimensions: 20, vectors: 40)
            let before = try problem.apply()
            problem.x[7 * 40 + 5] = .nan
            try withEachInstructionSet(fusedSets, of: .householderProduct) { _ in
                let y = try problem.apply()
                for d in 0..<20 {
                    for v in 0..<40 {
                        let i = d * 40 + v
                        #expect(v == 5 ? y[i].isNaN : y[i] == before[i])
                    }
                }
            }
        }

        @Test func sharedFactors() throws {
            var problem = HouseholderProblem<Float>(
                batch: 3, factors: 7, dimensions: 11, vectors: 13)
            for i in 0..<3 * 7 * 11 { problem.k[i] = problem.k[i % 77] }
            for i in 0..<21 { problem.beta[i] = problem.beta[i % 7] }
            let y = try problem.apply()
            var strides = problem.strides(y: y)
            strides.k.batch = 0
            strides.betaBatch = 0
            var shared = y.filled { _ in 0 }
            try withElements(of: &shared) { part in
                var part = part
                try HouseholderProduct.apply(
                    problem.k.array.span.extracting(problem.k.range),
                    beta: problem.beta.array.span.extracting(problem.beta.range),
                    to: problem.x.array.span.extracting(problem.x.range), into: &part,
                    shape: problem.shape, strides: strides, workspace: Workspace())
            }
            #expect(shared.bits == y.bits)
        }
    }
}
