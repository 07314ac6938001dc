/* Fused kernels for everything but the matmuls of a training step: layer norms, biases, GELU, causal softmax, dropout,
   residual additions and cross-entropy, forward and backward. `octavo.fused_step` calls these functions;
   PyTorch multiplies the matrices. Attention over short sequences is one kernel, with its matmuls.

   A function reads and writes each number once, where PyTorch needs an operation, and a pass over memory, for each
   part of it. Activations are float32 or bf16 (`bf16` in the structs). The residual stream, its gradient, statistics,
   biases and gains are float32, and all arithmetic is in float32.

   Rows are processed in chunks of fixed size, by as many threads as there are, and sums over rows are added chunk by
   chunk. So the results have the same bits for any number of threads.

   Axis letters: `B` sequences, `T` positions, `N = B T` rows, `C` width, `H` heads, `D` head width, `V` vocabulary. */

#if defined __GNUC__ && !defined __clang__
#pragma GCC optimize("O3") /* unrolls the loops below, which makes them up to a fifth faster */
#endif

#include <stdatomic.h>
#include <stdint.h>

#include "floats.h"
#include "amx.h"
#include "attention.h"

#define EXPORT __attribute__((visibility("default")))
enum { CHUNK_ROWS = 32 };

/* Threads: those of PyTorch's own OpenMP runtime, since two pools of threads would compete for the cores. */

typedef void (*Parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);
static struct { Parallel run; int (*thread_number)(void); } openmp;

/* Takes GOMP_parallel and omp_get_thread_num of that runtime. Without them everything runs in the calling thread. */
EXPORT void use_openmp(Parallel run, int (*thread_number)(void)) { openmp.run = run, openmp.thread_number = thread_number; }

typedef struct { _Alignas(64) atomic_long next; long end; } Range;

typedef struct {
    void (*function)(const void *, long chunk);
    const void *argument;
    Range *ranges; /* of chunks, one for each thread */
    int threads;
} Job;

/* A thread begins with its own range, whose rows are in its core's cache from the call before, then helps the others. */
static void run_chunks(void *argument)
{
    const Job *job = argument;
    const int thread = job->threads > 1 ? openmp.thread_number() : 0;
    for (int i = 0; i < job->threads; i++) {
        Range *range = job->ranges + (thread + i) % job->threads;
        for (long chunk; (chunk = atomic_fetch_add(&range->next, 1)) < range->end;) job->function(job->argument, chunk);
    }
}

static void parallel_for(void (*function)(const void *, long), const void *argument, long chunks, int threads)
{
    if (!openmp.run || threads < 1) threads = 1;
    if (threads > chunks) threads = chunks > 0 ? (int)chunks : 1;
    Range ranges[threads];
    for (int i = 0; i < threads; i++) {
        atomic_init(&ranges[i].next, chunks * i / threads);
        ranges[i].end = chunks * (i + 1) / threads;
    }
    Job job = {function, argument, ranges, threads};
    if (threads > 1) openmp.run(run_chunks, &job, (unsigned)threads, 0);
    else run_chunks(&job);
}

/* The function NAME(struct, threads), which runs NAME_chunk(struct, chunk, bf16) for each chunk, compiled once for each
   type. Every NAME_chunk copies its struct first: the compiler then knows that no store changes it. */
