/* What a training step in bfloat16 does between its matrix products, each in one pass over its tensors, for a processor
 * that multiplies bfloat16 by itself; elsewhere there is nothing here but the answer that there is nothing.
 *
 * Every sum is float32, and none depends on the number of threads but those of a norm's weight and bias, which are taken
 * thread by thread and then in the threads' order. Compiled by finetwo/core/compiled.py for the machine it runs on;
 * finetwo/model/native_passes.py and finetwo/model/native_attend.py call it.
 */
#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "lanes.h"

#include "attention.h"

int ft_able(void) { return 1; }

/* x * sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3): the tanh form of GELU. */
static inline Floats sigmoid(Floats x) {
    const Floats inner = x * (all(1.0f) + all(0.044715f) * x * x);
    return all(1.0f) / (all(1.0f) + exponential(inner * all(-2 * 0.7978845608f)));
}

/* y (n) = gelu(x) for x (n). */
void ft_gelu(const Low *x, Low *y, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n; i += 16) {
        const Mask m = first(n - i);
        const Floats v = low_at(x + i, m);
        low_to(y + i, m, v * sigmoid(v));
    }
}

/* dx (n) = the gradient of gelu at x times dy; dx may be dy. */
void ft_gelu_backward(const Low *x, const Low *dy, Low *dx, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n; i += 16) {
        const Mask m = first(n - i);
        const Floats v = low_at(x + i, m), s = sigmoid(v);
        const Floats slope = all(2 * 0.7978845608f) * (all(1.0f) + all(3 * 0.044715f) * v * v);
        low_to(dx + i, m, low_at(dy + i, m) * (s + v * s * (all(1.0f) - s) * slope));
    }
}

/* to (n) = or += from (n), past the caches: gradients are read again when all are there. */
void ft_widen(float *to, const Low *from, long n, int add, int threads) {
    const int past = (uintptr_t)to % 64 == 0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n; i += 16) {
        const Mask m = first(n - i);
        Floats v = low_at(from + i, m);
        if (add) v += _mm512_maskz_loadu_ps(m, to + i);
        if (past && m == 0xffff && !add)
            _mm512_stream_ps(to + i, v);
        else
            _mm512_mask_storeu_ps(to + i, m, v);
    }
}

/* to (width) = the sum of the rows of x (rows, width). */
void ft_sum_rows(const Low *x, float *to, long rows, long width, int threads) {
    enum { AT_ONCE = 8 };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long c = 0; c < width; c += 16 * AT_ONCE) {
        Floats sum[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) sum[i] = all(0);
        for (long r = 0; r < rows; r++)
            for (int i = 0; i < AT_ONCE; i++) sum[i] += low_at(x + r * width + c + 16 * i, first(width - c - 16 * i));
        for (int i = 0; i < AT_ONCE; i++) _mm512_mask_storeu_ps(to + c + 16 * i, first(width - c - 16 * i), sum[i]);
    }
}

/* losses (rows), weighted; with `gradient` logits (rows, width) become `scale` times their gradient, 0 from `classes` on. */
void ft_cross_entropy(Low *logits, const int64_t *targets, const float *weights, float *losses, long rows, long classes,
                      long width, float scale, int gradient, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        Low *row = logits + r * width;
        Floats high = all(-INFINITY), mass = all(0);
        for (long c = 0; c < classes; c += 16) {
            const Mask m = first(classes - c);
            high = _mm512_mask_max_ps(high, m, high, low_at(row + c, m));
        }
        const float top = _mm512_reduce_max_ps(high);
        const Floats most = all(top); /* taken off first: of products of large logits nothing would be left but rounding */
        for (long c = 0; c < classes; c += 16) {
            const Mask m = first(classes - c);
            mass = _mm512_mask_add_ps(mass, m, mass, exponential(low_at(row + c, m) - most));
        }
        const float sum = _mm512_reduce_add_ps(mass), weight = weights ? weights[r] : 1.0f;
        uint32_t bits = (uint32_t)row[targets[r]] << 16;
        float picked;
        memcpy(&picked, &bits, 4);
        losses[r] = weight * (logf(sum) + (top - picked));
        if (!gradient) continue;
        const float factor = scale * weight;
        const Floats each = all(factor / sum);
        for (long c = 0; c < width; c += 16) {
            const Mask m = first(width - c);
            const Floats p = exponential(low_at(row + c, m) - most) * each;
            low_to(row + c, m, _mm512_maskz_mov_ps(first(classes - c), p));
        }
        const float there = expf(picked - top) * factor / sum - factor;
        low_to(row + targets[r], 1, all(there));
    }
}

