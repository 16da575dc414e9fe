// The two entry points of an OpenMP runtime that the library calls, on plain pthreads: cross builds
// then need no runtime, and ThreadSanitizer sees every thread start and join.
#include <pthread.h>

/// The library asks for LMK_MAX_THREADS at most; a smaller team than asked for is allowed.
#define TEAM_MAX 64

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);
int omp_get_max_threads(void);

int omp_get_max_threads(void) { return 2; }

typedef struct member {
    void (*function)(void *);
    void *data;
    pthread_t thread;
} member;

static void *run_member(void *argument) {
    member *const m = argument;
    m->function(m->data);
    return 0;
}

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags) {
    (void)flags;
    member members[TEAM_MAX];
    unsigned started = 0;
    for (; started + 1 < threads && started < TEAM_MAX; started++) {
        members[started] = (member){.function = function, .data = data};
        if (pthread_create(&members[started].thread, 0, run_member, &members[started]) != 0) break;
    }
    function(data);
    for (unsigned i = 0; i < started; i++) pthread_join(members[i].thread, 0);
}
