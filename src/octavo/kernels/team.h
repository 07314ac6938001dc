/* A pool of threads that run the same function, share its loops in chunks, and wait for each other at barriers.

   Not OpenMP: its threads spin for milliseconds while they wait. If two of them share a core with each other or with
   another process, each barrier (8 to 12 in a layer) then costs a time slice of the scheduler, which made a step take twenty
   times as long. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

/* A call's low 8 bits are its number of threads, so MAX_THREADS is also their mask. */
enum { MAX_THREADS = 255, MAX_SPINS = 200 };
static struct {
    pthread_mutex_t call_mutex; /* one call of run_team at a time */
    pthread_mutex_t wake_mutex; /* for `wake` */
    pthread_cond_t wake;
    int workers;      /* threads created so far, without the calling thread */
    atomic_uint call; /* the number of calls so far times 256, plus the number of threads of the latest call */
    void (*function)(const void *, int);
    const void *argument;
    int threads;
    atomic_int arrived, next; /* threads at the barrier; the next item of the current loop */
    atomic_uint phase;        /* the number of barriers passed */
} team = {
    .call_mutex = PTHREAD_MUTEX_INITIALIZER, .wake_mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER
};

static void spin(int *spins)
{
    if (++*spins >= MAX_SPINS) sched_yield(); /* the other thread may need this core */
#if defined __x86_64__ || defined __i386__
    else __builtin_ia32_pause();
#elif defined __aarch64__
    else __asm__ volatile("yield");
#endif
}

/* Claims the next `size` items of the current loop for this thread and returns the first. */
static int claim_chunk(int size) { return atomic_fetch_add(&team.next, size); }
#define PARALLEL_FOR(i, count, size) /* i takes this thread's share of 0 ... count - 1, `size` at a time */ \
    for (int i##_from; (i##_from = claim_chunk(size)) < (count);) \
        for (int i = i##_from; i < (count) && i < i##_from + (size); i++)

/* Returns once every thread of the team has called it. Every parallel loop is followed by a barrier. */
static void barrier(void)
{
    const unsigned phase = atomic_load(&team.phase);
    const int threads = team.threads; /* read before the others can leave: the next call may have another number */
    if (atomic_fetch_add(&team.arrived, 1) + 1 == threads) {
        atomic_store(&team.arrived, 0);
        atomic_store(&team.next, 0);
        atomic_fetch_add(&team.phase, 1);
        return;
    }
    for (int spins = 0; atomic_load(&team.phase) == phase;) spin(&spins);
}

/* The main loop of a thread: waits for the next call, spinning at first, then asleep. A new thread may take the
   previous call for a new one, but has no part in it: its index is not below that call's number of threads. */
static void *worker(void *index)
{
    for (unsigned last = 0, call;; last = call) {
        for (int spins = 0; (call = atomic_load(&team.call)) == last;) {
            if (spins < MAX_SPINS) { spin(&spins); continue; }
            pthread_mutex_lock(&team.wake_mutex);
            while (atomic_load(&team.call) == last) pthread_cond_wait(&team.wake, &team.wake_mutex);
            pthread_mutex_unlock(&team.wake_mutex);
        }
        if ((intptr_t)index < (intptr_t)(call & MAX_THREADS)) team.function(team.argument, (int)(intptr_t)index);
    }
    return NULL;
}

static void reset_after_fork(void) /* the child process has none of its parent's threads */
{
    team.workers = 0;
    atomic_store(&team.call, 0);
    atomic_store(&team.arrived, 0);
    atomic_store(&team.next, 0);
    pthread_mutex_init(&team.call_mutex, NULL);
    pthread_mutex_init(&team.wake_mutex, NULL);
    pthread_cond_init(&team.wake, NULL);
}

/* Runs function(argument, thread) on `threads` threads, numbered from 0, the calling one. Uses fewer threads if the
   system has no more. The function must not use its argument after its last barrier, which all threads reach before
   run_team returns. */
static void run_team(void (*function)(const void *, int), const void *argument, int threads)
{
    static int registered;
    pthread_mutex_lock(&team.call_mutex);
    if (!registered) registered = !pthread_atfork(NULL, NULL, reset_after_fork);
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    for (pthread_t thread; team.workers < threads - 1; team.workers++) {
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(team.workers + 1))) break;
        pthread_detach(thread);
    }
    if (threads > team.workers + 1) threads = team.workers + 1;
    team.function = function, team.argument = argument, team.threads = threads;
    pthread_mutex_lock(&team.wake_mutex);
    atomic_store(&team.call, ((atomic_load(&team.call) >> 8) + 1) << 8 | (unsigned)threads);
    pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.wake_mutex);
    function(argument, 0);
    pthread_mutex_unlock(&team.call_mutex);
}