#define DEFINE(name, Struct, chunk_count) \
    static void name##_bf16(const void *a, long chunk) { name##_chunk(a, chunk, 1); } \
    static void name##_fp32(const void *a, long chunk) { name##_chunk(a, chunk, 0); } \
    EXPORT void name(const Struct *a, int threads) \
    { \
        parallel_for(a->bf16 ? name##_bf16 : name##_fp32, a, chunk_count, threads); \
    }
#define ROW_CHUNKS(rows) (((rows) + CHUNK_ROWS - 1) / CHUNK_ROWS)

/* Loops of NAME_chunk: over the rows of its `chunk`, and over the columns, LANES at a time. FOR_VECTORS declares `count`,
   the number of columns in the vector at c, which is less than LANES at the end of a row. */
#define FOR_ROWS(row, rows) \
    for (long row = chunk * CHUNK_ROWS; row < (rows) && row < (chunk + 1) * CHUNK_ROWS; row++)
#define FOR_VECTORS(c, width) for (long c = 0, count; count = (width) - c < LANES ? (width) - c : LANES, c < (width); c += LANES)

/* Up to LANES numbers of an array in float32 or bf16. Lanes from `count` on are 0, and are not stored. */

ALWAYS_INLINE floats load_some(const void *from, int bf16, long i, long count)
{
    if (count == LANES) return load_as_floats(from, bf16, i);
    char padded[VECTOR_BYTES] = {0};
    const int size = bf16 ? 2 : 4;
    memcpy(padded, (const char *)from + size * i, (size_t)(size * count));
    return load_as_floats(padded, bf16, 0);
}

ALWAYS_INLINE void store_some(void *to, int bf16, long i, long count, floats x)
{
    const int size = bf16 ? 2 : 4;
    char *target = (char *)to + size * i;
    if (!bf16) {
        if (count == LANES) store((float *)target, x);
        else memcpy(target, &x, (size_t)(4 * count));
        return;
    }
#ifdef __AVX512BF16__
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
#else
    const uints bits = (uints)x;
    const uints is_nan = (uints)(x != x); /* adding to its bits could make it a finite number */
    const uints upper = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const half_ushorts rounded = __builtin_convertvector((upper & ~is_nan) | (0x7fc0 & is_nan), half_ushorts);
#endif
    if (count == LANES) memcpy(target, &rounded, sizeof rounded);
    else memcpy(target, &rounded, (size_t)(2 * count));
}

/* These take `count`, and LOAD and STORE also `bf16`, from where they are used. */
#define LOAD(from, i) load_some(from, bf16, i, count) /* an activation */
#define STORE(to, i, x) store_some(to, bf16, i, count, x)
#define LOAD_FP32(from, i) load_some(from, 0, i, count)
#define STORE_FP32(to, i, x) store_some(to, 0, i, count, x)

/* The larger number; b if one of them is NaN. */
ALWAYS_INLINE floats larger(floats a, floats b)
{
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return blend(a > b, a, b);
#endif
}

ALWAYS_INLINE float largest_lane(floats v)
{
#if LANES >= 16
    v = larger(v, SWAP_8(v));
#endif
#if LANES >= 8
    v = larger(v, SWAP_4(v));
#endif
    v = larger(v, SWAP_2(v));
    return v[0] > v[1] ? v[0] : v[1];
}

/* The first `count` lanes of v, and `rest` in the others. */
ALWAYS_INLINE floats fill(floats v, long count, float rest)
{
    if (count == LANES) return v;
    const ints lanes = LANE_NUMBERS;
    return blend(lanes < (int)count, v, broadcast(rest));
}

/* 1 / x for x from 1 to 1e38. A division takes as long as ten multiplications. */
ALWAYS_INLINE floats reciprocal(floats x)
{
#ifdef __AVX512F__
    const floats y = (floats)_mm512_rcp14_ps((__m512)x);
    return y * (2.f - x * y);
#else
    return 1.f / x;
#endif
}

/* e^x for x up to 87, with an error of at most 2 ulp, and 0 for x below -87: products with smaller numbers would be
   denormal, which many CPUs multiply slowly. */
ALWAYS_INLINE floats exp_to_87(floats x)
{
#ifdef __AVX512F__
    const floats n = (floats)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
    const floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
    floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.f;
    const __mmask16 large = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.f), _CMP_NLT_UQ); /* or NaN */
    return (floats)_mm512_maskz_scalef_ps(large, (__m512)p, (__m512)n);
#else
    return blend(x < -87.f, (floats){}, exponential(x));
#endif
}

/* 1 / (1 + e^-x) */
ALWAYS_INLINE floats sigmoid(floats x) { return reciprocal(1.f + exp_to_87(-larger(broadcast(-87.f), x))); }

/* Dropout. An element is dropped if a hash of its row, its column and the key is below the threshold, so the same
   elements are dropped whatever the micro-batch, and the backward computes the hash again. */

typedef struct {
    uint32_t key[2];
    uint32_t threshold; /* the probability to drop, times 2^32; 0 for no dropout */
    float scale;        /* of the elements that are kept */
    int64_t first_row;  /* the number of the first row in the whole batch */
} Dropout;

/* The hash "lowbias32" (Wellons, 2018). */
#define MIX(x) ((x) ^= (x) >> 16, (x) *= 0x7feb352du, (x) ^= (x) >> 15, (x) *= 0x846ca68bu, (x) ^= (x) >> 16)

ALWAYS_INLINE uint32_t row_key(const Dropout *d, long row)
{
    const uint64_t number = (uint64_t)(d->first_row + row);
    uint32_t x = (uint32_t)number ^ d->key[0];
    MIX(x);
    x ^= (uint32_t)(number >> 32) ^ d->key[1];
    MIX(x);
    return x;
}

