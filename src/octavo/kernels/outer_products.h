/* Linear layers with float32 weights for many rows, as sums of outer products: with the bits of linear.h's dot products, and
   faster.

   A dot product loads a vector of weights and one of inputs for every product of two vectors. An outer product multiplies
   a few numbers of one column with several vectors of outputs, so each loaded number is used several times. It needs
   weights and inputs in another order (packing), which pays if many rows share the packed weights.

   Lane j of a dot product's sum adds columns j, LANES + j, 2 LANES + j ... Here a tile of rows and outputs has separate sums
   for each such subset of the columns, and the sums of the subsets are added in the order of horizontal_sums.

   Axis letters: N rows, C inputs, O outputs, T columns of a subset. */

#if defined __FMA__ || defined __aarch64__
#define USES_OUTER_PRODUCTS(N) ((N) >= MIN_PACKED_ROWS)
#else
#define USES_OUTER_PRODUCTS(N) ((void)(N), 0) /* without fused multiply-add (FMA), dot products are as fast */
#endif

enum {
    MIN_PACKED_ROWS = 64,
    PANEL_VECTORS = 3,                      /* vectors of outputs of a tile, which has TILE_ROWS rows */
    PANEL_OUTPUTS = PANEL_VECTORS * LANES,  /* outputs whose weights are packed at a time */
    CHUNK_OUTPUTS = 48,                     /* outputs that a thread takes at a time: some panels, and some blocks */
};

/* The columns of a subset: some subsets have a column of zeros at the end. */
static int subset_columns(int C) { return (C + LANES - 1) / LANES; }

/* Packs PANEL_OUTPUTS rows of weights (O, C) as (LANES subsets, T, PANEL_OUTPUTS). */
static void pack_weights(const float *w, int C, float *to)
{
    const int T = subset_columns(C);
    for (int v = 0; v < PANEL_VECTORS; v++, w += (long)LANES * C)
        for (int t = 0; t < T; t++) {
            floats rows[LANES];
            for (int i = 0; i < LANES; i++) {
                const float *from = w + (long)i * C + t * LANES;
                rows[i] = C - t * LANES < LANES ? load_tail(from, C - t * LANES) : load(from);
            }
            transpose(rows);
            for (int j = 0; j < LANES; j++) store(to + ((long)j * T + t) * PANEL_OUTPUTS + v * LANES, rows[j]);
        }
}

/* Packs TILE_ROWS rows of inputs (N, C) as (LANES subsets, T, TILE_ROWS). */
static void pack_inputs(const float *x, int C, float *to)
{
    const int T = subset_columns(C);
    for (int first = 0; first < TILE_ROWS; first += LANES) { /* a tile may have more rows than a vector has lanes */
        const int count = TILE_ROWS - first < LANES ? TILE_ROWS - first : LANES;
        for (int t = 0; t < T; t++) {
            floats rows[LANES] = {};
            for (int m = 0; m < count; m++) {
                const float *from = x + (long)(first + m) * C + t * LANES;
                rows[m] = C - t * LANES < LANES ? load_tail(from, C - t * LANES) : load(from);
            }
            transpose(rows);
            for (int j = 0; j < LANES; j++)
                memcpy(to + ((long)j * T + t) * TILE_ROWS + first, rows + j, count * sizeof(float));
        }
    }
}

/* sums[m][v] = the products of row m and the outputs of vector v, added over the T columns of a subset. */
ALWAYS_INLINE void add_outer_products(const float *w, const float *x, int T, floats sums[TILE_ROWS][PANEL_VECTORS])
{
    UNROLLED for (int m = 0; m < TILE_ROWS; m++)
        UNROLLED for (int v = 0; v < PANEL_VECTORS; v++) sums[m][v] = (floats){};
    for (int t = 0; t < T; t++, w += PANEL_OUTPUTS, x += TILE_ROWS) {
        floats weights[PANEL_VECTORS];
        UNROLLED for (int v = 0; v < PANEL_VECTORS; v++) {
            weights[v] = load(w + v * LANES);
            KEEP_IN_REGISTER(weights[v]);
        }
        UNROLLED for (int m = 0; m < TILE_ROWS; m++) {
            floats input = broadcast(x[m]);
            KEEP_IN_REGISTER(input);
            UNROLLED for (int v = 0; v < PANEL_VECTORS; v++) sums[m][v] += weights[v] * input;
        }
    }
}

