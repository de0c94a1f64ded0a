/* Convolutions and linear layers by AVX-512 VNNI: `vpdpbusd` adds four products of a byte of the
 * input and a byte of the weight to each of 16 sums of 32 bits.
 *
 * Sums are exact in any order, so only the rounding at the end must be spelled out as in plain C:
 * one multiplication, one addition, each rounded to float, then to the nearest whole number.
 */
#include "fast.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#define WITH_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) WITH_VNNI

/* Whether the processor has the instructions, and the system keeps the registers. */
bool qz_has_avx512_vnni(void) {
    unsigned a, b, c, d, low, high;
    const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;   /* F, DQ, BW, VL */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0xe6) != 0xe6) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & wanted) == wanted && (c >> 11 & 1);
}

bool qz_has_avx512_vbmi(void) {
    unsigned a, b, c, d;
    return qz_has_avx512_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 1 & 1);
}

typedef struct {
    __m512i zero; /* the zero point, 32 times 16 bits */
    __m512i low, high;
} bounds;

INLINE bounds bounds_of(const qz_node *node) {
    bounds b;
    b.zero = _mm512_set1_epi16((short)node->zero_point);
    b.low = _mm512_set1_epi8((char)node->low);
    b.high = _mm512_set1_epi8((char)node->high);
    return b;
}

/* Sums to whole steps: the same roundings as in plain C. */
INLINE __m512i steps_of(__m512i sums, const float *multiplier, const float *addend) {
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(multiplier));
    return _mm512_cvtps_epi32(_mm512_add_ps(product, _mm512_loadu_ps(addend)));
}

/* Four vectors of steps to 64 bytes; within each 128 bits, vector j holds numbers 4 j to 4 j + 3.
 */
INLINE __m512i bytes_of(__m512i a, __m512i b, __m512i c, __m512i d, const bounds *by) {
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(a, b), by->zero);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(c, d), by->zero);
    const __m512i bytes = _mm512_packus_epi16(first, second);
    return _mm512_max_epu8(_mm512_min_epu8(bytes, by->high), by->low);
}

INLINE __mmask64 first_bytes(int32_t count) {
    return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1;
}

/* PIXELS neighbouring outputs of one row for VECTORS times 16 channels. */
INLINE void tile(const int pixels, const int vectors, const dense_tile *t, const uint8_t *in,
                 uint8_t *out, const bounds *by) {
    __m512i sums[14][4];
    for (int v = 0; v < vectors; v++) {
        const __m512i start = _mm512_loadu_si512(t->start + 16 * v);
#pragma GCC unroll 14
        for (int p = 0; p < pixels; p++) sums[p][v] = start;
    }
    const int8_t *weights = t->weights;
    for (int32_t run = 0; run < t->runs; run++) {
        const uint8_t *from = in + t->offsets[run];
        for (int32_t k = 0; k < t->quads; k++, weights += 64 * vectors, from += 4) {
            __m512i w[4];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) w[v] = _mm512_loadu_si512(weights + 64 * v);
#pragma GCC unroll 14
            for (int p = 0; p < pixels; p++) {
                int32_t four;
                memcpy(&four, from + p * t->step, 4);
                const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    sums[p][v] = _mm512_dpbusd_epi32(sums[p][v], x, w[v]);
            }
        }
    }
#pragma GCC unroll 14
    for (int p = 0; p < pixels; p++) {
        __m512i steps[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            steps[v] = v < vectors
                           ? steps_of(sums[p][v], t->multiplier + 16 * v, t->addend + 16 * v)
                           : _mm512_setzero_si512();
        const __m512i bytes = bytes_of(steps[0], steps[1], steps[2], steps[3], by);
        if (vectors == 4) {
            _mm512_mask_storeu_epi8(out + p * t->out_step, first_bytes(t->channels), bytes);
        } else {
            /* Narrow tiles: vector v holds channels 16 v to 16 v + 15, four in each 128 bits. */
            const __m512i order =
                _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_mask_storeu_epi8(out + p * t->out_step, first_bytes(t->channels),
                                    _mm512_permutexvar_epi32(order, bytes));
        }
    }
}

