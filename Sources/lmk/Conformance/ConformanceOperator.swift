import ArgumentParser
import LMKernels

/// An operator of the conformance vectors: a case read, and the kernel that computes it.
protocol ConformanceOperator {
    /// As `op` in a file's metadata.
    static var names: [String] { get }

    /// Reads a case. Consistency comes first: a case that does not fit together is never
    /// unsupported.
    init(_ reader: inout CaseReader) throws(ConformanceError)

    /// Computes everything that is expected, in every way the library has. Those of one group agree
    /// bit for bit.
    func compute(_ settings: CheckSettings) throws(KernelError) -> [ComputedWay]
}

/// What one way of calling the library gives.
struct ComputedWay {
    var name: String
    var group = ""
    /// By full name, such as `out.loss`.
    var tensors: [String: [Float]]
}

/// What a run of `lmk check` is about, besides files.
struct CheckSettings {
    /// 0: the default of the runtime.
    var threads = 0
    var form = Form.auto

    /// How operators with a recurrence compute it. Others have no forms.
    enum Form: String, CaseIterable, Sendable, ExpressibleByArgument {
        case auto
        case recurrent
        case chunked
    }
}

enum Conformance {
    static var operators: [any ConformanceOperator.Type] {
        [
            CrossEntropyOperator.self, SoftmaxOperator.self, LinearAttentionOperator.self,
            DeltaRuleOperator.self,
        ]
    }
}
