// The tile matrix product: how rows, columns and depth are cut, and who packs what. The arithmetic
// is in kernels/tile.h.
#include "lmk_tile.h"

#include "lmk_check.h"

#include <string.h>

/// Bytes of one step of one lane, packed.
#define STEP_BYTES 4

/// Row panels that a job keeps in L2 at a time: 8 panels of 14 rows and 512 steps are 256 KB, of 32
/// rows 512 KB.
#define PANELS_IN_L2 LMK_PACK_GROUP

/// Widest panel row of a over all instruction sets, for sizes.
#define ROW_PANEL_MAX 32

static size_t steps_of(const lmk_tile_kernels *kernels, size_t depth) {
    return lmk_round_up(lmk_divide_up(depth, kernels->elements_per_step), kernels->step_unit);
}

/// Rows are cut into panels whose heights differ by at most one unit, larger ones first.
typedef struct row_panels {
    lmk_parts units;
    size_t unit, rows;
} row_panels;

static row_panels cut_rows(const lmk_tile_kernels *kernels, size_t rows) {
    const size_t unit = kernels->row_unit;
    const lmk_parts units = lmk_cut(lmk_divide_up(rows, unit), lmk_divide_up(rows, kernels->rows));
    return (row_panels){units, unit, rows};
}

/// Where panel `i` begins.
static size_t panel_row(row_panels panels, size_t i) {
    return lmk_min(panels.rows, panels.unit * lmk_part(panels.units, i));
}

/// Bytes of one depth block of packed panels.
static size_t block_bytes(size_t panels, size_t width, size_t steps) {
    return STEP_BYTES * panels * width * steps;
}

// A panel of a is `row_panel` lanes wide: those beyond its height are neighbours nobody reads. A
// panel of b is `columns` wide, but the last one is 16 wide when that is enough.

static size_t column_panel_width(const lmk_tile_kernels *kernels, size_t columns_left) {
    return columns_left <= LMK_PANEL_MAX / 2 ? LMK_PANEL_MAX / 2 : kernels->columns;
}

/// Largest operand that tiles read where it lies: past that, rows of it are too far apart for L1.
#define IN_PLACE_LIMIT ((size_t)64 << 10)

static int is_small(const lmk_operand *x, size_t bytes) {
    return !x->index &&
           bytes * x->stride * (x->depth_contiguous ? x->lanes : x->depth) <= IN_PLACE_LIMIT;
}

/// Whether tiles read a where it lies: float32, or pairs of bfloat16 that lie as they are wanted,
/// in whole units.
static int is_a_in_place(const lmk_tile_kernels *kernels, const lmk_operand *a) {
    if (kernels->elements_per_step == 1) return a->dtype == LMK_FLOAT32 && is_small(a, 4);
    const int is_aligned = (uintptr_t)a->data % 4 == 0 && a->stride % 2 == 0;
    const int is_whole = a->depth % (kernels->elements_per_step * kernels->step_unit) == 0 &&
                         a->lanes % kernels->row_unit == 0;
    return a->depth_contiguous && is_whole && is_aligned && is_small(a, 2);
}

/// Whether tiles read b where it lies: its columns are contiguous, and come by 16.
static int is_b_in_place(const lmk_tile_kernels *kernels, const lmk_operand *b) {
    return kernels->elements_per_step == 1 && b->dtype == LMK_FLOAT32 && !b->depth_contiguous &&
           is_small(b, 4) && b->lanes % (LMK_PANEL_MAX / 2) == 0;
}

/// A run of panels. Packed ones follow each other; else those of the operand itself, from its first
/// lane and step on.
typedef struct panel_run {
    const char *data;
    int is_packed;
    size_t stride, lane_stride;
} panel_run;

static panel_run packed(const char *data, size_t lane_stride) {
    return (panel_run){.data = data, .is_packed = 1, .lane_stride = lane_stride};
}

