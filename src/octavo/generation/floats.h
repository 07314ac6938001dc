/* Sixteen numbers at once, in gcc's and clang's vectors, for whatever instructions the machine has. */

#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 16
#define inlined static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif
#if defined __clang__ || __GNUC__ >= 12
#define MIX(...) __builtin_shufflevector(__VA_ARGS__)
#else
#define MIX(x, y, ...) __builtin_shuffle(x, y, (ints){__VA_ARGS__})
#endif

typedef float floats __attribute__((vector_size(64)));
typedef int ints __attribute__((vector_size(64)));
typedef float floats_at __attribute__((vector_size(64), aligned(4), may_alias));
typedef short shorts __attribute__((vector_size(64)));
#ifdef __AVX2__
typedef union { floats whole; __m256i half[2]; } halves;
#endif

/* v stays in a register: the compiler would rather read it again for each product that takes it, and a core reads no
   more often than it multiplies. Where there are but 16 registers, the sums need them all. */
#ifdef __AVX512F__
#define HOLDS 1
#define HOLD(v) __asm__("" : "+v"(v))
#else
#define HOLDS 0
#define HOLD(v) (void)(v)
#endif

inlined floats at(const float *x) { return *(const floats_at *)x; }
inlined void put(float *x, floats v) { *(floats_at *)x = v; }
inlined floats all(float x) { return x - (floats){}; }
inlined floats pick(ints mask, floats a, floats b) { return (floats)((mask & (ints)a) | (~mask & (ints)b)); }

/* The sums of 16 vectors, as one vector. Every sum pairs lanes 8 apart, then 4, 2, 1. */
inlined floats sums(const floats v[LANES])
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
        a[i] = MIX(v[2 * i], v[2 * i + 1], LOW_8) + MIX(v[2 * i], v[2 * i + 1], HIGH_8);
    UNROLLED for (int i = 0; i < 4; i++)
        b[i] = MIX(a[2 * i], a[2 * i + 1], LOW_4) + MIX(a[2 * i], a[2 * i + 1], HIGH_4);
    UNROLLED for (int i = 0; i < 2; i++)
        c[i] = MIX(b[2 * i], b[2 * i + 1], LOW_2) + MIX(b[2 * i], b[2 * i + 1], HIGH_2);
    return MIX(c[0], c[1], LOW_1) + MIX(c[0], c[1], HIGH_1);
}

inlined float sum(floats v)
{
    floats one[LANES] = {v};
    return sums(one)[0];
}

/* e^x to 2 units in the last place: x = n ln 2 + r, a polynomial in r, and n put into the exponent. */
inlined floats exp16(floats x)
{
    x = pick(x > 88.f, all(88.f), pick(x < -87.f, all(-87.f), x));
    floats n = (x * 1.44269504f + 12582912.f) - 12582912.f; /* rounds: beyond 2^23 there are no fractions */
    floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
    floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
}

/* gelu_new: x/2 (1 + tanh u) is x / (1 + e^-2u). */
inlined floats gelu16(floats x)
{
    floats u = .79788456f * (x + .044715f * x * x * x);
    return x / (1.f + exp16(-2.f * u));
}

inlined floats gelu_exact16(floats x)
{
    /* erf by 7.1.26 of Abramowitz and Stegun: off by 1.5e-7 at most. */
    const floats z = x * .70710678f, size = pick(z < 0.f, -z, z), t = 1.f / (1.f + .3275911f * size);
    floats p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - .284496736f;
    p = (p * t + .254829592f) * t * exp16(-size * size);
    return x * pick(z < 0.f, .5f * p, 1.f - .5f * p);
}

/* Products of what fills 64 bytes: 16 floats, or 32 weights of 8 bits with 32 inputs of 16, added up in 16 whole
   numbers. `whole` is a constant where these are used, and tells which. */
#define PER_STEP(whole) ((whole) ? 32 : 16)

inlined floats weights(const void *row, int whole, long c)
{
    if (!whole) return at((const float *)row + c);
    const signed char *from = (const signed char *)row + c;
#ifdef __AVX512BW__
    return (floats)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)from));
#elif defined __AVX2__
    halves wide;
    for (int i = 0; i < 2; i++) wide.half[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(from + 16 * i)));
    return wide.whole;
#else
    shorts wide;
    for (int i = 0; i < 32; i++) wide[i] = from[i];
    return (floats)wide;
#endif
}

inlined floats inputs(const void *row, int whole, long c)
{
    return at((const float *)((const char *)row + (whole ? 2 : 4) * c));
}

inlined floats plus_products(floats s, floats w, floats x, int whole)
{
    if (!whole) return s + w * x;
#ifdef __AVX512VNNI__
    return (floats)_mm512_dpwssd_epi32((__m512i)s, (__m512i)w, (__m512i)x);
#elif defined __AVX512BW__
    return (floats)_mm512_add_epi32((__m512i)s, _mm512_madd_epi16((__m512i)w, (__m512i)x));
#elif defined __AVX2__
    halves to = {s}, a = {w}, b = {x};
    for (int i = 0; i < 2; i++)
        to.half[i] = _mm256_add_epi32(to.half[i], _mm256_madd_epi16(a.half[i], b.half[i]));
    return to.whole;
#else
    ints to = (ints)s;
    const shorts a = (shorts)w, b = (shorts)x;
    for (int i = 0; i < LANES; i++) to[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return (floats)to;
#endif
}

/* The `left` last numbers of a row, and zeros: so they are added like all others. */
inlined floats last(const void *row, int size, long c, int left)
{
    char some[64] = {0};
    memcpy(some, (const char *)row + size * c, (size_t)size * left);
    return at((const float *)some);
}

inlined floats last_weights(const void *row, int whole, long c, int left)
{
    const floats some = last(row, whole ? 1 : 4, c, left);
    return whole ? weights(&some, 1, 0) : some;
}

inlined floats as_floats(floats s, int whole) { return whole ? __builtin_convertvector((ints)s, floats) : s; }

/* Keys and values: floats, or their upper 16 bits (bf16) where the weights are rounded too; half as much to read. */
inlined floats kept(const void *from, int half, long i)
{
    if (!half) return at((const float *)from + i);
    const unsigned short *bits = (const unsigned short *)from + i;
#ifdef __AVX512F__
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)bits)), 16);
#else
    ints wide;
    for (int k = 0; k < LANES; k++) wide[k] = (int)((unsigned)bits[k] << 16);
    return (floats)wide;
#endif
}

inlined float kept_one(const void *from, int half, long i)
{
    if (!half) return ((const float *)from)[i];
    const unsigned bits = (unsigned)((const unsigned short *)from)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inlined void keep(void *to, int half, long i, float x)
{
    if (!half) { ((float *)to)[i] = x; return; }
    unsigned bits;
    memcpy(&bits, &x, sizeof x);
    ((unsigned short *)to)[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* to the nearest, ties to even */
}
