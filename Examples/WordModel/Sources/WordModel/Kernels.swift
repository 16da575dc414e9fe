import LMKernels

// The library's functions take spans. These take the arrays that the model keeps, because two
// fields of one struct can be passed as arrays, one `inout`, but not as spans of which one is
// mutable.

/// c = a b, or c += a b.
func product(
    _ a: [Float], _ b: [Float], into c: inout [Float], _ layout: Matmul.Layout, rows: Int,
    columns: Int, depth: Int, accumulate: Bool = false, _ workspace: Workspace
) throws(KernelError) {
    if !accumulate { resize(&c, to: rows * columns) }
    var span = c.mutableSpan
    try Matmul.multiply(
        a.span, b.span, into: &span, shape: .init(rows: rows, columns: columns, depth: depth),
        layout: layout, accumulate: accumulate, workspace: workspace)
}

func tanh(_ x: [Float], into y: inout [Float]) throws(KernelError) {
    resize(&y, to: x.count)
    var span = y.mutableSpan
    try Elementwise.tanh(x.span, into: &span)
}

/// A softmax classifier's loss, and its gradients if there are arrays for them.
struct Classifier {
    /// Bytes that cut cross-entropy may work in.
    private static let memoryBudget = 8 << 20

    let shape: ModelShape
    let workspace = Workspace()

    /// Mean loss.
    func loss(
        hidden: [Float], embedding: [Float], bias: [Float], targets: [Int32]
    ) throws(KernelError) -> Double {
        try CrossEntropy.forward(
            hidden: hidden.span, classifier: embedding.span, bias: bias.span,
            targets: targets.span, shape: sizes(targets.count),
            options: .init(memoryBudget: Self.memoryBudget), workspace: workspace
        ).loss
    }

    /// Mean loss, and its gradients.
    func loss(
        hidden: [Float], embedding: [Float], bias: [Float], targets: [Int32],
        hiddenGradient: inout [Float], embeddingGradient: inout [Float],
        biasGradient: inout [Float]
    ) throws(KernelError) -> Double {
        resize(&hiddenGradient, to: hidden.count)
        return try CrossEntropy.forwardBackward(
            hidden: hidden.span, classifier: embedding.span, bias: bias.span,
            targets: targets.span, shape: sizes(targets.count),
            options: .init(memoryBudget: Self.memoryBudget),
            hiddenGradient: hiddenGradient.mutableSpan,
            classifierGradient: embeddingGradient.mutableSpan,
            biasGradient: biasGradient.mutableSpan, workspace: workspace
        ).loss
    }

    private func sizes(_ rows: Int) -> CrossEntropy.Shape {
        .init(rows: rows, features: shape.embedding, vocabulary: shape.vocabulary)
    }
}
