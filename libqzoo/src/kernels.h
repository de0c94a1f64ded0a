/* What one set of instructions brings: functions that the rest of the library calls through a
 * table. Each gives the integers that plain C gives.
 *
 * Channels of a pixel lie side by side. Dense and depthwise kernels compute up to 64 channels, in
 * vectors of 16 sums. They add up products of four input bytes (quads) and four weights.
 */
#ifndef QZ_KERNELS_H
#define QZ_KERNELS_H

#include "internal.h"

/* Channels that one call of a kernel computes at most. */
#define QZ_WIDTH 64

/* Up to 64 output channels of a dense layer. */
typedef struct {
    int32_t vectors;     /* of 16 channels: 1 to 4 */
    int32_t channels;    /* that there really are */
    int32_t runs, quads; /* runs of neighbouring bytes in the input, and fours of bytes in each */
    const ptrdiff_t *offsets; /* of each run from the first pixel's corner */
    ptrdiff_t step, out_step; /* from one output pixel's bytes to the next */
    const int8_t *weights;    /* [runs][quads][vectors][16][4] */
    const int32_t *start;     /* [vectors][16]: what sums begin with, for the zero point */
    const float *multiplier, *addend;
} dense_tile;

/* Up to 64 channels of a depthwise layer. Its quads are four rows of one column; `depthwise` reads
 * them from a strip that `interleave` has made: [vectors][columns][16][4]. Where there are only
 * `width` = 32 or 16 channels, a vector of 64 bytes holds the quads of 2 or 4 neighbouring columns.
 */
typedef struct {
    int32_t width;            /* 64, 32 or 16 */
    int32_t channels;         /* that there really are: up to width */
    int32_t count;            /* quads that an output needs */
    const ptrdiff_t *offsets; /* [count]: bytes from an output's first quad to each of them */
    ptrdiff_t vector;         /* bytes from one vector of a strip to the next */
    ptrdiff_t out_step;       /* from one output pixel to the next */
    const int8_t *weights;    /* [count][4][16][4] */
    const int32_t *start;     /* [4][16] */
    const float *multiplier, *addend;
} depthwise_tile;

/* `count` bytes of each of `pixels` pixels, from one or two inputs to an output; the steps lead
 * from one pixel's bytes to the next. */
typedef struct {
    int64_t pixels, count;
    const uint8_t *a, *b;
    uint8_t *out;
    ptrdiff_t a_step, b_step, out_step;
} span;

typedef struct qz_kernels {
    const char *name;
    /* Whether vector v of 4 holds channels 16 q + 4 v to 16 q + 4 v + 3 for each quarter q, instead
     * of channels 16 v to 16 v + 15: how some instructions leave bytes behind. */
    bool interleaved;
    bool narrow;   /* whether `interleave` and `depthwise` take the widths 32 and 16 */
    int32_t shift; /* 128 where the instructions want signed inputs: taken off each byte, so that
                    * sums start with as much more; otherwise 0 */
    void (*dense)(const dense_tile *tile, const uint8_t *in, uint8_t *out, int32_t pixels,
                  const qz_node *node);
    /* Brings the bytes of four rows side by side: `columns` pixels, each `step` bytes after the one
     * before in all rows, of which `channels` bytes count. Writes into a strip's four vectors. */
    void (*interleave)(const uint8_t *const rows[4], ptrdiff_t step, int32_t columns,
                       int32_t channels, int32_t width, ptrdiff_t vector, uint8_t *strip);
    void (*depthwise)(const depthwise_tile *tile, const uint8_t *strip, uint8_t *out,
                      int32_t pixels, const qz_node *node);

    /* Sums of real products, in the order of the values, which are as many as `count`: each of
     * `lanes` outputs, 64 at most, has weights `step` numbers apart. */
    void (*sum_reals)(const float *weights, const double *values, int64_t count, int64_t step,
                      int32_t lanes, double *sums);

    /* On spans: */
    void (*rescale)(const span *span, const qz_node *source, float multiplier, const qz_node *node);
    void (*add)(const span *span, const qz_node *const *sources, const float *multiplier,
                const qz_node *node);
    void (*multiply)(const span *span, const qz_node *const *sources, float multiplier,
                     const qz_node *node);
    void (*keep)(const span *span, const qz_node *node);
    /* One byte of a and of b in turn, 2 * count bytes: a channel shuffle of two groups. */
    void (*alternate)(const span *span, const qz_node *node);
    /* By tables of 256 entries; NULL where the instructions cannot. */
    void (*table)(const span *span, const uint8_t *table);
    void (*alternate_tables)(const span *span, const uint8_t *table_a, const uint8_t *table_b);
    /* `count` pixels of three channels, a table for each; NULL where the instructions cannot. */
    void (*three_tables)(const uint8_t *in, int64_t count, const uint8_t *tables, uint8_t *out);

    /* Real numbers of `channels` planes, each `plane` numbers after the one before, to bytes with
     * the channels side by side. */
    void (*quantize)(const float *in, int64_t count, int32_t channels, ptrdiff_t plane,
                     float per_step, const qz_node *node, uint8_t *out);
    /* The greatest of some bytes. taps: those of the first pixel of the span, which has no inputs
     * of its own but their step, a_step. */
    void (*most)(const span *span, const uint8_t *const *taps, int32_t tap_count,
                 const qz_node *node);
    /* multiplier: of the sum of the taps less their zero points. */
    void (*average)(const uint8_t *const *taps, int32_t tap_count, int64_t count,
                    int32_t zero_point, float multiplier, const qz_node *node, uint8_t *out);
} qz_kernels;

/* `sum_reals` for a set of kernels to have compiled with its own instructions. */
static inline __attribute__((always_inline)) void qz_sum_reals(const float *weights,
                                                               const double *values, int64_t count,
                                                               int64_t step, int32_t lanes,
                                                               double *sums) {
    double own[QZ_WIDTH] = {0};
#define QZ_SUM(LANES)                                                                              \
    for (int64_t k = 0; k < count; k++)                                                            \
        for (int32_t i = 0; i < (LANES); i++) own[i] += values[k] * (double)weights[k * step + i];
    /* Of numbers that compilers know, the sums stay in registers. */
    if (lanes == 64) {
        QZ_SUM(64)
    } else if (lanes == 32) {
        QZ_SUM(32)
    } else if (lanes == 16) {
        QZ_SUM(16)
    } else {
        QZ_SUM(lanes)
    }
#undef QZ_SUM
    for (int32_t i = 0; i < lanes; i++) sums[i] = own[i];
}

/* Returns the best kernels that this processor has but `skipped`, or NULL for plain C. */
const qz_kernels *qz_find_kernels(int32_t skipped);

/* Of each file of kernels: NULL where the processor lacks the instructions. */
const qz_kernels *qz_avx512(void);
const qz_kernels *qz_avx_vnni(void);
const qz_kernels *qz_avx2(void);
const qz_kernels *qz_neon_i8mm(void);
const qz_kernels *qz_neon_dot(void);
const qz_kernels *qz_neon(void);

#endif
