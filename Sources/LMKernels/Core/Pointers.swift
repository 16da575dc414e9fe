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

func withMutablePointer<Element: BitwiseCopyable, Result>(
    _ span: consuming MutableSpan<Element>?, _ body: (UnsafeMutablePointer<Element>?) -> Result
) -> Result {
    guard var span else { return body(nil) }
    return unsafe span.withUnsafeMutableBufferPointer { buffer in
        unsafe body(buffer.baseAddress ?? UnsafeMutablePointer(mutating: placeholder()))
    }
}

/// An address as aligned as any vector, of nothing.
func placeholder<Element>() -> UnsafePointer<Element> {
    unsafe UnsafePointer(bitPattern: 64)!
}