ALWAYS_INLINE floats drop(floats x, const Dropout *d, uint32_t key, long c)
{
    if (!d->threshold) return x;
    const uints lanes = LANE_NUMBERS;
    uints bits = (lanes + (uint32_t)c) * 0x9e3779b9u + key;
    MIX(bits);
    return blend((ints)(bits >= d->threshold), x * d->scale, (floats){});
}

/* Embedding: x (N, C) = dropout(wte[ids] + wpe[first position ...]). */

typedef struct {
    int64_t B, T, C;
    int bf16;
    const int64_t *ids;      /* (B, T), and stride between sequences */
    int64_t ids_stride;
    const float *wte, *wpe;  /* wpe begins at the first position */
    float *x;                /* (N, C); in the backward its gradient */
    float *wte_gradient, *wpe_gradient;
    const Dropout *dropout;
} Embed;

ALWAYS_INLINE void embed_forward_chunk(const void *argument, long chunk, int bf16)
{
    const Embed a[1] = {*(const Embed *)argument};
    (void)bf16;
    FOR_ROWS(row, a->B * a->T) {
        const uint32_t key = row_key(a->dropout, row);
        const float *token = a->wte + a->ids[row / a->T * a->ids_stride + row % a->T] * a->C;
        const float *position = a->wpe + row % a->T * a->C;
        FOR_VECTORS(c, a->C)
            STORE_FP32(a->x + row * a->C, c, drop(LOAD_FP32(token, c) + LOAD_FP32(position, c), a->dropout, key, c));
    }
}
DEFINE(embed_forward, Embed, ROW_CHUNKS(a->B * a->T))

/* Adds to the gradients of both tables. A chunk is LANES columns, so that no two threads write to the same element. */
ALWAYS_INLINE void embed_backward_chunk(const void *argument, long chunk, int bf16)
{
    const Embed a[1] = {*(const Embed *)argument};
    (void)bf16;
    const long c = chunk * LANES, count = a->C - c < LANES ? a->C - c : LANES;
    for (long row = 0; row < a->B * a->T; row++) {
        const floats x = drop(LOAD_FP32(a->x + row * a->C, c), a->dropout, row_key(a->dropout, row), c);
        float *token = a->wte_gradient + a->ids[row / a->T * a->ids_stride + row % a->T] * a->C;
        float *position = a->wpe_gradient + row % a->T * a->C;
        STORE_FP32(token, c, LOAD_FP32(token, c) + x);
        STORE_FP32(position, c, LOAD_FP32(position, c) + x);
    }
}
DEFINE(embed_backward, Embed, (a->C + LANES - 1) / LANES)

/* The residual stream and the layer norm that reads it. Forward: x += dropout(branch + bias), then
   h = norm(x) gain + norm_bias. Without a branch x stays as it is. */

typedef struct {
    int64_t N, C;
    int bf16;
    const float *x_before; /* (N, C) */
    float *x;              /* (N, C), may be x_before if there is no branch */
    void *branch;          /* (N, C) activation: the output of a projection without its bias, or NULL */
    const float *bias;     /* of the branch, or NULL */
    const float *gain, *norm_bias;
    void *h;               /* (N, C) activation */
    float *mean, *rstd;    /* (N) */
    /* backward */
    float *x_gradient;     /* (N, C), in and out: the gradient of x, to which the part through h is added */
    int has_gradient;      /* whether x_gradient has a value; otherwise it is taken as 0 */
    void *h_gradient;      /* (N, C) activation */
    void *branch_gradient; /* (N, C) activation, out; may be h_gradient */
    float *sums;           /* (chunks, 3, C): gradients of gain, norm_bias and bias, for each chunk of rows */
    const Dropout *dropout; /* of the branch */
} Norm;

