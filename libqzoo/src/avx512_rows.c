/* By AVX-512: what goes over the bytes of a tensor one after the other. Each function gives what
 * its namesake in plain.c gives.
 */
#include "avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define WITH_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define WITH_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")))
#define INLINE static inline __attribute__((always_inline)) WITH_AVX512

typedef struct {
    __m512 high;  /* in steps, less the zero point: what is above could not become an integer */
    __m512i zero; /* the zero point, 32 times 16 bits */
    __m512i least, most;
} ends;

INLINE ends ends_of(const qz_node *node) {
    ends e;
    e.high = _mm512_set1_ps((float)(node->high - node->zero_point));
    e.zero = _mm512_set1_epi16((short)node->zero_point);
    e.least = _mm512_set1_epi8((char)node->low);
    e.most = _mm512_set1_epi8((char)node->high);
    return e;
}

INLINE __mmask64 first64(int64_t count) {
    return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1;
}

/* Bytes that were packed from four vectors of 16 numbers, brought into their order. */
INLINE __m512i in_order(__m512i bytes) {
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}

/* Rounds half to even. A step that is too small for an integer becomes the smallest one, as it
 * should; one that is too large would as well. */
INLINE __m512i whole(__m512 steps, const ends *e) {
    return _mm512_cvtps_epi32(_mm512_min_ps(steps, e->high));
}

/* 64 whole steps to bytes, in the order in which `spread` has brought them. */
INLINE __m512i bytes_of(const __m512i steps[4], const ends *e) {
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(steps[0], steps[1]), e->zero);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(steps[2], steps[3]), e->zero);
    const __m512i bytes = _mm512_packus_epi16(first, second);
    return _mm512_max_epu8(_mm512_min_epu8(bytes, e->most), e->least);
}

/* 64 bytes to four vectors of 32 bits; instructions that pack undo the order. */
INLINE void spread(__m512i bytes, __m512i parts[4]) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi8(bytes, none), high = _mm512_unpackhi_epi8(bytes, none);
    parts[0] = _mm512_unpacklo_epi16(low, none);
    parts[1] = _mm512_unpackhi_epi16(low, none);
    parts[2] = _mm512_unpacklo_epi16(high, none);
    parts[3] = _mm512_unpackhi_epi16(high, none);
}

/* Bytes less their zero point, times a number. */
INLINE __m512 scaled(__m512i part, __m512i zero, __m512 by) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(part, zero)), by);
}

/* Goes through the bytes of a span, 64 at a time: x and y are those of its inputs. */
#define EACH(s)                                                                                    \
    const uint8_t *a = (s)->a, *b = (s)->b;                                                        \
    uint8_t *out = (s)->out;                                                                       \
    for (int64_t p = 0; p < (s)->pixels;                                                           \
         p++, a += (s)->a_step, b += (s)->b_step, out += (s)->out_step)                            \
        for (int64_t i = 0; i < (s)->count; i += 64)
#define BYTES(from) _mm512_maskz_loadu_epi8(mask, (from) + i)

WITH_AVX512 void qz_rescale_avx512(const span *s, const qz_node *source, float multiplier,
                                   const qz_node *node) {
    const ends e = ends_of(node);
    const __m512i zero = _mm512_set1_epi32(source->zero_point);
    const __m512 m = _mm512_set1_ps(multiplier);
    EACH(s) {
        const __mmask64 mask = first64(s->count - i);
        const __m512i x = BYTES(a);
        __m512i steps[4];
        spread(x, steps);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) steps[q] = whole(scaled(steps[q], zero, m), &e);
        _mm512_mask_storeu_epi8(out + i, mask, bytes_of(steps, &e));
    }
    (void)b;
}

WITH_AVX512 void qz_add_avx512(const span *s, const qz_node *const *sources,
                               const float *multiplier, const qz_node *node) {
    const ends e = ends_of(node);
    const __m512i zero_a = _mm512_set1_epi32(sources[0]->zero_point);
    const __m512i zero_b = _mm512_set1_epi32(sources[1]->zero_point);
    const __m512 m = _mm512_set1_ps(multiplier[0]), k = _mm512_set1_ps(multiplier[1]);
    EACH(s) {
        const __mmask64 mask = first64(s->count - i);
        const __m512i x = BYTES(a), y = BYTES(b);
        __m512i steps[4], others[4];
        spread(x, steps);
        spread(y, others);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
            steps[q] =
                whole(_mm512_add_ps(scaled(steps[q], zero_a, m), scaled(others[q], zero_b, k)), &e);
        _mm512_mask_storeu_epi8(out + i, mask, bytes_of(steps, &e));
    }
}

