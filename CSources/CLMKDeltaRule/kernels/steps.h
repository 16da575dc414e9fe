// Steps and their tokens, rates and decays. Included inside a region.

/// The token of a step, and whether it begins that or ends it.
static inline size_t token_of(const delta_head *head, size_t step) {
    return token_of_step(step, head->steps);
}
static inline int begins_token(const delta_head *head, size_t step) {
    return is_first_step(step, head->steps);
}
static inline int ends_token(const delta_head *head, size_t step) {
    return is_last_step(step, head->steps);
}

/// The rates of steps begin ..< begin + count.
static void load_rates(const delta_head *head, size_t begin, size_t count, float *rates) {
    float x[BLOCK_STEPS] = {0};
    if (!head->beta) {
        store(rates, splat(1));
        return;
    }
    for (size_t i = 0; i < count; i++) x[i] = head->beta[head->beta_stride * (begin + i)];
    f32x16 rate = load(x);
    if (head->beta_kind != LMK_BETA_RATE) rate = vsigmoid(rate);
    if (head->beta_kind == LMK_BETA_TWICE_SIGMOID) rate = rate + rate;
    store(rates, rate);
}

/// exp(log_decay) of each step, 1 for those that do not begin a token.
static void load_step_decays(const delta_head *head, size_t begin, size_t count, float *decays) {
    float x[BLOCK_STEPS] = {0};
    if (head->rows.decay == LMK_DECAY_NONE) {
        store(decays, splat(1));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (begins_token(head, begin + i))
            x[i] = head->rows.log_decay[head->rows.log_decay_stride * token_of(head, begin + i)];
    }
    store(decays, vexp(load(x)));
}