ALWAYS_INLINE void norm_forward_chunk(const void *argument, long chunk, int bf16)
{
    const Norm a[1] = {*(const Norm *)argument};
    const long C = a->C;
    FOR_ROWS(row, a->N) {
        const float *before = a->x_before + row * C;
        float *x = a->x + row * C;
        floats sum = {};
        if (a->branch) {
            const uint32_t key = row_key(a->dropout, row);
            FOR_VECTORS(c, C) {
                floats y = LOAD(a->branch, row * C + c);
                if (a->bias) y += LOAD_FP32(a->bias, c);
                const floats total = LOAD_FP32(before, c) + drop(y, a->dropout, key, c);
                STORE_FP32(x, c, total);
                sum += fill(total, count, 0.f);
            }
        } else {
            FOR_VECTORS(c, C) sum += LOAD_FP32(x, c);
        }
        const float mean = horizontal_sum(sum) / (float)C;
        floats squares = {};
        FOR_VECTORS(c, C) {
            const floats difference = LOAD_FP32(x, c) - mean;
            const floats square = difference * difference;
            squares += fill(square, count, 0.f);
        }
        const float rstd = 1.f / sqrtf(horizontal_sum(squares) / (float)C + 1e-5f);
        a->mean[row] = mean, a->rstd[row] = rstd;
        FOR_VECTORS(c, C) {
            floats y = (LOAD_FP32(x, c) - mean) * rstd * LOAD_FP32(a->gain, c);
            if (a->norm_bias) y += LOAD_FP32(a->norm_bias, c);
            STORE(a->h, row * C + c, y);
        }
    }
}
DEFINE(norm_forward, Norm, ROW_CHUNKS(a->N))

ALWAYS_INLINE void norm_backward_chunk(const void *argument, long chunk, int bf16)
{
    const Norm a[1] = {*(const Norm *)argument};
    const long C = a->C;
    float *gain_sums = a->sums + chunk * 3 * C, *norm_bias_sums = gain_sums + C, *bias_sums = norm_bias_sums + C;
    memset(gain_sums, 0, (size_t)(3 * C) * sizeof *gain_sums);
    FOR_ROWS(row, a->N) {
        const float *x = a->x + row * C, mean = a->mean[row], rstd = a->rstd[row];
        float *x_gradient = a->x_gradient + row * C;
        floats sum = {}, product = {};
        FOR_VECTORS(c, C) {
            const floats h_gradient = LOAD(a->h_gradient, row * C + c), normal = (LOAD_FP32(x, c) - mean) * rstd;
            const floats gradient = h_gradient * LOAD_FP32(a->gain, c); /* of `normal`; 0 in lanes from `count` on */
            sum += gradient;
            product += gradient * normal;
            STORE_FP32(gain_sums, c, LOAD_FP32(gain_sums, c) + h_gradient * normal);
            STORE_FP32(norm_bias_sums, c, LOAD_FP32(norm_bias_sums, c) + h_gradient);
        }
        const float mean_gradient = horizontal_sum(sum) / (float)C, mean_product = horizontal_sum(product) / (float)C;
        const uint32_t key = row_key(a->dropout, row);
        FOR_VECTORS(c, C) {
            const floats normal = (LOAD_FP32(x, c) - mean) * rstd;
            const floats gradient = LOAD(a->h_gradient, row * C + c) * LOAD_FP32(a->gain, c);
            floats total = (gradient - mean_gradient - normal * mean_product) * rstd;
            if (a->has_gradient) total += LOAD_FP32(x_gradient, c);
            STORE_FP32(x_gradient, c, total);
            if (a->branch_gradient) {
                const floats branch = drop(total, a->dropout, key, c);
                STORE(a->branch_gradient, row * C + c, branch);
                STORE_FP32(bias_sums, c, LOAD_FP32(bias_sums, c) + branch);
            }
        }
    }
}
DEFINE(norm_backward, Norm, ROW_CHUNKS(a->N))

/* Splitting rows into heads, and merging heads into rows. Rows have P = 3 parts (queries, keys and values), or P = 1
   (the output of all heads). */

typedef struct {
    int64_t B, T, H, D, P;
    int bf16;
    void *rows;          /* (B, T, P, H, D) */
    void *parts;         /* (P, B, H, T, D) */
    const float *bias;   /* (P H D) or NULL, added by split_heads */
    float *sums;         /* (chunks, P H D) or NULL: sums over rows, by merge_heads */
} Heads;

ALWAYS_INLINE void split_heads_chunk(const void *argument, long chunk, int bf16)
{
    const Heads a[1] = {*(const Heads *)argument};
    const long D = a->D, width = a->P * a->H * D;
    FOR_ROWS(row, a->B * a->T)
        for (long part = 0; part < a->P; part++)
            for (long head = 0; head < a->H; head++) {
                const long from = row * width + (part * a->H + head) * D;
                const long to = (((part * a->B + row / a->T) * a->H + head) * a->T + row % a->T) * D;
                FOR_VECTORS(d, D) {
                    floats x = LOAD(a->rows, from + d);
                    if (a->bias) x += LOAD_FP32(a->bias, (part * a->H + head) * D + d);
                    STORE(a->parts, to + d, x);
                }
            }
}
DEFINE(split_heads, Heads, ROW_CHUNKS(a->B * a->T))

