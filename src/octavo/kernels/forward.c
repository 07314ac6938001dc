/* GPT-2's forward pass on a CPU: computes what src/octavo/model.py computes, for rows of (token id, slot, position).

   A row is one token of one sequence. Rows of many sequences run in one batch, and a prompt is many rows of one slot,
   so each weight is loaded once for all rows. Decoding a single row is bound by memory bandwidth.

   Every sum has a fixed order that does not depend on the other rows: a row has the same bits alone, in a batch, in a
   prompt split anywhere, and after a cached prefix. Only attention reads other rows, those of the same slot.

   Axis letters: N rows, W rows whose logits are needed, C width, O outputs, H heads, D = C / H, S positions of a slot.
   Attention computes M rows and V vectors of floats at a time. */

#include "linear.h"
#include "kv_cache.h"

#define QUERY_ROWS 4                        /* rows of a prompt that share one load of a key or a value */
#define VECTORS (ACCUMULATORS / QUERY_ROWS) /* vectors of keys or values that a loop of attention handles at a time */

typedef struct { const float *weight, *bias; } Norm;
typedef struct {
    Norm ln_1; Linear c_attn, attn_c_proj; Norm ln_2; Linear c_fc, mlp_c_proj; char *keys, *values;
} Block;
typedef struct {
    int n_layer, n_head, n_embd, vocab_size, exact_gelu;
    int positions, int8; /* positions of a slot in the KV cache, a multiple of LANES; whether weights and cache are int8 */
    const float *wte, *wpe; Norm ln_f; Linear lm_head; const Block *blocks;
} Model;

static void layer_norm(const Norm *norm, const float *x, float *out, int N, int C)
{
    PARALLEL_FOR(n, N, 1) {
        const float *from = x + (long)n * C;
        float *to = out + (long)n * C;
        const int full = C / LANES * LANES, left = C - full;
        floats total = {}, squares = {};
        for (int c = 0; c < full; c += LANES) total += load(from + c);
        if (left) total += load_tail(from + full, left);
        const float mean = horizontal_sum(total) / C;
        for (int c = 0; c < full; c += LANES) { const floats d = load(from + c) - mean; squares += d * d; }
        float tail_squares = 0;
        for (int c = full; c < C; c++) tail_squares += (from[c] - mean) * (from[c] - mean);
        const float scale = 1 / sqrtf((horizontal_sum(squares) + tail_squares) / C + 1e-5f);
        for (int c = 0; c < full; c += LANES) {
            const floats y = (load(from + c) - mean) * scale * load(norm->weight + c);
            store(to + c, norm->bias ? y + load(norm->bias + c) : y);
        }
        for (int c = full; c < C; c++)
            to[c] = (from[c] - mean) * scale * norm->weight[c] + (norm->bias ? norm->bias[c] : 0);
    }
    barrier();
}

/* The first tile of a head in the KV cache of a layer, in bytes from its start. */
ALWAYS_INLINE long head_offset(const Model *m, int slot, int h, int D)
{
    return ((long)slot * m->n_head + h) * (m->positions / LANES) * tile_bytes(m->int8, D);
}

/* Stores the keys and values of all rows in the cache. */
static void store_keys_values(const Model *m, const Block *b, const float *qkv, const int *slots, const int *positions,
                              int N)
{
    const int C = m->n_embd, H = m->n_head, D = C / H;
    PARALLEL_FOR(i, N * H, 4) {
        const int n = i / H, h = i % H, row = positions[n] % LANES;
        const float *k = qkv + (long)n * 3 * C + C + h * D, *v = k + C;
        const long tile = head_offset(m, slots[n], h, D) + positions[n] / LANES * tile_bytes(m->int8, D);
        store_cached(b->keys + tile, m->int8, row, row, LANES, k, D);
        store_cached(b->values + tile, m->int8, row, (long)row * D, 1, v, D);
    }
    barrier();
}

/* scores[i][j ...] = q[i] . keys / sqrt(D), for M rows and V tiles of positions from j on: M * V independent sums.

   The numbers of the tiles after them are prefetched, one cache line after the other: the V tiles are read in turn, which
   the hardware does not recognize as sequential. */
