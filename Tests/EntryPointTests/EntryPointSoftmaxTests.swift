import CLMKCore
import CLMKSoftmax
import Testing

/// What the C functions of rows refuse.
@Suite struct EntryPointSoftmaxTests {
    /// A call on [3, 4] that would go well, but for `change`.
    private struct Call {
        var softmax = lmk_softmax()
        var gradients = lmk_softmax_gradients()
        var y: UnsafeMutablePointer<Float>?
        var yStride = 4
        var logSumExp: UnsafeMutablePointer<Float>?
        var workspace: Int?
        var hasWorkspace = true
    }

    private func refused(isBackward: Bool, _ change: (inout Call) -> Void) -> String? {
        let (x, y, dy, dx) = (Floats(12), Floats(12), Floats(12), Floats(12))
        let (logSumExp, dscale) = (Floats(3), Floats(3))
        var call = Call()
        (call.softmax.rows, call.softmax.columns) = (3, 4)
        (call.softmax.x, call.softmax.x_stride) = (UnsafeRawPointer(x.pointer), 4)
        call.softmax.scale = 1
        call.softmax.threads = 1
        (call.y, call.logSumExp) = (y.pointer, logSumExp.pointer)
        (call.gradients.y, call.gradients.y_stride) = (UnsafeRawPointer(y.pointer), 4)
        (call.gradients.dy, call.gradients.dy_stride) = (.init(dy.pointer), 4)
        (call.gradients.dx, call.gradients.dx_stride) = (.init(dx.pointer), 4)
        call.gradients.dscale = dscale.pointer
        change(&call)
        var (softmax, gradients) = (call.softmax, call.gradients)
        let size = call.workspace ?? lmk_softmax_workspace_size(&softmax)
        let memory = Scratch(size)
        let workspace = call.hasWorkspace ? memory.pointer : nil
        let found = refusal { error in
            if isBackward {
                lmk_softmax_backward(&softmax, &gradients, workspace, size, error)
            } else {
                lmk_softmax_forward(
                    &softmax, call.y, call.yStride, call.logSumExp, workspace, size, error)
            }
        }
        let all = [x, y, dy, dx, logSumExp, dscale]
        #expect(found == nil || all.allSatisfy(\.areUntouched), "nothing is written")
        return found
    }

