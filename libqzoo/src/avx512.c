/* Convolutions and linear layers by AVX-512 VNNI: `vpdpbusd` adds four products of a byte of the
 * input and a byte of the weight to each of 16 sums of 32 bits.
 *
 * Sums are exact in any order, so only the rounding at the end must be spelled out as in plain C:
 * one multiplication, one addition, each rounded to float, then to the nearest whole number.
 */
#include "avx512.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#define WITH_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) WITH_VNNI

typedef struct {
    __m512i zero; /* the zero point, 32 times 16 bits */
    __m512i low, high;
    bool from_zero; /* zero point and low are 0, as behind a ReLU */
} bounds;

INLINE bounds bounds_of(const qz_node *node) {
    bounds b;
    b.zero = _mm512_set1_epi16((short)node->zero_point);
    b.low = _mm512_set1_epi8((char)node->low);
    b.high = _mm512_set1_epi8((char)node->high);
    b.from_zero = node->zero_point == 0 && node->low == 0;
    return b;
}

/* Sums to whole steps: the same roundings as in plain C. */
INLINE __m512i steps_of(__m512i sums, const float *multiplier, const float *addend) {
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(multiplier));
    return _mm512_cvtps_epi32(_mm512_add_ps(product, _mm512_loadu_ps(addend)));
}

/* Four vectors of steps to 64 bytes; within each 128 bits, vector j holds numbers 4 j to 4 j + 3.
 */
INLINE __m512i bytes_of(__m512i a, __m512i b, __m512i c, __m512i d, const bounds *by,
                        const bool from_zero) {
    const __m512i first = _mm512_packs_epi32(a, b), second = _mm512_packs_epi32(c, d);
    if (from_zero) return _mm512_min_epu8(_mm512_packus_epi16(first, second), by->high);
    const __m512i bytes = _mm512_packus_epi16(_mm512_adds_epi16(first, by->zero),
                                              _mm512_adds_epi16(second, by->zero));
    return _mm512_max_epu8(_mm512_min_epu8(bytes, by->high), by->low);
}

INLINE __mmask64 first_bytes(int32_t count) {
    return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1;
}

/* The upper half of a tile's last vector may be without channels: it is computed in 256 bits then,
 * which many processors do in half the time. */
INLINE bool is_half(int v, int vectors, bool half) { return half && v == vectors - 1; }

/* Sums of a tile's vector to whole steps. */
INLINE __m512i steps_at(__m512i sums, const dense_tile *t, int v, bool half) {
    const float *multiplier = t->multiplier + 16 * v, *addend = t->addend + 16 * v;
    if (!half) return steps_of(sums, multiplier, addend);
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm512_castsi512_si256(sums)),
                                         _mm256_loadu_ps(multiplier));
    return _mm512_zextsi256_si512(
        _mm256_cvtps_epi32(_mm256_add_ps(product, _mm256_loadu_ps(addend))));
}

/* Writes PIXELS neighbouring outputs of VECTORS times 16 channels: as many pixels at a time as fill
 * four vectors. */
