import CLMKCore
import CLMKDeltaRule
import CLMKLinearAttention
import Testing

/// What the C functions of the delta rule refuse, and calls that only C can make.
@Suite struct EntryPointDeltaRuleTests {
    /// [1, tokens, 1, width], with `steps` for each token.
    private struct Call {
        var rule = lmk_delta_rule()
        var results = lmk_delta_rule_results()
        var gradients = lmk_delta_rule_gradients()
        let (q, k, v, beta, o): (Floats, Floats, Floats, Floats, Floats)
        let (g, a, b, state): (Floats, Floats, Floats, Floats)
        let (dq, dk, dv, dbeta): (Floats, Floats, Floats, Floats)
        let (dg, da, db, dstate): (Floats, Floats, Floats, Floats)
        /// Bytes less than the call says that it needs.
        var missing = 0
        var hasWorkspace = true
        /// Bytes from a multiple of 64 to the workspace.
        var offset = 0

        init(tokens: Int, steps: Int = 1, keyDim: Int, valueDim: Int) {
            let rows = tokens * steps
            (q, k, v) = (Floats(tokens * keyDim), Floats(rows * keyDim), Floats(rows * valueDim))
            (beta, o) = (Floats(rows), Floats(tokens * valueDim))
            (g, a, b) = (
                Floats(tokens * keyDim), Floats(tokens * keyDim), Floats(tokens * keyDim)
            )
            state = Floats(keyDim * valueDim)
            (dq, dk, dv) = (Floats(q.count), Floats(k.count), Floats(v.count))
            (dbeta, dg, da, db) = (
                Floats(beta.count), Floats(g.count), Floats(a.count), Floats(b.count)
            )
            dstate = Floats(state.count)
            func strides(_ tokens: Int, _ width: Int) -> lmk_token_strides {
                lmk_token_strides(batch: tokens * width, token: width, head: width)
            }
            (rule.batch, rule.tokens, rule.steps) = (1, tokens, steps)
            (rule.heads, rule.key_heads) = (1, 1)
            (rule.key_dim, rule.value_dim) = (keyDim, valueDim)
            (rule.q, rule.q_strides) = (.init(q.pointer), strides(tokens, keyDim))
            (rule.k, rule.k_strides) = (.init(k.pointer), strides(rows, keyDim))
            (rule.v, rule.v_strides) = (.init(v.pointer), strides(rows, valueDim))
            (rule.beta, rule.beta_strides) = (.init(beta.pointer), strides(rows, 1))
            (results.o, results.o_strides) = (.init(o.pointer), strides(tokens, valueDim))
            rule.scale = 1
            rule.threads = 1
            (gradients.output, gradients.output_strides) = (
                results.o.map { .init($0) }, results.o_strides
            )
            (gradients.q, gradients.q_strides) = (.init(dq.pointer), rule.q_strides)
            (gradients.k, gradients.k_strides) = (.init(dk.pointer), rule.k_strides)
            (gradients.v, gradients.v_strides) = (.init(dv.pointer), rule.v_strides)
            (gradients.beta, gradients.beta_strides) = (.init(dbeta.pointer), rule.beta_strides)
            gradients.initial_state = dstate.pointer
        }

        /// With log-decays of keys.
        mutating func decay() {
            rule.decay = .LMK_DECAY_KEY
            (rule.log_decay, rule.log_decay_strides) = (.init(g.pointer), rule.q_strides)
            (gradients.log_decay, gradients.log_decay_strides) = (.init(dg.pointer), rule.q_strides)
        }

        mutating func generalize() {
            rule.is_generalized = 1
            rule.beta = nil
            gradients.beta = nil
            (rule.a, rule.a_strides) = (.init(a.pointer), rule.q_strides)
            (rule.b, rule.b_strides) = (.init(b.pointer), rule.q_strides)
            (gradients.a, gradients.a_strides) = (.init(da.pointer), rule.q_strides)
            (gradients.b, gradients.b_strides) = (.init(db.pointer), rule.q_strides)
        }

        /// Small numbers, and log-decays below 0.
        func fill() {
            for x in [q, k, v, beta, a, b, state, o] {
                for i in 0..<x.count { x.pointer[i] = Float(i * 37 % 64 - 30) / 512 }
            }
            for i in 0..<g.count { g.pointer[i] = -Float(i * 37 % 64) / 64 }
        }

        var areResultsUntouched: Bool {
            [o, dq, dk, dv, dbeta, dg, da, db, dstate].allSatisfy(\.areUntouched)
        }

        func forward() -> String? {
            var (rule, results) = (rule, results)
            return run(lmk_delta_rule_workspace_size(&rule)) { memory, size, error in
                lmk_delta_rule_forward(&rule, &results, memory, size, error)
            }
        }

