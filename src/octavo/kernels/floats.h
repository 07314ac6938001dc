/* Vectors of floats in the vector extensions of gcc and clang, as wide as this machine's registers: compilers keep
   wider ones in memory. LANES is the number of floats in a vector: 16 with AVX-512, 8 with AVX2, otherwise 4. */

#include <math.h>
#include <string.h>
#if defined __x86_64__ || defined __i386__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#elif defined __AVX2__
#define LANES 8
#else
#define LANES 4
#endif
#define VECTOR_BYTES (4 * LANES)

/* Sums that a loop keeps in registers. x86 without AVX-512 has 16 registers, all others have 32. */
#ifdef ACCUMULATORS /* set by a test, to build on x86 what other processors have */
#elif (defined __x86_64__ && !defined __AVX512F__) || defined __i386__
#define ACCUMULATORS 8
#else
#define ACCUMULATORS 16
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif
#if defined __clang__ || __GNUC__ >= 12
#define SHUFFLE(...) __builtin_shufflevector(__VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (ints){__VA_ARGS__})
#endif

#define VECTOR(type, bytes) type __attribute__((vector_size(bytes)))
typedef VECTOR(float, VECTOR_BYTES) floats;
typedef VECTOR(int, VECTOR_BYTES) ints;
typedef VECTOR(unsigned, VECTOR_BYTES) uints;
typedef VECTOR(short, VECTOR_BYTES) shorts;
typedef VECTOR(short, VECTOR_BYTES / 2) half_shorts; /* LANES numbers of 16 bits */
typedef VECTOR(unsigned short, VECTOR_BYTES / 2) half_ushorts;
typedef VECTOR(signed char, VECTOR_BYTES / 2) half_chars; /* 2 LANES numbers of 8 bits */
typedef VECTOR(signed char, VECTOR_BYTES / 4) quarter_chars; /* LANES numbers of 8 bits */
typedef float unaligned_floats __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));

/* ADD_8(x, y) adds lanes that are 8 apart in each vector: the result has 8 sums of x, then 8 of y. ADD_4, ADD_2 and
   ADD_1 add lanes that are 4, 2 and 1 apart: the result has groups of that many sums, of x and of y in turn. Each macro
   makes two shuffles; the first keeps every lane in place, so it is a blend, which is cheaper than moving lanes.
   ADD_FIRST adds the two halves of each vector. SWAP_8, SWAP_4 and SWAP_2 swap groups of that many lanes.
   INTERLEAVE_LOW has the lower halves of two vectors in turn, x[0], y[0], x[1], y[1] ..., INTERLEAVE_HIGH the upper. */
#if LANES == 16
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#define ADD_FIRST ADD_8
#define ADD_8(x, y) (SHUFFLE(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31) + \
                     SHUFFLE(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23))
#define ADD_4(x, y) (SHUFFLE(x, y, 0, 1, 2, 3, 20, 21, 22, 23, 8, 9, 10, 11, 28, 29, 30, 31) + \
                     SHUFFLE(x, y, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27))
#define ADD_2(x, y) (SHUFFLE(x, y, 0, 1, 18, 19, 4, 5, 22, 23, 8, 9, 26, 27, 12, 13, 30, 31) + \
                     SHUFFLE(x, y, 2, 3, 16, 17, 6, 7, 20, 21, 10, 11, 24, 25, 14, 15, 28, 29))
#define ADD_1(x, y) (SHUFFLE(x, y, 0, 17, 2, 19, 4, 21, 6, 23, 8, 25, 10, 27, 12, 29, 14, 31) + \
                     SHUFFLE(x, y, 1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30))
#define INTERLEAVE_LOW(x, y) SHUFFLE(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(x, y) SHUFFLE(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define SWAP_8(v) SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SWAP_4(v) SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP_2(v) SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#elif LANES == 8
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#define ADD_FIRST ADD_4
#define ADD_4(x, y) (SHUFFLE(x, y, 0, 1, 2, 3, 12, 13, 14, 15) + SHUFFLE(x, y, 4, 5, 6, 7, 8, 9, 10, 11))
#define ADD_2(x, y) (SHUFFLE(x, y, 0, 1, 10, 11, 4, 5, 14, 15) + SHUFFLE(x, y, 2, 3, 8, 9, 6, 7, 12, 13))
#define ADD_1(x, y) (SHUFFLE(x, y, 0, 9, 2, 11, 4, 13, 6, 15) + SHUFFLE(x, y, 1, 8, 3, 10, 5, 12, 7, 14))
#define INTERLEAVE_LOW(x, y) SHUFFLE(x, y, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(x, y) SHUFFLE(x, y, 4, 12, 5, 13, 6, 14, 7, 15)
#define SWAP_4(v) SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
#define SWAP_2(v) SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
#else
#define LANE_NUMBERS {0, 1, 2, 3}
#define ADD_FIRST ADD_2
#define ADD_2(x, y) (SHUFFLE(x, y, 0, 1, 6, 7) + SHUFFLE(x, y, 2, 3, 4, 5))
#define ADD_1(x, y) (SHUFFLE(x, y, 0, 5, 2, 7) + SHUFFLE(x, y, 1, 4, 3, 6))
#define INTERLEAVE_LOW(x, y) SHUFFLE(x, y, 0, 4, 1, 5)
#define INTERLEAVE_HIGH(x, y) SHUFFLE(x, y, 2, 6, 3, 7)
#define SWAP_2(v) SHUFFLE(v, v, 2, 3, 0, 1)
#endif

