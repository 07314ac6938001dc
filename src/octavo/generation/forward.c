/* GPT-2's forward pass for rows of (token, slot, position): what src/octavo/model.py computes, on a CPU, in C.

   A row is one token of one text. Rows of many texts run together, a prompt as many rows of one slot, so the weights
   are read once for all of them; a step of one token is bound by that reading, and there is nothing else left in it.

   Every number is added up in one order, whatever stands beside it: a row gives the same bits alone, in a batch, in a
   prompt cut anywhere, or after a prefix that was cached. No operation crosses rows but attention within a slot.

   Built when first used, by the C compiler that is there (native.py).
   Axis letters: N rows, C width, O outputs, H heads, D = C / H. */

#include "floats.h"
#include "team.h"

#include <stdlib.h>

#define TILE 8      /* rows that share one reading of a weight */
#define FOUR 4      /* rows of a prompt that share one reading of a key */
#define STRETCH 768 /* numbers of a row that are worked through at a time */
#define NEAR 400000 /* bytes of weights, at most, that all rows of a prompt pass before the next: a core keeps them */

typedef struct { const void *weight; const float *scale, *bias; } Linear; /* (O, C); scale: int8, one for each output */
typedef struct { const float *weight, *bias; } Norm;
typedef struct {
    Norm ln_1; Linear c_attn, attn_c_proj; Norm ln_2; Linear c_fc, mlp_c_proj; void *keys, *values;
} Block;
typedef struct {
    int n_layer, n_head, n_embd, vocab_size, exact_gelu;
    int positions, half; /* of the cache: how many a slot has, and whether they are kept in 16 bits */
    const float *wte, *wpe; Norm ln_f; Linear lm_head; const Block *blocks;
} Model;

/* y[m][r] = w[r] . x[m] for 16 weight rows and M input rows, in groups of R weight rows. R * M is at most 16: as many
   sums as there are registers to hold. All but C is constant where this is used. */
inlined void tile(const char *w, int whole, const char *x, int C, int R, int M, float y[TILE][LANES])
{
    floats kept[LANES / R][LANES];
    const int step = PER_STEP(whole), full = C / step * step, hold = HOLDS && M > 1;
    const long row = whole ? C : 4L * C, input = whole ? 2L * C : 4L * C; /* bytes */
    for (int from = 0; from == 0 || from < full; from += STRETCH) /* of x, which so stays in the cache for all groups */
        for (int g = 0; g < LANES / R; g++) {
            const char *group = w + g * R * row;
            floats s[LANES] = {};
            if (from)
                UNROLLED for (int i = 0; i < R * M; i++) s[i] = kept[g][i];
            for (int c = from; c < full && c < from + STRETCH; c += step) {
                floats in[TILE];
                if (hold)
                    UNROLLED for (int m = 0; m < M; m++) { in[m] = inputs(x + m * input, whole, c); HOLD(in[m]); }
                UNROLLED for (int r = 0; r < R; r++) {
                    /* Of the next groups: rows are short, and end before the machine has seen where they lead. */
                    if (whole && c % 64 == 0) __builtin_prefetch(group + (LANES + r) * row + c);
                    if (!whole && M > 1) __builtin_prefetch(group + (R + r) * row + 4L * c);
                    const floats v = weights(group + r * row, whole, c);
                    UNROLLED for (int m = 0; m < M; m++)
                        s[m * R + r] = plus_products(s[m * R + r], v,
                                                     hold ? in[m] : inputs(x + m * input, whole, c), whole);
                }
            }
            if (from + STRETCH < full) {
                UNROLLED for (int i = 0; i < R * M; i++) kept[g][i] = s[i];
                continue;
            }
            if (full < C)
                UNROLLED for (int r = 0; r < R; r++)
                    UNROLLED for (int m = 0; m < M; m++)
                        s[m * R + r] = plus_products(s[m * R + r], last_weights(group + r * row, whole, full, C - full),
                                                     last(x + m * input, whole ? 2 : 4, full, C - full), whole);
            UNROLLED for (int i = 0; i < R * M; i++) s[i] = as_floats(s[i], whole);
            float total[LANES];
            put(total, sums(s));
            UNROLLED for (int m = 0; m < M; m++) memcpy(y[m] + g * R, total + m * R, R * sizeof(float));
        }
}

