import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    @Suite struct InstructionSetTests {
        /// On avx512 and on the sets that tests of the family leave out.
        private func expectRepetitions<Bits: Equatable>(
            _ family: KernelFamily, of type: StorageType, _ found: () throws -> Bits
        ) throws {
            var first: Bits?
            try withEachInstructionSet([.avx512] + family.repetitions) { set in
                let found = try found()
                let isSame = found == first ?? found
                #expect(isSame, "\(family) of \(type), \(set)")
                first = first ?? found
            }
        }

        private func expectRepetitions<Element: TestElement & StorageValue>(
            of type: Element.Type
        ) throws {
            let type = Element.storageType
            let workspace = Workspace()
            let product = MatmulCase<Element>(
                .init(rows: 40, columns: 50, depth: 70), seed: 1)
            try expectRepetitions(.matmul(type), of: type) {
                bits(try product.product(workspace: workspace))
            }

            var attention = LinearAttentionProblem<Element>(
                tokens: 80, heads: 2, keyWidth: 40, valueWidth: 50, decay: .token)
            attention.options.form = .chunked
            try expectRepetitions(.linearAttention(type), of: type) {
                try attention.forward().bits + attention.backward().bits
            }
            var rule = DeltaRuleProblem<Element>(
                tokens: 80, heads: 2, keyWidth: 40, valueWidth: 50, decay: .token)
            rule.options.form = .chunked
            try expectRepetitions(.deltaRule(type), of: type) {
                (try rule.forward().arrays + rule.backward().arrays).map { bits($0.values) }
            }

            var softmax = SoftmaxProblem<Element>(rows: 5, columns: 300, seed: 1)
            softmax.options.threads = 1
            try expectRepetitions(.softmax, of: type) {
                let y = try softmax.forward(.softmax).y
                return (y.dense + (try softmax.backward(.softmax, y: y).x.dense)).map(\.bitPattern)
            }
            let recurrence = RecurrenceProblem<Element>(tokens: 50, channels: 40)
            try expectRepetitions(.tokenStages, of: type) { try recurrence.run().bits }
            let reflections = HouseholderProblem<Element>(factors: 40, dimensions: 50, vectors: 30)
            try expectRepetitions(.householderProduct, of: type) {
                [try reflections.apply().bits] + (try reflections.backward().bits)
            }
            let matrix = SelfReferentialProblem<Element>(tokens: 30, keys: 40, values: 50)
            try expectRepetitions(.selfReferentialMatrix, of: type) { try matrix.found().bits }

            let numbers = (0..<100).map { Element(Float($0) * 0.1 - 5) }
            try expectRepetitions(.elementwise, of: type) {
                var floats = [Float](repeating: .nan, count: 100)
                var span = floats.mutableSpan
                try Elementwise.convert(numbers.span, into: &span)
                let x = floats
                span = floats.mutableSpan
                try Elementwise.exp(x.span, into: &span)
                return bits(floats)
            }
        }

        /// What the loops over instruction sets leave out has the bits of avx512.
        @Test func leftOutSetsRepeatAVX512() throws {
            try expectRepetitions(of: Float.self)
            try expectRepetitions(of: BFloat16.self)
            try expectRepetitions(of: Float16.self)
            let loss = CrossEntropyProblem(rows: 20, features: 30, vocabulary: 300, seed: 1)
            try expectRepetitions(.crossEntropy, of: .float32) { allBits(try loss.run()) }
        }
    }
}
