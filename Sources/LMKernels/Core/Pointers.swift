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

/// Leaves nil behind: spans that may be missing cannot be borrowed for writing.
func withMutablePointer<Element: BitwiseCopyable, Result>(
    _ span: inout MutableSpan<Element>?, _ body: (UnsafeMutablePointer<Element>?) -> Result
) -> Result {
    guard var span = span.take() else { return body(nil) }
    return unsafe span.withUnsafeMutableBufferPointer { buffer in
        unsafe body(buffer.baseAddress ?? UnsafeMutablePointer(mutating: placeholder()))
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