static panel_run in_place(const lmk_tile_kernels *kernels, const lmk_operand *x, size_t lane,
                          size_t step) {
    const size_t stride = x->stride / kernels->elements_per_step;
    const panel_run run = {x->data, 0, x->depth_contiguous ? 1 : stride,
                           x->depth_contiguous ? stride : 1};
    return (panel_run){run.data + STEP_BYTES * (run.stride * step + run.lane_stride * lane), 0,
                       run.stride, run.lane_stride};
}

/// The panel that begins at `lane`, which in a packed run is `offset` bytes on, `width` lanes wide.
static lmk_panel panel_at(const panel_run *run, size_t lane, size_t offset, size_t width) {
    if (run->is_packed) return (lmk_panel){run->data + offset, width, run->lane_stride};
    return (lmk_panel){run->data + STEP_BYTES * run->lane_stride * lane, run->stride,
                       run->lane_stride};
}

/// Packs panels first..<last (at most LMK_PACK_GROUP) of rows begin..<begin + rows of a, one depth
/// block.
static void pack_rows(const lmk_tile_kernels *kernels, const lmk_operand *a, size_t begin,
                      size_t rows, size_t first, size_t last, size_t step, size_t steps, char *to) {
    const row_panels panels = cut_rows(kernels, rows);
    size_t lanes[LMK_PACK_GROUP];
    for (size_t i = first; i < last; i++) lanes[i - first] = begin + panel_row(panels, i);
    kernels->pack_rows(to, kernels->row_panel, a, lanes, last - first, step, steps);
}

/// Packs columns begin..<begin + columns of b, one depth block.
static void pack_columns(const lmk_tile_kernels *kernels, const lmk_operand *b, size_t begin,
                         size_t columns, size_t step, size_t steps, char *to) {
    for (size_t column = 0; column < columns;) {
        const size_t width = column_panel_width(kernels, columns - column);
        size_t lanes[LMK_PACK_GROUP], panels = 0;
        for (; panels < LMK_PACK_GROUP && column < columns; panels++) {
            if (column_panel_width(kernels, columns - column) != width) break;
            lanes[panels] = begin + column;
            column += width;
        }
        kernels->pack(to, width, b, lanes, panels, step, steps);
        to += block_bytes(panels, width, steps);
    }
}

/// One run of memory to fetch.
static lmk_ahead two_halves(const char *data, size_t bytes) {
    return (lmk_ahead){data, data + bytes / 2, lmk_divide_up(bytes, 2)};
}

/// How `tiles` tiles share the fetching: the first half of them one address, the others the other.
typedef struct fetch_plan {
    lmk_ahead ahead;
    size_t half, tile_bytes;
} fetch_plan;

/// Where tile number `i` begins to fetch.
static const char *fetch_from(const fetch_plan *plan, size_t i) {
    return i < plan->half ? plan->ahead.first + i * plan->tile_bytes
                          : plan->ahead.second + (i - plan->half) * plan->tile_bytes;
}

/// Rows of a from `begin` and `step` on, whose panels are packed just before they are used.
typedef struct late_packing {
    const lmk_operand *a;
    size_t begin, step;
} late_packing;

