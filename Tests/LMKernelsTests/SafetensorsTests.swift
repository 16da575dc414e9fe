import Foundation
import Testing

@testable import lmk

/// A file with this header and these data.
private func file(_ header: String, data: [UInt8] = []) -> [UInt8] {
    littleEndian(UInt64(header.utf8.count)) + Array(header.utf8) + data
}

private func littleEndian<Word: FixedWidthInteger>(_ word: Word) -> [UInt8] {
    (0..<Word.bitWidth / 8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) }
}

private func littleEndian<Word: FixedWidthInteger>(_ words: [Word]) -> [UInt8] {
    words.flatMap { littleEndian($0) }
}

/// A file of one tensor x, its entry as given.
private func file(entry: String, data: Int = 8) -> [UInt8] {
    file(#"{"x":\#(entry)}"#, data: Array(repeating: 0, count: data))
}

/// A tensor of every dtype, a scalar, empty tensors, metadata; in another order than the data's.
private let goodFile: [UInt8] = {
    let header = """
        {"__metadata__":{"op":"test","attributes":"{\\"softcap\\": null, \\"scale\\": 2e-06}"},\
        "last":{"dtype":"I32","shape":[3],"data_offsets":[56,68]},\
        "in.f64":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},\
        "in.f32":{"dtype":"F32","shape":[2,1],"data_offsets":[16,24]},\
        "in.bf16":{"dtype":"BF16","shape":[1,2],"data_offsets":[24,28]},\
        "in.f16":{"dtype":"F16","shape":[2],"data_offsets":[28,32]},\
        "none":{"dtype":"F64","shape":[3,0,2],"data_offsets":[32,32]},\
        "nothing":{"dtype":"F64","shape":[0],"data_offsets":[68,68]},\
        "in.i64":{"dtype":"I64","shape":[2],"data_offsets":[32,48]},\
        "scalar":{"dtype":"F64","shape":[],"data_offsets":[48,56]}}   \u{20}
        """
    var data: [UInt8] = littleEndian([1.5, -Double.infinity].map(\.bitPattern))
    data += littleEndian([Float(0.1), -2].map(\.bitPattern))
    data += littleEndian([0x3fc0, 0xff80] as [UInt16])
    data += littleEndian([0x3c00, 0x8001] as [UInt16])
    data += littleEndian([Int64.min, -100])
    data += littleEndian(Double(0.1).bitPattern)
    data += littleEndian([Int32.max, -1, 7])
    return file(header, data: data)
}()

@Suite struct SafetensorsTests {
    @Test func goodFileReads() throws {
        let read = try SafetensorsFile(bytes: goodFile)
        #expect(
            read.metadata
                == ["op": "test", "attributes": #"{"softcap": null, "scale": 2e-06}"#])
        #expect(read.tensors.count == 9)
        for (name, tensor) in read.tensors { #expect(tensor.name == name) }
        let attributes = try JSON(parsing: try #require(read.metadata["attributes"]))
        #expect(attributes["softcap"]?.isNull == true)
        #expect(attributes["scale"]?.doubleValue == 2e-6)

        func tensor(_ name: String) throws -> SafetensorsFile.Tensor {
            try #require(read.tensors[name])
        }
        #expect(try tensor("in.f64").dtype == .float64)
        #expect(try tensor("in.f64").shape == [2])
        #expect(try tensor("in.f64").doubles() == [1.5, -.infinity])
        #expect(try tensor("in.f64").floats() == [1.5, -.infinity])
        #expect(try tensor("in.f32").shape == [2, 1])
        #expect(try tensor("in.f32").floats() == [0.1, -2])
        #expect(try tensor("in.f32").doubles() == [Double(Float(0.1)), -2])
        #expect(try tensor("in.bf16").floats() == [1.5, -.infinity])
        #expect(try tensor("in.bf16").bitPatterns16() == [0x3fc0, 0xff80])
        #expect(try tensor("in.f16").floats() == [1, -0x1p-24])
        #expect(try tensor("in.f16").bitPatterns16() == [0x3c00, 0x8001])
        #expect(try tensor("in.i64").integers() == [Int.min, -100])
        #expect(try tensor("last").integers() == [Int(Int32.max), -1, 7])
        #expect(try tensor("scalar").shape == [])
        #expect(try tensor("scalar").count == 1)
        #expect(try tensor("scalar").doubles() == [0.1])
        #expect(try tensor("scalar").floats() == [0.1])
        #expect(try tensor("none").shape == [3, 0, 2])
        #expect(try tensor("none").doubles() == [])
        #expect(try tensor("nothing").count == 0)
    }

    @Test func smallestFile() throws {
        let read = try SafetensorsFile(bytes: file("{}"))
        #expect(read.tensors.isEmpty && read.metadata.isEmpty)
    }

    @Test func accessorsRefuseOtherTypes() throws {
        let tensors = try SafetensorsFile(bytes: goodFile).tensors
        func error(_ found: SafetensorsFile.DType, _ expected: String, _ name: String)
            -> SafetensorsError
        {
            .wrongDType(name: name, found: found, expected: expected)
        }
        let integer = try #require(tensors["in.i64"])
        let float = try #require(tensors["in.f32"])
        #expect(throws: error(.int64, "a floating-point type", "in.i64")) {
            try integer.floats()
        }
        #expect(throws: error(.int64, "a floating-point type", "in.i64")) {
            try integer.doubles()
        }
        #expect(throws: error(.int64, "BF16 or F16", "in.i64")) { try integer.bitPatterns16() }
        #expect(throws: error(.float32, "BF16 or F16", "in.f32")) { try float.bitPatterns16() }
        #expect(throws: error(.float32, "I64 or I32", "in.f32")) { try float.integers() }
    }

    /// Float16 is not available on Intel Macs.
    #if !(os(macOS) && arch(x86_64))
        @Test func everyFloat16() throws {
            let header = #"{"x":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}}"#
            let bits = Array(0...UInt16.max)
            let read = try SafetensorsFile(bytes: file(header, data: littleEndian(bits)))
            let tensor = try #require(read.tensors["x"])
            for (bits, float) in zip(bits, try tensor.floats()) {
                let expected = Float(Float16(bitPattern: bits))
                #expect(float.bitPattern == expected.bitPattern || float.isNaN && expected.isNaN)
            }
        }
    #endif

    // MARK: - Malformed files

    struct Malformed: CustomTestStringConvertible {
        var testDescription: String
        var bytes: [UInt8]
        var error: SafetensorsError

        init(_ description: String, _ bytes: [UInt8], _ error: SafetensorsError) {
            testDescription = description
            self.bytes = bytes
            self.error = error
        }

        /// A fault in the entry of the tensor x.
        init(_ entry: String, data: Int = 8, _ problem: SafetensorsError.TensorProblem) {
            self.init(entry, file(entry: entry, data: data), .invalidTensor(name: "x", problem))
        }

        /// A fault in the JSON.
        init(header: String, _ reason: JSONError.Reason, at offset: Int) {
            self.init(
                header, file(header), .headerNotJSON(JSONError(reason: reason, offset: offset)))
        }
    }

    static let malformedFiles: [Malformed] = [
        // The frame.
        Malformed("empty", [], .tooShort(bytes: 0)),
        Malformed("7 bytes", Array(repeating: 0, count: 7), .tooShort(bytes: 7)),
        Malformed("no header", littleEndian(0 as UInt64), .headerNotAnObject),
        Malformed(
            "header beyond the file", littleEndian(3 as UInt64) + Array("{}".utf8),
            .headerBeyondFile(bytes: 3, available: 2)),
        Malformed(
            "longest header beyond the file", littleEndian(100_000_000 as UInt64),
            .headerBeyondFile(bytes: 100_000_000, available: 0)),
        Malformed(
            "header over the limit", littleEndian(100_000_001 as UInt64),
            .headerTooLong(bytes: 100_000_001, limit: 100_000_000)),
        Malformed(
            "header of 2^64 - 1", littleEndian(UInt64.max) + Array("{}".utf8),
            .headerTooLong(bytes: .max, limit: 100_000_000)),

        // JSON.
        Malformed(
            "not UTF-8", littleEndian(10 as UInt64) + [0x7b, 0x22, 0xff] + Array(#"": 1}  "#.utf8),
            .headerNotJSON(JSONError(reason: .notUTF8, offset: 0))),
        Malformed("white space first", file(" {}"), .headerNotAnObject),
        Malformed("byte order mark first", file("\u{feff}{}"), .headerNotAnObject),
        Malformed("an array", file("[]"), .headerNotAnObject),
        Malformed("a null", file("null"), .headerNotAnObject),
        Malformed(header: "{", .unexpectedEnd, at: 1),
        Malformed(header: "{a:1}", .unexpectedByte(0x61, expected: "a key"), at: 1),
        Malformed(header: #"{"x" 1}"#, .unexpectedByte(0x31, expected: "':'"), at: 5),
        Malformed(header: #"{"x":1,}"#, .unexpectedByte(0x7d, expected: "a key"), at: 7),
        Malformed(header: #"{"x":}"#, .unexpectedByte(0x7d, expected: "a value"), at: 5),
        Malformed(header: "{} x", .unexpectedByte(0x78, expected: "the end of the text"), at: 3),
        Malformed(header: "{}\0", .unexpectedByte(0, expected: "the end of the text"), at: 2),
        Malformed(header: #"{"x":{},"x":{}}"#, .duplicateKey("x"), at: 8),
        Malformed(header: #"{"x":{},"\u0078":{}}"#, .duplicateKey("x"), at: 8),
        Malformed(header: #"{"x":{"shape":[],"shape":[]}}"#, .duplicateKey("shape"), at: 17),
        Malformed(
            header: #"{"x":"# + String(repeating: "[", count: 1_000_000), .tooDeep(limit: 64),
            at: 68),
        Malformed(
            header: String(repeating: #"{"x":"#, count: 1_000_000), .tooDeep(limit: 64), at: 320),

        // Metadata.
        Malformed("metadata null", file(#"{"__metadata__":null}"#), .metadataNotAnObject),
        Malformed("metadata array", file(#"{"__metadata__":["a"]}"#), .metadataNotAnObject),
        Malformed(
            "metadata number", file(#"{"__metadata__":{"a":"b","c":1}}"#),
            .metadataNotAString(key: "c")),
        Malformed(
            "metadata nested", file(#"{"__metadata__":{"a":{"b":"c"}}}"#),
            .metadataNotAString(key: "a")),

        // A tensor's entry.
        Malformed("[]", .notAnObject),
        Malformed("null", .notAnObject),
        Malformed("{}", .missing(field: "dtype")),
        Malformed(#"{"shape":[2],"data_offsets":[0,8]}"#, .missing(field: "dtype")),
        Malformed(#"{"dtype":"F32","data_offsets":[0,8]}"#, .missing(field: "shape")),
        Malformed(#"{"dtype":"F32","shape":[2]}"#, .missing(field: "data_offsets")),
        Malformed(
            #"{"dtype":1,"shape":[2],"data_offsets":[0,8]}"#,
            .mistyped(field: "dtype", expected: "a string")),
        Malformed(#"{"dtype":"f32","shape":[2],"data_offsets":[0,8]}"#, .unknownDType("f32")),
        Malformed(#"{"dtype":"BOOL","shape":[8],"data_offsets":[0,8]}"#, .unknownDType("BOOL")),
        Malformed(
            #"{"dtype":"F32","shape":2,"data_offsets":[0,8]}"#,
            .mistyped(field: "shape", expected: "an array")),
        Malformed(
            #"{"dtype":"F32","shape":null,"data_offsets":[0,8]}"#,
            .mistyped(field: "shape", expected: "an array")),

        // Dimensions.
        Malformed(
            #"{"dtype":"F32","shape":[1,-2],"data_offsets":[0,8]}"#, .invalidDimension(index: 1)),
        Malformed(
            #"{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}"#, data: 0,
            .invalidDimension(index: 0)),
        Malformed(
            #"{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}"#, .invalidDimension(index: 0)),
        Malformed(
            #"{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}"#, .invalidDimension(index: 0)),
        Malformed(
            #"{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}"#, .invalidDimension(index: 0)),
        Malformed(
            #"{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}"#, .invalidDimension(index: 0)),
        Malformed(
            #"{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}"#,
            .invalidDimension(index: 0)),
        Malformed(
            #"{"dtype":"F32","shape":[1e99],"data_offsets":[0,8]}"#, .invalidDimension(index: 0)),
        Malformed(
            #"{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,8]}"#, .sizeOverflow),
        Malformed(
            #"{"dtype":"F32","shape":[2147483648,2147483648],"data_offsets":[0,8]}"#,
            .sizeOverflow),
        // 2^64 elements, which wrap around to 0.
        Malformed(
            #"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#, data: 0,
            .sizeOverflow),
        Malformed(
            #"{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}"#, data: 0,
            .sizeOverflow),

        // Offsets.
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":8}"#,
            .mistyped(field: "data_offsets", expected: "a pair of counts")),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[8]}"#,
            .mistyped(field: "data_offsets", expected: "a pair of counts")),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}"#,
            .mistyped(field: "data_offsets", expected: "a pair of counts")),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[0,"8"]}"#,
            .mistyped(field: "data_offsets", expected: "a pair of counts")),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[0,8.0]}"#,
            .mistyped(field: "data_offsets", expected: "a pair of counts")),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}"#,
            .mistyped(field: "data_offsets", expected: "a pair of counts")),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]}"#,
            .mistyped(field: "data_offsets", expected: "a pair of counts")),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#,
            .offsetsReversed(begin: 8, end: 0)),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, data: 7,
            .offsetsOutOfRange(end: 8, available: 7)),
        Malformed(
            #"{"dtype":"F32","shape":[2],"data_offsets":[8,9223372036854775807]}"#,
            .offsetsOutOfRange(end: .max, available: 8)),
        Malformed(
            #"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#,
            .sizeMismatch(expected: 12, found: 8)),
        Malformed(
            #"{"dtype":"F64","shape":[],"data_offsets":[0,4]}"#,
            .sizeMismatch(expected: 8, found: 4)),
        Malformed(
            #"{"dtype":"F32","shape":[0],"data_offsets":[0,8]}"#,
            .sizeMismatch(expected: 0, found: 8)),

        // Tensors together.
        Malformed(
            "hole first", file(entry: #"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#),
            .hole(begin: 0, end: 4)),
        Malformed(
            "hole between",
            file(
                #"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"#
                    + #""b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                data: Array(repeating: 0, count: 12)), .hole(begin: 4, end: 8)),
        Malformed(
            "overlap",
            file(
                #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},"#
                    + #""b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                data: Array(repeating: 0, count: 12)), .overlap(first: "b", second: "a")),
        Malformed(
            "the same bytes twice",
            file(
                #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#
                    + #""b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                data: Array(repeating: 0, count: 8)), .overlap(first: "a", second: "b")),
        Malformed(
            "an empty tensor inside another",
            file(
                #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#
                    + #""b":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}"#,
                data: Array(repeating: 0, count: 8)), .overlap(first: "a", second: "b")),
        Malformed(
            "bytes after the last tensor",
            file(entry: #"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, data: 9),
            .trailingBytes(1)),
        Malformed("bytes and no tensor", file("{}", data: [1, 2]), .trailingBytes(2)),
    ]

    @Test(arguments: malformedFiles)
    func malformed(_ malformed: Malformed) {
        #expect(throws: malformed.error) { try SafetensorsFile(bytes: malformed.bytes) }
        // A message is one line of readable text, however long the names in the file.
        let message = malformed.error.description
        #expect(!message.isEmpty && message.utf8.count < 300)
        #expect(message.unicodeScalars.allSatisfy { $0.value >= 0x20 && $0.value != 0x7f })
    }

    @Test func namesFromTheFileAreQuoted() {
        let name = "\u{1b}[2J\n" + String(repeating: "long ", count: 1000)
        let error = SafetensorsError.invalidTensor(name: name, .notAnObject)
        #expect(error.description.hasPrefix(#"tensor "\u{1B}[2J\nlong long"#))
        #expect(error.description.hasSuffix(#""...: its entry is not an object"#))
        #expect(quoted("short") == #""short""#)
        #expect(quoted(String(repeating: "x", count: 80)).utf8.count == 82)
    }

    // MARK: - Paths

    @Test func paths() throws {
        let directory = FileManager.default.temporaryDirectory
            .appendingPathComponent("lmk-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: directory) }
        func write(_ name: String, _ bytes: [UInt8]) throws -> String {
            let url = directory.appendingPathComponent(name)
            try Data(bytes).write(to: url)
            return url.path
        }

        let goodPath = try write("good", goodFile)
        let good = try SafetensorsFile(path: goodPath)
        let inMemory = try SafetensorsFile(bytes: goodFile)
        #expect(good.tensors == inMemory.tensors && good.metadata == inMemory.metadata)

        let empty = try write("empty", [])
        #expect(throws: SafetensorsError.tooShort(bytes: 0)) { try SafetensorsFile(path: empty) }
        let short = try write("short", Array(goodFile.dropLast()))
        #expect(throws: SafetensorsError.self) { try SafetensorsFile(path: short) }

        #expect(throws: SafetensorsError.notAFile(path: directory.path)) {
            try SafetensorsFile(path: directory.path)
        }
        for path in ["", directory.path + "/absent", empty + "/inside", goodPath + "\0"] {
            let error = #expect(throws: SafetensorsError.self) { try SafetensorsFile(path: path) }
            guard case .cannotOpen(path, _) = error else {
                Issue.record("\(String(describing: error))")
                continue
            }
        }

        // Sparse, so that it takes no room on the disk.
        let large = try write("large", goodFile)
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: large))
        try handle.truncate(atOffset: 5 << 30)
        try handle.close()
        #expect(throws: SafetensorsError.fileTooLarge(bytes: 5 << 30, limit: 4 << 30)) {
            try SafetensorsFile(path: large)
        }
    }

    @Test func pipesAndDevices() throws {
        #expect(throws: SafetensorsError.notAFile(path: "/dev/zero")) {
            try SafetensorsFile(path: "/dev/zero")
        }
        // Nobody will ever write to this pipe.
        let pipe = FileManager.default.temporaryDirectory
            .appendingPathComponent("lmk-\(UUID().uuidString)").path
        let status = unsafe mkfifo(pipe, 0o600)
        try #require(status == 0)
        defer { _ = unsafe unlink(pipe) }
        #expect(throws: SafetensorsError.notAFile(path: pipe)) {
            try SafetensorsFile(path: pipe)
        }
    }

    // MARK: - Fuzz

    /// Damaged copies of a good file: every one is read in full or refused.
    @Test(arguments: [1, 2, 3, 4] as [UInt64])
    func damagedFiles(seed: UInt64) throws {
        var generator = SplitMix64(state: seed)
        func random(_ range: Range<Int>) -> Int { Int.random(in: range, using: &generator) }
        let headerEnd = 8 + Int(goodFile[0]) + Int(goodFile[1]) << 8
        let structure = Array(#"{}[]:,"\-+.eE0123456789 ntfu"#.utf8)
        var accepted = 0
        var refused = 0

        for _ in 0..<2500 {
            var bytes = goodFile
            for _ in 0..<random(1..<4) where !bytes.isEmpty {
                // Damage in the data alone makes another good file: most of it goes before.
                let end = random(0..<8) == 0 ? bytes.count : min(headerEnd, bytes.count)
                let place = random(0..<end)
                switch random(0..<6) {
                case 0: bytes[place] ^= 1 << UInt8(random(0..<8))
                case 1: bytes[place] = UInt8(random(0..<256))
                case 2: bytes[place] = structure[random(0..<structure.count)]
                case 3: bytes.insert(structure[random(0..<structure.count)], at: place)
                case 4: bytes.remove(at: place)
                default: bytes.removeSubrange(place..<min(place + random(1..<40), bytes.count))
                }
                // Half of the time the length of the header follows, so that the parser sees more.
                if bytes.count >= 8, Bool.random(using: &generator) {
                    let length = headerEnd - 8 + bytes.count - goodFile.count
                    bytes.replaceSubrange(0..<8, with: littleEndian(UInt64(max(length, 0))))
                }
            }
            if random(0..<20) == 0 { bytes.removeLast(random(0..<bytes.count + 1)) }

            do throws(SafetensorsError) {
                let read = try SafetensorsFile(bytes: bytes)
                for tensor in read.tensors.values { checkAccessors(tensor) }
                accepted += 1
            } catch {
                #expect(!error.description.isEmpty)
                refused += 1
            }
        }
        #expect(accepted > 0 && refused > 0, "seed \(seed)")
    }

    @Test func everyTruncation() {
        for count in 0..<goodFile.count {
            #expect(throws: SafetensorsError.self) {
                try SafetensorsFile(bytes: Array(goodFile.prefix(count)))
            }
        }
    }

    /// Accessors that fit give as many elements as the shape has; the others throw.
    func checkAccessors(_ tensor: SafetensorsFile.Tensor) {
        let count = tensor.shape.reduce(1, *)
        #expect(tensor.count == count)
        let isInteger = tensor.dtype == .int64 || tensor.dtype == .int32
        #expect((try? tensor.floats())?.count == (isInteger ? nil : count))
        #expect((try? tensor.doubles())?.count == (isInteger ? nil : count))
        #expect((try? tensor.integers())?.count == (isInteger ? count : nil))
        let isHalf = tensor.dtype == .bfloat16 || tensor.dtype == .float16
        #expect((try? tensor.bitPatterns16())?.count == (isHalf ? count : nil))
    }
}

@Suite struct JSONTests {
    @Test func values() throws {
        let text = #"""
             {"null": null, "yes": true, "no": false, "list": [1, -2, [], {}], "text": "a b",
            "object": {"x": 1.5}, "": 0}
            """# + "\t\r\n"
        let expected = JSON.object([
            "null": .null, "yes": .bool(true), "no": .bool(false),
            "list": .array([.integer(1), .integer(-2), .array([]), .object([:])]),
            "text": .string("a b"), "object": .object(["x": .number(1.5)]), "": .integer(0),
        ])
        let value = try JSON(parsing: text)
        #expect(value == expected)
        #expect(value["null"]?.isNull == true && value["yes"]?.isNull == false)
        #expect(value["yes"]?.boolValue == true && value["text"]?.boolValue == nil)
        #expect(value["text"]?.stringValue == "a b" && value["yes"]?.stringValue == nil)
        #expect(value["list"]?.arrayValue?.count == 4 && value["text"]?.arrayValue == nil)
        #expect(value["object"]?["x"]?.doubleValue == 1.5)
        #expect(value["absent"] == nil && value["list"]?["x"] == nil)
    }

    @Test(
        arguments: [
            ("0", .integer(0)), ("-7", .integer(-7)),
            ("9223372036854775807", .integer(.max)), ("-9223372036854775808", .integer(.min)),
            ("9223372036854775808", .number(0x1p63)),
            ("9007199254740993", .integer(9_007_199_254_740_993)),
            ("-0", .number(-0.0)), ("1.0", .number(1)), ("1e2", .number(100)),
            ("1E+2", .number(100)),
            ("2.116407292289019e-06", .number(2.116407292289019e-06)),
            ("5e-324", .number(.leastNonzeroMagnitude)), ("1e-999", .number(0)),
            ("0.1", .number(0.1)),
        ] as [(String, JSON)])
    func numbers(text: String, expected: JSON) throws {
        #expect(try JSON(parsing: text) == expected)
    }

    @Test func numbersAsOtherTypes() throws {
        #expect(try JSON(parsing: "-0").doubleValue?.sign == .minus)
        #expect(try JSON(parsing: "3").doubleValue == 3)
        #expect(try JSON(parsing: "3.0").integerValue == 3)
        #expect(try JSON(parsing: "3.5").integerValue == nil)
        #expect(try JSON(parsing: "1e300").integerValue == nil)
        #expect(try JSON(parsing: "\"3\"").integerValue == nil)
        #expect(try JSON(parsing: "true").doubleValue == nil)
        let digits = String(repeating: "1", count: 300)
        #expect(try JSON(parsing: digits) == .number(Double(digits)!))
    }

    @Test(arguments: [
        (#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
        (#""\u00e9\u0000\uABCD\uabcd""#, "\u{e9}\0\u{abcd}\u{abcd}"),
        (#""\ud83d\ude00""#, "\u{1f600}"), (#""\uD800\uDC00\udbff\udfff""#, "\u{10000}\u{10ffff}"),
        ("\"\u{e9}\u{1f600}\u{7f}\"", "\u{e9}\u{1f600}\u{7f}"),
    ])
    func strings(text: String, expected: String) throws {
        #expect(try JSON(parsing: text) == .string(expected))
    }

    @Test(
        arguments: [
            ("", .unexpectedEnd, 0), ("  ", .unexpectedEnd, 2),
            ("nul", .unexpectedEnd, 3), ("nulL", .unexpectedByte(0x4c, expected: "null"), 3),
            ("NaN", .unexpectedByte(0x4e, expected: "a value"), 0),
            ("Infinity", .unexpectedByte(0x49, expected: "a value"), 0),
            ("+1", .unexpectedByte(0x2b, expected: "a value"), 0),
            (".5", .unexpectedByte(0x2e, expected: "a value"), 0),
            ("'a'", .unexpectedByte(0x27, expected: "a value"), 0),
            ("01", .unexpectedByte(0x31, expected: "the end of the text"), 1),
            ("0x1", .unexpectedByte(0x78, expected: "the end of the text"), 1),
            ("1 2", .unexpectedByte(0x32, expected: "the end of the text"), 2),
            ("-", .unexpectedEnd, 1), ("-a", .unexpectedByte(0x61, expected: "a digit"), 1),
            ("1.", .unexpectedEnd, 2), ("1.e1", .unexpectedByte(0x65, expected: "a digit"), 2),
            ("1e", .unexpectedEnd, 2), ("1e+-1", .unexpectedByte(0x2d, expected: "a digit"), 3),
            ("[1e999]", .numberOutOfRange, 1), ("-1e999", .numberOutOfRange, 0),
            ("[1,]", .unexpectedByte(0x5d, expected: "a value"), 3),
            ("[1 2]", .unexpectedByte(0x32, expected: "',' or ']'"), 3),
            ("[1", .unexpectedEnd, 2), ("[", .unexpectedEnd, 1),
            (#"{"a":1 "b":2}"#, .unexpectedByte(0x22, expected: "',' or '}'"), 7),
            (#"{"a"}"#, .unexpectedByte(0x7d, expected: "':'"), 4), (#"{"a":1"#, .unexpectedEnd, 6),
            (#"{"a":1,"b":2,"a":3}"#, .duplicateKey("a"), 13),
            ("\"\u{e9}", .unexpectedEnd, 3), (#""a\"#, .unexpectedEnd, 3),
            (#""\x""#, .invalidEscape, 1), (#""\u12g4""#, .invalidEscape, 1),
            (#""\u12"#, .unexpectedEnd, 5), (#""\ud800""#, .loneSurrogate, 1),
            (#""\udc00""#, .loneSurrogate, 1), (#""\ud800\ud800""#, .loneSurrogate, 1),
            (#""\ud800\n""#, .loneSurrogate, 1), ("\"a\nb\"", .controlCharacter, 2),
            ("\"\0\"", .controlCharacter, 1),
            ("// comment", .unexpectedByte(0x2f, expected: "a value"), 0),
        ] as [(String, JSONError.Reason, Int)])
    func malformed(text: String, reason: JSONError.Reason, offset: Int) {
        #expect(throws: JSONError(reason: reason, offset: offset)) { try JSON(parsing: text) }
    }

    @Test(
        arguments: [
            [0x22, 0xff, 0x22], [0x22, 0xc0, 0x80, 0x22], [0x22, 0xed, 0xa0, 0x80, 0x22],
            [0x22, 0xe2, 0x82, 0x22], [0x22, 0xf4, 0x90, 0x80, 0x80, 0x22], [0xfe, 0xff],
        ] as [[UInt8]])
    func notUTF8(bytes: [UInt8]) {
        #expect(throws: JSONError(reason: .notUTF8, offset: 0)) { try JSON(parsing: bytes) }
    }

    @Test func depth() throws {
        func nested(_ depth: Int) -> String {
            String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
        }
        var value = try JSON(parsing: nested(64))
        for _ in 1..<64 { value = try #require(value.arrayValue?.first) }
        #expect(value == .array([]))
        #expect(throws: JSONError(reason: .tooDeep(limit: 64), offset: 64)) {
            try JSON(parsing: nested(65))
        }
        // Siblings are not deeper.
        #expect(try JSON(parsing: "[" + nested(63) + "," + nested(63) + "]").arrayValue?.count == 2)
    }

    /// The replacement character itself is no sign of broken UTF-8.
    @Test func replacementCharacter() throws {
        #expect(try JSON(parsing: "\"\u{fffd}\"") == .string("\u{fffd}"))
    }

    @Test func messages() {
        func message(_ text: String) -> String {
            do throws(JSONError) {
                _ = try JSON(parsing: text)
                return ""
            } catch {
                return error.description
            }
        }
        #expect(message("[1 2]") == "expected ',' or ']' at byte 3, found '2'")
        #expect(message("\u{1}") == "expected a value at byte 0, found byte 0x1")
        #expect(message("[1,") == "the text ends too early, after 3 bytes")
        #expect(message(#"{"a":1,"a":2}"#) == #"key "a" at byte 7 occurs twice"#)
    }
}

/// The same damage in every run.
private struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
