import CLMKCore
import CLMKSoftmax
import Testing

/// What the C functions of top-k, Shiftmax and the accumulator refuse.
@Suite struct EntryPointRelativesTests {
    // MARK: - Top-k

    private struct TopK {
        var topK = lmk_top_k()
        var indices: UnsafeMutablePointer<Int32>?
        var gates: UnsafeMutablePointer<Float>?
        var dgates: UnsafeMutablePointer<Float>?
        var dx: UnsafeMutablePointer<Float>?
        var dxStride = 4
        var dscale: UnsafeMutablePointer<Float>?
    }

    /// A call on [3, 4] with 2 entries that would go well, but for `change`.
    private func refused(isBackward: Bool, _ change: (inout TopK) -> Void) -> String? {
        let (x, gates, dgates, dx) = (Floats(12), Floats(6), Floats(6), Floats(12))
        let dscale = Floats(3)
        let before: [Int32] = [3, 0, 1, 2, 2, 1]
        var indices = before
        return indices.withUnsafeMutableBufferPointer { indices in
            var call = TopK()
            (call.topK.rows, call.topK.columns, call.topK.count) = (3, 4, 2)
            (call.topK.x, call.topK.x_stride) = (UnsafeRawPointer(x.pointer), 4)
            (call.topK.scale, call.topK.threads) = (1, 1)
            (call.indices, call.gates) = (indices.baseAddress, gates.pointer)
            (call.dgates, call.dx) = (dgates.pointer, dx.pointer)
            call.dscale = dscale.pointer
            change(&call)
            var topK = call.topK
            let found = refusal { error in
                if isBackward {
                    lmk_top_k_backward(
                        &topK, call.indices, call.gates, call.dgates, call.dx, call.dxStride,
                        call.dscale, error)
                } else {
                    lmk_top_k_forward(&topK, call.indices, call.gates, error)
                }
            }
            let all = [x, gates, dgates, dx, dscale]
            #expect(found == nil || all.allSatisfy(\.areUntouched), "nothing is written")
            return found
        }
    }