/* w . x, added up as above. */
inlined float dot(const char *w, int whole, const char *x, int C)
{
    floats s = {};
    int c = 0;
    for (; c + PER_STEP(whole) <= C; c += PER_STEP(whole))
        s = plus_products(s, weights(w, whole, c), inputs(x, whole, c), whole);
    if (c < C) s = plus_products(s, last_weights(w, whole, c, C - c), last(x, whole ? 2 : 4, c, C - c), whole);
    return sum(as_floats(s, whole));
}

/* Weights of 8 bits are multiplied by inputs of 16, in whole numbers: twice the rate of floats, and exact.
   Rows of x (N, C) as numbers of 16 bits, and what each row is to be multiplied by. The largest is so small that no sum
   of products with weights of 8 bits leaves the 32 bits in which it is made. */
static void shorten(const float *x, short *out, float *scales, int N, int C)
{
    const float room = 2147483647.f / (254.f * ((C + 31) / 32)), largest = room < 32767.f ? floorf(room) : 32767.f;
    EACH(n, N, 1) {
        const float *from = x + (long)n * C;
        float most = 1e-30f, broken = 0; /* what is no number, or none that ends, stays so: else it would be hidden */
        for (int c = 0; c < C; c++) {
            most = fabsf(from[c]) > most ? fabsf(from[c]) : most;
            broken += 0 * from[c];
        }
        const float by = largest / most;
        for (int c = 0; c < C; c++) out[(long)n * C + c] = (short)rintf(from[c] * by);
        scales[n] = most / largest + broken;
    }
    meet();
}

/* out (N, O) = x (N, C) times the transposed weight, plus bias; added to what stands in out, or through a GELU. */
enum { SET, ADD, GELU, GELU_EXACT };

/* 16 outputs, or those that are left, from o on; of M rows, at most TILE. */
inlined void outputs_of(const Linear *l, int whole, const char *x, const float *scales, float *out,
                        int M, int C, int O, int o, int then)
{
    const long row = whole ? C : 4L * C, input = whole ? 2L * C : 4L * C;
    const char *w = (const char *)l->weight + o * row;
    const int R = O - o < LANES ? O - o : LANES;
    floats scale = all(1), bias = {};
    for (int r = 0; r < R; r++) {
        if (whole) scale[r] = l->scale[o + r];
        if (l->bias) bias[r] = l->bias[o + r];
    }
    float y[TILE][LANES];
    if (R < LANES)
        for (int m = 0; m < M; m++) for (int r = 0; r < R; r++) y[m][r] = dot(w + r * row, whole, x + m * input, C);
    else
        switch (M) {
        case 1: tile(w, whole, x, C, 16, 1, y); break;
        case 2: tile(w, whole, x, C, 8, 2, y); break;
        case 3: tile(w, whole, x, C, 4, 3, y); break;
        case 4: tile(w, whole, x, C, 4, 4, y); break;
        default: tile(w, whole, x, C, 2, TILE, y);
        }
    for (int m = 0; m < M; m++) {
        float *to = out + (long)m * O + o;
        floats v = at(y[m]) * (whole ? scale * scales[m] : scale) + bias;
        if (then == GELU) v = gelu16(v);
        if (then == GELU_EXACT) v = gelu_exact16(v);
        if (R == LANES) put(to, then == ADD ? at(to) + v : v);
        else for (int r = 0; r < R; r++) to[r] = then == ADD ? to[r] + v[r] : v[r];
    }
}

