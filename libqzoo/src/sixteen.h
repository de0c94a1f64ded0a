/* Kernels in steps of 16 channels, for instructions whose registers hold fewer sums than that.
 *
 * This is a template: a file of kernels includes it after what it says about its instructions
 * (ymm.h or neon.h), and gets the table `kernels`. It needs from there
 *
 *   INLINE, KERNEL     how helpers and kernels are declared
 *   PARTS              registers that 16 sums take
 *   PIXELS             outputs whose sums fit into registers at once: 4 to 6
 *   QUADS              quads of the input that are loaded at once: 1 or 4
 *   SHIFT              128 where it takes inputs as signed bytes, less 128; otherwise 0
 *   ints, floats       registers of 32-bit numbers, as vectors of the compiler's own
 *   grid, grid_of      what turns steps into bytes: zero point and bounds
 *   sixteen_weights, same_inputs, own_inputs, add_same, add_own
 *                      sums of products of four bytes
 *   and what is named in the code below: widened, nearest, within, narrowed, kept, larger, zip,
 *   zip_rows, look_up.
 *
 * Sums of integers are exact in any order. What is rounded is computed as in plain C: each
 * multiplication and addition by itself, then to the nearest whole number, half to even.
 */
#include "kernels.h"

#include <string.h>

typedef struct {
    ints part[PARTS];
} sums;

typedef struct {
    floats part[PARTS];
} numbers;

/* ---- Parts of 16 bytes ---- */

/* Fewer than 16 bytes. */
INLINE void copy_few(uint8_t *to, const uint8_t *from, int64_t count) {
    if (count & 8) memcpy(to, from, 8), to += 8, from += 8;
    if (count & 4) memcpy(to, from, 4), to += 4, from += 4;
    if (count & 2) memcpy(to, from, 2), to += 2, from += 2;
    if (count & 1) *to = *from;
}

/* The first 16 of `count` bytes, zeros where there are fewer. */
INLINE bytes load(const uint8_t *from, int64_t count) {
    bytes x = {0};
    if (count >= 16)
        memcpy(&x, from, 16);
    else
        copy_few((uint8_t *)&x, from, count);
    return x;
}

INLINE void store(uint8_t *to, bytes x, int64_t count) {
    if (count >= 16)
        memcpy(to, &x, 16);
    else
        copy_few(to, (const uint8_t *)&x, count);
}

/* ---- Layers with weights ---- */

/* 16 channels of a layer: what dense and depthwise tiles have in common. */
typedef struct {
    int32_t runs, quads;
    const ptrdiff_t *offsets;
    ptrdiff_t step, out_step;
    const int8_t *weights;
    ptrdiff_t next; /* from the weights of one quad to the next */
    const int32_t *start;
    const float *multiplier, *addend;
    int32_t channels; /* up to 16 */
} slice;

/* Adds the products of `count` neighbouring quads, which all channels share. */
INLINE void add_shared(const int pixels, const int count, const slice *t, const uint8_t *from,
                       const int8_t *weights, sums *s) {
    same_inputs x[PIXELS];
#pragma GCC unroll 6
    for (int p = 0; p < pixels; p++) x[p] = load_same(from + p * t->step, count);
#pragma GCC unroll 4
    for (int k = 0; k < count; k++, weights += t->next) {
        const sixteen_weights w = load_weights(weights);
#pragma GCC unroll 6
        for (int p = 0; p < pixels; p++) add_same(s[p].part, &w, x[p], k);
    }
}

/* Neighbouring outputs of 16 channels; `own`: whether each channel has quads of its own. */
INLINE void compute(const int pixels, const bool own, const slice *t, const uint8_t *in,
                    uint8_t *out, const grid *g) {
    sums s[PIXELS];
    memcpy(&s[0], t->start, sizeof(sums));
#pragma GCC unroll 6
    for (int p = 1; p < pixels; p++) s[p] = s[0];
    const int8_t *weights = t->weights;
    for (int32_t run = 0; run < t->runs; run++) {
        const uint8_t *from = in + t->offsets[run];
        if (own) {
            const sixteen_weights w = load_weights(weights);
            weights += t->next;
#pragma GCC unroll 6
            for (int p = 0; p < pixels; p++) add_own(s[p].part, &w, load_own(from + p * t->step));
            continue;
        }
        int32_t k = 0;
        for (; k + QUADS <= t->quads; k += QUADS, from += 4 * QUADS, weights += QUADS * t->next)
            add_shared(pixels, QUADS, t, from, weights, s);
        if (QUADS == 1) continue;
        for (; k < t->quads; k++, from += 4, weights += t->next)
            add_shared(pixels, 1, t, from, weights, s);
    }
    numbers m, a;
    memcpy(&m, t->multiplier, sizeof(m));
    memcpy(&a, t->addend, sizeof(a));
#pragma GCC unroll 6
    for (int p = 0; p < pixels; p++) {
        sums steps;
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++)
            steps.part[i] =
                nearest(__builtin_convertvector(s[p].part[i], floats) * m.part[i] + a.part[i]);
        store(out + p * t->out_step, narrowed(steps.part, g), t->channels);
    }
}

