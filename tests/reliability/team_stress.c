/* Several callers use the team of team.h at once, with other numbers of threads in every call. Each call adds up the
   numbers below a limit in two loops; the program ends with 1 at the first wrong sum. */

#include <stdio.h>
#include <stdlib.h>

#include "team.h"

enum { CALLERS = 3, LIMIT = 500 };

typedef struct { long sums[2][LIMIT]; long totals[2]; } Work;

static void add(const void *argument, int thread)
{
    Work *work = (Work *)argument;
    PARALLEL_FOR(i, LIMIT, 7) work->sums[0][i] = i;
    barrier();
    PARALLEL_FOR(i, LIMIT, 3) work->sums[1][i] = 2 * work->sums[0][LIMIT - 1 - i];
    barrier();
    if (thread) return; /* it must not use its argument after its last barrier */
    for (int i = 0; i < LIMIT; i++) work->totals[0] += work->sums[0][i], work->totals[1] += work->sums[1][i];
}

static void *call(void *calls)
{
    unsigned seed = (unsigned)(uintptr_t)&seed;
    for (long i = 0; i < (long)calls; i++) {
        Work *work = calloc(1, sizeof *work);
        run_team(add, work, 1 + rand_r(&seed) % 5);
        const long expected = LIMIT * (LIMIT - 1L) / 2;
        if (work->totals[0] != expected || work->totals[1] != 2 * expected) {
            fprintf(stderr, "wrong sums: %ld, %ld\n", work->totals[0], work->totals[1]);
            exit(1);
        }
        free(work);
    }
    return NULL;
}

int main(int count, char **words)
{
    pthread_t threads[CALLERS];
    void *calls = (void *)(count > 1 ? atol(words[1]) : 1000L);
    for (int i = 0; i < CALLERS; i++) pthread_create(&threads[i], NULL, call, calls);
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    return 0;
}
