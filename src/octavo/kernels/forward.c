/* GPT-2's forward pass on a CPU: computes what src/octavo/model.py computes, for rows of (token id, slot, position).

   A row is one token of one sequence. Rows of many sequences run in one batch, and a prompt is many rows of one slot,
   so each weight is loaded once for all rows. Decoding a single row is bound by the memory bandwidth of that load.

   Every sum has a fixed order that does not depend on the other rows: a row has the same bits alone, in a batch, in a
   prompt split anywhere, and after a cached prefix. Only attention reads other rows, those of the same slot.

   native.py compiles this file with the C compiler of the machine when it is first needed.
   Axis letters: N rows, W rows whose logits are needed, C width, O outputs, H heads, D = C / H, S positions of a slot.
   Those of a tile: M rows, R weight rows, V vectors of floats. */

#include "floats.h"
#include "amx.h"
#include "team.h"

#define TILE_ROWS (ACCUMULATORS / 2)         /* input rows that share one load of a weight: 8 or 4 */
#define TILE_OUTPUTS 16                      /* outputs of a tile */
#define QUERY_ROWS 4                         /* rows of a prompt that share one load of a key or a value */
#define VECTORS (ACCUMULATORS / QUERY_ROWS)  /* vectors of keys or values that a loop of attention handles at a time */
#define MIN_AMX_ROWS 5                       /* with fewer the vectors are as fast */
#define COLUMN_BLOCK 768     /* input columns handled at a time: they stay in the L1 cache */
#define CACHED_BYTES 400000L /* weights that are multiplied with all rows of a prompt before the next weights are read:
                                they stay in the L2 cache */

typedef struct { const void *weight; const float *scale, *bias; } Linear; /* weight (O, C); scale (O,) if it is int8 */
typedef struct { const float *weight, *bias; } Norm;
typedef struct {
    Norm ln_1; Linear c_attn, attn_c_proj; Norm ln_2; Linear c_fc, mlp_c_proj; void *keys, *values;
} Block;
typedef struct {
    int n_layer, n_head, n_embd, vocab_size, exact_gelu;
    int positions, bf16_cache; /* positions of a slot in the KV cache; whether the cache is bf16 */
    const float *wte, *wpe; Norm ln_f; Linear lm_head; const Block *blocks;
} Model;

/* y[m][r] = w[r] . x[m] for TILE_OUTPUTS weight rows and M input rows, R weight rows at a time. R * M is at most
   ACCUMULATORS, so that all sums stay in registers. Every argument but w, x, C and y is a constant at the call. */
ALWAYS_INLINE void multiply_tile(const char *w, int int8, const char *x, int C, int R, int M,
                                 float y[TILE_ROWS][TILE_OUTPUTS])
{
    floats partial[TILE_OUTPUTS / R][ACCUMULATORS];
    const int step = ELEMENTS_PER_VECTOR(int8), full = C / step * step, keep_inputs = HAS_SPARE_REGISTERS && M > 1;
    const long row_bytes = int8 ? C : 4L * C, input_bytes = int8 ? 2L * C : 4L * C;
    /* `start == 0`: rows shorter than one vector (full == 0) need one pass too, for their tail. */
    for (int start = 0; start == 0 || start < full; start += COLUMN_BLOCK)
        for (int g = 0; g < TILE_OUTPUTS / R; g++) {
            const char *group = w + g * R * row_bytes;
            floats s[ACCUMULATORS] = {};
            if (start)
                UNROLLED for (int i = 0; i < R * M; i++) s[i] = partial[g][i];
            for (int c = start; c < full && c < start + COLUMN_BLOCK; c += step) {
                floats in[TILE_ROWS];
                if (keep_inputs)
                    UNROLLED for (int m = 0; m < M; m++) {
                        in[m] = load_inputs(x + m * input_bytes, int8, c);
                        KEEP_IN_REGISTER(in[m]);
                    }
                UNROLLED for (int r = 0; r < R; r++) {
                    /* Rows are too short for the hardware prefetcher. int8: prefetch the same row of the next tile,
                       once for each cache line of 64 weights. float32, M > 1: the same row of the next group. */
                    if (int8 && c % 64 == 0) __builtin_prefetch(group + (TILE_OUTPUTS + r) * row_bytes + c);
                    if (!int8 && M > 1 && (LANES == 16 || c % 16 == 0))
                        __builtin_prefetch(group + (R + r) * row_bytes + 4L * c);
                    const floats v = load_weights(group + r * row_bytes, int8, c);
                    UNROLLED for (int m = 0; m < M; m++)
                        s[m * R + r] = multiply_add(
                            s[m * R + r], v, keep_inputs ? in[m] : load_inputs(x + m * input_bytes, int8, c), int8);
                }
            }
            if (start + COLUMN_BLOCK < full) {
                UNROLLED for (int i = 0; i < R * M; i++) partial[g][i] = s[i];
                continue;
            }
            if (full < C)
                UNROLLED for (int r = 0; r < R; r++)
                    UNROLLED for (int m = 0; m < M; m++)
                        s[m * R + r] = multiply_add(
                            s[m * R + r], load_weights_tail(group + r * row_bytes, int8, full, C - full),
                            load_tail(x + m * input_bytes, int8 ? 2 : 4, full, C - full), int8);
            float totals[ACCUMULATORS];
            UNROLLED for (int i = 0; i < ACCUMULATORS; i += LANES) store(totals + i, dot_products(s + i, int8));
            UNROLLED for (int m = 0; m < M; m++) memcpy(y[m] + g * R, totals + m * R, R * sizeof(float));
        }
}

