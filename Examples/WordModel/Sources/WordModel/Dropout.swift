/// Factors of inputs and hidden units in one step: 0 for those that are dropped, more than 1 for the
/// others, so that means stay the same. Empty: nothing is dropped.
struct Dropout {
    /// [rows, context x embedding]
    private(set) var inputs: [Float] = []
    /// [rows, hidden]
    private(set) var hidden: [Float] = []

    mutating func draw(
        rows: Int, _ shape: ModelShape, inputRate: Float, hiddenRate: Float,
        using generator: inout SplitMix64
    ) {
        Self.draw(&inputs, rows * shape.inputs, rate: inputRate, using: &generator)
        Self.draw(&hidden, rows * shape.hidden, rate: hiddenRate, using: &generator)
    }

    private static func draw(
        _ factors: inout [Float], _ count: Int, rate: Float, using generator: inout SplitMix64
    ) {
        resize(&factors, to: rate > 0 ? count : 0)
        let threshold = UInt64(rate * 65536)
        let kept = 1 / (1 - rate)
        // Each random number serves four factors.
        var bits: UInt64 = 0
        for i in factors.indices {
            bits = i % 4 == 0 ? generator.next() : bits >> 16
            factors[i] = bits & 0xffff < threshold ? 0 : kept
        }
    }
}
