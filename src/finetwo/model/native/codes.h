/* Products of rounded activations with int8 and int4 codes, shared out among threads, for each instruction set.
 *
 * Packed codes lie by tile of 16 outputs and block of 32 inputs. An int8 block is (8 quads, 16 outputs, 4 inputs) bytes,
 * an int4 block the same in nibbles, quads j and j + 4 in one byte's low and high half, and then 16 bfloat16 scales.
 */
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { AHEAD = 4096 }; /* bytes of codes fetched before they are wanted */
enum { TILE = 16, BLOCK = 32, QUADS = BLOCK / 4, INT8 = 8, INT4 = 4, RELU = 0, GELU = 1, GELU_TANH = 2 };

typedef struct {
    int32_t outputs, inputs, kind, rank; /* rank: of an adapter, 0 without one; float32 linears alone have them */
    const uint8_t *codes;                /* as ft_pack lays them; of the kinds of floats.h the weights where they are */
    const float *scales;                 /* int8: one per output */
    const float *bias;                   /* one per output, or NULL */
    const float *down, *up;              /* the adapter's matrices, (rank, inputs) and (rank, outputs) */
} Linear;

typedef struct { /* rows of activations rounded to int8 */
    int8_t *codes;
    float *scales;
    int32_t *offsets; /* what an unsigned code's zero point adds to the product of a block, subtracted beforehand */
    int stride, blocks;
} Rounded;

static inline int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline int least(int a, int b) { return a < b ? a : b; }

/* --- sixteen floats at a time: GCC's and Clang's vectors, for every machine ------------------------------------- */

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));

static inline Floats all(float x) { return x - (Floats){0}; }
static inline Floats at(const float *p) { return *(const Floats *)p; }
static inline float sum(Floats v) {
    float s = 0;
    for (int i = 0; i < 16; i++) s += v[i];
    return s;
}
static inline Floats choose(Ints mask, Floats a, Floats b) { return (Floats)(((Ints)a & mask) | ((Ints)b & ~mask)); }

static inline Floats exponential(Floats x) { /* Cephes' expf: within 2e-7 relative, 0 far below */
    const Ints low = x < all(-87.0f);
    x = choose(x > all(88.0f), all(88.0f), choose(low, all(-87.0f), x));
    const Floats magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest integer */
    const Floats shifted = x * 1.44269504f + magic, n = shifted - magic;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = x * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    const Ints power = ((Ints)shifted - 0x4B400000 + 127) << 23;
    return choose(low, all(0), p * (Floats)power);
}

static void activate(int kind, float *x, int n) { /* n is a multiple of 16 */
    for (int i = 0; i < n; i += 16) {
        Floats v = at(x + i);
        if (kind == RELU) {
            v = choose(v < all(0), all(0), v); /* what is no number stays none */
        } else if (kind == GELU_TANH) { /* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)) */
            v = v / (1.0f + exponential(-1.5957691216f * (v + 0.044715f * v * v * v)));
        } else {
            for (int j = 0; j < 16; j++) v[j] = 0.5f * v[j] * (1.0f + erff(v[j] * 0.70710678f));
        }
        *(Floats *)(x + i) = v;
    }
}