/* KEEP_IN_REGISTER(v) stops the compiler from loading v again for every product that uses it. A core does not load
   faster than it multiplies, so the loads would limit the speed. */
#ifdef __AVX512F__
#define HAS_SPARE_REGISTERS 1
#define KEEP_IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define HAS_SPARE_REGISTERS 0
#define KEEP_IN_REGISTER(v) (void)(v)
#endif

ALWAYS_INLINE floats load(const float *x) { return *(const unaligned_floats *)x; }
ALWAYS_INLINE void store(float *x, floats v) { *(unaligned_floats *)x = v; }
/* x in every lane. x - 0 is x, while x + 0 would turn -0 into 0. */
ALWAYS_INLINE floats broadcast(float x) { return x - (floats){}; }
/* Lanes of a where the mask is set, of b elsewhere. */
ALWAYS_INLINE floats blend(ints mask, floats a, floats b) { return (floats)((mask & (ints)a) | (~mask & (ints)b)); }

/* Transposes LANES vectors: a number's place is row * LANES + column, and interleaving rows that are LANES / 2 apart
   rotates the bits of all places by one. */
ALWAYS_INLINE void transpose(floats rows[LANES])
{
    UNROLLED for (int stage = 1; stage < LANES; stage *= 2) {
        floats next[LANES];
        UNROLLED for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = INTERLEAVE_LOW(rows[i], rows[i + LANES / 2]);
            next[2 * i + 1] = INTERLEAVE_HIGH(rows[i], rows[i + LANES / 2]);
        }
        UNROLLED for (int i = 0; i < LANES; i++) rows[i] = next[i];
    }
}

/* Lane i of the result is the sum of the lanes of v[i], which are overwritten. Every sum adds lanes LANES / 2 apart,
   then LANES / 4 and so on: each stage adds the two halves of all vectors, and leaves half as many. `from`: the first
   stage, LANES / 2 for LANES vectors, LANES / 4 for half as many. */
ALWAYS_INLINE floats horizontal_sums(floats *v, int from)
{
#if LANES >= 16
    if (from >= 8) UNROLLED for (int i = 0; i < 8; i++) v[i] = ADD_8(v[i], v[i + 8]);
#endif
#if LANES >= 8
    if (from >= 4) UNROLLED for (int i = 0; i < 4; i++) v[i] = ADD_4(v[i], v[i + 4]);
#endif
    if (from >= 2) UNROLLED for (int i = 0; i < 2; i++) v[i] = ADD_2(v[i], v[i + 2]);
    return ADD_1(v[0], v[1]);
}

/* The sum of all lanes, in the order of horizontal_sums. */
ALWAYS_INLINE float horizontal_sum(floats v)
{
#if LANES >= 16
    v += SWAP_8(v);
#endif
#if LANES >= 8
    v += SWAP_4(v);
#endif
    v += SWAP_2(v);
    return v[0] + v[1];
}

/* e^x with an error of at most 2 ulp: x = n ln 2 + r, a polynomial in r, and n added to the exponent. */
ALWAYS_INLINE floats exponential(floats x)
{
    x = blend(x > 88.f, broadcast(88.f), blend(x < -87.f, broadcast(-87.f), x));
    floats n = (x * 1.44269504f + 12582912.f) - 12582912.f; /* rounds: floats above 2^23 have no fraction */
    floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
    floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
}

/* GELU with the tanh approximation: x/2 (1 + tanh u) is x / (1 + e^-2u). */
ALWAYS_INLINE floats gelu_tanh(floats x)
{
    floats u = .79788456f * (x + .044715f * x * x * x);
    return x / (1.f + exponential(-2.f * u));
}