/// c (+)= a b for row panels first..<last and `columns` columns, one depth block; the runs begin at
/// panel `first` and at the first column. `ahead` is what will be read next. With `late` the panels
/// of a are to be packed.
static void multiply(const lmk_tile_kernels *kernels, panel_run a, panel_run b, size_t rows,
                     size_t first, size_t last, size_t columns, size_t steps, float *c,
                     size_t c_stride, int accumulate, lmk_ahead ahead, const late_packing *late) {
    const row_panels panels = cut_rows(kernels, rows);
    const size_t first_row = panel_row(panels, first),
                 a_bytes = block_bytes(1, kernels->row_panel, steps);
    lmk_tile tile = {.depth = steps, .c_stride = c_stride, .accumulate = accumulate};
    for (size_t group = first; group < last; group += PANELS_IN_L2) {
        const size_t group_end = lmk_min(last, group + PANELS_IN_L2);
        if (late) {
            pack_rows(kernels, late->a, late->begin, rows, group, group_end, late->step, steps,
                      (char *)(uintptr_t)a.data + (group - first) * a_bytes);
        }
        const size_t tiles = lmk_divide_up(columns, kernels->columns) * (group_end - group);
        fetch_plan fetch = {.ahead = ahead, .half = lmk_divide_up(tiles, 2)};
        if (a.is_packed && group_end < last) {
            fetch.ahead =
                two_halves(a.data + (group_end - first) * a_bytes, (group_end - group) * a_bytes);
        }
        if (fetch.ahead.bytes == 0) fetch.ahead.first = fetch.ahead.second = b.data;
        tile.next_stride = lmk_divide_up(fetch.ahead.bytes, lmk_max(1, fetch.half * steps));
        fetch.tile_bytes = tile.next_stride * steps;
        size_t count = 0;
        for (size_t column = 0; column < columns; column += kernels->columns) {
            const size_t width = column_panel_width(kernels, columns - column);
            tile.b = panel_at(&b, column, block_bytes(1, column, steps), width);
            tile.columns = lmk_min(width, columns - column);
            if (kernels->strip) {
                const size_t row = panel_row(panels, group) - first_row;
                tile.a = panel_at(&a, row, (group - first) * a_bytes, kernels->row_panel);
                tile.c = c + row * c_stride + column;
                tile.next = fetch_from(&fetch, count);
                count += group_end - group;
                kernels->strip(&tile, panel_row(panels, group_end) - first_row - row,
                               a.is_packed ? a_bytes : STEP_BYTES * kernels->rows * a.lane_stride);
                continue;
            }
            for (size_t i = group; i < group_end; i++) {
                const size_t row = panel_row(panels, i), height = panel_row(panels, i + 1) - row;
                tile.a = panel_at(&a, row - first_row, (i - first) * a_bytes, kernels->row_panel);
                tile.c = c + (row - first_row) * c_stride + column;
                tile.next = fetch_from(&fetch, count++);
                kernels->tile[height - 1][width > LMK_PANEL_MAX / 2][tile.a.lane_stride != 1](
                    &tile);
            }
        }
    }
}

/// Lanes that packed panels of `lanes` lanes take at most: a panel of a is 4 lanes for 3 rows, 8
/// for 6, 16 for 14 or 32 for 32.
static size_t padded_lanes(size_t lanes) { return lanes + lanes / 3 + LMK_PANEL_MAX; }

size_t lmk_tile_shared_size(size_t lanes, size_t depth) {
    return STEP_BYTES * padded_lanes(lanes) * lmk_round_up(lmk_max(depth, 1), LMK_DEPTH_BLOCK);
}

size_t lmk_tile_local_size(size_t scratch_rows) {
    // PANELS_IN_L2 panels of a, or LMK_COLUMN_BLOCK columns of b.
    const size_t packed =
        STEP_BYTES * LMK_DEPTH_BLOCK * lmk_max(PANELS_IN_L2 * ROW_PANEL_MAX, LMK_COLUMN_BLOCK);
    return packed + sizeof(float) * LMK_COLUMN_BLOCK * scratch_rows;
}

/// What every job of one shared block has in common.
typedef struct tile_jobs {
    const lmk_tile_product *product;
    /// Lanes of the shared operand in this block, and steps.
    size_t lane, lanes, step, steps;
    int accumulate;
    /// How jobs cut c: in parts of row panels, and parts of `job_columns` columns.
    size_t rows_begin, rows, columns_begin, columns;
    size_t row_parts, job_columns;
} tile_jobs;

/// Depth blocks of the shared operand, one after the other: panels of one block are together.
static char *shared_block(const tile_jobs *jobs, size_t step) {
    const lmk_tile_product *const p = jobs->product;
    const size_t lanes = p->share_a
                             ? cut_rows(p->kernels, jobs->lanes).units.count * p->kernels->row_panel
                             : lmk_round_up(jobs->lanes, LMK_PANEL_MAX / 2);
    return (char *)p->shared + STEP_BYTES * lanes * step;
}

