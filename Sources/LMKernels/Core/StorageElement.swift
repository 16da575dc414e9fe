internal import CLMKCore

/// How numbers lie in memory. Sums are accumulated in float32 whatever the storage type.
@frozen public enum StorageType: Sendable, Hashable, CaseIterable {
    /// IEEE 754 binary32.
    case float32
    /// The upper half of a binary32: 8 bits of precision, the range of float32.
    case bfloat16
    /// IEEE 754 binary16: 11 bits of precision, up to 65504.
    case float16
}

/// A type that kernels read and write: `Float`, `BFloat16` or `Float16`.
///
/// The kernels know these three; do not conform other types.
public protocol StorageElement: BitwiseCopyable, Sendable {
    static var storageType: StorageType { get }
}

extension Float: StorageElement {
    public static var storageType: StorageType { .float32 }
}

extension BFloat16: StorageElement {
    public static var storageType: StorageType { .bfloat16 }
}

// The standard library has no Float16 on Intel Macs.
#if !(os(macOS) && arch(x86_64))
    extension Float16: StorageElement {
        public static var storageType: StorageType { .float16 }
    }
#endif

extension StorageType {
    var dtype: lmk_dtype {
        switch self {
        case .float32: .LMK_FLOAT32
        case .bfloat16: .LMK_BFLOAT16
        case .float16: .LMK_FLOAT16
        }
    }
}
