// Cut cross-entropy: the passes of one call over blocks of rows.
#include "plan.h"
#include "problem.h"

#include <math.h>
#include <string.h>

// Losses and factors of rows are computed here, in baseline code: without contraction they have the
// same bits everywhere.
#pragma STDC FP_CONTRACT OFF

static const cross_entropy_kernels *kernels_in_use(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &cross_entropy_kernels_avx512;
    case LMK_ISA_AVX2: return &cross_entropy_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &cross_entropy_kernels_neon;
#endif
    default: return &cross_entropy_kernels_generic;
    }
}

/// The arrays of a block, one entry for each of its rows: ROW_ARRAYS of them, the states counting
/// three.
typedef struct block_memory {
    lmk_cross_entropy_row *states;
    float *log_sum_exp, *entropy, *target_logit, *target_loss;
    int32_t *target;
    row_factors factors;
} block_memory;

typedef struct cross_entropy_call {
    const lmk_cross_entropy *p;
    const lmk_cross_entropy_outputs *outputs;
    const lmk_cross_entropy_gradients *gradients;
    /// For PHASE_BACKWARD.
    const lmk_cross_entropy_row *row_states;
    const float *row_entropy;
    cross_entropy_phase phase;
    const cross_entropy_kernels *kernels;
    cross_entropy_plan plan;
    char *memory;

    /// Rows that cost anything: the valid ones in order, then those ignored ones whose lse or
    /// entropy is asked for. The first `gradient_count` have a gradient. In this order the sums
    /// over rows are the same whichever outputs are asked for.
    uint32_t *active;
    size_t active_count, gradient_count;
    size_t valid_rows, correct;
    /// Sum of w_y over valid rows; of w_j over all classes.
    double target_weight, class_weight;
    double loss_sum, z_sum;

    block_memory rows;
    cross_entropy_block block;
    /// The block at hand: its first active row.
    size_t first;
    /// The panel at hand.
    float *panel;
    size_t panel_columns;
    size_t gradient_columns;
} cross_entropy_call;

/// Slots of row-wise work: enough rows that taking a slot costs nothing.
#define ROWS_PER_SLOT 64

static float *take_array(char **memory, size_t numbers) {
    float *const array = (float *)(void *)*memory;
    *memory += lmk_round_up(sizeof(float) * numbers, 64);
    return array;
}

static void take_block_memory(cross_entropy_call *call) {
    const cross_entropy_plan *const plan = &call->plan;
    const size_t rows = plan->block_rows;
    char *at = call->memory + plan->row_arrays;
    block_memory *const m = &call->rows;
    m->log_sum_exp = take_array(&at, rows);
    m->entropy = take_array(&at, rows);
    m->target_logit = take_array(&at, rows);
    m->target_loss = take_array(&at, rows);
    m->target = (int32_t *)take_array(&at, rows);
    m->factors = (row_factors){.max = take_array(&at, rows),
                               .inverse_sum = take_array(&at, rows),
                               .probability = take_array(&at, rows),
                               .smoothing = take_array(&at, rows),
                               .entropy = take_array(&at, rows),
                               .entropy_center = take_array(&at, rows),
                               .target = take_array(&at, rows),
                               .target_complement = take_array(&at, rows),
                               .target_probability = take_array(&at, rows)};
    m->states = (lmk_cross_entropy_row *)(void *)take_array(&at, 3 * rows);

    const lmk_cross_entropy *const p = call->p;
    call->block = (cross_entropy_block){.bias = p->bias,
                                        .class_weights = p->class_weights,
                                        .softcap = p->softcap,
                                        .logit_scale = p->logit_scale,
                                        .target = m->target,
                                        .target_logit = m->target_logit};
    if (call->phase == PHASE_BACKWARD) return;
    const size_t count = lmk_divide_up(p->vocabulary, VOCABULARY_CHUNK) * rows;
    at = call->memory + plan->statistics;
    row_statistics *const s = &call->block.statistics;
    s->max = take_array(&at, count);
    s->sum = take_array(&at, count);
    float *const weighted_sum = take_array(&at, count), *const smoothing_sum =
                                                            take_array(&at, count);
    int32_t *const argmax = (int32_t *)take_array(&at, count);
    const int needs_entropy =
        call->outputs->entropy || (call->gradients && call->gradients->entropy_gradients);
    s->weighted_sum = needs_entropy ? weighted_sum : 0;
    s->smoothing_sum = p->label_smoothing > 0 ? smoothing_sum : 0;
    s->argmax = call->outputs->predicted ? argmax : 0;
}