/// Slot: a group of panels in one depth block of the shared operand.
#define PANELS_PER_PACK_SLOT 4

static size_t shared_panel_groups(const tile_jobs *jobs) {
    const lmk_tile_product *const p = jobs->product;
    const size_t panels = p->share_a ? cut_rows(p->kernels, jobs->lanes).units.count
                                     : lmk_divide_up(jobs->lanes, p->kernels->columns);
    return lmk_divide_up(panels, PANELS_PER_PACK_SLOT);
}

static void pack_shared(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const tile_jobs *const jobs = context;
    const lmk_tile_product *const p = jobs->product;
    const lmk_tile_kernels *const kernels = p->kernels;
    const size_t groups = shared_panel_groups(jobs), group = slot % groups;
    const size_t step = slot / groups * LMK_DEPTH_BLOCK,
                 steps = lmk_min(LMK_DEPTH_BLOCK, jobs->steps - step);
    char *const block = shared_block(jobs, step);
    if (p->share_a) {
        const size_t first = group * PANELS_PER_PACK_SLOT;
        const size_t last =
            lmk_min(first + PANELS_PER_PACK_SLOT, cut_rows(kernels, jobs->lanes).units.count);
        pack_rows(kernels, &p->a, jobs->lane, jobs->lanes, first, last, jobs->step + step, steps,
                  block + block_bytes(first, kernels->row_panel, steps));
    } else {
        const size_t first = group * PANELS_PER_PACK_SLOT * kernels->columns;
        const size_t count = lmk_min(PANELS_PER_PACK_SLOT * kernels->columns, jobs->lanes - first);
        pack_columns(kernels, &p->b, jobs->lane + first, count, jobs->step + step, steps,
                     block + block_bytes(1, first, steps));
    }
}

/// What a product of no depth is.
static void clear(float *c, size_t c_stride, size_t rows, size_t columns) {
    for (size_t i = 0; i < rows; i++) memset(c + i * c_stride, 0, columns * sizeof(float));
}

/// One thread packs the panels of a shared a when it first uses them, and finds them in L2: 0.7%
/// of 1024 x 1024 x 1024. Several pack them before their jobs.
static int packs_late(const tile_jobs *jobs) {
    return jobs->product->share_a && jobs->product->threads == 1;
}

/// One column block of c for a range of row panels, b packed by this worker.
static void run_shared_a(const tile_jobs *jobs, size_t first, size_t last, size_t column,
                         size_t columns, char *local) {
    const lmk_tile_product *const p = jobs->product;
    const lmk_tile_kernels *const kernels = p->kernels;
    const row_panels panels = cut_rows(kernels, jobs->rows);
    const size_t row = jobs->rows_begin + panel_row(panels, first),
                 row_end = jobs->rows_begin + panel_row(panels, last);
    float *const scratch = (float *)(void *)(local + lmk_tile_local_size(0));
    float *const c = p->c ? p->c + row * p->c_stride + column : scratch;
    const size_t c_stride = p->c ? p->c_stride : LMK_COLUMN_BLOCK;
    if (jobs->steps == 0 && !jobs->accumulate) clear(c, c_stride, row_end - row, columns);
    // Few rows: one panel of b at a time, used while it is in L1. Many rows: all panels, so that a
    // is read once from L2.
    const int is_flat = last - first <= PANELS_IN_L2 && p->b.depth_contiguous;
    const size_t pack_columns_by = is_flat ? kernels->columns : columns;
    for (size_t step = 0; step < jobs->steps; step += LMK_DEPTH_BLOCK) {
        const size_t steps = lmk_min(LMK_DEPTH_BLOCK, jobs->steps - step);
        panel_run a =
            packed(shared_block(jobs, step) + block_bytes(first, kernels->row_panel, steps),
                   kernels->row_stride);
        if (is_a_in_place(kernels, &p->a)) a = in_place(kernels, &p->a, row, jobs->step + step);
        lmk_ahead ahead = p->ahead;
        if (a.is_packed) {
            const size_t next = step + steps < jobs->steps ? step + steps : 0,
                         next_steps = lmk_min(LMK_DEPTH_BLOCK, jobs->steps - next);
            const size_t bytes = block_bytes(1, kernels->row_panel, next_steps);
            ahead = two_halves(shared_block(jobs, next) + first * bytes,
                               lmk_min(last - first, PANELS_IN_L2) * bytes);
        }
        for (size_t at = 0; at < columns; at += pack_columns_by) {
            const size_t count = lmk_min(pack_columns_by, columns - at);
            panel_run b = packed(local, 1);
            if (is_b_in_place(kernels, &p->b))
                b = in_place(kernels, &p->b, column + at, jobs->step + step);
            else pack_columns(kernels, &p->b, column + at, count, jobs->step + step, steps, local);
            const late_packing late = {&p->a, jobs->rows_begin, jobs->step + step};
            const int is_first = column == 0 && at == 0;
            multiply(kernels, a, b, jobs->rows, first, last, count, steps, c + at, c_stride,
                     jobs->accumulate || step > 0, ahead,
                     is_first && packs_late(jobs) && a.is_packed ? &late : 0);
        }
    }
    if (p->epilogue) p->epilogue(p->context, c, c_stride, row, row_end - row, column, columns);
}

