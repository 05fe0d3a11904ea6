/* Causal attention inside each sequence of a packed row, forward and backward, with dropout. For passes.c alone.
 *
 * A run is some rows that follow each other; its keys are rows that `keys` names, those of a common beginning among
 * them. What is multiplied is bfloat16, every sum float32. A group of runs is one whose keys lie in it: groups and heads
 * are computed by different threads, and nothing depends on how many there are.
 */
typedef struct {
    int64_t rows, heads, width, groups, threads, q_row, k_row, v_row; /* *_row: from one row to the next */
    const int64_t *group;                         /* (groups + 1) the first run of each */
    const int64_t *begins, *shared, *size, *offset; /* (runs): first row, keys before it, rows, where its keys stand */
    const int64_t *keys;
    const Low *q, *k, *v; /* (rows, heads, width) */
    Low *out;             /* (rows, heads, width) */
    float *lse;           /* (heads, rows) */
    const Low *grad;      /* of out */
    Low *dq, *dk, *dv;    /* from one row to the next: 3 * heads * width */
    uint64_t seed;
    float scale, more;  /* more: what a kept place is multiplied with */
    uint32_t threshold; /* below it a drawn number drops; 0: nothing is */
    uint32_t unused;
} Attention;

enum { ROWS = 6, WIDE = 4, QUERIES = 24, KEYS = 48, COLUMNS = 128 };

/* c (R rows, C x 16 columns) = or += a (R, 2 * pairs) @ b, whose rows come in pairs. */
static inline __attribute__((always_inline)) void tile(const int R, const int C, long pairs, const Low *a, long lda,
                                                       const uint32_t *b, long ldb, float *c, long ldc, int add) {
    Floats sum[ROWS][WIDE];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + j * 16) : all(0);
    for (long p = 0; p < pairs; p++) {
        __m512i right[WIDE];
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) right[j] = _mm512_loadu_si512(b + p * ldb + j * 16);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            int32_t pair;
            memcpy(&pair, a + i * lda + 2 * p, 4);
            const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
            for (int j = 0; j < C; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, (__m512bh)right[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) _mm512_storeu_ps(c + i * ldc + j * 16, sum[i][j]);
}

#define STRIP(C)                                                                                   \
    static void strip##C(long rows, long pairs, const Low *a, long lda, const uint32_t *b, long ldb, float *c, \
                         long ldc, int add) {                                                      \
        long i = 0;                                                                                \
        for (; i + 6 <= rows; i += 6) tile(6, C, pairs, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add); \
        a += i * lda, c += i * ldc;                                                                \
        switch (rows - i) {                                                                        \
            case 5: tile(5, C, pairs, a, lda, b, ldb, c, ldc, add); break;                         \
            case 4: tile(4, C, pairs, a, lda, b, ldb, c, ldc, add); break;                         \
            case 3: tile(3, C, pairs, a, lda, b, ldb, c, ldc, add); break;                         \
            case 2: tile(2, C, pairs, a, lda, b, ldb, c, ldc, add); break;                         \
            case 1: tile(1, C, pairs, a, lda, b, ldb, c, ldc, add); break;                         \
        }                                                                                          \
    }
STRIP(1)
STRIP(2)
STRIP(3)
STRIP(4)

/* c (rows, columns) = or += a @ b; columns is a multiple of 16. */
static void multiply(long rows, long columns, long pairs, const Low *a, long lda, const uint32_t *b, long ldb, float *c,
                     long ldc, int add) {
    long j = 0;
    for (; j + 64 <= columns; j += 64) strip4(rows, pairs, a, lda, b + j, ldb, c + j, ldc, add);
    switch ((columns - j) / 16) {
        case 3: strip3(rows, pairs, a, lda, b + j, ldb, c + j, ldc, add); break;
        case 2: strip2(rows, pairs, a, lda, b + j, ldb, c + j, ldc, add); break;
        case 1: strip1(rows, pairs, a, lda, b + j, ldb, c + j, ldc, add); break;
    }
}

/* Where row i of a run's stands; without `which` they follow each other. */
static inline const Low *row_of(const Low *x, long stride, const int64_t *which, long i) {
    return x + (which ? which[i] : i) * stride;
}

/* Rows (n, width) as the pairs of their transpose, (width / 2, padded). */
static void across(uint32_t *to, const Low *x, long stride, const int64_t *which, long n, long padded, long width) {
    for (long i = 0; i < n; i++) {
        const Low *row = row_of(x, stride, which, i);
        for (long p = 0; p < width / 2; p++) memcpy(to + p * padded + i, row + 2 * p, 4);
    }
    for (long p = 0; p < width / 2; p++) memset(to + p * padded + n, 0, sizeof *to * (padded - n));
}

