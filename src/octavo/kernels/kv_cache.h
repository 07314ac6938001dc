/* The KV cache of forward.c: float32, or int8 if the weights are int8. With heads of width 64, int8 takes 27% of the memory.

   A tile has LANES positions of one head in one slot: the cache of a layer is (slots, H, positions / LANES) tiles of keys,
   and as many of values. A tile of keys is (D, LANES), one of values (LANES, D), so attention reads both sequentially, keys
   for a vector of scores, values for a vector of sums. An int8 tile ends with LANES float scales, one for each position.

   Axis letters: D head width. */

/* Bytes of a tile. */
static long tile_bytes(int int8, int D) { return int8 ? (long)LANES * (D + 4) : 4L * LANES * D; }

/* The scales of an int8 tile. */
ALWAYS_INLINE float *tile_scales(char *tile, int D) { return (float *)(tile + (long)LANES * D); }

/* LANES numbers of a tile, from number i on, as floats without their scales. `int8` is a constant at every call. */
ALWAYS_INLINE floats load_cached(const char *tile, int int8, long i)
{
    if (!int8) return load((const float *)tile + i);
#ifdef __AVX512F__
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(tile + i))));
#elif defined __AVX2__
    return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(tile + i))));
#else
    quarter_chars numbers;
    memcpy(&numbers, tile + i, sizeof numbers);
    return __builtin_convertvector(numbers, floats);
#endif
}

ALWAYS_INLINE float load_one_cached(const char *tile, int int8, long i)
{
    return int8 ? ((const signed char *)tile)[i] : ((const float *)tile)[i];
}

/* Stores the key or value `from` (D,) of position `row` of a tile: number d at start + d * stride. */
static void store_cached(char *tile, int int8, int row, long start, long stride, const float *from, int D)
{
    if (!int8) {
        for (int d = 0; d < D; d++) ((float *)tile)[start + d * stride] = from[d];
        return;
    }
    const float factor = rounding_factor(from, D, 127, tile_scales(tile, D) + row);
    for (int d = 0; d < D; d += LANES) {
        const int count = D - d < LANES ? D - d : LANES;
        const floats v = (count == LANES ? load(from + d) : load_tail(from + d, count)) * factor;
        const ints rounded = __builtin_convertvector((v + 12582912.f) - 12582912.f, ints);
        for (int i = 0; i < count; i++) tile[start + (d + i) * stride] = (char)rounded[i];
    }
}