/* total = x + delta (absent: x is the total), y = its norm times weight plus bias; mean and rstd of each row.
 * low: bit 0, delta is bfloat16. */
void ft_add_norm(const float *x, const void *delta, const float *weight, const float *bias, float *total, Low *y,
                 float *mean, float *rstd, long rows, long width, float eps, int low, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        const long at = r * width;
        Floats sum = all(0), squares = all(0);
        for (long c = 0; c < width; c += 16) {
            const Mask m = first(width - c);
            Floats v = _mm512_maskz_loadu_ps(m, x + at + c);
            if (delta) {
                v += read(delta, low & 1, at + c, m);
                _mm512_mask_storeu_ps(total + at + c, m, v);
            }
            sum += v;
        }
        const float *from = delta ? total + at : x + at;
        const float middle = _mm512_reduce_add_ps(sum) / width;
        for (long c = 0; c < width; c += 16) {
            const Mask m = first(width - c);
            const Floats v = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, from + c), all(middle));
            squares += v * v;
        }
        const float by = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / width + eps);
        mean[r] = middle, rstd[r] = by;
        for (long c = 0; c < width; c += 16) {
            const Mask m = first(width - c);
            const Floats v = (_mm512_maskz_loadu_ps(m, from + c) - all(middle)) * all(by);
            low_to(y + at + c, m, v * _mm512_maskz_loadu_ps(m, weight + c) + _mm512_maskz_loadu_ps(m, bias + c));
        }
    }
}

/* dx (rows, width) and with dlow the same in bfloat16; with parts (threads, 2, width), zeros, each thread's sums of the
 * gradients of weight and bias. low: bit 0, dy is bfloat16. dtotal may be absent. */
void ft_add_norm_backward(const void *dy, const float *dtotal, const float *total, const float *weight,
                          const float *mean, const float *rstd, float *dx, Low *dlow, float *parts, long rows,
                          long width, int low, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        float *dw = parts ? parts + 2 * t * width : NULL, *db = parts ? dw + width : NULL;
        for (long r = rows * t / threads; r < rows * (t + 1) / threads; r++) {
            const long at = r * width;
            const Floats middle = all(mean[r]), by = all(rstd[r]);
            Floats sum = all(0), along = all(0);
            for (long c = 0; c < width; c += 16) {
                const Mask m = first(width - c);
                const Floats g = read(dy, low & 1, at + c, m);
                const Floats h = _mm512_maskz_mul_ps(m, _mm512_maskz_loadu_ps(m, total + at + c) - middle, by);
                const Floats wg = g * _mm512_maskz_loadu_ps(m, weight + c);
                sum += wg, along += wg * h;
                if (dw) {
                    _mm512_mask_storeu_ps(dw + c, m, _mm512_maskz_loadu_ps(m, dw + c) + g * h);
                    _mm512_mask_storeu_ps(db + c, m, _mm512_maskz_loadu_ps(m, db + c) + g);
                }
            }
            const Floats flat = all(_mm512_reduce_add_ps(sum) / width), tilt = all(_mm512_reduce_add_ps(along) / width);
            for (long c = 0; c < width; c += 16) {
                const Mask m = first(width - c);
                const Floats h = (_mm512_maskz_loadu_ps(m, total + at + c) - middle) * by;
                const Floats wg = read(dy, low & 1, at + c, m) * _mm512_maskz_loadu_ps(m, weight + c);
                Floats d = (wg - (h * tilt + flat)) * by;
                if (dtotal) d += _mm512_maskz_loadu_ps(m, dtotal + at + c);
                _mm512_mask_storeu_ps(dx + at + c, m, d);
                if (dlow) low_to(dlow + at + c, m, d);
            }
        }
    }
}

/* y (n) = x where a drawn number keeps it, times `more`, else 0; the same seed drops the same. */
void ft_dropout(const Low *x, Low *y, long n, uint64_t seed, uint32_t threshold, float more, int threads) {
    const long block = 4096;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < n; b += block) {
        const uint64_t keys = keys_of(seed, b / block);
        const __m512i key = _mm512_set1_epi32((int)keys), other = _mm512_set1_epi32((int)(keys >> 32));
        for (long i = b; i < least(n, b + block); i += 16) {
            const __m512i place = _mm512_add_epi32(*lanes(), _mm512_set1_epi32((int)(i - b)));
            const Mask m = first(n - i);
            const Mask keep = m & _mm512_cmpge_epu32_mask(drawn(key, other, place), _mm512_set1_epi32((int)threshold));
            low_to(y + i, m, _mm512_maskz_mul_ps(keep, low_at(x + i, m), all(more)));
        }
    }
}
#else
int ft_able(void) { return 0; }
#endif