static void normalise(const float *x, float *y, int n, const float *gain, const float *shift, float epsilon) {
    float mean = 0, variance = 0;
    Floats part = all(0);
    int i = 0;
    for (; i + 16 <= n; i += 16) part += at(x + i);
    for (mean = sum(part); i < n; i++) mean += x[i];
    mean /= n;
    part = all(0);
    for (i = 0; i + 16 <= n; i += 16) part += (at(x + i) - mean) * (at(x + i) - mean);
    for (variance = sum(part); i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float by = 1.0f / sqrtf(variance / n + epsilon);
    for (i = 0; i < n; i++) y[i] = (x[i] - mean) * by * gain[i] + shift[i];
}

/* --- products with codes ------------------------------------------------------------------------------------------ */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define KERNEL "avx512-vnni"
enum { LANES = 16, ZERO = 128, ROWS = 8 }; /* outputs a vector, zero point of int8 codes, rows at a time */
typedef __m512i Codes;
typedef __m512 Reals;
#define LOAD(p) _mm512_loadu_si512(p)
#define EVERY(p) _mm512_set1_epi32(*(const int32_t *)(p))
#define NIBBLES(v) _mm512_and_si512(v, _mm512_set1_epi8(15))
#define SHIFT4(v) _mm512_srli_epi16(v, 4)
#define DOT(sum, w, a) _mm512_dpbusd_epi32(sum, w, a)
#define REAL(v) _mm512_cvtepi32_ps(v)
#define REALS(p) _mm512_loadu_ps(p)
#define BOTH(x) _mm512_set1_ps(x)
#define TIMES(a, b) _mm512_mul_ps(a, b)
#define FUSED(a, b, c) _mm512_fmadd_ps(a, b, c)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define HALVES(p) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(p))), 16))
#elif defined(__AVX2__) && defined(__FMA__)
typedef __m256i Codes;
typedef __m256 Reals;
#if defined(__AVXVNNI__)
#define KERNEL "avx-vnni"
enum { LANES = 8, ZERO = 128, ROWS = 4 };
#define DOT(sum, w, a) _mm256_dpbusd_avx_epi32(sum, w, a)
#else
#define KERNEL "avx2"
#define PAIRS 1 /* no such instruction: pairs in int16, where two products of 127 * 127 have room, then pairs of those */
enum { LANES = 8, ZERO = 0, ROWS = 4 };
#endif
#define LOAD(p) _mm256_loadu_si256((const void *)(p))
#define EVERY(p) _mm256_set1_epi32(*(const int32_t *)(p))
#define NIBBLES(v) _mm256_and_si256(v, _mm256_set1_epi8(15))
#define SHIFT4(v) _mm256_srli_epi16(v, 4)
#define REAL(v) _mm256_cvtepi32_ps(v)
#define REALS(p) _mm256_loadu_ps(p)
#define BOTH(x) _mm256_set1_ps(x)
#define TIMES(a, b) _mm256_mul_ps(a, b)
#define FUSED(a, b, c) _mm256_fmadd_ps(a, b, c)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define HALVES(p) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p))), 16))
#else
#define KERNEL "portable"
enum { LANES = 16, ZERO = 0, ROWS = 4 };
#endif

/* Bytes of one tile's block: int8 (quads, 16 outputs, 4 inputs); int4 the same in nibbles, quads j and j + 4 in one
 * byte's low and high half, then 16 scales as bfloat16. */
static inline int block_bytes(int kind) { return kind == INT8 ? TILE * BLOCK : TILE * BLOCK / 2 + 2 * TILE; }


#if defined(EVERY)
enum { VECTORS = TILE / LANES };

/* `wide`: vectors of outputs at a time from `lane` on: all of a tile for one row, when reading codes is what takes long. */
static inline __attribute__((always_inline)) void product(int kind, int rows, int wide, const uint8_t *w, int lane,
                                                          const Rounded *a, int first, float (*y)[TILE]) {
    const int8_t *codes = a->codes + (long)first * a->stride;
    const float *scales = a->scales + (long)first * a->blocks;
    const int32_t *offsets = a->offsets + (long)first * a->blocks;
    Reals total[VECTORS][ROWS];
    for (int v = 0; v < wide; v++)
        for (int r = 0; r < rows; r++) total[v][r] = BOTH(0);
    for (int b = 0; b < a->blocks; b++, w += block_bytes(kind), codes += BLOCK) {
        Codes part[VECTORS][ROWS];
        for (int v = 0; v < wide; v++) {
            const uint8_t *quads = w + 4 * (lane + v * LANES);
#if defined(PAIRS)
            const Codes ones = _mm256_set1_epi16(1);
            for (int r = 0; r < rows; r++) part[v][r] = _mm256_setzero_si256();
            for (int q = 0; q < QUADS && kind == INT8; q++) {
                const Codes c = LOAD(quads + q * 4 * TILE), size = _mm256_abs_epi8(c);
                if (rows == 1 && v == 0) __builtin_prefetch(quads + q * 4 * TILE + AHEAD);
                for (int r = 0; r < rows; r++) {
                    const Codes x = _mm256_sign_epi8(EVERY(codes + r * a->stride + 4 * q), c);
                    part[v][r] = _mm256_add_epi32(part[v][r], _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones));
                }
            }
            for (int q = 0; q < QUADS / 2 && kind == INT4; q++) { /* eight pairs of 15 * 127 have room in int16 */
                const Codes c = LOAD(quads + q * 4 * TILE), low = NIBBLES(c), high = NIBBLES(SHIFT4(c));
                if (rows == 1 && v == 0) __builtin_prefetch(quads + q * 4 * TILE + AHEAD);
                for (int r = 0; r < rows; r++) {
                    const int8_t *x = codes + r * a->stride + 4 * q;
                    part[v][r] = _mm256_add_epi16(part[v][r], _mm256_maddubs_epi16(low, EVERY(x)));
                    part[v][r] = _mm256_add_epi16(part[v][r], _mm256_maddubs_epi16(high, EVERY(x + BLOCK / 2)));
                }
            }
            for (int r = 0; r < rows && kind == INT4; r++)
                part[v][r] = _mm256_add_epi32(_mm256_madd_epi16(part[v][r], ones), EVERY(offsets + r * a->blocks + b));
#else
            for (int r = 0; r < rows; r++) part[v][r] = EVERY(offsets + r * a->blocks + b);
            for (int q = 0; q < QUADS && kind == INT8; q++) {
                const Codes c = LOAD(quads + q * 4 * TILE);
                if (rows == 1 && v == 0) __builtin_prefetch(quads + q * 4 * TILE + AHEAD);
                for (int r = 0; r < rows; r++) part[v][r] = DOT(part[v][r], c, EVERY(codes + r * a->stride + 4 * q));
            }
            for (int q = 0; q < QUADS / 2 && kind == INT4; q++) {
                const Codes c = LOAD(quads + q * 4 * TILE), low = NIBBLES(c), high = NIBBLES(SHIFT4(c));
                if (rows == 1 && v == 0) __builtin_prefetch(quads + q * 4 * TILE + AHEAD);
                for (int r = 0; r < rows; r++) {
                    const int8_t *x = codes + r * a->stride + 4 * q;
                    part[v][r] = DOT(DOT(part[v][r], low, EVERY(x)), high, EVERY(x + BLOCK / 2));
                }
            }
#endif
        }
        for (int v = 0; v < wide; v++) {
            const Reals group = kind == INT4 ? HALVES(w + TILE * BLOCK / 2 + 2 * (lane + v * LANES)) : BOTH(1);
            for (int r = 0; r < rows; r++) {
                const Reals by = BOTH(scales[r * a->blocks + b]);
                total[v][r] = FUSED(REAL(part[v][r]), kind == INT4 ? TIMES(group, by) : by, total[v][r]);
            }
        }
    }
    for (int v = 0; v < wide; v++)
        for (int r = 0; r < rows; r++) STORE(y[r] + lane + v * LANES, total[v][r]);
}
#else
static void product(int kind, int rows, int wide, const uint8_t *w, int lane, const Rounded *a, int first,
                    float (*y)[TILE]) {
    (void)wide, (void)lane; /* all 16 outputs */
    for (int r = 0; r < rows; r++) {
        const uint8_t *block = w;
        memset(y[r], 0, sizeof y[r]);
        for (int b = 0; b < a->blocks; b++, block += block_bytes(kind)) {
            const int8_t *x = a->codes + (long)(first + r) * a->stride + b * BLOCK;
            const long place = (long)(first + r) * a->blocks + b;
            for (int n = 0; n < TILE; n++) {
                int32_t part = a->offsets[place];
                for (int k = 0; k < BLOCK; k++) {
                    const int quad = k / 4, within = n * 4 + k % 4;
                    part += x[k] * (kind == INT8 ? (int8_t)block[quad * 4 * TILE + within]
                                                 : block[quad % 4 * 4 * TILE + within] >> (quad / 4 * 4) & 15);
                }
                float group = 1;
                if (kind == INT4) {
                    const uint32_t bits = (uint32_t)((const uint16_t *)(block + TILE * BLOCK / 2))[n] << 16;
                    memcpy(&group, &bits, 4);
                }
                y[r][n] += (float)part * (group * a->scales[place]);
            }
        }
    }
}
#endif

