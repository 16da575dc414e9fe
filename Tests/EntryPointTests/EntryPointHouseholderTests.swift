import CLMKCore
import CLMKDeltaRule
import Testing

/// What the C functions of Householder products refuse.
@Suite struct EntryPointHouseholderTests {
    private enum Kind: CaseIterable { case form, apply, backward }

    private struct Product {
        var application = lmk_householder_application()
        var gradients = lmk_householder_gradients()
        var y: UnsafeMutablePointer<Float>?
        var yStride = 5
        var yBatchStride = 20
        var t: UnsafeMutablePointer<Float>?
        var tStride = 3
        var tBatchStride = 9
        /// Bytes missing from the workspace.
        var missing = 0
        var hasWorkspace = true
    }

    /// Two products of 3 factors of 4 dimensions, and [4, 5] matrices: a call that would go well,
    /// but for `change`.
    private func refused(_ kind: Kind, _ change: (inout Product) -> Void) -> String? {
        let (k, beta, x, dy) = (Floats(24), Floats(6), Floats(40), Floats(40))
        let (y, t, dk, dbeta, dx) = (Floats(40), Floats(18), Floats(24), Floats(6), Floats(40))
        var call = Product()
        call.application.product.batch = 2
        call.application.product.factors = 3
        call.application.product.dim = 4
        call.application.product.k = .init(k.pointer)
        (call.application.product.k_stride, call.application.product.k_batch_stride) = (4, 12)
        call.application.product.beta = .init(beta.pointer)
        call.application.product.beta_batch_stride = 3
        call.application.product.threads = 1
        call.application.vectors = 5
        call.application.x = .init(x.pointer)
        (call.application.x_stride, call.application.x_batch_stride) = (5, 20)
        call.gradients.dy = .init(dy.pointer)
        (call.gradients.dy_stride, call.gradients.dy_batch_stride) = (5, 20)
        call.gradients.dk = .init(dk.pointer)
        (call.gradients.dk_stride, call.gradients.dk_batch_stride) = (4, 12)
        (call.gradients.dbeta, call.gradients.dbeta_batch_stride) = (dbeta.pointer, 3)
        call.gradients.dx = .init(dx.pointer)
        (call.gradients.dx_stride, call.gradients.dx_batch_stride) = (5, 20)
        (call.y, call.t) = (y.pointer, t.pointer)
        change(&call)
        var application = call.application
        let size =
            switch kind {
            case .form: lmk_householder_wy_workspace_size(&application.product)
            case .apply: lmk_householder_apply_workspace_size(&application)
            case .backward: lmk_householder_backward_workspace_size(&application)
            }
        let scratch = Scratch(size, offset: 4)
        let memory = call.hasWorkspace ? scratch.pointer : nil
        let found = refusal { error in
            switch kind {
            case .form:
                lmk_householder_wy(
                    &application.product, call.t, call.tStride, call.tBatchStride, memory,
                    size - call.missing, error)
            case .apply:
                lmk_householder_apply(
                    &application, call.y, call.yStride, call.yBatchStride, memory,
                    size - call.missing, error)
            case .backward:
                lmk_householder_backward(
                    &application, &call.gradients, memory, size - call.missing, error)
            }
        }
        let all = [y, t, dk, dbeta, dx]
        #expect(found == nil || all.allSatisfy(\.areUntouched), "nothing is written")
        #expect(scratch.isWithinBounds)
        return found
    }

    private func expect(
        _ message: String?, _ kinds: [Kind] = Kind.allCases, _ change: (inout Product) -> Void
    ) {
        for kind in kinds { #expect(refused(kind, change) == message, "\(kind)") }
    }

    @Test func factors() {
        expect(nil) { _ in }
        expect("dtype is 3, allowed is a storage type") {
            $0.application.product.dtype = outside(3)
        }
        expect("k is null") { $0.application.product.k = nil }
        expect("beta is null") { $0.application.product.beta = nil }
        expect("k_stride is 3, at least 4") { $0.application.product.k_stride = 3 }
        expect("k overflows") { $0.application.product.k_stride = 1 << 62 }
        expect("k overflows") { $0.application.product.k_batch_stride = 1 << 62 }
        expect("beta overflows") { $0.application.product.beta_batch_stride = 1 << 62 }
        // The same factors throughout.
        expect(nil) {
            $0.application.product.k_batch_stride = 0
            $0.application.product.beta_batch_stride = 0
        }
    }

    @Test func matrices() {
        let both: [Kind] = [.apply, .backward]
        expect("side is 2, allowed is left or right", both) { $0.application.side = outside(2) }
        expect("x is null", both) { $0.application.x = nil }
        expect("x_stride is 4, at least 5", both) { $0.application.x_stride = 4 }
        expect("x overflows", both) { $0.application.x_batch_stride = .max }
        expect("y is null", [.apply]) { $0.y = nil }
        expect("y_stride is 4, at least 5", [.apply]) { $0.yStride = 4 }
        expect("y_batch_stride is 19, at least 20", [.apply]) { $0.yBatchStride = 19 }
        expect("dy is null", [.backward]) { $0.gradients.dy = nil }
        expect("dy_stride is 1, at least 5", [.backward]) { $0.gradients.dy_stride = 1 }
        expect("dx_batch_stride is 0, at least 20", [.backward]) {
            $0.gradients.dx_batch_stride = 0
        }
        expect("dk_stride is 3, at least 4", [.backward]) { $0.gradients.dk_stride = 3 }
        expect("dk_batch_stride is 11, at least 12", [.backward]) {
            $0.gradients.dk_batch_stride = 11
        }
        expect("dbeta_batch_stride is 2, at least 3", [.backward]) {
            $0.gradients.dbeta_batch_stride = 2
        }
        expect("t is null", [.form]) { $0.t = nil }
        expect("t_stride is 2, at least 3", [.form]) { $0.tStride = 2 }
        expect("t_batch_stride is 8, at least 9", [.form]) { $0.tBatchStride = 8 }
        // What is not asked for has no strides.
        expect(nil, [.backward]) {
            ($0.gradients.dk, $0.gradients.dk_stride) = (nil, 0)
            ($0.gradients.dx, $0.gradients.dx_stride) = (nil, 0)
            ($0.gradients.dbeta, $0.gradients.dbeta_batch_stride) = (nil, 0)
        }
    }

    @Test func workspaces() {
        for kind in Kind.allCases {
            let found = refused(kind) { $0.missing = 1 } ?? ""
            #expect(found.hasPrefix("workspace is "), "\(kind)")
            #expect(refused(kind) { $0.hasWorkspace = false } == "workspace is null")
        }
        // Sizes that fit where they are, but not in a workspace.
        expect("factors overflows", [.apply, .backward]) {
            $0.application.product.batch = 1
            $0.application.product.factors = 1 << 30
            $0.application.product.dim = 1 << 30
            $0.application.product.k_stride = 1 << 30
            $0.application.vectors = 1
        }
    }
}