ALWAYS_INLINE floats gelu_exact(floats x)
{
    /* erf by Abramowitz and Stegun, 7.1.26, with an error of at most 1.5e-7. */
    const floats z = x * .70710678f, magnitude = blend(z < 0.f, -z, z), t = 1.f / (1.f + .3275911f * magnitude);
    floats p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - .284496736f;
    p = (p * t + .254829592f) * t * exponential(-magnitude * magnitude);
    return x * blend(z < 0.f, .5f * p, 1.f - .5f * p);
}

/* Dot products, a vector at a time: LANES float weights with float inputs, or twice as many int8 weights with int16
   inputs, accumulated in LANES int32 lanes. `int8` is a constant at every call, so each type compiles to its own code.
   Vectors of integers are passed as `floats`: the same bytes. */
#define ELEMENTS_PER_VECTOR(int8) ((int8) ? 2 * LANES : LANES)

ALWAYS_INLINE floats load_weights(const void *from, int int8)
{
    if (!int8) return load((const float *)from);
#ifdef __AVX512BW__
    return (floats)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)from));
#elif defined __AVX2__
    return (floats)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
#else
    half_chars weights;
    memcpy(&weights, from, sizeof weights);
    return (floats)__builtin_convertvector(weights, shorts);
#endif
}

ALWAYS_INLINE floats load_inputs(const void *row, int int8, long c)
{
    return load((const float *)((const char *)row + (int8 ? 2 : 4) * c));
}

/* s + w * x; for int8, each lane adds two neighboring products. */
ALWAYS_INLINE floats multiply_add(floats s, floats w, floats x, int int8)
{
    if (!int8) return s + w * x;
#if defined __AVX512VNNI__
    return (floats)_mm512_dpwssd_epi32((__m512i)s, (__m512i)w, (__m512i)x);
#elif defined __AVX512BW__
    return (floats)((ints)s + (ints)_mm512_madd_epi16((__m512i)w, (__m512i)x));
#elif defined __AVXVNNI__ && defined __AVX2__
    return (floats)_mm256_dpwssd_avx_epi32((__m256i)s, (__m256i)w, (__m256i)x);
#elif defined __AVX2__
    return (floats)((ints)s + (ints)_mm256_madd_epi16((__m256i)w, (__m256i)x));
#elif defined __SSE2__
    return (floats)((ints)s + (ints)_mm_madd_epi16((__m128i)w, (__m128i)x));
#else
    ints to = (ints)s;
    const shorts a = (shorts)w, b = (shorts)x;
    for (int i = 0; i < LANES; i++) to[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return (floats)to;
#endif
}

/* The `count` floats at `from`, fewer than a vector has, and zeros. */
ALWAYS_INLINE floats load_tail(const float *from, int count)
{
    float padded[LANES] = {0};
    memcpy(padded, from, count * sizeof *from);
    return load(padded);
}

/* Lane i of the result is the sum of the int32 lanes of v[i], for LANES vectors. The sum is exact, then rounded once,
   so its bits do not depend on the order of additions. No sum of two lanes may overflow. */
ALWAYS_INLINE floats exact_sums(const floats v[LANES])
{
    floats high[LANES / 2], low[LANES / 2]; /* a sum is high * 65536 + low; sums of either are exact in float32 */
    UNROLLED for (int i = 0; i < LANES / 2; i++) {
        const ints a = (ints)v[i], b = (ints)v[i + LANES / 2];
        const ints sum = ADD_FIRST(a, b);
        high[i] = __builtin_convertvector(sum >> 16, floats), low[i] = __builtin_convertvector(sum & 0xffff, floats);
    }
    return horizontal_sums(high, LANES / 4) * 65536.f + horizontal_sums(low, LANES / 4);
}

/* Lane i of the result is the sum of the lanes of v[i], which are overwritten. */
ALWAYS_INLINE floats dot_products(floats v[LANES], int int8)
{
    return int8 ? exact_sums(v) : horizontal_sums(v, LANES / 2);
}

/* LANES numbers of an array in float32 or bf16, from element i on, as floats. bf16 is the upper 16 bits of a float.
   `bf16` is a constant at every call. */
ALWAYS_INLINE floats load_as_floats(const void *from, int bf16, long i)
{
    if (!bf16) return load((const float *)from + i);
    const unsigned short *bits = (const unsigned short *)from + i;
#ifdef __AVX512F__
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)bits)), 16);
#elif defined __AVX2__
    return (floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)bits)), 16);
#else
    half_ushorts upper;
    memcpy(&upper, bits, sizeof upper);
    return (floats)(__builtin_convertvector(upper, uints) << 16);
#endif
}

ALWAYS_INLINE float load_one_as_float(const void *from, int bf16, long i)
{
    if (!bf16) return ((const float *)from)[i];
    const unsigned bits = (unsigned)((const unsigned short *)from)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