ALWAYS_INLINE void merge_heads_chunk(const void *argument, long chunk, int bf16)
{
    const Heads a[1] = {*(const Heads *)argument};
    const long D = a->D, width = a->P * a->H * D;
    float *sums = a->sums ? a->sums + chunk * width : NULL;
    if (sums) memset(sums, 0, (size_t)width * sizeof *sums);
    FOR_ROWS(row, a->B * a->T)
        for (long part = 0; part < a->P; part++)
            for (long head = 0; head < a->H; head++) {
                const long to = row * width + (part * a->H + head) * D;
                const long from = (((part * a->B + row / a->T) * a->H + head) * a->T + row % a->T) * D;
                FOR_VECTORS(d, D) {
                    const floats x = LOAD(a->parts, from + d);
                    STORE(a->rows, to + d, x);
                    if (sums) {
                        float *sum = sums + (part * a->H + head) * D;
                        STORE_FP32(sum, d, LOAD_FP32(sum, d) + x);
                    }
                }
            }
}
DEFINE(merge_heads, Heads, ROW_CHUNKS(a->B * a->T))

/* The softmax of `scale` times the first `seen` scores, in place. Zeros follow, up to PADDED(seen). */
ALWAYS_INLINE void softmax_row(float *scores, long seen, float scale)
{
    floats largest = broadcast(-INFINITY), sum = {};
    FOR_VECTORS(t, seen) {
        const floats x = fill(load(scores + t) * scale, count, -INFINITY);
        store(scores + t, x);
        largest = larger(x, largest);
    }
    const float maximum = largest_lane(largest);
    FOR_VECTORS(t, seen) {
        const floats x = fill(exp_to_87(load(scores + t) - maximum), count, 0.f);
        store(scores + t, x);
        sum += x;
    }
    const float factor = 1.f / horizontal_sum(sum);
    const long end = (seen + LANES - 1) / LANES * LANES;
    for (long t = 0; t < end; t += LANES) store(scores + t, load(scores + t) * factor);
    for (long t = end; t < PADDED(seen); t += LANES) store(scores + t, (floats){});
}

/* Causal softmax of the scores (B H, T, T) times `scale`, in place; 0 above the diagonal. Backward: the gradient of the
   weights becomes the gradient of the scores, in place. A row reads nothing above its diagonal. */

typedef struct {
    int64_t rows, T; /* rows = B H T */
    int bf16;
    float scale;
    void *weights;   /* forward: in: scores, out: weights */
    void *gradient;  /* backward: in: of the weights, out: of the scores */
} Softmax;

ALWAYS_INLINE void softmax_forward_chunk(const void *argument, long chunk, int bf16)
{
    const Softmax a[1] = {*(const Softmax *)argument};
    float scores[PADDED(a->T)];
    FOR_ROWS(row, a->rows) {
        const long start = row * a->T, seen = row % a->T + 1; /* keys that this query sees */
        FOR_VECTORS(t, seen) store(scores + t, LOAD(a->weights, start + t));
        softmax_row(scores, seen, a->scale);
        FOR_VECTORS(t, a->T) STORE(a->weights, start + t, t < seen ? load(scores + t) : (floats){});
    }
}
DEFINE(softmax_forward, Softmax, ROW_CHUNKS(a->rows))

ALWAYS_INLINE void softmax_backward_chunk(const void *argument, long chunk, int bf16)
{
    const Softmax a[1] = {*(const Softmax *)argument};
    FOR_ROWS(row, a->rows) {
        const long start = row * a->T, seen = row % a->T + 1;
        floats product = {};
        FOR_VECTORS(t, seen) product += LOAD(a->weights, start + t) * LOAD(a->gradient, start + t);
        const float mean = horizontal_sum(product);
        FOR_VECTORS(t, a->T) {
            floats x = {};
            if (t < seen) x = LOAD(a->weights, start + t) * (LOAD(a->gradient, start + t) - mean) * a->scale;
            STORE(a->gradient, start + t, x);
        }
    }
}
DEFINE(softmax_backward, Softmax, ROW_CHUNKS(a->rows))

/* Causal attention of short sequences, from the rows of queries, keys and values to the rows of all heads. A chunk is one
   head of one sequence. */

typedef struct {
    int64_t B, T, H, D; /* T and D are at most 128: the matrices of a head are on the stack */
    int bf16;
    float scale;       /* of the scores */
    const void *qkv;   /* (B, T, 3, H, D), without bias */
    const float *bias; /* (3 H D) or NULL */
    void *y;           /* (B, T, H, D); in the backward its gradient */
    void *gradient;    /* (B, T, 3, H, D): of qkv */
    float *sums;       /* (B, 3 H D): the bias's gradient for each sequence */
} Attention;

