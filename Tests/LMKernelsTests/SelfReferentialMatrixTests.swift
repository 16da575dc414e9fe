import LMKernels
import LMKernelsReference
import Testing

extension KernelSuite {
    @Suite struct SelfReferentialMatrixTests {
        private func problems<Element: TestElement>(
            _ type: Element.Type
        ) -> [SelfReferentialProblem<Element>] {
            var problems: [SelfReferentialProblem<Element>] = []
            for (i, (keys, values)) in [
                (1, 1), (3, 15), (16, 16), (15, 17), (17, 1), (32, 31), (63, 65), (64, 64),
                (129, 20), (20, 130),
            ].enumerated() {
                problems.append(
                    SelfReferentialProblem(
                        batch: 1 + i % 2, tokens: [1, 2, 5, 17, 40][i % 5], heads: 1 + i % 3,
                        keys: keys, values: values, hasInputSoftmax: i % 3 != 1,
                        sharesMatrix: i % 4 > 1, isHeadMajor: i % 2 == 1,
                        hasFinalGradient: i % 4 != 2, seed: UInt64(i)))
            }
            problems.append(
                SelfReferentialProblem(
                    tokens: 60, heads: 2, keys: 10, values: 7, offsets: [0, 0, 3, 40, 40, 60]))
            problems.append(
                SelfReferentialProblem(
                    tokens: 30, heads: 2, keys: 10, values: 7, sharesMatrix: true,
                    offsets: [0, 29, 30, 30]))
            // W is kept every 32 tokens, and every 16 on the way back.
            problems.append(SelfReferentialProblem(tokens: 150, heads: 2, keys: 18, values: 20))
            return problems
        }

        private func worstErrors<Element: TestElement>(_ type: Element.Type) throws -> [Double] {
            var worst = [0.0, 0, 0, 0]
            for problem in problems(type) {
                let expected = problem.expected()
                try withEachInstructionSet(of: .selfReferentialMatrix) { set in
                    let found = try problem.found(threads: 2)
                    #expect(found.areFillersKept, "\(problem) \(set)")
                    let errors = problem.errors(found, expected)
                    worst = zip(worst, errors).map { max($0, $1) }
                }
            }
            return worst
        }

        @Test func float32MatchesReference() throws {
            let worst = try worstErrors(Float.self)
            // Measured: 4.6e-7, 6.2e-7, 5.8e-7, 4.3e-7
            #expect(worst.allSatisfy { $0 < 1.5e-6 }, "\(worst)")
        }

        @Test func halvesMatchReference() throws {
            let bfloat16 = try worstErrors(BFloat16.self)
            #expect(max(bfloat16[0], bfloat16[2]) < 4e-3)
            #expect(max(bfloat16[1], bfloat16[3]) < 3e-6)
            let float16 = try worstErrors(Float16.self)
            #expect(max(float16[0], float16[2]) < 5e-4)
            #expect(max(float16[1], float16[3]) < 3e-6)
        }

