/* Sixteen numbers at a time: bfloat16 in memory, float32 in registers. For passes.c alone. */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t Low; /* bfloat16 */
typedef __m512 Floats;
typedef __mmask16 Mask;

static inline long up_to(long n, long of) { return (n + of - 1) / of * of; }
static inline long least(long a, long b) { return a < b ? a : b; }
static inline Mask first(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (Mask)((1u << n) - 1); }
static inline Floats all(float x) { return _mm512_set1_ps(x); }

static inline Floats low_at(const Low *p, Mask m) {
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16);
}
static inline void low_to(Low *p, Mask m, Floats x) {
    _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(x));
}
/* From either precision. */
static inline Floats read(const void *p, int low, long i, Mask m) {
    return low ? low_at((const Low *)p + i, m) : _mm512_maskz_loadu_ps(m, (const float *)p + i);
}

/* 2^x by its nearest whole power and a polynomial; below -126 it stays there. What is no number stays none: of a pair
 * with one, min and max give the second. */
static inline Floats power_of_two(Floats x) {
    x = _mm512_min_ps(all(127.0f), _mm512_max_ps(all(-126.0f), x));
    const Floats whole = _mm512_roundscale_ps(x, 8), r = x - whole;
    Floats p = all(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, r, all(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, r, all(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, r, all(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, r, all(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, r, all(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, r, all(1.0f));
    return _mm512_scalef_ps(p, whole);
}
#define LOG2E 1.44269504f
static inline Floats exponential(Floats x) { return power_of_two(x * all(LOG2E)); }

/* Numbers that look drawn: a function of a row's two keys and of a place in it, each lane its own. */
static inline __m512i drawn(__m512i key, __m512i other, __m512i place) {
    __m512i x = _mm512_add_epi32(key, _mm512_mullo_epi32(place, _mm512_set1_epi32((int)0x9E3779B9u)));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x7feb352d));
    x = _mm512_add_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), other);
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x846ca68bu));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
}
/* A row's two keys (splitmix64). */
static inline uint64_t keys_of(uint64_t seed, uint64_t row) {
    uint64_t z = seed + (row + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