/* w . x, with the same order of additions as multiply_tile. */
ALWAYS_INLINE float dot(const char *w, int int8, const char *x, int C)
{
    floats sums[LANES] = {}, s = {};
    int c = 0;
    for (; c + ELEMENTS_PER_VECTOR(int8) <= C; c += ELEMENTS_PER_VECTOR(int8))
        s = multiply_add(s, load_weights(w, int8, c), load_inputs(x, int8, c), int8);
    if (c < C)
        s = multiply_add(s, load_weights_tail(w, int8, c, C - c), load_tail(x, int8 ? 2 : 4, c, C - c), int8);
    sums[0] = s;
    return dot_products(sums, int8)[0];
}

/* Whether int8 products may use AMX, which is faster and has the same bits. Changed by octavo_use_amx. */
static atomic_int use_amx;

/* The last inputs (N, C) of a layer with int8 weights, rounded to int16. `blocks` holds them for AMX, or is NULL. */
typedef struct { short *values; float *scales; char *blocks; } Int16Inputs;

/* Rounds the rows of x (N, C) to int16, with a scale for each row. int8 weights are multiplied by int16 inputs in
   integers: twice the rate of floats, and exact. The largest int16 value is limited so that no sum of two lanes
   overflows int32. */
static void quantize_inputs(const float *x, const Int16Inputs *to, int N, int C)
{
    const int products = (C + 2 * LANES - 1) / (2 * LANES) * 4; /* in two lanes */
    const float limit = 2147483647.f / (127.f * products), largest = limit < 32767.f ? floorf(limit) : 32767.f;
    PARALLEL_FOR(n, N, 4) {
        const float *from = x + (long)n * C;
        short *row = to->values + (long)n * C;
        floats maxima = broadcast(1e-30f), not_finite = {}; /* 0 * x is NaN for NaN and infinity: the scale has it */
        for (int c = 0, count; c < C; c += LANES) {
            count = C - c < LANES ? C - c : LANES;
            const floats v = count == LANES ? load(from + c) : load_tail(from, 4, c, count);
            const floats magnitude = (floats)((ints)v & 0x7fffffff);
            maxima = blend(magnitude > maxima, magnitude, maxima);
            not_finite += 0.f * v;
        }
        float max = maxima[0];
        for (int i = 1; i < LANES; i++) max = maxima[i] > max ? maxima[i] : max;
        const float factor = largest / max;
        for (int c = 0, count; c < C; c += LANES) {
            count = C - c < LANES ? C - c : LANES;
            const floats v = (count == LANES ? load(from + c) : load_tail(from, 4, c, count)) * factor;
            const floats rounded = (v + 12582912.f) - 12582912.f; /* floats above 2^23 have no fraction */
            const half_shorts values = __builtin_convertvector(__builtin_convertvector(rounded, ints), half_shorts);
            memcpy(row + c, &values, 2 * count);
        }
        to->scales[n] = max / largest + horizontal_sum(not_finite);
#if HAS_AMX
        if (to->blocks) amx_store_inputs(row, to->blocks, n, C);
#endif
    }
    barrier();
}