ALWAYS_INLINE void attention_scores(char *keys, int int8, const float *q, long q_stride, int D, int j, int M, int V,
                                    float *scores, long S)
{
    const long size = tile_bytes(int8, D);
    char *tile = keys + j / LANES * size;
    floats s[QUERY_ROWS * VECTORS] = {};
    for (int d = 0; d < D; d++)
        UNROLLED for (int g = 0; g < V; g++) {
            const floats k = load_cached(tile + g * size, int8, (long)d * LANES);
            const long at = (long)(d * V + g) * LANES;
            if (at % (int8 ? 64 : 16) == 0) __builtin_prefetch(tile + V * size + (int8 ? at : 4 * at));
            UNROLLED for (int i = 0; i < M; i++) s[i * V + g] += k * q[i * q_stride + d];
        }
    const float scale = 1 / sqrtf(D);
    UNROLLED for (int g = 0; g < V; g++) {
        const floats scales = int8 ? load(tile_scales(tile + g * size, D)) * scale : broadcast(scale);
        UNROLLED for (int i = 0; i < M; i++) store(scores + i * S + j + g * LANES, s[i * V + g] * scales);
    }
}

/* out[i] = the sum of the values of positions 0 ... last, weighted by scores[i], for M rows and V * LANES of the
   D columns from d on. The scales of an int8 cache are in the scores. The tile after the next is prefetched, of
   a float32 cache in part. */
ALWAYS_INLINE void weighted_values(const float *scores, long S, const char *values, int int8, int D, int d, int last,
                                   int M, int V, float *out, int C)
{
    floats y[QUERY_ROWS * VECTORS] = {};
    for (int first = 0; first <= last; first += LANES, values += tile_bytes(int8, D))
        for (int j = first; j <= last && j < first + LANES; j++) {
            const long at = (long)(j - first) * D + d;
            __builtin_prefetch(values + 2 * tile_bytes(int8, D) + (int8 ? at : 4 * at));
            UNROLLED for (int g = 0; g < V; g++) {
                const floats v = load_cached(values, int8, at + g * LANES);
                UNROLLED for (int i = 0; i < M; i++) y[i * V + g] += v * scores[i * S + j];
            }
        }
    UNROLLED for (int i = 0; i < M; i++)
        UNROLLED for (int g = 0; g < V; g++) store(out + (long)i * C + d + g * LANES, y[i * V + g]);
}

/* Softmax of the first `count` scores. The others, up to `end` and to a full vector, become 0, and so do those that are
   more than 80 below the largest: they are too small to count, and products with them may be denormal numbers, which
   some CPUs compute slowly. */
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
ALWAYS_INLINE void attend_rows(const Model *m, const Block *b, int int8, const float *qkv, float *out, float *scores,
                               int n, int M, int h, int slot, const int *positions)
{
    const int C = m->n_embd, D = C / m->n_head, last = positions[n + M - 1];
    const long S = m->positions, size = tile_bytes(int8, D);
    char *keys = b->keys + head_offset(m, slot, h, D), *values = b->values + head_offset(m, slot, h, D);
    const float *q = qkv + (long)n * 3 * C + h * D;
    float *to = out + (long)n * C + h * D;

    int j = 0, d = 0;
    for (; j + VECTORS * LANES <= last + 1; j += VECTORS * LANES)
        attention_scores(keys, int8, q, 3 * C, D, j, M, VECTORS, scores, S);
    for (; j <= last; j += LANES) attention_scores(keys, int8, q, 3 * C, D, j, M, 1, scores, S);
    for (long at = 0; at < 2 * size; at += 64) __builtin_prefetch(values + at);
    for (int i = 0; i < M; i++) softmax(scores + i * S, positions[n + i] + 1, last + 1);
    if (int8)
        for (j = 0; j <= last; j += LANES)
            for (int i = 0; i < M; i++) {
                float *from = scores + i * S + j;
                store(from, load(from) * load(tile_scales(values + j / LANES * size, D)));
            }
    for (; d + VECTORS * LANES <= D; d += VECTORS * LANES)
        weighted_values(scores, S, values, int8, D, d, last, M, VECTORS, to, C);
    for (; d + LANES <= D; d += LANES) weighted_values(scores, S, values, int8, D, d, last, M, 1, to, C);
    for (; d < D; d++)
        for (int i = 0; i < M; i++) {
            float y = 0;
            for (int k = 0; k <= positions[n + i]; k++)
                y += scores[i * S + k] * load_one_cached(values + k / LANES * size, int8, k % LANES * (long)D + d);
            to[(long)i * C + d] = y;
        }
}

