/* By AVX-512: what goes over the bytes of a tensor one after the other. Each function does what its
 * namesake in plain.c does, for one image, and says whether it could.
 */
#include "rows.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define WITH_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define INLINE static inline __attribute__((always_inline)) WITH_AVX512

typedef struct {
    __m512 low, high; /* in steps, less the zero point */
    __m512i zero;
} ends;

INLINE ends ends_of(const qz_node *node) {
    ends e;
    e.low = _mm512_set1_ps((float)(node->low - node->zero_point));
    e.high = _mm512_set1_ps((float)(node->high - node->zero_point));
    e.zero = _mm512_set1_epi32(node->zero_point);
    return e;
}

INLINE __mmask16 first16(int64_t count) {
    return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

INLINE __mmask64 first64(int64_t count) {
    return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1;
}

/* 16 steps to bytes; rounds first, as plain C does, so that bounds are whole numbers. */
INLINE __m128i rounded(__m512 steps, const ends *e) {
    __m512 whole = _mm512_roundscale_ps(steps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    whole = _mm512_min_ps(_mm512_max_ps(whole, e->low), e->high);
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(whole), e->zero));
}

/* 16 bytes less their zero point. */
INLINE __m512i signed16(const uint8_t *from, __mmask16 mask, __m512i zero) {
    return _mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from)), zero);
}

WITH_AVX512 void qz_rescale_row(const uint8_t *in, int64_t count, const qz_node *source,
                                float multiplier, const qz_node *node, uint8_t *out) {
    const ends e = ends_of(node);
    const __m512i zero = _mm512_set1_epi32(source->zero_point);
    const __m512 m = _mm512_set1_ps(multiplier);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        const __m512 steps = _mm512_mul_ps(_mm512_cvtepi32_ps(signed16(in + i, mask, zero)), m);
        _mm_mask_storeu_epi8(out + i, mask, rounded(steps, &e));
    }
}

WITH_AVX512 void qz_add_row(const uint8_t *a, const uint8_t *b, int64_t count,
                            const qz_node *const *sources, const float *multiplier,
                            const qz_node *node, uint8_t *out) {
    const ends e = ends_of(node);
    const __m512i zero_a = _mm512_set1_epi32(sources[0]->zero_point);
    const __m512i zero_b = _mm512_set1_epi32(sources[1]->zero_point);
    const __m512 m = _mm512_set1_ps(multiplier[0]), k = _mm512_set1_ps(multiplier[1]);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(signed16(a + i, mask, zero_a)), m);
        const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(signed16(b + i, mask, zero_b)), k);
        _mm_mask_storeu_epi8(out + i, mask, rounded(_mm512_add_ps(x, y), &e));
    }
}

WITH_AVX512 void qz_multiply_row(const uint8_t *a, const uint8_t *b, int64_t count,
                                 const qz_node *const *sources, float multiplier,
                                 const qz_node *node, uint8_t *out) {
    const ends e = ends_of(node);
    const __m512i zero_a = _mm512_set1_epi32(sources[0]->zero_point);
    const __m512i zero_b = _mm512_set1_epi32(sources[1]->zero_point);
    const __m512 m = _mm512_set1_ps(multiplier);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        const __m512i product =
            _mm512_mullo_epi32(signed16(a + i, mask, zero_a), signed16(b + i, mask, zero_b));
        _mm_mask_storeu_epi8(out + i, mask,
                             rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(product), m), &e));
    }
}

WITH_AVX512 void qz_quantize_row(const float *in, int64_t count, float per_step,
                                 const qz_node *node, uint8_t *out) {
    const ends e = ends_of(node);
    const __m512 m = _mm512_set1_ps(per_step);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        const __m512 steps = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, in + i), m);
        _mm_mask_storeu_epi8(out + i, mask, rounded(steps, &e));
    }
}

