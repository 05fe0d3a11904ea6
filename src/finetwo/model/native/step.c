/* GPT-2's forward over a key-value cache, in one call: what a step of decoding costs in torch is mostly dispatch, here it
 * is reading the weights once.
 *
 * Arithmetic with codes, the same on every machine: an input row is rounded to int8 in blocks of 32 with one scale each; a
 * block's product with int8 or int4 codes is an exact integer; the blocks' products, scaled, are added in float32 in the
 * order of the inputs. Everything else is float32, with float32 weights all of it. What a row gets depends on no other
 * row: not on how many there are, nor on which thread computes it.
 *
 * Compiled by finetwo/core/compiled.py for the machine it runs on; finetwo/model/kernel.py holds the same declarations.
 */
#include "codes.h"
#include "floats.h"

typedef struct {
    Linear attention, projection, up, down;
    const float *gain1, *shift1, *gain2, *shift2;
    float scale;
    int32_t unused;
} Layer;

typedef struct {
    int32_t layers, heads, head_width, width, inner, activation, post_norm, capacity, slots, rank; /* rank: the largest */
    float epsilon;
    int32_t unused;
    const Layer *layer;
    Linear head; /* the token embedding; `outputs` may be fewer than it has rows */
    const float *places, *gain, *shift;
    float *keys, *values; /* (layers, slots, heads, capacity * padded): keys by blocks of 16 places, (padded, 16) each */
} Network;

enum { GROUPS = WIDE == 16 ? 4 : 2 }; /* of 16 numbers, weighed at a time */

/* --- attention over the cache -------------------------------------------------------------------------------------- */

/* Scores of a query with `count` blocks of 16 keys; even and odd numbers apart, so that sums need not wait for sums. */
INLINED void score(int count, const float *q, const float *keys, int width, int padded, float scale, float *scores) {
    Floats even[2] = {0}, odd[2] = {0};
    int d = 0;
    for (; d + 2 <= width; d += 2)
        for (int b = 0; b < count; b++) {
            even[b] += q[d] * at(keys + (b * padded + d) * 16);
            odd[b] += q[d + 1] * at(keys + (b * padded + d + 1) * 16);
        }
    for (int b = 0; b < count; b++) {
        if (d < width) even[b] += q[d] * at(keys + (b * padded + d) * 16);
        *(Floats *)(scores + b * 16) = (even[b] + odd[b]) * scale;
    }
}

/* `count` times 16 numbers of the values up to `place`, weighed, even and odd places apart. */
INLINED void weigh(int count, const float *weights, const float *values, int place, int padded, float by, int width,
                   float *out) {
    Floats even[GROUPS] = {0}, odd[GROUPS] = {0};
    int i = 0;
    for (; i < place; i += 2, values += 2 * padded)
        for (int g = 0; g < count; g++) {
            even[g] += weights[i] * at(values + g * 16);
            odd[g] += weights[i + 1] * at(values + padded + g * 16);
        }
    for (int g = 0; g < count; g++) {
        if (i == place) even[g] += weights[i] * at(values + g * 16);
        even[g] = (even[g] + odd[g]) * by;
        memcpy(out + g * 16, &even[g], sizeof(float) * least(16, width - g * 16));
    }
}

/* What the query of one head at `place` sees; keys by blocks of 16 places; scores has room for all places. */
static void see(const float *q, const float *keys, const float *values, int place, int width, int padded, float scale,
                float *scores, float *out) {
    const int blocks = place / 16 + 1;
    int b = 0;
    for (; b + 2 <= blocks; b += 2) score(2, q, keys + (long)b * padded * 16, width, padded, scale, scores + b * 16);
    if (b < blocks) score(1, q, keys + (long)b * padded * 16, width, padded, scale, scores + b * 16);
    for (int i = place + 1; i < blocks * 16; i++) scores[i] = -INFINITY;
    Floats tops = at(scores), mass = all(0);
    for (b = 1; b < blocks; b++) tops = choose(at(scores + b * 16) > tops, at(scores + b * 16), tops);
    float top = tops[0];
    for (int i = 1; i < 16; i++) top = tops[i] > top ? tops[i] : top;
    for (b = 0; b < blocks; b++) {
        const Floats p = exponential(at(scores + b * 16) - top);
        *(Floats *)(scores + b * 16) = p;
        mass += p;
    }
    const float by = 1.0f / sum(mass);
    int d = 0;
    for (; d + 16 * GROUPS <= padded; d += 16 * GROUPS)
        weigh(GROUPS, scores, values + d, place, padded, by, width - d, out + d);
    for (; d < padded; d += 16) weigh(1, scores, values + d, place, padded, by, width - d, out + d);
}

