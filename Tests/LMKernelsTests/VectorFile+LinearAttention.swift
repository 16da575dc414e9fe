import LMKernels
import LMKernelsReference

@testable import lmk

extension VectorFile {
    /// What a vector of linear attention has beyond the least.
    struct LinearAttentionOptions {
        var decay = "none"
        var dtype = "F32"
        var isCausal = true
        var isNormalized = false
        var hasStates = false
        var offsets: [Int]?
        var tokens = 9
    }

    /// A vector of linear attention, right unless it is changed: B 1, H 2, G 1, K 3, V 4.
    init(linearAttention options: LinearAttentionOptions) {
        self.init(rows: 0)
        tensors = [:]
        tolerances = [:]
        metadata["op"] = "linear_attention"
        attributes = [
            "scale": "0.75", "causal": "\(options.isCausal)",
            "normalize": "\(options.isNormalized)", "decay": "\"\(options.decay)\"",
        ]
        let (tokens, dtype) = (options.tokens, options.dtype)
        // Exact in every storage type; positive for a normaliser.
        func numbers(_ count: Int, _ factor: Int) -> [Float] {
            let least: Float = options.isNormalized ? 0.25 : -1
            return (0..<count).map { Float($0 * factor % 11) * 0.25 + least }
        }
        let (q, k, v) = (numbers(tokens * 6, 7), numbers(tokens * 3, 5), numbers(tokens * 4, 3))
        let gradient = numbers(tokens * 8, 8)
        tensors["in.q"] = .init(q, dtype, [1, tokens, 2, 3])
        tensors["in.k"] = .init(k, dtype, [1, tokens, 1, 3])
        tensors["in.v"] = .init(v, dtype, [1, tokens, 1, 4])
        tensors["cotangent.o"] = .init(gradient, dtype, [1, tokens, 2, 4])

        let decayShape = [
            "none": nil, "head": [2], "token": [1, tokens, 2], "key": [1, tokens, 2, 3],
        ][options.decay]!
        let g = decayShape.map { shape in
            (0..<shape.reduce(1, *)).map { Float($0 * 3 % 7) * -0.125 }
        }
        if let g, let decayShape { tensors["in.log_decay"] = .init(g, "F32", decayShape) }
        if let offsets = options.offsets {
            tensors["in.cu_seqlens"] = .init(integers: offsets, [offsets.count])
        }
        let sequences = (options.offsets?.count ?? 2) - 1
        let stateShape = [sequences, 2, 3, 4]
        let state = options.hasStates ? numbers(sequences * 24, 9) : nil
        if let state {
            tensors["in.initial_state"] = .init(state, "F32", stateShape)
            tensors["cotangent.final_state"] = .init(state, "F32", stateShape)
        }
        fillIn(options, q, k, v, g, state, gradient, stateShape)
    }

    /// Computes what is expected.
    private mutating func fillIn(
        _ options: LinearAttentionOptions, _ q: [Float], _ k: [Float], _ v: [Float], _ g: [Float]?,
        _ state: [Float]?, _ gradient: [Float], _ stateShape: [Int]
    ) {
        typealias Reference = LMKernelsReference.LinearAttention
        func doubles(_ x: [Float]) -> [Double] { x.map { Double($0) } }
        let decays = doubles(g ?? [])
        let tokens = options.tokens
        let problem = Reference.Problem(
            shape: .init(
                batch: 1, tokens: tokens, heads: 2, keyHeads: 1, keyWidth: 3, valueWidth: 4),
            query: doubles(q), key: doubles(k), value: doubles(v),
            decay: {
                switch options.decay {
                case "head": .head(decays)
                case "token": .token(decays)
                case "key": .key(decays)
                default: .none
                }
            }(), scale: 0.75, initialState: state.map(doubles), offsets: options.offsets,
            isCausal: options.isCausal, isNormalized: options.isNormalized)
        let output = Reference.forward(problem)
        let gradients = Reference.backward(
            problem, outputGradient: doubles(gradient),
            finalStateGradient: state.map(doubles))
        tensors["out.o"] = .init(float64: output.output, [1, tokens, 2, 4])
        if options.hasStates || (options.isCausal && !options.isNormalized) {
            tensors["out.final_state"] = .init(float64: output.finalState, stateShape)
        }
        tensors["grad.q"] = .init(float64: gradients.query, [1, tokens, 2, 3])
        tensors["grad.k"] = .init(float64: gradients.key, [1, tokens, 1, 3])
        tensors["grad.v"] = .init(float64: gradients.value, [1, tokens, 1, 4])
        if g != nil {
            tensors["grad.log_decay"] = .init(
                float64: gradients.decay, tensors["in.log_decay"]!.shape)
        }
        if state != nil {
            tensors["grad.initial_state"] = .init(float64: gradients.initialState, stateShape)
        }
        for name in tensors.keys where name.hasPrefix("out.") || name.hasPrefix("grad.") {
            let isFloat32 = options.dtype == "F32" || name.hasSuffix("state")
            // Measured: 1.4e-6 of states of bfloat16 on tiles.
            tolerances[name] = isFloat32 ? "3e-6" : options.dtype == "F16" ? "2e-3" : "1.5e-2"
        }
    }
}

