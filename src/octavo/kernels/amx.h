/* Products of int8 weights and int16 inputs with AMX, the matrix unit of Intel's server processors.

   The unit multiplies bytes, so an input is split into 256 * high + low, a signed and an unsigned byte. Both int32 sums
   are exact, and their total is rounded once. The integer sums of multiply_tile in linear.h are exact too, so the
   results have the same bits.

   A tile has 16 rows of 64 bytes. A block of weights is such a tile, 64 columns of 16 rows. Inputs are stored in the
   order of the unit: for 16 rows and 64 columns the high bytes, then the low bytes, each as (16, 16, 4), which are 16
   groups of 4 columns, the 16 rows, and the 4 columns. */

#if defined __AMX_INT8__ && defined __AVX512F__ && defined __linux__
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_AMX 1

enum { AMX_COLUMNS = 64, AMX_TILE_BYTES = 1024 };

/* Whether the system lets this process use the unit. Linux saves its registers, 8 KB, only for processes that ask. */
static int amx_is_permitted(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

/* Each thread configures the unit before its products, and releases it after them. */
static void amx_configure(void)
{
    struct { unsigned char palette, start_row, unused[14]; unsigned short row_bytes[16]; unsigned char rows[16]; }
        tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) tiles.row_bytes[i] = 64, tiles.rows[i] = 16;
    _tile_loadconfig(&tiles);
}

static void amx_release(void) { _tile_release(); }

/* The lower byte of each of 64 numbers of 16 bits. */
ALWAYS_INLINE floats low_bytes(__m512i first, __m512i second)
{
    const __m512i low = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(first));
    return (floats)_mm512_inserti64x4(low, _mm512_cvtepi16_epi8(second), 1);
}

/* Stores 64 columns of 16 rows of int16 inputs in the order of the unit. */
ALWAYS_INLINE void amx_store_inputs(const short rows[16][64], char *to)
{
    floats high[16], low[16]; /* 64 bytes of each row: 16 groups of 4 columns */
    UNROLLED for (int n = 0; n < 16; n++) {
        const __m512i first = _mm512_loadu_si512(rows[n]), second = _mm512_loadu_si512(rows[n] + 32);
        low[n] = low_bytes(first, second);
        high[n] = low_bytes(_mm512_srai_epi16(first, 8), _mm512_srai_epi16(second, 8));
    }
    transpose(high);
    transpose(low);
    memcpy(to, high, sizeof high);
    memcpy(to + sizeof high, low, sizeof low);
}

/* y[n][o] = 256 * high[o][n] + low[o][n], which is exact before it is rounded to float32. */
ALWAYS_INLINE void amx_totals(const int high[16][16], const int low[16][16], float y[16][16])
{
    floats rows[16];
    UNROLLED for (int o = 0; o < 16; o++) {
        ints h, l;
        memcpy(&h, high[o], sizeof h), memcpy(&l, low[o], sizeof l);
        h += l >> 8;
        const ints lower = (h & 255) << 8 | (l & 255); /* the total is (h >> 8) * 65536 + lower */
        rows[o] = __builtin_convertvector(h >> 8, floats) * 65536.f + __builtin_convertvector(lower, floats);
    }
    transpose(rows);
    UNROLLED for (int n = 0; n < 16; n++) store(y[n], rows[n]);
}

/* y[i][n][o] = w[16 i + o] . x[n] for 16 input rows, stored by amx_store_inputs, and `groups` groups of 16 weight
   rows: 1 or 2. Two groups share each load of the inputs. `prefetch`: whether to prefetch the next weights. Loads of
   tiles do not make the processor prefetch them. */
ALWAYS_INLINE void amx_multiply(const char *w, const char *inputs, int C, int groups, int prefetch, float y[2][16][16])
{
    int sums[4][16][16]; /* the high and the low bytes of each group */
    const char *second = w + 16L * C;
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int c = 0; c < C; c += AMX_COLUMNS, inputs += 2 * AMX_TILE_BYTES) {
        if (prefetch)
            UNROLLED for (int i = 0; i < 16; i++) {
                _mm_prefetch(w + 32L * C + 16L * c + i * 64, _MM_HINT_T1);
                _mm_prefetch(second + 32L * C + 16L * c + i * 64, _MM_HINT_T1);
            }
        _tile_loadd(2, inputs, 64);
        _tile_loadd(3, inputs + AMX_TILE_BYTES, 64);
        _tile_loadd(0, w + 16L * c, 64);
        _tile_dpbssd(4, 0, 2);
        _tile_dpbsud(5, 0, 3);
        if (groups == 1) continue;
        _tile_loadd(1, second + 16L * c, 64);
        _tile_dpbssd(6, 1, 2);
        _tile_dpbsud(7, 1, 3);
    }
    _tile_stored(4, sums[0], 64);
    _tile_stored(5, sums[1], 64);
    amx_totals(sums[0], sums[1], y[0]);
    if (groups == 1) return;
    _tile_stored(6, sums[2], 64);
    _tile_stored(7, sums[3], 64);
    amx_totals(sums[2], sums[3], y[1]);
}

#else
#define HAS_AMX 0
#endif
