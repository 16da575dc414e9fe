/// How an operator reads its case: each tensor and attribute by name, with the shape it has to have.
///
/// Shapes are written in letters. A letter stands for one length throughout the case; the first
/// tensor that has it decides. What nobody has read when `finish` is called does not belong there.
struct CaseReader {
    private let source: ConformanceCase
    private var unreadTensors: Set<String>
    private var unreadAttributes: Set<String>
    /// Lengths, and the tensor that set each.
    private var lengths: [String: (length: Int, tensor: String)] = [:]

    init(_ source: ConformanceCase) {
        self.source = source
        unreadTensors = Set(source.tensors.keys)
        unreadAttributes = Set(source.attributes.keys)
    }

    /// Name of the operator.
    var operation: String { source.operation }

    /// The length that a letter has come to stand for.
    func length(_ letter: String) -> Int { lengths[letter]!.length }

    func finish() throws(ConformanceError) {
        if let name = unreadTensors.min() {
            throw .inconsistent("\(source.operation) has no tensor \(quoted(name))")
        }
        if let name = unreadAttributes.min() {
            throw .inconsistent("\(source.operation) has no attribute \(quoted(name))")
        }
    }
}

// MARK: - Tensors

extension CaseReader {
    typealias DType = SafetensorsFile.DType

    /// The types that kernels run at.
    static let storageTypes: [DType] = [.float32, .bfloat16, .float16]

    /// A tensor that may be absent.
    mutating func tensorIfPresent(
        _ name: String, _ shape: [String], _ dtypes: [DType]
    ) throws(ConformanceError) -> SafetensorsFile.Tensor? {
        guard let tensor = source.tensors[name] else { return nil }
        unreadTensors.remove(name)
        guard dtypes.contains(tensor.dtype) else {
            let allowed = dtypes.map(\.rawValue).joined(separator: ", ")
            throw .inconsistent("\(name) is \(tensor.dtype.rawValue), allowed is \(allowed)")
        }
        guard tensor.shape.count == shape.count else {
            let letters = shape.joined(separator: ", ")
            throw .inconsistent("\(name) has shape \(tensor.shape), not [\(letters)]")
        }
        for (letter, length) in zip(shape, tensor.shape) {
            let known = lengths[letter, default: (length, name)]
            lengths[letter] = known
            guard known.length == length else {
                throw .inconsistent(
                    "\(name) has shape \(tensor.shape), but \(letter) is \(known.length) "
                        + "in \(known.tensor)")
            }
        }
        return tensor
    }

    mutating func tensor(
        _ name: String, _ shape: [String], _ dtypes: [DType]
    ) throws(ConformanceError) -> SafetensorsFile.Tensor {
        guard let tensor = try tensorIfPresent(name, shape, dtypes) else {
            throw .inconsistent("\(name) is missing")
        }
        return tensor
    }

    /// Numbers that are float32 whatever type the kernel runs at.
    mutating func floatsIfPresent(
        _ name: String, _ shape: [String]
    ) throws(ConformanceError) -> [Float]? {
        guard let tensor = try tensorIfPresent(name, shape, [.float32]) else { return nil }
        return try read(tensor.floats)
    }

    /// Numbers that are integers.
    mutating func integers(_ name: String, _ shape: [String]) throws(ConformanceError) -> [Int] {
        try read(try tensor(name, shape, [.int64]).integers)
    }

    mutating func integersIfPresent(
        _ name: String, _ shape: [String]
    ) throws(ConformanceError) -> [Int]? {
        guard let tensor = try tensorIfPresent(name, shape, [.int64]) else { return nil }
        return try read(tensor.integers)
    }

    /// Notes that values are expected, in this shape; required ones have to be.
    @discardableResult
    mutating func expect(
        _ name: String, _ shape: [String], isRequired: Bool = true
    ) throws(ConformanceError) -> Bool {
        guard try tensorIfPresent(name, shape, [.float64]) == nil else { return true }
        if isRequired { throw .inconsistent("\(name) is missing") }
        return false
    }

    /// Whether gradients are asked for: some cotangent is given.
    var wantsGradients: Bool { source.tensors.keys.contains { $0.hasPrefix("cotangent.") } }

    /// Takes note of the gradient of an input, if it is expected.
    mutating func expectGradient(of name: String) throws(ConformanceError) {
        // Its shape is that of the input: the case has seen to that.
        unreadTensors.remove("grad." + name)
    }
}

// MARK: - Attributes

extension CaseReader {
    private mutating func attribute(_ name: String) throws(ConformanceError) -> JSON {
        guard let value = source.attributes[name] else {
            throw .inconsistent("attribute \(name) is missing")
        }
        unreadAttributes.remove(name)
        return value
    }

    mutating func integer(_ name: String) throws(ConformanceError) -> Int {
        guard let value = try attribute(name).integerValue else {
            throw .inconsistent("attribute \(name) is not an integer")
        }
        return value
    }

    mutating func bool(_ name: String) throws(ConformanceError) -> Bool {
        guard let value = try attribute(name).boolValue else {
            throw .inconsistent("attribute \(name) is neither true nor false")
        }
        return value
    }

    mutating func string(_ name: String) throws(ConformanceError) -> String {
        guard let value = try attribute(name).stringValue else {
            throw .inconsistent("attribute \(name) is not a string")
        }
        return value
    }

    mutating func number(_ name: String) throws(ConformanceError) -> Float {
        try number(name, try attribute(name), "a number")
    }

    mutating func numberOrNull(_ name: String) throws(ConformanceError) -> Float? {
        let value = try attribute(name)
        return value.isNull ? nil : try number(name, value, "a number or null")
    }

    private func number(
        _ name: String, _ value: JSON, _ expected: String
    ) throws(ConformanceError) -> Float {
        guard let value = value.doubleValue else {
            throw .inconsistent("attribute \(name) is not \(expected)")
        }
        let rounded = Float(value)
        guard rounded.isFinite, (rounded == 0) == (value == 0) else {
            throw .inconsistent("attribute \(name) is \(value), beyond the range of float32")
        }
        return rounded
    }
}
