/// A JSON value (RFC 8259), for the header of a safetensors file and for the JSON in its metadata.
///
/// The reader is strict: no comments, trailing commas, NaN or lone surrogates, and a key may occur
/// once in an object. Keys are compared as Swift strings, so two that differ only in Unicode
/// normalisation count as the same key.
enum JSON: Sendable, Equatable {
    case null
    case bool(Bool)
    /// A number written without fraction or exponent that fits an Int, kept exactly.
    case integer(Int)
    /// Any other number, finite, rounded to nearest.
    case number(Double)
    case string(String)
    case array([JSON])
    case object([String: JSON])

    /// Arrays and objects may be this deep in each other. A header needs 3; the parser calls itself
    /// for every level, so a limit keeps hostile input off the end of the stack.
    static let maximumDepth = 64
}

extension JSON {
    init(parsing text: String) throws(JSONError) {
        try self.init(parsing: Array(text.utf8))
    }

    /// One value, with white space before and after it and nothing else.
    init(parsing bytes: [UInt8]) throws(JSONError) {
        var parser = JSONParser(bytes: bytes)
        // Decoding repairs what is not UTF-8, and so changes it.
        guard String(decoding: bytes, as: UTF8.self).utf8.elementsEqual(bytes) else {
            throw JSONError(reason: .notUTF8, offset: 0)
        }
        self = try parser.document()
    }
}

extension JSON {
    var isNull: Bool { self == .null }

    var boolValue: Bool? {
        if case .bool(let value) = self { value } else { nil }
    }

    /// The number if it is a whole one, however it was written: 2, 2.0 and 2e0.
    var integerValue: Int? {
        switch self {
        case .integer(let value): value
        case .number(let value): Int(exactly: value)
        default: nil
        }
    }

    var doubleValue: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }

    var stringValue: String? {
        if case .string(let value) = self { value } else { nil }
    }

    var arrayValue: [JSON]? {
        if case .array(let value) = self { value } else { nil }
    }

    var objectValue: [String: JSON]? {
        if case .object(let value) = self { value } else { nil }
    }

    /// The member of an object; nil where there is none, and for anything but an object.
    subscript(key: String) -> JSON? { objectValue?[key] }
}

/// Why a text is not JSON, and where.
struct JSONError: Error, Equatable, CustomStringConvertible {
    enum Reason: Equatable {
        case notUTF8
        case unexpectedEnd
        case unexpectedByte(UInt8, expected: String)
        case numberOutOfRange
        case controlCharacter
        case invalidEscape
        case loneSurrogate
        case duplicateKey(String)
        case tooDeep(limit: Int)
    }

    var reason: Reason
    /// Bytes before the place in question; 0 for `notUTF8`.
    var offset: Int

    var description: String {
        switch reason {
        case .notUTF8: "the text is not UTF-8"
        case .unexpectedEnd: "the text ends too early, after \(offset) bytes"
        case .unexpectedByte(let byte, let expected):
            "expected \(expected) at byte \(offset), found \(quoted(byte))"
        case .numberOutOfRange: "the number at byte \(offset) is too large"
        case .controlCharacter: "unescaped control character in a string at byte \(offset)"
        case .invalidEscape: "invalid escape in a string at byte \(offset)"
        case .loneSurrogate: "half of a surrogate pair in a string at byte \(offset)"
        case .duplicateKey(let key): "key \(quoted(key)) at byte \(offset) occurs twice"
        case .tooDeep(let limit): "more than \(limit) arrays and objects nested at byte \(offset)"
        }
    }
}

/// Text of unknown origin for a message on one line: quotes, escapes, and an end to it.
func quoted(_ text: String) -> String {
    let limit = 80
    let scalars = text.unicodeScalars
    guard let end = scalars.index(scalars.startIndex, offsetBy: limit, limitedBy: scalars.endIndex),
        end != scalars.endIndex
    else { return text.debugDescription }
    return String(scalars[..<end]).debugDescription + "..."
}

private func quoted(_ byte: UInt8) -> String {
    let isPrintable = (0x21...0x7e).contains(byte)
    return isPrintable ? "'\(Unicode.Scalar(byte))'" : "byte 0x" + String(byte, radix: 16)
}

/// Recursive descent over UTF-8 that has been checked.
private struct JSONParser {
    let bytes: [UInt8]
    var position = 0

    init(bytes: [UInt8]) {
        self.bytes = bytes
    }

    mutating func document() throws(JSONError) -> JSON {
        let value = try value(depth: 0)
        skipSpace()
        guard position == bytes.count else { throw unexpected("the end of the text") }
        return value
    }

    private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    private var isDigit: Bool {
        guard let next else { return false }
        return (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(next)
    }

    /// The error for whatever is at the current position.
    private func unexpected(_ expected: String) -> JSONError {
        guard let next else { return failure(.unexpectedEnd) }
        return failure(.unexpectedByte(next, expected: expected))
    }

    private func failure(_ reason: JSONError.Reason, at offset: Int? = nil) -> JSONError {
        JSONError(reason: reason, offset: offset ?? position)
    }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0a || byte == 0x0d || byte == 0x09 {
            position += 1
        }
    }

