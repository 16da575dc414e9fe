internal import CLMKCore

/// Why a call was refused. Nothing was written then.
///
/// Arguments carry the names they have in Swift; a field of a shape or of options goes by its own
/// name, such as `hiddenStride`.
public enum KernelError: Error, Equatable, Sendable {
    /// A value outside its range. `allowed` says in words what may come.
    case outOfRange(argument: String, allowed: String, actual: String)
    /// A stride, or a span's number of elements, that is smaller than the sizes need.
    case tooSmall(argument: String, minimum: Int, actual: Int)
    /// A span whose number of elements is not the one needed: arrays with an entry per row or per
    /// class.
    case countMismatch(argument: String, expected: Int, actual: Int)
    /// Sizes whose bytes 64 bits cannot count.
    case overflow(argument: String)
    /// Entry `index` of an array has a value outside 0 ..< `limit`.
    case badEntry(argument: String, index: Int, value: Int, limit: Int)
    /// Two arguments exclude each other, or one needs another that is missing.
    case conflict(argument: String, reason: String)
}

extension KernelError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .outOfRange(let argument, let allowed, let actual):
            "\(argument) is \(actual), allowed is \(allowed)"
        case .tooSmall(let argument, let minimum, let actual):
            "\(argument) is \(actual), at least \(minimum) is needed"
        case .countMismatch(let argument, let expected, let actual):
            "\(argument) has \(actual) elements, \(expected) are needed"
        case .overflow(let argument):
            "\(argument) has more bytes than 64 bits can count"
        case .badEntry(let argument, let index, let value, let limit):
            "\(argument)[\(index)] is \(value), allowed is 0 ..< \(limit)"
        case .conflict(let argument, let reason):
            "\(argument): \(reason)"
        }
    }
}

// MARK: - From C

/// Runs a C function that reports through a status and an error, and throws what it reports.
func check(_ call: (UnsafeMutablePointer<lmk_error>) -> lmk_status) throws(KernelError) {
    var error = unsafe lmk_error()
    let status = unsafe call(&error)
    if status != .LMK_OK { throw unsafe KernelError(error) }
}

/// The same for families over tokens, whose arguments have longer names in Swift.
func checkTokenCall(
    _ call: (UnsafeMutablePointer<lmk_error>) -> lmk_status
) throws(KernelError) {
    do throws(KernelError) {
        try unsafe check(call)
    } catch {
        throw error.ofTokens
    }
}

extension KernelError {
    init(_ error: lmk_error) {
        let argument =
            unsafe error.argument.map { swiftNames(in: unsafe String(cString: $0)) } ?? ""
        let allowed = unsafe error.allowed.map { swiftNames(in: unsafe String(cString: $0)) }
        let expected = Int(unsafe error.expected)
        let actual = Int(unsafe error.actual)
        // Reals are float32 in every descriptor; printed as such they look as they were written.
        let value = unsafe error.is_real != 0 ? "\(Float(error.real))" : "\(actual)"
        switch unsafe error.status {
        case .LMK_OUT_OF_RANGE:
            self = .outOfRange(argument: argument, allowed: allowed ?? "", actual: value)
        case .LMK_TOO_SMALL:
            self = .tooSmall(argument: argument, minimum: expected, actual: actual)
        case .LMK_OVERFLOW:
            self = .overflow(argument: argument)
        case .LMK_BAD_ENTRY:
            let index = Int(unsafe error.index)
            if let allowed {
                self = .outOfRange(
                    argument: "\(argument)[\(index)]", allowed: allowed, actual: value)
            } else {
                self = .badEntry(argument: argument, index: index, value: actual, limit: expected)
            }
        case .LMK_CONFLICT:
            self = .conflict(argument: argument, reason: allowed ?? "")
        // A span without the elements it needs was refused before C saw it.
        case .LMK_NULL, .LMK_OK:
            self = .tooSmall(argument: argument, minimum: 1, actual: 0)
        }
    }
}

/// Names in C become those in Swift: hidden_stride is hiddenStride.
private func swiftNames(in text: String) -> String {
    text.split(separator: " ", omittingEmptySubsequences: false).map { word in
        let parts = word.split(separator: "_")
        return parts.dropFirst().reduce(String(parts.first ?? "")) { joined, part in
            joined + part.prefix(1).uppercased() + part.dropFirst()
        }
    }.joined(separator: " ")
}

extension KernelError {
    /// With the names that Swift has for arguments of families over tokens.
    fileprivate var ofTokens: KernelError {
        func name(_ argument: String) -> String {
            Self.names[argument] ?? argument
        }
        func words(_ text: String) -> String {
            text.split(separator: " ", omittingEmptySubsequences: false)
                .map { name(String($0)) }.joined(separator: " ")
        }
        return switch self {
        case .outOfRange(let argument, let allowed, let actual):
            .outOfRange(argument: name(argument), allowed: words(allowed), actual: actual)
        case .tooSmall(let argument, let minimum, let actual):
            .tooSmall(argument: name(argument), minimum: minimum, actual: actual)
        case .countMismatch(let argument, let expected, let actual):
            .countMismatch(argument: name(argument), expected: expected, actual: actual)
        case .overflow(let argument):
            .overflow(argument: name(argument))
        case .badEntry(let argument, let index, let value, let limit):
            .badEntry(argument: name(argument), index: index, value: value, limit: limit)
        case .conflict(let argument, let reason):
            .conflict(argument: name(argument), reason: words(reason))
        }
    }

    private static let names = [
        "q": "query", "k": "key", "v": "value", "o": "output", "keyDim": "keyWidth",
        "valueDim": "valueWidth", "epsilon": "unitLengthEpsilon",
    ]
}
