#include "plan.h"

/// Blocks of rows are cut at multiples of this, so that sums over rows are the same whatever the
/// budget.
#define ROW_UNIT LMK_DEPTH_BLOCK

/// Rows beyond which a larger block gains nothing: classifier and its gradient already pass by
/// rarely enough.
#define BLOCK_ROWS_MAX 1024

/// Classes below which the panel of recompute mode costs more in packing than larger blocks of rows
/// save.
#define PANEL_VOCABULARY_GOOD 4096

/// Shared panels of the gradients' products beyond which they are packed in several turns.
#define GRADIENT_SHARED_LIMIT ((size_t)4 << 20)

/// Multiply-adds below which the call stays on its thread.
#define SERIAL_LIMIT ((size_t)1 << 18)

/// Past a multiple of 16 by 16: rows a power of two apart would fall into the same cache sets.
#define PANEL_PADDING 16

#define ALIGNMENT 64

static size_t aligned(size_t bytes) { return lmk_round_up(bytes, ALIGNMENT); }

/// Lays out the workspace for these blocks.
static void lay_out(const lmk_cross_entropy *p, const lmk_cross_entropy_gradients *gradients,
                    cross_entropy_phase phase, lmk_cross_entropy_mode mode, size_t block_rows,
                    size_t panel_vocabulary, cross_entropy_plan *plan) {
    const int has_panel = mode != LMK_MODE_FORWARD;
    const int has_statistics = phase != PHASE_BACKWARD;
    plan->mode = mode;
    plan->block_rows = block_rows;
    plan->panel_vocabulary = has_panel ? panel_vocabulary : 0;
    plan->panel_stride =
        has_panel ? lmk_round_up(panel_vocabulary, PANEL_PADDING) + PANEL_PADDING : 0;
    plan->shared_size = lmk_tile_shared_size(block_rows, p->features);
    if (has_panel) {
        const size_t wanted =
            lmk_min(lmk_tile_shared_size(p->features, block_rows), GRADIENT_SHARED_LIMIT);
        plan->shared_size = lmk_max(plan->shared_size, wanted);
    }
    plan->shared_size = aligned(plan->shared_size);
    plan->local_size =
        aligned(lmk_tile_local_size(has_statistics && mode != LMK_MODE_PANEL ? block_rows : 0));

    size_t at = 0;
    plan->active = at;
    at += aligned(sizeof(uint32_t) * p->rows);
    plan->row_arrays = at;
    at += ROW_ARRAYS * aligned(sizeof(float) * block_rows);
    plan->statistics = at;
    if (has_statistics) {
        const size_t chunks = lmk_divide_up(p->vocabulary, VOCABULARY_CHUNK);
        at += STATISTICS_ARRAYS * aligned(sizeof(float) * chunks * block_rows);
    }
    plan->shared = at;
    at += plan->shared_size;
    plan->local = at;
    at += plan->threads * plan->local_size;
    plan->panel = at;
    at += aligned(sizeof(float) * block_rows * plan->panel_stride);
    plan->hidden_gradient = at;
    if (gradients && gradients->hidden) at += aligned(sizeof(float) * block_rows * p->features);
    plan->total = at + ALIGNMENT;
}

int lmk_cross_entropy_plan(const lmk_cross_entropy *p, const lmk_cross_entropy_gradients *gradients,
                           cross_entropy_phase phase, cross_entropy_plan *plan) {
    *plan = (cross_entropy_plan){.threads = lmk_thread_count(p->threads)};
    if (p->rows == 0) return 1;
    if ((double)p->rows * (double)p->vocabulary * (double)p->features < (double)SERIAL_LIMIT)
        plan->threads = 1;
    const size_t budget = p->memory_budget ? p->memory_budget : LMK_CROSS_ENTROPY_DEFAULT_BUDGET;
    const size_t allowed = budget + 64 * p->rows;
    const size_t least_rows = lmk_min(p->rows, ROW_UNIT),
                 least_vocabulary = lmk_min(p->vocabulary, VOCABULARY_CHUNK);
    const size_t most_rows = lmk_min(lmk_round_up(p->rows, ROW_UNIT), BLOCK_ROWS_MAX);

    if (phase != PHASE_BACKWARD) {
        const lmk_cross_entropy_mode mode =
            phase == PHASE_FORWARD ? LMK_MODE_FORWARD : LMK_MODE_PANEL;
        for (size_t rows = most_rows;; rows -= ROW_UNIT) {
            const size_t block_rows = lmk_min(rows, p->rows);
            lay_out(p, gradients, phase, mode, block_rows, p->vocabulary, plan);
            if (plan->total <= allowed) return 1;
            if (rows <= ROW_UNIT) break;
        }
    }
    if (phase != PHASE_FORWARD) {
        // The largest block of rows that leaves room for a good panel, else the smallest with the
        // widest panel.
        for (size_t rows = most_rows;; rows -= ROW_UNIT) {
            const size_t block_rows = lmk_min(rows, p->rows);
            lay_out(p, gradients, phase, LMK_MODE_RECOMPUTE, block_rows, least_vocabulary, plan);
            if (plan->total <= allowed) {
                const size_t more = (allowed - plan->total) / (sizeof(float) * block_rows);
                const size_t vocabulary = lmk_min(
                    p->vocabulary, least_vocabulary + more / VOCABULARY_CHUNK * VOCABULARY_CHUNK);
                if (vocabulary >= lmk_min(p->vocabulary, PANEL_VOCABULARY_GOOD) ||
                    rows <= ROW_UNIT) {
                    lay_out(p, gradients, phase, LMK_MODE_RECOMPUTE, block_rows, vocabulary, plan);
                    if (plan->total > allowed) {
                        lay_out(p, gradients, phase, LMK_MODE_RECOMPUTE, block_rows,
                                least_vocabulary, plan);
                    }
                    return 1;
                }
            }
            if (rows <= ROW_UNIT) break;
        }
    }
    // Nothing fits: the smallest of the layouts that were tried. With many threads and few classes
    // that can be a panel, which needs no scratch for each thread.
    lay_out(p, gradients, phase, phase == PHASE_FORWARD ? LMK_MODE_FORWARD : LMK_MODE_RECOMPUTE,
            least_rows, least_vocabulary, plan);
    if (phase == PHASE_BOTH) {
        cross_entropy_plan panel = {.threads = plan->threads};
        lay_out(p, gradients, phase, LMK_MODE_PANEL, least_rows, p->vocabulary, &panel);
        if (panel.total < plan->total) *plan = panel;
    }
    plan->total = plan->total > 64 * p->rows ? plan->total - 64 * p->rows : 1;
    return 0;
}
