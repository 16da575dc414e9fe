#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// A file in the safetensors format: the length of the header in 8 bytes, a JSON header, and the
/// tensors' bytes, all little-endian.
///
/// Whatever the bytes are, reading gives a file in which everything holds that the accessors rely
/// on, or throws. As the format demands, the tensors must cover the data exactly: no gap, no
/// overlap, nothing after the last one.
struct SafetensorsFile: Sendable {
    /// The header's `__metadata__`; empty when it has none.
    let metadata: [String: String]
    let tensors: [String: Tensor]

    /// The limit of the format's reference implementation.
    static let maximumHeaderBytes = 100_000_000

    /// Files are read whole. Conformance cases take a few hundred kilobytes; this is the size at
    /// which a file is a mistake rather than a case.
    static let maximumFileBytes = 4 << 30

    /// Element types that the kernels use. A file with any other is refused.
    enum DType: String, Sendable, CaseIterable {
        case float64 = "F64"
        case float32 = "F32"
        case bfloat16 = "BF16"
        case float16 = "F16"
        case int64 = "I64"
        case int32 = "I32"

        var byteCount: Int {
            switch self {
            case .float64, .int64: 8
            case .float32, .int32: 4
            case .bfloat16, .float16: 2
            }
        }
    }

    /// A dense tensor, last dimension contiguous.
    struct Tensor: Sendable, Equatable {
        let name: String
        let dtype: DType
        /// Lengths of the dimensions, outermost first; empty for a scalar.
        let shape: [Int]
        /// The elements as they lie in the file. A slice of the data of all tensors: its indices do
        /// not start at 0.
        let bytes: ArraySlice<UInt8>

        /// Number of elements.
        var count: Int { bytes.count / dtype.byteCount }
    }
}

/// Why a file cannot be used.
enum SafetensorsError: Error, Equatable, CustomStringConvertible {
    case cannotOpen(path: String, reason: String)
    case cannotRead(path: String, reason: String)
    case notAFile(path: String)
    case fileTooLarge(bytes: Int, limit: Int)
    case tooShort(bytes: Int)
    case headerTooLong(bytes: UInt64, limit: Int)
    case headerBeyondFile(bytes: Int, available: Int)
    case headerNotAnObject
    case headerNotJSON(JSONError)
    case metadataNotAnObject
    case metadataNotAString(key: String)
    case invalidTensor(name: String, TensorProblem)
    case overlap(first: String, second: String)
    case hole(begin: Int, end: Int)
    case trailingBytes(Int)
    case wrongDType(name: String, found: SafetensorsFile.DType, expected: String)

    /// What is wrong with the header's entry of a tensor.
    enum TensorProblem: Error, Equatable {
        case notAnObject
        case missing(field: String)
        case mistyped(field: String, expected: String)
        case unknownDType(String)
        /// A dimension that is negative, fractional, or beyond 64 bits.
        case invalidDimension(index: Int)
        /// Bytes that 63 bits cannot count, zero dimensions left aside.
        case sizeOverflow
        case offsetsReversed(begin: Int, end: Int)
        case offsetsOutOfRange(end: Int, available: Int)
        case sizeMismatch(expected: Int, found: Int)
    }

    var description: String {
        switch self {
        case .cannotOpen(let path, let reason): "cannot open \(quoted(path)): \(reason)"
        case .cannotRead(let path, let reason): "cannot read \(quoted(path)): \(reason)"
        case .notAFile(let path): "\(quoted(path)) is not a regular file"
        case .fileTooLarge(let bytes, let limit):
            "the file has \(bytes) bytes; \(limit) are allowed"
        case .tooShort(let bytes):
            "the file has \(bytes) bytes; a safetensors file has at least 10"
        case .headerTooLong(let bytes, let limit):
            "the header has \(bytes) bytes; \(limit) are allowed"
        case .headerBeyondFile(let bytes, let available):
            "the header has \(bytes) bytes, but \(available) follow in the file"
        case .headerNotAnObject: "the header does not begin with '{'"
        case .headerNotJSON(let error): "the header is not valid JSON: \(error)"
        case .metadataNotAnObject: "__metadata__ is not an object"
        case .metadataNotAString(let key): "__metadata__ \(quoted(key)) is not a string"
        case .invalidTensor(let name, let problem): "tensor \(quoted(name)): \(problem)"
        case .overlap(let first, let second):
            "tensors \(quoted(first)) and \(quoted(second)) overlap"
        case .hole(let begin, let end): "bytes \(begin) ..< \(end) belong to no tensor"
        case .trailingBytes(let count): "\(count) bytes after the last tensor"
        case .wrongDType(let name, let found, let expected):
            "tensor \(quoted(name)) is \(found.rawValue), expected \(expected)"
        }
    }
}

