/* Sampling one token of a large vocabulary: computes what `top_tokens` and `run_race` of
   src/octavo/generation/sampling.py do.

   `SamplingKernels` of src/octavo/kernels/sampling.py calls these functions and allocates all arrays.

   Axis letters: V vocabulary, K tokens that can be sampled. */

#include <stdint.h>

#include "floats.h"

#define VECTORS_AT_ONCE 4

/* Floats in ascending order have ascending keys: their bits, with all but the sign inverted if they are negative. */
#define LOWEST_KEY (-2139095041ll) /* of -inf */
#define HIGHEST_KEY 2139095040ll /* of inf */

static float float_of_key(int64_t key)
{
    const int32_t bits = (int32_t)key < 0 ? (int32_t)key ^ 0x7fffffff : (int32_t)key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int64_t count_at_least(const float *x, int64_t n, float least)
{
    int64_t i = 0, count = 0;
    ints counts = {0};
    for (; i + LANES <= n; i += LANES) counts -= load(x + i) >= broadcast(least); /* a comparison that is true is -1 */
    for (int lane = 0; lane < LANES; lane++) count += counts[lane];
    for (; i < n; i++) count += x[i] >= least;
    return count;
}

/* A number that k of n numbers reach, or more if the smallest of those k has ties; -inf if n is below k. A binary
   search takes linear time, whatever the order of the numbers. */
static float find_threshold(const float *x, int64_t n, int64_t k)
{
    int64_t key = LOWEST_KEY;
    for (int64_t step = 1ll << 31; step; step /= 2) {
        if (key + step > HIGHEST_KEY) continue;
        const int64_t count = count_at_least(x, n, float_of_key(key + step));
        if (count >= k) key += step;
        if (count == k) break;
    }
    return float_of_key(key);
}

ALWAYS_INLINE floats maximum(floats a, floats b) { return blend(a > b, a, b); }

/* Divides the numbers into groups and writes the maximum of each. Returns the number of groups, which is a multiple of
   LANES: a group is one lane of `vectors` consecutive vectors. The numbers after the last whole group are left out. */
static int64_t find_maxima(const float *x, int64_t n, int64_t vectors, float *maxima)
{
    int64_t groups = 0;
    for (const float *end = x + n; end - x >= vectors * LANES; groups += LANES) {
        floats largest[VECTORS_AT_ONCE];
        for (int j = 0; j < VECTORS_AT_ONCE; j++) largest[j] = load(x);
        int64_t v = 0;
        for (; v + VECTORS_AT_ONCE <= vectors; v += VECTORS_AT_ONCE, x += VECTORS_AT_ONCE * LANES)
            UNROLLED for (int j = 0; j < VECTORS_AT_ONCE; j++) largest[j] = maximum(largest[j], load(x + j * LANES));
        for (; v < vectors; v++, x += LANES) largest[0] = maximum(largest[0], load(x));
        store(maxima + groups, maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3])));
    }
    return groups;
}

/* Whether a comparison is true in any lane. */
ALWAYS_INLINE int any(ints comparison)
{
#if defined __AVX512F__
    return _mm512_test_epi32_mask((__m512i)comparison, (__m512i)comparison) != 0;
#elif defined __AVX2__
    return _mm256_movemask_ps((__m256)comparison) != 0;
#else
    int64_t halves[2];
    memcpy(halves, &comparison, sizeof halves);
    return (halves[0] | halves[1]) != 0;
#endif
}

/* Writes the ids of all numbers of at least `least`, ascending, and their quotients. Returns how many. */
static int64_t gather(const float *x, int64_t V, float least, float divisor, int64_t *ids, float *quotients)
{
    int64_t K = 0;
    for (int64_t start = 0; start < V; start += VECTORS_AT_ONCE * LANES) {
        const int64_t end = start + VECTORS_AT_ONCE * LANES <= V ? start + VECTORS_AT_ONCE * LANES : V;
        if (end < V) {
            ints reached = {0};
            UNROLLED for (int j = 0; j < VECTORS_AT_ONCE; j++)
                reached |= load(x + start + j * LANES) >= broadcast(least);
            if (!any(reached)) continue;
        }
        for (int64_t i = start; i < end; i++) { /* without a branch; K never exceeds i */
            ids[K] = i;
            quotients[K] = x[i];
            K += x[i] >= least;
        }
    }
    for (int64_t i = 0; i < K; i++) quotients[i] /= divisor;
    return K;
}

/* The ids, ascending, and the values of the k largest of logits (V,) after division by the temperature; more than k if
   several are equal to the last of them. Returns how many. Both arrays have room for V.

   The logits are divided into about 4k groups. At least k logits, and few others, reach the k-th largest maximum of a
   group, so that all other steps handle few numbers. */
