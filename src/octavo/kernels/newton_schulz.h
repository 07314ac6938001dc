/* Newton-Schulz iterations on small square matrices in bf16, with AMX, the matrix unit of Intel's server processors.
   `octavo.training.optimizers.muon` has the method, and the plain code, which multiplies a batch of squares at a time.
   Here a thread runs all iterations of one square, whose matrices stay in its core's cache.

   The unit multiplies a tile of 16 rows and 32 columns by one of 32 rows and 16 columns. The second is stored in pairs
   of rows: the first numbers of both rows, then the second numbers, and so on. A matrix (C, C) in pairs is
   (C / 2, C, 2).

   Axis letters: `N` squares, `C` width. */

#if HAS_AMX && defined __AMX_BF16__ && defined __AVX512BF16__
#define HAS_AMX_BF16 1

typedef struct {
    int64_t N, C; /* C is a multiple of 32 */
    int64_t iterations;
    float a, b, c;       /* of the polynomial a x + b x^3 + c x^5 */
    uint16_t *squares;   /* (N, C, C) in bf16, replaced by the results */
    uint16_t *workspace; /* (threads, 6, C, C) */
} NewtonSchulz;

/* The numbers of two rows in turn, in bf16. */
ALWAYS_INLINE __m512i pair_rows(floats first, floats second)
{
    const shorts turns = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16((__m512i)turns, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}

/* rows = scale * x y + term_scale * term, and the same in pairs of rows. All are (C, C), and y is in pairs. `term` may
   be NULL or `rows`, and `pairs` may be NULL. */
static void multiply_squares(const uint16_t *x, const uint16_t *y, long C, float scale, const uint16_t *term,
                             float term_scale, uint16_t *rows, uint16_t *pairs)
{
    for (long m = 0; m < C; m += 32)
        for (long n = 0; n < C; n += 32) {
            float sums[4][16][16];
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (long k = 0; k < C; k += 32) {
                _tile_loadd(4, x + m * C + k, 2 * C);
                _tile_loadd(5, x + (m + 16) * C + k, 2 * C);
                _tile_loadd(6, y + k * C + 2 * n, 4 * C);
                _tile_loadd(7, y + k * C + 2 * (n + 16), 4 * C);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            _tile_stored(2, sums[2], 64);
            _tile_stored(3, sums[3], 64);
            for (int tile = 0; tile < 4; tile++)
                UNROLLED for (int i = 0; i < 16; i += 2) {
                    const long row = m + tile / 2 * 16 + i, column = n + tile % 2 * 16;
                    floats result[2];
                    UNROLLED for (int j = 0; j < 2; j++) {
                        const long at = (row + j) * C + column;
                        result[j] = scale * load(sums[tile][i + j]);
                        if (term) result[j] += term_scale * load_as_floats(term, 1, at);
                        const __m256bh rounded = _mm512_cvtneps_pbh((__m512)result[j]);
                        memcpy(rows + at, &rounded, sizeof rounded);
                    }
                    if (pairs) _mm512_storeu_si512(pairs + row * C + 2 * column, pair_rows(result[0], result[1]));
                }
        }
}

/* Stores the transpose of x (C, C) in pairs of rows. Two neighbors in a row of x stay a pair: they are moved as one
   float. */
static void transpose_square(const uint16_t *x, long C, uint16_t *pairs)
{
    for (long row = 0; row < C; row += 16)
        for (long column = 0; column < C; column += 32) {
            floats block[16];
            UNROLLED for (int i = 0; i < 16; i++) block[i] = load((const float *)(x + (row + i) * C + column));
            transpose(block);
            UNROLLED for (int i = 0; i < 16; i++) store((float *)(pairs + (column + 2 * i) * C + 2 * row), block[i]);
        }
}

/* Divides a square by its Frobenius norm, in place, and stores it in pairs of rows too. */
static void normalize_square(uint16_t *x, long C, uint16_t *pairs)
{
    floats squared[4] = {};
    for (long i = 0; i < C * C; i += 4 * LANES)
        UNROLLED for (int j = 0; j < 4; j++) {
            const floats v = load_as_floats(x, 1, i + j * LANES);
            squared[j] += v * v;
        }
    const float scale = 1.f / (sqrtf(horizontal_sum((squared[0] + squared[1]) + (squared[2] + squared[3]))) + 1e-7f);
    for (long row = 0; row < C; row += 2)
        for (long c = 0; c < C; c += LANES) {
            const floats first = scale * load_as_floats(x, 1, row * C + c), second = scale * load_as_floats(x, 1, row * C + C + c);
            const __m256bh rounded[2] = {_mm512_cvtneps_pbh((__m512)first), _mm512_cvtneps_pbh((__m512)second)};
            memcpy(x + row * C + c, &rounded[0], sizeof rounded[0]);
            memcpy(x + row * C + C + c, &rounded[1], sizeof rounded[1]);
            _mm512_storeu_si512(pairs + row * C + 2 * c, pair_rows(first, second));
        }
}

static void newton_schulz_chunk(const void *argument, long chunk)
{
    const NewtonSchulz a[1] = {*(const NewtonSchulz *)argument};
    const long C = a->C, size = C * C, thread = openmp.run ? openmp.thread_number() : 0;
    uint16_t *x = a->squares + chunk * size, *work = a->workspace + thread * 6 * size;
    uint16_t *gram = work, *gram_pairs = work + size, *factor = work + 2 * size;
    uint16_t *transposed = work + 3 * size, *pairs = work + 4 * size, *next_pairs = work + 5 * size;
    amx_configure();
    normalize_square(x, C, pairs);
    for (long i = 0; i < a->iterations; i++) {
        transpose_square(x, C, transposed);
        multiply_squares(x, transposed, C, 1, NULL, 0, gram, gram_pairs);
        multiply_squares(gram, gram_pairs, C, a->c, gram, a->b, factor, NULL);
        multiply_squares(factor, pairs, C, 1, x, a->a, x, next_pairs);
        uint16_t *const swap = pairs;
        pairs = next_pairs, next_pairs = swap;
    }
    amx_release();
}

/* Brings the singular values of all squares near 1. */
EXPORT void newton_schulz(const NewtonSchulz *a, int threads) { parallel_for(newton_schulz_chunk, a, a->N, threads); }

/* Whether this processor and system can run newton_schulz. */
EXPORT int has_newton_schulz(void) { return amx_is_permitted(); }

#else
EXPORT int has_newton_schulz(void) { return 0; }
#endif