static void outputs(const Linear *l, const char *x, const float *scales, float *out, int M, int C, int O, int o, int then)
{
    if (l->scale) outputs_of(l, 1, x, scales, out, M, C, O, o, then);
    else outputs_of(l, 0, x, scales, out, M, C, O, o, then);
}

static void linear_of(const Linear *l, const void *x, const float *scales, float *out, int N, int C, int O, int then)
{
    const int whole = l->scale != NULL;
    const long row = whole ? C : 4L * C, input = whole ? 2L * C : 4L * C, near = NEAR / (LANES * row);
    /* Long pieces, since each is one stretch of memory, but several a thread, for one may be held up. */
    const int blocks = (O + LANES - 1) / LANES, longest = blocks / (8 * team.threads) + 1;
    /* A prompt reads its rows once for all of a piece, and the piece again for every TILE rows: from near by. */
    const int piece = N <= TILE || longest <= near ? longest : near > 0 ? near : 1;
    for (int first; (first = take(piece)) < blocks;)
        for (int n = 0, M; n < N; n += M) {
            M = N - n >= TILE ? TILE : N - n < 4 ? N - n : 4;
            for (int block = first; block < blocks && block < first + piece; block++)
                outputs(l, (const char *)x + n * input, whole ? scales + n : NULL, out + (long)n * O, M, C, O,
                        block * LANES, then);
        }
}

/* `room` is for x in 16 bits, where the weights have 8. */
static void linear(const Linear *l, const float *x, float *out, float *room, int N, int C, int O, int then)
{
    if (l->scale) {
        short *shorter = (short *)(room + N);
        shorten(x, shorter, room, N, C);
        linear_of(l, shorter, room, out, N, C, O, then);
    } else
        linear_of(l, x, NULL, out, N, C, O, then);
    meet();
}

static void layer_norm(const Norm *norm, const float *x, float *out, int N, int C)
{
    EACH(n, N, 1) {
        const float *from = x + (long)n * C;
        float *to = out + (long)n * C;
        const int whole = C / LANES * LANES, left = C - whole;
        floats total = {}, squares = {};
        for (int c = 0; c < whole; c += LANES) total += at(from + c);
        if (left) total += last(from, 4, whole, left);
        const float mean = sum(total) / C;
        for (int c = 0; c < whole; c += LANES) { const floats d = at(from + c) - mean; squares += d * d; }
        float more = 0;
        for (int c = whole; c < C; c++) more += (from[c] - mean) * (from[c] - mean);
        const float scale = 1 / sqrtf((sum(squares) + more) / C + 1e-5f);
        for (int c = 0; c < C; c++)
            to[c] = (from[c] - mean) * scale * norm->weight[c] + (norm->bias ? norm->bias[c] : 0);
    }
    meet();
}

/* Keys lie (slots, H, positions / 16, D, 16) and values (slots, H, positions, D): both are read from end to end, the
   keys for sixteen scores at once, the values for sixteen sums. */
static void remember(const Model *m, const Block *b, const float *qkv, const int *slot, const int *pos, int N)
{
    const int C = m->n_embd, H = m->n_head, D = C / H;
    EACH(i, N * H, 4) {
        const int n = i / H, h = i % H;
        const float *k = qkv + (long)n * 3 * C + C + h * D, *v = k + C;
        const long head = ((long)slot[n] * H + h) * m->positions * D;
        const long key = head + (long)(pos[n] / LANES) * D * LANES + pos[n] % LANES, value = head + (long)pos[n] * D;
        for (int d = 0; d < D; d++) keep(b->keys, m->half, key + d * LANES, k[d]);
        for (int d = 0; d < D; d++) keep(b->values, m->half, value + d, v[d]);
    }
    meet();
}