/* How a linear layer writes its result y into `out`: out = y, out += y, or out = GELU(y). */
enum { STORE, ADD, GELU_TANH, GELU_EXACT };

/* Writes `outputs` outputs from o on of M rows: y, times the scales of int8 weights and inputs, plus the bias. */
ALWAYS_INLINE void write_outputs(const Linear *l, int int8, float y[][TILE_OUTPUTS], const float *scales, float *out,
                                 int M, int O, int o, int outputs, int epilogue)
{
    float scale[TILE_OUTPUTS], bias[TILE_OUTPUTS] = {0};
    for (int r = 0; r < TILE_OUTPUTS; r++) scale[r] = int8 && r < outputs ? l->scale[o + r] : 1;
    if (l->bias) memcpy(bias, l->bias + o, outputs * sizeof(float));
    for (int m = 0; m < M; m++)
        for (int r = 0; r < outputs; r += LANES) {
            const int count = outputs - r < LANES ? outputs - r : LANES;
            float *to = out + (long)m * O + o + r;
            const floats factor = int8 ? load(scale + r) * scales[m] : load(scale + r);
            floats v = load(y[m] + r) * factor + load(bias + r);
            if (epilogue == GELU_TANH) v = gelu_tanh(v);
            if (epilogue == GELU_EXACT) v = gelu_exact(v);
            if (count == LANES) store(to, epilogue == ADD ? load(to) + v : v);
            else for (int i = 0; i < count; i++) to[i] = epilogue == ADD ? to[i] + v[i] : v[i];
        }
}

/* Computes TILE_OUTPUTS outputs from o on, or the remaining ones if fewer, of a linear layer for M rows: 1 to 4 or
   TILE_ROWS. */
ALWAYS_INLINE void linear_tile(const Linear *l, int int8, const char *x, const float *scales, float *out,
                               int M, int C, int O, int o, int epilogue)
{
    const long row_bytes = int8 ? C : 4L * C, input_bytes = int8 ? 2L * C : 4L * C;
    const char *w = (const char *)l->weight + o * row_bytes;
    const int outputs = O - o < TILE_OUTPUTS ? O - o : TILE_OUTPUTS;
    float y[TILE_ROWS][TILE_OUTPUTS];
    if (outputs < TILE_OUTPUTS)
        for (int m = 0; m < M; m++)
            for (int r = 0; r < outputs; r++) y[m][r] = dot(w + r * row_bytes, int8, x + m * input_bytes, C);
    else
        switch (M) {
        case 1: multiply_tile(w, int8, x, C, ACCUMULATORS, 1, y); break;
        case 2: multiply_tile(w, int8, x, C, ACCUMULATORS / 2, 2, y); break;
        case 3: multiply_tile(w, int8, x, C, ACCUMULATORS / 4, 3, y); break;
        case 4: multiply_tile(w, int8, x, C, ACCUMULATORS / 4, 4, y); break;
        default: multiply_tile(w, int8, x, C, ACCUMULATORS / TILE_ROWS, TILE_ROWS, y);
        }
    write_outputs(l, int8, y, scales, out, M, O, o, outputs, epilogue);
}

/* linear_tile for N rows, compiled once for int8 weights and once for float32. */
static void linear_rows(const Linear *l, const char *x, const float *scales, float *out, int N, int C, int O, int o,
                        int epilogue)
{
    const long input_bytes = l->scale ? 2L * C : 4L * C;
    for (int n = 0, M; n < N; n += M, x += M * input_bytes, out += (long)M * O) {
        M = N - n >= TILE_ROWS ? TILE_ROWS : N - n < 4 ? N - n : 4;
        if (l->scale) linear_tile(l, 1, x, scales + n, out, M, C, O, o, epilogue);
        else linear_tile(l, 0, x, NULL, out, M, C, O, o, epilogue);
    }
}