INLINE void store(const int pixels, const int vectors, const bool half, const dense_tile *t,
                  __m512i sums[][4], uint8_t *out, const bounds *by) {
    const int together = vectors <= 2 ? 4 / vectors : 1;
    const __mmask64 mask = first_bytes(t->channels);
#pragma GCC unroll 14
    for (int p = 0; p < pixels; p += together) {
        __m512i steps[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const int pixel = p + i / vectors, v = i % vectors;
            steps[i] = i < together * vectors && pixel < pixels
                           ? steps_at(sums[pixel][v], t, v, is_half(v, vectors, half))
                           : _mm512_setzero_si512();
        }
        __m512i bytes = bytes_of(steps[0], steps[1], steps[2], steps[3], by, by->from_zero);
        if (vectors < 4) /* four bytes of each vector in turn: bring each vector's together */
            bytes = _mm512_permutexvar_epi32(
                _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
        uint8_t *to = out + p * t->out_step;
        if (vectors >= 3) {
            _mm512_mask_storeu_epi8(to, mask, bytes);
        } else if (vectors == 2) {
            _mm256_mask_storeu_epi8(to, (__mmask32)mask, _mm512_castsi512_si256(bytes));
            if (p + 1 < pixels)
                _mm256_mask_storeu_epi8(to + t->out_step, (__mmask32)mask,
                                        _mm512_extracti64x4_epi64(bytes, 1));
        } else {
            const __mmask16 few = (__mmask16)mask;
            _mm_mask_storeu_epi8(to, few, _mm512_castsi512_si128(bytes));
            if (p + 1 < pixels)
                _mm_mask_storeu_epi8(to + t->out_step, few, _mm512_extracti32x4_epi32(bytes, 1));
            if (p + 2 < pixels)
                _mm_mask_storeu_epi8(to + 2 * t->out_step, few,
                                     _mm512_extracti32x4_epi32(bytes, 2));
            if (p + 3 < pixels)
                _mm_mask_storeu_epi8(to + 3 * t->out_step, few,
                                     _mm512_extracti32x4_epi32(bytes, 3));
        }
    }
}

/* PIXELS neighbouring outputs of one row for VECTORS times 16 channels. */
INLINE void tile(const int pixels, const int vectors, const bool half, const dense_tile *t,
                 const uint8_t *in, uint8_t *out, const bounds *by) {
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
                    sums[p][v] = is_half(v, vectors, half)
                                     ? _mm512_zextsi256_si512(_mm256_dpbusd_epi32(
                                           _mm512_castsi512_si256(sums[p][v]),
                                           _mm512_castsi512_si256(x), _mm512_castsi512_si256(w[v])))
                                     : _mm512_dpbusd_epi32(sums[p][v], x, w[v]);
            }
        }
    }
    store(pixels, vectors, half, t, sums, out, by);
}

#define TILES(NAME, MOST, VECTORS, HALF)                                                           \
    WITH_VNNI static void NAME(const dense_tile *t, const uint8_t *in, uint8_t *out,               \
                               int32_t pixels, const qz_node *node) {                              \
        const bounds by = bounds_of(node);                                                         \
        for (; pixels >= MOST; pixels -= MOST, in += MOST * t->step, out += MOST * t->out_step)    \
            tile(MOST, VECTORS, HALF, t, in, out, &by);                                            \
        for (; pixels >= 4; pixels -= 4, in += 4 * t->step, out += 4 * t->out_step)                \
            tile(4, VECTORS, HALF, t, in, out, &by);                                               \
        for (; pixels > 0; pixels--, in += t->step, out += t->out_step)                            \
            tile(1, VECTORS, HALF, t, in, out, &by);                                               \
    }
TILES(wide, 6, 4, false)
TILES(three, 8, 3, false)
TILES(two, 12, 2, false)
TILES(one, 14, 1, false)
TILES(two_and_a_half, 8, 3, true)
TILES(one_and_a_half, 12, 2, true)
TILES(one_half, 14, 1, true)

static void dense(const dense_tile *t, const uint8_t *in, uint8_t *out, int32_t pixels,
                  const qz_node *node) {
    const bool half = t->channels - 16 * (t->vectors - 1) <= 8;
    switch (t->vectors) {
    case 4: wide(t, in, out, pixels, node); break;
    case 3: (half ? two_and_a_half : three)(t, in, out, pixels, node); break;
    case 2: (half ? one_and_a_half : two)(t, in, out, pixels, node); break;
    default: (half ? one_half : one)(t, in, out, pixels, node); break;
    }
}

