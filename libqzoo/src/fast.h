/* Layers with weights in the order in which fast kernels read them. */
#ifndef QZ_FAST_H
#define QZ_FAST_H

#include "internal.h"

/* Up to 64 output channels of a dense layer. */
typedef struct {
    int32_t vectors;     /* of 16 channels: 1 to 4 */
    int32_t channels;    /* that there really are */
    int32_t runs, quads; /* runs of neighbouring bytes in the input, and fours of bytes in each */
    const ptrdiff_t *offsets; /* of each run from the first pixel's corner */
    ptrdiff_t step, out_step; /* from one output pixel's bytes to the next */
    const int8_t *weights;    /* [runs][quads][vectors][16][4] */
    const int32_t *start;     /* [vectors][16]: what the zero point takes from each sum */
    const float *multiplier, *addend;
} dense_tile;

/* Up to 64 channels of a depthwise layer. */
typedef struct {
    int32_t channels;
    int32_t taps; /* a multiple of 4; those too many have weights 0 */
    const ptrdiff_t *offsets;
    ptrdiff_t step, out_step;
    const int8_t *weights; /* [taps / 4][4][16][4] */
    const int32_t *start;
    const float *multiplier, *addend;
} depthwise_tile;

bool qz_has_avx512_vnni(void);
bool qz_has_avx512_vbmi(void);
/* Computes an operation without weights where there is a fast way; says whether there was. */
bool qz_compute_rows(const step *step, const view *in, const view *out,
                     const qz_node *const *sources, const qz_model *model);
void qz_dense_avx512(const dense_tile *tile, const uint8_t *in, uint8_t *out, int32_t pixels,
                     const qz_node *node);
void qz_depthwise_avx512(const depthwise_tile *tile, const uint8_t *in, uint8_t *out,
                         int32_t pixels, const qz_node *node);

/* Packs a layer for fast kernels where there are some for it. */
qz_status qz_pack_fast(qz_model *model, step *step, const qz_node *source, int32_t number,
                       char *message);
/* How many bytes of scratch memory a layer needs for one call. */
size_t qz_fast_scratch(const step *step, const view *in);
/* Computes a packed layer. */
void qz_compute_fast(const step *step, const view *in, const view *out, const qz_node *source,
                     uint8_t *scratch);

#endif
