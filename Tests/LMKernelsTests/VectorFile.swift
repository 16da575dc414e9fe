import LMKernelsReference

@testable import lmk

/// A small conformance vector of cross-entropy, right unless it is changed: the parts that go into
/// a file, to be spoilt one at a time.
struct VectorFile {
    struct Tensor {
        var dtype: String
        var shape: [Int]
        var bytes: [UInt8]
    }

    var metadata: [String: String] = [:]
    var attributes: [String: String] = [
        "ignore_index": "-100", "softcap": "null", "label_smoothing": "0.125", "z_loss": "0.25",
        "logit_scale": "0.5",
    ]
    var tolerances: [String: String] = [:]
    var tensors: [String: Tensor] = [:]

    private let rows: Int
    private let features = 2
    private let vocabulary = 5
    private var bias: [Float]?
    private var logSumExpGradients: [Float]?
    private var entropyGradients: [Float]?

    init(rows: Int = 3) {
        self.rows = rows
        metadata["op"] = "cross_entropy"
        tensors["in.e"] = .init([1, -0.5, 0.25, 2, -1, 0.75].prefix(rows * features), [rows, 2])
        tensors["in.c"] = .init([1, 2, -1, 0.5, 0.25, -2, 1.5, 0, -0.5, -0.75], [vocabulary, 2])
        tensors["in.targets"] = .init(integers: Array([4, -100, 1].prefix(rows)), [rows])
        tensors["cotangent.loss"] = .init([1, 2, -0.5].prefix(rows), [rows])
        fillIn()
    }

    /// Computes what is expected.
    private mutating func fillIn() {
        let problem = ReferenceCrossEntropy.Problem(
            rows: rows, features: features, vocabulary: vocabulary,
            hidden: tensors["in.e"]!.float32.map { Double($0) },
            classifier: tensors["in.c"]!.float32.map { Double($0) },
            bias: bias?.map { Double($0) }, targets: tensors["in.targets"]!.integers,
            labelSmoothing: 0.125, zLoss: 0.25, logitScale: 0.5)
        let output = ReferenceCrossEntropy.forward(problem)
        let gradients = ReferenceCrossEntropy.backward(
            problem, lossGradient: tensors["cotangent.loss"]!.float32.map { Double($0) },
            logSumExpGradient: logSumExpGradients?.map { Double($0) },
            entropyGradient: entropyGradients?.map { Double($0) })
        tensors["out.loss"] = .init(float64: output.loss, [rows])
        tensors["out.lse"] = .init(float64: output.logSumExp, [rows])
        tensors["grad.e"] = .init(float64: gradients.hidden, [rows, features])
        tensors["grad.c"] = .init(float64: gradients.classifier, [vocabulary, features])
        if bias != nil { tensors["grad.bias"] = .init(float64: gradients.bias, [vocabulary]) }
        if entropyGradients != nil {
            tensors["out.entropy"] = .init(float64: output.entropy, [rows])
        }
        for name in tensors.keys where name.hasPrefix("out.") || name.hasPrefix("grad.") {
            tolerances[name] = "1e-6"
        }
    }

    mutating func addBias() {
        bias = [0.5, -1, 0, 0.25, 2]
        tensors["in.bias"] = .init(bias![...], [vocabulary])
        fillIn()
    }

    /// Upstream gradients of lse and entropy.
    mutating func addUpstream() {
        logSumExpGradients = [0.5, 1, -1]
        entropyGradients = [-1, 0.25, 2]
        tensors["cotangent.lse"] = .init(logSumExpGradients![...], [rows])
        tensors["cotangent.entropy"] = .init(entropyGradients![...], [rows])
        fillIn()
    }

    mutating func makeForwardOnly() {
        for name in tensors.keys where name.hasPrefix("cotangent.") || name.hasPrefix("grad.") {
            remove(name)
        }
    }

    /// e and c as numbers of another type, all 0.
    mutating func storeInputs(as dtype: String, zeros byteCount: Int) {
        for name in ["in.e", "in.c"] {
            tensors[name]!.dtype = dtype
            tensors[name]!.bytes = Array(
                repeating: 0, count: tensors[name]!.bytes.count / 4 * byteCount)
        }
    }

    mutating func remove(_ name: String) {
        tensors[name] = nil
        tolerances[name] = nil
    }

    var bytes: [UInt8] {
        func object(_ members: [String: String]) -> String {
            let members = members.sorted { $0.key < $1.key }.map { "\"\($0.key)\": \($0.value)" }
            return "{" + members.joined(separator: ", ") + "}"
        }
        func quoted(_ text: String) -> String {
            "\"" + text.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"") + "\""
        }
        var texts = metadata
        texts["attributes"] = texts["attributes"] ?? object(attributes)
        texts["tolerance"] = texts["tolerance"] ?? object(tolerances)
        // A text that is taken away stays away.
        texts = texts.filter { $0.value != "ABSENT" }
        var header = ["__metadata__": object(texts.mapValues(quoted))]
        var data: [UInt8] = []
        for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) {
            let offsets = [data.count, data.count + tensor.bytes.count]
            header[name] =
                "{\"dtype\": \"\(tensor.dtype)\", \"shape\": \(tensor.shape), "
                + "\"data_offsets\": \(offsets)}"
            data += tensor.bytes
        }
        let text = Array(object(header).utf8)
        return littleEndianBytes([UInt64(text.count)]) + text + data
    }
}

private func littleEndianBytes<Word: FixedWidthInteger>(_ words: [Word]) -> [UInt8] {
    words.flatMap { word in
        (0..<Word.bitWidth / 8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) }
    }
}

extension VectorFile.Tensor {
    init(_ values: ArraySlice<Float>, _ shape: [Int]) {
        self.init(
            dtype: "F32", shape: shape, bytes: littleEndianBytes(values.map(\.bitPattern)))
    }

    init(float64 values: [Double], _ shape: [Int]) {
        self.init(
            dtype: "F64", shape: shape, bytes: littleEndianBytes(values.map(\.bitPattern)))
    }

    init(integers values: [Int], _ shape: [Int]) {
        self.init(dtype: "I64", shape: shape, bytes: littleEndianBytes(values))
    }

    private func words<Word: FixedWidthInteger>(of type: Word.Type) -> [Word] {
        let width = Word.bitWidth / 8
        return (0..<bytes.count / width).map { i in
            (0..<width).reduce(0) {
                $0 | Word(truncatingIfNeeded: bytes[i * width + $1]) << (8 * $1)
            }
        }
    }

    var float32: [Float] {
        get { words(of: UInt32.self).map(Float.init(bitPattern:)) }
        set { bytes = littleEndianBytes(newValue.map(\.bitPattern)) }
    }

    var float64: [Double] {
        get { words(of: UInt64.self).map(Double.init(bitPattern:)) }
        set { bytes = littleEndianBytes(newValue.map(\.bitPattern)) }
    }

    var integers: [Int] {
        get { words(of: Int.self) }
        set { bytes = littleEndianBytes(newValue) }
    }
}
