import Foundation
import LMKernels

/// A feature map and its gradient.
struct FeatureCase: StageCase {
    static let operation = "feature-map"

    private typealias Reference = ReferenceLinearAttention.FeatureMap

    var storage: StorageType
    var map: LinearAttention.FeatureMap
    var batch: Int
    var tokens: Int
    var columns: Int
    var positions: [Int]?
    var threads: Int
    var grids: [Grid]
    var x: [Float]
    var featuresGradient: [Float]

    init(using random: inout SplitMix64) {
        storage = random.pick([.float32, .bfloat16, .float16])
        let power = random.pick([1, 2, 3, 16, 17, 2.5, random.number(1...9)] as [Float])
        let length = random.integer(1...1000)
        map = random.pick([
            .identity, .eluPlusOne, .relu, .squaredReLU, .softmax, .expPair, .softmaxPair, .taylor,
            .focused(power: power, epsilon: random.pick([0, 1e-6, 0.1])), .cosine(length: length),
        ])
        columns = random.length(upTo: map == .taylor ? 100 : 1200, orZero: false)
        batch = random.integer(0...2)
        tokens = random.length(upTo: 200)
        let features = map.featureCount(columns: columns)
        while tokens * features > 20_000 { tokens /= 2 }
        threads = random.threads()
        if case .cosine = map {
            positions = (0..<batch * tokens).map { _ in random.integer(0...length) }
        }
        grids = []
        for width in [columns, features, features, columns] {
            grids.append(
                Grid(matrices: batch, rows: tokens, columns: width, gapsFrom: &random))
        }
        let storage = storage
        let size = random.pick([0.01, 1, 8] as [Float])
        x = (0..<batch * tokens * columns).map { _ in storage.rounded(random.unit() * size) }
        featuresGradient = (0..<batch * tokens * features).map { _ in
            storage.rounded(random.unit())
        }
    }

    var description: String {
        "\(map) \(storage) batch \(batch) tokens \(tokens) columns \(columns) threads \(threads)"
            + " gaps \(grids.map(\.gap)) places \(grids.map(\.offset))"
    }

    func call<Element: StorageValue>(
        as type: Element.Type, threads: Int, _ findings: inout Findings
    ) throws(KernelError) -> StageFound {
        let filler = Element(Grid.filler)
        let shape = LinearAttention.RowShape(batch: batch, tokens: tokens, columns: columns)
        var strides = LinearAttention.FeatureMap.Strides()
        strides.x = grids[0].stageStrides
        strides.features = grids[1].stageStrides
        strides.featuresGradient = grids[2].stageStrides
        strides.xGradient = grids[3].stageStrides
        let xs = grids[0].spread(x.map { Element($0) }, filler: filler)
        let dphi = grids[2].spread(featuresGradient.map { Element($0) }, filler: filler)
        let input = xs.span.extracting(grids[0].range)
        let features: [Float] = try grids[1].written("features", &findings) {
            (features: consuming MutableSpan<Element>) throws(KernelError) in
            try map.forward(
                input, into: &features, shape: shape, strides: strides,
                positions: positions?.span, threads: threads)
        }
        let dx: [Float] = try grids[3].written("dx", &findings) {
            (dx: consuming MutableSpan<Element>) throws(KernelError) in
            try map.backward(
                input, featuresGradient: dphi.span.extracting(grids[2].range), xGradient: &dx,
                shape: shape, strides: strides, positions: positions?.span, threads: threads)
        }
        return [("features", features), ("dx", dx)]
    }

    private func reference(_ row: Int) -> ReferenceLinearAttention.FeatureMap {
        switch map {
        case .identity: .identity
        case .eluPlusOne: .eluPlusOne
        case .relu: .relu
        case .squaredReLU: .squaredReLU
        case .softmax: .softmax
        case .expPair: .expPair
        case .softmaxPair: .softmaxPair
        case .taylor: .taylor
        case .focused(let power, let epsilon):
            .focused(power: Double(power), epsilon: Double(epsilon))
        case .cosine(let length): .cosine(positions: [positions![row]], length: length)
        }
    }