static inline __attribute__((always_inline)) void lanes(int kind, int rows, const uint8_t *w, const Rounded *a,
                                                        int first, float (*y)[TILE]) {
    if (rows == 1) {
        product(kind, 1, TILE / LANES, w, 0, a, first, y);
        return;
    }
    for (int lane = 0; lane < TILE; lane += LANES) {
        switch (rows) { /* the number of rows is a constant in each copy, so that sums stay in registers */
        case 2: product(kind, 2, 1, w, lane, a, first, y); break;
        case 3: product(kind, 3, 1, w, lane, a, first, y); break;
        case ROWS: product(kind, ROWS, 1, w, lane, a, first, y); break;
        default: product(kind, 4, 1, w, lane, a, first, y);
        }
    }
}

/* How a phase's work is shared: threads take the next piece, and wait for each other at its end. */
typedef struct {
    int threads, waiting, phase;
    int next[3]; /* of this phase and its neighbours: the one before last is set to 0 by the last to arrive */
} Team;

static void meet(Team *team) {
    const int phase = __atomic_load_n(&team->phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&team->waiting, 1, __ATOMIC_ACQ_REL) == team->threads) {
        team->waiting = 0;
        team->next[(phase + 2) % 3] = 0;
        __atomic_store_n(&team->phase, phase + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) == phase; spins++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (spins > 2000) sched_yield(); /* somebody else has the other core */
    }
}