INLINE void compute_row(const bool own, const slice *t, const uint8_t *in, uint8_t *out,
                        int32_t pixels, const grid *g) {
    for (; pixels >= PIXELS; pixels -= PIXELS, in += PIXELS * t->step, out += PIXELS * t->out_step)
        compute(PIXELS, own, t, in, out, g);
    switch (pixels) {
    case 1: compute(1, own, t, in, out, g); break;
    case 2: compute(2, own, t, in, out, g); break;
    case 3: compute(3, own, t, in, out, g); break;
#if PIXELS > 4
    case 4: compute(4, own, t, in, out, g); break;
#endif
#if PIXELS > 5
    case 5: compute(5, own, t, in, out, g); break;
#endif
    default: break;
    }
}

KERNEL void dense(const dense_tile *tile, const uint8_t *in, uint8_t *out, int32_t pixels,
                  const qz_node *node) {
    const grid g = grid_of(node);
    for (int32_t v = 0; 16 * v < tile->channels; v++) {
        const slice t = {tile->runs,
                         tile->quads,
                         tile->offsets,
                         tile->step,
                         tile->out_step,
                         tile->weights + 64 * v,
                         64 * tile->vectors,
                         tile->start + 16 * v,
                         tile->multiplier + 16 * v,
                         tile->addend + 16 * v,
                         tile->channels - 16 * v};
        compute_row(false, &t, in, out + 16 * v, pixels, &g);
    }
}

KERNEL void depthwise(const depthwise_tile *tile, const uint8_t *strip, uint8_t *out,
                      int32_t pixels, const qz_node *node) {
    const grid g = grid_of(node);
    for (int32_t v = 0; 16 * v < tile->channels; v++) {
        const slice t = {tile->count,
                         1,
                         tile->offsets,
                         64,
                         tile->out_step,
                         tile->weights + 64 * v,
                         256,
                         tile->start + 16 * v,
                         tile->multiplier + 16 * v,
                         tile->addend + 16 * v,
                         tile->channels - 16 * v};
        compute_row(true, &t, strip + v * tile->vector, out + 16 * v, pixels, &g);
    }
}

KERNEL void interleave(const uint8_t *const rows[4], ptrdiff_t step, int32_t columns,
                       int32_t channels, int32_t width, ptrdiff_t vector, uint8_t *strip) {
    (void)width;
    for (int32_t c = 0; c < channels; c += 16, strip += vector)
        for (int32_t x = 0; x < columns; x++) {
            const ptrdiff_t at = x * step + c;
            zip_rows(load(rows[0] + at, channels - c), load(rows[1] + at, channels - c),
                     load(rows[2] + at, channels - c), load(rows[3] + at, channels - c),
                     strip + 64 * x);
        }
}

/* ---- Rows ---- */

/* Bytes less their zero point. */
INLINE numbers less(bytes x, float zero) {
    ints wide[PARTS];
    numbers result;
    widened(x, wide);
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; i++)
        result.part[i] = __builtin_convertvector(wide[i], floats) - zero;
    return result;
}

/* Steps to bytes. Bounds are whole numbers, so that they may come before the rounding. */
INLINE bytes rounded(const numbers *steps, const grid *g) {
    ints whole[PARTS];
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; i++) whole[i] = nearest(within(steps->part[i], g));
    return narrowed(whole, g);
}

/* Goes through the bytes of a span, so many of each input at a time: those from `i` on, of which
 * there are `left`. */
#define EACH(s, step)                                                                              \
    const uint8_t *a = (s)->a, *b = (s)->b;                                                        \
    uint8_t *out = (s)->out;                                                                       \
    for (int64_t p = 0; p < (s)->pixels;                                                           \
         p++, a += (s)->a_step, b += (s)->b_step, out += (s)->out_step)                            \
        for (int64_t i = 0, left = (s)->count; left > 0; i += (step), left -= (step))

KERNEL void rescale(const span *s, const qz_node *source, float multiplier, const qz_node *node) {
    const grid g = grid_of(node);
    const float zero = (float)source->zero_point;
    EACH(s, 16) {
        numbers x = less(load(a + i, left), zero);
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) x.part[j] *= multiplier;
        store(out + i, rounded(&x, &g), left);
    }
    (void)b;
}

KERNEL void add(const span *s, const qz_node *const *sources, const float *multiplier,
                const qz_node *node) {
    const grid g = grid_of(node);
    const float zero_a = (float)sources[0]->zero_point, zero_b = (float)sources[1]->zero_point;
    const float times_a = multiplier[0], times_b = multiplier[1];
    EACH(s, 16) {
        numbers x = less(load(a + i, left), zero_a);
        const numbers y = less(load(b + i, left), zero_b);
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) x.part[j] = x.part[j] * times_a + y.part[j] * times_b;
        store(out + i, rounded(&x, &g), left);
    }
}

