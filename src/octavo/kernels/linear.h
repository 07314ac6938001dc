/* Linear layers with float32 or int8 weights: out = epilogue(x times the transposed weight, plus bias).

   A layer is computed in tiles of TILE_OUTPUTS outputs and some rows, by the whole team of threads. Every sum has a
   fixed order that does not depend on the other rows. Many rows with float32 weights have outer products instead of dot
   products, with the same bits (outer_products.h).

   float32 weights are the model's own, (O, C). int8 weights are stored in the order in which tiles read them, (O / 16,
   C / 64, 16, 64), with zeros after the last output and the last column: a tile is one sequential read.

   Axis letters: N rows, C inputs, O outputs. Those of a tile: M rows, R weight rows. */

#include "floats.h"
#include "amx.h"
#include "team.h"

#define TILE_ROWS (ACCUMULATORS / 2) /* input rows that share one load of a weight: 8 or 4 */
#define TILE_OUTPUTS 16              /* outputs of a tile */
#define MIN_AMX_ROWS 5               /* with fewer rows, vector instructions are faster */
#define COLUMN_BLOCK 768     /* input columns handled at a time: they stay in the L1 cache */
#define CACHED_BYTES 400000L /* weights that are multiplied with all rows of a prompt before the next weights are read:
                                they stay in the L2 cache */

enum { INT8_COLUMNS = 64, INT8_BLOCK = TILE_OUTPUTS * INT8_COLUMNS }; /* columns and bytes of a block of int8 weights */
enum { INPUT_ROWS = 16 };                                             /* rows of a block of int16 inputs for AMX */

typedef struct { const void *weight; const float *scale, *bias; } Linear; /* scale (O,) if the weights are int8 */

/* The padded numbers of columns and rows in which int8 weights and int16 inputs are stored. */
static int padded_columns(int C) { return (C + INT8_COLUMNS - 1) / INT8_COLUMNS * INT8_COLUMNS; }
static int padded_rows(int N) { return (N + INPUT_ROWS - 1) / INPUT_ROWS * INPUT_ROWS; }

/* The weights of row r of a tile, from column c on. */
ALWAYS_INLINE const char *weights_at(const char *tile, int int8, int C, int r, int c)
{
    if (int8) return tile + (long)(c / INT8_COLUMNS) * INT8_BLOCK + r * INT8_COLUMNS + c % INT8_COLUMNS;
    return tile + 4L * ((long)r * C + c);
}

/* y[m][r] = w[r] . x[m] for TILE_OUTPUTS weight rows and M input rows, R weight rows at a time. R * M is at most
   ACCUMULATORS, so that all sums stay in registers. Every argument but w, x, C and y is a constant at the call. */
ALWAYS_INLINE void multiply_tile(const char *w, int int8, const char *x, int C, int R, int M,
                                 float y[TILE_ROWS][TILE_OUTPUTS])
{
    floats partial[TILE_OUTPUTS / R][ACCUMULATORS];
    const int step = ELEMENTS_PER_VECTOR(int8), full = C / step * step, keep_inputs = HAS_SPARE_REGISTERS && M > 1;
    const long input_bytes = int8 ? 2L * C : 4L * C;
    /* `start == 0`: rows shorter than one vector (full == 0) need one pass too, for their tail. */
    for (int start = 0; start == 0 || start < full; start += COLUMN_BLOCK)
        for (int g = 0; g < TILE_OUTPUTS / R; g++) {
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
                    const char *from = weights_at(w, int8, C, g * R + r, c);
                    /* The hardware prefetches too little. int8 weights are prefetched from the next tile, a cache line
                       at a time. float32 weights are prefetched from the next group of rows, if M > 1. */
                    if (int8 && c % INT8_COLUMNS == 0) __builtin_prefetch(from + (long)TILE_OUTPUTS * C);
                    if (!int8 && M > 1 && (LANES == 16 || c % 16 == 0)) __builtin_prefetch(from + 4L * R * C);
                    const floats v = load_weights(from, int8);
                    UNROLLED for (int m = 0; m < M; m++)
                        s[m * R + r] = multiply_add(
                            s[m * R + r], v, keep_inputs ? in[m] : load_inputs(x + m * input_bytes, int8, c), int8);
                }
            }
            if (start + COLUMN_BLOCK < full) {
                UNROLLED for (int i = 0; i < R * M; i++) partial[g][i] = s[i];
                continue;
            }
            if (!int8 && full < C)
                UNROLLED for (int r = 0; r < R; r++)
                    UNROLLED for (int m = 0; m < M; m++)
                        s[m * R + r] += load_tail((const float *)weights_at(w, 0, C, g * R + r, full), C - full) *
                                        load_tail((const float *)(x + m * input_bytes) + full, C - full);
            float totals[ACCUMULATORS];
            UNROLLED for (int i = 0; i < ACCUMULATORS; i += LANES) store(totals + i, dot_products(s + i, int8));
            UNROLLED for (int m = 0; m < M; m++) memcpy(y[m] + g * R, totals + m * R, R * sizeof(float));
        }
}