extension SafetensorsError.TensorProblem: CustomStringConvertible {
    var description: String {
        switch self {
        case .notAnObject: "its entry is not an object"
        case .missing(let field): "no \(field)"
        case .mistyped(let field, let expected): "\(field) is not \(expected)"
        case .unknownDType(let name):
            "dtype \(quoted(name)) is not one of "
                + SafetensorsFile.DType.allCases.map(\.rawValue).joined(separator: ", ")
        case .invalidDimension(let index):
            "dimension \(index) of shape is not a count that fits 63 bits"
        case .sizeOverflow: "its size overflows"
        case .offsetsReversed(let begin, let end): "data_offsets \(begin), \(end) are out of order"
        case .offsetsOutOfRange(let end, let available):
            "data_offsets end at \(end), beyond the \(available) bytes of data"
        case .sizeMismatch(let expected, let found):
            "shape and dtype take \(expected) bytes, data_offsets span \(found)"
        }
    }
}

extension SafetensorsFile {
    /// Reads a regular file.
    init(path: String) throws(SafetensorsError) {
        let input = try InputFile(path: path)
        try self.init(size: input.size) { count throws(SafetensorsError) in
            try input.read(count)
        }
    }

    /// Reads a file held in memory.
    init(bytes: [UInt8]) throws(SafetensorsError) {
        var rest = bytes[...]
        try self.init(size: bytes.count) { count throws(SafetensorsError) in
            defer { rest = rest.dropFirst(count) }
            return Array(rest.prefix(count))
        }
    }

    /// Takes `size` bytes in order from `read`. The data is read last, when the header has been
    /// checked against `size`, so that a wrong file costs no memory.
    private init(
        size: Int, read: (Int) throws(SafetensorsError) -> [UInt8]
    ) throws(SafetensorsError) {
        guard size >= 8 else { throw .tooShort(bytes: size) }
        guard size <= Self.maximumFileBytes else {
            throw .fileTooLarge(bytes: size, limit: Self.maximumFileBytes)
        }
        let headerLength = try read(8).reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
        guard headerLength <= UInt64(Self.maximumHeaderBytes) else {
            throw .headerTooLong(bytes: headerLength, limit: Self.maximumHeaderBytes)
        }
        let headerSize = Int(headerLength)
        guard headerSize <= size - 8 else {
            throw .headerBeyondFile(bytes: headerSize, available: size - 8)
        }
        let dataSize = size - 8 - headerSize
        var (metadata, entries) = try Self.parseHeader(try read(headerSize))

        // Sorted by name first, so that of several faults the same one is reported every time.
        entries.sort { $0.name < $1.name }
        var layouts: [Layout] = []
        for (name, entry) in entries {
            do throws(SafetensorsError.TensorProblem) {
                layouts.append(try Layout(name: name, entry: entry, dataSize: dataSize))
            } catch {
                throw .invalidTensor(name: name, error)
            }
        }
        try Self.checkCover(&layouts, of: dataSize)

        let data = try read(dataSize)
        var tensors: [String: Tensor] = [:]
        for layout in layouts {
            tensors[layout.name] = Tensor(
                name: layout.name, dtype: layout.dtype, shape: layout.shape,
                bytes: data[layout.range])
        }
        self.init(metadata: metadata, tensors: tensors)
    }