/* The outputs of a tile: the sums of all subsets. horizontal_sums adds lanes that are LANES / 2 apart, then LANES / 4 and
   so on. So the subsets are computed in the order of their reversed bits, and each pair of equal halves is added as soon as
   both are known: `halves[i]` is the sum of 2^i subsets. */
static void multiply_packed(const float *w, const float *x, int T, floats sums[TILE_ROWS][PANEL_VECTORS])
{
    floats halves[5][TILE_ROWS][PANEL_VECTORS];
    for (int i = 0; i < LANES; i++) {
        int subset = 0, level = 0;
        for (int bit = 1; bit < LANES; bit *= 2) subset = 2 * subset + !!(i & bit);
        add_outer_products(w + (long)subset * T * PANEL_OUTPUTS, x + (long)subset * T * TILE_ROWS, T, sums);
        for (; i >> level & 1; level++)
            UNROLLED for (int m = 0; m < TILE_ROWS; m++)
                UNROLLED for (int v = 0; v < PANEL_VECTORS; v++) sums[m][v] = halves[level][m][v] + sums[m][v];
        UNROLLED for (int m = 0; m < TILE_ROWS; m++)
            UNROLLED for (int v = 0; v < PANEL_VECTORS; v++) halves[level][m][v] = sums[m][v];
    }
}

/* Floats that a thread needs for packed weights, and that all need for packed inputs. */
static long packed_weights_size(int C) { return (long)subset_columns(C) * LANES * PANEL_OUTPUTS; }
static long packed_inputs_size(int N, int C) { return (long)subset_columns(C) * LANES * (N / TILE_ROWS * TILE_ROWS); }

/* out (N, O) = epilogue(x (N, C) times the transposed weight, plus bias). `weights` and `inputs` have room for the packed
   weights of this thread and the packed inputs. The rows and the outputs that fill no tile have dot products. */
static void linear_packed(const Linear *l, const float *x, float *out, float *weights, float *inputs, int N, int C, int O,
                          int epilogue)
{
    const int T = subset_columns(C), rows = N / TILE_ROWS * TILE_ROWS, outputs = O / CHUNK_OUTPUTS * CHUNK_OUTPUTS;
    const long group = (long)T * LANES * TILE_ROWS; /* floats of the packed inputs of a tile */
    PARALLEL_FOR(g, rows / TILE_ROWS, 1) pack_inputs(x + (long)g * TILE_ROWS * C, C, inputs + g * group);
    barrier();
    PARALLEL_FOR(panel, outputs / PANEL_OUTPUTS, CHUNK_OUTPUTS / PANEL_OUTPUTS) {
        const int o = panel * PANEL_OUTPUTS;
        pack_weights((const float *)l->weight + (long)o * C, C, weights);
        for (int n = 0; n < rows; n += TILE_ROWS) {
            floats sums[TILE_ROWS][PANEL_VECTORS];
            multiply_packed(weights, inputs + n / TILE_ROWS * group, T, sums);
            for (int v = 0; v < PANEL_VECTORS; v++) {
                float y[TILE_ROWS][TILE_OUTPUTS];
                for (int m = 0; m < TILE_ROWS; m++) store(y[m], sums[m][v]);
                write_outputs(l, 0, y, NULL, out + (long)n * O, TILE_ROWS, O, o + v * LANES, LANES, epilogue);
            }
        }
    }
    barrier();
    PARALLEL_FOR(block, (O + TILE_OUTPUTS - 1) / TILE_OUTPUTS, 1) {
        const int o = block * TILE_OUTPUTS, n = o < outputs ? rows : 0;
        for (int from = n; from < N; from += TILE_ROWS)
            linear_rows(l, (const char *)(x + (long)from * C), NULL, out + (long)from * O,
                        N - from < TILE_ROWS ? N - from : TILE_ROWS, C, O, o, epilogue);
    }
}
