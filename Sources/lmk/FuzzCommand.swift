import ArgumentParser
import LMKernels

struct FuzzCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fuzz",
        abstract: "Compare kernels with the references on random problems.",
        discussion: """
            Sizes, strides, options, values (huge, denormal, equal, infinite, NaN), threads and memory \
            budgets are random; every instruction set of this CPU is tried. Errors are relative to \
            the magnitudes that went into a number, or in units in the last place. A failure comes \
            with the command that reproduces it, and the exit status 1.
            """
    )

    @Option(help: "Stop after this time. [default: 10, or none with --iterations]")
    var seconds: Double?

    @Option(help: "Stop after this many cases of each operation.")
    var iterations: Int?

    @Option(help: "Seed of all cases. [default: a new one, which is printed]")
    var seed: UInt64?

    @Option(help: "Only this operation: \(names).")
    var op: String?

    @Option(name: .customLong("case"), help: "Only the case of this index.")
    var index: Int?

    @Flag(help: "Go on after a failure, instead of leaving that operation.")
    var keepGoing = false

    @Flag(help: "Name every case on standard error before it runs.")
    var verbose = false

    private static var names: String {
        Fuzzer.operations.map { $0.operation }.joined(separator: ", ")
    }

    func validate() throws {
        if let seconds, !(seconds >= 0) { throw ValidationError("--seconds is negative.") }
        if let iterations, iterations < 0 { throw ValidationError("--iterations is negative.") }
        if let index, index < 0 { throw ValidationError("--case is negative.") }
        if let op, !Fuzzer.operations.contains(where: { $0.operation == op }) {
            throw ValidationError("There is no operation \(op); there are \(Self.names).")
        }
    }

    func run() throws {
        let seed = seed ?? UInt64.random(in: .min ... .max)
        var fuzzer = Fuzzer(seed: seed)
        if let op { fuzzer.operations = Fuzzer.operations.filter { $0.operation == op } }
        fuzzer.iterations = iterations
        fuzzer.keepsGoing = keepGoing
        fuzzer.seconds = seconds ?? (iterations == nil ? 10 : nil)
        if verbose { fuzzer.announce = { printToStandardError($0) } }

        print("seed \(seed)")
        let passes =
            if let index {
                fuzzer.runOnly(index, print: { print($0) })
            } else {
                fuzzer.run(print: { print($0) })
            }
        if !passes { throw ExitCode(1) }
    }
}