    private static func parseHeader(
        _ bytes: [UInt8]
    ) throws(SafetensorsError) -> (metadata: [String: String], entries: [(name: String, JSON)]) {
        guard bytes.first == UInt8(ascii: "{") else { throw .headerNotAnObject }
        let header: JSON
        do throws(JSONError) {
            header = try JSON(parsing: bytes)
        } catch {
            throw .headerNotJSON(error)
        }
        guard var members = header.objectValue else { throw .headerNotAnObject }

        var metadata: [String: String] = [:]
        if let value = members.removeValue(forKey: "__metadata__") {
            guard let object = value.objectValue else { throw .metadataNotAnObject }
            for (key, value) in object.sorted(by: { $0.key < $1.key }) {
                guard let text = value.stringValue else { throw .metadataNotAString(key: key) }
                metadata[key] = text
            }
        }
        return (metadata, members.map { (name: $0.key, $0.value) })
    }

    /// That the tensors cover the data from its first byte to its last, each byte once.
    private static func checkCover(
        _ layouts: inout [Layout], of dataSize: Int
    ) throws(SafetensorsError) {
        // An empty tensor sorts before the one that begins at the same place.
        layouts.sort {
            ($0.range.lowerBound, $0.range.upperBound, $0.name)
                < ($1.range.lowerBound, $1.range.upperBound, $1.name)
        }
        var end = 0
        var previous = ""
        for layout in layouts {
            guard layout.range.lowerBound >= end else {
                throw .overlap(first: previous, second: layout.name)
            }
            guard layout.range.lowerBound == end else {
                throw .hole(begin: end, end: layout.range.lowerBound)
            }
            end = layout.range.upperBound
            previous = layout.name
        }
        guard end == dataSize else { throw .trailingBytes(dataSize - end) }
    }
}

/// A tensor's entry in the header, checked by itself.
private struct Layout {
    let name: String
    let dtype: SafetensorsFile.DType
    let shape: [Int]
    /// Position in the data.
    let range: Range<Int>

    init(
        name: String, entry: JSON, dataSize: Int
    ) throws(SafetensorsError.TensorProblem) {
        guard let fields = entry.objectValue else { throw .notAnObject }
        func field(_ name: String) throws(SafetensorsError.TensorProblem) -> JSON {
            guard let value = fields[name] else { throw .missing(field: name) }
            return value
        }

        guard let dtypeName = try field("dtype").stringValue else {
            throw .mistyped(field: "dtype", expected: "a string")
        }
        guard let dtype = SafetensorsFile.DType(rawValue: dtypeName) else {
            throw .unknownDType(dtypeName)
        }

        guard let dimensions = try field("shape").arrayValue else {
            throw .mistyped(field: "shape", expected: "an array")
        }
        var shape: [Int] = []
        // Zeros do not hide an overflow: a reader may well multiply the other dimensions.
        var size = dtype.byteCount
        for (index, dimension) in dimensions.enumerated() {
            guard case .integer(let length) = dimension, length >= 0 else {
                throw .invalidDimension(index: index)
            }
            let (product, overflow) = size.multipliedReportingOverflow(by: max(length, 1))
            guard !overflow else { throw .sizeOverflow }
            size = product
            shape.append(length)
        }
        if shape.contains(0) { size = 0 }

        guard let offsets = try field("data_offsets").arrayValue, offsets.count == 2,
            case .integer(let begin) = offsets[0], case .integer(let end) = offsets[1],
            begin >= 0, end >= 0
        else { throw .mistyped(field: "data_offsets", expected: "a pair of counts") }
        guard begin <= end else { throw .offsetsReversed(begin: begin, end: end) }
        guard end <= dataSize else { throw .offsetsOutOfRange(end: end, available: dataSize) }
        guard end - begin == size else {
            throw .sizeMismatch(expected: size, found: end - begin)
        }

        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.range = begin..<end
    }
}

extension SafetensorsFile.Tensor {
    /// The elements as Float: F32 as they are, BF16 and F16 exactly, F64 rounded to nearest.
    func floats() throws(SafetensorsError) -> [Float] {
        switch dtype {
        case .float32: words(of: UInt32.self).map(Float.init(bitPattern:))
        case .bfloat16: words(of: UInt16.self).map { Float(bitPattern: UInt32($0) << 16) }
        case .float16: words(of: UInt16.self).map(float(fromFloat16:))
        case .float64: words(of: UInt64.self).map { Float(Double(bitPattern: $0)) }
        case .int64, .int32: throw wrongDType("a floating-point type")
        }
    }