/* Brings the bytes of four rows side by side, for one column in a vector of BITS. */
#define INTERLEAVE(NAME, TYPE, LOAD, STORE, PREFIX, MASK)                                          \
    WITH_VNNI static void NAME(const uint8_t *const rows[4], ptrdiff_t step, int32_t columns,      \
                               int32_t channels, ptrdiff_t vector, uint8_t *strip) {               \
        const MASK mask = (MASK)first_bytes(channels);                                             \
        const uint8_t *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];                      \
        for (; columns > 0; columns--, strip += sizeof(TYPE)) {                                    \
            const TYPE ra = LOAD(mask, a), rb = LOAD(mask, b), rc = LOAD(mask, c),                 \
                       rd = LOAD(mask, d);                                                         \
            const TYPE low_ab = PREFIX##_unpacklo_epi8(ra, rb),                                    \
                       high_ab = PREFIX##_unpackhi_epi8(ra, rb);                                   \
            const TYPE low_cd = PREFIX##_unpacklo_epi8(rc, rd),                                    \
                       high_cd = PREFIX##_unpackhi_epi8(rc, rd);                                   \
            STORE((void *)strip, PREFIX##_unpacklo_epi16(low_ab, low_cd));                         \
            STORE((void *)(strip + vector), PREFIX##_unpackhi_epi16(low_ab, low_cd));              \
            STORE((void *)(strip + 2 * vector), PREFIX##_unpacklo_epi16(high_ab, high_cd));        \
            STORE((void *)(strip + 3 * vector), PREFIX##_unpackhi_epi16(high_ab, high_cd));        \
            a += step, b += step, c += step, d += step;                                            \
        }                                                                                          \
    }
#define LOAD_ALL(mask, from) ((void)(mask), _mm512_loadu_si512(from))
INTERLEAVE(interleave64, __m512i, LOAD_ALL, _mm512_storeu_si512, _mm512, __mmask64)
INTERLEAVE(interleave_few, __m512i, _mm512_maskz_loadu_epi8, _mm512_storeu_si512, _mm512, __mmask64)
INTERLEAVE(interleave32, __m256i, _mm256_maskz_loadu_epi8, _mm256_storeu_si256, _mm256, __mmask32)
INTERLEAVE(interleave16, __m128i, _mm_maskz_loadu_epi8, _mm_storeu_si128, _mm, __mmask16)

static void interleave(const uint8_t *const rows[4], ptrdiff_t step, int32_t columns,
                       int32_t channels, int32_t width, ptrdiff_t vector, uint8_t *strip) {
    if (width == 16)
        interleave16(rows, step, columns, channels, vector, strip);
    else if (width == 32)
        interleave32(rows, step, columns, channels, vector, strip);
    else if (channels < 64)
        interleave_few(rows, step, columns, channels, vector, strip);
    else
        interleave64(rows, step, columns, channels, vector, strip);
}

/* Writes a vector of outputs, as many pixels of it as there are. Without branches: compilers move
 * no loads across them, and keep what they have loaded on the stack. */
INLINE void store_pixels(__m512i bytes, int width, int32_t pixels, const depthwise_tile *t,
                         __mmask64 mask, uint8_t *out) {
    const ptrdiff_t step = t->out_step;
#define MASK(p) (pixels > (p) ? mask : 0)
    if (width == 64) {
        _mm512_mask_storeu_epi8(out, MASK(0), bytes);
    } else if (width == 32) {
        _mm256_mask_storeu_epi8(out, (__mmask32)MASK(0), _mm512_castsi512_si256(bytes));
        _mm256_mask_storeu_epi8(out + step, (__mmask32)MASK(1),
                                _mm512_extracti64x4_epi64(bytes, 1));
    } else {
        _mm_mask_storeu_epi8(out, (__mmask16)MASK(0), _mm512_castsi512_si128(bytes));
        _mm_mask_storeu_epi8(out + step, (__mmask16)MASK(1), _mm512_extracti32x4_epi32(bytes, 1));
        _mm_mask_storeu_epi8(out + 2 * step, (__mmask16)MASK(2),
                             _mm512_extracti32x4_epi32(bytes, 2));
        _mm_mask_storeu_epi8(out + 3 * step, (__mmask16)MASK(3),
                             _mm512_extracti32x4_epi32(bytes, 3));
    }
#undef MASK
}

/* TOGETHER vectors of outputs from COUNT quads each. */
INLINE void columns_of(const int together, const int count, const int width, const bool from_zero,
                       const depthwise_tile *t, const uint8_t *strip, uint8_t *out, int32_t pixels,
                       const bounds *by) {
    __m512i sums[4][4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
#pragma GCC unroll 4
        for (int p = 0; p < together; p++) sums[p][v] = _mm512_loadu_si512(t->start + 16 * v);
#pragma GCC unroll 3
    for (int k = 0; k < count; k++) {
        const uint8_t *from = strip + t->offsets[k];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const __m512i w = _mm512_loadu_si512(t->weights + 256 * k + 64 * v);
#pragma GCC unroll 4
            for (int p = 0; p < together; p++)
                sums[p][v] = _mm512_dpbusd_epi32(
                    sums[p][v], _mm512_loadu_si512(from + v * t->vector + 64 * p), w);
        }
    }
    const __mmask64 mask = first_bytes(t->channels);
    const int each = 64 / width;
#pragma GCC unroll 4
    for (int p = 0; p < together; p++)
        store_pixels(bytes_of(steps_of(sums[p][0], t->multiplier, t->addend),
                              steps_of(sums[p][1], t->multiplier + 16, t->addend + 16),
                              steps_of(sums[p][2], t->multiplier + 32, t->addend + 32),
                              steps_of(sums[p][3], t->multiplier + 48, t->addend + 48), by,
                              from_zero),
                     width, pixels - each * p, t, mask, out + each * p * t->out_step);
}

INLINE void row_of(const int count, const int width, const bool from_zero, const depthwise_tile *t,
                   const uint8_t *strip, uint8_t *out, int32_t pixels, const bounds *by) {
    const int each = 64 / width;
    for (; pixels > 2 * each; pixels -= 4 * each, strip += 256, out += 4 * each * t->out_step)
        columns_of(4, count, width, from_zero, t, strip, out, pixels, by);
    if (pixels > 0) columns_of(2, count, width, from_zero, t, strip, out, pixels, by);
}

#define COLUMNS(NAME, COUNT, WIDTH)                                                                \
    WITH_VNNI static void NAME(const depthwise_tile *t, const uint8_t *strip, uint8_t *out,        \
                               int32_t pixels, const qz_node *node) {                              \
        const bounds by = bounds_of(node);                                                         \
        if (by.from_zero)                                                                          \
            row_of(COUNT, WIDTH, true, t, strip, out, pixels, &by);                                \
        else                                                                                       \
            row_of(COUNT, WIDTH, false, t, strip, out, pixels, &by);                               \
    }
COLUMNS(depthwise64_3, 3, 64)
COLUMNS(depthwise64, t->count, 64)
COLUMNS(depthwise32, t->count, 32)
COLUMNS(depthwise16, t->count, 16)

static void depthwise(const depthwise_tile *t, const uint8_t *strip, uint8_t *out, int32_t pixels,
                      const qz_node *node) {
    if (t->width == 16)
        depthwise16(t, strip, out, pixels, node);
    else if (t->width == 32)
        depthwise32(t, strip, out, pixels, node);
    else if (t->count == 3)
        depthwise64_3(t, strip, out, pixels, node);
    else
        depthwise64(t, strip, out, pixels, node);
}

/* Whether the processor has the instructions, and the system keeps the registers. */
static bool has_vnni(void) {
    unsigned a, b, c, d, low, high;
    const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;   /* F, DQ, BW, VL */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0xe6) != 0xe6) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & wanted) == wanted && (c >> 11 & 1);
}

static bool has_vbmi(void) {
    unsigned a, b, c, d;
    return has_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 1 & 1);
}

#define KERNELS                                                                                    \
    .name = "AVX-512 VNNI", .interleaved = true, .narrow = true, .dense = dense,                   \
    .interleave = interleave, .depthwise = depthwise, .rescale = qz_rescale_avx512,                \
    .add = qz_add_avx512, .multiply = qz_multiply_avx512, .keep = qz_keep_avx512,                  \
    .most = qz_most_avx512, .average = qz_average_avx512, .alternate = qz_alternate_avx512,        \
    .sum_reals = qz_sum_reals_avx512

const qz_kernels *qz_avx512(void) {
    static const qz_kernels usual = {KERNELS, .quantize = qz_quantize_avx512};
    static const qz_kernels with_vbmi = {
        KERNELS,
        .quantize = qz_quantize_vbmi,
        .table = qz_table_vbmi,
        .alternate_tables = qz_alternate_vbmi,
        .three_tables = qz_three_tables_vbmi,
    };
    return !has_vnni() ? NULL : has_vbmi() ? &with_vbmi : &usual;
}

#else

const qz_kernels *qz_avx512(void) { return NULL; }

#endif