static float weight_of(const lmk_cross_entropy *p, int32_t target) {
    return p->class_weights ? p->class_weights[target] : 1.0f;
}

/// Which rows have to be computed; sums of weights.
static void count_rows(cross_entropy_call *call) {
    const lmk_cross_entropy *const p = call->p;
    const lmk_cross_entropy_outputs *const o = call->outputs;
    const lmk_cross_entropy_gradients *const g = call->gradients;
    const int all = (o && (o->log_sum_exp || o->entropy || o->predicted)) ||
                    (g && (g->log_sum_exp_gradients || g->entropy_gradients));
    call->active = (uint32_t *)(void *)(call->memory + call->plan.active);
    for (size_t row = 0; row < p->rows; row++) {
        const int32_t target = lmk_cross_entropy_target(p, row);
        if (target < 0) continue;
        call->active[call->valid_rows++] = (uint32_t)row;
        call->target_weight += (double)weight_of(p, target);
    }
    call->active_count = call->gradient_count = call->valid_rows;
    for (size_t row = 0; all && row < p->rows; row++) {
        if (lmk_cross_entropy_target(p, row) < 0)
            call->active[call->active_count++] = (uint32_t)row;
    }
    if (g && (g->log_sum_exp_gradients || g->entropy_gradients))
        call->gradient_count = call->active_count;
    call->class_weight = (double)p->vocabulary;
    if (p->class_weights) {
        call->class_weight = 0;
        for (size_t j = 0; j < p->vocabulary; j++)
            call->class_weight += (double)p->class_weights[j];
    }
}

static lmk_operand hidden_operand(const cross_entropy_call *call, int as_lanes) {
    const lmk_cross_entropy *const p = call->p;
    return (lmk_operand){.data = p->hidden,
                         .dtype = LMK_FLOAT32,
                         .depth_contiguous = as_lanes,
                         .stride = p->hidden_stride,
                         .lanes = as_lanes ? call->block.rows : p->features,
                         .depth = as_lanes ? p->features : call->block.rows,
                         .index = call->active + call->first};
}

static lmk_operand classifier_operand(const cross_entropy_call *call, int as_lanes, size_t first,
                                      size_t count) {
    const lmk_cross_entropy *const p = call->p;
    return (lmk_operand){.data = p->classifier + first * p->classifier_stride,
                         .dtype = LMK_FLOAT32,
                         .depth_contiguous = as_lanes,
                         .stride = p->classifier_stride,
                         .lanes = as_lanes ? count : p->features,
                         .depth = as_lanes ? p->features : count};
}

static lmk_tile_product product(const cross_entropy_call *call) {
    const cross_entropy_plan *const plan = &call->plan;
    return (lmk_tile_product){.kernels = lmk_tile_kernels_for(LMK_FLOAT32),
                              .threads = plan->threads,
                              .shared = call->memory + plan->shared,
                              .shared_size = plan->shared_size,
                              .local = call->memory + plan->local,
                              .local_size = plan->local_size};
}

/// Products of the block's rows with classes first..<first + count, into `c` or only past the
/// statistics.
static void multiply_logits(cross_entropy_call *call, size_t first, size_t count, float *c,
                            int takes_in) {
    lmk_tile_product logits = product(call);
    logits.a = hidden_operand(call, 1);
    logits.b = classifier_operand(call, 1, first, count);
    logits.c = c;
    logits.c_stride = call->plan.panel_stride;
    logits.share_a = 1;
    if (takes_in) {
        logits.epilogue = call->kernels->take_in;
        logits.context = &call->block;
        logits.chunk = VOCABULARY_CHUNK;
    }
    lmk_tile_run(&logits);
}