WITH_AVX512 void qz_multiply_avx512(const span *s, const qz_node *const *sources, float multiplier,
                                    const qz_node *node) {
    const ends e = ends_of(node);
    const __m512i zero_a = _mm512_set1_epi16((short)sources[0]->zero_point);
    const __m512i zero_b = _mm512_set1_epi16((short)sources[1]->zero_point);
    const __m512i none = _mm512_setzero_si512();
    const __m512 m = _mm512_set1_ps(multiplier);
    EACH(s) {
        const __mmask64 mask = first64(s->count - i);
        const __m512i x = BYTES(a), y = BYTES(b);
        __m512i steps[4];
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) { /* products as lower and upper 16 bits */
            const __m512i p = _mm512_sub_epi16(
                h ? _mm512_unpackhi_epi8(x, none) : _mm512_unpacklo_epi8(x, none), zero_a);
            const __m512i q = _mm512_sub_epi16(
                h ? _mm512_unpackhi_epi8(y, none) : _mm512_unpacklo_epi8(y, none), zero_b);
            const __m512i low = _mm512_mullo_epi16(p, q), high = _mm512_mulhi_epi16(p, q);
            steps[2 * h] = _mm512_unpacklo_epi16(low, high);
            steps[2 * h + 1] = _mm512_unpackhi_epi16(low, high);
        }
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
            steps[q] = whole(_mm512_mul_ps(_mm512_cvtepi32_ps(steps[q]), m), &e);
        _mm512_mask_storeu_epi8(out + i, mask, bytes_of(steps, &e));
    }
}

/* 64 real numbers to bytes. */
INLINE __m512i quantized(const float *in, int64_t count, __m512 per_step, __m512 low,
                         const ends *e) {
    const __mmask64 mask = first64(count);
    __m512i steps[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        const __m512 x = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16 * q), in + 16 * q);
        steps[q] = whole(_mm512_max_ps(_mm512_mul_ps(x, per_step), low), e);
    }
    return in_order(bytes_of(steps, e));
}

WITH_AVX512 void qz_quantize_avx512(const float *in, int64_t count, int32_t channels,
                                    ptrdiff_t plane, float per_step, const qz_node *node,
                                    uint8_t *out) {
    const ends e = ends_of(node);
    const __m512 m = _mm512_set1_ps(per_step);
    const __m512 low = _mm512_set1_ps((float)(node->low - node->zero_point));
    uint8_t bytes[64];
    for (int32_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < count; i += 64) {
            const int64_t now = count - i < 64 ? count - i : 64;
            const __m512i x = quantized(in + c * plane + i, now, m, low, &e);
            if (channels == 1) {
                _mm512_mask_storeu_epi8(out + i, first64(now), x);
                continue;
            }
            _mm512_storeu_si512(bytes, x);
            for (int64_t k = 0; k < now; k++) out[(i + k) * channels + c] = bytes[k];
        }
}

WITH_AVX512 void qz_keep_avx512(const span *s, const qz_node *node) {
    const __m512i low = _mm512_set1_epi8((char)node->low),
                  high = _mm512_set1_epi8((char)node->high);
    EACH(s) {
        const __mmask64 mask = first64(s->count - i);
        const __m512i x = BYTES(a);
        _mm512_mask_storeu_epi8(out + i, mask, _mm512_max_epu8(_mm512_min_epu8(x, high), low));
    }
    (void)b;
}