/* scores[i] of `B` times 16 positions from j on, for M rows: M * B sums that need not wait for one another. */
inlined void score(const void *keys, int half, long head, const float *q, long apart, int D, int j, int M, int B,
                   float *scores, long S)
{
    floats s[FOUR * FOUR] = {};
    for (int d = 0; d < D; d++)
        UNROLLED for (int g = 0; g < B; g++) {
            const floats k = kept(keys, half, head + ((long)(j / LANES + g) * D + d) * LANES);
            UNROLLED for (int i = 0; i < M; i++) s[i * B + g] += k * q[i * apart + d];
        }
    const float shrink = 1 / sqrtf(D);
    UNROLLED for (int i = 0; i < M; i++)
        UNROLLED for (int g = 0; g < B; g++) put(scores + i * S + j + g * LANES, s[i * B + g] * shrink);
}

/* out[i] = scores[i] values, `V` times 16 of the D numbers from d on, for M rows. */
inlined void blend(const float *scores, long S, const void *values, int half, long head, int D, int d, int last,
                   int M, int V, float *out, int C)
{
    floats y[FOUR * FOUR] = {};
    for (int j = 0; j <= last; j++)
        UNROLLED for (int g = 0; g < V; g++) {
            const floats v = kept(values, half, head + (long)j * D + d + g * LANES);
            UNROLLED for (int i = 0; i < M; i++) y[i * V + g] += v * scores[i * S + j];
        }
    UNROLLED for (int i = 0; i < M; i++)
        UNROLLED for (int g = 0; g < V; g++) put(out + (long)i * C + d + g * LANES, y[i * V + g]);
}

/* Of the first `count` scores; the rest, up to `end` and to where 16 are full, become 0. */
inlined void softmax(float *s, int count, int end)
{
    const int whole = (count + LANES - 1) / LANES * LANES;
    for (int j = count; j < whole || j < end; j++) s[j] = -INFINITY;
    floats top = all(-INFINITY), total = {};
    for (int j = 0; j < whole; j += LANES) top = pick(at(s + j) > top, at(s + j), top);
    float most = top[0];
    for (int i = 1; i < LANES; i++) most = top[i] > most ? top[i] : most;
    for (int j = 0; j < whole; j += LANES) {
        const floats e = pick(at(s + j) == -INFINITY, all(0), exp16(at(s + j) - most));
        put(s + j, e);
        total += e;
    }
    const float share = 1 / sum(total);
    for (int j = 0; j < whole; j += LANES) put(s + j, at(s + j) * share);
    for (int j = whole; j < end; j++) s[j] = 0;
}

/* M rows of one slot and head: softmax(q . keys / sqrt(D)) values, each over the positions up to its own. */
inlined void attend_rows(const Model *m, const Block *b, int half, const float *qkv, float *out, float *scores,
                         int n, int M, int h, int slot, const int *pos)
{
    const int C = m->n_embd, D = C / m->n_head, last = pos[n + M - 1];
    const long S = m->positions, head = ((long)slot * m->n_head + h) * S * D;
    const void *keys = b->keys, *values = b->values;
    const float *q = qkv + (long)n * 3 * C + h * D;
    float *to = out + (long)n * C + h * D;

    int j = 0, d = 0;
    for (; M == 1 && j + FOUR * LANES <= last + 1; j += FOUR * LANES)
        score(keys, half, head, q, 3 * C, D, j, M, FOUR, scores, S);
    for (; j <= last; j += LANES) score(keys, half, head, q, 3 * C, D, j, M, 1, scores, S);
    for (int i = 0; i < M; i++) softmax(scores + i * S, pos[n + i] + 1, last + 1);
    for (; d + 4 * LANES <= D; d += 4 * LANES) blend(scores, S, values, half, head, D, d, last, M, 4, to, C);
    for (; d + LANES <= D; d += LANES) blend(scores, S, values, half, head, D, d, last, M, 1, to, C);
    for (; d < D; d++)
        for (int i = 0; i < M; i++) {
            float y = 0;
            for (int k = 0; k <= pos[n + i]; k++) y += scores[i * S + k] * kept_one(values, half, head + (long)k * D + d);
            to[(long)i * C + d] = y;
        }
}

