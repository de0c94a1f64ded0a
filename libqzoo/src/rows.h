/* Functions on rows of bytes that lie side by side, for processors with AVX-512. */
#ifndef QZ_ROWS_H
#define QZ_ROWS_H

#include "internal.h"

void qz_rescale_row(const uint8_t *in, int64_t count, const qz_node *source, float multiplier,
                    const qz_node *node, uint8_t *out);
void qz_add_row(const uint8_t *a, const uint8_t *b, int64_t count, const qz_node *const *sources,
                const float *multiplier, const qz_node *node, uint8_t *out);
void qz_multiply_row(const uint8_t *a, const uint8_t *b, int64_t count,
                     const qz_node *const *sources, float multiplier, const qz_node *node,
                     uint8_t *out);
void qz_quantize_row(const float *in, int64_t count, float per_step, const qz_node *node,
                     uint8_t *out);
void qz_keep_row(const uint8_t *in, int64_t count, const qz_node *node, uint8_t *out);
void qz_max_row(const uint8_t *const *taps, int32_t tap_count, int64_t count, const qz_node *node,
                uint8_t *out);
/* multiplier: of the sum of the taps less their zero points. */
void qz_average_row(const uint8_t *const *taps, int32_t tap_count, int64_t count,
                    int32_t zero_point, float multiplier, const qz_node *node, uint8_t *out);
/* Two halves of channels, one of each in turn: a channel shuffle of two groups. */
void qz_interleave_row(const uint8_t *a, const uint8_t *b, int64_t each, const qz_node *node,
                       uint8_t *out);
void qz_table_row(const uint8_t *in, int64_t count, const uint8_t *table, uint8_t *out);

#endif
