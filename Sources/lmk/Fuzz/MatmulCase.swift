import LMKernels
import LMKernelsReference

typealias Matmul = LMKernels.Matmul
typealias ReferenceMatmul = LMKernelsReference.Matmul

/// A batch of matrix products.
struct MatmulCase: FuzzCase {
    static let operation = "matmul"

    /// Relative to sum_k |a| |b| + |c|. Sums are chains of up to 512 products, 1024 for bfloat16 with
    /// AVX512-BF16. In 66000 cases the largest errors were 1.5e-6 (float32), 1.6e-6 (float16) and
    /// 2.0e-6 (bfloat16), all of positive numbers.
    static let tolerance = 5e-6

    var layout: Matmul.Layout
    var storage: StorageType
    var values: Values
    var batch: Int
    var rows: Int
    var columns: Int
    var depth: Int
    var sharesA: Bool
    var sharesB: Bool
    var accumulate: Bool
    /// Strides are left to the library where nothing needs them.
    var givesStrides: Bool
    var threads: Int
    var aGrid: Grid
    var bGrid: Grid
    var cGrid: Grid
    var a: [Float]
    var b: [Float]
    var c: [Float]

    init(using random: inout SplitMix64) {
        layout = random.pick([.nn, .nt, .tn])
        storage = random.pick([.float32, .float32, .bfloat16, .float16])
        values = random.pick(Values.allCases)
        batch = random.once(in: 3) ? random.integer(0...9) : 1
        rows = random.length(upTo: 300)
        columns = random.length(upTo: 300)
        depth = random.length(upTo: 1100)
        // The reference takes about a nanosecond for each product.
        let limit = random.once(in: 8) ? 6_000_000 : 600_000
        while batch * rows * columns * depth > limit {
            switch random.below(4) {
            case 0: batch = (batch + 1) / 2
            case 1: rows = (rows + 1) / 2
            case 2: columns = (columns + 1) / 2
            default: depth = (depth + 1) / 2
            }
        }
        sharesA = batch > 1 && random.once(in: 4)
        sharesB = batch > 1 && random.once(in: 4)
        accumulate = random.once(in: 3)
        threads = random.threads()
        let aSize = layout == .tn ? (depth, rows) : (rows, depth)
        let bSize = layout == .nt ? (columns, depth) : (depth, columns)
        aGrid = Grid(
            matrices: sharesA ? 1 : batch, rows: aSize.0, columns: aSize.1, gapsFrom: &random)
        bGrid = Grid(
            matrices: sharesB ? 1 : batch, rows: bSize.0, columns: bSize.1, gapsFrom: &random)
        cGrid = Grid(matrices: batch, rows: rows, columns: columns, gapsFrom: &random)
        let isDense = [aGrid, bGrid, cGrid].allSatisfy { $0.gap == 0 } && !sharesA && !sharesB
        givesStrides = !isDense || random.once(in: 2)
        let (values, storage) = (values, storage)
        let scales = (0..<3).map { _ in values.scale(storage, &random) }
        a = (0..<aGrid.elementCount).map { _ in values.draw(&random) * scales[0] }
        b = (0..<bGrid.elementCount).map { _ in values.draw(&random) * scales[1] }
        c = (0..<cGrid.elementCount).map { _ in values.draw(&random) * scales[2] }
    }

    var description: String {
        "\(storage) \(layout) batch \(batch) rows \(rows) columns \(columns) depth \(depth)"
            + " values \(values) threads \(threads)"
            + (sharesA ? " one a" : "") + (sharesB ? " one b" : "")
            + (accumulate ? " accumulate" : "") + (givesStrides ? "" : " default strides")
            + " gaps \(aGrid.gap) \(bGrid.gap) \(cGrid.gap)"
            + " offsets \(aGrid.offset) \(bGrid.offset) \(cGrid.offset)"
    }

    /// Where numbers come from.
    enum Values: CaseIterable {
        case even
        case positive
        /// Small enough that every sum is exact.
        case integers
        /// Magnitudes over 40 powers of two, products up to 2^100.
        case wide
        /// Of which many are denormal.
        case tiny
        /// Some infinite, some NaN.
        case special

        func draw(_ random: inout SplitMix64) -> Float {
            switch self {
            case .even: random.unit()
            case .positive: random.number(0.25...1)
            case .integers: Float(random.integer(-4...4))
            case .wide: random.unit() * random.power(-20...20)
            case .tiny: random.unit() * random.power(-24...0)
            case .special:
                random.once(in: 40)
                    ? random.pick([.infinity, -.infinity, .nan, 0, -0.0]) : random.unit()
            }
        }

        /// Of all numbers of an operand.
        func scale(_ storage: StorageType, _ random: inout SplitMix64) -> Float {
            switch self {
            case .wide where storage == .float16: random.power(-10 ... -4)
            case .wide: random.power(-30...30)
            case .tiny: random.power(-130 ... -100)
            default: 1
            }
        }
    }
}

