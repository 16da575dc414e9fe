internal import CLMKLinearAttention

/// Where rows of a tensor [batch, tokens, heads, width] begin, in elements. Rows are contiguous and
/// do not overlap.
public struct TokenStrides: Sendable, Hashable {
    public var batch: Int
    public var token: Int
    public var head: Int

    public init(batch: Int, token: Int, head: Int) {
        self.batch = batch
        self.token = token
        self.head = head
    }

    /// Of a dense tensor [batch, tokens, heads, width].
    public static func tokenMajor(tokens: Int, heads: Int, width: Int) -> TokenStrides {
        TokenStrides(batch: tokens * heads * width, token: heads * width, head: width)
    }

    /// Of a dense tensor [batch, heads, tokens, width].
    public static func headMajor(tokens: Int, heads: Int, width: Int) -> TokenStrides {
        TokenStrides(batch: heads * tokens * width, token: width, head: tokens * width)
    }
}

extension TokenStrides {
    var inC: lmk_token_strides { lmk_token_strides(batch: batch, token: token, head: head) }
}