/* w . x in float32, with the same order of additions as multiply_tile. */
ALWAYS_INLINE float dot(const float *w, const float *x, int C)
{
    floats s = {};
    int c = 0;
    for (; c + LANES <= C; c += LANES) s += load(w + c) * load(x + c);
    if (c < C) s += load_tail(w + c, C - c) * load_tail(x + c, C - c);
    return horizontal_sum(s);
}

/* The inputs of a layer with int8 weights, rounded to int16: (N, padded_columns(C)), or for AMX in its order. */
typedef struct { float *scales; short *values; } Int16Inputs;

/* The factor that makes `largest` the largest magnitude in a row of C floats. Writes its inverse to `scale`. */
static float rounding_factor(const float *row, int C, float largest, float *scale)
{
    floats maxima = broadcast(1e-30f), not_finite = {}; /* 0 * x is NaN for NaN and infinity; then the scale is NaN too */
    for (int c = 0; c < C; c += LANES) {
        const floats v = C - c < LANES ? load_tail(row + c, C - c) : load(row + c);
        const floats magnitude = (floats)((ints)v & 0x7fffffff);
        maxima = blend(magnitude > maxima, magnitude, maxima);
        not_finite += 0.f * v;
    }
    float max = maxima[0];
    for (int i = 1; i < LANES; i++) max = maxima[i] > max ? maxima[i] : max;
    *scale = max / largest + horizontal_sum(not_finite);
    return largest / max;
}

/* Rounds INT8_COLUMNS of a row of C floats, from column c on, times a factor. Columns from C on are 0. */
ALWAYS_INLINE void round_to_int16(const float *row, int C, int c, float factor, short *to)
{
    for (int i = 0; i < INT8_COLUMNS; i += LANES) {
        const int left = C - c - i;
        const floats v = left >= LANES ? load(row + c + i) : left > 0 ? load_tail(row + c + i, left) : (floats){};
        const floats rounded = (v * factor + 12582912.f) - 12582912.f; /* floats above 2^23 have no fraction */
        const half_shorts values = __builtin_convertvector(__builtin_convertvector(rounded, ints), half_shorts);
        memcpy(to + i, &values, sizeof values);
    }
}

/* Rounds the rows of x (N, C) to int16, with a scale for each row. int8 weights are multiplied by int16 inputs in
   integers: twice the rate of floats, and exact. The largest int16 value is limited so that no sum of two lanes
   overflows int32. */
static void quantize_inputs(const float *x, const Int16Inputs *to, int amx, int N, int C)
{
    const int products = (C + 2 * LANES - 1) / (2 * LANES) * 4; /* how many products a sum of two lanes adds up */
    const int columns = padded_columns(C);
    const float limit = 2147483647.f / (127.f * products), largest = limit < 32767.f ? floorf(limit) : 32767.f;
    const int rows = amx ? INPUT_ROWS : 1; /* rows in a block */
    PARALLEL_FOR(block, (N + rows - 1) / rows, 1) {
        float factors[INPUT_ROWS];
        const int first = block * rows, M = N - first < rows ? N - first : rows;
        const float *from = x + (long)first * C;
        short *values = to->values + (long)first * columns;
        for (int m = 0; m < M; m++) factors[m] = rounding_factor(from + (long)m * C, C, largest, to->scales + first + m);
        for (int c = 0; c < columns; c += INT8_COLUMNS) {
            if (!amx) round_to_int16(from, C, c, factors[0], values + c);
#if HAS_AMX
            else {
                short rounded[INPUT_ROWS][INT8_COLUMNS] = {0};
                for (int m = 0; m < M; m++) round_to_int16(from + (long)m * C, C, c, factors[m], rounded[m]);
                amx_store_inputs(rounded, (char *)(values + c * INPUT_ROWS));
            }
#endif
        }
    }
    barrier();
}

/* How a linear layer writes its result y into `out`: out = y, out += y, or out = GELU(y). */
enum { STORE, ADD, GELU_TANH, GELU_EXACT };

/* Writes outputs o ... o + outputs - 1 of M rows: y, times the scales of int8 weights and inputs, plus the bias. */
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
   TILE_ROWS. C: the number of columns, padded if the weights are int8. */