/* Attention of all rows and heads, with an int8 or float32 cache. */
ALWAYS_INLINE void attend_all(const Model *m, const Block *b, int int8, const float *qkv, float *out, float *scores,
                              const int *slots, const int *positions, int N)
{
    const int H = m->n_head;
    PARALLEL_FOR(i, N * H, 1) {
        /* Rows of one slot form groups of QUERY_ROWS. The position of a group's first row is a multiple of QUERY_ROWS.
           The iteration of that row computes the group, and those of the other rows do nothing. A row outside of a
           group is computed alone. */
        const int n = i / H, h = i % H, first = n - positions[n] % QUERY_ROWS, end = first + QUERY_ROWS;
        const int grouped = first >= 0 && end <= N && slots[first] == slots[n] && slots[end - 1] == slots[n];
        if (!grouped) attend_rows(m, b, int8, qkv, out, scores, n, 1, h, slots[n], positions);
        else if (n == first) attend_rows(m, b, int8, qkv, out, scores, n, QUERY_ROWS, h, slots[n], positions);
    }
}

/* attend_all, compiled once for an int8 cache and once for float32. */
static void attend(const Model *m, const Block *b, const float *qkv, float *out, float *scores,
                   const int *slots, const int *positions, int N)
{
    if (m->int8) attend_all(m, b, 1, qkv, out, scores, slots, positions, N);
    else attend_all(m, b, 0, qkv, out, scores, slots, positions, N);
    barrier();
}

static atomic_int uses_amx; /* read once in a call, so that all its threads do the same */

/* Switches AMX for int8 products on if `wanted` and if this processor and system have it, otherwise off. Returns
   whether it is on. */
int octavo_use_amx(int wanted)
{
#if HAS_AMX
    atomic_store(&uses_amx, wanted && amx_is_permitted());
#else
    (void)wanted;
#endif
    return atomic_load(&uses_amx);
}

/* The number of positions in a tile of the KV cache. */
int octavo_lanes(void) { return LANES; }

typedef struct {
    const Model *model;
    int N; const int *ids, *slots, *positions;
    int W; const int *logit_rows;
    float *workspace, *logits;
    int threads, amx;
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
    float *shared = hidden + 4L * N * C, *own = shared + shared_workspace_size(m->int8, N, 4 * C);
    const Workspace workspace = {shared, own + thread * own_workspace_size(m->int8, N, 4 * C), batch->amx};

    PARALLEL_FOR(n, N, 1)
        for (int c = 0; c < C; c++)
            x[(long)n * C + c] = m->wte[(long)batch->ids[n] * C + c] + m->wpe[(long)batch->positions[n] * C + c];
    barrier();
    for (const Block *b = m->blocks; b < m->blocks + m->n_layer; b++) {
        layer_norm(&b->ln_1, x, h, N, C);
        linear(&b->c_attn, h, hidden, &workspace, N, C, 3 * C, STORE);
        store_keys_values(m, b, hidden, batch->slots, batch->positions, N);
        attend(m, b, hidden, y, scores, batch->slots, batch->positions, N);
        linear(&b->attn_c_proj, y, x, &workspace, N, C, C, ADD);
        layer_norm(&b->ln_2, x, h, N, C);
        linear(&b->c_fc, h, hidden, &workspace, N, C, 4 * C, m->exact_gelu ? GELU_EXACT : GELU_TANH);
        linear(&b->mlp_c_proj, hidden, x, &workspace, N, 4 * C, C, ADD);
    }
    PARALLEL_FOR(w, batch->W, 1)
        memcpy(y + (long)w * C, x + (long)batch->logit_rows[w] * C, C * sizeof(float));
    barrier();
    layer_norm(&m->ln_f, y, h, batch->W, C);
    linear(&m->lm_head, h, batch->logits, &workspace, batch->W, C, m->vocab_size, STORE);
}

/* The floats that a call needs: the scores of each thread; x, h and y (N, C); `hidden` (N, 4C); those of the layers. */
long octavo_workspace_size(const Model *m, int N, int threads)
{
    const int C = m->n_embd;
    return (long)threads * (QUERY_ROWS * m->positions + own_workspace_size(m->int8, N, 4 * C)) + 7L * N * C +
           shared_workspace_size(m->int8, N, 4 * C);
}

/* Runs N rows; writes the logits (W, vocab_size) of the rows numbered by `logit_rows`. Rows of one slot are adjacent
   and have consecutive positions. `workspace` has octavo_workspace_size floats: nothing is allocated here, so
   nothing can fail. `threads`: 1 to MAX_THREADS. Concurrent calls run one at a time. */
void octavo_forward(const Model *m, int N, const int *ids, const int *slots, const int *positions,
                    int W, const int *logit_rows, float *workspace, float *logits, int threads)
{
    const int amx = atomic_load(&uses_amx);
    const Batch batch = {m, N, ids, slots, positions, W, logit_rows, workspace, logits, threads, amx};
    run_team(forward, &batch, threads);
}