static void finish_slot(void *context, size_t slot, unsigned worker) {
    (void)worker;
    cross_entropy_call *const call = context;
    const size_t begin = slot * ROWS_PER_SLOT,
                 end = lmk_min(begin + ROWS_PER_SLOT, call->block.rows);
    call->kernels->finish(&call->block, lmk_divide_up(call->p->vocabulary, VOCABULARY_CHUNK), begin,
                          end, call->rows.states, call->rows.log_sum_exp,
                          call->block.statistics.weighted_sum ? call->rows.entropy : 0);
}

/// Outputs of the block's rows, and their part of the loss.
static void put_outputs(cross_entropy_call *call) {
    const lmk_cross_entropy *const p = call->p;
    const lmk_cross_entropy_outputs *const o = call->outputs;
    const block_memory *const m = &call->rows;
    const row_statistics *const s = &call->block.statistics;
    const double smoothing = (double)p->label_smoothing;
    for (size_t i = 0; i < call->block.rows; i++) {
        const size_t row = call->active[call->first + i];
        const int32_t target = m->target[i];
        if (o->log_sum_exp) o->log_sum_exp[row] = m->log_sum_exp[i];
        if (o->entropy) o->entropy[row] = m->entropy[i];
        if (o->predicted) o->predicted[row] = s->argmax[i];
        if (o->row_states) o->row_states[row] = m->states[i];
        if (o->target_logit) o->target_logit[row] = m->target_logit[i];
        if (target < 0) continue;
        if (o->predicted && s->argmax[i] == target) call->correct++;
        const double lse = (double)m->log_sum_exp[i];
        const double weight = (1 - smoothing) * (double)weight_of(p, target);
        // Weight 0 takes a target out, even one that has probability 0.
        double loss = weight > 0 ? weight * (double)m->states[i].target_loss : 0;
        if (smoothing > 0) {
            const double excess = call->class_weight * lse - (double)s->smoothing_sum[i];
            loss += smoothing / (double)p->vocabulary * excess;
        }
        const double z = (double)p->z_loss * (lse * lse);
        if (o->loss) o->loss[row] = (float)(p->z_loss > 0 ? loss + z : loss);
        call->loss_sum += loss;
        if (p->z_loss > 0) call->z_sum += z;
    }
}

static double quotient_or_zero(double a, double b) { return b > 0 ? a / b : 0; }

/// What the gradient kernel multiplies a row's probabilities by.
static void put_factors(cross_entropy_call *call) {
    const lmk_cross_entropy *const p = call->p;
    const lmk_cross_entropy_gradients *const g = call->gradients;
    block_memory *const m = &call->rows;
    row_factors *const f = &m->factors;
    const double smoothing = (double)p->label_smoothing;
    const double over_vocabulary = smoothing / (double)p->vocabulary;
    for (size_t i = 0; i < call->block.rows; i++) {
        const size_t row = call->active[call->first + i];
        const int32_t target = m->target[i];
        const lmk_cross_entropy_row state = m->states[i];
        // Upstream gradients of the cross-entropy part and of the z part, which a mean divides by
        // different numbers.
        double upstream = (double)g->loss_gradient, z_upstream = upstream;
        if (p->reduction == LMK_REDUCTION_NONE)
            upstream = z_upstream = g->loss_gradients ? (double)g->loss_gradients[row] : 0;
        if (p->reduction == LMK_REDUCTION_MEAN) {
            upstream = quotient_or_zero(upstream, call->target_weight);
            z_upstream = quotient_or_zero(z_upstream, (double)call->valid_rows);
        }
        if (target < 0) upstream = z_upstream = 0;
        const double lse = (double)m->log_sum_exp[i];
        const double own =
            target < 0 ? 0 : upstream * (1 - smoothing) * (double)weight_of(p, target);
        double probability = own + upstream * over_vocabulary * call->class_weight;
        if (p->z_loss > 0 && target >= 0) probability += z_upstream * 2 * (double)p->z_loss * lse;
        if (g->log_sum_exp_gradients) probability += (double)g->log_sum_exp_gradients[row];
        f->max[i] = state.max;
        f->inverse_sum[i] = 1.0f / state.sum;
        f->probability[i] = (float)probability;
        f->smoothing[i] = (float)(upstream * over_vocabulary);
        f->entropy[i] = g->entropy_gradients ? g->entropy_gradients[row] : 0;
        f->entropy_center[i] = g->entropy_gradients ? (float)(lse - (double)m->entropy[i]) : 0;
        f->target[i] = (float)own;
        m->target_loss[i] = state.target_loss;
    }
    call->kernels->target_probabilities(m->target_loss, f->target_probability, f->target_complement,
                                        call->block.rows);
    call->block.factors = *f;
    if (smoothing == 0) call->block.factors.smoothing = 0;
    if (!g->entropy_gradients) call->block.factors.entropy = 0;
}

