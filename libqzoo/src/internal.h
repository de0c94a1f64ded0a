/* What the files of libqzoo share. */
#ifndef QZ_INTERNAL_H
#define QZ_INTERNAL_H

#define QZ_BUILD
#include "../include/qzoo.h"

#include <math.h>
#include <stdbool.h>

/* Of one node. */
#define QZ_MAX_INPUTS 64

/* Sizes of one tensor of one image, height and width 1 where it has none. Its rank counts the
 * images too: 2 is [images, c], 3 [images, c, height], 4 [images, c, height, width]. */
typedef struct {
    int32_t rank;
    int32_t c, height, width;
} dims;

/* Where a tensor lies and how far its elements are apart, in elements. */
typedef struct {
    void *data;
    ptrdiff_t channel, row, column;
    dims size;
} view;

/* Whether the integers of a pixel, a row and an image follow one another without gaps. */
static inline bool is_dense(const view *v) {
    return v->channel == 1 && v->column == v->size.c &&
           (v->size.height == 1 || v->row == (ptrdiff_t)v->size.width * v->size.c);
}

/* Rounds float steps half to even, adds the zero point, and keeps within the bounds. */
static inline uint8_t qz_rounded(float steps, const qz_node *node) {
    const float low = (float)(node->low - node->zero_point);
    const float high = (float)(node->high - node->zero_point);
    float whole = nearbyintf(steps); /* to even, as processors do unless told otherwise */
    whole = whole < low ? low : whole > high ? high : whole;
    return (uint8_t)((int32_t)whole + node->zero_point);
}

/* Which part of a node's output a thread computes: number `index` of `count`. */
typedef struct {
    int32_t index, count;
} part;

/* Where the share of a part begins in so many units; the next part's beginning is its end. */
static inline int64_t share(int64_t units, part of) { return units * of.index / of.count; }
static inline int64_t share_end(int64_t units, part of) {
    return units * (of.index + 1) / of.count;
}

/* A checked node with numbers of its own. */
typedef struct {
    qz_node node; /* its pointers lead into the model's memory */
    int32_t *inputs;
    bool real;           /* whether its output is float */
    int16_t *weight;     /* less its zero points, [O][kH][kW][I / groups] */
    float *float_weight; /* in the same order */
    float *multiplier;   /* of each sum: [O], or of each input: [input_count] */
    float *addend;       /* [O], or NULL: the bias in steps of the output */
    float *affine;       /* gains, then offsets */
    struct fast *fast;   /* weights for fast kernels; NULL where plain C computes */
    uint8_t *tables;     /* of table: [256]; of concat: what becomes of each input's bytes */
} step;

struct qz_model {
    const struct qz_kernels *kernels; /* NULL: plain C */
    int32_t count, channels;
    step *steps;
    size_t memory;
};

/* Returns zeroed memory that counts as the model's; NULL where there is none. */
void *qz_allocate(qz_model *model, size_t count, size_t size);

/* Writes a message and returns the status. */
qz_status qz_fail(char *message, qz_status status, const char *format, ...);

/* Writes the size of a node's output; `sizes` holds those of the nodes before it. */
qz_status qz_output_size(const qz_model *model, int32_t number, const dims *sizes, dims images,
                         dims *output, char *message);

/* Computes a part of one node's output; scratch is memory of the thread's own. */
void qz_compute(const step *step, const view *inputs, const view *output, const qz_model *model,
                part part, uint8_t *scratch);

void qz_free_fast(struct fast *fast);

/* Returns the grid of what an input gives, or NULL for real numbers. */
const qz_node *qz_grid_of(const qz_model *model, int32_t input);

#endif
