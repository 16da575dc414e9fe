/// Why a file is not checked.
enum ConformanceError: Error, Equatable {
    /// It cannot be read, or what it says does not fit together.
    case inconsistent(String)
    /// It asks for an operator, an attribute's value or a storage type that the library lacks.
    case unsupported(String)
}

/// One conformance vector. Holds whatever the operator: every tensor is of a known role, every
/// expected value has a tolerance, gradients and upstream gradients belong to something.
struct ConformanceCase {
    /// An array to compare with.
    struct Expected {
        /// With its role: `out.loss`, `grad.e`.
        var name: String
        var tolerance: Double
        var values: [Double]
    }

    /// Name of the operator.
    let operation: String
    let attributes: [String: JSON]
    /// By full name, such as `in.e`.
    let tensors: [String: SafetensorsFile.Tensor]
    /// `out.*` and `grad.*`, sorted by name.
    let expected: [Expected]

    init(_ file: SafetensorsFile) throws(ConformanceError) {
        func text(_ key: String) throws(ConformanceError) -> String {
            guard let text = file.metadata[key] else {
                throw .inconsistent("the metadata have no \(key)")
            }
            return text
        }
        operation = try text("op")
        attributes = try Self.object(text("attributes"), "attributes")
        tensors = file.tensors

        let tolerances = try Self.object(text("tolerance"), "tolerance")
        var expected: [Expected] = []
        for (name, tensor) in file.tensors.sorted(by: { $0.key < $1.key }) {
            guard let role = Role(of: name) else {
                throw .inconsistent("tensor \(quoted(name)) is neither in, cotangent, out nor grad")
            }
            if let (partner, relation) = role.partner(of: name) {
                try Self.checkPair(tensor, relation, tensors[partner], partner)
            }
            guard role == .output || role == .gradient else { continue }
            guard let tolerance = tolerances[name] else {
                throw .inconsistent("\(name) has no tolerance")
            }
            guard let tolerance = tolerance.doubleValue, tolerance >= 0 else {
                throw .inconsistent("the tolerance of \(name) is not a number of at least 0")
            }
            guard tensor.dtype == .float64 else {
                throw .inconsistent("\(name) is \(tensor.dtype.rawValue); expected values are F64")
            }
            expected.append(
                Expected(name: name, tolerance: tolerance, values: try read(tensor.doubles)))
        }
        self.expected = expected
        try checkCompleteness(tolerances: tolerances.keys.sorted())
    }

    private func checkCompleteness(tolerances: [String]) throws(ConformanceError) {
        guard !expected.isEmpty else { throw .inconsistent("no expected values") }
        for name in tolerances where !expected.contains(where: { $0.name == name }) {
            throw .inconsistent("a tolerance for \(quoted(name)), of which no values are expected")
        }
        let roles = Set(tensors.keys.compactMap(Role.init(of:)))
        if roles.contains(.gradient), !roles.contains(.upstream) {
            throw .inconsistent("gradients are expected, but no cotangent is given")
        }
        if roles.contains(.upstream), !roles.contains(.gradient) {
            throw .inconsistent("a cotangent is given, but no gradients are expected")
        }
    }

    private static func object(
        _ text: String, _ key: String
    ) throws(ConformanceError) -> [String: JSON] {
        let value: JSON
        do throws(JSONError) {
            value = try JSON(parsing: text)
        } catch {
            throw .inconsistent("the metadata's \(key) are not valid JSON: \(error)")
        }
        guard let object = value.objectValue else {
            throw .inconsistent("the metadata's \(key) are not an object")
        }
        return object
    }

    private static func checkPair(
        _ tensor: SafetensorsFile.Tensor, _ relation: String, _ partner: SafetensorsFile.Tensor?,
        _ partnerName: String
    ) throws(ConformanceError) {
        guard let partner else {
            throw .inconsistent(
                "\(quoted(tensor.name)) \(relation) \(quoted(partnerName)), which is missing")
        }
        guard tensor.shape == partner.shape else {
            throw .inconsistent(
                "\(tensor.name) has shape \(tensor.shape), but \(partnerName) \(partner.shape)")
        }
    }
}

/// What a tensor is in a vector, from the beginning of its name.
private enum Role: String, CaseIterable {
    case input = "in."
    case upstream = "cotangent."
    case output = "out."
    case gradient = "grad."

    init?(of name: String) {
        guard let role = Self.allCases.first(where: { name.hasPrefix($0.rawValue) }) else {
            return nil
        }
        self = role
    }

    /// The tensor of the same shape that one of this role belongs to.
    func partner(of name: String) -> (name: String, relation: String)? {
        let suffix = name.dropFirst(rawValue.count)
        switch self {
        case .input, .output: return nil
        case .upstream: return (Role.output.rawValue + suffix, "belongs to")
        case .gradient: return (Role.input.rawValue + suffix, "belongs to")
        }
    }
}

/// A tensor's elements, with the reader's complaint as ours.
func read<Elements>(
    _ elements: () throws(SafetensorsError) -> Elements
) throws(ConformanceError) -> Elements {
    do throws(SafetensorsError) {
        return try elements()
    } catch {
        throw .inconsistent("\(error)")
    }
}