WITH_AVX512 void qz_most_avx512(const span *s, const uint8_t *const *taps, int32_t tap_count,
                                const qz_node *node) {
    const __m512i low = _mm512_set1_epi8((char)node->low),
                  high = _mm512_set1_epi8((char)node->high);
    uint8_t *out = s->out;
    for (int64_t p = 0; p < s->pixels; p++, out += s->out_step)
        for (int64_t i = 0; i < s->count; i += 64) {
            const __mmask64 mask = first64(s->count - i);
            __m512i most = low;
            for (int32_t k = 0; k < tap_count; k++)
                most = _mm512_max_epu8(most,
                                       _mm512_maskz_loadu_epi8(mask, taps[k] + p * s->a_step + i));
            _mm512_mask_storeu_epi8(out + i, mask, _mm512_min_epu8(most, high));
        }
}

WITH_AVX512 void qz_sum_reals_avx512(const float *weights, const double *values, int64_t count,
                                     int64_t step, int32_t lanes, double *sums) {
    qz_sum_reals(weights, values, count, step, lanes, sums);
}

/* Bytes whose sum fits into 16 bits. */
#define FEW 256

WITH_AVX512 void qz_average_avx512(const uint8_t *const *taps, int32_t tap_count, int64_t count,
                                   int32_t zero_point, float multiplier, const qz_node *node,
                                   uint8_t *out) {
    const ends e = ends_of(node);
    const __m512 m = _mm512_set1_ps(multiplier);
    const __m512i zeros = _mm512_set1_epi32(zero_point * tap_count);
    const __m512i none = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 64) {
        const __mmask64 mask = first64(count - i);
        __m512i sums[4] = {none, none, none, none};
        for (int32_t first = 0; first < tap_count; first += FEW) {
            const int32_t end = tap_count - first < FEW ? tap_count : first + FEW;
            __m512i low = none, high = none;
            for (int32_t k = first; k < end; k++) {
                const __m512i x = _mm512_maskz_loadu_epi8(mask, taps[k] + i);
                low = _mm512_add_epi16(low, _mm512_unpacklo_epi8(x, none));
                high = _mm512_add_epi16(high, _mm512_unpackhi_epi8(x, none));
            }
            sums[0] = _mm512_add_epi32(sums[0], _mm512_unpacklo_epi16(low, none));
            sums[1] = _mm512_add_epi32(sums[1], _mm512_unpackhi_epi16(low, none));
            sums[2] = _mm512_add_epi32(sums[2], _mm512_unpacklo_epi16(high, none));
            sums[3] = _mm512_add_epi32(sums[3], _mm512_unpackhi_epi16(high, none));
        }
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
            sums[q] =
                whole(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[q], zeros)), m), &e);
        _mm512_mask_storeu_epi8(out + i, mask, bytes_of(sums, &e));
    }
}

/* Goes through a span, 32 bytes of each input at a time, spread to 16 bits. */
#define EACH_PAIR(s)                                                                               \
    const uint8_t *a = (s)->a, *b = (s)->b;                                                        \
    uint8_t *out = (s)->out;                                                                       \
    for (int64_t p = 0; p < (s)->pixels;                                                           \
         p++, a += (s)->a_step, b += (s)->b_step, out += (s)->out_step)                            \
        for (int64_t i = 0; i < (s)->count; i += 32)
#define SPREAD(from)                                                                               \
    _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8((__mmask32)first64((s)->count - i), (from) + i))

WITH_AVX512 void qz_alternate_avx512(const span *s, const qz_node *node) {
    const __m512i low = _mm512_set1_epi8((char)node->low),
                  high = _mm512_set1_epi8((char)node->high);
    EACH_PAIR(s) {
        const __m512i both = _mm512_or_si512(SPREAD(a), _mm512_slli_epi16(SPREAD(b), 8));
        _mm512_mask_storeu_epi8(out + 2 * i, first64(2 * (s->count - i)),
                                _mm512_max_epu8(_mm512_min_epu8(both, high), low));
    }
}

/* With VBMI, 256 entries are four registers: two look-ups of 128 entries each, chosen by the
 * highest bit. */
typedef struct {
    __m512i part[4];
} lookup;

#define INLINE_VBMI static inline __attribute__((always_inline)) WITH_VBMI

INLINE_VBMI lookup lookup_of(const uint8_t *table) {
    lookup l;
    for (int i = 0; i < 4; i++) l.part[i] = _mm512_loadu_si512(table + 64 * i);
    return l;
}