#define ACTIVATION(pointer, i) ((void *)((char *)(pointer) + (i) * (bf16 ? 2 : 4)))

/* Copies (T, D) of the rows at `from`, `stride` elements apart, and adds a bias. The padding becomes 0. */
ALWAYS_INLINE void load_head(
    float *to, const void *from, long stride, const float *bias, const Attention *a, int bf16)
{
    const long Dp = PADDED(a->D);
    for (long t = 0; t < a->T; t++)
        FOR_VECTORS(d, Dp) {
            const long present = a->D - d < count ? a->D - d : count; /* count is LANES */
            floats x = {};
            if (present > 0) {
                x = load_some(from, bf16, t * stride + d, present);
                if (bias) x += load_some(bias, 0, d, present);
            }
            store(to + t * Dp + d, x);
        }
    memset(to + a->T * Dp, 0, (size_t)((PADDED(a->T) - a->T) * Dp) * sizeof *to);
}

/* The queries, keys and values of a head, whose columns begin at `head` and whose sequence begins at row `first`. */
ALWAYS_INLINE void load_qkv(float *q, float *k, float *v, long first, long head, const Attention *a, int bf16)
{
    const long C = a->H * a->D;
    float *parts[] = {q, k, v};
    for (int part = 0; part < 3; part++) {
        const float *bias = a->bias ? a->bias + part * C + head : NULL;
        load_head(parts[part], ACTIVATION(a->qkv, first * 3 * C + part * C + head), 3 * C, bias, a, bf16);
    }
}

/* Stores (T, D) to the rows at `to`, `stride` elements apart, and their sum to `sums`, if that is not NULL. */
ALWAYS_INLINE void store_head(void *to, long stride, const float *from, float *sums, const Attention *a, int bf16)
{
    const long Dp = PADDED(a->D);
    FOR_VECTORS(d, a->D) {
        floats sum = {};
        for (long t = 0; t < a->T; t++) {
            const floats x = load(from + t * Dp + d);
            STORE(to, t * stride + d, x);
            sum += x;
        }
        if (sums) STORE_FP32(sums, d, sum);
    }
}