int64_t octavo_top_tokens(const float *logits, int64_t V, float temperature, int64_t k, int64_t *ids, float *values)
{
    float least = -INFINITY;
    const int64_t vectors = V / (4 * k) < V / LANES ? V / (4 * k) : V / LANES; /* of a group */
    if (vectors >= 2) {
        least = find_threshold(values, find_maxima(logits, V, vectors, values), k);
        /* Slightly smaller logits may have the same quotient. If it overflows, much smaller ones. */
        least = isinf(least / temperature) ? -INFINITY : least - (fabsf(least) * 1e-6f + 1e-42f);
    }
    const int64_t candidates = gather(logits, V, least, temperature, ids, values);
    const float threshold = find_threshold(values, candidates, k);
    int64_t K = 0;
    for (int64_t i = 0; i < candidates; i++) {
        ids[K] = ids[i];
        values[K] = values[i];
        K += values[i] >= threshold;
    }
    return K;
}

/* PyTorch's generator on a CPU: the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998). */
#define WORDS 624 /* of a block; a multiple of LANES */
#define BLOCKS 8 /* that are computed at once */

typedef struct { /* the first fields of what `torch.Generator.get_state` returns */
    uint64_t seed;
    int32_t left, is_seeded; /* 1 more than the words of the block that are not used yet */
    uint64_t next, words[WORDS];
} GeneratorState;

ALWAYS_INLINE uints load_words(const uint32_t *words)
{
    uints v;
    memcpy(&v, words, sizeof v);
    return v;
}

/* Writes the block of words after this one. */
static void compute_next_block(uint32_t *words)
{
    for (int i = 0; i < WORDS; i += LANES) {
        const uints first = load_words(words + i), second = load_words(words + i + 1);
        const uints mixed = (first & 0x80000000u) | (second & 0x7fffffffu);
        const uints next = load_words(words + i + 397) ^ mixed >> 1 ^ (-(second & 1u) & 0x9908b0dfu);
        memcpy(words + WORDS + i, &next, sizeof next);
    }
}

static uint64_t temper(uint32_t word)
{
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c5680u;
    word ^= word << 15 & 0xefc60000u;
    return word ^ word >> 18;
}

/* Draws 64 random bits for each of V tokens. Returns the winner of an exponential race among K of them, with these ids,
   which ascend, and probabilities: an index into `probs`. Without `ids`, K is V. Only the bits of the K tokens are
   computed. Returns -1, and draws nothing, if the layout of the state is unknown. */
int64_t octavo_run_race(GeneratorState *state, int64_t V, const int64_t *ids, int64_t K, const float *probs)
{
    const int64_t used = WORDS + 1 - (int64_t)state->left; /* words of the first block */
    if (!state->is_seeded || used < 1 || used > WORDS || (state->next != (uint64_t)used && used != WORDS)) return -1;
    const int64_t end = used + 2 * V; /* counted from the first word of the first block, as `start` is */
    uint32_t words[(1 + BLOCKS) * WORDS]; /* the block at `start`, and up to BLOCKS after it */
    int64_t start = 0, size = WORDS, winner = 0;
    float best = -1;
    for (int i = 0; i < WORDS; i++) words[i] = (uint32_t)state->words[i];
    for (int64_t i = 0; i <= K; i++) {
        /* After the last token, the block of the last word that is drawn for the vocabulary becomes the first block. */
        const int64_t at = i < K ? used + 2 * (ids ? ids[i] : i) : end - 2;
        while (at + 2 > start + size) {
            memmove(words, words + size - WORDS, WORDS * sizeof *words);
            start += size - WORDS;
            for (size = WORDS; size <= BLOCKS * WORDS && start + size < end; size += WORDS)
                compute_next_block(words + size - WORDS);
        }
        if (i == K) break;
        const uint64_t bits = temper(words[at - start]) << 32 | temper(words[at - start + 1]);
        const double uniform = (double)(bits & ((1ull << 53) - 1)) * 0x1p-53;
        /* -log(1 - uniform) is at least `uniform`, so most tokens can't win. The margin is for rounding errors. */
        if (probs[i] < best * uniform * (1 - 1e-6)) continue;
        const float quotient = probs[i] == 0 ? 0 : probs[i] / (float)-log1p(-uniform);
        /* As numpy's argmax: the first of equals, and a NaN counts as the largest. */
        if (best == best && !(quotient <= best)) best = quotient, winner = i;
    }
    const int64_t last = V ? (end - 1 - start) / WORDS * WORDS : 0;
    for (int i = 0; i < WORDS; i++) state->words[i] = words[last + i];
    state->next = end - start - last;
    state->left = WORDS + 1 - (int32_t)state->next;
    return winner;
}