/// All columns of the shared block of b for a range of row panels, a packed by this worker
/// PANELS_IN_L2 at a time.
static void run_shared_b(const tile_jobs *jobs, size_t first, size_t last, char *local) {
    const lmk_tile_product *const p = jobs->product;
    const lmk_tile_kernels *const kernels = p->kernels;
    const row_panels panels = cut_rows(kernels, jobs->rows);
    for (size_t group = first; group < last; group += PANELS_IN_L2) {
        const size_t group_end = lmk_min(last, group + PANELS_IN_L2);
        const size_t row = jobs->rows_begin + panel_row(panels, group);
        float *const c = p->c + row * p->c_stride + jobs->columns_begin;
        const size_t row_end = jobs->rows_begin + panel_row(panels, group_end);
        if (jobs->steps == 0 && !jobs->accumulate)
            clear(c, p->c_stride, row_end - row, jobs->columns);
        for (size_t step = 0; step < jobs->steps; step += LMK_DEPTH_BLOCK) {
            const size_t steps = lmk_min(LMK_DEPTH_BLOCK, jobs->steps - step);
            panel_run a = packed(local, kernels->row_stride),
                      b = packed(shared_block(jobs, step), 1);
            if (is_a_in_place(kernels, &p->a)) a = in_place(kernels, &p->a, row, jobs->step + step);
            else
                pack_rows(kernels, &p->a, jobs->rows_begin, jobs->rows, group, group_end,
                          jobs->step + step, steps, local);
            if (is_b_in_place(kernels, &p->b))
                b = in_place(kernels, &p->b, jobs->columns_begin, jobs->step + step);
            multiply(kernels, a, b, jobs->rows, group, group_end, jobs->columns, steps, c,
                     p->c_stride, jobs->accumulate || step > 0, p->ahead, 0);
        }
    }
}

static void run_job(void *context, size_t slot, unsigned worker) {
    const tile_jobs *const jobs = context;
    const lmk_tile_product *const p = jobs->product;
    char *const local = p->local + worker * p->local_size;
    const lmk_parts parts = lmk_cut(cut_rows(p->kernels, jobs->rows).units.count, jobs->row_parts);
    const size_t part = slot % jobs->row_parts, first = lmk_part(parts, part),
                 last = lmk_part(parts, part + 1);
    if (p->kernels->begin) p->kernels->begin();
    if (p->share_a) {
        const size_t begin = slot / jobs->row_parts * jobs->job_columns;
        const size_t end = lmk_min(jobs->columns, begin + jobs->job_columns);
        for (size_t column = begin; column < end; column += LMK_COLUMN_BLOCK) {
            run_shared_a(jobs, first, last, column, lmk_min(LMK_COLUMN_BLOCK, end - column), local);
        }
    } else {
        run_shared_b(jobs, first, last, local);
    }
    if (p->kernels->end) p->kernels->end();
}

