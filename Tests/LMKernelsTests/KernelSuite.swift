import LMKernels
import LMKernelsReference
import Testing

// Both modules have a namespace for each family; by itself a name means the kernels.
typealias Matmul = LMKernels.Matmul
typealias CrossEntropy = LMKernels.CrossEntropy
typealias Softmax = LMKernels.Softmax
typealias LinearAttention = LMKernels.LinearAttention
typealias HouseholderProduct = LMKernels.HouseholderProduct
typealias SelfReferentialMatrix = LMKernels.SelfReferentialMatrix
typealias ReferenceMatmul = LMKernelsReference.Matmul
typealias ReferenceCrossEntropy = LMKernelsReference.CrossEntropy
typealias ReferenceSoftmax = LMKernelsReference.Softmax
typealias ReferenceLinearAttention = LMKernelsReference.LinearAttention
typealias ReferenceHouseholderProduct = LMKernelsReference.HouseholderProduct
typealias ReferenceSelfReferentialMatrix = LMKernelsReference.SelfReferentialMatrix

/// Every test that runs a kernel. The instruction set in use is global, so these tests run one
/// after the other.
@Suite(.serialized)
enum KernelSuite {}

/// Kernels that are selected together. Those of products, linear attention and the delta rule
/// depend on the storage type.
enum KernelFamily {
    case elementwise, crossEntropy, softmax, tokenStages, householderProduct, selfReferentialMatrix
    case matmul(StorageType), linearAttention(StorageType), deltaRule(StorageType)

    /// Instruction sets that select the kernels of avx512 here: avx512bf16 has its own for products
    /// of bfloat16 alone, amx for these and for linear attention and the delta rule in bfloat16.
    var repetitions: [InstructionSet] {
        switch self {
        case .matmul(.bfloat16): []
        case .linearAttention(.bfloat16), .deltaRule(.bfloat16): [.avx512bf16]
        default: [.avx512bf16, .amx]
        }
    }
}

/// Runs `body` with every instruction set that this machine has.
///
/// - Parameter family: What `body` runs; sets that only repeat what avx512 does in it are left out.
func withEachInstructionSet(
    _ sets: [InstructionSet] = InstructionSet.allCases, of family: KernelFamily? = nil,
    _ body: (InstructionSet) throws -> Void
) rethrows {
    let repetitions = family?.repetitions ?? []
    let before = InstructionSet.current
    defer { InstructionSet.use(before) }
    for set in sets where !repetitions.contains(set) && InstructionSet.use(set) { try body(set) }
}

/// Instruction sets with fused multiply-add, which agree on every bit of a float32 result.
let fusedSets: [InstructionSet] = [.avx2, .avx512, .avx512bf16, .amx, .neon]

/// Those that add pairs of bfloat16: products of bfloat16 have other bits there.
let pairSets: [InstructionSet] = [.avx512bf16, .amx]

/// Sizes around the edges of vectors, register tiles and blocks.
let edgeSizes = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 300, 513]

/// SplitMix64: the same numbers on every run.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// A storage type that tests can make and read.
protocol TestElement: StorageElement {
    init(_ value: Float)
    var double: Double { get }
}

extension Float: TestElement {
    var double: Double { Double(self) }
}

extension BFloat16: TestElement {
    var double: Double { Double(Float(self)) }
}

extension Float16: TestElement {
    var double: Double { Double(self) }
}

/// Part of an array to write to.
func withPart<Element>(
    of array: inout [Element], _ range: Range<Int>,
    _ body: (inout MutableSpan<Element>) throws -> Void
) rethrows {
    try unsafe array.withUnsafeMutableBufferPointer { buffer in
        let part = buffer.extracting(range)
        var span = unsafe part.mutableSpan
        try body(&span)
    }
}

/// Bits of each, to compare NaN and signs of zero as well.
func bits(_ values: [Float]) -> [UInt32] { values.map(\.bitPattern) }

/// The finite ones among them.
func finite(_ values: [Float]) -> [Double] { values.filter(\.isFinite).map { Double($0) } }
