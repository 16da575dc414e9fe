import LMKernels

extension LinearAttentionCase {
    func check(_ findings: inout Findings) throws(KernelError) {
        let workspace = Workspace()
        let expected = LinearAttentionExpected(self)
        var fused: (set: InstructionSet, found: Found)?
        try withEachSupportedSet { set throws(KernelError) in
            var first: Found?
            for threads in threads == 1 ? [1] : [1, threads] {
                findings.context = "\(set), threads \(threads)"
                let found = try call(threads: threads, workspace, &findings)
                if let first {
                    findings.compare(found, with: first, of: "one thread")
                } else if set.isFused, let fused {
                    findings.compare(found, with: fused.found, of: "\(fused.set)")
                } else {
                    compare(found, expected, &findings)
                }
                first = first ?? found
            }
            if set.isFused, let first { fused = fused ?? (set, first) }
        }
    }

    private func compare(
        _ found: Found, _ expected: LinearAttentionExpected, _ findings: inout Findings
    ) {
        for (name, values) in found.arrays where !values.isEmpty {
            let numbers = expected.numbers[name]!
            let isStored = ["o", "dq", "dk", "dv"].contains(name)
            findings.compare(
                isStored ? "\(name), \(storage)" : name, values, numbers.values,
                scale: numbers.bounds, tolerance: 1)
        }
    }
}

extension Findings {
    fileprivate mutating func compare(
        _ found: LinearAttentionCase.Found, with other: LinearAttentionCase.Found, of way: String
    ) {
        for (array, reference) in zip(found.arrays, other.arrays) {
            compareBits(array.name, array.values, with: reference.values, of: way)
        }
    }
}
