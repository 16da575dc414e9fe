import Foundation

// What one writes without thinking of caches and registers, compiled as any release build is. Inner
// loops run over neighbouring elements where they can, and the compiler makes vectors of those that
// are not sums.

/// c = a b, with a [rows, depth], b [depth, columns], c [rows, columns].
func multiplyPlainly(
    _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, into c: UnsafeMutablePointer<Float>,
    rows: Int, columns: Int, depth: Int
) {
    for i in 0..<rows {
        let sums = c + i * columns
        sums.update(repeating: 0, count: columns)
        for k in 0..<depth {
            add(a[i * depth + k], b + k * columns, to: sums, count: columns)
        }
    }
}

/// y += factor x
@inline(__always)
func add(
    _ factor: Float, _ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>, count: Int
) {
    for i in 0..<count { y[i] += factor * x[i] }
}

/// The logits of a row become their gradient, (softmax - [j = target]) scale, or are left as they
/// are without a scale.
///
/// - Returns: The row's loss.
@discardableResult
func softmaxLoss(
    _ logits: UnsafeMutablePointer<Float>, count: Int, target: Int, gradientScale scale: Float?
) -> Float {
    var largest = -Float.infinity
    for j in 0..<count { largest = max(largest, logits[j]) }
    let targetLogit = logits[target] - largest
    var sum: Float = 0
    guard let scale else {
        for j in 0..<count { sum += exp(logits[j] - largest) }
        return log(sum) - targetLogit
    }
    for j in 0..<count {
        logits[j] = exp(logits[j] - largest)
        sum += logits[j]
    }
    for j in 0..<count { logits[j] *= scale / sum }
    logits[target] -= scale
    return log(sum) - targetLogit
}

/// Losses and both gradients of cross-entropy, a row at a time.
///
/// - Parameters:
///   - hidden: [rows, features]
///   - classifier: [vocabulary, features]
///   - targets: [rows]
///   - logits: Memory of [vocabulary].
/// - Returns: The mean loss.
@discardableResult
func crossEntropyPlainly(
    hidden: UnsafePointer<Float>, classifier: UnsafePointer<Float>, targets: UnsafePointer<Int32>,
    rows: Int, features: Int, vocabulary: Int, logits: UnsafeMutablePointer<Float>,
    hiddenGradient: UnsafeMutablePointer<Float>, classifierGradient: UnsafeMutablePointer<Float>
) -> Float {
    hiddenGradient.update(repeating: 0, count: rows * features)
    classifierGradient.update(repeating: 0, count: vocabulary * features)
    var loss: Float = 0
    for i in 0..<rows {
        let row = hidden + i * features
        for j in 0..<vocabulary {
            let weights = classifier + j * features
            var sum: Float = 0
            for k in 0..<features { sum += row[k] * weights[k] }
            logits[j] = sum
        }
        loss += softmaxLoss(
            logits, count: vocabulary, target: Int(targets[i]), gradientScale: 1 / Float(rows))
        for j in 0..<vocabulary {
            add(
                logits[j], classifier + j * features, to: hiddenGradient + i * features,
                count: features)
            add(logits[j], row, to: classifierGradient + j * features, count: features)
        }
    }
    return loss / Float(rows)
}

/// y = softmax of the row x.
func softmaxPlainly(
    _ x: UnsafePointer<Float>, _ y: UnsafeMutablePointer<Float>, count: Int
) {
    var largest = -Float.infinity
    for j in 0..<count { largest = max(largest, x[j]) }
    var sum: Float = 0
    for j in 0..<count {
        y[j] = exp(x[j] - largest)
        sum += y[j]
    }
    for j in 0..<count { y[j] /= sum }
}

/// One head of linear attention with decays of tokens, token by token.
///
/// - Parameters:
///   - query: [tokens, heads, width], as are `key`, `value` and `output`.
///   - logDecay: [tokens, heads]
///   - state: Memory of [width, width].
func linearAttentionPlainly(
    query: UnsafePointer<Float>, key: UnsafePointer<Float>, value: UnsafePointer<Float>,
    logDecay: UnsafePointer<Float>, tokens: Int, heads: Int, head: Int, width: Int,
    state: UnsafeMutablePointer<Float>, output: UnsafeMutablePointer<Float>
) {
    state.update(repeating: 0, count: width * width)
    let scale = 1 / Float(width).squareRoot()
    for t in 0..<tokens {
        let row = (t * heads + head) * width
        let decay = exp(logDecay[t * heads + head])
        let (v, o) = (value + row, output + row)
        o.update(repeating: 0, count: width)
        for d in 0..<width {
            let s = state + d * width
            let k = key[row + d]
            for e in 0..<width { s[e] = decay * s[e] + k * v[e] }
            add(scale * query[row + d], s, to: o, count: width)
        }
    }
}

/// One head of the delta rule with decays of tokens, token by token.
///
/// - Parameters:
///   - query: [tokens, heads, width], as are `key`, `value` and `output`.
///   - beta: [tokens, heads], as is `logDecay`.
///   - state: Memory of [width, width].
///   - correction: Memory of [width].
func deltaRulePlainly(
    query: UnsafePointer<Float>, key: UnsafePointer<Float>, value: UnsafePointer<Float>,
    beta: UnsafePointer<Float>, logDecay: UnsafePointer<Float>, tokens: Int, heads: Int, head: Int,
    width: Int, state: UnsafeMutablePointer<Float>, correction u: UnsafeMutablePointer<Float>,
    output: UnsafeMutablePointer<Float>
) {
    state.update(repeating: 0, count: width * width)
    let scale = 1 / Float(width).squareRoot()
    for t in 0..<tokens {
        let row = (t * heads + head) * width
        let (rate, decay) = (beta[t * heads + head], exp(logDecay[t * heads + head]))
        let (v, o) = (value + row, output + row)
        u.update(repeating: 0, count: width)
        for d in 0..<width { add(key[row + d], state + d * width, to: u, count: width) }
        for e in 0..<width { u[e] = rate * (v[e] - decay * u[e]) }
        o.update(repeating: 0, count: width)
        for d in 0..<width {
            let s = state + d * width
            let k = key[row + d]
            for e in 0..<width { s[e] = decay * s[e] + k * u[e] }
            add(scale * query[row + d], s, to: o, count: width)
        }
    }
}
