import Foundation
import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    @Suite struct CheckTests {
        // MARK: Files

        /// What `lmk check` prints, complains about, and exits with.
        private struct Outcome {
            var lines: [String] = []
            var complaints: [String] = []
            var code: Int32 = 0
        }

        private func check(_ arguments: [String]) throws -> Outcome {
            let before = InstructionSet.current
            defer { InstructionSet.use(before) }
            let command = try CheckCommand.parse(arguments)
            var outcome = Outcome()
            outcome.code = command.run(
                print: { outcome.lines.append($0) }, complain: { outcome.complaints.append($0) })
            return outcome
        }

        /// Checks a file with these bytes.
        private func check(
            _ bytes: [UInt8], name: String = "case", form: String = "auto"
        ) throws -> Outcome {
            let directory = FileManager.default.temporaryDirectory
                .appendingPathComponent(UUID().uuidString)
            try FileManager.default.createDirectory(
                at: directory, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(at: directory) }
            let file = directory.appendingPathComponent(name + ".safetensors")
            try Data(bytes).write(to: file)
            return try check(["--form", form, file.path])
        }

        private var vectors: [String] {
            get throws {
                let directory = URL(filePath: #filePath).deletingLastPathComponent()
                    .deletingLastPathComponent().appending(path: "Conformance")
                return try FileManager.default.contentsOfDirectory(atPath: directory.path)
                    .filter { $0.hasSuffix(".safetensors") }.sorted()
                    .map { directory.appending(path: $0).path }
            }
        }

        // MARK: Good files

        @Test func vectorsPass() throws {
            for set in InstructionSet.allCases where set.isSupported {
                for threads in ["1", "3"] {
                    let outcome = try check(
                        ["--isa", set.rawValue, "--threads", threads] + vectors)
                    #expect(outcome.code == 0, "\(set): \(outcome.lines) \(outcome.complaints)")
                    #expect(try outcome.lines.count == vectors.count + 1)
                    let passed = outcome.lines.filter { $0.hasPrefix("PASS ") }
                    #expect(passed.count >= 5)
                    #expect(passed.allSatisfy { $0.split(separator: " ").count == 6 })
                    #expect(
                        outcome.lines.last?.hasPrefix("\(passed.count) passed, 0 failed") == true)
                }
            }
        }

        @Test func ownFilePasses() throws {
            for change in [{ _ in }, { $0.makeForwardOnly() }, { $0.addBias() }]
                as [(inout VectorFile) -> Void]
            {
                var file = VectorFile()
                change(&file)
                let outcome = try check(file.bytes)
                #expect(outcome.code == 0, "\(outcome)")
                #expect(outcome.lines.last == "1 passed, 0 failed, 0 skipped")
            }
        }

        @Test func cotangentsOfEverything() throws {
            var file = VectorFile()
            file.addUpstream()
            #expect(try check(file.bytes).code == 0)
            file.tensors["cotangent.entropy"]?.float32[1] += 1
            #expect(try check(file.bytes).code == 1, "it has an effect")
        }

        @Test func noTokens() throws {
            var file = VectorFile(rows: 0)
            #expect(
                try check(file.bytes).lines.first
                    == "PASS case cross_entropy grad.c 0.00e+00 1.00e-06")
            file.makeForwardOnly()
            #expect(try check(file.bytes).code == 0)
        }

        @Test func valuesThatAreNotFinite() throws {
            var file = VectorFile()
            file.tensors["in.e"]!.float32[0] = .nan
            #expect(try check(file.bytes).code == 1)
            for name in ["out.loss", "out.lse"] { file.tensors[name]!.float64[0] = .nan }
            file.tensors["grad.e"]!.float64[0] = .nan
            file.tensors["grad.e"]!.float64[1] = .nan
            file.tensors["grad.c"]!.float64 = file.tensors["grad.c"]!.float64.map { _ in .nan }
            #expect(try check(file.bytes).code == 0)
            file.tensors["out.loss"]!.float64[0] = .infinity
            let outcome = try check(file.bytes)
            #expect(outcome.lines.first == "FAIL case cross_entropy out.loss inf 1.00e-06")
            #expect(outcome.complaints.first?.contains("out.loss[0]") == true)
        }

        // MARK: Wrong values

        @Test func corruptedExpectationFails() throws {
            for name in ["out.loss", "out.lse", "grad.e", "grad.c"] {
                var file = VectorFile()
                file.tensors[name]!.float64[1] += 1e-3
                let outcome = try check(file.bytes)
                #expect(outcome.code == 1)
                #expect(outcome.lines[0].hasPrefix("FAIL case cross_entropy \(name) "))
                #expect(outcome.lines.last == "0 passed, 1 failed, 0 skipped")
            }
        }

        @Test func corruptedVectorFails() throws {
            let path = try #require(vectors.first { $0.hasSuffix("ce-scaled.safetensors") })
            var bytes = [UInt8](try Data(contentsOf: URL(filePath: path)))
            // The exponent of the last number of the data.
            let end = bytes.count - 1
            bytes[end] ^= 0x40
            #expect(try check(bytes).code == 1)
        }

        @Test func waysThatDifferFail() {
            let expected = [
                ConformanceCase.Expected(name: "out.y", tolerance: 1e-3, values: [1, .nan])
            ]
            func judge(_ second: [Float]?) -> Verdict {
                var verdict = Verdict(outcome: .fail, name: "case")
                var ways = [ComputedWay(name: "one", tensors: ["out.y": [1, .nan]])]
                if let second { ways.append(.init(name: "other", tensors: ["out.y": second])) }
                verdict.judge(ways, expected)
                return verdict
            }
            #expect(judge(nil).outcome == .pass)
            #expect(judge([1, -.nan]).outcome == .pass)
            let verdict = judge([Float(1).nextUp, .nan])
            #expect(verdict.outcome == .fail)
            #expect(verdict.notes == ["out.y[0] is 1.0 by one, but 1.0000001 by other"])
            // Ways of different groups may differ in bits.
            var apart = Verdict(outcome: .fail, name: "case")
            apart.judge(
                [
                    ComputedWay(name: "one", tensors: ["out.y": [1, .nan]]),
                    ComputedWay(
                        name: "other", group: "b", tensors: ["out.y": [Float(1).nextUp, .nan]]),
                ], expected)
            #expect(apart.outcome == .pass)
            var empty = Verdict(outcome: .pass, name: "case")
            empty.judge([], expected)
            #expect(empty.outcome == .fail)
        }

        // MARK: Files that are not consistent

        @Test(arguments: malformedFiles)
        fileprivate func malformed(_ malformed: MalformedFile) throws {
            var file = VectorFile()
            malformed.change(&file)
            let outcome = try check(file.bytes)
            #expect(outcome.code == 2)
            #expect(outcome.lines.count == 2)
            #expect(outcome.lines[0].hasPrefix("FAIL case "))
            #expect(outcome.lines[0].hasSuffix(" - - -"))
            #expect(outcome.lines[1] == "0 passed, 1 failed, 0 skipped")
            #expect(outcome.complaints.count == 1)
            #expect(outcome.complaints[0].contains(malformed.message), "\(outcome.complaints)")
        }

        @Test func filesThatAreNone() throws {
            #expect(try check([UInt8]()).code == 2)
            #expect(try check(Array("not a vector".utf8)).code == 2)
            #expect(try check(Array(VectorFile().bytes.dropLast())).code == 2)
            let missing = try check(["/nonexistent/a b\n.safetensors"])
            #expect(missing.code == 2)
            #expect(missing.lines[0] == #"FAIL "a_b\n" - - - -"#)
        }

        // MARK: Softmax

        @Test(arguments: ["softmax", "log_softmax", "log_sum_exp"], ["F32", "BF16", "F16"])
        func softmaxPasses(_ operation: String, _ dtype: String) throws {
            var file = VectorFile(softmax: operation, dtype: dtype)
            let outcome = try check(file.bytes)
            #expect(outcome.lines.last == "1 passed, 0 failed, 0 skipped", "\(outcome)")
            for name in ["out.y", "grad.x"] {
                var wrong = file
                wrong.tensors[name]!.float64[1] += 0.1
                let outcome = try check(wrong.bytes)
                #expect(outcome.code == 1)
                #expect(outcome.lines[0].hasPrefix("FAIL case \(operation) \(name) "))
            }
            file.attributes["scale"] = "0.5"
            #expect(try check(file.bytes).code == 1, "scale has an effect")
            file = VectorFile(softmax: operation, dtype: dtype, columns: 70)
            file.makeForwardOnly()
            #expect(try check(file.bytes).code == 0)
        }

        @Test func softmaxOfNothing() throws {
            for operation in ["softmax", "log_softmax", "log_sum_exp"] {
                #expect(try check(VectorFile(softmax: operation, rows: 0).bytes).code == 0)
                let file = VectorFile(softmax: operation, rows: 0, columns: 1 << 50)
                #expect(try check(file.bytes).code == 0)
            }
            var file = VectorFile(softmax: "log_sum_exp", columns: 0)
            #expect(try check(file.bytes).code == 0)
            file.tensors["out.y"]!.float64[1] = 0
            #expect(try check(file.bytes).code == 1, "it is -infinity")
        }

        @Test(arguments: malformedSoftmaxes)
        fileprivate func malformedSoftmax(_ malformed: MalformedFile) throws {
            var file = VectorFile(softmax: "softmax")
            malformed.change(&file)
            let outcome = try check(file.bytes)
            #expect(outcome.code == 2)
            #expect(outcome.complaints.count == 1)
            #expect(
                outcome.complaints.first?.contains(malformed.message) == true,
                "\(outcome.complaints)")
        }

        // MARK: Linear attention

        @Test(arguments: ["none", "head", "token", "key"], ["F32", "BF16", "F16"])
        func linearAttentionPasses(_ decay: String, _ dtype: String) throws {
            for (isNormalized, hasStates, offsets) in [
                (false, true, nil), (true, false, nil), (false, true, [0, 0, 5, 9]),
            ] as [(Bool, Bool, [Int]?)] {
                let file = VectorFile(
                    linearAttention: .init(
                        decay: decay, dtype: dtype, isNormalized: isNormalized,
                        hasStates: hasStates, offsets: offsets))
                for form in ["auto", "recurrent", "chunked"] {
                    let outcome = try check(file.bytes, form: form)
                    #expect(outcome.lines.last == "1 passed, 0 failed, 0 skipped", "\(outcome)")
                }
                for name in file.tolerances.keys {
                    var wrong = file
                    let values = wrong.tensors[name]!.float64
                    wrong.tensors[name]!.float64[1] += values.map(\.magnitude).reduce(1, +)
                    let outcome = try check(wrong.bytes)
                    #expect(outcome.code == 1)
                    #expect(outcome.lines[0].hasPrefix("FAIL case linear_attention \(name) "))
                }
                var other = file
                other.attributes["scale"] = "0.5"
                #expect(try check(other.bytes).code == (isNormalized ? 0 : 1))
                other = file
                other.attributes["normalize"] = "\(!isNormalized)"
                #expect(try check(other.bytes).code == 1)
            }
        }

        @Test func bidirectionalLinearAttentionPasses() throws {
            for isNormalized in [false, true] {
                var file = VectorFile(
                    linearAttention: .init(isCausal: false, isNormalized: isNormalized))
                #expect(try check(file.bytes).code == 0)
                file.makeForwardOnly()
                #expect(try check(file.bytes).code == 0)
                file.attributes["causal"] = "true"
                #expect(try check(file.bytes).code == 1)
            }
        }

        @Test func linearAttentionOfNothing() throws {
            let file = VectorFile(
                linearAttention: .init(decay: "key", hasStates: true, tokens: 0))
            #expect(try check(file.bytes).code == 0)
        }

        @Test(arguments: malformedLinearAttention)
        fileprivate func malformedLinearAttentionFails(_ malformed: MalformedFile) throws {
            var file = VectorFile(linearAttention: .init(decay: "token", hasStates: true))
            malformed.change(&file)
            let outcome = try check(file.bytes)
            #expect(outcome.code == 2)
            #expect(outcome.complaints.count == 1)
            #expect(
                outcome.complaints.first?.contains(malformed.message) == true,
                "\(outcome.complaints)")
        }

        @Test func otherDecaysAreSkipped() throws {
            var file = VectorFile(linearAttention: .init(decay: "token", hasStates: true))
            file.attributes["decay"] = "\"value\""
            let outcome = try check(file.bytes)
            #expect(outcome.lines.last == "0 passed, 0 failed, 1 skipped")
            #expect(outcome.code == 0)
        }

        // MARK: The delta rule

        @Test(arguments: ["none", "token", "key"], ["F32", "BF16", "F16"])
        func deltaRulePasses(_ decay: String, _ dtype: String) throws {
            for (steps, hasStates, offsets) in [
                (1, true, nil), (2, false, nil), (3, true, [0, 0, 5, 9]),
            ] as [(Int, Bool, [Int]?)] {
                let file = VectorFile(
                    deltaRule: .init(
                        decay: decay, dtype: dtype, steps: steps, hasStates: hasStates,
                        offsets: offsets))
                for form in ["auto", "recurrent", "chunked"] {
                    let outcome = try check(file.bytes, form: form)
                    #expect(outcome.lines.last == "1 passed, 0 failed, 0 skipped", "\(outcome)")
                }
                for name in file.tolerances.keys {
                    var wrong = file
                    let values = wrong.tensors[name]!.float64
                    wrong.tensors[name]!.float64[1] += values.map(\.magnitude).reduce(1, +)
                    let outcome = try check(wrong.bytes)
                    #expect(outcome.code == 1)
                    #expect(outcome.lines[0].hasPrefix("FAIL case delta_rule \(name) "))
                }
                var other = file
                other.attributes["scale"] = "0.5"
                #expect(try check(other.bytes).code == 1)
                other = file
                other.makeForwardOnly()
                #expect(try check(other.bytes).code == 0)
            }
        }

        @Test func deltaRuleOfNothing() throws {
            let file = VectorFile(
                deltaRule: .init(decay: "key", steps: 2, hasStates: true, tokens: 0))
            #expect(try check(file.bytes).code == 0)
        }

        @Test(arguments: malformedDeltaRule)
        fileprivate func malformedDeltaRuleFails(_ malformed: MalformedFile) throws {
            var file = VectorFile(deltaRule: .init(decay: "token", steps: 2, hasStates: true))
            malformed.change(&file)
            let outcome = try check(file.bytes)
            #expect(outcome.code == 2)
            #expect(outcome.complaints.count == 1)
            #expect(
                outcome.complaints.first?.contains(malformed.message) == true,
                "\(outcome.complaints)")
        }

        @Test func otherDecaysOfTheDeltaRuleAreSkipped() throws {
            for decay in ["head", "value"] {
                var file = VectorFile(deltaRule: .init(decay: "token", hasStates: true))
                file.attributes["decay"] = "\"\(decay)\""
                let outcome = try check(file.bytes)
                #expect(outcome.lines.last == "0 passed, 0 failed, 1 skipped")
                #expect(outcome.code == 0)
            }
        }

        // MARK: What is skipped, and what wins

        @Test func otherOperatorsAreSkipped() throws {
            var file = VectorFile()
            file.metadata["op"] = "no_such_operator"
            let outcome = try check(file.bytes)
            #expect(
                outcome.lines == [
                    "SKIP case no_such_operator - - -", "0 passed, 0 failed, 1 skipped",
                ])
            #expect(outcome.code == 0)
        }

        @Test func otherStorageTypesAreSkipped() throws {
            var file = VectorFile()
            file.storeInputs(as: "F16", zeros: 2)
            let outcome = try check(file.bytes)
            #expect(outcome.lines.last == "0 passed, 0 failed, 1 skipped")
            #expect(outcome.code == 0)
            // Consistency comes first.
            file.tensors["in.targets"]!.integers[0] = 99
            #expect(try check(file.bytes).code == 2)
        }

        @Test func theWorstDecides() throws {
            let directory = FileManager.default.temporaryDirectory
                .appendingPathComponent(UUID().uuidString)
            try FileManager.default.createDirectory(
                at: directory, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(at: directory) }
            func write(_ name: String, _ change: (inout VectorFile) -> Void) throws -> String {
                var file = VectorFile()
                change(&file)
                let url = directory.appendingPathComponent(name + ".safetensors")
                try Data(file.bytes).write(to: url)
                return url.path
            }
            let good = try write("good") { _ in }
            let wrong = try write("wrong") { $0.tensors["out.lse"]!.float64[0] = 7 }
            let bad = try write("bad") { $0.metadata["op"] = nil }
            let other = try write("other") { $0.metadata["op"] = "other" }
            func code(_ files: [String]) throws -> Int32 { try check(files).code }
            #expect(try code([good, other]) == 0)
            #expect(try code([wrong, good, other]) == 1)
            #expect(try code([wrong, bad, good]) == 2)
            #expect(try code([bad, wrong]) == 2)
            let all = try check([good, wrong, bad, other])
            #expect(all.lines.last == "1 passed, 2 failed, 1 skipped")
            #expect(
                all.lines.map { String($0.prefix(4)) }.dropLast() == [
                    "PASS", "FAIL", "FAIL", "SKIP",
                ])
        }

        @Test func instructionSetThatIsMissing() throws {
            let set = try #require(InstructionSet.allCases.first { !$0.isSupported })
            let outcome = try check(["--isa", set.rawValue] + vectors)
            #expect(outcome.code == 2)
            #expect(outcome.lines.isEmpty)
            #expect(outcome.complaints.count == 1)
            #expect(outcome.complaints[0].contains("cannot run \(set.rawValue)"))
        }

        @Test func formsAreAccepted() throws {
            for form in ["auto", "recurrent", "chunked"] {
                #expect(try check(["--form", form] + vectors).code == 0)
            }
            #expect(throws: (any Error).self) {
                try CheckCommand.parse(["--form", "other", "file"])
            }
            #expect(throws: (any Error).self) { try CheckCommand.parse(["--threads=-1", "file"]) }
            #expect(throws: (any Error).self) { try CheckCommand.parse([]) }
        }
    }
}

