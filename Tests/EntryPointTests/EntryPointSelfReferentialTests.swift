import CLMKCore
import CLMKDeltaRule
import Testing

/// What the C functions of the self-referential weight matrix refuse.
@Suite struct EntryPointSelfReferentialTests {
    private struct Matrix {
        var matrix = lmk_self_referential()
        var gradients = lmk_self_referential_gradients()
        var y: UnsafeMutablePointer<Float>?
        var yStrides = lmk_token_strides(batch: 10, token: 5, head: 5)
        var final: UnsafeMutablePointer<Float>?
        var missing = 0
        var hasWorkspace = true
    }

    /// Two sequences of 2 tokens and one head, D = 4 and E = 5.
    private func refused(isBackward: Bool, _ change: (inout Matrix) -> Void) -> String? {
        let (x, start, dy) = (Floats(16), Floats(136), Floats(20))
        let (y, final, dx, dstart) = (Floats(20), Floats(136), Floats(16), Floats(136))
        var call = Matrix()
        (call.matrix.batch, call.matrix.tokens, call.matrix.heads) = (2, 2, 1)
        (call.matrix.key_dim, call.matrix.value_dim) = (4, 5)
        call.matrix.x = .init(x.pointer)
        call.matrix.x_strides = .init(batch: 8, token: 4, head: 4)
        call.matrix.initial_matrix = .init(start.pointer)
        call.matrix.threads = 1
        (call.y, call.final) = (y.pointer, final.pointer)
        call.gradients.dy = .init(dy.pointer)
        call.gradients.dy_strides = call.yStrides
        call.gradients.dx = .init(dx.pointer)
        call.gradients.dx_strides = call.matrix.x_strides
        call.gradients.dinitial_matrix = dstart.pointer
        change(&call)
        let size =
            isBackward
            ? lmk_self_referential_backward_workspace_size(&call.matrix)
            : lmk_self_referential_workspace_size(&call.matrix)
        let scratch = Scratch(size, offset: 4)
        let memory = call.hasWorkspace ? scratch.pointer : nil
        let found = refusal { error in
            isBackward
                ? lmk_self_referential_backward(
                    &call.matrix, &call.gradients, memory, size - call.missing, error)
                : lmk_self_referential_forward(
                    &call.matrix, call.y, call.yStrides, call.final, memory, size - call.missing,
                    error)
        }
        let all = [y, final, dx, dstart]
        #expect(found == nil || all.allSatisfy(\.areUntouched), "nothing is written")
        #expect(scratch.isWithinBounds)
        return found
    }

    private func expect(
        _ message: String?, isBackward: [Bool] = [false, true], _ change: (inout Matrix) -> Void
    ) {
        for isBackward in isBackward {
            #expect(
                refused(isBackward: isBackward, change) == message, "backward: \(isBackward)")
        }
    }

    @Test func selfReferentialMatrix() {
        #expect(lmk_self_referential_rows(4, 5) == 17)
        expect(nil) { _ in }
        expect("dtype is 3, allowed is a storage type") { $0.matrix.dtype = outside(3) }
        expect("heads is 0, at least 1") { $0.matrix.heads = 0 }
        expect("key_dim is 513, allowed is from 1 to 512") { $0.matrix.key_dim = 513 }
        expect("value_dim is 0, allowed is from 1 to 512") { $0.matrix.value_dim = 0 }
        expect("x is null") { $0.matrix.x = nil }
        expect("x_strides.token is 3, at least 4") { $0.matrix.x_strides.token = 3 }
        expect("initial_matrix is null") { $0.matrix.initial_matrix = nil }
        expect("batch overflows") { $0.matrix.batch = 1 << 60 }
        expect("y is null", isBackward: [false]) { $0.y = nil }
        expect("y_strides.batch is 9, at least 10", isBackward: [false]) { $0.yStrides.batch = 9 }
        expect("dy is null", isBackward: [true]) { $0.gradients.dy = nil }
        expect("dx_strides.token is 1, at least 4", isBackward: [true]) {
            $0.gradients.dx_strides.token = 1
        }
        expect(
            "final_matrix: not the initial one where it is shared", isBackward: [false]
        ) {
            $0.matrix.shares_initial_matrix = 1
            $0.final = .init(mutating: $0.matrix.initial_matrix)
        }
        expect(
            "dinitial_matrix: not dfinal_matrix where the initial one is shared",
            isBackward: [true]
        ) {
            $0.matrix.shares_initial_matrix = 1
            $0.gradients.dfinal_matrix = .init($0.gradients.dinitial_matrix)
        }
        for isBackward in [false, true] {
            let found = refused(isBackward: isBackward) { $0.missing = 1 } ?? ""
            #expect(found.hasPrefix("workspace is "))
            #expect(
                refused(isBackward: isBackward) { $0.hasWorkspace = false } == "workspace is null")
        }
        // In place.
        expect(nil, isBackward: [false]) { $0.final = .init(mutating: $0.matrix.initial_matrix) }
        expect(nil, isBackward: [true]) {
            $0.gradients.dfinal_matrix = .init($0.gradients.dinitial_matrix)
        }
    }
}
