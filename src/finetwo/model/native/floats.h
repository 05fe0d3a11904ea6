/* Products of float32 rows with float32 weights where they lie, shared out among threads, for each instruction set.
 *
 * A linear's weights are (inputs, outputs): an output's sum runs through the inputs in their order, one after the other.
 * A table's are (outputs, inputs): an output is a product of two rows, lane by lane, and then the lanes. Neither depends
 * on how many rows there are, on how outputs are shared out or on which thread computes, so neither do the bits.
 */
#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__FMA__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
enum { WIDE = 16, MANY = 8 }; /* numbers of a vector; rows whose sums fit into registers */
#elif defined(__AVX2__)
enum { WIDE = 8, MANY = 4 };
#else
enum { WIDE = 4, MANY = 4 };
#endif
enum { FLOAT = 32, TABLE = 33 }; /* kinds of a Linear, beside INT8 and INT4 */
enum { ACROSS = 3 * WIDE, CHUNK = 384, TOGETHER = 64, LINES = 3 }; /* columns, rows and lines of a table at a time */
enum { DEEP = 64, SHALLOW = 16, FAR = 9 }; /* inputs at a time of several rows and of one; lines fetched ahead: measured */

typedef float Vector __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
#define VECTOR(p) (*(Vector *)(p))
#define SEEN(p) (*(const Vector *)(p))
#define INLINED static inline __attribute__((always_inline))

/* sum + a * b, in one instruction if there is one: a compiler left to choose may fuse for one number of rows only. */
INLINED Vector fuse(Vector a, Vector b, Vector sum) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__FMA__)
    return (Vector)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)sum);
#elif defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
}

/* sums (rows, CHUNK) += x (rows, deep) times w (deep, vectors * WIDE); `ahead`: what is wanted next, as w lies, for the
 * second cache: the first cannot wait for as many lines at once as memory gives. */
INLINED void strip(int rows, int vectors, int deep, const float *w, long stride, const float *x, long x_stride,
                   float *sums, const float *ahead) {
    Vector total[MANY][3];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) total[r][v] = SEEN(sums + r * CHUNK + v * WIDE);
    for (int k = 0; k < deep; k++, w += stride) {
        Vector line[3];
        for (int v = 0; v < vectors; v++) line[v] = SEEN(w + v * WIDE);
        if (ahead)
            for (int v = 0; v < vectors; v++) __builtin_prefetch(ahead + k * stride + v * WIDE, 0, 2);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                total[r][v] = fuse(x[r * x_stride + k] - (Vector){0}, line[v], total[r][v]);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) VECTOR(sums + r * CHUNK + v * WIDE) = total[r][v];
}

INLINED int strips(int left, int vectors, int deep, const float *w, long stride, const float *x, long x_stride,
                   float *sums, const float *ahead) {
    const int rows = left >= MANY ? MANY : least(left, 4);
    switch (rows) { /* the number of rows is a constant in each copy, so that sums stay in registers */
    case 1: strip(1, vectors, deep, w, stride, x, x_stride, sums, ahead); break;
    case 2: strip(2, vectors, deep, w, stride, x, x_stride, sums, ahead); break;
    case 3: strip(3, vectors, deep, w, stride, x, x_stride, sums, ahead); break;
    case MANY: strip(MANY, vectors, deep, w, stride, x, x_stride, sums, ahead); break;
    default: strip(4, vectors, deep, w, stride, x, x_stride, sums, ahead);
    }
    return rows;
}

/* sums (rows, CHUNK) += x (rows, inputs) times n columns of w (inputs, stride). */
static void columns(const float *w, long stride, int inputs, int n, const float *x, long x_stride, int rows,
                    float *sums) {
    const int most = rows == 1 ? SHALLOW : DEEP;
    for (int k = 0; k < inputs; k += most) {
        const int deep = least(most, inputs - k);
        for (int c = 0, across; c < n; c += across) {
            const float *from = w + k * stride + c, *ahead = from + ACROSS;
            float spare[DEEP * WIDE] __attribute__((aligned(64)));
            across = n - c >= ACROSS ? ACROSS : least(WIDE, n - c);
            if (c + ACROSS >= n) ahead = k + 2 * deep <= inputs ? w + (k + deep) * stride : NULL;
            if (across < WIDE) { /* what a full vector would read behind a row is nobody's, at the last row */
                memset(spare, 0, sizeof spare);
                for (int i = 0; i < deep; i++) memcpy(spare + i * WIDE, from + i * stride, across * sizeof(float));
                for (int row = 0; row < rows;)
                    row += strips(rows - row, 1, deep, spare, WIDE, x + row * x_stride + k, x_stride,
                                  sums + row * CHUNK + c, NULL);
                continue;
            }
            for (int row = 0; row < rows; ahead = NULL)
                row += across == ACROSS ? strips(rows - row, 3, deep, from, stride, x + row * x_stride + k, x_stride,
                                                 sums + row * CHUNK + c, ahead)
                                        : strips(rows - row, 1, deep, from, stride, x + row * x_stride + k, x_stride,
                                                 sums + row * CHUNK + c, NULL);
        }
    }
}

