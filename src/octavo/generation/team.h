/* A team of threads that take pieces of work and meet after each stage.

   Not OpenMP: its threads wait by spinning for milliseconds, and where two of them share a core with each other or with
   somebody else's work, each of eighty meetings a step then costs a slice of the scheduler's: twenty times the time. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

enum { MOST_THREADS = 255, PATIENCE = 200 };
static struct {
    pthread_mutex_t caller, gate;
    pthread_cond_t opened;
    int hired;           /* threads beside those that call */
    atomic_uint call;    /* how many calls there were, times 256, plus the threads of the last */
    void (*work)(const void *);
    const void *with;
    int threads;
    atomic_int arrived, next;
    atomic_uint stage;
} team = {.caller = PTHREAD_MUTEX_INITIALIZER, .gate = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER};

static void wait_a_little(int *waited)
{
    if (++*waited >= PATIENCE) sched_yield(); /* whom it waits for may need this very core */
#if defined __x86_64__ || defined __i386__
    else __builtin_ia32_pause();
#elif defined __aarch64__
    else __asm__ volatile("yield");
#endif
}

/* The first of the next `piece` items, of which whoever asks takes care. */
static int take(int piece) { return atomic_fetch_add(&team.next, piece); }
#define EACH(i, count, piece) /* this thread's share of 0 ... count - 1 */ \
    for (int i##_from; (i##_from = take(piece)) < (count);) \
        for (int i = i##_from; i < (count) && i < i##_from + (piece); i++)

/* Returns when all threads have come here. */
static void meet(void)
{
    const unsigned stage = atomic_load(&team.stage);
    if (atomic_fetch_add(&team.arrived, 1) + 1 == team.threads) {
        atomic_store(&team.arrived, 0);
        atomic_store(&team.next, 0);
        atomic_fetch_add(&team.stage, 1);
        return;
    }
    for (int waited = 0; atomic_load(&team.stage) == stage;) wait_a_little(&waited);
}

static void *worker(void *number)
{
    for (unsigned seen = 0, call;; seen = call) {
        for (int waited = 0; (call = atomic_load(&team.call)) == seen;) {
            if (waited < PATIENCE) { wait_a_little(&waited); continue; }
            pthread_mutex_lock(&team.gate);
            while (atomic_load(&team.call) == seen) pthread_cond_wait(&team.opened, &team.gate);
            pthread_mutex_unlock(&team.gate);
        }
        if ((intptr_t)number < (intptr_t)(call & MOST_THREADS)) team.work(team.with);
    }
    return NULL;
}

static void alone_after_fork(void) /* a child has none of its parent's threads */
{
    team.hired = 0;
    atomic_store(&team.call, 0);
    atomic_store(&team.arrived, 0);
    atomic_store(&team.next, 0);
    pthread_mutex_init(&team.caller, NULL);
    pthread_mutex_init(&team.gate, NULL);
    pthread_cond_init(&team.opened, NULL);
}

/* Has `threads` threads run work(with), this one among them, and returns when all have. */
static void together(void (*work)(const void *), const void *with, int threads)
{
    static int watched;
    pthread_mutex_lock(&team.caller);
    if (!watched) watched = !pthread_atfork(NULL, NULL, alone_after_fork);
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    for (pthread_t thread; team.hired < threads - 1; team.hired++) {
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(team.hired + 1))) break;
        pthread_detach(thread);
    }
    if (threads > team.hired + 1) threads = team.hired + 1;
    team.work = work, team.with = with, team.threads = threads;
    pthread_mutex_lock(&team.gate);
    atomic_store(&team.call, ((atomic_load(&team.call) >> 8) + 1) << 8 | (unsigned)threads);
    pthread_cond_broadcast(&team.opened);
    pthread_mutex_unlock(&team.gate);
    work(with);
    pthread_mutex_unlock(&team.caller);
}