/* Rows (n, width) as pairs of rows, (padded / 2, width). */
static void pairs_of(uint32_t *to, const Low *x, long stride, const int64_t *which, long n, long padded, long width) {
    static const Low none[16];
    for (long i = 0; i < padded; i += 2)
        for (long c = 0; c < width; c += 16) {
            const Low *one = i < n ? row_of(x, stride, which, i) + c : none;
            const Low *two = i + 1 < n ? row_of(x, stride, which, i + 1) + c : none;
            const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)one));
            const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)two));
            _mm512_storeu_si512(to + i / 2 * width + c, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        }
}

/* Room for one thread: parts of a block, each at a multiple of 64 bytes. */
static void *part(char **room, long bytes) {
    void *found = *room;
    *room += up_to(bytes, 64);
    return found;
}

static const __m512i *lanes(void) {
    static const int32_t numbers[16] __attribute__((aligned(64))) = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (const __m512i *)numbers;
}

/* Turn a row of products into the weights of its `seen` keys, 0 behind them; give their sum and the largest. */
static float weigh(const Attention *a, float *s, Low *p, long seen, long padded, uint64_t keys, float *top) {
    Floats high = all(-INFINITY), mass = all(0);
    for (long c = 0; c < seen; c += 16)
        high = _mm512_max_ps(high, _mm512_mask_loadu_ps(all(-INFINITY), first(seen - c), s + c));
    *top = _mm512_reduce_max_ps(high);
    const Floats by = all(a->scale * LOG2E), less = all(*top);
    const __m512i key = _mm512_set1_epi32((int)keys), other = _mm512_set1_epi32((int)(keys >> 32));
    for (long c = 0; c < padded; c += 16) {
        Mask m = first(seen - c);
        const Floats e = _mm512_maskz_mov_ps(m, power_of_two((_mm512_loadu_ps(s + c) - less) * by));
        mass += e;
        if (a->threshold) {
            const __m512i place = _mm512_add_epi32(*lanes(), _mm512_set1_epi32((int)c));
            m &= _mm512_cmpge_epu32_mask(drawn(key, other, place), _mm512_set1_epi32((int)a->threshold));
        }
        low_to(p + c, 0xffff, _mm512_maskz_mov_ps(m, e));
    }
    return _mm512_reduce_add_ps(mass);
}

static long room_to_see(const Attention *a, long longest) {
    const long padded = up_to(longest, 16);
    return 4 * a->width * padded + QUERIES * (padded * 6 + a->width * 4) + 512;
}

static void see(const Attention *a, long r, long h, char *room) {
    const long d = a->width, n = a->size[r], before = a->shared[r], padded = up_to(before + n, 16);
    const int64_t *keys = a->keys + a->offset[r];
    uint32_t *kt = part(&room, 2 * d * padded), *vp = part(&room, 2 * d * padded);
    float *s = part(&room, 4 * QUERIES * padded), *o = part(&room, 4 * QUERIES * d);
    Low *p = part(&room, 2 * QUERIES * padded);
    across(kt, a->k + h * d, a->k_row, keys, before + n, padded, d);
    pairs_of(vp, a->v + h * d, a->v_row, keys, before + n, padded, d);
    for (long i = 0; i < n; i += QUERIES) {
        const long m = least(QUERIES, n - i), most = up_to(before + i + m, 16), row = a->begins[r] + i;
        float mass[QUERIES];
        multiply(m, most, d / 2, a->q + row * a->q_row + h * d, a->q_row, kt, padded, s, padded, 0);
        for (long j = 0; j < m; j++) {
            float top;
            const uint64_t drawn_by = a->threshold ? keys_of(a->seed, (row + j) * a->heads + h) : 0;
            mass[j] = weigh(a, s + j * padded, p + j * padded, before + i + j + 1, most, drawn_by, &top);
            a->lse[h * a->rows + row + j] = top * a->scale + logf(mass[j]);
        }
        multiply(m, d, most / 2, p, padded, vp, d, o, d, 0);
        for (long j = 0; j < m; j++)
            for (long c = 0; c < d; c += 16)
                low_to(a->out + ((row + j) * a->heads + h) * d + c, 0xffff,
                       _mm512_loadu_ps(o + j * d + c) * all(a->more / mass[j]));
    }
}

