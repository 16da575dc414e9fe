internal import CLMKCore

/// Instruction sets that kernels are compiled for.
///
/// The fastest one on this CPU is chosen on first use: the best that it can run, but `avx512bf16`
/// only where a dot product is faster than the multiply-adds it stands for, which it is not on
/// Intel's. The environment variable `LMK_ISA` names another; its values are the raw values here.
///
/// float32 results have the same bits with every set that has fused multiply-add, which is all but
/// `generic` on x86-64. Products of bfloat16 differ with `avx512bf16`, which adds pairs, and with
/// `amx`; so do linear attention and the delta rule of bfloat16 with `amx`, forward.
public enum InstructionSet: String, CaseIterable, Sendable {
    /// The platform's baseline: SSE2 on x86-64.
    case generic
    /// AVX2 with fused multiply-add and float16 conversion.
    case avx2
    /// AVX-512 F, BW, DQ and VL.
    case avx512
    /// AVX-512 with the dot product of bfloat16.
    case avx512bf16
    /// The same with tiles of bfloat16, Advanced Matrix Extensions: Intel's from Sapphire Rapids on,
    /// where the operating system lets the process use them. Tiles take matrix products of bfloat16
    /// and its linear attention and delta rule, forward; everything else is that of AVX-512.
    case amx
    /// Advanced SIMD of 64-bit Arm.
    case neon

    /// The one that calls use now.
    public static var current: InstructionSet { InstructionSet(lmk_cpu_isa()) }

    /// Whether this CPU can run it.
    public var isSupported: Bool { lmk_cpu_can_run(isa) != 0 }

    /// Makes later calls in this process use `set`; for tests and comparisons.
    ///
    /// Not to be called while a kernel runs.
    ///
    /// - Returns: false, and nothing changes, when the CPU cannot run it.
    @discardableResult
    public static func use(_ set: InstructionSet) -> Bool { lmk_cpu_use_isa(set.isa) != 0 }
}

extension InstructionSet {
    fileprivate var isa: lmk_isa {
        switch self {
        case .generic: .LMK_ISA_GENERIC
        case .avx2: .LMK_ISA_AVX2
        case .avx512: .LMK_ISA_AVX512
        case .avx512bf16: .LMK_ISA_AVX512_BF16
        case .amx: .LMK_ISA_AMX
        case .neon: .LMK_ISA_NEON
        }
    }

    fileprivate init(_ isa: lmk_isa) {
        self =
            switch isa {
            case .LMK_ISA_GENERIC: .generic
            case .LMK_ISA_AVX2: .avx2
            case .LMK_ISA_AVX512: .avx512
            case .LMK_ISA_AVX512_BF16: .avx512bf16
            case .LMK_ISA_AMX: .amx
            case .LMK_ISA_NEON: .neon
            }
    }
}