    private func expect(_ message: String?, _ change: (inout TopK) -> Void) {
        for isBackward in [false, true] {
            #expect(
                refused(isBackward: isBackward, change) == message,
                "backward: \(isBackward)")
        }
    }

    @Test func topK() {
        expect(nil) { _ in }
        expect("dtype is 3, allowed is a storage type") {
            $0.topK.dtype = outside(3)
        }
        expect("scale is inf, allowed is finite") { $0.topK.scale = .infinity }
        expect("columns is 2147483648, allowed is at most 2^31 - 1") {
            $0.topK.columns = 1 << 31
        }
        expect("count is 0, at least 1") { $0.topK.count = 0 }
        expect("columns is 4, at least 5") { $0.topK.count = 5 }
        expect("x is null") { $0.topK.x = nil }
        expect("x_stride is 3, at least 4") { $0.topK.x_stride = 3 }
        expect("x overflows") { $0.topK.x_stride = 1 << 61 }
        expect("indices is null") { $0.indices = nil }
        expect("gates is null") { $0.gates = nil }
        // Nothing of rows that there are not is read.
        expect(nil) {
            ($0.topK.rows, $0.topK.x, $0.indices, $0.gates) = (0, nil, nil, nil)
            ($0.dgates, $0.dx) = (nil, nil)
        }
    }

    @Test func topKGradient() {
        func found(_ change: (inout TopK) -> Void) -> String? {
            refused(isBackward: true, change)
        }
        #expect(found { $0.dgates = nil } == "dgates is null")
        #expect(found { $0.dxStride = 3 } == "dx_stride is 3, at least 4")
        #expect(found { $0.dxStride = 1 << 61 } == "dx overflows")
        #expect(found { ($0.dscale, $0.topK.x) = (nil, nil) } == nil)
        #expect(found { ($0.dscale, $0.dx) = (nil, nil) } == nil)
        #expect(found { $0.indices?[4] = 4 } == "indices[4] is 4, below 4")
        #expect(found { $0.indices?[5] = -1 } == "indices[5] is -1, below 4")
    }

    // MARK: - Shiftmax

    private func refused(_ change: (inout lmk_shift_max, inout Int) -> Void) -> String? {
        let x: [Int32] = [1, 2, 3, 4, 5, 6]
        var y = [Int32](repeating: -80, count: 6)
        let found = x.withUnsafeBufferPointer { x in
            var s = lmk_shift_max()
            var yStride = 3
            (s.rows, s.columns, s.x, s.x_stride) = (2, 3, x.baseAddress, 3)
            (s.inverse_scale, s.output_bits, s.dividend_bits) = (8, 8, 31)
            change(&s, &yStride)
            return refusal { lmk_shift_max_run(&s, &y, yStride, $0) }
        }
        #expect(found == nil || y.allSatisfy { $0 == -80 }, "nothing is written")
        return found
    }

    @Test func shiftMax() {
        #expect(refused { _, _ in } == nil)
        #expect(refused { s, _ in s.columns = 0 } == "columns is 0, at least 1")
        #expect(
            refused { s, _ in s.columns = (1 << 22) + 1 }
                == "columns is 4194305, allowed is at most 2^22")
        for scale: Int32 in [0, 1 << 24] {
            #expect(
                refused { s, _ in s.inverse_scale = scale }
                    == "inverse_scale is \(scale), allowed is from 1 to 2^24 - 1")
        }
        for bits: UInt32 in [1, 17] {
            #expect(
                refused { s, _ in s.output_bits = bits }
                    == "output_bits is \(bits), allowed is from 2 to 16")
        }
        for bits: UInt32 in [30, 63] {
            #expect(
                refused { s, _ in s.dividend_bits = bits }
                    == "dividend_bits is \(bits), allowed is from 31 to 62")
        }
        #expect(refused { s, _ in s.x = nil } == "x is null")
        #expect(
            refused { s, _ in s.x_stride = 2 } == "x_stride is 2, at least 3")
        #expect(refused { _, stride in stride = 2 } == "y_stride is 2, at least 3")
        #expect(refused { _, stride in stride = 1 << 61 } == "y overflows")
        var x = [Int32](repeating: 1, count: 8)
        let found = x.withUnsafeMutableBufferPointer { x in
            refusedInPlace(x.baseAddress, stride: 4)
        }
        #expect(found == "y_stride: that of x when y is x")
    }

    private func refusedInPlace(
        _ x: UnsafeMutablePointer<Int32>?, stride: Int
    ) -> String? {
        var s = lmk_shift_max()
        (s.rows, s.columns, s.x, s.x_stride) = (2, 3, UnsafePointer(x), 3)
        (s.inverse_scale, s.output_bits, s.dividend_bits) = (8, 8, 31)
        return refusal { lmk_shift_max_run(&s, x, stride, $0) }
    }

    // MARK: - Accumulator

    private struct Push {
        var accumulator = lmk_accumulator()
        var block = lmk_accumulator_block()
        var workspace: Int?
        var hasWorkspace = true
    }

    /// Four scores for each of 3 rows of width 2.
    private func pushRefused(_ change: (inout Push) -> Void) -> String? {
        let (max, sum, sums) = (Floats(3), Floats(3), Floats(6))
        let (scores, values) = (Floats(12), Floats(8))
        var call = Push()
        (call.accumulator.rows, call.accumulator.width) = (3, 2)
        (call.accumulator.max, call.accumulator.sum) = (max.pointer, sum.pointer)
        call.accumulator.values = sums.pointer
        (call.block.count, call.block.scale, call.block.threads) = (4, 1, 1)
        (call.block.scores, call.block.scores_stride) = (.init(scores.pointer), 4)
        (call.block.values, call.block.values_stride) = (.init(values.pointer), 2)
        change(&call)
        var (accumulator, block) = (call.accumulator, call.block)
        let size =
            call.workspace
            ?? lmk_accumulator_workspace_size(&accumulator, &block)
        let memory = Scratch(size)
        let workspace = call.hasWorkspace ? memory.pointer : nil
        let found = refusal {
            lmk_accumulator_push(&accumulator, &block, workspace, size, $0)
        }
        let all = [max, sum, sums, scores, values]
        #expect(found == nil || all.allSatisfy(\.areUntouched), "nothing is written")
        return found
    }

    @Test func push() throws {
        #expect(pushRefused { _ in } == nil)
        for change: (inout Push) -> Void in [
            { $0.accumulator.max = nil }, { $0.accumulator.sum = nil },
            { $0.accumulator.values = nil },
        ] {
            #expect(pushRefused(change) == "accumulator is null")
        }
        #expect(
            pushRefused { $0.block.dtype = outside(3) }
                == "dtype is 3, allowed is a storage type")
        #expect(
            pushRefused { $0.block.scale = .nan }
                == "scale is nan, allowed is finite")
        #expect(pushRefused { $0.block.scores = nil } == "scores is null")
        #expect(pushRefused { $0.block.values = nil } == "values is null")
        #expect(
            pushRefused { $0.block.scores_stride = 3 }
                == "scores_stride is 3, at least 4")
        #expect(
            pushRefused { $0.block.values_stride = 1 }
                == "values_stride is 1, at least 2")
        #expect(
            pushRefused { $0.block.scores_stride = 1 << 61 }
                == "scores overflows")
        #expect(
            pushRefused { $0.block.values_stride = 1 << 60 }
                == "values overflows")
        #expect(
            pushRefused {
                ($0.accumulator.rows, $0.accumulator.width) = (1 << 31, 1 << 30)
            } == "accumulator overflows")
        // Scores of two bytes can be counted where their weights cannot.
        let huge = Int.max / 8
        #expect(
            pushRefused {
                ($0.accumulator.rows, $0.accumulator.width) = (3, 0)
                $0.block.dtype = .LMK_BFLOAT16
                ($0.block.count, $0.block.scores_stride) = (huge, huge)
                $0.workspace = 0
            } == "scores overflows")
        let needed = try #require(
            pushRefused { $0.workspace = 0 }?.split(separator: " ").last
                .flatMap { Int($0) })
        #expect(
            pushRefused { $0.workspace = needed - 1 }
                == "workspace is \(needed - 1), at least \(needed)")
        #expect(pushRefused { $0.hasWorkspace = false } == "workspace is null")
    }

    @Test func accumulators() {
        let (max, sum, sums) = (Floats(3), Floats(3), Floats(6))
        var a = lmk_accumulator(
            rows: 3, width: 2, max: max.pointer, sum: sum.pointer, values: sums.pointer)
        let fields: [(inout lmk_accumulator) -> Void] = [
            { $0.max = nil }, { $0.sum = nil }, { $0.values = nil },
        ]
        for change in fields {
            var wrong = a
            change(&wrong)
            #expect(refusal { lmk_accumulator_clear(&wrong, $0) } == "accumulator is null")
            #expect(
                refusal { lmk_accumulator_merge(&wrong, &a, $0) }
                    == "accumulator is null")
            #expect(refusal { lmk_accumulator_merge(&a, &wrong, $0) } == "other is null")
            #expect(
                refusal { lmk_accumulator_finish(&wrong, nil, nil, 0, $0) }
                    == "accumulator is null")
        }
        let sizes: [(inout lmk_accumulator) -> Void] = [
            { $0.rows = 2 }, { $0.width = 1 },
        ]
        for change in sizes {
            var other = a
            change(&other)
            #expect(
                refusal { lmk_accumulator_merge(&a, &other, $0) }
                    == "other: of the same rows and width")
        }
        let output = Floats(6)
        #expect(
            refusal { lmk_accumulator_finish(&a, nil, output.pointer, 1, $0) }
                == "output_stride is 1, at least 2")
        #expect([max, sum, sums, output].allSatisfy { $0.areUntouched }, "nothing is written")
    }

    /// Values that fill the panels a thread packs, which end the workspace; and more rows than
    /// panels of weights have room for at a time.
    @Test(arguments: [32, 1900], [0, 1, 60])
    func pushWorkspaceAnywhere(rows: Int, offset: Int) {
        let (count, width) = (512, 256)
        let (max, sum, sums) = (Floats(rows), Floats(rows), Floats(rows * width))
        let (scores, values) = (Floats(rows * count), Floats(count * width))
        var a = lmk_accumulator(
            rows: rows, width: width, max: max.pointer, sum: sum.pointer, values: sums.pointer)
        var block = lmk_accumulator_block()
        (block.count, block.scale, block.threads) = (count, 1, 1)
        (block.scores, block.scores_stride) = (.init(scores.pointer), count)
        (block.values, block.values_stride) = (.init(values.pointer), width)
        let size = lmk_accumulator_workspace_size(&a, &block)
        let workspace = Scratch(size, offset: offset)
        #expect(refusal { lmk_accumulator_clear(&a, $0) } == nil)
        #expect(refusal { lmk_accumulator_push(&a, &block, workspace.pointer, size, $0) } == nil)
        #expect(workspace.isWithinBounds)
        // Weights of equal scores are 1.
        let expected = Floats.sentinel * Float(count)
        #expect((0..<rows * width).allSatisfy { sums.pointer[$0] == expected })
    }
}