    /// The elements as Double, exactly; floating-point types only.
    func doubles() throws(SafetensorsError) -> [Double] {
        switch dtype {
        case .float64: words(of: UInt64.self).map(Double.init(bitPattern:))
        case .float32, .bfloat16, .float16: try floats().map(Double.init)
        case .int64, .int32: throw wrongDType("a floating-point type")
        }
    }

    /// The elements as Int; I64 and I32 only.
    func integers() throws(SafetensorsError) -> [Int] {
        switch dtype {
        case .int64: words(of: UInt64.self).map { Int(Int64(bitPattern: $0)) }
        case .int32: words(of: UInt32.self).map { Int(Int32(bitPattern: $0)) }
        default: throw wrongDType("I64 or I32")
        }
    }

    /// The elements' bits; BF16 and F16 only.
    func bitPatterns16() throws(SafetensorsError) -> [UInt16] {
        switch dtype {
        case .bfloat16, .float16: words(of: UInt16.self)
        default: throw wrongDType("BF16 or F16")
        }
    }

    private func wrongDType(_ expected: String) -> SafetensorsError {
        .wrongDType(name: name, found: dtype, expected: expected)
    }

    /// The elements as little-endian words of their size.
    private func words<Word: FixedWidthInteger>(of type: Word.Type) -> [Word] {
        let width = Word.bitWidth / 8
        return stride(from: bytes.startIndex, to: bytes.endIndex, by: width).map { start in
            var word: Word = 0
            for k in 0..<width { word |= Word(truncatingIfNeeded: bytes[start + k]) << (8 * k) }
            return word
        }
    }
}

/// Float16 itself is not there on Intel Macs.
private func float(fromFloat16 bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let exponent = UInt32(bits >> 10 & 0x1f)
    let fraction = UInt32(bits & 0x3ff)
    switch exponent {
    case 0:
        // Subnormal: the fraction counts steps of 2^-24.
        let magnitude = Float(fraction) * 0x1p-24
        return Float(bitPattern: sign | magnitude.bitPattern)
    case 31: return Float(bitPattern: sign | 0x7f80_0000 | fraction << 13)
    default: return Float(bitPattern: sign | (exponent + 127 - 15) << 23 | fraction << 13)
    }
}

/// A regular file, read from start to end.
private final class InputFile {
    let path: String
    let descriptor: Int32
    let size: Int

    init(path: String) throws(SafetensorsError) {
        // A path is a C string: what follows a zero byte would be ignored.
        guard !path.utf8.contains(0) else {
            throw .cannotOpen(path: path, reason: "the path contains a zero byte")
        }
        // Opening a named pipe would wait for its other end but for O_NONBLOCK.
        descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        self.path = path
        guard descriptor >= 0 else {
            size = 0
            throw .cannotOpen(path: path, reason: systemMessage())
        }
        var status = stat()
        guard unsafe fstat(descriptor, &status) == 0 else {
            size = 0
            throw .cannotRead(path: path, reason: systemMessage())
        }
        size = Int(status.st_size)
        guard status.st_mode & mode_t(S_IFMT) == mode_t(S_IFREG) else {
            throw .notAFile(path: path)
        }
    }

    deinit {
        if descriptor >= 0 { close(descriptor) }
    }

    func read(_ count: Int) throws(SafetensorsError) -> [UInt8] {
        var result: Int = 0
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            while filled < count {
                result = unsafe systemRead(
                    descriptor, buffer.baseAddress! + filled, count - filled)
                if result < 0 && errno == EINTR { continue }
                if result <= 0 { return }
                filled += result
            }
        }
        guard bytes.count == count else {
            let reason = result < 0 ? systemMessage() : "it ended early"
            throw .cannotRead(path: path, reason: reason)
        }
        return bytes
    }
}

/// `read`, which the method of the same name hides.
private func systemRead(_ descriptor: Int32, _ buffer: UnsafeMutablePointer<UInt8>, _ count: Int)
    -> Int
{
    unsafe read(descriptor, buffer, count)
}

private func systemMessage() -> String {
    unsafe String(cString: strerror(errno))
}
