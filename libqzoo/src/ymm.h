/* AVX2 for sixteen.h: 16 sums are two registers. VNNI says whether `vpdpbusd` is there, too. */
#include "kernels.h"

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, target(TARGET)))
#define KERNEL static __attribute__((target(TARGET)))
#define PARTS 2
#define QUADS 1
#define SHIFT 0

typedef int32_t ints __attribute__((vector_size(32)));
typedef float floats __attribute__((vector_size(32)));
typedef uint8_t bytes __attribute__((vector_size(16)));

/* Whether the processor has AVX2, and the system keeps its registers. */
static inline bool has_avx2(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 5 & 1);
}

/* ---- Products ---- */

#if VNNI

#define PIXELS 6

typedef struct {
    ints part[2];
} sixteen_weights;
typedef __m256i same_inputs;
typedef sixteen_weights own_inputs;

INLINE sixteen_weights load_weights(const int8_t *from) {
    sixteen_weights w;
    memcpy(&w, from, sizeof(w));
    return w;
}

INLINE same_inputs load_same(const uint8_t *from, const int quads) {
    (void)quads;
    int32_t four;
    memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

INLINE own_inputs load_own(const uint8_t *from) { return load_weights((const int8_t *)from); }

INLINE void add_same(ints *s, const sixteen_weights *w, same_inputs x, const int quad) {
    (void)quad;
    for (int i = 0; i < 2; i++) s[i] = (ints)DOT((__m256i)s[i], x, (__m256i)w->part[i]);
}

INLINE void add_own(ints *s, const sixteen_weights *w, own_inputs x) {
    for (int i = 0; i < 2; i++)
        s[i] = (ints)DOT((__m256i)s[i], (__m256i)x.part[i], (__m256i)w->part[i]);
}

#else

/* `vpmaddubsw` would do what is needed but for sums beyond 16 bits, which it cuts off. So bytes
 * become numbers of 16 bits, those at even and at odd places by themselves: `vpmaddwd` adds two of
 * their products to 32 bits, which never overflows.
 */
#define PIXELS 4

typedef struct {
    __m256i even, odd;
} halves;
typedef struct {
    halves part[2];
} sixteen_weights;
typedef halves same_inputs;
typedef sixteen_weights own_inputs;

INLINE halves split_signed(__m256i x) {
    return (halves){_mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), _mm256_srai_epi16(x, 8)};
}

INLINE halves split(__m256i x) {
    return (halves){_mm256_and_si256(x, _mm256_set1_epi16(255)), _mm256_srli_epi16(x, 8)};
}

INLINE sixteen_weights load_weights(const int8_t *from) {
    sixteen_weights w;
    for (int i = 0; i < 2; i++)
        w.part[i] = split_signed(_mm256_loadu_si256((const __m256i *)(from + 32 * i)));
    return w;
}

INLINE same_inputs load_same(const uint8_t *from, const int quads) {
    (void)quads;
    int32_t four;
    memcpy(&four, from, 4);
    return split(_mm256_set1_epi32(four));
}

INLINE own_inputs load_own(const uint8_t *from) {
    own_inputs x;
    for (int i = 0; i < 2; i++)
        x.part[i] = split(_mm256_loadu_si256((const __m256i *)(from + 32 * i)));
    return x;
}

INLINE void add_halves(ints *s, halves w, halves x) {
    *s += (ints)_mm256_madd_epi16(x.even, w.even);
    *s += (ints)_mm256_madd_epi16(x.odd, w.odd);
}

INLINE void add_same(ints *s, const sixteen_weights *w, same_inputs x, const int quad) {
    (void)quad;
    for (int i = 0; i < 2; i++) add_halves(&s[i], w->part[i], x);
}

INLINE void add_own(ints *s, const sixteen_weights *w, own_inputs x) {
    for (int i = 0; i < 2; i++) add_halves(&s[i], w->part[i], x.part[i]);
}

#endif

/* ---- Bytes and steps ---- */

typedef struct {
    floats least, greatest; /* steps, less the zero point */
    __m256i zero;           /* 16 times 16 bits */
    __m128i low, high;
} grid;

INLINE grid grid_of(const qz_node *node) {
    grid g;
    g.least = _mm256_set1_ps((float)(node->low - node->zero_point));
    g.greatest = _mm256_set1_ps((float)(node->high - node->zero_point));
    g.zero = _mm256_set1_epi16((short)node->zero_point);
    g.low = _mm_set1_epi8((char)node->low);
    g.high = _mm_set1_epi8((char)node->high);
    return g;
}

INLINE void widened(bytes x, ints *to) {
    to[0] = (ints)_mm256_cvtepu8_epi32((__m128i)x);
    to[1] = (ints)_mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)x, 8));
}

INLINE ints nearest(floats x) { return (ints)_mm256_cvtps_epi32(x); }

INLINE floats within(floats x, const grid *g) {
    return _mm256_min_ps(_mm256_max_ps(x, g->least), g->greatest);
}

INLINE bytes kept(bytes x, const grid *g) {
    return (bytes)_mm_max_epu8(_mm_min_epu8((__m128i)x, g->high), g->low);
}

/* Steps to bytes. */
INLINE bytes narrowed(const ints *steps, const grid *g) {
    const __m256i packed = _mm256_packs_epi32((__m256i)steps[0], (__m256i)steps[1]);
    const __m256i words = _mm256_adds_epi16(packed, g->zero); /* 0-3, 8-11, 4-7, 12-15 */
    const __m128i turned =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return kept((bytes)_mm_shuffle_epi32(turned, _MM_SHUFFLE(3, 1, 2, 0)), g);
}

INLINE bytes larger(bytes a, bytes b) { return (bytes)_mm_max_epu8((__m128i)a, (__m128i)b); }

INLINE void zip(bytes a, bytes b, bytes *both) {
    both[0] = (bytes)_mm_unpacklo_epi8((__m128i)a, (__m128i)b);
    both[1] = (bytes)_mm_unpackhi_epi8((__m128i)a, (__m128i)b);
}

INLINE void zip_rows(bytes a, bytes b, bytes c, bytes d, uint8_t *to) {
    bytes ab[2], cd[2];
    zip(a, b, ab);
    zip(c, d, cd);
    for (int i = 0; i < 2; i++) {
        const __m128i x = (__m128i)ab[i], y = (__m128i)cd[i];
        _mm_storeu_si128((__m128i *)(to + 32 * i), _mm_unpacklo_epi16(x, y));
        _mm_storeu_si128((__m128i *)(to + 32 * i + 16), _mm_unpackhi_epi16(x, y));
    }
}

/* Looks 16 bytes up in each of two tables, 16 entries at a time. Indices of other entries become
 * 128 or more by an addition that stops at 255: for those the look-up gives 0.
 */
INLINE void look_up(bytes *x, const uint8_t *table_x, bytes *y, const uint8_t *table_y) {
    __m256i index = _mm256_set_m128i((__m128i)*y, (__m128i)*x), found = _mm256_setzero_si256();
#pragma GCC unroll 16
    for (int i = 0; i < 256; i += 16) {
        const __m256i entries = _mm256_set_m128i(_mm_loadu_si128((const __m128i *)(table_y + i)),
                                                 _mm_loadu_si128((const __m128i *)(table_x + i)));
        const __m256i mine = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(entries, mine));
        index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    }
    *x = (bytes)_mm256_castsi256_si128(found);
    *y = (bytes)_mm256_extracti128_si256(found, 1);
}