/* Rows of one slot follow each other; each run of them and each head is one piece: stored first, then seen. */
static void attend(Team *team, const Network *net, int layer, const float *qkv, int rows, const int32_t *places,
                   const int32_t *slots, float *scores, float *out) {
    const int width = net->head_width, padded = up_to(width, 16), d = net->width;
    int runs = 0, starts[rows + 1];
    for (int r = 0; r < rows; r++)
        if (r == 0 || slots[r] != slots[r - 1]) starts[runs++] = r;
    starts[runs] = rows;
    for (int i = take(team, 1); i < runs * net->heads; i = take(team, 1)) {
        const int run = i / net->heads, h = i % net->heads, slot = slots[starts[run]];
        const long head = (((long)layer * net->slots + slot) * net->heads + h) * net->capacity * padded;
        float *keys = net->keys + head, *values = net->values + head;
        for (int r = starts[run]; r < starts[run + 1]; r++) {
            const float *k = qkv + (long)r * 3 * d + d + h * width;
            float *to = keys + (long)(places[r] / 16) * padded * 16 + places[r] % 16;
            for (int j = 0; j < width; j++) to[j * 16] = k[j];
            memcpy(values + (long)places[r] * padded, k + d, sizeof(float) * width);
        }
        for (int r = starts[run]; r < starts[run + 1]; r++)
            see(qkv + (long)r * 3 * d + h * width, keys, values, places[r], width, padded, net->layer[layer].scale,
                scores, out + (long)r * d + h * width);
    }
    meet(team);
}

/* --- the network --------------------------------------------------------------------------------------------------- */

static void normalise_rows(Team *team, float *x, float *y, int rows, int n, const float *gain, const float *shift,
                           float epsilon) {
    for (int r = take(team, 1); r < rows; r = take(team, 1))
        normalise(x + (long)r * n, y + (long)r * n, n, gain, shift, epsilon);
    meet(team);
}

static void embed(const Network *net, int token, int place, float *x) {
    if (net->head.kind == TABLE) {
        const float *word = (const float *)net->head.codes + (long)token * net->width;
        for (int k = 0; k < net->width; k++) x[k] = word[k] + net->places[(long)place * net->width + k];
        return;
    }
    const int blocks = up_to(net->width, BLOCK) / BLOCK;
    const uint8_t *tile = net->head.codes + (long)(token / TILE) * blocks * block_bytes(INT8);
    for (int k = 0; k < net->width; k++) {
        const int code = tile[k / 4 * 4 * TILE + token % TILE * 4 + k % 4];
        x[k] = net->head.scales[token] * (ZERO ? code - ZERO : (int8_t)code) + net->places[(long)place * net->width + k];
    }
}

static Rounded rounded_at(char **work, int rows, int n) {
    Rounded a;
    const long places = (long)rows * (up_to(n, BLOCK) / BLOCK);
    a.codes = (int8_t *)*work, *work += places * BLOCK;
    a.scales = (float *)*work, *work += places * 4;
    a.offsets = (int32_t *)*work, *work += places * 4;
    a.stride = a.blocks = 0;
    return a;
}

/* y (rows, stride) = or += x (rows, inputs) times any linear; a is room for rounded rows, inner for an adapter's. */
static void apply(Team *team, const Linear *by, const float *x, Rounded *a, float *inner, int rows, int how,
                  int activation, float *y, int stride) {
    if (by->kind == TABLE) {
        multiply_table(team, (const float *)by->codes, by->outputs, by->inputs, x, rows, y);
    } else if (by->kind == FLOAT) {
        if (by->rank) multiply_table(team, by->down, by->rank, by->inputs, x, rows, inner);
        multiply_floats(team, by, x, inner, rows, how, activation, y, stride);
    } else {
        round_rows(team, x, by->inputs, rows, by->kind, a);
        multiply(team, by, a, rows, how, activation, y, stride);
    }
}

