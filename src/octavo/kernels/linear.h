/* Linear layers with float32 or int8 weights: out = epilogue(x times the transposed weight, plus bias).

   A layer is computed in tiles of TILE_OUTPUTS outputs and some rows, by the whole team of threads. Every sum has a
   fixed order that does not depend on the other rows.

   Axis letters: N rows, C inputs, O outputs. Those of a tile: M rows, R weight rows. */

#include "floats.h"
#include "amx.h"
#include "team.h"

#define TILE_ROWS (ACCUMULATORS / 2) /* input rows that share one load of a weight: 8 or 4 */
#define TILE_OUTPUTS 16              /* outputs of a tile */
#define MIN_AMX_ROWS 9               /* with fewer the vectors are as fast */
#define COLUMN_BLOCK 768     /* input columns handled at a time: they stay in the L1 cache */
#define CACHED_BYTES 400000L /* weights that are multiplied with all rows of a prompt before the next weights are read:
                                they stay in the L2 cache */

typedef struct { const void *weight; const float *scale, *bias; } Linear; /* weight (O, C); scale (O,) if it is int8 */

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
                    linear_rows(l, (const char *)(in->values + (long)n * C), in->scales + n, to, M, C, O, rest,
                                epilogue);
            }
    amx_release();
}
#endif

/* out (N, O) = epilogue(x (N, C) times the transposed weight, plus bias). `workspace` is for the int16 inputs. `amx`:
   whether int8 products may use AMX, which is faster and has the same bits. */
static void linear(const Linear *l, const float *x, float *out, float *workspace, int amx, int N, int C, int O,
                   int epilogue)
{
    Int16Inputs in = {(short *)(workspace + N), workspace, NULL};
    if (!l->scale) linear_tiles(l, x, NULL, out, N, C, O, epilogue);
    else {
#if HAS_AMX
        if (amx && N >= MIN_AMX_ROWS && C % AMX_COLUMNS == 0) in.blocks = (char *)(in.values + (long)N * C);
#else
        (void)amx;
#endif
        quantize_inputs(x, &in, N, C);
        if (!in.blocks) linear_tiles(l, in.values, in.scales, out, N, C, O, epilogue);
#if HAS_AMX
        else linear_tiles_amx(l, &in, out, N, C, O, epilogue);
#endif
    }
    barrier();
}
