import LMKernels

extension LinearAttentionCase {
    func check(_ findings: inout Findings) throws(KernelError) {
        let workspace = Workspace()
        let expected = LinearAttentionExpected(self)
        var fused: (set: InstructionSet, found: Found)?
        try withEachSupportedSet { set throws(KernelError) in
            var first: Found?
            let tiled = set == .amx ? expected.tiledNumbers : [:]
            for threads in threads == 1 ? [1] : [1, threads] {
                findings.context = "\(set), threads \(threads)"
                let found = try call(threads: threads, workspace, &findings)
                if let first {
                    findings.compare(found, with: first, of: "one thread")
                } else if set.isFused, let fused {
                    compare(found, tiled, "on tiles", &findings)
                    findings.compare(
                        found, with: fused.found, of: "\(fused.set)", except: Set(tiled.keys))
                } else {
                    compare(found, expected.numbers.merging(tiled) { $1 }, nil, &findings)
                }
                first = first ?? found
            }
            if set.isFused, tiled.isEmpty, let first { fused = fused ?? (set, first) }
        }
    }

    /// Those that have expected numbers.
    private func compare(
        _ found: Found, _ expected: [String: LinearAttentionExpected.Numbers], _ way: String?,
        _ findings: inout Findings
    ) {
        for (name, values) in found.arrays where !values.isEmpty {
            guard let numbers = expected[name] else { continue }
            let isStored = ["o", "dq", "dk", "dv"].contains(name)
            let label = [name, isStored ? "\(storage)" : nil, way].compactMap(\.self)
            findings.compare(
                label.joined(separator: ", "), values, numbers.values, scale: numbers.bounds,
                tolerance: 1)
        }
    }
}

extension Findings {
    fileprivate mutating func compare(
        _ found: LinearAttentionCase.Found, with other: LinearAttentionCase.Found, of way: String,
        except names: Set<String> = []
    ) {
        for (array, reference) in zip(found.arrays, other.arrays) where !names.contains(array.name)
        {
            compareBits(array.name, array.values, with: reference.values, of: way)
        }
    }
}