static inline int take(Team *team, int count) {
    return __atomic_fetch_add(&team->next[team->phase % 3], count, __ATOMIC_RELAXED);
}

enum { PUT, ADD };

/* y (rows, stride) = or += rounded a times the linear, then the activation unless it is -1. */
static void multiply(Team *team, const Linear *by, const Rounded *a, int rows, int how, int activation, float *y,
                     int stride) {
    const int tiles = up_to(by->outputs, TILE) / TILE;
    const long bytes = (long)a->blocks * block_bytes(by->kind);
    int step = tiles / (8 * team->threads);
    step = step < 1 ? 1 : step > 16 ? 16 : step;
    for (int from = take(team, step); from < tiles; from = take(team, step)) {
        for (int t = from; t < least(tiles, from + step); t++) {
            const int first = t * TILE, n = least(TILE, by->outputs - first);
            float scale[TILE] = {0}, bias[TILE] = {0};
            for (int i = 0; i < n; i++) {
                scale[i] = by->scales ? by->scales[first + i] : 1.0f;
                bias[i] = by->bias ? by->bias[first + i] : 0.0f;
            }
            for (int row = 0, count; row < rows; row += count) {
                float out[ROWS][TILE] __attribute__((aligned(64)));
                count = rows - row >= ROWS ? ROWS : least(rows - row, 4);
                if (by->kind == INT8) lanes(INT8, count, by->codes + t * bytes, a, row, out);
                else lanes(INT4, count, by->codes + t * bytes, a, row, out);
                for (int r = 0; r < count; r++) {
                    float *to = y + (long)(row + r) * stride + first;
                    Floats v = at(out[r]) * at(scale) + at(bias);
                    *(Floats *)out[r] = v;
                    if (activation >= 0) activate(activation, out[r], TILE);
                    if (how == ADD)
                        for (int i = 0; i < n; i++) to[i] += out[r][i];
                    else
                        memcpy(to, out[r], n * sizeof(float));
                }
            }
        }
    }
    meet(team);
}

/* Round blocks from .. to of one row x (n) for a linear of `kind`; what is beyond n counts as 0. */
static void round_blocks(const float *x, int n, int kind, const Rounded *a, int row, int from, int to) {
    for (int b = from; b < to; b++) {
        float v[BLOCK] = {0}, largest = 0, damage = 0;
        int8_t *codes = a->codes + (long)row * a->stride + b * BLOCK;
        int32_t total = 0;
        memcpy(v, x + b * BLOCK, sizeof(float) * least(BLOCK, n - b * BLOCK));
        for (int i = 0; i < BLOCK; i++) {
            largest = fabsf(v[i]) > largest ? fabsf(v[i]) : largest;
            damage += v[i] * 0.0f; /* NaN where v is not finite: such a row must not look like one that is */
        }
        const float by = largest > 1e-30f ? 127.0f / largest : 0.0f;
        for (int i = 0; i < BLOCK; i++) {
            const float shifted = v[i] * by + 12582912.0f; /* to the nearest integer, as above */
            uint32_t code; /* unsigned: of a damaged number it may be anything */
            memcpy(&code, &shifted, 4);
            codes[i] = (int8_t)(code - 0x4B400000u);
            total += codes[i];
        }
        a->scales[(long)row * a->blocks + b] = largest / 127.0f + damage;
        a->offsets[(long)row * a->blocks + b] = -total * (kind == INT8 ? ZERO : 8);
    }
}

static void round_rows(Team *team, const float *x, int n, int rows, int kind, Rounded *a) {
    a->blocks = up_to(n, BLOCK) / BLOCK;
    a->stride = a->blocks * BLOCK;
    enum { PIECE = 16 }; /* blocks at a time */
    const int pieces = up_to(a->blocks, PIECE) / PIECE;
    for (int i = take(team, 1); i < rows * pieces; i = take(team, 1)) {
        const int row = i / pieces, from = i % pieces * PIECE;
        round_blocks(x + (long)row * n, n, kind, a, row, from, least(a->blocks, from + PIECE));
    }
    meet(team);
}

