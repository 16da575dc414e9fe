// Addresses of spans for C, good while the closure runs. No span has no address; an empty span,
// whose own base is nil, gets an address that is never followed, because C tells "not asked for"
// by null.

func withPointer<Element: BitwiseCopyable, Result>(
    _ span: Span<Element>?, _ body: (UnsafePointer<Element>?) -> Result
) -> Result {
    guard let span else { return body(nil) }
    return unsafe span.withUnsafeBufferPointer { buffer in
        unsafe body(buffer.baseAddress ?? placeholder())
    }
}

func withPointers<Element: BitwiseCopyable, Result>(
    _ x: Span<Element>?, _ y: Span<Element>?, _ z: Span<Element>?,
    _ body: (UnsafePointer<Element>?, UnsafePointer<Element>?, UnsafePointer<Element>?) -> Result
) -> Result {
    unsafe withPointer(x) { x in
        unsafe withPointer(y) { y in
            unsafe withPointer(z) { z in unsafe body(x, y, z) }
        }
    }
}

/// Offsets as C takes them: Int has 64 bits wherever the kernels run.
func withOffsets<Result>(
    _ offsets: Span<Int>?, _ body: (UnsafePointer<Int64>?) -> Result
) -> Result {
    unsafe withPointer(offsets) { offsets in
        unsafe body(UnsafeRawPointer(offsets)?.assumingMemoryBound(to: Int64.self))
    }
}

/// Leaves nil behind: spans that may be missing cannot be borrowed for writing.
func withMutablePointer<Element: BitwiseCopyable, Result>(
    _ span: inout MutableSpan<Element>?, _ body: (UnsafeMutablePointer<Element>?) -> Result
) -> Result {
    guard var span = span.take() else { return body(nil) }
    return unsafe span.withUnsafeMutableBufferPointer { buffer in
        unsafe body(buffer.baseAddress ?? UnsafeMutablePointer(mutating: placeholder()))
    }
}

func withMutablePointers<Element: BitwiseCopyable, Result>(
    _ x: inout MutableSpan<Element>?, _ y: inout MutableSpan<Element>?,
    _ z: inout MutableSpan<Element>?,
    _ body: (
        UnsafeMutablePointer<Element>?, UnsafeMutablePointer<Element>?,
        UnsafeMutablePointer<Element>?
    ) -> Result
) -> Result {
    unsafe withMutablePointer(&x) { x in
        unsafe withMutablePointer(&y) { y in
            unsafe withMutablePointer(&z) { z in unsafe body(x, y, z) }
        }
    }
}

/// The same for an array that may be missing.
func withElements<Element: BitwiseCopyable, Result>(
    of array: inout [Element]?, _ body: (UnsafeMutablePointer<Element>?) -> Result
) -> Result {
    // Taken out, so that writing finds one owner and does not copy.
    guard var elements = array.take() else { return body(nil) }
    defer { array = elements }
    return unsafe elements.withUnsafeMutableBufferPointer { buffer in
        unsafe body(buffer.baseAddress ?? UnsafeMutablePointer(mutating: placeholder()))
    }
}

/// An address as aligned as any vector, of nothing.
func placeholder<Element>() -> UnsafePointer<Element> {
    unsafe UnsafePointer(bitPattern: 64)!
}