/// Jobs each thread should find, so that the last ones to finish leave little idle.
#define JOBS_PER_THREAD 4

/// Multiplies one shared block with everything it meets.
static void run_shared(tile_jobs *jobs) {
    const lmk_tile_product *const p = jobs->product;
    if (!packs_late(jobs) &&
        !(p->share_a ? is_a_in_place(p->kernels, &p->a) : is_b_in_place(p->kernels, &p->b))) {
        const size_t slots =
            shared_panel_groups(jobs) * lmk_divide_up(jobs->steps, LMK_DEPTH_BLOCK);
        lmk_parallel_for(slots, p->threads, pack_shared, jobs);
    }
    const size_t wanted = p->threads > 1 ? JOBS_PER_THREAD * (size_t)p->threads : 1;
    const size_t panels = cut_rows(p->kernels, jobs->rows).units.count;
    size_t column_jobs = 1;
    if (p->share_a) {
        // Narrower columns before shorter rows: cutting rows packs b again.
        jobs->job_columns = p->chunk ? p->chunk : LMK_COLUMN_BLOCK;
        if (!p->chunk && !p->epilogue && jobs->columns / jobs->job_columns < wanted) {
            jobs->job_columns =
                lmk_max(2 * LMK_PANEL_MAX,
                        lmk_round_up(lmk_divide_up(jobs->columns, wanted), LMK_PANEL_MAX));
            jobs->job_columns = lmk_min(jobs->job_columns, LMK_COLUMN_BLOCK);
        }
        column_jobs = lmk_divide_up(jobs->columns, jobs->job_columns);
        jobs->row_parts = lmk_min(panels, lmk_divide_up(wanted, column_jobs));
    } else {
        jobs->row_parts =
            p->threads > 1 ? lmk_min(panels, lmk_max(wanted, lmk_divide_up(panels, PANELS_IN_L2)))
                           : 1;
    }
    lmk_parallel_for(column_jobs * jobs->row_parts, p->threads, run_job, jobs);
}

void lmk_tile_run(const lmk_tile_product *product) {
    const size_t rows = product->a.lanes, columns = product->b.lanes;
    if (rows == 0 || columns == 0) return;
    const lmk_tile_kernels *const kernels = product->kernels;
    const size_t steps = steps_of(kernels, product->a.depth);
    const size_t lanes = product->share_a ? rows : columns;
    // As much of the shared operand at a time as there is room for: all of its lanes first, then
    // depth blocks.
    const size_t room = product->shared_size / (STEP_BYTES * LMK_DEPTH_BLOCK);
    const size_t after_padding = room - lmk_min(room, LMK_PANEL_MAX);
    size_t widest = lmk_max(1, after_padding / 4 * 3 + lmk_min(after_padding % 4, 2));
    // Blocks of b begin at whole panels: tiles that read it where it lies read whole ones.
    if (lanes > widest && widest > LMK_PANEL_MAX) widest -= widest % LMK_PANEL_MAX;
    const size_t lane_count = lmk_min(lanes, widest);
    const size_t depth_blocks = lmk_max(1, room / padded_lanes(lane_count));
    size_t step = 0;
    do {
        const size_t block_steps = lmk_min(steps - step, depth_blocks * LMK_DEPTH_BLOCK);
        for (size_t lane = 0; lane < lanes; lane += lane_count) {
            tile_jobs jobs = {.product = product,
                              .lane = lane,
                              .lanes = lmk_min(lane_count, lanes - lane),
                              .step = step,
                              .steps = block_steps,
                              .accumulate = product->accumulate || step > 0,
                              .rows = rows,
                              .columns = columns};
            if (product->share_a) {
                jobs.rows_begin = lane;
                jobs.rows = jobs.lanes;
            } else {
                jobs.columns_begin = lane;
                jobs.columns = jobs.lanes;
            }
            run_shared(&jobs);
        }
        step += block_steps;
    } while (step < steps);
}
