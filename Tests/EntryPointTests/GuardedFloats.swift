import Foundation

/// Floats that end where memory does: reading past them ends the process.
final class GuardedFloats {
    let pointer: UnsafeMutablePointer<Float>
    private let memory: UnsafeMutableRawPointer
    private let size: Int

    init(_ count: Int, _ value: Float) {
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let bytes = count * MemoryLayout<Float>.size
        let whole = (bytes + page - 1) / page * page
        size = whole + page
        let (access, kind) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        guard let found = mmap(nil, size, access, kind, -1, 0), found != MAP_FAILED else {
            fatalError("no memory")
        }
        memory = found
        guard mprotect(memory + whole, page, PROT_NONE) == 0 else { fatalError("no guard") }
        pointer = (memory + whole - bytes).bindMemory(to: Float.self, capacity: count)
        pointer.initialize(repeating: value, count: count)
    }

    deinit { munmap(memory, size) }
}