inlined void attend_of(const Model *m, const Block *b, int half, const float *qkv, float *out, float *scores,
                       const int *slot, const int *pos, int N)
{
    const int H = m->n_head;
    EACH(i, N * H, 1) {
        const int n = i / H, h = i % H;
        int first = n; /* rows of one slot that follow one another go in fours, counted from where they start */
        while (first > 0 && slot[first - 1] == slot[n]) first--;
        if ((n - first) % FOUR) continue;
        int M = 1;
        while (M < FOUR && n + M < N && slot[n + M] == slot[n]) M++;
        if (M == FOUR) attend_rows(m, b, half, qkv, out, scores, n, FOUR, h, slot[n], pos);
        else
            for (int k = 0; k < M; k++) attend_rows(m, b, half, qkv, out, scores, n + k, 1, h, slot[n], pos);
    }
}

static void attend(const Model *m, const Block *b, const float *qkv, float *out, float *scores,
                   const int *slot, const int *pos, int N)
{
    if (m->half) attend_of(m, b, 1, qkv, out, scores, slot, pos, N);
    else attend_of(m, b, 0, qkv, out, scores, slot, pos, N);
    meet();
}

typedef struct {
    const Model *model; int N; const int *ids, *slot, *pos; int W; const int *wanted; float *work, *logits;
} Rows;

/* What each thread of the team does. `scores` is its own. */
static void forward(const void *rows)
{
    const Rows *r = rows;
    const Model *m = r->model;
    const int C = m->n_embd, N = r->N;
    float *x = r->work, *h = x + (long)N * C, *y = h + (long)N * C, *wide = y + (long)N * C; /* 3 of (N, C), (N, 4C) */
    float *room = wide + 4L * N * C; /* (N, 4C) of 16 bits, and N floats */
    float *scores = malloc(sizeof(float) * FOUR * m->positions);
    if (!scores) abort();

    EACH(n, N, 1)
        for (int c = 0; c < C; c++)
            x[(long)n * C + c] = m->wte[(long)r->ids[n] * C + c] + m->wpe[(long)r->pos[n] * C + c];
    meet();
    for (const Block *b = m->blocks; b < m->blocks + m->n_layer; b++) {
        layer_norm(&b->ln_1, x, h, N, C);
        linear(&b->c_attn, h, wide, room, N, C, 3 * C, SET);
        remember(m, b, wide, r->slot, r->pos, N);
        attend(m, b, wide, y, scores, r->slot, r->pos, N);
        linear(&b->attn_c_proj, y, x, room, N, C, C, ADD);
        layer_norm(&b->ln_2, x, h, N, C);
        linear(&b->c_fc, h, wide, room, N, C, 4 * C, m->exact_gelu ? GELU_EXACT : GELU);
        linear(&b->mlp_c_proj, wide, x, room, N, 4 * C, C, ADD);
    }
    EACH(w, r->W, 1) memcpy(y + (long)w * C, x + (long)r->wanted[w] * C, C * sizeof(float));
    meet();
    layer_norm(&m->ln_f, y, h, r->W, C);
    linear(&m->lm_head, h, r->logits, room, r->W, C, m->vocab_size, SET);
    free(scores);
}

/* Runs N rows, those of one slot side by side and in the order of their positions; writes the logits (W, vocab_size)
   of the rows that `wanted` names. `work` has room for N * (9 * C + 1) floats. One call at a time; others wait. */
void octavo_forward(const Model *m, int N, const int *ids, const int *slot, const int *pos,
                    int W, const int *wanted, float *work, float *logits, int threads)
{
    const Rows rows = {m, N, ids, slot, pos, W, wanted, work, logits};
    together(forward, &rows, threads);
}