    private mutating func skip(_ character: Unicode.Scalar) -> Bool {
        guard next == UInt8(ascii: character) else { return false }
        position += 1
        return true
    }

    private mutating func value(depth: Int) throws(JSONError) -> JSON {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return .object(try object(depth: depth + 1))
        case UInt8(ascii: "["): return .array(try array(depth: depth + 1))
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func word(_ word: String, _ value: JSON) throws(JSONError) -> JSON {
        for byte in word.utf8 {
            guard next == byte else { throw unexpected(word) }
            position += 1
        }
        return value
    }

    private mutating func object(depth: Int) throws(JSONError) -> [String: JSON] {
        guard depth <= JSON.maximumDepth else { throw failure(.tooDeep(limit: JSON.maximumDepth)) }
        var members: [String: JSON] = [:]
        position += 1
        skipSpace()
        if skip("}") { return members }
        while true {
            skipSpace()
            let start = position
            guard next == UInt8(ascii: "\"") else { throw unexpected("a key") }
            let key = try string()
            skipSpace()
            guard skip(":") else { throw unexpected("':'") }
            let value = try value(depth: depth)
            guard members.updateValue(value, forKey: key) == nil else {
                throw failure(.duplicateKey(key), at: start)
            }
            skipSpace()
            if skip("}") { return members }
            guard skip(",") else { throw unexpected("',' or '}'") }
        }
    }

    private mutating func array(depth: Int) throws(JSONError) -> [JSON] {
        guard depth <= JSON.maximumDepth else { throw failure(.tooDeep(limit: JSON.maximumDepth)) }
        var elements: [JSON] = []
        position += 1
        skipSpace()
        if skip("]") { return elements }
        while true {
            elements.append(try value(depth: depth))
            skipSpace()
            if skip("]") { return elements }
            guard skip(",") else { throw unexpected("',' or ']'") }
        }
    }

    private mutating func number() throws(JSONError) -> JSON {
        let start = position
        let isNegative = skip("-")
        if !isNegative && !isDigit { throw unexpected("a value") }
        // A leading zero stands alone: 01 is a zero and something unexpected.
        if !skip("0") { try digits() }
        var isInteger = true
        if skip(".") {
            isInteger = false
            try digits()
        }
        if skip("e") || skip("E") {
            isInteger = false
            _ = skip("+") || skip("-")
            try digits()
        }
        let text = String(decoding: bytes[start..<position], as: UTF8.self)
        // -0 is a Double: an Int has no such value.
        if isInteger, let value = Int(text), !(isNegative && value == 0) { return .integer(value) }
        guard let value = Double(text), value.isFinite else {
            throw failure(.numberOutOfRange, at: start)
        }
        return .number(value)
    }

    private mutating func digits() throws(JSONError) {
        let start = position
        while isDigit { position += 1 }
        guard position > start else { throw unexpected("a digit") }
    }

    private mutating func string() throws(JSONError) -> String {
        position += 1
        var text: [UInt8] = []
        while let byte = next {
            switch byte {
            case UInt8(ascii: "\""):
                position += 1
                return String(decoding: text, as: UTF8.self)
            case UInt8(ascii: "\\"):
                text.append(contentsOf: String(try escape()).utf8)
            case 0..<0x20:
                throw failure(.controlCharacter)
            default:
                text.append(byte)
                position += 1
            }
        }
        throw failure(.unexpectedEnd)
    }

    private mutating func escape() throws(JSONError) -> Character {
        let start = position
        position += 1
        guard let byte = next else { throw failure(.unexpectedEnd) }
        position += 1
        switch byte {
        case UInt8(ascii: "\""): return "\""
        case UInt8(ascii: "\\"): return "\\"
        case UInt8(ascii: "/"): return "/"
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{c}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"): break
        default: throw failure(.invalidEscape, at: start)
        }

        // Characters above U+FFFF are written as two escapes, a high and a low surrogate.
        let first = try hexadecimalQuad(escapeStart: start)
        if let scalar = Unicode.Scalar(first) { return Character(scalar) }
        guard first < 0xdc00, skip("\\"), skip("u") else {
            throw failure(.loneSurrogate, at: start)
        }
        let second = try hexadecimalQuad(escapeStart: start)
        guard (0xdc00...0xdfff).contains(second),
            let scalar = Unicode.Scalar(0x10000 + (first - 0xd800) << 10 + (second - 0xdc00))
        else { throw failure(.loneSurrogate, at: start) }
        return Character(scalar)
    }

    private mutating func hexadecimalQuad(escapeStart: Int) throws(JSONError) -> UInt32 {
        var value: UInt32 = 0
        for _ in 0..<4 {
            guard let byte = next else { throw failure(.unexpectedEnd) }
            guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw failure(.invalidEscape, at: escapeStart)
            }
            value = value << 4 | UInt32(digit)
            position += 1
        }
        return value
    }
}
