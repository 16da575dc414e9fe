/// Attention without a softmax, by a state of fixed size, and the stages around it.
public enum LinearAttention {}