        func backward() -> String? {
            var (rule, gradients) = (rule, gradients)
            return run(lmk_delta_rule_backward_workspace_size(&rule)) { memory, size, error in
                lmk_delta_rule_backward(&rule, &gradients, memory, size, error)
            }
        }

        private func run(
            _ needed: Int,
            _ call: (UnsafeMutableRawPointer?, Int, UnsafeMutablePointer<lmk_error>) -> lmk_status
        ) -> String? {
            let size = max(0, needed - missing)
            let memory = Scratch(max(size, 64), offset: offset)
            let found = refusal { call(hasWorkspace ? memory.pointer : nil, size, $0) }
            #expect(memory.isWithinBounds)
            return found
        }
    }

    private func call(_ change: (inout Call) -> Void) -> Call {
        var call = Call(tokens: 3, steps: 2, keyDim: 4, valueDim: 5)
        change(&call)
        return call
    }

    private func forward(_ change: (inout Call) -> Void) -> String? {
        let call = call(change)
        let found = call.forward()
        #expect(found == nil || call.areResultsUntouched, "nothing is written")
        return found
    }

    private func backward(_ change: (inout Call) -> Void) -> String? {
        let call = call(change)
        let found = call.backward()
        #expect(found == nil || call.areResultsUntouched, "nothing is written")
        return found
    }

    /// The same refusal of both.
    private func both(_ change: (inout Call) -> Void) -> String? {
        let (first, second) = (forward(change), backward(change))
        #expect(first == second)
        return first
    }

