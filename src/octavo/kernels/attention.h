/* Matrix products for the causal attention of one head, forward and backward, in float32. training.c includes this file.

   The matrices of a head fit in a core's cache, so memory holds only the inputs and outputs of the attention: no scores,
   no weights, no copies of the heads. The matrices are padded to whole tiles, and the padding is 0 wherever a product
   reads it.

   Axis letters: `T` positions, `D` head width, `Tp` and `Dp` these, padded. */

enum { TILE_ROWS = ACCUMULATORS / 2, TILE_COLUMNS = 2 * LANES };
enum { PADDING = TILE_ROWS > TILE_COLUMNS ? TILE_ROWS : TILE_COLUMNS };
#define PADDED(n) (((n) + PADDING - 1) / PADDING * PADDING)

/* One tile of c = a b: TILE_ROWS rows, 2 * LANES columns, summed over k from `first` to `end`. Element (row, k) of a is
   a[row * a_row + k * a_k], so that a may be transposed. */
ALWAYS_INLINE void multiply_tile(
    const float *a, long a_row, long a_k, const float *b, long b_row, float *c, long c_row, long first, long end)
{
    floats sums[TILE_ROWS][2] = {};
    for (long k = first; k < end; k++) {
        floats left = load(b + k * b_row), right = load(b + k * b_row + LANES);
        KEEP_IN_REGISTER(left);
        KEEP_IN_REGISTER(right);
        UNROLLED for (int row = 0; row < TILE_ROWS; row++) {
            floats x = broadcast(a[row * a_row + k * a_k]);
            KEEP_IN_REGISTER(x);
            sums[row][0] += x * left, sums[row][1] += x * right;
        }
    }
    UNROLLED for (int row = 0; row < TILE_ROWS; row++) {
        store(c + row * c_row, sums[row][0]);
        store(c + row * c_row + LANES, sums[row][1]);
    }
}

/* c (T, T) = a (T, D) b (D, T), on and below the diagonal. b comes from transpose_matrix. */
static void multiply_below_diagonal(const float *a, const float *b, float *c, long T, long D, long Dp, long Tp)
{
    for (long row = 0; row < T; row += TILE_ROWS)
        for (long column = 0; column < row + TILE_ROWS; column += TILE_COLUMNS)
            multiply_tile(a + row * Dp, Dp, 1, b + column, Tp, c + row * Tp + column, Tp, 0, D);
}

/* c (T, D) = a (T, T) b (T, D), where a is 0 above the diagonal. */
static void multiply_lower(const float *a, const float *b, float *c, long T, long Dp, long Tp)
{
    for (long row = 0; row < T; row += TILE_ROWS)
        for (long column = 0; column < Dp; column += TILE_COLUMNS)
            multiply_tile(a + row * Tp, Tp, 1, b + column, Dp, c + row * Dp + column, Dp, 0, row + TILE_ROWS < T ? row + TILE_ROWS : T);
}

/* c (T, D) = aᵀ (T, T) b (T, D), where a is 0 above the diagonal. */
static void multiply_lower_transposed(const float *a, const float *b, float *c, long T, long Dp, long Tp)
{
    for (long row = 0; row < T; row += TILE_ROWS)
        for (long column = 0; column < Dp; column += TILE_COLUMNS)
            multiply_tile(a + row, 1, Tp, b + column, Dp, c + row * Dp + column, Dp, row, T);
}

/* to (D, T) = fromᵀ, where from is (T, D). */
static void transpose_matrix(float *to, const float *from, long Dp, long Tp)
{
    for (long row = 0; row < Tp; row += LANES)
        for (long column = 0; column < Dp; column += LANES) {
            floats tile[LANES];
            UNROLLED for (int i = 0; i < LANES; i++) tile[i] = load(from + (row + i) * Dp + column);
            transpose(tile);
            UNROLLED for (int i = 0; i < LANES; i++) store(to + (column + i) * Tp + row, tile[i]);
        }
}