    private func expect(_ message: String?, _ change: (inout Call) -> Void) {
        for isBackward in [false, true] {
            #expect(
                refused(isBackward: isBackward, change) == message,
                "backward: \(isBackward)")
        }
    }

    @Test func options() {
        expect(nil) { _ in }
        expect("function is 5, allowed is a function of rows") {
            $0.softmax.function = outside(5)
        }
        expect("algorithm is 4, allowed is an algorithm") {
            $0.softmax.algorithm = outside(4)
        }
        expect("dtype is 3, allowed is a storage type") {
            $0.softmax.dtype = outside(3)
        }
        expect("scale is nan, allowed is finite") { $0.softmax.scale = .nan }
        expect("columns is 0, at least 1") { $0.softmax.columns = 0 }
        let limit = Int64(1) << 62
        expect("causal_offset is \(limit + 1), allowed is from -2^62 to 2^62") {
            ($0.softmax.is_causal, $0.softmax.causal_offset) = (1, limit + 1)
        }
        expect("causal_offset is \(-limit - 1), allowed is from -2^62 to 2^62") {
            ($0.softmax.is_causal, $0.softmax.causal_offset) = (1, -limit - 1)
        }
        expect(nil) {
            ($0.softmax.is_causal, $0.softmax.causal_offset) = (1, -limit)
        }
    }

    @Test func masks() {
        let mask = Floats(8)
        let ask: (inout Call) -> Void = {
            $0.softmax.mask = UnsafePointer(mask.pointer)
            ($0.softmax.mask_rows, $0.softmax.mask_stride) = (2, 4)
        }
        expect(nil, ask)
        expect("mask_rows is 0, at least 1") {
            ask(&$0)
            $0.softmax.mask_rows = 0
        }
        expect("mask_stride is 3, at least 4") {
            ask(&$0)
            $0.softmax.mask_stride = 3
        }
        expect("mask overflows") {
            ask(&$0)
            $0.softmax.mask_stride = 1 << 61
        }
        for (lengths, value) in [([4, 0, 5], 5), ([1, 2, -1], -1)] as [([Int64], Int)] {
            lengths.withUnsafeBufferPointer { lengths in
                expect("lengths[2] is \(value), below 5") {
                    $0.softmax.lengths = lengths.baseAddress
                }
            }
        }
    }

    @Test func forward() {
        func found(_ change: (inout Call) -> Void) -> String? {
            refused(isBackward: false, change)
        }
        #expect(found { $0.softmax.x = nil } == "x is null")
        #expect(found { $0.softmax.x_stride = 3 } == "x_stride is 3, at least 4")
        #expect(found { $0.softmax.x_stride = 1 << 61 } == "x overflows")
        #expect(found { $0.y = nil } == "y is null")
        #expect(found { $0.yStride = 3 } == "y_stride is 3, at least 4")
        #expect(found { $0.yStride = 1 << 61 } == "y overflows")
        #expect(
            found {
                $0.softmax.x = UnsafeRawPointer($0.y)
                $0.softmax.x_stride = 5
            } == "y_stride: that of x when y is x")
        for function in [lmk_row_function.LMK_STABLE_MAX, .LMK_LOG_STABLE_MAX] {
            #expect(
                found { $0.softmax.function = function }
                    == "log_sum_exp: only with softmax and log_softmax")
        }
        let reduced = { (call: inout Call) in
            call.softmax.function = .LMK_LOG_SUM_EXP
            call.logSumExp = nil
        }
        #expect(found(reduced) == nil)
        #expect(
            found {
                reduced(&$0)
                $0.y = nil
            } == "y is null")
        // log_sum_exp of nothing is -infinity.
        #expect(
            found {
                reduced(&$0)
                ($0.softmax.columns, $0.softmax.x) = (0, nil)
            } == nil)
    }

    @Test func backward() {
        func found(_ change: (inout Call) -> Void) -> String? {
            refused(isBackward: true, change)
        }
        #expect(found { $0.softmax.x = nil } == "x is null")
        #expect(
            found { ($0.softmax.x, $0.gradients.dscale) = (nil, nil) } == nil)
        #expect(
            found {
                $0.softmax.function = .LMK_STABLE_MAX
                ($0.softmax.x, $0.gradients.dscale) = (nil, nil)
            } == "x is null")
        #expect(found { $0.gradients.y = nil } == "y is null")
        #expect(found { $0.gradients.dy = nil } == "dy is null")
        #expect(
            found { $0.gradients.y_stride = 3 } == "y_stride is 3, at least 4")
        #expect(
            found { $0.gradients.dy_stride = 3 } == "dy_stride is 3, at least 4")
        #expect(
            found { $0.gradients.dx_stride = 3 } == "dx_stride is 3, at least 4")
        #expect(found { $0.gradients.dx_stride = 1 << 61 } == "dx overflows")
        #expect(
            found {
                $0.softmax.function = .LMK_LOG_SUM_EXP
                $0.gradients.dy = nil
            } == "dy is null")
        #expect(
            found { ($0.gradients.dx, $0.gradients.dscale) = (nil, nil) } == nil)
    }

    /// Streaming rows of bfloat16 keep their exponentials in the workspace.
    @Test func workspace() {
        let x = Floats(12)
        var softmax = lmk_softmax()
        (softmax.dtype, softmax.scale, softmax.threads) = (.LMK_BFLOAT16, 1, 1)
        (softmax.rows, softmax.columns, softmax.x_stride) = (3, 4, 4)
        softmax.x = UnsafeRawPointer(x.pointer)
        let needed = lmk_softmax_workspace_size(&softmax)
        #expect(needed > 0)
        let change = { (call: inout Call) in call.softmax = softmax }
        expect(nil, change)
        expect("workspace is \(needed - 1), at least \(needed)") {
            change(&$0)
            $0.workspace = needed - 1
        }
        expect("workspace is null") {
            change(&$0)
            $0.hasWorkspace = false
        }
    }

    /// Wrong arguments ask for no workspace.
    @Test func workspaceSize() {
        var softmax = lmk_softmax()
        (softmax.dtype, softmax.scale) = (.LMK_BFLOAT16, 1)
        (softmax.rows, softmax.columns) = (3, 4)
        #expect(lmk_softmax_workspace_size(&softmax) > 0)
        var wrong = softmax
        wrong.function = outside(5)
        #expect(lmk_softmax_workspace_size(&wrong) == 0)
        wrong = softmax
        wrong.algorithm = outside(4)
        #expect(lmk_softmax_workspace_size(&wrong) == 0)
        wrong = softmax
        wrong.dtype = outside(3)
        #expect(lmk_softmax_workspace_size(&wrong) == 0)
    }

    /// Rows of bfloat16 that fill what passes store, which ends the workspace.
    @Test(arguments: [0, 1, 60])
    func workspaceAnywhere(offset: Int) {
        let (x, y) = (Floats(64 * 64 / 2), Floats(64 * 64 / 2))
        var softmax = lmk_softmax()
        (softmax.dtype, softmax.scale, softmax.threads) = (.LMK_BFLOAT16, 1, 1)
        (softmax.rows, softmax.columns, softmax.x_stride) = (64, 64, 64)
        softmax.x = UnsafeRawPointer(x.pointer)
        let size = lmk_softmax_workspace_size(&softmax)
        let workspace = Scratch(size, offset: offset)
        #expect(
            refusal {
                lmk_softmax_forward(&softmax, y.pointer, 64, nil, workspace.pointer, size, $0)
            } == nil)
        #expect(workspace.isWithinBounds)
    }
}