ALWAYS_INLINE void linear_tile(const Linear *l, int int8, const char *x, const float *scales, float *out,
                               int M, int C, int O, int o, int epilogue)
{
    const char *w = (const char *)l->weight + (int8 ? 1L : 4L) * o * C;
    const int outputs = O - o < TILE_OUTPUTS ? O - o : TILE_OUTPUTS;
    float y[TILE_ROWS][TILE_OUTPUTS];
    if (!int8 && outputs < TILE_OUTPUTS)
        for (int m = 0; m < M; m++)
            for (int r = 0; r < outputs; r++) y[m][r] = dot((const float *)w + (long)r * C, (const float *)x + m * C, C);
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

/* How many of `blocks` adjacent blocks, each of `outputs` outputs, a thread takes at a time. A large chunk is one long
   read of memory, but each thread should get several chunks, to balance the load if one thread is delayed. If the rows
   pass over a chunk several times, it has to stay in the L2 cache. */
static int chunk_size(int blocks, int outputs, long row_bytes, int passes)
{
    const int longest = blocks / (8 * team.threads) + 1;
    const long cached = CACHED_BYTES / (outputs * row_bytes);
    return passes == 1 || longest <= cached ? longest : cached > 0 ? (int)cached : 1;
}

/* Computes a linear layer tile by tile, for x (N, C) in the type that its weights need: int16 with `scales` (N,), or
   float32. C: the number of columns, padded if the weights are int8. */
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
/* linear_tiles with AMX, for int8 weights and inputs in the order of AMX. */
static void linear_tiles_amx(const Linear *l, const Int16Inputs *in, float *out, int N, int C, int O, int epilogue)
{
    const int blocks = (O + 2 * TILE_OUTPUTS - 1) / (2 * TILE_OUTPUTS);
    const int chunk = chunk_size(blocks, 2 * TILE_OUTPUTS, C, N <= INPUT_ROWS ? 1 : 2);
    amx_configure();
    for (int first; (first = claim_chunk(chunk)) < blocks;)
        for (int n = 0; n < N; n += INPUT_ROWS)
            for (int block = first; block < blocks && block < first + chunk; block++) {
                const int o = block * 2 * TILE_OUTPUTS, M = N - n < INPUT_ROWS ? N - n : INPUT_ROWS;
                const char *w = (const char *)l->weight + (long)o * C, *inputs = (const char *)(in->values + (long)n * C);
                float y[2][INPUT_ROWS][TILE_OUTPUTS], *to = out + (long)n * O;
                amx_multiply(w, inputs, C, O - o > TILE_OUTPUTS ? 2 : 1, n == 0, y);
                for (int i = 0, from = o; i < 2 && from < O; i++, from += TILE_OUTPUTS) {
                    const int outputs = O - from < TILE_OUTPUTS ? O - from : TILE_OUTPUTS;
                    write_outputs(l, 1, y[i], in->scales + n, to, M, O, from, outputs, epilogue);
                }
            }
    amx_release();
}
#endif

#include "outer_products.h"

/* What a thread needs for linear layers: memory that all threads share, memory that only this thread uses, and whether int8
   products may use AMX, which is faster and has the same bits. */
typedef struct { float *shared, *own; int amx; } Workspace;

/* The floats of `shared` and of `own` for inputs (N, C). */
static long shared_workspace_size(int int8, int N, int C)
{
    if (int8) return padded_rows(N) * (1L + padded_columns(C) / 2);
    return USES_OUTER_PRODUCTS(N) ? packed_inputs_size(N, C) : 0;
}
static long own_workspace_size(int int8, int N, int C)
{
    return !int8 && USES_OUTER_PRODUCTS(N) ? packed_weights_size(C) : 0;
}

/* out (N, O) = epilogue(x (N, C) times the transposed weight, plus bias). */
static void linear(const Linear *l, const float *x, float *out, const Workspace *workspace, int N, int C, int O,
                   int epilogue)
{
    /* A thread takes CHUNK_OUTPUTS outputs at a time, so there must be enough of them for all threads. */
    if (!l->scale && USES_OUTER_PRODUCTS(N) && O / CHUNK_OUTPUTS >= team.threads)
        linear_packed(l, x, out, workspace->own, workspace->shared, N, C, O, epilogue);
    else if (!l->scale) linear_tiles(l, x, NULL, out, N, C, O, epilogue);
    else {
        const Int16Inputs in = {workspace->shared, (short *)(workspace->shared + padded_rows(N))};
        const int amx = workspace->amx && N >= MIN_AMX_ROWS;
        quantize_inputs(x, &in, amx, N, C);
#if HAS_AMX
        if (amx) linear_tiles_amx(l, &in, out, N, padded_columns(C), O, epilogue);
        else
#endif
        linear_tiles(l, in.values, in.scales, out, N, padded_columns(C), O, epilogue);
    }
    barrier();
}
