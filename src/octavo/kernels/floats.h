/* Vectors of 16 floats in the vector extensions of gcc and clang, compiled for the instruction set of this machine. */

#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 16
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

typedef float floats __attribute__((vector_size(64)));
typedef int ints __attribute__((vector_size(64)));
typedef float unaligned_floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef short shorts __attribute__((vector_size(64)));
#ifdef __AVX2__
typedef union { floats full; __m256i half[2]; } halves;
#endif

/* KEEP_IN_REGISTER(v) stops the compiler from loading v again for every product that uses it. A core does not load
   faster than it multiplies, so the loads would limit the speed. Without AVX-512 there are only 16 registers, and the
   sums need all of them. */
#ifdef __AVX512F__
#define HAS_SPARE_REGISTERS 1
#define KEEP_IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define HAS_SPARE_REGISTERS 0
#define KEEP_IN_REGISTER(v) (void)(v)
#endif

ALWAYS_INLINE floats load(const float *x) { return *(const unaligned_floats *)x; }
ALWAYS_INLINE void store(float *x, floats v) { *(unaligned_floats *)x = v; }
ALWAYS_INLINE floats broadcast(float x) { return x - (floats){}; }
/* Lanes of a where the mask is set, of b elsewhere. */
ALWAYS_INLINE floats blend(ints mask, floats a, floats b) { return (floats)((mask & (ints)a) | (~mask & (ints)b)); }

/* Lane i of the result is the sum of the lanes of v[i]. Every sum adds lanes 8 apart, then 4, 2 and 1. */
ALWAYS_INLINE floats horizontal_sums(const floats v[LANES])
{
    floats a[8], b[4], c[2];
#define LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW_4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH_4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW_2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH_2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define LOW_1 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define HIGH_1 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
    UNROLLED for (int i = 0; i < 8; i++)
        a[i] = SHUFFLE(v[2 * i], v[2 * i + 1], LOW_8) + SHUFFLE(v[2 * i], v[2 * i + 1], HIGH_8);
    UNROLLED for (int i = 0; i < 4; i++)
        b[i] = SHUFFLE(a[2 * i], a[2 * i + 1], LOW_4) + SHUFFLE(a[2 * i], a[2 * i + 1], HIGH_4);
    UNROLLED for (int i = 0; i < 2; i++)
        c[i] = SHUFFLE(b[2 * i], b[2 * i + 1], LOW_2) + SHUFFLE(b[2 * i], b[2 * i + 1], HIGH_2);
    return SHUFFLE(c[0], c[1], LOW_1) + SHUFFLE(c[0], c[1], HIGH_1);
}

ALWAYS_INLINE float horizontal_sum(floats v)
{
    floats one[LANES] = {v};
    return horizontal_sums(one)[0];
}

/* e^x with an error of at most 2 ulp: x = n ln 2 + r, a polynomial in r, and n added to the exponent. */
ALWAYS_INLINE floats exp16(floats x)
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
ALWAYS_INLINE floats gelu_tanh16(floats x)
{
    floats u = .79788456f * (x + .044715f * x * x * x);
    return x / (1.f + exp16(-2.f * u));
}

ALWAYS_INLINE floats gelu_exact16(floats x)
{
    /* erf by Abramowitz and Stegun, 7.1.26, with an error of at most 1.5e-7. */
    const floats z = x * .70710678f, magnitude = blend(z < 0.f, -z, z), t = 1.f / (1.f + .3275911f * magnitude);
    floats p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - .284496736f;
    p = (p * t + .254829592f) * t * exp16(-magnitude * magnitude);
    return x * blend(z < 0.f, .5f * p, 1.f - .5f * p);
}

/* Dot products, 64 bytes at a time: 16 float weights with 16 float inputs, or 32 int8 weights with 32 int16 inputs,
   accumulated in 16 int32 lanes. `int8` is a constant at every call, so each type compiles to its own code. Vectors of
   integers are passed as `floats`: the same 64 bytes. */
#define ELEMENTS_PER_VECTOR(int8) ((int8) ? 32 : 16)

ALWAYS_INLINE floats load_weights(const void *row, int int8, long c)
{
    if (!int8) return load((const float *)row + c);
    const signed char *from = (const signed char *)row + c;
#ifdef __AVX512BW__
    return (floats)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)from));
#elif defined __AVX2__
    halves int16;
    for (int i = 0; i < 2; i++) int16.half[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(from + 16 * i)));
    return int16.full;
#else
    shorts int16;
    for (int i = 0; i < 32; i++) int16[i] = from[i];
    return (floats)int16;
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
#ifdef __AVX512VNNI__
    return (floats)_mm512_dpwssd_epi32((__m512i)s, (__m512i)w, (__m512i)x);
#elif defined __AVX512BW__
    return (floats)_mm512_add_epi32((__m512i)s, _mm512_madd_epi16((__m512i)w, (__m512i)x));
#elif defined __AVX2__
    halves to = {s}, a = {w}, b = {x};
    for (int i = 0; i < 2; i++)
        to.half[i] = _mm256_add_epi32(to.half[i], _mm256_madd_epi16(a.half[i], b.half[i]));
    return to.full;
#else
    ints to = (ints)s;
    const shorts a = (shorts)w, b = (shorts)x;
    for (int i = 0; i < LANES; i++) to[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return (floats)to;
#endif
}

/* The last `count` elements of a row, padded with zeros to a full vector. */
ALWAYS_INLINE floats load_tail(const void *row, int size, long c, int count)
{
    char padded[64] = {0};
    memcpy(padded, (const char *)row + size * c, (size_t)size * count);
    return load((const float *)padded);
}

ALWAYS_INLINE floats load_weights_tail(const void *row, int int8, long c, int count)
{
    const floats padded = load_tail(row, int8 ? 1 : 4, c, count);
    return int8 ? load_weights(&padded, 1, 0) : padded;
}

ALWAYS_INLINE floats to_floats(floats s, int int8) { return int8 ? __builtin_convertvector((ints)s, floats) : s; }

/* The KV cache holds float32, or bf16 if the weights are int8, which halves the memory to read. bf16 is the upper 16
   bits of a float. `bf16` is a constant at every call. */
ALWAYS_INLINE floats load_cached(const void *from, int bf16, long i)
{
    if (!bf16) return load((const float *)from + i);
    const unsigned short *bits = (const unsigned short *)from + i;
#ifdef __AVX512F__
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)bits)), 16);
#else
    ints shifted;
    for (int k = 0; k < LANES; k++) shifted[k] = (int)((unsigned)bits[k] << 16);
    return (floats)shifted;
#endif
}

ALWAYS_INLINE float load_cached_one(const void *from, int bf16, long i)
{
    if (!bf16) return ((const float *)from)[i];
    const unsigned bits = (unsigned)((const unsigned short *)from)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

ALWAYS_INLINE void store_cached(void *to, int bf16, long i, float x)
{
    if (!bf16) { ((float *)to)[i] = x; return; }
    unsigned bits;
    memcpy(&bits, &x, sizeof x);
    ((unsigned short *)to)[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* rounds to nearest, ties to even */
}
