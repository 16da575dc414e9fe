import LMKernels
import LMKernelsReference

@testable import lmk

extension VectorFile {
    /// What a vector of the delta rule has beyond the least.
    struct DeltaRuleOptions {
        var decay = "none"
        var dtype = "F32"
        var steps = 1
        var hasStates = false
        var offsets: [Int]?
        var tokens = 9
    }

    /// A vector of the delta rule, right unless it is changed: B 1, H 2, G 1, K 3, V 4.
    init(deltaRule options: DeltaRuleOptions) {
        self.init(rows: 0)
        tensors = [:]
        tolerances = [:]
        metadata["op"] = "delta_rule"
        attributes = [
            "scale": "0.75", "householder_steps": "\(options.steps)",
            "decay": "\"\(options.decay)\"",
        ]
        let (tokens, dtype) = (options.tokens, options.dtype)
        let rows = tokens * options.steps
        // Exact in every storage type; keys of a length below 1.
        func numbers(_ count: Int, _ factor: Int, _ size: Float = 0.25) -> [Float] {
            (0..<count).map { Float($0 * factor % 11 - 5) * size }
        }
        let (q, v) = (numbers(tokens * 6, 7), numbers(rows * 4, 3))
        let k = numbers(rows * 3, 5, 0.0625)
        let beta = (0..<rows * 2).map { Float($0 * 5 % 9) * 0.25 }
        let gradient = numbers(tokens * 8, 8)
        tensors["in.q"] = .init(q, dtype, [1, tokens, 2, 3])
        tensors["in.k"] = .init(k, dtype, [1, rows, 1, 3])
        tensors["in.v"] = .init(v, dtype, [1, rows, 1, 4])
        tensors["in.beta"] = .init(beta, "F32", [1, rows, 2])
        tensors["cotangent.o"] = .init(gradient, dtype, [1, tokens, 2, 4])

        let decayShape = [
            "none": nil, "token": [1, tokens, 2], "key": [1, tokens, 2, 3],
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
        fillIn(options, q, k, v, beta, g, state, gradient, stateShape)
    }

    /// Computes what is expected.
    private mutating func fillIn(
        _ options: DeltaRuleOptions, _ q: [Float], _ k: [Float], _ v: [Float], _ beta: [Float],
        _ g: [Float]?, _ state: [Float]?, _ gradient: [Float], _ stateShape: [Int]
    ) {
        typealias Reference = LMKernelsReference.DeltaRule
        func doubles(_ x: [Float]) -> [Double] { x.map { Double($0) } }
        let decays = doubles(g ?? [])
        let (tokens, rows) = (options.tokens, options.tokens * options.steps)
        let problem = Reference.Problem(
            shape: .init(
                batch: 1, tokens: tokens, heads: 2, keyHeads: 1, keyWidth: 3, valueWidth: 4,
                householderSteps: options.steps),
            query: doubles(q), key: doubles(k), value: doubles(v),
            update: .delta(.value(doubles(beta))),
            decay: options.decay == "none"
                ? .none : options.decay == "token" ? .token(decays) : .key(decays),
            scale: 0.75, initialState: state.map(doubles), offsets: options.offsets)
        let output = Reference.forward(problem)
        let gradients = Reference.backward(
            problem, outputGradient: doubles(gradient),
            finalStateGradient: state.map(doubles))
        tensors["out.o"] = .init(float64: output.output, [1, tokens, 2, 4])
        tensors["out.final_state"] = .init(float64: output.finalState, stateShape)
        tensors["grad.q"] = .init(float64: gradients.query, [1, tokens, 2, 3])
        tensors["grad.k"] = .init(float64: gradients.key, [1, rows, 1, 3])
        tensors["grad.v"] = .init(float64: gradients.value, [1, rows, 1, 4])
        tensors["grad.beta"] = .init(float64: gradients.beta, [1, rows, 2])
        if g != nil {
            tensors["grad.log_decay"] = .init(
                float64: gradients.decay, tensors["in.log_decay"]!.shape)
        }
        if state != nil {
            tensors["grad.initial_state"] = .init(float64: gradients.initialState, stateShape)
        }
        for name in tensors.keys where name.hasPrefix("out.") || name.hasPrefix("grad.") {
            let isFloat32 = options.dtype == "F32" || name.hasSuffix("state")
            // States of bfloat16 on tiles: 7.6e-6 measured.
            let ofFloat32 = name.hasPrefix("out.") && options.dtype == "BF16" ? "1e-5" : "3e-6"
            tolerances[name] = isFloat32 ? ofFloat32 : options.dtype == "F16" ? "2e-3" : "1.5e-2"
        }
    }
}

/// Of the delta rule with decays of tokens, two steps and states.
let malformedDeltaRule: [MalformedFile] = [
    .init("attribute scale is missing") { $0.attributes["scale"] = nil },
    .init("attribute decay is missing") { $0.attributes["decay"] = nil },
    .init("attribute decay is not a string") { $0.attributes["decay"] = "3" },
    .init("attribute householder_steps is missing") { $0.attributes["householder_steps"] = nil },
    .init("attribute householder_steps is not an integer") {
        $0.attributes["householder_steps"] = "1.5"
    },
    .init("attribute householder_steps is 0, at least 1 is needed") {
        $0.attributes["householder_steps"] = "0"
    },
    .init("T * R is 18, but T is 9 and R is 3") { $0.attributes["householder_steps"] = "3" },
    .init("T * R is 18, but T is 9 and R is 4611686018427387904") {
        $0.attributes["householder_steps"] = "4611686018427387904"
    },
    .init("no attribute \"causal\"") { $0.attributes["causal"] = "true" },
    .init("in.beta is missing") {
        $0.remove("in.beta")
        $0.remove("grad.beta")
    },
    .init("in.beta has shape [1, 9, 4], but T * R is 18 in in.k") {
        $0.tensors["in.beta"]!.shape = [1, 9, 4]
        $0.tensors["grad.beta"]!.shape = [1, 9, 4]
    },
    .init("in.beta is BF16, allowed is F32") {
        $0.tensors["in.beta"] = .init([Float](repeating: 0, count: 36), "BF16", [1, 18, 2])
    },
    .init("in.v has shape [1, 9, 2, 4], but T * R is 18 in in.k") {
        $0.tensors["in.v"]!.shape = [1, 9, 2, 4]
        $0.tensors["grad.v"]!.shape = [1, 9, 2, 4]
    },
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
    .init("in.log_decay[3] is 0.5, allowed is at most 0") {
        $0.tensors["in.log_decay"]!.float32[3] = 0.5
    },
    .init("in.q is F32, but in.v is F16") {
        $0.tensors["in.v"] = .init([Float](repeating: 0, count: 72), "F16", [1, 18, 1, 4])
    },
    .init("G is 3, no divisor of H, 2") { file in
        for (name, width) in [("k", 3), ("v", 4)] {
            let zeros = [Double](repeating: 0, count: 54 * width)
            file.tensors["in." + name] = .init(zeros.map { Float($0) }, "F32", [1, 18, 3, width])
            file.tensors["grad." + name] = .init(float64: zeros, [1, 18, 3, width])
        }
    },
    .init("N is 1, but the number of packed sequences is 2") {
        $0.tensors["in.cu_seqlens"] = .init(integers: [0, 4, 9], [3])
    },
    .init("in.cu_seqlens does not go from 0 to 9") {
        $0.tensors["in.cu_seqlens"] = .init(integers: [0, 18], [2])
    },
    .init("out.o is missing") {
        $0.remove("out.o")
        $0.remove("cotangent.o")
    },
    .init("cotangent.o is BF16, allowed is F32") {
        $0.tensors["cotangent.o"] = .init(
            [Float](repeating: 0, count: 72), "BF16", [1, 9, 2, 4])
    },
    .init("no tensor \"in.a\"") { $0.tensors["in.a"] = $0.tensors["in.k"] },
]
