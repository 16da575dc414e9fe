import CLMKCore
import Testing

// The C functions by themselves: Swift refuses most of what is wrong before C sees it, but callers
// from C and Python have nothing else.

/// What a C function refuses, in one line; nil when it goes ahead.
func refusal(_ call: (UnsafeMutablePointer<lmk_error>) -> lmk_status) -> String? {
    var error = lmk_error()
    let status = call(&error)
    guard status != .LMK_OK else { return nil }
    #expect(status == error.status)
    func text(_ string: UnsafePointer<CChar>?) -> String {
        string.map { String(cString: $0) } ?? "?"
    }
    let argument = text(error.argument)
    let allowed = text(error.allowed)
    let actual = error.is_real != 0 ? "\(Float(error.real))" : "\(error.actual)"
    return switch status {
    case .LMK_OK: nil
    case .LMK_OUT_OF_RANGE: "\(argument) is \(actual), allowed is \(allowed)"
    case .LMK_TOO_SMALL: "\(argument) is \(actual), at least \(error.expected)"
    case .LMK_OVERFLOW: "\(argument) overflows"
    case .LMK_NULL: "\(argument) is null"
    case .LMK_BAD_ENTRY:
        error.allowed == nil
            ? "\(argument)[\(error.index)] is \(actual), below \(error.expected)"
            : "\(argument)[\(error.index)] is \(actual), allowed is \(allowed)"
    case .LMK_CONFLICT: "\(argument): \(allowed)"
    }
}

/// A value that an enumeration does not have, as C may well pass it.
func outside<Value>(_ value: UInt32) -> Value { unsafeBitCast(value, to: Value.self) }

/// `count` floats, each `sentinel`, for calls that are not to write to them.
final class Floats {
    let pointer: UnsafeMutablePointer<Float>
    let count: Int
    static let sentinel: Float = -80

    init(_ count: Int) {
        self.count = count
        pointer = .allocate(capacity: count)
        pointer.initialize(repeating: Self.sentinel, count: count)
    }

    deinit { pointer.deallocate() }

    var areUntouched: Bool {
        (0..<count).allSatisfy { pointer[$0] == Self.sentinel }
    }
}

/// Scratch memory of `size` bytes that begins anywhere, with bytes after it that no call is to
/// touch.
final class Scratch {
    let pointer: UnsafeMutableRawPointer
    private let memory: UnsafeMutableRawPointer
    private let size: Int
    private static let guardCount = 128

    /// `offset` bytes past a multiple of 64.
    init(_ size: Int, offset: Int = 0) {
        // Calls that are refused ask for any amount.
        self.size = min(size, 1 << 24)
        memory = .allocate(byteCount: offset + self.size + Self.guardCount, alignment: 64)
        pointer = memory + offset
        (pointer + self.size).initializeMemory(
            as: UInt8.self, repeating: 0xa5, count: Self.guardCount)
    }

    deinit { memory.deallocate() }

    var isWithinBounds: Bool {
        (0..<Self.guardCount).allSatisfy {
            (pointer + size).load(fromByteOffset: $0, as: UInt8.self) == 0xa5
        }
    }
}