WITH_AVX512 void qz_keep_row(const uint8_t *in, int64_t count, const qz_node *node, uint8_t *out) {
    if (node->low == 0 && node->high == 255) {
        memcpy(out, in, (size_t)count);
        return;
    }
    const __m512i low = _mm512_set1_epi8((char)node->low),
                  high = _mm512_set1_epi8((char)node->high);
    for (int64_t i = 0; i < count; i += 64) {
        const __mmask64 mask = first64(count - i);
        const __m512i x = _mm512_maskz_loadu_epi8(mask, in + i);
        _mm512_mask_storeu_epi8(out + i, mask, _mm512_max_epu8(_mm512_min_epu8(x, high), low));
    }
}

WITH_AVX512 void qz_max_row(const uint8_t *const *taps, int32_t tap_count, int64_t count,
                            const qz_node *node, uint8_t *out) {
    const __m512i low = _mm512_set1_epi8((char)node->low),
                  high = _mm512_set1_epi8((char)node->high);
    for (int64_t i = 0; i < count; i += 64) {
        const __mmask64 mask = first64(count - i);
        __m512i most = _mm512_setzero_si512();
        for (int32_t k = 0; k < tap_count; k++)
            most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(mask, taps[k] + i));
        _mm512_mask_storeu_epi8(out + i, mask, _mm512_max_epu8(_mm512_min_epu8(most, high), low));
    }
}

WITH_AVX512 void qz_average_row(const uint8_t *const *taps, int32_t tap_count, int64_t count,
                                int32_t zero_point, float multiplier, const qz_node *node,
                                uint8_t *out) {
    const ends e = ends_of(node);
    const __m512 m = _mm512_set1_ps(multiplier);
    const __m512i zeros = _mm512_set1_epi32(zero_point * tap_count);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        __m512i sum = _mm512_setzero_si512();
        for (int32_t k = 0; k < tap_count; k++)
            sum = _mm512_add_epi32(sum,
                                   _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, taps[k] + i)));
        const __m512 steps = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, zeros)), m);
        _mm_mask_storeu_epi8(out + i, mask, rounded(steps, &e));
    }
}

WITH_AVX512 void qz_interleave_row(const uint8_t *a, const uint8_t *b, int64_t each,
                                   const qz_node *node, uint8_t *out) {
    const __m256i low = _mm256_set1_epi8((char)node->low),
                  high = _mm256_set1_epi8((char)node->high);
    int64_t i = 0;
    for (; i + 16 <= each; i += 16) {
        const __m128i x = _mm_loadu_si128((const __m128i *)(a + i));
        const __m128i y = _mm_loadu_si128((const __m128i *)(b + i));
        const __m256i both = _mm256_set_m128i(_mm_unpackhi_epi8(x, y), _mm_unpacklo_epi8(x, y));
        _mm256_storeu_si256((__m256i *)(out + 2 * i),
                            _mm256_max_epu8(_mm256_min_epu8(both, high), low));
    }
    for (; i < each; i++) {
        const uint8_t pair[2] = {a[i], b[i]};
        for (int k = 0; k < 2; k++) {
            const int value = pair[k];
            out[2 * i + k] = (uint8_t)(value < node->low    ? node->low
                                       : value > node->high ? node->high
                                                            : value);
        }
    }
}

/* 256 entries are four registers: two look-ups of 128 entries each, chosen by the highest bit. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi"))) void
qz_table_row(const uint8_t *in, int64_t count, const uint8_t *table, uint8_t *out) {
    const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
    const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
    for (int64_t i = 0; i < count; i += 64) {
        const __mmask64 mask = count - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (count - i)) - 1;
        const __m512i x = _mm512_maskz_loadu_epi8(mask, in + i);
        const __m512i low = _mm512_permutex2var_epi8(t0, x, t1);
        const __m512i high = _mm512_permutex2var_epi8(t2, x, t3);
        const __m512i y = _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
        _mm512_mask_storeu_epi8(out + i, mask, y);
    }
}

#endif
