import CLMKCore
import Testing

@Suite struct EntryPointCoreTests {
    @Test func map() {
        let x: [Float] = [1, 2, 3]
        let y = Floats(3)
        #expect(
            refusal { lmk_map(outside(6), x, y.pointer, 3, $0) }
                == "function is 6, allowed is an elementwise function")
        #expect(refusal { lmk_map(.LMK_EXP, nil, y.pointer, 3, $0) } == "x is null")
        #expect(refusal { lmk_map(.LMK_EXP, x, nil, 3, $0) } == "y is null")
        #expect(refusal { lmk_map(.LMK_EXP, nil, nil, 0, $0) } == nil)
        #expect(lmk_map(.LMK_EXP, nil, y.pointer, 3, nil) == .LMK_NULL)
        #expect(y.areUntouched)
    }

    @Test func convert() {
        let x: [Float] = [1, 2, 3]
        let y = Floats(3)
        let (narrow, wide) = (lmk_dtype.LMK_BFLOAT16, lmk_dtype.LMK_FLOAT32)
        #expect(
            refusal { lmk_convert(x, outside(3), y.pointer, wide, 3, $0) }
                == "x_dtype is 3, allowed is a storage type")
        #expect(
            refusal { lmk_convert(x, wide, y.pointer, outside(3), 3, $0) }
                == "y_dtype is 3, allowed is a storage type")
        #expect(
            refusal { lmk_convert(nil, wide, y.pointer, narrow, 3, $0) } == "x is null")
        #expect(refusal { lmk_convert(x, wide, nil, narrow, 3, $0) } == "y is null")
        #expect(refusal { lmk_convert(nil, wide, nil, narrow, 0, $0) } == nil)
        #expect(y.areUntouched)
    }

    /// A product of [2, 3] and [3, 4] that would go well, but for `change`.
    private func product(
        workspace given: Int? = nil, hasWorkspace: Bool = true,
        _ change: (inout lmk_matmul) -> Void
    ) -> String? {
        let (a, b, c) = (Floats(6), Floats(12), Floats(8))
        var m = lmk_matmul()
        m.layout = .LMK_NN
        m.dtype = .LMK_FLOAT32
        (m.batch, m.rows, m.columns, m.depth) = (1, 2, 4, 3)
        (m.a, m.b, m.c) = (UnsafeRawPointer(a.pointer), .init(b.pointer), c.pointer)
        (m.a_stride, m.b_stride, m.c_stride) = (3, 4, 4)
        m.threads = 1
        change(&m)
        let size = given ?? lmk_matmul_workspace_size(&m)
        let workspace = Scratch(size)
        let found = refusal {
            lmk_matmul_run(&m, hasWorkspace ? workspace.pointer : nil, size, $0)
        }
        #expect(found == nil || c.areUntouched, "nothing is written")
        return found
    }

    @Test func matmul() {
        #expect(product { _ in } == nil)
        #expect(
            product { $0.layout = outside(3) }
                == "layout is 3, allowed is NN, NT or TN")
        #expect(
            product { $0.dtype = outside(3) }
                == "dtype is 3, allowed is a storage type")
        #expect(product { $0.a = nil } == "a is null")
        #expect(product { $0.b = nil } == "b is null")
        #expect(product { $0.c = nil } == "c is null")
        #expect(product { $0.a_stride = 2 } == "a_stride is 2, at least 3")
        #expect(product { $0.b_stride = 3 } == "b_stride is 3, at least 4")
        #expect(product { $0.c_stride = 3 } == "c_stride is 3, at least 4")
        // The other operand's sides are the stored ones when it is transposed.
        #expect(
            product { ($0.layout, $0.a_stride) = (.LMK_TN, 1) }
                == "a_stride is 1, at least 2")
        #expect(
            product { ($0.layout, $0.b_stride) = (.LMK_NT, 2) }
                == "b_stride is 2, at least 3")
        // Matrices of no elements need no memory.
        #expect(product { ($0.depth, $0.a, $0.b) = (0, nil, nil) } == nil)
        #expect(product { ($0.batch, $0.a, $0.b, $0.c) = (0, nil, nil, nil) } == nil)
    }

    @Test func matmulSizes() {
        let half = Int.max / 8 + 1
        // 2 rows of 2^60 floats are 2^63 bytes.
        #expect(product { $0.a_stride = half } == "a overflows")
        #expect(product { $0.b_stride = half } == "b overflows")
        #expect(product { $0.c_stride = half } == "c overflows")
        // A product of 2^64 and of 2^63 elements is neither 0 nor negative.
        #expect(product { ($0.rows, $0.a_stride) = (4, 1 << 62) } == "a overflows")
        #expect(product { ($0.rows, $0.a_stride) = (2, 1 << 62) } == "a overflows")
        #expect(
            product { ($0.batch, $0.a_batch_stride) = (2, half) } == "a overflows")
        #expect(
            product { ($0.batch, $0.b_batch_stride) = (4, 1 << 62) }
                == "b overflows")
        #expect(
            product { ($0.batch, $0.c_batch_stride) = (2, half) } == "c overflows")
        // Matrices of c may touch, but not overlap.
        #expect(
            product { ($0.batch, $0.c_batch_stride) = (2, 7) }
                == "c_batch_stride is 7, at least 8")
        #expect(
            product { ($0.batch, $0.c_stride, $0.c_batch_stride) = (2, 5, 8) }
                == "c_batch_stride is 8, at least 9")
    }

    @Test func matmulWorkspace() throws {
        let found = try #require(product(workspace: 1) { _ in })
        #expect(found.hasPrefix("workspace is 1, at least "))
        let needed = try #require(found.split(separator: " ").last.flatMap { Int($0) })
        #expect(needed > 1)
        #expect(
            product(workspace: needed - 1) { _ in }
                == "workspace is \(needed - 1), at least \(needed)")
        #expect(product(workspace: needed) { _ in } == nil)
        #expect(product(hasWorkspace: false) { _ in } == "workspace is null")
    }

    /// Sizes that fill the panels a thread packs, which end the workspace: one product, whose work
    /// threads share, and a batch, where each thread has products of its own.
    @Test(arguments: [(1, 32), (24, 16)], [0, 1, 60])
    func matmulWorkspaceAnywhere(shape: (batch: Int, rows: Int), offset: Int) {
        let (columns, depth) = (256, 512)
        let a = Floats(shape.rows * depth)
        let b = Floats(shape.batch * depth * columns)
        for k in 0..<b.count { b.pointer[k] = Float(k / (depth * columns) + 1) }
        let c = Floats(shape.batch * shape.rows * columns)
        var m = lmk_matmul()
        (m.batch, m.rows, m.columns, m.depth) = (shape.batch, shape.rows, columns, depth)
        (m.a, m.b, m.c) = (UnsafeRawPointer(a.pointer), .init(b.pointer), c.pointer)
        (m.a_stride, m.b_stride, m.c_stride) = (depth, columns, columns)
        (m.b_batch_stride, m.c_batch_stride) = (depth * columns, shape.rows * columns)
        m.threads = 2
        let size = lmk_matmul_workspace_size(&m)
        let workspace = Scratch(size, offset: offset)
        #expect(refusal { lmk_matmul_run(&m, workspace.pointer, size, $0) } == nil)
        #expect(workspace.isWithinBounds)
        let each = shape.rows * columns
        #expect(
            (0..<c.count).allSatisfy {
                c.pointer[$0] == Floats.sentinel * Float(depth * ($0 / each + 1))
            })
    }

    /// Operands that tiles read where they lie are not read past their ends: columns that fill half
    /// of the widest tile, that fill none, and more of them than shared panels have room for.
    @Test(arguments: [(14, 16, 255), (63, 33, 40), (5, 48, 7), (3100, 3088, 5)])
    func matmulStaysWithinItsOperands(rows: Int, columns: Int, depth: Int) {
        let a = GuardedFloats(rows * depth, 2)
        let b = GuardedFloats(depth * columns, 3)
        let c = GuardedFloats(rows * columns, 0)
        for layout in [lmk_layout.LMK_NN, .LMK_NT, .LMK_TN] {
            var m = lmk_matmul()
            m.layout = layout
            (m.batch, m.rows, m.columns, m.depth) = (1, rows, columns, depth)
            (m.a, m.b, m.c) = (UnsafeRawPointer(a.pointer), .init(b.pointer), c.pointer)
            m.a_stride = layout == .LMK_TN ? rows : depth
            m.b_stride = layout == .LMK_NT ? depth : columns
            m.c_stride = columns
            let size = lmk_matmul_workspace_size(&m)
            let workspace = Scratch(size)
            for times in 1...2 {
                m.accumulate = times == 1 ? 0 : 1
                #expect(refusal { lmk_matmul_run(&m, workspace.pointer, size, $0) } == nil)
                let expected = Float(6 * depth * times)
                #expect((0..<rows * columns).allSatisfy { c.pointer[$0] == expected })
            }
        }
    }

    /// Around the vectors and rounds of the probes; past the caches only where lines begin.
    @Test(arguments: [0, 1, 15, 16, 17, 127, 128, 129, 300])
    func probes(count: Int) {
        let x = GuardedFloats(count, 2)
        #expect(lmk_probe_read(x.pointer, count) == Float(2 * count))
        for streaming: Int32 in [0, 1] {
            for offset in [0, 4, 60] {
                let size = count * MemoryLayout<Float>.size
                let copy = Scratch(size, offset: offset)
                let y = copy.pointer.bindMemory(to: Float.self, capacity: count)
                y.initialize(repeating: 0, count: count)
                lmk_probe_copy(x.pointer, y, count, streaming)
                #expect((0..<count).allSatisfy { y[$0] == 2 }, "\(streaming) \(offset)")
                #expect(copy.isWithinBounds, "\(streaming) \(offset)")
            }
        }
    }
}