// MARK: - The error of a tensor

@Suite struct RelativeErrorTests {
    private func error(_ found: [Float], _ expected: [Double]) -> RelativeError {
        RelativeError(found, expected: expected, tolerance: 0.1)
    }

    @Test func isRelativeToTheWholeTensor() {
        let one = error([3, 4.5], [3, 4])
        #expect(one.value == 0.1)
        #expect(one.isWithinLimit)
        #expect(!error([3, 4.6], [3, 4]).isWithinLimit)
        #expect(error([], []).isWithinLimit)
    }

    @Test func isAbsoluteWhereNothingIsExpected() {
        #expect(error([9e-7, 0], [0, 1e-31]).isWithinLimit)
        #expect(!error([9e-7, 9e-7], [0, 0]).isWithinLimit)
        #expect(error([9e-7, 9e-7], [0, 0]).limit == 1e-6)
        // 1e-30 is something.
        #expect(!error([0], [1e-30]).isWithinLimit)
    }

    @Test func kindsHaveToMatch() {
        let kinds: [Float] = [.nan, .infinity, -.infinity, 1]
        for found in kinds {
            for expected in kinds {
                let isSame = found == expected || (found.isNaN && expected.isNaN)
                let error = error([2, found], [2, Double(expected)])
                #expect(error.isWithinLimit == isSame, "\(found) for \(expected)")
                #expect(error.wrongKind == (isSame ? nil : 1))
            }
        }
    }

    @Test func squaresDoNotOverflow() {
        #expect(error([0], [1e200]).value == 1)
        #expect(error([2e38, 2e38], [2.1e38, 2.1e38]).isWithinLimit)
        #expect(error([1e-29, 0], [1e-29, 0]).isWithinLimit)
    }
}