    /// The reference; a feature has a relative error, and so has what its gradient is a sum of:
    /// the gradient by magnitudes of a map whose slopes are not negative, or a few terms.
    func expected(_ found: StageFound) -> StageExpected {
        let features = map.featureCount(columns: columns)
        var (phi, phiBounds) = ([Double](), [Double]())
        var (dx, dxBounds) = ([Double](), [Double]())
        for row in 0..<batch * tokens {
            let x = self.x[row * columns..<(row + 1) * columns].map { Double($0) }
            let g = featuresGradient[row * features..<(row + 1) * features].map { Double($0) }
            let reference = reference(row)
            let values = reference.forward(x, rows: 1, columns: columns)
            let gradient = reference.backward(x, outputGradient: g, rows: 1, columns: columns)
            let error = roundings(x) * stageUnit
            phi += values
            phiBounds += values.map { $0.magnitude * error + 0x1p-140 }
            dx += gradient
            dxBounds += sizes(x, g, values, gradient).map { $0 * error + 0x1p-140 }
        }
        var expected = StageExpected()
        expected.add("features", phi, phiBounds, storage)
        expected.add("dx", dx, dxBounds, storage)
        return expected
    }

    /// Roundings that the features of a row have at most.
    private func roundings(_ x: [Double]) -> Double {
        let chain = Double(columns / 64)
        switch map {
        case .softmax, .softmaxPair: return 30 + chain + 4 * (x.max()! - x.min()!)
        case .focused(let power, let epsilon):
            // Of powers by logarithms, of the smallest that can be told from 0.
            let least = x.filter { $0 > 0 }.min() ?? 1
            let ratio = log((x.max()! + 1) / max(least + Double(epsilon), 1e-30))
            return 30 + chain + 4 * Double(power) * (2 + max(ratio, 0))
        case .taylor: return 30 + 2 * Double(columns)
        default: return 16
        }
    }

    /// The magnitudes of the terms of each gradient.
    private func sizes(
        _ x: [Double], _ g: [Double], _ phi: [Double], _ gradient: [Double]
    ) -> [Double] {
        func dot(_ first: Int) -> Double {
            (0..<columns).reduce(0) { $0 + (phi[first + $1] * g[first + $1]).magnitude }
        }
        switch map {
        case .softmax:
            let all = dot(0)
            return (0..<columns).map { phi[$0] * (g[$0].magnitude + all) }
        case .softmaxPair:
            let (first, second) = (dot(0), dot(columns))
            return (0..<columns).map {
                phi[$0] * (g[$0].magnitude + first)
                    + phi[columns + $0] * (g[columns + $0].magnitude + second)
            }
        case .expPair:
            return (0..<columns).map {
                (phi[$0] * g[$0]).magnitude + (phi[columns + $0] * g[columns + $0]).magnitude
            }
        case .cosine:
            return (0..<columns).map { g[$0].magnitude + g[columns + $0].magnitude }
        case .taylor:
            return Reference.taylor.backward(
                x.map(\.magnitude), outputGradient: g.map(\.magnitude), rows: 1, columns: columns)
        case .focused(let power, let epsilon):
            let r = x.map { max($0, 0) + Double(epsilon) }
            let length = r.reduce(0) { $0 + $1 * $1 }.squareRoot()
            guard length > 0 else { return gradient.map { _ in 0 } }
            let all = dot(0)
            let square = phi.reduce(0) { $0 + $1 * $1 }
            return (0..<columns).map { j in
                let across = g[j].magnitude + phi[j] * all / square
                // Of an r of 0 there is a slope where the power is 1.
                let slope = r[j] > 0 ? Double(power) * phi[j] / r[j] : Double(power)
                return r[j] / (length * length) * all + slope * across
            }
        default: return gradient.map(\.magnitude)
        }
    }
}
