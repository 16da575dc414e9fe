import ArgumentParser
import Foundation
import LMKernels

extension InstructionSet: ExpressibleByArgument {}

struct CheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Check kernels against conformance vectors.",
        discussion: """
            Prints a line for each file, PASS, FAIL or SKIP, name, operator, the tensor that uses up \
            most of its tolerance, its error and its tolerance; then the counts. Exits with 0 when \
            nothing failed, 1 when a kernel failed, 2 when a file cannot be read or is not consistent.
            """
    )

    @Option(help: "Use this instruction set instead of the best one.")
    var isa: InstructionSet?

    @Option(help: "Threads at most; 0 is the default of the runtime.")
    var threads = 0

    @Option(help: "How operators with a recurrence compute it.")
    var form = CheckSettings.Form.auto

    @Argument(help: "Files in the safetensors format.")
    var files: [String]

    func validate() throws {
        if threads < 0 { throw ValidationError("--threads is negative.") }
    }

    func run() throws {
        let code = run(print: { print($0) }, complain: { printToStandardError($0) })
        if code != 0 { throw ExitCode(code) }
    }

    /// Checks the files, and tells what to exit with.
    func run(print: (String) -> Void, complain: (String) -> Void) -> Int32 {
        if let isa, !InstructionSet.use(isa) {
            let supported = InstructionSet.allCases.filter(\.isSupported).map(\.rawValue)
            complain(
                "lmk check: this CPU cannot run \(isa.rawValue); it can run "
                    + supported.joined(separator: ", "))
            return 2
        }
        var counts: [Verdict.Outcome: Int] = [:]
        var anyInconsistent = false
        for path in files {
            let verdict = check(path: path, CheckSettings(threads: threads, form: form))
            counts[verdict.outcome, default: 0] += 1
            anyInconsistent = anyInconsistent || verdict.isInconsistent
            print(verdict.line)
            for note in verdict.notes { complain("lmk check: \(verdict.name): \(note)") }
        }
        let (passed, failed, skipped) = (counts[.pass] ?? 0, counts[.fail] ?? 0, counts[.skip] ?? 0)
        print("\(passed) passed, \(failed) failed, \(skipped) skipped")
        return anyInconsistent ? 2 : failed > 0 ? 1 : 0
    }
}

func printToStandardError(_ text: String) {
    FileHandle.standardError.write(Data((text + "\n").utf8))
}