        @Test func threadsAndInstructionSetsChangeNoBit() throws {
            for sharesMatrix in [false, true] {
                let problem = SelfReferentialProblem<Float>(
                    batch: 3, tokens: 80, heads: 3, keys: 33, values: 40,
                    sharesMatrix: sharesMatrix)
                var fused: [[UInt64]]?
                try withEachInstructionSet(of: .selfReferentialMatrix) { set in
                    let bits = try problem.found().bits
                    for threads in [2, 3, 8] {
                        #expect(try problem.found(threads: threads).bits == bits, "\(set)")
                    }
                    guard fusedSets.contains(set) else { return }
                    if let fused { #expect(fused == bits, "\(set)") }
                    fused = fused ?? bits
                }
            }
        }

        /// Two halves are the whole: the state carries everything.
        @Test func resuming() throws {
            let whole = SelfReferentialProblem<Float>(tokens: 24, heads: 2, keys: 9, values: 11)
            let found = try whole.found()
            var (first, second) = (
                SelfReferentialProblem<Float>(tokens: 10, heads: 2, keys: 9, values: 11),
                SelfReferentialProblem<Float>(tokens: 14, heads: 2, keys: 9, values: 11)
            )
            first.matrix = whole.matrix
            first.x = first.x.filled { Float(whole.x[$0]) }
            let before = try first.found()
            second.matrix = before.finalMatrix
            second.x = second.x.filled { Float(whole.x[10 * 18 + $0]) }
            let after = try second.found()
            #expect(before.y.bits + after.y.bits == found.y.bits)
            #expect(bits(after.finalMatrix) == bits(found.finalMatrix))
        }

        @Test func packedSequencesAreThoseByThemselves() throws {
            let offsets = [0, 7, 7, 20]
            let packed = SelfReferentialProblem<Float>(
                tokens: 20, keys: 8, values: 5, offsets: offsets)
            let found = try packed.found()
            let entries = packed.shape.rows * 8
            for n in 0..<3 {
                var alone = SelfReferentialProblem<Float>(
                    tokens: offsets[n + 1] - offsets[n], keys: 8, values: 5)
                alone.matrix = Array(packed.matrix[n * entries..<(n + 1) * entries])
                alone.finalGradient = Array(
                    packed.finalGradient![n * entries..<(n + 1) * entries])
                alone.x = alone.x.filled { Float(packed.x[offsets[n] * 8 + $0]) }
                alone.dy = alone.dy.filled { Float(packed.dy[offsets[n] * 5 + $0]) }
                let one = try alone.found()
                #expect(
                    one.y.bits
                        == (offsets[n] * 5..<offsets[n + 1] * 5).map {
                            found.y[$0].double.bitPattern
                        })
                #expect(
                    bits(one.finalMatrix)
                        == bits(Array(found.finalMatrix[n * entries..<(n + 1) * entries])))
                #expect(
                    bits(one.matrixGradient)
                        == bits(Array(found.matrixGradient[n * entries..<(n + 1) * entries])))
            }
        }

        @Test func nothing() throws {
            let none = SelfReferentialProblem<Float>(tokens: 0, heads: 2, keys: 4, values: 3)
            let found = try none.found()
            #expect(bits(found.finalMatrix) == bits(none.matrix))
            #expect(bits(found.matrixGradient) == bits(none.finalGradient!))
            let empty = SelfReferentialProblem<Float>(
                batch: 0, tokens: 3, keys: 4, values: 3, sharesMatrix: true)
            let gradient = try empty.found().matrixGradient
            #expect(gradient.allSatisfy { $0 == 0 })
        }

        /// NaN stays in its head, and reaches no token before it.
        @Test func notANumber() throws {
            var problem = SelfReferentialProblem<Float>(tokens: 6, heads: 2, keys: 5, values: 4)
            let before = try problem.found()
            problem.x[(3 * 2 + 1) * 5 + 2] = .nan
            let after = try problem.found()
            for token in 0..<6 {
                for head in 0..<2 {
                    for i in 0..<4 {
                        let at = (token * 2 + head) * 4 + i
                        #expect(
                            head == 1 && token >= 3
                                ? after.y[at].isNaN : after.y[at] == before.y[at])
                    }
                }
            }
        }

        // MARK: Refusals

        private struct Call {
            var shape = SelfReferentialMatrix.Shape(
                batch: 2, tokens: 3, heads: 2, keyDimension: 4, valueDimension: 5)
            var strides = SelfReferentialMatrix.Strides()
            var offsets: [Int]?
            var x = 48
            var y = 60
            var matrix = 272
            var finalMatrix = 272
            var xGradient = 48
            var matrixGradient = 272
            var sharesMatrix = false
            var threads = 1

            func refused(isBackward: Bool) -> KernelError? {
                func array(_ count: Int) -> [Float] { Array(repeating: 1, count: count) }
                let (x, matrix, dy, dfinal) = (
                    array(x), array(matrix), array(y), array(finalMatrix)
                )
                var (y, final) = (array(self.y), array(finalMatrix))
                var (dx, dmatrix) = (array(xGradient), array(matrixGradient))
                let found = refusal {
                    if isBackward {
                        try SelfReferentialMatrix.backward(
                            x.span, yGradient: dy.span, initialMatrix: matrix.span,
                            sharesInitialMatrix: sharesMatrix, finalMatrixGradient: dfinal.span,
                            xGradient: dx.mutableSpan, initialMatrixGradient: dmatrix.mutableSpan,
                            shape: shape, strides: strides, offsets: offsets?.span,
                            threads: threads, workspace: Workspace())
                    } else {
                        var part = y.mutableSpan
                        try SelfReferentialMatrix.forward(
                            x.span, into: &part, initialMatrix: matrix.span,
                            sharesInitialMatrix: sharesMatrix, finalMatrix: final.mutableSpan,
                            shape: shape, strides: strides, offsets: offsets?.span,
                            threads: threads, workspace: Workspace())
                    }
                }
                if found != nil {
                    #expect((y + final + dx + dmatrix).allSatisfy { $0 == 1 })
                }
                return found
            }
        }

        private func expect(
            _ error: KernelError?, isBackward: [Bool] = [false, true],
            _ change: (inout Call) -> Void
        ) {
            for isBackward in isBackward {
                var call = Call()
                change(&call)
                #expect(call.refused(isBackward: isBackward) == error, "\(isBackward)")
            }
        }

        @Test func refusals() {
            expect(nil) { _ in }
            expect(.outOfRange(argument: "batch", allowed: ">= 0", actual: "-1")) {
                $0.shape.batch = -1
            }
            expect(.outOfRange(argument: "tokens", allowed: ">= 0", actual: "-1")) {
                $0.shape.tokens = -1
            }
            expect(.outOfRange(argument: "heads", allowed: ">= 1", actual: "0")) {
                $0.shape.heads = 0
            }
            for dimension in [0, 513] {
                expect(
                    .outOfRange(
                        argument: "keyDimension", allowed: "from 1 to 512", actual: "\(dimension)")
                ) { $0.shape.keyDimension = dimension }
                expect(
                    .outOfRange(
                        argument: "valueDimension", allowed: "from 1 to 512", actual: "\(dimension)"
                    )
                ) { $0.shape.valueDimension = dimension }
            }
            expect(.outOfRange(argument: "threads", allowed: ">= 0", actual: "-1")) {
                $0.threads = -1
            }
            expect(.tooSmall(argument: "x", minimum: 48, actual: 47)) { $0.x = 47 }
            expect(.tooSmall(argument: "y", minimum: 60, actual: 59), isBackward: [false]) {
                $0.y = 59
            }
            expect(.tooSmall(argument: "yGradient", minimum: 60, actual: 59), isBackward: [true]) {
                $0.y = 59
            }
            expect(.tooSmall(argument: "xGradient", minimum: 48, actual: 1), isBackward: [true]) {
                $0.xGradient = 1
            }
            expect(.tooSmall(argument: "xStrides.token", minimum: 8, actual: 7)) {
                $0.strides.x.token = 7
            }
            expect(.countMismatch(argument: "initialMatrix", expected: 272, actual: 271)) {
                $0.matrix = 271
            }
            expect(.countMismatch(argument: "initialMatrix", expected: 136, actual: 272)) {
                $0.sharesMatrix = true
            }
            expect(
                .countMismatch(argument: "finalMatrix", expected: 272, actual: 1),
                isBackward: [false]
            ) { $0.finalMatrix = 1 }
            expect(
                .countMismatch(argument: "finalMatrixGradient", expected: 272, actual: 1),
                isBackward: [true]
            ) { $0.finalMatrix = 1 }
            expect(
                .countMismatch(argument: "initialMatrixGradient", expected: 272, actual: 3),
                isBackward: [true]
            ) { $0.matrixGradient = 3 }
            expect(.tooSmall(argument: "offsets", minimum: 1, actual: 0)) { $0.offsets = [] }
            expect(
                .outOfRange(argument: "batch", allowed: "1 for packed sequences", actual: "2")
            ) { $0.offsets = [0, 1, 3] }
            expect(.badEntry(argument: "offsets", index: 1, value: 4, limit: 4)) {
                $0.shape.batch = 1
                $0.offsets = [0, 4, 3]
            }
        }
    }
}
