import LMKernels

/// A random problem of one operation.
protocol FuzzCase: CustomStringConvertible {
    /// As `--op` names it.
    static var operation: String { get }

    /// Draws a problem. Everything random about the case is drawn here.
    init(using random: inout SplitMix64)

    /// Runs the kernels on it and compares.
    func check(_ findings: inout Findings) throws(KernelError)
}

/// Checks random cases until time or cases run out.
///
/// A case is made by a generator of its own, from the seed, the name of its operation and its
/// index: it is the same whatever ran before.
struct Fuzzer {
    static var operations: [any FuzzCase.Type] {
        [
            CrossEntropyCase.self, SoftmaxCase.self, TopKCase.self, ShiftMaxCase.self,
            AccumulatorCase.self, LinearAttentionCase.self, DeltaRuleCase.self,
            HouseholderCase.self, SelfReferentialCase.self, RecurrenceCase.self,
            ConvolutionCase.self, NormCase.self, FeatureCase.self, MatmulCase.self,
            ElementwiseCase.self,
        ]
    }

    var seed: UInt64
    var operations = Fuzzer.operations
    /// Of all operations together; nil for no limit.
    var seconds: Double?
    /// Cases of each operation; nil for no limit.
    var iterations: Int?
    /// Whether an operation goes on after a failure.
    var keepsGoing = false
    /// Told about every case before it runs.
    var announce: ((String) -> Void)?

    private struct Progress {
        var cases = 0
        var seconds = 0.0
        var failures = 0
        var findings = Findings()
    }

    /// Runs cases 0, 1, 2, ... of every operation.
    ///
    /// - Returns: Whether none failed.
    func run(print: (String) -> Void) -> Bool {
        var progress = operations.map { _ in Progress() }
        let clock = ContinuousClock()
        let start = clock.now
        while true {
            if let seconds, (clock.now - start).seconds >= seconds { break }
            // Operations get the same time, not the same number of cases.
            let open = operations.indices.filter {
                (progress[$0].failures == 0 || keepsGoing)
                    && progress[$0].cases < iterations ?? .max
            }
            guard let next = open.min(by: { progress[$0].seconds < progress[$1].seconds }) else {
                break
            }
            let index = progress[next].cases
            let before = clock.now
            let findings = runCase(operations[next], index, print: print)
            progress[next].seconds += (clock.now - before).seconds
            progress[next].cases += 1
            progress[next].findings.merge(findings, index: index)
            if !findings.failures.isEmpty { progress[next].failures += 1 }
        }
        for (operation, progress) in zip(operations, progress) {
            let cases = progress.cases == 1 ? "case" : "cases"
            print(
                "\(operation.operation): \(progress.cases) \(cases)"
                    + (progress.failures > 0 ? ", \(progress.failures) failed" : ""))
            report(progress.findings, print: print)
        }
        return progress.allSatisfy { $0.failures == 0 }
    }

    /// Runs one case of each operation.
    ///
    /// - Returns: Whether none failed.
    func runOnly(_ index: Int, print: (String) -> Void) -> Bool {
        var passes = true
        for operation in operations {
            let findings = runCase(operation, index, print: print)
            if findings.failures.isEmpty {
                print("\(operation.operation), case \(index): \(draw(operation, index))")
            }
            var merged = Findings()
            merged.merge(findings, index: index)
            report(merged, print: print)
            passes = passes && findings.failures.isEmpty
        }
        return passes
    }

    private func draw(_ operation: any FuzzCase.Type, _ index: Int) -> any FuzzCase {
        var random = SplitMix64(seed: seed, operation: operation.operation, index: index)
        return operation.init(using: &random)
    }

    private func runCase(
        _ operation: any FuzzCase.Type, _ index: Int, print: (String) -> Void
    ) -> Findings {
        let problem = draw(operation, index)
        announce?("\(operation.operation), case \(index): \(problem)")
        let before = InstructionSet.current
        defer { InstructionSet.use(before) }
        var findings = Findings()
        do throws(KernelError) {
            try problem.check(&findings)
        } catch {
            findings.fail("refused: \(error)")
        }
        if !findings.failures.isEmpty {
            print("FAIL \(operation.operation), case \(index): \(problem)")
            for failure in findings.failures { print("    \(failure)") }
            print(
                "    reproduce: lmk fuzz --op \(operation.operation) --seed \(seed) --case \(index)"
            )
        }
        return findings
    }

    private func report(_ findings: Findings, print: (String) -> Void) {
        for (quantity, worst) in findings.worst.sorted(by: { $0.key < $1.key }) {
            let name = quantity.padding(24)
            print(
                "    \(name) worst \(scientific(worst.error)), "
                    + "tolerance \(scientific(worst.tolerance)), case \(worst.index)")
        }
    }
}

/// Runs `body` with every instruction set that this CPU has; the one before is restored by whoever
/// cares.
func withEachSupportedSet(_ body: (InstructionSet) throws(KernelError) -> Void) throws(KernelError)
{
    for set in InstructionSet.allCases where InstructionSet.use(set) { try body(set) }
}

extension InstructionSet {
    /// Whether it has fused multiply-add: float32 results then have the same bits as with any other
    /// that has it.
    var isFused: Bool { self != .generic }
}

extension Duration {
    fileprivate var seconds: Double {
        Double(components.seconds) + 1e-18 * Double(components.attoseconds)
    }
}

extension String {
    fileprivate func padding(_ width: Int) -> String {
        self + String(repeating: " ", count: max(0, width - count))
    }
}
