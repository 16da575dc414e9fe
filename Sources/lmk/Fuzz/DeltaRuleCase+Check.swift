import LMKernels

extension DeltaRuleCase {
    func check(_ findings: inout Findings) throws(KernelError) {
        let workspace = Workspace()
        let expected = DeltaRuleExpected(self)
        var fused: [DeltaRule.Form: (set: InstructionSet, found: Found)] = [:]
        try withEachSupportedSet { set throws(KernelError) in
            for form in DeltaRule.Form.allCases {
                var first: Found?
                for threads in threads == 1 ? [1] : [1, threads] {
                    findings.context = "\(set), \(form), threads \(threads)"
                    let found = try call(form, threads: threads, workspace, &findings)
                    if let first {
                        findings.compare(found, with: first, of: "one thread")
                    } else if isOnTiles(set, form) {
                        compare(found, expected, &findings, onTiles: true)
                    } else if set.isFused, let fused = fused[form] {
                        findings.compare(found, with: fused.found, of: "\(fused.set)")
                    } else {
                        compare(found, expected, &findings)
                    }
                    first = first ?? found
                }
                guard set.isFused, !isOnTiles(set, form), let first else { continue }
                fused[form] = fused[form] ?? (set, first)
            }
        }
    }

    /// Whether forward may run on tiles, which have bits of their own.
    private func isOnTiles(_ set: InstructionSet, _ form: DeltaRule.Form) -> Bool {
        set == .amx && storage == .bfloat16 && decay != .key && beta != nil && form != .recurrent
    }

    private func compare(
        _ found: Found, _ expected: DeltaRuleExpected, _ findings: inout Findings,
        onTiles: Bool = false
    ) {
        for (name, values) in found.arrays where !values.isEmpty {
            let isForward = ["o", "state", "states"].contains(name)
            let numbers =
                onTiles && isForward ? expected.numbersOnTiles[name]! : expected.numbers[name]!
            let label = isStored(name) ? "\(name), \(storage)" : name
            findings.compare(
                onTiles && isForward ? "\(label), tiles" : label, values, numbers.values,
                scale: numbers.bounds, tolerance: 1)
        }
    }

    /// Whether an array has the storage type, and is not float32 always.
    func isStored(_ name: String) -> Bool {
        ["o", "dq", "dk", "dv", "da", "db"].contains(name)
    }
}

extension Findings {
    fileprivate mutating func compare(
        _ found: DeltaRuleCase.Found, with other: DeltaRuleCase.Found, of way: String
    ) {
        for (array, reference) in zip(found.arrays, other.arrays) {
            compareBits(array.name, array.values, with: reference.values, of: way)
        }
    }
}
