import Foundation
import LMKernels

/// L2 normalisation and the gated RMS norm, and their gradients.
struct NormCase: StageCase {
    static let operation = "normalization"

    var storage: StorageType
    var isGated: Bool
    var batch: Int
    var rows: Int
    var columns: Int
    var epsilon: Float
    var threads: Int
    var grids: [Grid]
    var x: [Float]
    var gate: [Float]
    var yGradient: [Float]
    var weight: [Float]

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .bfloat16, .float16])
        isGated = random.once(in: 2)
        columns = random.length(upTo: 2600, orZero: false)
        rows = random.length(upTo: 400)
        while rows * columns > 20_000 { rows = (rows + 1) / 2 }
        batch = random.integer(0...2)
        epsilon = random.pick([1e-6, 1e-5, 1])
        threads = random.threads()
        grids = []
        for _ in 0..<6 {
            grids.append(
                Grid(matrices: batch, rows: rows, columns: columns, gapsFrom: &random))
        }
        let storage = storage
        let count = batch * rows * columns
        let size = random.power(-4...4)
        x = (0..<count).map { _ in storage.rounded(random.unit() * size) }
        gate = (0..<count).map { _ in storage.rounded(random.unit() * 6) }
        yGradient = (0..<count).map { _ in storage.rounded(random.unit()) }
        weight = (0..<columns).map { _ in random.unit() }
    }

    var description: String {
        "\(storage)" + (isGated ? " gated" : " l2") + " batch \(batch) rows \(rows) columns"
            + " \(columns) epsilon \(epsilon) threads \(threads) gaps \(grids.map(\.gap))"
            + " places \(grids.map(\.offset))"
    }

    func call<Element: StorageValue>(
        as type: Element.Type, threads: Int, _ findings: inout Findings
    ) throws(KernelError) -> StageFound {
        let filler = Element(Grid.filler)
        let shape = LinearAttention.RowShape(batch: batch, tokens: rows, columns: columns)
        var strides = LinearAttention.NormStrides()
        strides.x = grids[0].stageStrides
        strides.gate = grids[1].stageStrides
        strides.yGradient = grids[2].stageStrides
        strides.y = grids[3].stageStrides
        strides.xGradient = grids[4].stageStrides
        strides.gateGradient = grids[5].stageStrides
        let xs = grids[0].spread(x.map { Element($0) }, filler: filler)
        let gates = grids[1].spread(gate.map { Element($0) }, filler: filler)
        let dys = grids[2].spread(yGradient.map { Element($0) }, filler: filler)
        let input = xs.span.extracting(grids[0].range)
        let open = gates.span.extracting(grids[1].range)
        let dy = dys.span.extracting(grids[2].range)
        let y: [Float] = try grids[3].written("y", &findings) {
            (y: consuming MutableSpan<Element>) throws(KernelError) in
            if isGated {
                try LinearAttention.gatedRMSNorm(
                    input, gate: open, weight: weight.span, into: &y, shape: shape,
                    strides: strides, epsilon: epsilon, threads: threads)
            } else {
                try LinearAttention.l2Normalize(
                    input, into: &y, shape: shape, strides: strides, epsilon: epsilon,
                    threads: threads)
            }
        }
        guard isGated else {
            let dx: [Float] = try grids[4].written("dx", &findings) {
                (dx: consuming MutableSpan<Element>) throws(KernelError) in
                try LinearAttention.l2NormalizeBackward(
                    input, yGradient: dy, xGradient: &dx, shape: shape, strides: strides,
                    epsilon: epsilon, threads: threads)
            }
            return [("y", y), ("dx", dx)]
        }
        let dx: [Float] = try grids[4].written("dx", &findings) {
            (dx: consuming MutableSpan<Element>) throws(KernelError) in
            try LinearAttention.gatedRMSNormBackward(
                input, gate: open, weight: weight.span, yGradient: dy, xGradient: dx,
                shape: shape, strides: strides, epsilon: epsilon, threads: threads,
                workspace: Workspace())
        }
        var dweight = Array(repeating: Grid.filler, count: columns)
        let dgate: [Float] = try grids[5].written("dgate", &findings) {
            (dgate: consuming MutableSpan<Element>) throws(KernelError) in
            try LinearAttention.gatedRMSNormBackward(
                input, gate: open, weight: weight.span, yGradient: dy, gateGradient: dgate,
                weightGradient: dweight.mutableSpan, shape: shape, strides: strides,
                epsilon: epsilon, threads: threads, workspace: Workspace())
        }
        return [("y", y), ("dx", dx), ("dgate", dgate), ("dweight", dweight)]
    }

    /// The reference; what is not a sum over rows has a relative error, but for the difference
    /// in dx, whose second term is bounded by |r x| / D times the length of what it is a sum of.
    func expected(_ found: StageFound) -> StageExpected {
        typealias Reference = ReferenceLinearAttention
        let all = batch * rows
        let (x, dy) = (x.map { Double($0) }, yGradient.map { Double($0) })
        let epsilon = Double(epsilon)
        // Sums in 64 lanes.
        let chain = 24 + Double(columns / 64)
        var expected = StageExpected()
        func bounds(_ values: [Double], _ roundings: Double) -> [Double] {
            values.map { $0.magnitude * roundings * stageUnit + 0x1p-140 }
        }
        if !isGated {
            let y = Reference.l2Normalize(x, rows: all, columns: columns, epsilon: epsilon)
            let dx = Reference.l2NormalizeBackward(
                x, outputGradient: dy, rows: all, columns: columns, epsilon: epsilon)
            expected.add("y", y, bounds(y, chain), storage)
            expected.add("dx", dx, bounds(differences(x, dy, divisor: 1), chain), storage)
            return expected
        }
        let (gate, weight) = (gate.map { Double($0) }, weight.map { Double($0) })
        let y = Reference.gatedRMSNorm(
            x, gate: gate, weight: weight, rows: all, columns: columns, epsilon: epsilon)
        let gradients = Reference.gatedRMSNormBackward(
            x, gate: gate, weight: weight, outputGradient: dy, rows: all, columns: columns,
            epsilon: epsilon)
        let open = gate.map { $0 / (1 + exp(-$0)) }
        let upstream = x.indices.map { dy[$0] * weight[$0 % columns] * open[$0] }
        let normal = Reference.l2Normalize(
            x, rows: all, columns: columns, epsilon: epsilon * Double(columns)
        ).map { $0 * Double(columns).squareRoot() }
        var sums = Array(repeating: 0.0, count: columns)
        for i in x.indices { sums[i % columns] += (dy[i] * normal[i] * open[i]).magnitude }
        // silu' is a sum of terms up to 1 + |gate| / 4.
        let slopes = x.indices.map {
            dy[$0] * normal[$0] * weight[$0 % columns] * (1 + gate[$0].magnitude / 4)
        }
        expected.add("y", y, bounds(y, chain), storage)
        expected.add(
            "dx", gradients.x,
            bounds(differences(x, upstream, divisor: Double(columns)), chain), storage)
        expected.add("dgate", gradients.gate, bounds(slopes, chain), storage)
        expected.add("dweight", gradients.weight, bounds(sums, chain + 140), .float32)
        return expected
    }

    /// r (|g_j| + r^2 |x_j| sum_i |x_i g_i| / divisor)
    private func differences(_ x: [Double], _ g: [Double], divisor: Double) -> [Double] {
        var result: [Double] = []
        for row in 0..<batch * rows {
            let range = row * columns..<(row + 1) * columns
            let square = range.reduce(0) { $0 + x[$1] * x[$1] } / divisor + Double(epsilon)
            let dot = range.reduce(0) { $0 + (x[$1] * g[$1]).magnitude } / divisor
            for i in range {
                result.append(
                    (g[i].magnitude + x[i].magnitude * dot / square) / square.squareRoot())
            }
        }
        return result
    }
}
