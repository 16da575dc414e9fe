internal import CLMKCore

/// The threads that kernels run on.
///
/// They are those of the OpenMP runtime on Linux and of libdispatch on Apple platforms. Results do
/// not depend on their number.
public enum Threads {
    /// Threads that a call uses when it asks for `limit`.
    ///
    /// 0 asks for the runtime's default: `OMP_NUM_THREADS` if set, else one for each CPU. A call
    /// never uses more than 1024.
    ///
    /// - Precondition: `limit` is not negative.
    public static func count(limit: Int = 0) -> Int {
        precondition(limit >= 0, "limit is negative")
        return Int(lmk_thread_count(clamped(limit)))
    }

    /// The runtime that was found: "libomp", "libgomp" or "libdispatch".
    public static var runtime: String { unsafe String(cString: lmk_thread_runtime()) }

    /// Runs `body` for every slot in 0 ..< `slots` on at most `threads` threads. Concurrent bodies
    /// have distinct workers below `threads`.
    static func forEach(
        slots: Int, threads: Int, _ body: @Sendable (_ slot: Int, _ worker: Int) -> Void
    ) {
        withoutActuallyEscaping(body) { body in
            unsafe withUnsafePointer(to: body) { context in
                unsafe lmk_parallel_for(
                    slots, clamped(threads),
                    { context, slot, worker in
                        typealias Body = @Sendable (Int, Int) -> Void
                        unsafe context!.load(as: Body.self)(slot, Int(worker))
                    },
                    UnsafeMutableRawPointer(mutating: context))
            }
        }
    }

    /// As C takes it; above the limit there is nothing to tell apart.
    static func clamped(_ threads: Int) -> UInt32 {
        UInt32(min(threads, Int(LMK_MAX_THREADS)))
    }

    /// `threads` of a call, as C takes it.
    static func checked(_ threads: Int) throws(KernelError) -> UInt32 {
        try checkNotNegative("threads", threads)
        return clamped(threads)
    }
}