    @Test func refusals() {
        #expect(both { _ in } == nil)
        #expect(both { $0.rule.form = outside(3) } == "form is 3, allowed is a form")
        #expect(both { $0.rule.dtype = outside(3) } == "dtype is 3, allowed is a storage type")
        for decay in [UInt32(1), 4] {
            #expect(
                both { $0.rule.decay = outside(decay) }
                    == "decay is \(decay), allowed is none, of tokens or of keys")
        }
        #expect(
            both { $0.rule.beta_kind = outside(3) } == "beta_kind is 3, allowed is a kind of rate")
        #expect(both { $0.rule.steps = 0 } == "steps is 0, at least 1")
        #expect(both { $0.rule.steps = .max / 2 } == "steps overflows")
        #expect(both { $0.rule.key_dim = 513 } == "key_dim is 513, allowed is from 1 to 512")
        #expect(both { $0.rule.value_dim = 0 } == "value_dim is 0, allowed is from 1 to 512")
        #expect(both { $0.rule.v_strides.token = 4 } == "v_strides.token is 4, at least 5")
        #expect(both { $0.rule.beta_strides.token = 0 } == "beta_strides.token is 0, at least 1")
        #expect(
            both {
                $0.decay()
                $0.rule.log_decay_strides.token = 3
            } == "log_decay_strides.token is 3, at least 4")
        #expect(
            forward { $0.results.o_strides.token = 4 } == "o_strides.token is 4, at least 5")
        #expect(
            forward { $0.results.states = $0.dstate.pointer } == "state_stride is 0, at least 1")
        #expect(
            backward { $0.gradients.output_strides.token = 4 }
                == "output_strides.token is 4, at least 5")
        #expect(
            backward { $0.gradients.k_strides.token = 3 } == "dk_strides.token is 3, at least 4")
    }

    /// Numbers that are in range and whose products are not.
    @Test func hugeNumbers() {
        for steps in [1 << 61, 1 << 62 - 1, .max] {
            for form in 0..<3 as Range<UInt32> {
                #expect(
                    both {
                        $0.rule.form = outside(form)
                        ($0.rule.tokens, $0.rule.steps) = (0, steps)
                        $0.gradients.output = nil
                    } == nil)
            }
        }
        for stride in [Int.max, 1 << 62, Int.max / 2, 4] {
            for form in 0..<3 as Range<UInt32> {
                // No token reaches the first multiple: nothing is stored.
                // 4 steps of 2^62 tokens are 2^64.
                var call = Call(tokens: 3, steps: 4, keyDim: 4, valueDim: 5)
                call.rule.form = outside(form)
                call.results.states = call.dstate.pointer
                call.results.state_stride = stride
                call.fill()
                #expect(call.forward() == nil)
                #expect(call.dstate.areUntouched)
            }
        }
    }

    @Test func nullPointers() {
        #expect(both { $0.rule.q = nil } == "q is null")
        #expect(both { $0.rule.k = nil } == "k is null")
        #expect(both { $0.rule.v = nil } == "v is null")
        #expect(both { $0.rule.beta = nil } == "beta is null")
        #expect(
            both {
                $0.decay()
                $0.rule.log_decay = nil
            } == "log_decay is null")
        #expect(backward { $0.gradients.output = nil } == "output is null")
        // What is not asked for needs no array.
        #expect(forward { $0.results = lmk_delta_rule_results() } == nil)
        #expect(
            forward {
                $0.results.o = nil
                $0.rule.q = nil
                $0.results.final_state = $0.dstate.pointer
            } == nil)
        // Nor do no tokens.
        #expect(
            both {
                $0.rule.tokens = 0
                ($0.rule.q, $0.rule.k, $0.rule.v, $0.rule.beta) = (nil, nil, nil, nil)
                $0.gradients.output = nil
            } == nil)
    }

    @Test func generalizedForm() {
        func one(_ change: (inout Call) -> Void) -> String? {
            both {
                $0 = Call(tokens: 3, keyDim: 4, valueDim: 5)
                $0.generalize()
                change(&$0)
            }
        }
        #expect(one { _ in } == nil)
        #expect(one { $0.rule.a = nil } == "a is null")
        #expect(one { $0.rule.b = nil } == "b is null")
        #expect(one { $0.rule.a_strides.token = 3 } == "a_strides.token is 3, at least 4")
        #expect(one { $0.rule.steps = 2 } == "steps is 2, allowed is 1 in the generalised form")
        #expect(
            one { $0.rule.beta = .init($0.beta.pointer) }
                == "beta: none in the generalised form")
        #expect(
            both { $0.rule.a = .init($0.a.pointer) } == "a: only in the generalised form")
        #expect(
            both { $0.rule.b = .init($0.b.pointer) } == "b: only in the generalised form")
    }

    @Test func workspaces() {
        for form in 0..<3 as Range<UInt32> {
            for change in [
                { _ in }, { $0.decay() },
                {
                    $0 = Call(tokens: 3, keyDim: 4, valueDim: 5)
                    $0.generalize()
                },
            ] as [(inout Call) -> Void] {
                func make(_ missing: Int, _ hasWorkspace: Bool, _ offset: Int) -> Call {
                    var call = call(change)
                    call.rule.form = outside(form)
                    call.missing = missing
                    call.hasWorkspace = hasWorkspace
                    call.offset = offset
                    return call
                }
                var rule = make(0, true, 0).rule
                let needed = lmk_delta_rule_workspace_size(&rule)
                let ofGradients = lmk_delta_rule_backward_workspace_size(&rule)
                #expect(needed > 0 && ofGradients > 0)
                #expect(
                    make(1, true, 0).forward()
                        == "workspace is \(needed - 1), at least \(needed)")
                #expect(
                    make(1, true, 0).backward()
                        == "workspace is \(ofGradients - 1), at least \(ofGradients)")
                #expect(make(0, false, 0).forward() == "workspace is null")
                #expect(make(0, false, 0).backward() == "workspace is null")
                // It may begin anywhere, and nothing past its end is touched.
                for offset in [0, 1, 4, 63] {
                    let call = make(0, true, offset)
                    call.fill()
                    #expect(call.forward() == nil)
                    #expect(call.backward() == nil)
                }
            }
        }
        // A size of 0 is that of a call that is refused.
        var rule = call { $0.rule.steps = 0 }.rule
        #expect(lmk_delta_rule_workspace_size(&rule) == 0)
        #expect(lmk_delta_rule_backward_workspace_size(&rule) == 0)
    }

    /// The last state in place of the first, and the gradient of one in place of that of the other.
    @Test func statesInPlace() {
        func values(_ x: Floats) -> [UInt32] { (0..<x.count).map { x.pointer[$0].bitPattern } }
        for tokens in [1, 2, 40] {
            var apart = Call(tokens: tokens, steps: 2, keyDim: 64, valueDim: 64)
            apart.decay()
            apart.fill()
            apart.rule.initial_state = .init(apart.state.pointer)
            apart.results.final_state = apart.dstate.pointer
            #expect(apart.forward() == nil)
            var same = Call(tokens: tokens, steps: 2, keyDim: 64, valueDim: 64)
            same.decay()
            same.fill()
            same.rule.initial_state = .init(same.state.pointer)
            same.results.final_state = same.state.pointer
            same.rule.threads = 8
            #expect(same.forward() == nil)
            #expect(values(same.o) == values(apart.o))
            #expect(values(same.state) == values(apart.dstate))

            let upstream = Floats(64 * 64)
            for i in 0..<upstream.count { upstream.pointer[i] = Float(i % 13) / 16 }
            apart.results.final_state = nil
            apart.gradients.final_state = .init(upstream.pointer)
            #expect(apart.backward() == nil)
            let gradient = values(apart.dstate)
            apart.gradients.final_state = .init(upstream.pointer)
            apart.gradients.initial_state = upstream.pointer
            #expect(apart.backward() == nil)
            #expect(values(upstream) == gradient)
        }
    }
}
