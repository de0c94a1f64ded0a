/* What the files of libqzoo share. */
#ifndef QZ_INTERNAL_H
#define QZ_INTERNAL_H

#define QZ_BUILD
#include "../include/qzoo.h"

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
    uint8_t table[256];
} step;

struct qz_model {
    bool vnni, vbmi; /* which instructions this processor has */
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

/* Computes one node. */
void qz_compute(const step *step, const view *inputs, const view *output, const qz_model *model);

void qz_free_fast(struct fast *fast);

/* Returns the grid of what an input gives, or NULL for real numbers. */
const qz_node *qz_grid_of(const qz_model *model, int32_t input);

#endif