#define TILES(NAME, MOST, VECTORS)                                                                 \
    WITH_VNNI static void NAME(const dense_tile *t, const uint8_t *in, uint8_t *out,               \
                               int32_t pixels, const qz_node *node) {                              \
        const bounds by = bounds_of(node);                                                         \
        for (; pixels >= MOST; pixels -= MOST, in += MOST * t->step, out += MOST * t->out_step)    \
            tile(MOST, VECTORS, t, in, out, &by);                                                  \
        for (; pixels >= 4; pixels -= 4, in += 4 * t->step, out += 4 * t->out_step)                \
            tile(4, VECTORS, t, in, out, &by);                                                     \
        for (; pixels > 0; pixels--, in += t->step, out += t->out_step)                            \
            tile(1, VECTORS, t, in, out, &by);                                                     \
    }
TILES(wide, 6, 4)
TILES(three, 8, 3)
TILES(two, 12, 2)
TILES(narrow, 14, 1)

void qz_dense_avx512(const dense_tile *tile, const uint8_t *in, uint8_t *out, int32_t pixels,
                     const qz_node *node) {
    switch (tile->vectors) {
    case 4: wide(tile, in, out, pixels, node); break;
    case 3: three(tile, in, out, pixels, node); break;
    case 2: two(tile, in, out, pixels, node); break;
    default: narrow(tile, in, out, pixels, node); break;
    }
}

/* One output pixel of 64 channels: four taps at a time, their bytes brought side by side. */
WITH_VNNI void qz_depthwise_avx512(const depthwise_tile *t, const uint8_t *in, uint8_t *out,
                                   int32_t pixels, const qz_node *node) {
    const bounds by = bounds_of(node);
    const __mmask64 mask = first_bytes(t->channels);
    for (; pixels > 0; pixels--, in += t->step, out += t->out_step) {
        __m512i a = _mm512_loadu_si512(t->start), b = _mm512_loadu_si512(t->start + 16);
        __m512i c = _mm512_loadu_si512(t->start + 32), d = _mm512_loadu_si512(t->start + 48);
        const int8_t *w = t->weights;
        for (int32_t k = 0; k < t->taps; k += 4, w += 256) {
            const __m512i t0 = _mm512_maskz_loadu_epi8(mask, in + t->offsets[k]);
            const __m512i t1 = _mm512_maskz_loadu_epi8(mask, in + t->offsets[k + 1]);
            const __m512i t2 = _mm512_maskz_loadu_epi8(mask, in + t->offsets[k + 2]);
            const __m512i t3 = _mm512_maskz_loadu_epi8(mask, in + t->offsets[k + 3]);
            const __m512i low01 = _mm512_unpacklo_epi8(t0, t1),
                          high01 = _mm512_unpackhi_epi8(t0, t1);
            const __m512i low23 = _mm512_unpacklo_epi8(t2, t3),
                          high23 = _mm512_unpackhi_epi8(t2, t3);
            a = _mm512_dpbusd_epi32(a, _mm512_unpacklo_epi16(low01, low23), _mm512_loadu_si512(w));
            b = _mm512_dpbusd_epi32(b, _mm512_unpackhi_epi16(low01, low23),
                                    _mm512_loadu_si512(w + 64));
            c = _mm512_dpbusd_epi32(c, _mm512_unpacklo_epi16(high01, high23),
                                    _mm512_loadu_si512(w + 128));
            d = _mm512_dpbusd_epi32(d, _mm512_unpackhi_epi16(high01, high23),
                                    _mm512_loadu_si512(w + 192));
        }
        const __m512i bytes = bytes_of(steps_of(a, t->multiplier, t->addend),
                                       steps_of(b, t->multiplier + 16, t->addend + 16),
                                       steps_of(c, t->multiplier + 32, t->addend + 32),
                                       steps_of(d, t->multiplier + 48, t->addend + 48), &by);
        _mm512_mask_storeu_epi8(out, mask, bytes);
    }
}

#else

bool qz_has_avx512_vnni(void) { return false; }
bool qz_has_avx512_vbmi(void) { return false; }
void qz_dense_avx512(const dense_tile *tile, const uint8_t *in, uint8_t *out, int32_t pixels,
                     const qz_node *node) {
    (void)tile, (void)in, (void)out, (void)pixels, (void)node;
}
void qz_depthwise_avx512(const depthwise_tile *tile, const uint8_t *in, uint8_t *out,
                         int32_t pixels, const qz_node *node) {
    (void)tile, (void)in, (void)out, (void)pixels, (void)node;
}

#endif
