import CLMKCore
import CLMKLinearAttention
import Testing

/// What the C functions of linear attention refuse, and calls that only C can make.
@Suite struct EntryPointLinearAttentionTests {
    /// [1, tokens, 1, width], with a normaliser where asked for.
    private struct Call {
        var attention = lmk_linear_attention()
        var results = lmk_linear_attention_results()
        let (q, k, v, o): (Floats, Floats, Floats, Floats)
        let (state, normalizer): (Floats, Floats)

        init(tokens: Int, keyDim: Int, valueDim: Int, isNormalized: Bool = false) {
            (q, k) = (Floats(tokens * keyDim), Floats(tokens * keyDim))
            (v, o) = (Floats(tokens * valueDim), Floats(tokens * valueDim))
            (state, normalizer) = (Floats(keyDim * valueDim), Floats(keyDim))
            let keys = lmk_token_strides(batch: tokens * keyDim, token: keyDim, head: keyDim)
            let values = lmk_token_strides(
                batch: tokens * valueDim, token: valueDim, head: valueDim)
            (attention.batch, attention.tokens) = (1, tokens)
            (attention.heads, attention.key_heads) = (1, 1)
            (attention.key_dim, attention.value_dim) = (keyDim, valueDim)
            (attention.q, attention.q_strides) = (.init(q.pointer), keys)
            (attention.k, attention.k_strides) = (.init(k.pointer), keys)
            (attention.v, attention.v_strides) = (.init(v.pointer), values)
            (results.o, results.o_strides) = (.init(o.pointer), values)
            attention.scale = 1
            attention.threads = 1
            attention.is_normalized = isNormalized ? 1 : 0
        }

        /// Positive numbers, so that divisors are too.
        func fill() {
            for x in [q, k, v, state, normalizer] {
                for i in 0..<x.count { x.pointer[i] = Float(i * 37 % 64 + 1) / 64 }
            }
        }

        func run() -> String? {
            var (attention, results) = (attention, results)
            let size = lmk_linear_attention_workspace_size(&attention)
            let memory = Scratch(max(size, 64))
            return refusal {
                lmk_linear_attention_forward(&attention, &results, memory.pointer, size, $0)
            }
        }
    }

    private func refused(_ change: (inout Call) -> Void) -> String? {
        var call = Call(tokens: 3, keyDim: 4, valueDim: 5)
        change(&call)
        let found = call.run()
        #expect(found == nil || call.o.areUntouched, "nothing is written")
        return found
    }

    @Test func refusals() {
        #expect(refused { _ in } == nil)
        #expect(refused { $0.attention.form = outside(3) } == "form is 3, allowed is a form")
        #expect(
            refused { $0.attention.decay = outside(4) } == "decay is 4, allowed is a kind of decay")
        #expect(
            refused { $0.attention.key_dim = 513 } == "key_dim is 513, allowed is from 1 to 512")
        #expect(refused { $0.attention.q = nil } == "q is null")
        #expect(
            refused { $0.attention.v_strides.token = 4 } == "v_strides.token is 4, at least 5")
        #expect(
            refused { $0.attention.decay = .LMK_DECAY_TOKEN }
                == "log_decay_strides.token is 0, at least 1")
        #expect(
            refused { $0.results.states = $0.state.pointer } == "state_stride is 0, at least 1")
        #expect(
            refused { $0.results.final_normalizer = $0.normalizer.pointer }
                == "final_normalizer: only with a normaliser")
    }

    /// A stride of states counts only where states are asked for.
    @Test func recurrenceWithoutStates() {
        var call = Call(tokens: 5, keyDim: 4, valueDim: 5)
        call.attention.form = .LMK_LINEAR_ATTENTION_RECURRENT
        call.fill()
        #expect(call.run() == nil)
    }

    /// Threads that share a head do not read a normaliser that another has moved on.
    @Test func normalizerInPlace() {
        func outputs(threads: UInt32, inPlace: Bool) -> [UInt32] {
            var call = Call(tokens: 64, keyDim: 64, valueDim: 256, isNormalized: true)
            call.fill()
            call.attention.threads = threads
            call.attention.initial_state = .init(call.state.pointer)
            call.attention.initial_normalizer = .init(call.normalizer.pointer)
            if inPlace {
                call.results.final_state = call.state.pointer
                call.results.final_normalizer = call.normalizer.pointer
            }
            #expect(call.run() == nil)
            return (0..<call.o.count).map { call.o.pointer[$0].bitPattern }
        }
        let expected = outputs(threads: 1, inPlace: false)
        for _ in 0..<20 { #expect(outputs(threads: 8, inPlace: true) == expected) }
    }

    // MARK: Pieces

    /// [decay, state, normalizer] of pieces with one state of 2 keys and 3 columns.
    private struct Piece {
        let (decay, state, normalizer): (Floats, Floats, Floats)

        init(_ start: Float) {
            (decay, state, normalizer) = (Floats(2), Floats(6), Floats(2))
            for x in [decay, state, normalizer] {
                for i in 0..<x.count { x.pointer[i] = start * Float(i + 1) }
            }
        }

        var piece: lmk_linear_attention_piece {
            lmk_linear_attention_piece(
                decay: decay.pointer, state: state.pointer, normalizer: normalizer.pointer)
        }

        var values: [[Float]] {
            [decay, state, normalizer].map { x in (0..<x.count).map { x.pointer[$0] } }
        }
    }

    /// The result may be either of the two.
    @Test func combineInPlace() {
        func combined(_ result: (Piece, Piece) -> Piece) -> [[Float]] {
            let (first, second) = (Piece(0.75), Piece(0.5))
            let to = result(first, second)
            var (a, b, c) = (first.piece, second.piece, to.piece)
            #expect(refusal { lmk_linear_attention_combine(1, 2, 3, &a, &b, &c, $0) } == nil)
            return to.values
        }
        let expected = combined { _, _ in Piece(0) }
        #expect(expected == [[0.375, 1.5], [0.875, 1.75, 2.625, 5, 6.25, 7.5], [0.875, 2.5]])
        #expect(combined { first, _ in first } == expected)
        #expect(combined { _, second in second } == expected)
    }

    /// Neither a start nor a bonus belongs to a piece.
    @Test func partialStateAlone() {
        func piece(_ change: (inout lmk_linear_attention, Call) -> Void) -> [Float] {
            let call = Call(tokens: 20, keyDim: 4, valueDim: 5, isNormalized: true)
            call.fill()
            var attention = call.attention
            change(&attention, call)
            let (state, normalizer) = (Floats(20), Floats(4))
            var piece = lmk_linear_attention_piece(
                decay: nil, state: state.pointer, normalizer: normalizer.pointer)
            let size = lmk_linear_attention_workspace_size(&attention)
            let memory = Scratch(size)
            let found = refusal {
                lmk_linear_attention_partial_state(&attention, &piece, memory.pointer, size, $0)
            }
            #expect(found == nil)
            return [state, normalizer].flatMap { x in (0..<x.count).map { x.pointer[$0] } }
        }
        let expected = piece { _, _ in }
        let found = piece { attention, call in
            attention.initial_state = .init(call.state.pointer)
            attention.initial_normalizer = .init(call.normalizer.pointer)
            attention.bonus = .init(call.normalizer.pointer)
        }
        #expect(found == expected)
    }
}