static inline int widest(const Network *net) { return net->inner > net->width ? net->inner : net->width; }

/* Bytes that ft_forward needs for so many rows. */
int64_t ft_work(const Network *net, int rows, int threads) {
    const int64_t n = widest(net), d = net->width;
    return rows * (4 * (6 * d + n + net->rank) + (int64_t)up_to(n, BLOCK) / BLOCK * (BLOCK + 8)) +
           threads * 4 * (int64_t)net->capacity + 64;
}

/* Append one token a row, rows of a slot together and in order, and give the logits of the rows `wanted`. */
void ft_forward(const Network *net, int rows, const int32_t *tokens, const int32_t *places, const int32_t *slots,
                int wants, const int32_t *wanted, float *logits, char *work, int threads) {
    const int d = net->width;
    float *x = (float *)work, *y = x + (long)rows * d, *qkv = y + (long)rows * d, *seen = qkv + (long)rows * 3 * d;
    float *inner = seen + (long)rows * d, *scores = inner + (long)rows * widest(net);
    float *ranks = scores + (long)threads * net->capacity;
    char *rest = (char *)(ranks + (long)rows * net->rank);
    Rounded a_shared = rounded_at(&rest, rows, widest(net));
    Team team = {0};
#pragma omp parallel num_threads(threads)
    {
        Rounded a = a_shared;
        float *mine = scores + (long)omp_get_thread_num() * net->capacity;
#pragma omp single
        team.threads = omp_get_num_threads();
        for (int r = take(&team, 1); r < rows; r = take(&team, 1)) embed(net, tokens[r], places[r], x + (long)r * d);
        meet(&team);
        for (int l = 0; l < net->layers; l++) {
            const Layer *at_l = net->layer + l;
            const float *from = x;
            if (!net->post_norm) normalise_rows(&team, x, y, rows, d, at_l->gain1, at_l->shift1, net->epsilon), from = y;
            apply(&team, &at_l->attention, from, &a, ranks, rows, PUT, -1, qkv, 3 * d);
            attend(&team, net, l, qkv, rows, places, slots, mine, seen);
            apply(&team, &at_l->projection, seen, &a, ranks, rows, ADD, -1, x, d);
            if (net->post_norm) normalise_rows(&team, x, x, rows, d, at_l->gain1, at_l->shift1, net->epsilon);
            else normalise_rows(&team, x, y, rows, d, at_l->gain2, at_l->shift2, net->epsilon);
            apply(&team, &at_l->up, from, &a, ranks, rows, PUT, net->activation, inner, net->inner);
            apply(&team, &at_l->down, inner, &a, ranks, rows, ADD, -1, x, d);
            if (net->post_norm) normalise_rows(&team, x, x, rows, d, at_l->gain2, at_l->shift2, net->epsilon);
        }
        for (int i = take(&team, 1); i < wants; i = take(&team, 1))
            normalise(x + (long)wanted[i] * d, y + (long)i * d, d, net->gain, net->shift, net->epsilon);
        meet(&team);
        apply(&team, &net->head, y, &a, ranks, wants, PUT, -1, logits, net->head.outputs);
    }
}

/* y (rows, outputs) = x (rows, inputs) times one linear. work: rows * (blocks * (BLOCK + 8) + 4 * rank) bytes. */
void ft_linear(const Linear *by, int rows, const float *x, float *y, char *work, int threads) {
    float *ranks = (float *)work;
    work += (long)rows * by->rank * 4;
    Rounded a_shared = rounded_at(&work, rows, by->inputs);
    Team team = {0};
#pragma omp parallel num_threads(threads)
    {
        Rounded a = a_shared;
#pragma omp single
        team.threads = omp_get_num_threads();
        apply(&team, by, x, &a, ranks, rows, PUT, -1, y, by->outputs);
    }
}

/* What packed int8 codes are offset by, and which code was compiled. */
int ft_zero(void) { return ZERO; }
const char *ft_kernel(void) { return KERNEL; }