static void gradient_slot(void *context, size_t slot, unsigned worker) {
    (void)worker;
    cross_entropy_call *const call = context;
    const size_t begin = slot * call->gradient_columns;
    const size_t columns = lmk_min(call->gradient_columns, call->panel_columns - begin);
    call->kernels->gradient(&call->block, call->panel + begin, call->plan.panel_stride, begin,
                            columns);
}

/// Gradients from the logits in the panel: classes first..<first + count.
static void use_panel(cross_entropy_call *call, size_t first, size_t count) {
    const lmk_cross_entropy_gradients *const g = call->gradients;
    const cross_entropy_plan *const plan = &call->plan;
    call->block.panel_column = first;
    call->block.bias_gradient = g->bias;
    call->panel_columns = count;
    const int is_narrow = count < 4 * (size_t)plan->threads * VOCABULARY_CHUNK;
    call->gradient_columns = is_narrow ? LMK_COLUMN_BLOCK / 8 : VOCABULARY_CHUNK;
    lmk_parallel_for(lmk_divide_up(count, call->gradient_columns), plan->threads, gradient_slot,
                     call);

    const lmk_operand panel = {.data = call->panel,
                               .dtype = LMK_FLOAT32,
                               .depth_contiguous = 1,
                               .stride = plan->panel_stride,
                               .lanes = call->block.rows,
                               .depth = count};
    if (g->classifier) {
        lmk_tile_product classifier = product(call);
        classifier.a = panel;
        classifier.a.depth_contiguous = 0;
        classifier.a.lanes = count;
        classifier.a.depth = call->block.rows;
        classifier.b = hidden_operand(call, 0);
        classifier.c = g->classifier + first * g->classifier_stride;
        classifier.c_stride = g->classifier_stride;
        classifier.accumulate = g->accumulate_classifier || call->first > 0;
        lmk_tile_run(&classifier);
    }
    if (g->hidden) {
        lmk_tile_product hidden = product(call);
        hidden.a = panel;
        hidden.b = classifier_operand(call, 0, first, count);
        hidden.c = (float *)(void *)(call->memory + plan->hidden_gradient);
        hidden.c_stride = call->p->features;
        hidden.accumulate = first > 0;
        lmk_tile_run(&hidden);
    }
}

static void put_hidden_gradient_slot(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const cross_entropy_call *const call = context;
    const lmk_cross_entropy_gradients *const g = call->gradients;
    const size_t features = call->p->features;
    const float *const from =
        (const float *)(const void *)(call->memory + call->plan.hidden_gradient);
    const size_t end = lmk_min((slot + 1) * ROWS_PER_SLOT, call->block.rows);
    for (size_t i = slot * ROWS_PER_SLOT; i < end; i++) {
        float *const to = g->hidden + call->active[call->first + i] * g->hidden_stride;
        if (!g->accumulate_hidden) {
            memcpy(to, from + i * features, features * sizeof(float));
        } else {
            for (size_t k = 0; k < features; k++) to[k] += from[i * features + k];
        }
    }
}

/// States of the block's rows, as forward left them.
static void take_states(cross_entropy_call *call) {
    block_memory *const m = &call->rows;
    for (size_t i = 0; i < call->block.rows; i++) {
        const size_t row = call->active[call->first + i];
        m->states[i] = call->row_states[row];
        if (call->row_entropy) m->entropy[i] = call->row_entropy[row];
    }
    call->kernels->log_sum_exp(m->states, m->log_sum_exp, call->block.rows);
}