INLINE_VBMI __m512i look_up(const lookup *l, __m512i x) {
    const __m512i low = _mm512_permutex2var_epi8(l->part[0], x, l->part[1]);
    const __m512i high = _mm512_permutex2var_epi8(l->part[2], x, l->part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
}

WITH_VBMI void qz_table_vbmi(const span *s, const uint8_t *table) {
    const lookup l = lookup_of(table);
    EACH(s) {
        const __mmask64 mask = first64(s->count - i);
        _mm512_mask_storeu_epi8(out + i, mask, look_up(&l, BYTES(a)));
    }
    (void)b;
}

WITH_VBMI void qz_alternate_vbmi(const span *s, const uint8_t *table_a, const uint8_t *table_b) {
    const lookup la = lookup_of(table_a), lb = lookup_of(table_b);
    EACH_PAIR(s) {
        const __m512i both = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, look_up(&la, SPREAD(a)),
                                                    look_up(&lb, _mm512_slli_epi16(SPREAD(b), 8)));
        _mm512_mask_storeu_epi8(out + 2 * i, first64(2 * (s->count - i)), both);
    }
}

/* Where 64 bytes of three channels in turn begin: byte i of part p belongs to channel
 * (64 p + i) % 3 of pixel (64 p + i) / 3. */
typedef struct {
    uint8_t pixel[3][64];
    uint64_t channel[3][3]; /* [part][channel]: a bit for each byte */
} turns;

static void take_turns(turns *t) {
    memset(t, 0, sizeof(*t));
    for (int p = 0; p < 3; p++)
        for (int i = 0; i < 64; i++) {
            const int at = 64 * p + i;
            t->pixel[p][i] = (uint8_t)(at / 3);
            t->channel[p][at % 3] |= (uint64_t)1 << i;
        }
}

WITH_VBMI void qz_quantize_vbmi(const float *in, int64_t count, int32_t channels, ptrdiff_t plane,
                                float per_step, const qz_node *node, uint8_t *out) {
    if (channels != 3) {
        qz_quantize_avx512(in, count, channels, plane, per_step, node, out);
        return;
    }
    const ends e = ends_of(node);
    const __m512 m = _mm512_set1_ps(per_step);
    const __m512 low = _mm512_set1_ps((float)(node->low - node->zero_point));
    turns t;
    take_turns(&t);
    for (int64_t i = 0; i < count; i += 64) {
        const int64_t now = count - i < 64 ? count - i : 64;
        __m512i c[3];
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++) c[k] = quantized(in + k * plane + i, now, m, low, &e);
#pragma GCC unroll 3
        for (int p = 0; p < 3; p++) {
            const __m512i order = _mm512_loadu_si512(t.pixel[p]);
            __m512i bytes = _mm512_permutexvar_epi8(order, c[0]);
            bytes = _mm512_mask_permutexvar_epi8(bytes, t.channel[p][1], order, c[1]);
            bytes = _mm512_mask_permutexvar_epi8(bytes, t.channel[p][2], order, c[2]);
            const int64_t left = 3 * now - 64 * p;
            if (left > 0) _mm512_mask_storeu_epi8(out + 3 * i + 64 * p, first64(left), bytes);
        }
    }
}

WITH_VBMI void qz_three_tables_vbmi(const uint8_t *in, int64_t count, const uint8_t *tables,
                                    uint8_t *out) {
    const lookup l[3] = {lookup_of(tables), lookup_of(tables + 256), lookup_of(tables + 512)};
    turns t;
    take_turns(&t);
    for (int64_t i = 0; i < 3 * count; i += 192)
#pragma GCC unroll 3
        for (int p = 0; p < 3; p++) {
            const int64_t left = 3 * count - i - 64 * p;
            if (left <= 0) break;
            const __m512i x = _mm512_maskz_loadu_epi8(first64(left), in + i + 64 * p);
            __m512i bytes = look_up(&l[0], x);
            bytes = _mm512_mask_blend_epi8(t.channel[p][1], bytes, look_up(&l[1], x));
            bytes = _mm512_mask_blend_epi8(t.channel[p][2], bytes, look_up(&l[2], x));
            _mm512_mask_storeu_epi8(out + i + 64 * p, first64(left), bytes);
        }
}

#endif
