/// Memory that kernels use while they run, kept from call to call.
///
/// A call takes what it needs and leaves nothing of meaning behind, so one workspace serves calls
/// of different families and sizes, one after the other. It grows to the largest need and never
/// shrinks; release it by letting it go. Concurrent calls need a workspace each.
@safe public final class Workspace {
    /// The memory's size in bytes.
    public private(set) var byteCount: Int
    private var memory: UnsafeMutableRawPointer?

    /// A cache line, and the longest vector.
    private static let alignment = 64

    /// An empty workspace; the first call allocates.
    public init() {
        byteCount = 0
        unsafe memory = nil
    }

    /// A workspace of at least `byteCount` bytes, for calls that must not allocate later.
    public init(byteCount: Int) {
        precondition(byteCount >= 0, "byteCount is negative")
        self.byteCount = 0
        unsafe memory = nil
        reserve(byteCount)
    }

    deinit {
        unsafe memory?.deallocate()
    }

    private func reserve(_ needed: Int) {
        guard needed > byteCount else { return }
        // Nothing of the old content is wanted: free first, so that both are never held at once.
        unsafe memory?.deallocate()
        unsafe memory = UnsafeMutableRawPointer.allocate(
            byteCount: needed, alignment: Self.alignment)
        byteCount = needed
    }

    /// The memory, grown to `needed` bytes. Good until the next call or the workspace's end.
    func withMemory<Result, Failure: Error>(
        byteCount needed: Int,
        _ body: (UnsafeMutableRawPointer?, Int) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        reserve(needed)
        return try unsafe body(memory, byteCount)
    }
}