static long room_to_learn(const Attention *a, long longest, long most) {
    const long d = a->width, padded = up_to(most, 16);
    return d * padded * 12 + padded * 16 + KEYS * (COLUMNS * 14 + d * 16) + longest * d * 8 + 2048;
}

/* What gradients of a block of products are: from s and g, (m, columns), the weights p and the products' own ds. */
static void turn_back(const Attention *a, const float *s, const float *g, Low *p, Low *ds, long m, long columns,
                      long query, long n, long key, long before, const float *lse, const float *delta,
                      const uint32_t *drawn_by, long padded) {
    const Floats by = all(a->scale * LOG2E), scale = all(a->scale), more = all(a->more);
    for (long j = 0; j < m; j++)
        for (long c = 0; c < columns; c += 16) {
            const long q = query + c, hidden = key + j - before - q; /* queries from q on that do not see the key */
            const Mask seen = first(n - q) & (Mask)~first(hidden);
            const Floats l = _mm512_loadu_ps(lse + q) * all(-LOG2E);
            Floats w = power_of_two(_mm512_fmadd_ps(_mm512_loadu_ps(s + j * COLUMNS + c), by, l));
            w = _mm512_maskz_mov_ps(seen, w);
            Floats onward = _mm512_loadu_ps(g + j * COLUMNS + c), kept = w;
            if (a->threshold) {
                const __m512i found = drawn(_mm512_loadu_si512(drawn_by + q), _mm512_loadu_si512(drawn_by + padded + q),
                                            _mm512_set1_epi32((int)(key + j)));
                const Mask keep = _mm512_cmpge_epu32_mask(found, _mm512_set1_epi32((int)a->threshold));
                onward = _mm512_maskz_mul_ps(keep, onward, more);
                kept = _mm512_maskz_mul_ps(keep, w, more);
            }
            low_to(p + j * COLUMNS + c, 0xffff, kept);
            low_to(ds + j * COLUMNS + c, 0xffff, w * (onward - _mm512_loadu_ps(delta + q)) * scale);
        }
    if (m % 2) memset(ds + m * COLUMNS, 0, 2 * COLUMNS);
}

