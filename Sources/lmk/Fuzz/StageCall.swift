import LMKernels
import LMKernelsReference

/// What a call of a stage around linear attention gives: arrays by name, dense, as float32.
typealias StageFound = [(name: String, values: [Float])]

/// The same by the reference, with bounds; infinity lets any finite value pass, NaN any.
struct StageExpected {
    var arrays: [(name: String, values: [Double], bounds: [Double])] = []

    /// An array of this storage type, with a bound on what float32 arithmetic may lose.
    mutating func add(
        _ name: String, _ values: [Double], _ bounds: [Double], _ storage: StorageType
    ) {
        let all = zip(values, bounds).map { value, bound in
            guard value.isFinite else { return 0.0 }
            if value.magnitude + bound > storage.overflow { return .nan }
            return bound + value.magnitude * storage.unit + 2 * storage.leastUnit
        }
        arrays.append((name, values, all))
    }
}

/// A case of a stage: the same call with every instruction set and number of threads.
protocol StageCase: FuzzCase {
    var storage: StorageType { get }
    var threads: Int { get }

    func call<Element: StorageValue>(
        as type: Element.Type, threads: Int, _ findings: inout Findings
    ) throws(KernelError) -> StageFound

    func expected(_ found: StageFound) -> StageExpected
}

extension StageCase {
    func check(_ findings: inout Findings) throws(KernelError) {
        switch storage {
        case .float32: try check(as: Float.self, &findings)
        case .bfloat16: try check(as: BFloat16.self, &findings)
        case .float16:
            #if !(os(macOS) && arch(x86_64))
                try check(as: Float16.self, &findings)
            #endif
        }
    }

    private func check<Element: StorageValue>(
        as type: Element.Type, _ findings: inout Findings
    ) throws(KernelError) {
        var fused: (set: InstructionSet, found: StageFound)?
        try withEachSupportedSet { set throws(KernelError) in
            var first: StageFound?
            for threads in threads == 1 ? [1] : [1, threads] {
                findings.context = "\(set), threads \(threads)"
                let found = try call(as: Element.self, threads: threads, &findings)
                if let first {
                    compare(found, with: first, of: "one thread", &findings)
                } else if set.isFused, let fused {
                    compare(found, with: fused.found, of: "\(fused.set)", &findings)
                } else {
                    compare(found, &findings)
                }
                first = first ?? found
            }
            if set.isFused, let first { fused = fused ?? (set, first) }
        }
    }

    private func compare(
        _ found: StageFound, with other: StageFound, of way: String, _ findings: inout Findings
    ) {
        for (array, theirs) in zip(found, other) {
            findings.compareBits(array.name, array.values, with: theirs.values, of: way)
        }
    }

    private func compare(_ found: StageFound, _ findings: inout Findings) {
        for (array, expected) in zip(found, expected(found).arrays) {
            findings.compare(
                "\(Self.operation) \(expected.name)", array.values, expected.values,
                scale: expected.bounds, tolerance: 1)
        }
    }
}

/// One rounding of float32.
let stageUnit = StorageType.float32.unit

extension Grid {
    /// The strides of [matrices, rows, columns] as batch, tokens and channels.
    var stageStrides: LinearAttention.StageStrides {
        .init(batch: matrixStride, token: stride)
    }

    /// An array that a call writes to, whose part `range` is given to `body`.
    func written<Element: StorageValue>(
        _ name: String, _ findings: inout Findings,
        _ body: (consuming MutableSpan<Element>) throws(KernelError) -> Void
    ) throws(KernelError) -> [Float] {
        var array = Array(repeating: Element(Self.filler), count: count)
        try unsafe array.withUnsafeMutableBufferPointer { buffer throws(KernelError) in
            let part = buffer.extracting(range)
            try unsafe body(part.mutableSpan)
        }
        let filler = Element(Self.filler).float.bitPattern
        var rest = array
        for i in 0..<elementCount { rest[place(i)] = Element(Self.filler) }
        findings.expect(
            rest.allSatisfy { $0.float.bitPattern == filler }, "wrote outside \(name)")
        return dense(array).map(\.float)
    }
}

/// Offsets of `count` sequences, some of them empty, over `tokens`.
func drawOffsets(_ tokens: Int, using random: inout SplitMix64) -> [Int] {
    let inner = (0..<random.below(5)).map { _ in random.integer(0...tokens) }
    return [0] + inner.sorted() + [tokens]
}
