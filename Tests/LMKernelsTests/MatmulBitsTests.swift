import Dispatch
import LMKernels
import Synchronization
import Testing

extension KernelSuite {
    /// What changes no bit.
    @Suite struct MatmulBitsTests {
        private typealias Problem = MatmulProblem

        private let workspace = Workspace()

        /// Large enough for several threads; in one product, over a batch, and over a batch of
        /// which each item is worth several threads.
        private let threadedProblems = [
            Problem(rows: 130, columns: 257, depth: 300, layout: .nn),
            Problem(rows: 300, columns: 65, depth: 257, layout: .nt, gap: 3, offset: 1),
            Problem(rows: 257, columns: 300, depth: 127, layout: .tn, accumulate: true),
            Problem(rows: 40, columns: 33, depth: 70, layout: .nn, batch: 9),
            Problem(rows: 200, columns: 190, depth: 300, layout: .nt, batch: 2),
        ]

        private func expectThreadsAgree<Element: TestElement>(_ type: Element.Type) throws {
            for problem in threadedProblems {
                let test = MatmulCase<Element>(problem, seed: 5)
                try withEachInstructionSet(of: .matmul(Element.storageType)) { set in
                    let one = bits(try test.product(threads: 1, workspace: workspace))
                    for threads in [2, 3, 8] {
                        let several = bits(try test.product(threads: threads, workspace: workspace))
                        #expect(several == one, "\(type) \(problem) \(set) \(threads) threads")
                    }
                }
            }
        }

        @Test func threadsDoNotChangeABit() throws {
            try expectThreadsAgree(Float.self)
            try expectThreadsAgree(BFloat16.self)
            try expectThreadsAgree(Float16.self)
        }

        private func expectSetsAgree<Element: TestElement>(
            _ type: Element.Type, sets: [InstructionSet]
        ) throws {
            for problem in threadedProblems + Problem.edges(.nn) + Problem.edges(.tn) {
                let test = MatmulCase<Element>(problem, seed: 5)
                var first: (set: InstructionSet, bits: [UInt32])?
                try withEachInstructionSet(sets, of: .matmul(Element.storageType)) { set in
                    let these = bits(try test.product(threads: 2, workspace: workspace))
                    if let first {
                        #expect(these == first.bits, "\(type) \(problem) \(first.set) and \(set)")
                    } else {
                        first = (set, these)
                    }
                }
            }
        }

        @Test func fusedInstructionSetsAgree() throws {
            try expectSetsAgree(Float.self, sets: fusedSets)
            try expectSetsAgree(Float16.self, sets: fusedSets)
            // Sums of pairs have another order.
            try expectSetsAgree(BFloat16.self, sets: fusedSets.filter { !pairSets.contains($0) })
        }

        private func expectPositionIrrelevant<Element: TestElement>(_ type: Element.Type) throws {
            let whole = MatmulCase<Element>(
                Problem(rows: 70, columns: 300, depth: 300, layout: .nt), seed: 5)
            let (rows, columns, depth) = (13, 45, 300)
            let (row, column) = (31, 200)
            try withEachInstructionSet(of: .matmul(Element.storageType)) { set in
                let c = try whole.product(threads: 2, workspace: workspace)
                var part = Array(repeating: Float.nan, count: rows * columns)
                do {
                    var span = part.mutableSpan
                    try Matmul.multiply(
                        whole.a.span.extracting((row * depth)...),
                        whole.b.span.extracting((column * depth)...), into: &span,
                        shape: .init(rows: rows, columns: columns, depth: depth), layout: .nt,
                        workspace: workspace)
                }
                for i in 0..<rows {
                    let start = (row + i) * 300 + column
                    #expect(
                        bits(Array(part[i * columns..<(i + 1) * columns]))
                            == bits(Array(c[start..<start + columns])), "\(type) \(set), row \(i)")
                }
            }
        }

        /// A product does not depend on what else is multiplied with it, nor on where it lies.
        @Test func positionDoesNotChangeABit() throws {
            try expectPositionIrrelevant(Float.self)
            try expectPositionIrrelevant(BFloat16.self)
            try expectPositionIrrelevant(Float16.self)
        }

        private func expectDepthInTurns<Element: TestElement>(
            _ type: Element.Type, sets: [InstructionSet], cut: Int
        ) throws {
            let (rows, columns, depth) = (41, 50, 1300)
            let whole = MatmulCase<Element>(
                Problem(rows: rows, columns: columns, depth: depth), seed: 5)
            try withEachInstructionSet(sets, of: .matmul(Element.storageType)) { set in
                let c = try whole.product(workspace: workspace)
                var sums = Array(repeating: Float.nan, count: rows * columns)
                for (begin, end) in [(0, cut), (cut, depth)] {
                    var span = sums.mutableSpan
                    try Matmul.multiply(
                        whole.a.span.extracting(begin...),
                        whole.b.span.extracting((begin * columns)...), into: &span,
                        shape: .init(
                            rows: rows, columns: columns, depth: end - begin, aStride: depth),
                        accumulate: begin > 0, workspace: workspace)
                }
                #expect(bits(sums) == bits(c), "\(type) \(set) cut at \(cut)")
            }
        }

        /// Products of two parts of the depth add up to the product, where sums are cut anyway.
        @Test func depthInTurnsDoesNotChangeABit() throws {
            try expectDepthInTurns(Float.self, sets: InstructionSet.allCases, cut: 512)
            try expectDepthInTurns(BFloat16.self, sets: InstructionSet.allCases, cut: 1024)
            for cut in [32, 480, 1024, 1280] {
                try expectDepthInTurns(BFloat16.self, sets: [.amx], cut: cut)
            }
        }

        @Test func concurrentCallsAgree() throws {
            let test = MatmulCase<Float>(
                Problem(rows: 130, columns: 120, depth: 110, layout: .nn), seed: 5)
            let alone = bits(try test.product(threads: 1, workspace: workspace))
            let agreed = Mutex(0)
            DispatchQueue.concurrentPerform(iterations: 8) { i in
                let workspace = Workspace()
                for _ in 0..<20 {
                    let c = try? test.product(threads: 1 + i % 3, workspace: workspace)
                    if c.map(bits) == alone { agreed.withLock { $0 += 1 } }
                }
            }
            #expect(agreed.withLock { $0 } == 8 * 20)
        }
    }
}