/* dk and dv (rows of the group, width) are added to; those of queries are written. */
static void learn(const Attention *a, long r, long h, long group_row, float *dk, float *dv, char *room) {
    const long d = a->width, n = a->size[r], before = a->shared[r], padded = up_to(n, 16), row = a->begins[r];
    const long out_row = a->heads * d;
    const int64_t *keys = a->keys + a->offset[r];
    const Low *q = a->q + row * a->q_row + h * d, *g = a->grad + row * out_row + h * d;
    const Low *o = a->out + row * out_row + h * d;
    uint32_t *qt = part(&room, 2 * d * padded), *gt = part(&room, 2 * d * padded);
    uint32_t *qp = part(&room, 2 * d * padded), *gp = part(&room, 2 * d * padded);
    float *dqt = part(&room, 4 * d * padded), *lse = part(&room, 4 * padded), *delta = part(&room, 4 * padded);
    uint32_t *drawn_by = part(&room, 8 * padded), *dsp = part(&room, 2 * KEYS * COLUMNS);
    float *s = part(&room, 4 * KEYS * COLUMNS), *gs = part(&room, 4 * KEYS * COLUMNS);
    Low *p = part(&room, 2 * KEYS * COLUMNS), *ds = part(&room, 2 * KEYS * COLUMNS);
    Low *kb = part(&room, 2 * KEYS * d), *vb = part(&room, 2 * KEYS * d), *kt = part(&room, 2 * KEYS * d);
    float *dkb = part(&room, 4 * KEYS * d), *dvb = part(&room, 4 * KEYS * d);
    across(qt, q, a->q_row, NULL, n, padded, d);
    across(gt, g, out_row, NULL, n, padded, d);
    pairs_of(qp, q, a->q_row, NULL, n, padded, d);
    pairs_of(gp, g, out_row, NULL, n, padded, d);
    memset(dqt, 0, 4 * d * padded);
    memset(lse, 0, 4 * padded);
    memset(delta, 0, 4 * padded);
    for (long i = 0; i < n; i++) {
        Floats sum = all(0);
        for (long c = 0; c < d; c += 16) sum += low_at(o + i * out_row + c, 0xffff) * low_at(g + i * out_row + c, 0xffff);
        delta[i] = _mm512_reduce_add_ps(sum);
        lse[i] = a->lse[h * a->rows + row + i];
        const uint64_t by = a->threshold ? keys_of(a->seed, (row + i) * a->heads + h) : 0;
        drawn_by[i] = (uint32_t)by, drawn_by[padded + i] = (uint32_t)(by >> 32);
    }
    for (long j = 0; j < before + n; j += KEYS) {
        const long m = least(KEYS, before + n - j), even = up_to(m, 2);
        const long from = (j > before ? j - before : 0) / 16 * 16;
        memset(kt, 0, 2 * KEYS * d);
        for (long i = 0; i < m; i++) {
            memcpy(kb + i * d, a->k + keys[j + i] * a->k_row + h * d, 2 * d);
            memcpy(vb + i * d, a->v + keys[j + i] * a->v_row + h * d, 2 * d);
            for (long c = 0; c < d; c++) kt[c * KEYS + i] = kb[i * d + c];
        }
        for (long c = from; c < padded; c += COLUMNS) {
            const long wide = least(COLUMNS, padded - c), add = c > from;
            multiply(m, wide, d / 2, kb, d, qt + c, padded, s, COLUMNS, 0);
            multiply(m, wide, d / 2, vb, d, gt + c, padded, gs, COLUMNS, 0);
            turn_back(a, s, gs, p, ds, m, wide, c, n, j, before, lse, delta, drawn_by, padded);
            multiply(m, d, wide / 2, p, COLUMNS, gp + c / 2 * d, d, dvb, d, add);
            multiply(m, d, wide / 2, ds, COLUMNS, qp + c / 2 * d, d, dkb, d, add);
            pairs_of(dsp, ds, COLUMNS, NULL, m, even, wide);
            multiply(d, wide, even / 2, kt, KEYS, dsp, wide, dqt + c, padded, 1);
        }
        for (long i = 0; i < m; i++)
            for (long c = 0; c < d; c++) {
                dk[(keys[j + i] - group_row) * d + c] += dkb[i * d + c];
                dv[(keys[j + i] - group_row) * d + c] += dvb[i * d + c];
            }
    }
    for (long i = 0; i < n; i += 16) { /* sixteen queries' columns at a time: what is read lies together */
        float turned[16][256];
        for (long c = 0; c < d; c++)
            for (long l = 0; l < 16; l++) turned[l][c] = dqt[c * padded + i + l];
        for (long l = 0; l < least(16, n - i); l++)
            for (long c = 0; c < d; c += 16)
                low_to(a->dq + (row + i + l) * 3 * out_row + h * d + c, 0xffff, _mm512_loadu_ps(turned[l] + c));
    }
}

/* Attention, or with `back` its gradients. Returns 0 where there is no room. */
int ft_attend(const Attention *a, int back) {
    long rows = 0, most = 0, longest = 0;
    int good = 1;
    for (long g = 0; g < a->groups; g++) {
        long count = 0;
        for (long r = a->group[g]; r < a->group[g + 1]; r++) {
            count += a->size[r];
            most = a->size[r] > most ? a->size[r] : most;
            longest = a->size[r] + a->shared[r] > longest ? a->size[r] + a->shared[r] : longest;
        }
        rows = count > rows ? count : rows;
    }
    const long bytes = back ? room_to_learn(a, rows, most) : room_to_see(a, longest);
#pragma omp parallel num_threads((int)a->threads)
    {
        char *room = aligned_alloc(64, up_to(bytes, 64));
        if (!room) {
#pragma omp atomic write
            good = 0;
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < a->groups * a->heads; i++) {
            if (!room) continue;
            const long g = i / a->heads, h = i % a->heads, d = a->width;
            const long from = a->group[g], to = a->group[g + 1], row = a->begins[from];
            const long count = a->begins[to - 1] + a->size[to - 1] - row;
            if (!back) {
                for (long r = from; r < to; r++) see(a, r, h, room);
                continue;
            }
            char *rest = room;
            float *dk = part(&rest, 4 * d * count), *dv = part(&rest, 4 * d * count);
            memset(dk, 0, 4 * d * count);
            memset(dv, 0, 4 * d * count);
            for (long r = from; r < to; r++) learn(a, r, h, row, dk, dv, rest);
            for (long j = 0; j < count; j++)
                for (long c = 0; c < d; c += 16) {
                    const long at = (row + j) * 3 * a->heads * d + h * d + c;
                    low_to(a->dk + at, 0xffff, _mm512_loadu_ps(dk + j * d + c));
                    low_to(a->dv + at, 0xffff, _mm512_loadu_ps(dv + j * d + c));
                }
        }
        free(room);
    }
    return good;
}