static void run_block(cross_entropy_call *call, size_t first) {
    const lmk_cross_entropy *const p = call->p;
    const cross_entropy_plan *const plan = &call->plan;
    call->first = first;
    call->block.rows = lmk_min(plan->block_rows, call->active_count - first);
    for (size_t i = 0; i < call->block.rows; i++) {
        call->rows.target[i] = lmk_cross_entropy_target(p, call->active[first + i]);
        call->rows.target_logit[i] = 0;
    }
    call->panel = (float *)(void *)(call->memory + plan->panel);
    const size_t slots = lmk_divide_up(call->block.rows, ROWS_PER_SLOT);

    if (call->phase == PHASE_BACKWARD) {
        take_states(call);
    } else {
        multiply_logits(call, 0, p->vocabulary, plan->mode == LMK_MODE_PANEL ? call->panel : 0, 1);
        lmk_parallel_for(slots, plan->threads, finish_slot, call);
        put_outputs(call);
    }
    if (call->phase == PHASE_FORWARD || first >= call->gradient_count) return;

    call->block.rows = lmk_min(call->block.rows, call->gradient_count - first);
    put_factors(call);
    for (size_t class = 0; class < p->vocabulary; class += plan->panel_vocabulary) {
        const size_t count = lmk_min(plan->panel_vocabulary, p->vocabulary - class);
        if (plan->mode == LMK_MODE_RECOMPUTE) multiply_logits(call, class, count, call->panel, 0);
        use_panel(call, class, count);
    }
    if (call->gradients->hidden)
        lmk_parallel_for(slots, plan->threads, put_hidden_gradient_slot, call);
}

static void clear_rows(float *x, size_t rows, size_t columns, size_t stride) {
    for (size_t i = 0; i < rows; i++) memset(x + i * stride, 0, columns * sizeof(float));
}

/// Outputs of rows that are not computed.
static void clear_outputs(const cross_entropy_call *call) {
    const lmk_cross_entropy *const p = call->p;
    const lmk_cross_entropy_outputs *const o = call->outputs;
    if (o) {
        if (o->loss) memset(o->loss, 0, p->rows * sizeof(float));
        if (o->target_logit) memset(o->target_logit, 0, p->rows * sizeof(float));
        if (o->row_states) memset(o->row_states, 0, p->rows * sizeof(lmk_cross_entropy_row));
    }
    const lmk_cross_entropy_gradients *const g = call->gradients;
    if (!g) return;
    if (g->bias && !g->accumulate_bias) memset(g->bias, 0, p->vocabulary * sizeof(float));
    if (g->classifier && !g->accumulate_classifier && call->gradient_count == 0) {
        clear_rows(g->classifier, p->vocabulary, p->features, g->classifier_stride);
    }
    if (g->hidden && !g->accumulate_hidden && call->gradient_count < p->rows) {
        clear_rows(g->hidden, p->rows, p->features, g->hidden_stride);
    }
}

static void summarise(const cross_entropy_call *call, lmk_cross_entropy_summary *summary) {
    if (!summary) return;
    *summary = (lmk_cross_entropy_summary){.valid_rows = call->valid_rows,
                                           .weight = call->target_weight,
                                           .correct = call->correct,
                                           .mode = call->plan.mode,
                                           .block_rows = call->plan.block_rows,
                                           .block_vocabulary = call->plan.panel_vocabulary};
    if (call->p->reduction == LMK_REDUCTION_SUM) summary->loss = call->loss_sum + call->z_sum;
    if (call->p->reduction == LMK_REDUCTION_MEAN) {
        summary->loss = quotient_or_zero(call->loss_sum, call->target_weight) +
                        quotient_or_zero(call->z_sum, (double)call->valid_rows);
    }
}