/* Scratch memory for `matrices` of (Tp, Dp) and `squares` of (Tp, Tp), aligned to cache lines. */
#define SCRATCH(name, matrices, squares) \
    float name##_memory[(matrices) * Tp * Dp + (squares) * Tp * Tp + 16]; \
    float *name = (float *)(((uintptr_t)name##_memory + 63) & ~(uintptr_t)63)

ALWAYS_INLINE void attention_forward_chunk(const void *argument, long chunk, int bf16)
{
    const Attention a[1] = {*(const Attention *)argument};
    const long T = a->T, C = a->H * a->D, Dp = PADDED(a->D), Tp = PADDED(T), head = chunk % a->H * a->D;
    const long first = chunk / a->H * T; /* row */
    SCRATCH(scratch, 4, 1);
    float *q = scratch, *k = q + Tp * Dp, *v = k + Tp * Dp, *k_transposed = v + Tp * Dp, *weights = k_transposed + Tp * Dp;
    load_qkv(q, k, v, first, head, a, bf16);
    transpose_matrix(k_transposed, k, Dp, Tp);
    multiply_below_diagonal(q, k_transposed, weights, T, a->D, Dp, Tp);
    for (long t = 0; t < T; t++) softmax_row(weights + t * Tp, t + 1, a->scale);
    for (long t = T; t < Tp; t++) memset(weights + t * Tp, 0, (size_t)Tp * sizeof *weights);
    float *y = k; /* no longer needed */
    multiply_lower(weights, v, y, T, Dp, Tp);
    store_head(ACTIVATION(a->y, first * C + head), C, y, NULL, a, bf16);
}
DEFINE(attention_forward, Attention, a->B * a->H)

ALWAYS_INLINE void attention_backward_chunk(const void *argument, long chunk, int bf16)
{
    const Attention a[1] = {*(const Attention *)argument};
    const long T = a->T, C = a->H * a->D, Dp = PADDED(a->D), Tp = PADDED(T), head = chunk % a->H * a->D;
    const long sequence = chunk / a->H, first = sequence * T;
    SCRATCH(scratch, 7, 2);
    float *q = scratch, *k = q + Tp * Dp, *v = k + Tp * Dp, *y_gradient = v + Tp * Dp, *transposed = y_gradient + Tp * Dp;
    float *gradient = transposed + Tp * Dp, *weights = gradient + Tp * Dp, *scores_gradient = weights + Tp * Tp;
    load_qkv(q, k, v, first, head, a, bf16);
    load_head(y_gradient, ACTIVATION(a->y, first * C + head), C, NULL, a, bf16);
    transpose_matrix(transposed, k, Dp, Tp);
    multiply_below_diagonal(q, transposed, weights, T, a->D, Dp, Tp);
    transpose_matrix(transposed, v, Dp, Tp);
    multiply_below_diagonal(y_gradient, transposed, scores_gradient, T, a->D, Dp, Tp); /* so far of the weights */
    for (long t = 0; t < T; t++) {
        float *row = weights + t * Tp, *row_gradient = scores_gradient + t * Tp;
        softmax_row(row, t + 1, a->scale);
        floats product = {};
        for (long i = 0; i < PADDED(t + 1); i += LANES) product += load(row + i) * load(row_gradient + i);
        const float mean = horizontal_sum(product);
        for (long i = 0; i < PADDED(t + 1); i += LANES)
            store(row_gradient + i, load(row + i) * (load(row_gradient + i) - mean) * a->scale);
    }
    for (long t = T; t < Tp; t++) {
        memset(weights + t * Tp, 0, (size_t)Tp * sizeof *weights);
        memset(scores_gradient + t * Tp, 0, (size_t)Tp * sizeof *scores_gradient);
    }
    for (int part = 0; part < 3; part++) {
        if (part == 0) multiply_lower(scores_gradient, k, gradient, T, Dp, Tp);
        if (part == 1) multiply_lower_transposed(scores_gradient, q, gradient, T, Dp, Tp);
        if (part == 2) multiply_lower_transposed(weights, y_gradient, gradient, T, Dp, Tp);
        void *to = ACTIVATION(a->gradient, first * 3 * C + part * C + head);
        store_head(to, 3 * C, gradient, a->sums + sequence * 3 * C + part * C + head, a, bf16);
    }
}
DEFINE(attention_backward, Attention, a->B * a->H)

/* GELU of a projection with its bias. */

typedef struct {
    int64_t N, C;
    int bf16, exact;
    const void *x;     /* (N, C): the projection without its bias */
    const float *bias; /* (C) or NULL */
    void *y;           /* (N, C); backward: in: the gradient of y, out: the gradient of x */
    float *sums;       /* (chunks, C): the bias's gradient for each chunk of rows */
} Gelu;

/* 2 u, where x/2 (1 + tanh u) = x sigmoid(2 u) is the approximation of GELU. */
ALWAYS_INLINE floats gelu_argument(floats x) { return 1.59576912f * x * (1.f + .044715f * x * x); }

ALWAYS_INLINE void gelu_forward_chunk(const void *argument, long chunk, int bf16)
{
    const Gelu a[1] = {*(const Gelu *)argument};
    FOR_ROWS(row, a->N) FOR_VECTORS(c, a->C) {
        floats x = LOAD(a->x, row * a->C + c);
        if (a->bias) x += LOAD_FP32(a->bias, c);
        STORE(a->y, row * a->C + c, a->exact ? gelu_exact(x) : x * sigmoid(gelu_argument(x)));
    }
}
DEFINE(gelu_forward, Gelu, ROW_CHUNKS(a->N))

ALWAYS_INLINE floats gelu_tanh_derivative(floats x)
{
    /* y = x s with s = sigmoid(2 u), so y' = s + x s (1 - s) 2 u'. */
    const floats s = sigmoid(gelu_argument(x));
    return s + x * s * (1.f - s) * (1.59576912f + .21406447f * x * x);
}

ALWAYS_INLINE floats gelu_exact_derivative(floats x)
{
    /* y = x F(x) with the standard normal distribution function F and its density f, so y' = F + x f. F is computed as
       in gelu_exact. */
    const floats z = x * .70710678f, magnitude = larger(z, -z), t = reciprocal(1.f + .3275911f * magnitude);
    const floats power = exp_to_87(-magnitude * magnitude);
    floats p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - .284496736f;
    p = (p * t + .254829592f) * t * power;
    return blend(z < 0.f, .5f * p, 1.f - .5f * p) + x * power * .39894228f;
}

ALWAYS_INLINE void gelu_backward_chunk(const void *argument, long chunk, int bf16)
{
    const Gelu a[1] = {*(const Gelu *)argument};
    float *sums = a->sums + chunk * a->C;
    memset(sums, 0, (size_t)a->C * sizeof *sums);
    FOR_ROWS(row, a->N) FOR_VECTORS(c, a->C) {
        floats x = LOAD(a->x, row * a->C + c);
        if (a->bias) x += LOAD_FP32(a->bias, c);
        const floats gradient = LOAD(a->y, row * a->C + c) * (a->exact ? gelu_exact_derivative(x) : gelu_tanh_derivative(x));
        STORE(a->y, row * a->C + c, gradient);
        STORE_FP32(sums, c, LOAD_FP32(sums, c) + gradient);
    }
}
DEFINE(gelu_backward, Gelu, ROW_CHUNKS(a->N))

/* Cross-entropy of logits (N, V), which become their gradients times `scale`. */

typedef struct {
    int64_t B, T, V;
    int bf16;
    float scale;
    void *logits;           /* (N, V) */
    const int64_t *targets; /* (B, T) */
    int64_t ids_stride;     /* between sequences */
    float *losses;          /* (N) */
} CrossEntropy;

ALWAYS_INLINE void cross_entropy_chunk(const void *argument, long chunk, int bf16)
{
    const CrossEntropy a[1] = {*(const CrossEntropy *)argument};
    const long V = a->V;
    FOR_ROWS(row, a->B * a->T) {
        const long start = row * V, target = a->targets[row / a->T * a->ids_stride + row % a->T];
        floats largest = broadcast(-INFINITY), sum = {};
        FOR_VECTORS(v, V) {
            largest = larger(fill(LOAD(a->logits, start + v), count, -INFINITY), largest);
        }
        const float maximum = largest_lane(largest);
        FOR_VECTORS(v, V) {
            sum += fill(exp_to_87(LOAD(a->logits, start + v) - maximum), count, 0.f);
        }
        const float total = horizontal_sum(sum), factor = a->scale / total;
        a->losses[row] = logf(total) + maximum - load_one_as_float(a->logits, bf16, start + target);
        FOR_VECTORS(v, V) {
            floats x = exp_to_87(LOAD(a->logits, start + v) - maximum) * factor;
            if (target >= v && target < v + LANES) x[target - v] -= a->scale;
            STORE(a->logits, start + v, x);
        }
    }
}
DEFINE(cross_entropy, CrossEntropy, ROW_CHUNKS(a->B * a->T))

/* Sums of gradients. The gradients of a micro-batch are added up first, and their sum is then added to that of the
   earlier micro-batches, so that processes that divide the micro-batches among themselves get the same bits. */

typedef struct {
    int64_t chunks, stride, width;
    int bf16, add;     /* add: whether to add to the numbers in `to`, or replace them */
    const float *sums; /* (chunks, width), with `stride` numbers from one chunk to the next */
    float *to;         /* (width) */
} Sums;

ALWAYS_INLINE void add_sums_chunk(const void *argument, long chunk, int bf16)
{
    const Sums a[1] = {*(const Sums *)argument};
    (void)bf16;
    const long c = chunk * LANES, count = a->width - c < LANES ? a->width - c : LANES;
    floats total = {};
    for (long i = 0; i < a->chunks; i++) total += LOAD_FP32(a->sums + i * a->stride, c);
    if (a->add) total += LOAD_FP32(a->to, c);
    STORE_FP32(a->to, c, total);
}
DEFINE(add_sums, Sums, (a->width + LANES - 1) / LANES)

typedef struct {
    int64_t parts, count;
    int bf16, add;
    const void *from; /* (parts, count), bf16 or float32 */
    float *to;        /* (count) */
} Accumulate;

enum { BLOCK = 1 << 14 };
ALWAYS_INLINE void accumulate_chunk(const void *argument, long chunk, int bf16)
{
    const Accumulate a[1] = {*(const Accumulate *)argument};
    const long end = (chunk + 1) * BLOCK < a->count ? (chunk + 1) * BLOCK : a->count;
    for (long i = chunk * BLOCK; i < end; i += LANES) {
        const long count = end - i < LANES ? end - i : LANES;
        floats x = {};
        for (long part = 0; part < a->parts; part++) x += LOAD(a->from, part * a->count + i);
        if (a->add) x += LOAD_FP32(a->to, i);
        STORE_FP32(a->to, i, x);
    }
}
DEFINE(accumulate, Accumulate, (a->count + BLOCK - 1) / BLOCK)

#include "muon.h"
#include "newton_schulz.h"