/* How many adjacent blocks of `outputs` outputs a thread takes at a time, of `blocks`. Many adjacent blocks are one
   long read of memory; several chunks for each thread balance the load if one thread is delayed. If the rows pass over
   a chunk several times, it has to stay in the L2 cache. */
static int chunk_size(int blocks, int outputs, long row_bytes, int passes)
{
    const int longest = blocks / (8 * team.threads) + 1;
    const long cached = CACHED_BYTES / (outputs * row_bytes);
    return passes == 1 || longest <= cached ? longest : cached > 0 ? (int)cached : 1;
}

/* Computes a linear layer tile by tile, for x (N, C) in the type that its weights need: int16 with `scales` (N,), or
   float32. */
static void linear_tiles(const Linear *l, const void *x, const float *scales, float *out,
                         int N, int C, int O, int epilogue)
{
    const long input_bytes = l->scale ? 2L * C : 4L * C;
    const int blocks = (O + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    const int chunk = chunk_size(blocks, TILE_OUTPUTS, l->scale ? C : 4L * C, N <= 4 || N == TILE_ROWS ? 1 : 2);
    for (int first; (first = claim_chunk(chunk)) < blocks;)
        for (int n = 0; n < N; n += TILE_ROWS)
            for (int block = first; block < blocks && block < first + chunk; block++)
                linear_rows(l, (const char *)x + n * input_bytes, scales ? scales + n : NULL, out + (long)n * O,
                            N - n < TILE_ROWS ? N - n : TILE_ROWS, C, O, block * TILE_OUTPUTS, epilogue);
}

#if HAS_AMX
/* linear_tiles with AMX, for int8 weights and inputs that quantize_inputs has stored in blocks. */
static void linear_tiles_amx(const Linear *l, const Int16Inputs *in, float *out, int N, int C, int O, int epilogue)
{
    enum { OUTPUTS = 2 * TILE_OUTPUTS };
    const int blocks = (O + OUTPUTS - 1) / OUTPUTS, chunk = chunk_size(blocks, OUTPUTS, C, N <= AMX_ROWS ? 1 : 2);
    amx_configure();
    for (int first; (first = claim_chunk(chunk)) < blocks;)
        for (int n = 0; n < N; n += AMX_ROWS)
            for (int o = first * OUTPUTS; o < O && o < (first + chunk) * OUTPUTS; o += OUTPUTS) {
                const int M = N - n < AMX_ROWS ? N - n : AMX_ROWS;
                const char *w = (const char *)l->weight + (long)o * C, *inputs = in->blocks + 2L * n * C;
                float y[2][AMX_ROWS][TILE_OUTPUTS], *to = out + (long)n * O;
                const int groups = O - o >= OUTPUTS ? 2 : O - o >= TILE_OUTPUTS ? 1 : 0;
                if (groups == 2) amx_multiply(w, inputs, C, 2, y);
                if (groups == 1) amx_multiply(w, inputs, C, 1, y);
                for (int i = 0; i < groups; i++)
                    write_outputs(l, 1, y[i], in->scales + n, to, M, O, o + i * TILE_OUTPUTS, TILE_OUTPUTS, epilogue);
                const int rest = o + groups * TILE_OUTPUTS; /* fewer than 16 outputs, of the last block */
                if (groups < 2 && rest < O)
                    linear_rows(l, (const char *)(in->values + (long)n * C), in->scales + n, to, M, C, O, rest, epilogue);
            }
    amx_release();
}
#endif

/* out (N, O) = epilogue(x (N, C) times the transposed weight, plus bias). `workspace` is for the int16 inputs. */
static void linear(const Linear *l, const float *x, float *out, float *workspace, int N, int C, int O, int epilogue)
{
    Int16Inputs in = {(short *)(workspace + N), workspace, NULL};
    if (!l->scale) linear_tiles(l, x, NULL, out, N, C, O, epilogue);
    else {
#if HAS_AMX
        if (atomic_load(&use_amx) && N >= MIN_AMX_ROWS && C % AMX_COLUMNS == 0)
            in.blocks = (char *)(in.values + (long)N * C);
#endif
        quantize_inputs(x, &in, N, C);
        if (!in.blocks) linear_tiles(l, in.values, in.scales, out, N, C, O, epilogue);
#if HAS_AMX
        else linear_tiles_amx(l, &in, out, N, C, O, epilogue);
#endif
    }
    barrier();
}

static void layer_norm(const Norm *norm, const float *x, float *out, int N, int C)
{
    PARALLEL_FOR(n, N, 1) {
        const float *from = x + (long)n * C;
        float *to = out + (long)n * C;
        const int full = C / LANES * LANES, left = C - full;
        floats total = {}, squares = {};
        for (int c = 0; c < full; c += LANES) total += load(from + c);
        if (left) total += load_tail(from, 4, full, left);
        const float mean = horizontal_sum(total) / C;
        for (int c = 0; c < full; c += LANES) { const floats d = load(from + c) - mean; squares += d * d; }
        float tail_squares = 0;
        for (int c = full; c < C; c++) tail_squares += (from[c] - mean) * (from[c] - mean);
        const float scale = 1 / sqrtf((horizontal_sum(squares) + tail_squares) / C + 1e-5f);
        for (int c = 0; c < C; c++)
            to[c] = (from[c] - mean) * scale * norm->weight[c] + (norm->bias ? norm->bias[c] : 0);
    }
    barrier();
}

/* Stores the keys and values of all rows in the cache. Keys are (slots, H, positions / LANES, D, LANES) and
   values (slots, H, positions, D): attention reads both sequentially, keys for a vector of scores, values for a vector
   of sums. */
static void store_keys_values(const Model *m, const Block *b, const float *qkv, const int *slots, const int *positions,
                              int N)
{
    const int C = m->n_embd, H = m->n_head, D = C / H;
    PARALLEL_FOR(i, N * H, 4) {
        const int n = i / H, h = i % H;
        const float *k = qkv + (long)n * 3 * C + C + h * D, *v = k + C;
        const long head = ((long)slots[n] * H + h) * m->positions * D;
        const long key = head + (long)(positions[n] / LANES) * D * LANES + positions[n] % LANES;
        const long value = head + (long)positions[n] * D;
        for (int d = 0; d < D; d++) store_cached(b->keys, m->bf16_cache, key + d * LANES, k[d]);
        for (int d = 0; d < D; d++) store_cached(b->values, m->bf16_cache, value + d, v[d]);
    }
    barrier();
}

/* scores[i][j ...] = q[i] . keys / sqrt(D), for M rows and V * LANES positions from j on: M * V independent sums. */
ALWAYS_INLINE void attention_scores(const void *keys, int bf16, long head, const float *q, long q_stride, int D, int j,
                                    int M, int V, float *scores, long S)
{
    floats s[QUERY_ROWS * VECTORS] = {};
    for (int d = 0; d < D; d++)
        UNROLLED for (int g = 0; g < V; g++) {
            const floats k = load_cached(keys, bf16, head + ((long)(j / LANES + g) * D + d) * LANES);
            UNROLLED for (int i = 0; i < M; i++) s[i * V + g] += k * q[i * q_stride + d];
        }
    const float scale = 1 / sqrtf(D);
    UNROLLED for (int i = 0; i < M; i++)
        UNROLLED for (int g = 0; g < V; g++) store(scores + i * S + j + g * LANES, s[i * V + g] * scale);
}

/* out[i] = the sum of the values of positions 0 ... last, weighted by scores[i], for M rows and V * LANES of the
   D columns from d on. */
ALWAYS_INLINE void weighted_values(const float *scores, long S, const void *values, int bf16, long head, int D, int d,
                                   int last, int M, int V, float *out, int C)
{
    floats y[QUERY_ROWS * VECTORS] = {};
    for (int j = 0; j <= last; j++)
        UNROLLED for (int g = 0; g < V; g++) {
            const floats v = load_cached(values, bf16, head + (long)j * D + d + g * LANES);
            UNROLLED for (int i = 0; i < M; i++) y[i * V + g] += v * scores[i * S + j];
        }
    UNROLLED for (int i = 0; i < M; i++)
        UNROLLED for (int g = 0; g < V; g++) store(out + (long)i * C + d + g * LANES, y[i * V + g]);
}

/* Softmax of the first `count` scores. The others, up to `end` and to a full vector, become 0, and so do those that are
   80 or more below the largest: too small to count, they would be denormal numbers, which some CPUs multiply slowly. */
ALWAYS_INLINE void softmax(float *s, int count, int end)
{
    const int padded = (count + LANES - 1) / LANES * LANES;
    for (int j = count; j < padded || j < end; j++) s[j] = -INFINITY;
    floats maxima = broadcast(-INFINITY), total = {};
    for (int j = 0; j < padded; j += LANES) maxima = blend(load(s + j) > maxima, load(s + j), maxima);
    float max = maxima[0];
    for (int i = 1; i < LANES; i++) max = maxima[i] > max ? maxima[i] : max;
    for (int j = 0; j < padded; j += LANES) {
        const floats x = load(s + j) - max, e = blend(x < -80.f, broadcast(0), exponential(x));
        store(s + j, e);
        total += e;
    }
    const float factor = 1 / horizontal_sum(total);
    for (int j = 0; j < padded; j += LANES) store(s + j, load(s + j) * factor);
    for (int j = padded; j < end; j++) s[j] = 0;
}

/* Attention of rows n ... n + M - 1, all of one slot, for one head. Each row sees the positions up to its own. */
ALWAYS_INLINE void attend_rows(const Model *m, const Block *b, int bf16, const float *qkv, float *out, float *scores,
                               int n, int M, int h, int slot, const int *positions)
{
    const int C = m->n_embd, D = C / m->n_head, last = positions[n + M - 1];
    const long S = m->positions, head = ((long)slot * m->n_head + h) * S * D;
    const void *keys = b->keys, *values = b->values;
    const float *q = qkv + (long)n * 3 * C + h * D;
    float *to = out + (long)n * C + h * D;

    /* Scores of a single row take VECTORS vectors at a time, for as many independent sums as QUERY_ROWS rows have with
       one vector. weighted_values passes over all positions in each call, so fewer calls are better for any M. */
    int j = 0, d = 0;
    for (; M == 1 && j + VECTORS * LANES <= last + 1; j += VECTORS * LANES)
        attention_scores(keys, bf16, head, q, 3 * C, D, j, M, VECTORS, scores, S);
    for (; j <= last; j += LANES) attention_scores(keys, bf16, head, q, 3 * C, D, j, M, 1, scores, S);
    for (int i = 0; i < M; i++) softmax(scores + i * S, positions[n + i] + 1, last + 1);
    for (; d + VECTORS * LANES <= D; d += VECTORS * LANES)
        weighted_values(scores, S, values, bf16, head, D, d, last, M, VECTORS, to, C);
    for (; d + LANES <= D; d += LANES) weighted_values(scores, S, values, bf16, head, D, d, last, M, 1, to, C);
    for (; d < D; d++)
        for (int i = 0; i < M; i++) {
            float y = 0;
            for (int k = 0; k <= positions[n + i]; k++)
                y += scores[i * S + k] * load_cached_one(values, bf16, head + (long)k * D + d);
            to[(long)i * C + d] = y;
        }
}

/* Attention of all rows and heads, with a bf16 or float32 cache. */
ALWAYS_INLINE void attend_all(const Model *m, const Block *b, int bf16, const float *qkv, float *out, float *scores,
                              const int *slots, const int *positions, int N)
{
    const int H = m->n_head;
    PARALLEL_FOR(i, N * H, 1) {
        const int n = i / H, h = i % H;
        /* Adjacent rows of one slot are grouped by QUERY_ROWS, from the first one on. A group is computed in
           the iteration of its first row; the iterations of its other rows do nothing. */
        int first = n;
        while (first > 0 && slots[first - 1] == slots[n]) first--;
        if ((n - first) % QUERY_ROWS) continue;
        int M = 1;
        while (M < QUERY_ROWS && n + M < N && slots[n + M] == slots[n]) M++;
        if (M == QUERY_ROWS) attend_rows(m, b, bf16, qkv, out, scores, n, QUERY_ROWS, h, slots[n], positions);
        else
            for (int k = 0; k < M; k++) attend_rows(m, b, bf16, qkv, out, scores, n + k, 1, h, slots[n], positions);
    }
}

/* attend_all, compiled once for a bf16 cache and once for float32. */
static void attend(const Model *m, const Block *b, const float *qkv, float *out, float *scores,
                   const int *slots, const int *positions, int N)
{
    if (m->bf16_cache) attend_all(m, b, 1, qkv, out, scores, slots, positions, N);
    else attend_all(m, b, 0, qkv, out, scores, slots, positions, N);
    barrier();
}

/* Lets int8 products use AMX if this processor and system have it, or not. Returns whether they do. */
int octavo_use_amx(int wanted)
{
#if HAS_AMX
    atomic_store(&use_amx, wanted && amx_is_permitted());
#else
    (void)wanted;
#endif
    return atomic_load(&use_amx);
}

/* The number of positions in a tile of keys. */
int octavo_lanes(void) { return LANES; }

typedef struct {
    const Model *model;
    int N; const int *ids, *slots, *positions;
    int W; const int *logit_rows;
    float *workspace, *logits;
    int threads;
} Batch;

/* The forward pass, run by every thread of the team. */
static void forward(const void *argument, int thread)
{
    const Batch *batch = argument;
    const Model *m = batch->model;
    const int C = m->n_embd, N = batch->N;
    const long scores_size = (long)QUERY_ROWS * m->positions;
    float *scores = batch->workspace + thread * scores_size; /* each thread has its own */
    float *x = batch->workspace + batch->threads * scores_size, *h = x + (long)N * C, *y = h + (long)N * C; /* (N, C) */
    float *hidden = y + (long)N * C;              /* (N, 3C) q, k, v or (N, 4C) of the MLP */
    float *int16_workspace = hidden + 4L * N * C; /* N scales, int16 inputs (N, 4C), and as many bytes for AMX */

    PARALLEL_FOR(n, N, 1)
        for (int c = 0; c < C; c++)
            x[(long)n * C + c] = m->wte[(long)batch->ids[n] * C + c] + m->wpe[(long)batch->positions[n] * C + c];
    barrier();
    for (const Block *b = m->blocks; b < m->blocks + m->n_layer; b++) {
        layer_norm(&b->ln_1, x, h, N, C);
        linear(&b->c_attn, h, hidden, int16_workspace, N, C, 3 * C, STORE);
        store_keys_values(m, b, hidden, batch->slots, batch->positions, N);
        attend(m, b, hidden, y, scores, batch->slots, batch->positions, N);
        linear(&b->attn_c_proj, y, x, int16_workspace, N, C, C, ADD);
        layer_norm(&b->ln_2, x, h, N, C);
        linear(&b->c_fc, h, hidden, int16_workspace, N, C, 4 * C, m->exact_gelu ? GELU_EXACT : GELU_TANH);
        linear(&b->mlp_c_proj, hidden, x, int16_workspace, N, 4 * C, C, ADD);
    }
    PARALLEL_FOR(w, batch->W, 1)
        memcpy(y + (long)w * C, x + (long)batch->logit_rows[w] * C, C * sizeof(float));
    barrier();
    layer_norm(&m->ln_f, y, h, batch->W, C);
    linear(&m->lm_head, h, batch->logits, int16_workspace, batch->W, C, m->vocab_size, STORE);
}

/* Runs N rows; writes the logits (W, vocab_size) of the rows numbered by `logit_rows`. Rows of one slot are adjacent
   and in the order of their positions. `workspace` holds threads * QUERY_ROWS * positions + N * (9 * C + 1) floats, and
   2 * C more for each of N rows rounded up to a multiple of 16: nothing is allocated here, so nothing can fail.
   `threads`: 1 to MAX_THREADS. Concurrent calls run one at a time. */
void octavo_forward(const Model *m, int N, const int *ids, const int *slots, const int *positions,
                    int W, const int *logit_rows, float *workspace, float *logits, int threads)
{
    const Batch batch = {m, N, ids, slots, positions, W, logit_rows, workspace, logits, threads};
    run_team(forward, &batch, threads);
}
