/* What the two files of AVX-512 kernels share. */
#ifndef QZ_AVX512_H
#define QZ_AVX512_H

#include "kernels.h"

void qz_rescale_avx512(const span *span, const qz_node *source, float multiplier,
                       const qz_node *node);
void qz_add_avx512(const span *span, const qz_node *const *sources, const float *multiplier,
                   const qz_node *node);
void qz_multiply_avx512(const span *span, const qz_node *const *sources, float multiplier,
                        const qz_node *node);
void qz_keep_avx512(const span *span, const qz_node *node);
void qz_alternate_avx512(const span *span, const qz_node *node);
void qz_quantize_avx512(const float *in, int64_t count, int32_t channels, ptrdiff_t plane,
                        float per_step, const qz_node *node, uint8_t *out);
void qz_most_avx512(const span *span, const uint8_t *const *taps, int32_t tap_count,
                    const qz_node *node);
void qz_average_avx512(const uint8_t *const *taps, int32_t tap_count, int64_t count,
                       int32_t zero_point, float multiplier, const qz_node *node, uint8_t *out);
void qz_sum_reals_avx512(const float *weights, const double *values, int64_t count, int64_t step,
                         int32_t lanes, double *sums);
/* With VBMI besides. */
void qz_quantize_vbmi(const float *in, int64_t count, int32_t channels, ptrdiff_t plane,
                      float per_step, const qz_node *node, uint8_t *out);
void qz_table_vbmi(const span *span, const uint8_t *table);
void qz_alternate_vbmi(const span *span, const uint8_t *table_a, const uint8_t *table_b);
void qz_three_tables_vbmi(const uint8_t *in, int64_t count, const uint8_t *tables, uint8_t *out);

#endif