/* Products of two bytes are exact as floats, too. */
KERNEL void multiply(const span *s, const qz_node *const *sources, float multiplier,
                     const qz_node *node) {
    const grid g = grid_of(node);
    const float zero_a = (float)sources[0]->zero_point, zero_b = (float)sources[1]->zero_point;
    EACH(s, 16) {
        numbers x = less(load(a + i, left), zero_a);
        const numbers y = less(load(b + i, left), zero_b);
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) x.part[j] = x.part[j] * y.part[j] * multiplier;
        store(out + i, rounded(&x, &g), left);
    }
}

KERNEL void keep(const span *s, const qz_node *node) {
    const grid g = grid_of(node);
    EACH(s, 16) { store(out + i, kept(load(a + i, left), &g), left); }
    (void)b;
}

/* Writes 16 bytes of each of two inputs in turn. */
INLINE void store_in_turn(uint8_t *to, bytes x, bytes y, int64_t left) {
    bytes both[2];
    zip(x, y, both);
    store(to, both[0], 2 * left);
    if (left > 8) store(to + 16, both[1], 2 * left - 16);
}

KERNEL void alternate(const span *s, const qz_node *node) {
    const grid g = grid_of(node);
    EACH(s, 16) {
        store_in_turn(out + 2 * i, kept(load(a + i, left), &g), kept(load(b + i, left), &g), left);
    }
}

KERNEL void table(const span *s, const uint8_t *table) {
    EACH(s, 32) {
        const int64_t more = left > 16 ? left - 16 : 0;
        bytes x = load(a + i, left), y = load(a + i + 16, more);
        look_up(&x, table, &y, table);
        store(out + i, x, left);
        store(out + i + 16, y, more);
    }
    (void)b;
}

KERNEL void alternate_tables(const span *s, const uint8_t *table_a, const uint8_t *table_b) {
    EACH(s, 16) {
        bytes x = load(a + i, left), y = load(b + i, left);
        look_up(&x, table_a, &y, table_b);
        store_in_turn(out + 2 * i, x, y, left);
    }
}

KERNEL void quantize(const float *in, int64_t count, int32_t channels, ptrdiff_t plane,
                     float per_step, const qz_node *node, uint8_t *out) {
    const grid g = grid_of(node);
    for (int64_t i = 0; i < count; i += 16) {
        const int64_t now = count - i < 16 ? count - i : 16;
        for (int32_t c = 0; c < channels; c++) {
            numbers x = {0};
            if (now == 16)
                memcpy(&x, in + c * plane + i, sizeof(x));
            else
                memcpy(&x, in + c * plane + i, (size_t)now * sizeof(float));
#pragma GCC unroll 4
            for (int j = 0; j < PARTS; j++) x.part[j] *= per_step;
            const bytes y = rounded(&x, &g);
            if (channels == 1) {
                store(out + i, y, now);
                continue;
            }
            uint8_t one[16];
            memcpy(one, &y, 16);
            for (int64_t j = 0; j < now; j++) out[(i + j) * channels + c] = one[j];
        }
    }
}

KERNEL void most(const span *s, const uint8_t *const *taps, int32_t tap_count,
                 const qz_node *node) {
    const grid g = grid_of(node);
    for (int64_t p = 0; p < s->pixels; p++)
        for (int64_t i = 0, left = s->count; left > 0; i += 16, left -= 16) {
            bytes x = {0};
            for (int32_t k = 0; k < tap_count; k++)
                x = larger(x, load(taps[k] + p * s->a_step + i, left));
            store(s->out + p * s->out_step + i, kept(x, &g), left);
        }
}

KERNEL void average(const uint8_t *const *taps, int32_t tap_count, int64_t count,
                    int32_t zero_point, float multiplier, const qz_node *node, uint8_t *out) {
    const grid g = grid_of(node);
    for (int64_t i = 0; i < count; i += 16) {
        sums s = {0};
        for (int32_t k = 0; k < tap_count; k++) {
            ints wide[PARTS];
            widened(load(taps[k] + i, count - i), wide);
#pragma GCC unroll 4
            for (int j = 0; j < PARTS; j++) s.part[j] += wide[j];
        }
        numbers x;
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++)
            x.part[j] =
                __builtin_convertvector(s.part[j] - zero_point * tap_count, floats) * multiplier;
        store(out + i, rounded(&x, &g), count - i);
    }
}

KERNEL void sum_reals(const float *weights, const double *values, int64_t count, int64_t step,
                      int32_t lanes, double *sums) {
    qz_sum_reals(weights, values, count, step, lanes, sums);
}

static const qz_kernels kernels = {
    .name = NAME,
    .interleaved = false,
    .narrow = false,
    .shift = SHIFT,
    .dense = dense,
    .interleave = interleave,
    .depthwise = depthwise,
    .sum_reals = sum_reals,
    .rescale = rescale,
    .add = add,
    .multiply = multiply,
    .quantize = quantize,
    .keep = keep,
    .most = most,
    .average = average,
    .alternate = alternate,
    .table = table,
    .alternate_tables = alternate_tables,
};