/// Of linear attention with decays of tokens and states.
let malformedLinearAttention: [MalformedFile] = [
    .init("attribute causal is missing") { $0.attributes["causal"] = nil },
    .init("attribute causal is neither true nor false") { $0.attributes["causal"] = "1" },
    .init("attribute normalize is missing") { $0.attributes["normalize"] = nil },
    .init("attribute normalize is neither true nor false") { $0.attributes["normalize"] = "null" },
    .init("attribute scale is missing") { $0.attributes["scale"] = nil },
    .init("attribute scale is not a number") { $0.attributes["scale"] = "\"1\"" },
    .init("attribute scale is 1e+300, beyond") { $0.attributes["scale"] = "1e300" },
    .init("attribute decay is missing") { $0.attributes["decay"] = nil },
    .init("attribute decay is not a string") { $0.attributes["decay"] = "3" },
    .init("no attribute \"window\"") { $0.attributes["window"] = "3" },
    .init("no tensor \"in.log_decay\"") {
        $0.attributes["decay"] = "\"none\""
        $0.remove("grad.log_decay")
    },
    .init("in.log_decay is missing") {
        $0.remove("in.log_decay")
        $0.remove("grad.log_decay")
    },
    .init("in.log_decay has shape [1, 9, 2], not [B, T, H, K]") {
        $0.attributes["decay"] = "\"key\""
    },
    .init("in.log_decay has shape [1, 9, 2], not [H]") { $0.attributes["decay"] = "\"head\"" },
    .init("in.log_decay[3] is 0.5, allowed is at most 0") {
        $0.tensors["in.log_decay"]!.float32[3] = 0.5
    },
    .init("in.log_decay is BF16, allowed is F32") {
        $0.tensors["in.log_decay"] = .init(
            [Float](repeating: 0, count: 18), "BF16", [1, 9, 2])
    },
    .init("in.k has shape [1, 9, 3], not [B, T, G, K]") {
        $0.tensors["in.k"]!.shape = [1, 9, 3]
        $0.tensors["grad.k"]!.shape = [1, 9, 3]
    },
    .init("in.k has shape [1, 3, 3, 3], but T is 9 in in.q") {
        $0.tensors["in.k"]!.shape = [1, 3, 3, 3]
        $0.tensors["grad.k"]!.shape = [1, 3, 3, 3]
    },
    .init("in.q is F32, but in.v is F16") {
        $0.tensors["in.v"] = .init([Float](repeating: 0, count: 36), "F16", [1, 9, 1, 4])
    },
    .init("in.q is F64, allowed is F32, BF16, F16") {
        $0.tensors["in.q"] = .init(float64: [Double](repeating: 0, count: 54), [1, 9, 2, 3])
    },
    .init("G is 3, no divisor of H, 2") { file in
        for (name, width) in [("k", 3), ("v", 4)] {
            let zeros = [Double](repeating: 0, count: 27 * width)
            file.tensors["in." + name] = .init(zeros.map { Float($0) }, "F32", [1, 9, 3, width])
            file.tensors["grad." + name] = .init(float64: zeros, [1, 9, 3, width])
        }
    },
    .init("N is 2, but B is 1") { file in
        let zeros = [Double](repeating: 0, count: 48)
        for name in ["in.initial_state", "cotangent.final_state"] {
            file.tensors[name] = .init(zeros.map { Float($0) }, "F32", [2, 2, 3, 4])
        }
        for name in ["out.final_state", "grad.initial_state"] {
            file.tensors[name] = .init(float64: zeros, [2, 2, 3, 4])
        }
    },
    .init("N is 1, but the number of packed sequences is 2") {
        $0.tensors["in.cu_seqlens"] = .init(integers: [0, 4, 9], [3])
    },
    .init("in.cu_seqlens does not go from 0 to 9") {
        $0.tensors["in.cu_seqlens"] = .init(integers: [0, 8], [2])
    },
    .init("in.cu_seqlens does not go from 0 to 9") {
        $0.tensors["in.cu_seqlens"] = .init(integers: [1, 9], [2])
    },
    .init("in.cu_seqlens is I32, allowed is I64") {
        $0.tensors["in.cu_seqlens"] = .init(
            dtype: "I32", shape: [2], bytes: Array(repeating: 0, count: 8))
    },
    .init("states of the bidirectional form") { $0.attributes["causal"] = "false" },
    .init("out.o is missing") {
        $0.remove("out.o")
        $0.remove("cotangent.o")
    },
    .init("out.o has shape [1, 9, 4, 2], but H is 2 in in.q") {
        $0.tensors["out.o"]!.shape = [1, 9, 4, 2]
        $0.tensors["cotangent.o"]!.shape = [1, 9, 4, 2]
    },
    .init("cotangent.o is BF16, allowed is F32") {
        $0.tensors["cotangent.o"] = .init(
            [Float](repeating: 0, count: 72), "BF16", [1, 9, 2, 4])
    },
    .init("K is 0") { file in
        for name in ["in.q", "grad.q"] {
            file.tensors[name]!.shape = [1, 9, 2, 0]
            file.tensors[name]!.bytes = []
        }
        for name in ["in.k", "grad.k"] {
            file.tensors[name]!.shape = [1, 9, 1, 0]
            file.tensors[name]!.bytes = []
        }
    },
]
