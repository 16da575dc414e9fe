import Foundation
import LMKernels

func crossEntropyBenchmarks() {
    let shape = CrossEntropy.Shape(rows: 2048, features: 1024, vocabulary: 32768)
    for threads in [1, 2] {
        kernelForward(shape, threads: threads, iterations: 5)
        kernelGradients(shape, .panel, threads: threads, iterations: 3)
        kernelGradients(shape, .recompute, threads: threads, iterations: 3)
        dense(shape, gradients: false, threads: threads, iterations: 3)
        dense(shape, gradients: true, threads: threads, iterations: 3)
    }
    let small = CrossEntropy.Shape(rows: 64, features: 256, vocabulary: 4096)
    kernelGradients(small, .panel, threads: 1, iterations: 11)
    plainLoop(small, iterations: 3)
}

// MARK: - What is compared

private func kernelForward(_ shape: CrossEntropy.Shape, threads: Int, iterations: Int) {
    measurement(shape, gradients: false, threads: threads, "", iterations: iterations).register {
        let inputs = Inputs(shape)
        let options = CrossEntropy.Options(threads: threads)
        let workspace = Workspace()
        return {
            _ = try CrossEntropy.forward(
                hidden: inputs.hidden.span, classifier: inputs.classifier.span,
                targets: inputs.targets.span, shape: shape, options: options,
                workspace: workspace)
        }
    }
}

private func kernelGradients(
    _ shape: CrossEntropy.Shape, _ mode: CrossEntropy.Mode, threads: Int, iterations: Int
) {
    measurement(
        shape, gradients: true, threads: threads, ", \(mode)", iterations: iterations
    ).register {
        let inputs = Inputs(shape)
        var hiddenGradient = inputs.hiddenGradient
        var classifierGradient = inputs.classifierGradient
        // The default holds a panel, 8 MB do not.
        let budget = mode == .recompute ? 16 << 20 : nil
        let options = CrossEntropy.Options(memoryBudget: budget, threads: threads)
        let workspace = Workspace()
        return {
            let result = try CrossEntropy.forwardBackward(
                hidden: inputs.hidden.span, classifier: inputs.classifier.span,
                targets: inputs.targets.span, shape: shape, options: options,
                hiddenGradient: hiddenGradient.mutableSpan,
                classifierGradient: classifierGradient.mutableSpan, workspace: workspace)
            precondition(result.mode == mode, "the budget is not what \(mode) mode takes")
        }
    }
}

/// All logits in memory, products by BLAS, softmax by a plain loop on as many threads.
private func dense(
    _ shape: CrossEntropy.Shape, gradients: Bool, threads: Int, iterations: Int
) {
    var measurement = measurement(
        shape, gradients: gradients, threads: threads, ", dense with \(BLAS.name)",
        iterations: iterations)
    measurement.note = BLAS.kernels
    measurement.register {
        let inputs = Inputs(shape)
        let (rows, features, vocabulary) = (shape.rows, shape.features, shape.vocabulary)
        var logits = [Float](repeating: 0, count: rows * vocabulary)
        var losses = [Float](repeating: 0, count: rows)
        var hiddenGradient = gradients ? inputs.hiddenGradient : []
        var classifierGradient = gradients ? inputs.classifierGradient : []
        BLAS.use(threads: threads)
        return {
            BLAS.multiply(
                inputs.hidden, inputs.classifier, into: &logits,
                shape: .init(rows: rows, columns: vocabulary, depth: features), layout: .nt)
            softmaxLosses(
                &logits, &losses, targets: inputs.targets, vocabulary: vocabulary,
                gradientScale: gradients ? 1 / Float(rows) : nil, threads: threads)
            guard gradients else { return }
            BLAS.multiply(
                logits, inputs.classifier, into: &hiddenGradient,
                shape: .init(rows: rows, columns: features, depth: vocabulary), layout: .nn)
            BLAS.multiply(
                logits, inputs.hidden, into: &classifierGradient,
                shape: .init(rows: vocabulary, columns: features, depth: rows), layout: .tn)
        }
    }
}

private func softmaxLosses(
    _ logits: UnsafeMutablePointer<Float>, _ losses: UnsafeMutablePointer<Float>, targets: [Int32],
    vocabulary: Int, gradientScale: Float?, threads: Int
) {
    // Each row belongs to one thread.
    nonisolated(unsafe) let (logits, losses) = (logits, losses)
    DispatchQueue.concurrentPerform(iterations: threads) { slot in
        let rows = slot * targets.count / threads..<(slot + 1) * targets.count / threads
        for i in rows {
            losses[i] = softmaxLoss(
                logits + i * vocabulary, count: vocabulary, target: Int(targets[i]),
                gradientScale: gradientScale)
        }
    }
}

private func plainLoop(_ shape: CrossEntropy.Shape, iterations: Int) {
    measurement(
        shape, gradients: true, threads: 1, ", plain loop", iterations: iterations
    ).register {
        let inputs = Inputs(shape)
        var hiddenGradient = inputs.hiddenGradient
        var classifierGradient = inputs.classifierGradient
        var logits = [Float](repeating: 0, count: shape.vocabulary)
        return {
            crossEntropyPlainly(
                hidden: inputs.hidden, classifier: inputs.classifier, targets: inputs.targets,
                rows: shape.rows, features: shape.features, vocabulary: shape.vocabulary,
                logits: &logits, hiddenGradient: &hiddenGradient,
                classifierGradient: &classifierGradient)
        }
    }
}

// MARK: - Problems

/// Counts the products that loss and gradients consist of: logits, and their gradient's product
/// with each of both inputs. What is computed twice to save memory counts once.
private func measurement(
    _ shape: CrossEntropy.Shape, gradients: Bool, threads: Int, _ way: String, iterations: Int
) -> Measurement {
    let name =
        "cross-entropy \(gradients ? "loss and gradients" : "forward") "
        + "\(shape.rows)x\(shape.vocabulary)x\(shape.features)"
    return Measurement(
        name: name + ", " + describe(threads: threads) + way, threads: threads,
        operations: (gradients ? 6 : 2) * Double(shape.rows * shape.vocabulary * shape.features),
        iterations: iterations)
}

private struct Inputs: Sendable {
    let hidden: [Float]
    let classifier: [Float]
    let targets: [Int32]

    init(_ shape: CrossEntropy.Shape) {
        hidden = randomFloats(shape.rows * shape.features, seed: 1)
        // Logits have a standard deviation of 1.
        let scale = 3 / Float(shape.features).squareRoot()
        classifier = randomFloats(shape.vocabulary * shape.features, scale: scale, seed: 2)
        targets = (0..<shape.rows).map { Int32($0 * 7919 % shape.vocabulary) }
    }

    /// Zeros in its shape.
    var hiddenGradient: [Float] { [Float](repeating: 0, count: hidden.count) }
    /// Zeros in its shape.
    var classifierGradient: [Float] { [Float](repeating: 0, count: classifier.count) }
}