/* y (rows, stride) = or += x times the linear, the part of its adapter from inner (rows, rank) added, then as multiply. */
static void multiply_floats(Team *team, const Linear *by, const float *x, const float *inner, int rows, int how,
                            int activation, float *y, int stride) {
    const float *w = (const float *)by->codes;
    const int pieces = (rows < 16 ? 4 : 8) * team->threads; /* so that nobody waits long at the end */
    const int chunk = least(CHUNK, up_to((by->outputs - 1) / pieces + 1, ACROSS));
    for (int first = take(team, 1) * chunk; first < by->outputs; first = take(team, 1) * chunk) {
        const int n = least(chunk, by->outputs - first);
        for (int row = 0; row < rows; row += TOGETHER) {
            const int count = least(TOGETHER, rows - row);
            float sums[TOGETHER * CHUNK] __attribute__((aligned(64)));
            for (int r = 0; r < count; r++) memset(sums + r * CHUNK, 0, up_to(n, TILE) * sizeof(float));
            columns(w + first, by->outputs, by->inputs, n, x + (long)row * by->inputs, by->inputs, count, sums);
            if (by->rank)
                columns(by->up + first, by->outputs, by->rank, n, inner + (long)row * by->rank, by->rank, count, sums);
            for (int r = 0; r < count; r++) {
                float *out = sums + r * CHUNK, *to = y + (long)(row + r) * stride + first;
                for (int i = 0; i < n && by->bias; i++) out[i] += by->bias[first + i];
                if (activation >= 0) activate(activation, out, up_to(n, TILE));
                if (how == ADD)
                    for (int i = 0; i < n; i++) to[i] += out[i];
                else
                    memcpy(to, out, n * sizeof(float));
            }
        }
    }
    meet(team);
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif

INLINED Four folded(Vector v) { /* halves onto each other until four are left */
#if defined(__AVX512F__)
    const __m256d upper = _mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1);
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm256_castpd_ps(upper));
    return (Four)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    return (Four)_mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
    return (Four)v;
#endif
}

INLINED Four sums_of(const Vector *v) { /* of each of four vectors */
    const Four a = folded(v[0]), b = folded(v[1]), c = folded(v[2]), d = folded(v[3]);
    const Four ab = PICK(a, b, 0, 4, 1, 5) + PICK(a, b, 2, 6, 3, 7), cd = PICK(c, d, 0, 4, 1, 5) + PICK(c, d, 2, 6, 3, 7);
    return PICK(ab, cd, 0, 1, 4, 5) + PICK(ab, cd, 2, 3, 6, 7);
}

/* y (rows, stride), `lines` columns of it = x (rows, inputs) times rows of the table w; what follows is fetched. */
INLINED void dots(int rows, int lines, const float *w, int inputs, const float *x, float *y, long stride, int fetch) {
    Vector total[MANY][4] = {0};
    int k = 0;
    for (; k + WIDE <= inputs; k += WIDE) {
        Vector line[LINES];
        for (int v = 0; v < lines; v++) line[v] = SEEN(w + (long)v * inputs + k);
        if (fetch)
            for (int v = 0; v < lines; v++) __builtin_prefetch(w + (long)(v + FAR) * inputs + k, 0, 2);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < lines; v++) total[r][v] = fuse(SEEN(x + (long)r * inputs + k), line[v], total[r][v]);
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < lines && k < inputs; v++) { /* what is left, filled up with 0 */
            Vector a = {0}, b = {0};
            memcpy(&a, x + (long)r * inputs + k, sizeof(float) * (inputs - k));
            memcpy(&b, w + (long)v * inputs + k, sizeof(float) * (inputs - k));
            total[r][v] = fuse(a, b, total[r][v]);
        }
        const Four found = sums_of(total[r]);
        for (int v = 0; v < lines; v++) y[r * stride + v] = found[v];
    }
}

INLINED int dots_of(int left, int lines, const float *w, int inputs, const float *x, float *y, long stride, int fetch) {
    const int rows = left >= MANY ? MANY : least(left, 4);
    switch (rows) {
    case 1: dots(1, lines, w, inputs, x, y, stride, fetch); break;
    case 2: dots(2, lines, w, inputs, x, y, stride, fetch); break;
    case 3: dots(3, lines, w, inputs, x, y, stride, fetch); break;
    case MANY: dots(MANY, lines, w, inputs, x, y, stride, fetch); break;
    default: dots(4, lines, w, inputs, x, y, stride, fetch);
    }
    return rows;
}

/* y (rows, outputs) = x (rows, inputs) times the table w (outputs, inputs) transposed. */
static void multiply_table(Team *team, const float *w, int outputs, int inputs, const float *x, int rows, float *y) {
    enum { PIECE = 16 * LINES }; /* stays in the second cache while row after row passes */
    for (int first = take(team, PIECE); first < outputs; first = take(team, PIECE)) {
        const int end = least(outputs, first + PIECE);
        for (int row = 0, count = 0; row < rows; row += count)
            for (int place = first, lines; place < end; place += lines) {
                const float *line = w + (long)place * inputs, *from = x + (long)row * inputs;
                float *to = y + (long)row * outputs + place;
                lines = end - place >= LINES ? LINES : 1;
                count = lines == LINES ? dots_of(rows - row, LINES, line, inputs, from, to, outputs, row == 0)
                                       : dots_of(rows - row, 1, line, inputs, from, to, outputs, row == 0);
            }
    }
    meet(team);
}