/// Everything after validation of the arguments that only one phase has.
static lmk_status run(cross_entropy_call *call, lmk_cross_entropy_summary *summary, void *workspace,
                      size_t workspace_size, lmk_error *error) {
    const lmk_cross_entropy *const p = call->p;
    if (!lmk_cross_entropy_plan(p, call->gradients, call->phase, &call->plan)) {
        return lmk_fail_size(error, "memory_budget", call->plan.total,
                             p->memory_budget ? p->memory_budget
                                              : LMK_CROSS_ENTROPY_DEFAULT_BUDGET);
    }
    if (workspace_size < call->plan.total)
        return lmk_fail_size(error, "workspace", call->plan.total, workspace_size);
    if (call->plan.total > 0 && !workspace) return lmk_fail_null(error, "workspace");
    call->kernels = kernels_in_use();
    call->memory = (char *)lmk_round_up((uintptr_t)workspace, 64);
    if (p->rows > 0) {
        count_rows(call);
        take_block_memory(call);
    }
    if (call->phase == PHASE_BACKWARD) {
        for (size_t i = 0; i < call->active_count; i++) {
            const uint32_t row = call->active[i];
            if (call->row_states[row].sum != 0 || call->row_states[row].max == -INFINITY) continue;
            return lmk_fail(error, (lmk_error){.status = LMK_BAD_ENTRY,
                                               .argument = "row_states",
                                               .allowed = "rows that forward has computed",
                                               .index = row});
        }
    }
    clear_outputs(call);
    for (size_t first = 0; first < call->active_count; first += call->plan.block_rows)
        run_block(call, first);
    summarise(call, summary);
    return LMK_OK;
}

size_t lmk_cross_entropy_workspace_size(const lmk_cross_entropy *problem,
                                        const lmk_cross_entropy_gradients *gradients) {
    if (lmk_cross_entropy_check_options(problem, 0) != LMK_OK) return 0;
    // A budget may do for one kind of call and not for the other.
    const cross_entropy_phase phases[] = {PHASE_FORWARD, PHASE_BOTH, PHASE_BACKWARD};
    size_t largest = 0;
    for (size_t i = gradients ? 1 : 0; i < (gradients ? 3 : 1); i++) {
        cross_entropy_plan plan;
        const cross_entropy_phase phase = phases[i];
        if (lmk_cross_entropy_plan(problem, gradients, phase, &plan)) {
            largest = lmk_max(largest, plan.total);
        }
    }
    return largest;
}

lmk_status lmk_cross_entropy_forward(const lmk_cross_entropy *problem,
                                     const lmk_cross_entropy_outputs *outputs,
                                     lmk_cross_entropy_summary *summary, void *workspace,
                                     size_t workspace_size, lmk_error *error) {
    const lmk_status status = lmk_cross_entropy_check_problem(problem, error);
    if (status != LMK_OK) return status;
    cross_entropy_call call = {.p = problem, .outputs = outputs, .phase = PHASE_FORWARD};
    return run(&call, summary, workspace, workspace_size, error);
}

lmk_status lmk_cross_entropy_backward(const lmk_cross_entropy *problem,
                                      const lmk_cross_entropy_row *row_states, const float *entropy,
                                      const lmk_cross_entropy_gradients *gradients,
                                      lmk_cross_entropy_summary *summary, void *workspace,
                                      size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_cross_entropy_check_problem(problem, error);
    if (status == LMK_OK) status = lmk_cross_entropy_check_gradients(problem, gradients, error);
    if (status != LMK_OK) return status;
    if (problem->rows > 0 && !row_states) return lmk_fail_null(error, "row_states");
    if (problem->rows > 0 && gradients->entropy_gradients && !entropy) {
        return lmk_fail_conflict(error, "entropy", "needed with entropy_gradients");
    }
    cross_entropy_call call = {.p = problem,
                               .gradients = gradients,
                               .row_states = row_states,
                               .row_entropy = entropy,
                               .phase = PHASE_BACKWARD};
    return run(&call, summary, workspace, workspace_size, error);
}

lmk_status lmk_cross_entropy_forward_backward(const lmk_cross_entropy *problem,
                                              const lmk_cross_entropy_outputs *outputs,
                                              const lmk_cross_entropy_gradients *gradients,
                                              lmk_cross_entropy_summary *summary, void *workspace,
                                              size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_cross_entropy_check_problem(problem, error);
    if (status == LMK_OK) status = lmk_cross_entropy_check_gradients(problem, gradients, error);
    if (status != LMK_OK) return status;
    cross_entropy_call call = {
        .p = problem, .outputs = outputs, .gradients = gradients, .phase = PHASE_BOTH};
    return run(&call, summary, workspace, workspace_size, error);
}
