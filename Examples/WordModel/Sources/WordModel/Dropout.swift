/// Factors of inputs and hidden units in one step: 0 for those that are dropped, more than 1 for the
/// others, so that means stay the same. Empty: nothing is dropped.
struct Dropout {
    static let none = Dropout()

    /// [rows, context x embedding]
    var inputs: [Float] = []
    /// [rows, hidden]
    var hidden: [Float] = []

    private init() {}

    init(
        rows: Int, _ shape: ModelShape, inputRate: Float, hiddenRate: Float,
        using generator: inout SplitMix64
    ) {
        inputs = Self.factors(
            rows * shape.inputs, rate: inputRate, using: &generator)
        hidden = Self.factors(rows * shape.hidden, rate: hiddenRate, using: &generator)
    }

    private static func factors(
        _ count: Int, rate: Float, using generator: inout SplitMix64
    ) -> [Float] {
        guard rate > 0 else { return [] }
        let threshold = UInt64(rate * 65536)
        let kept = 1 / (1 - rate)
        return Array(unsafeUninitializedCapacity: count) { factors, initializedCount in
            // Each random number serves four factors.
            var bits: UInt64 = 0
            for i in 0..<count {
                bits = i % 4 == 0 ? generator.next() : bits >> 16
                factors[i] = bits & 0xffff < threshold ? 0 : kept
            }
            initializedCount = count
        }
    }
}
