// The one place that starts threads. On Linux this calls the OpenMP runtime's GOMP entry point,
// which libomp and libgomp both have: the package can then be built without -fopenmp, which SwiftPM
// would count as an unsafe flag.
#include "lmk_check.h"

#include <stdatomic.h>

typedef struct lmk_team {
    void (*body)(void *context, size_t slot, unsigned worker);
    void *context;
    size_t slots;
    atomic_size_t next_slot;
    // A worker's index is a ticket, not omp_get_thread_num(): in a process that also holds another
    // OpenMP runtime the two symbols can bind to different ones.
    atomic_uint next_worker;
} lmk_team;

static void work(void *data) {
    lmk_team *const team = data;
    const unsigned worker = atomic_fetch_add_explicit(&team->next_worker, 1, memory_order_relaxed);
    for (;;) {
        const size_t slot = atomic_fetch_add_explicit(&team->next_slot, 1, memory_order_relaxed);
        if (slot >= team->slots) return;
        team->body(team->context, slot, worker);
    }
}

#if defined(__APPLE__)
#include <dispatch/dispatch.h>
#include <unistd.h>

static unsigned default_threads(void) { return (unsigned)sysconf(_SC_NPROCESSORS_ONLN); }

static void work_once(void *data, size_t index) {
    (void)index;
    work(data);
}

static void run_team(lmk_team *team, unsigned threads) {
    dispatch_apply_f(threads, DISPATCH_APPLY_AUTO, team, work_once);
}

const char *lmk_thread_runtime(void) { return "libdispatch"; }

#else

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);
int omp_get_max_threads(void);
/// libomp's own entry point: its presence tells the two runtimes apart.
__attribute__((weak)) int __kmpc_global_thread_num(void *location);

static unsigned default_threads(void) {
    return (unsigned)lmk_max(1, (size_t)omp_get_max_threads());
}

static void run_team(lmk_team *team, unsigned threads) { GOMP_parallel(work, team, threads, 0); }

const char *lmk_thread_runtime(void) { return __kmpc_global_thread_num ? "libomp" : "libgomp"; }

#endif

unsigned lmk_thread_count(unsigned limit) {
    return (unsigned)lmk_min(limit ? limit : default_threads(), LMK_MAX_THREADS);
}

void lmk_parallel_for(size_t slots, unsigned threads,
                      void (*body)(void *context, size_t slot, unsigned worker), void *context) {
    const unsigned team_size = (unsigned)lmk_min(slots, threads);
    if (team_size <= 1) {
        for (size_t slot = 0; slot < slots; slot++) body(context, slot, 0);
        return;
    }
    lmk_team team = {.body = body, .context = context, .slots = slots};
    run_team(&team, team_size);
}