// MARK: - Check

extension MatmulCase {
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
        let (a, b) = (self.a.map { Element($0) }, self.b.map { Element($0) })
        let (expected, scale) = reference(a.map { Double($0.float) }, b.map { Double($0.float) })
        let workspace = Workspace()
        var fused: (set: InstructionSet, c: [Float])?
        try withEachSupportedSet { set throws(KernelError) in
            // Products of bfloat16 pairs take denormal numbers for 0, make none, and add pairs.
            let addsPairs = storage == .bfloat16 && (set == .avx512bf16 || set == .amx)
            var first: [Float]?
            for threads in threads == 1 ? [1] : [1, threads] {
                findings.context = "\(set), threads \(threads)"
                let found = try product(a, b, threads: threads, workspace, &findings)
                if let first {
                    findings.compareBits("c", found, with: first, of: "one thread")
                } else {
                    let lost = addsPairs ? flushed(a, b) : 0
                    findings.compare(
                        "c, \(storage)", found, expected,
                        scale: values == .integers ? scale.map { _ in 0 } : scale.map { $0 + lost },
                        tolerance: Self.tolerance)
                }
                first = first ?? found
            }
            guard set.isFused, !addsPairs, let first else { return }
            if let fused {
                findings.compareBits("c", first, with: fused.c, of: "\(fused.set)")
            }
            fused = fused ?? (set, first)
        }
    }

    /// Products in Double, and the scale of their errors.
    private func reference(
        _ a: [Double], _ b: [Double]
    ) -> (expected: [Double], scale: [Double]) {
        let layout: ReferenceMatmul.Layout =
            switch layout {
            case .nn: .nn
            case .nt: .nt
            case .tn: .tn
            }
        let shape = ReferenceMatmul.Shape(
            layout: layout, batch: batch, rows: rows, columns: columns, depth: depth,
            aBatchStride: sharesA ? 0 : nil, bBatchStride: sharesB ? 0 : nil)
        var expected = c.map { Double($0) }
        ReferenceMatmul.multiply(shape, a, b, into: &expected, accumulate: accumulate)
        var scale = c.map { Double($0.magnitude) }
        ReferenceMatmul.multiply(
            shape, a.map(\.magnitude), b.map(\.magnitude), into: &scale, accumulate: accumulate)
        // Every product and every sum may lose half of the least denormal.
        let floor = Double(depth + 1) * 0x1p-149 / Self.tolerance
        return (expected, scale.map { 1e37 < $0 && $0 < .infinity ? .nan : $0 + floor })
    }

    /// Scale of what is lost where denormal numbers count as 0.
    private func flushed<Element: StorageValue>(_ a: [Element], _ b: [Element]) -> Double {
        func largest(_ x: [Element]) -> Double {
            x.lazy.map { Double($0.float.magnitude) }.filter(\.isFinite).max() ?? 0
        }
        return Double(depth + 1) * (1 + largest(a) + largest(b)) * 0x1p-126 / Self.tolerance
    }

    /// c as the kernel leaves it, dense.
    private func product<Element: StorageValue>(
        _ a: [Element], _ b: [Element], threads: Int, _ workspace: Workspace,
        _ findings: inout Findings
    ) throws(KernelError) -> [Float] {
        let filler = Element(Grid.filler)
        let a = aGrid.spread(a, filler: filler)
        let b = bGrid.spread(b, filler: filler)
        // What is overwritten must not matter.
        let initial = accumulate ? self.c : self.c.map { _ in Grid.filler }
        var c = cGrid.spread(initial, filler: Grid.filler)
        var shape = Matmul.Shape(rows: rows, columns: columns, depth: depth, batch: batch)
        if givesStrides {
            shape.aStride = aGrid.stride
            shape.bStride = bGrid.stride
            shape.cStride = cGrid.stride
            shape.aBatchStride = sharesA ? 0 : aGrid.matrixStride
            shape.bBatchStride = sharesB ? 0 : bGrid.matrixStride
            shape.cBatchStride = cGrid.matrixStride
        }
        try withPart(of: &c, cGrid.range) { part throws(KernelError) in
            try Matmul.multiply(
                a.span.extracting(aGrid.range), b.span.extracting(bGrid.range), into: &part,
                shape: shape, layout: layout, accumulate: accumulate, threads: threads,
                workspace: workspace)
        }
        findings.expect(cGrid.hasIntactGaps(c), "wrote outside c")
        return cGrid.dense(c)
    }
}

/// Part of an array to write to.
func withPart<Element, Failure: Error>(
    of array: inout [Element], _ range: Range<Int>,
    _ body: (inout MutableSpan<Element>) throws(Failure) -> Void
) throws(Failure) {
    try unsafe array.withUnsafeMutableBufferPointer { buffer throws(Failure) in
        let part = buffer.extracting(range)
        var span = unsafe part.mutableSpan
        try body(&span)
    }
}
