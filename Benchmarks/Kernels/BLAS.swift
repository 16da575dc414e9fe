import LMKernels

#if canImport(Darwin)
    import Accelerate
#else
    import COpenBLAS
#endif

/// The system's BLAS: OpenBLAS on Linux, Accelerate on Apple platforms.
enum BLAS {
    #if canImport(Darwin)
        static let name = "Accelerate"
    #else
        static let name = "OpenBLAS"
    #endif

    /// Which of its kernels the library has chosen, where it tells.
    static var kernels: String {
        #if canImport(Darwin)
            ""
        #else
            String(cString: openblas_get_corename()) + " kernels"
        #endif
    }

    /// Threads of later calls.
    static func use(threads: Int) {
        #if canImport(Darwin)
            // Accelerate knows one thread, or as many as it likes.
            BLASSetThreading(
                threads == 1 ? BLAS_THREADING_SINGLE_THREADED : BLAS_THREADING_MULTI_THREADED)
        #else
            openblas_set_num_threads(Int32(threads))
        #endif
    }

    /// c = a b for each matrix of a batch of dense matrices, one after the other: this BLAS has no
    /// batches of its own.
    static func multiply(
        _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, into c: UnsafeMutablePointer<Float>,
        shape: Matmul.Shape, layout: Matmul.Layout
    ) {
        let (rows, columns, depth) = (shape.rows, shape.columns, shape.depth)
        let aStride = Int32(layout == .tn ? rows : depth)
        let bStride = Int32(layout == .nt ? depth : columns)
        for n in 0..<shape.batch {
            cblas_sgemm(
                CblasRowMajor, layout == .tn ? CblasTrans : CblasNoTrans,
                layout == .nt ? CblasTrans : CblasNoTrans, Int32(rows), Int32(columns),
                Int32(depth), 1, a + n * rows * depth, aStride, b + n * depth * columns, bStride, 0,
                c + n * rows * columns, Int32(columns))
        }
    }

    /// y = b x, with b [columns, depth]: a product of one row, layout NT.
    static func multiply(
        row x: UnsafePointer<Float>, _ b: UnsafePointer<Float>, into y: UnsafeMutablePointer<Float>,
        columns: Int, depth: Int
    ) {
        cblas_sgemv(
            CblasRowMajor, CblasNoTrans, Int32(columns), Int32(depth), 1, b, Int32(depth), x, 1, 0,
            y, 1)
    }

    /// Bytes per second read and written by changing the signs of an array in place: the best of
    /// several runs.
    static func updateBandwidth(bytes: Int, threads: Int) -> Double {
        use(threads: threads)
        let count = bytes / MemoryLayout<Float>.stride
        var x = [Float](repeating: 1, count: count)
        let repeats = max(1, (64 << 20) / bytes)
        let best = (0..<9).map { _ in
            ContinuousClock().measure {
                for _ in 0..<repeats { cblas_sscal(Int32(count), -1, &x, 1) }
            } / .seconds(1)
        }.min()!
        return Double(2 * repeats * bytes) / best
    }
}
