/* NEON for sixteen.h: 16 sums are four registers. DOT says whether there are dot products of four
 * bytes, I8MM whether those take unsigned inputs; without I8MM inputs are signed, less 128.
 */
#include "kernels.h"

#include <arm_neon.h>
#include <string.h>

/* Whether the processor has an extension: its bit of an entry of Linux's auxiliary vector, and its
 * name on Apple's systems. Elsewhere nothing is known, and plain NEON serves.
 */
#if defined(__linux__)
#include <sys/auxv.h>
#define HAS(ENTRY, BIT, APPLE_NAME) (getauxval(ENTRY) >> (BIT) & 1)
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static inline bool has_named(const char *name) {
    int there = 0;
    size_t size = sizeof(there);
    return sysctlbyname(name, &there, &size, NULL, 0) == 0 && there != 0;
}
#define HAS(ENTRY, BIT, APPLE_NAME) has_named(APPLE_NAME)
#else
#define HAS(ENTRY, BIT, APPLE_NAME) false
#endif
#define HAS_DOT HAS(AT_HWCAP, 20, "hw.optional.arm.FEAT_DotProd")
#define HAS_I8MM HAS(AT_HWCAP2, 13, "hw.optional.arm.FEAT_I8MM")

#if defined(TARGET)
#define INLINE static inline __attribute__((always_inline, target(TARGET)))
#define KERNEL static __attribute__((target(TARGET)))
#else
#define INLINE static inline __attribute__((always_inline))
#define KERNEL static
#endif
#define PARTS 4

typedef int32_t ints __attribute__((vector_size(16)));
typedef float floats __attribute__((vector_size(16)));
typedef uint8_t bytes __attribute__((vector_size(16)));

/* ---- Products ---- */

#if DOT

#define PIXELS 5
#define QUADS 4 /* one register of each pixel's bytes; instructions choose a quad of it */
#define SHIFT (I8MM ? 0 : 128)

typedef int8x16x4_t sixteen_weights;
#if I8MM
typedef uint8x16_t same_inputs;
typedef uint8x16x4_t own_inputs;
INLINE same_inputs taken(uint8x16_t x) { return x; }
#define ADD_QUAD(SUM, W, X, QUAD) vsudotq_laneq_s32(SUM, W, X, QUAD)
#define ADD_OWN(SUM, W, X) vusdotq_s32(SUM, X, W)
#else
typedef int8x16_t same_inputs;
typedef int8x16x4_t own_inputs;
INLINE same_inputs taken(uint8x16_t x) { return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(128))); }
#define ADD_QUAD(SUM, W, X, QUAD) vdotq_laneq_s32(SUM, W, X, QUAD)
#define ADD_OWN(SUM, W, X) vdotq_s32(SUM, W, X)
#endif

INLINE sixteen_weights load_weights(const int8_t *from) {
    sixteen_weights w;
    for (int i = 0; i < 4; i++) w.val[i] = vld1q_s8(from + 16 * i);
    return w;
}

INLINE same_inputs load_same(const uint8_t *from, const int quads) {
    if (quads == 4) return taken(vld1q_u8(from));
    uint32_t four;
    memcpy(&four, from, 4);
    return taken(vreinterpretq_u8_u32(vsetq_lane_u32(four, vdupq_n_u32(0), 0)));
}

INLINE own_inputs load_own(const uint8_t *from) {
    own_inputs x;
    for (int i = 0; i < 4; i++) x.val[i] = taken(vld1q_u8(from + 16 * i));
    return x;
}

INLINE void add_same(ints *s, const sixteen_weights *w, same_inputs x, const int quad) {
    for (int i = 0; i < 4; i++) {
        const int32x4_t sum = (int32x4_t)s[i];
        switch (quad) { /* the instructions hold its number */
        case 0: s[i] = (ints)ADD_QUAD(sum, w->val[i], x, 0); break;
        case 1: s[i] = (ints)ADD_QUAD(sum, w->val[i], x, 1); break;
        case 2: s[i] = (ints)ADD_QUAD(sum, w->val[i], x, 2); break;
        default: s[i] = (ints)ADD_QUAD(sum, w->val[i], x, 3); break;
        }
    }
}

INLINE void add_own(ints *s, const sixteen_weights *w, own_inputs x) {
    for (int i = 0; i < 4; i++) s[i] = (ints)ADD_OWN((int32x4_t)s[i], w->val[i], x.val[i]);
}

#else

/* Numbers of 16 bits, the first of each four bytes by themselves, then the second and so on. */
#define PIXELS 4
#define QUADS 1
#define SHIFT 0

typedef struct {
    int16x8_t place[4][2];
} sixteen_weights;
typedef int16x4_t same_inputs;
typedef sixteen_weights own_inputs;

INLINE sixteen_weights load_weights(const int8_t *from) {
    const int8x16x4_t w = vld4q_s8(from);
    sixteen_weights wide;
    for (int k = 0; k < 4; k++) {
        wide.place[k][0] = vmovl_s8(vget_low_s8(w.val[k]));
        wide.place[k][1] = vmovl_s8(vget_high_s8(w.val[k]));
    }
    return wide;
}

INLINE int16x8_t wider(uint8x8_t x) { return vreinterpretq_s16_u16(vmovl_u8(x)); }

INLINE same_inputs load_same(const uint8_t *from, const int quads) {
    (void)quads;
    uint32_t four;
    memcpy(&four, from, 4);
    return vget_low_s16(wider(vreinterpret_u8_u32(vdup_n_u32(four))));
}

INLINE own_inputs load_own(const uint8_t *from) {
    const uint8x16x4_t x = vld4q_u8(from);
    own_inputs wide;
    for (int k = 0; k < 4; k++) {
        wide.place[k][0] = wider(vget_low_u8(x.val[k]));
        wide.place[k][1] = wider(vget_high_u8(x.val[k]));
    }
    return wide;
}

#define ADD_PLACE(K)                                                                               \
    for (int i = 0; i < 2; i++) {                                                                  \
        const int16x4_t low = vget_low_s16(w->place[K][i]);                                        \
        const int16x4_t high = vget_high_s16(w->place[K][i]);                                      \
        s[2 * i] = (ints)vmlal_lane_s16((int32x4_t)s[2 * i], low, x, K);                           \
        s[2 * i + 1] = (ints)vmlal_lane_s16((int32x4_t)s[2 * i + 1], high, x, K);                  \
    }

INLINE void add_same(ints *s, const sixteen_weights *w, same_inputs x, const int quad) {
    (void)quad;
    ADD_PLACE(0)
    ADD_PLACE(1)
    ADD_PLACE(2)
    ADD_PLACE(3)
}

INLINE void add_own(ints *s, const sixteen_weights *w, own_inputs x) {
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 2; i++) {
            const int16x8_t a = w->place[k][i], b = x.place[k][i];
            s[2 * i] = (ints)vmlal_s16((int32x4_t)s[2 * i], vget_low_s16(a), vget_low_s16(b));
            s[2 * i + 1] =
                (ints)vmlal_s16((int32x4_t)s[2 * i + 1], vget_high_s16(a), vget_high_s16(b));
        }
}

#endif

/* ---- Bytes and steps ---- */

typedef struct {
    float32x4_t least, greatest; /* steps, less the zero point */
    int16x8_t zero;
    uint8x16_t low, high;
} grid;

INLINE grid grid_of(const qz_node *node) {
    grid g;
    g.least = vdupq_n_f32((float)(node->low - node->zero_point));
    g.greatest = vdupq_n_f32((float)(node->high - node->zero_point));
    g.zero = vdupq_n_s16((int16_t)node->zero_point);
    g.low = vdupq_n_u8((uint8_t)node->low);
    g.high = vdupq_n_u8((uint8_t)node->high);
    return g;
}

INLINE void widened(bytes x, ints *to) {
    const uint16x8_t low = vmovl_u8(vget_low_u8((uint8x16_t)x));
    const uint16x8_t high = vmovl_u8(vget_high_u8((uint8x16_t)x));
    to[0] = (ints)vmovl_u16(vget_low_u16(low));
    to[1] = (ints)vmovl_u16(vget_high_u16(low));
    to[2] = (ints)vmovl_u16(vget_low_u16(high));
    to[3] = (ints)vmovl_u16(vget_high_u16(high));
}

INLINE ints nearest(floats x) { return (ints)vcvtnq_s32_f32((float32x4_t)x); }

INLINE floats within(floats x, const grid *g) {
    return (floats)vminnmq_f32(vmaxnmq_f32((float32x4_t)x, g->least), g->greatest);
}

INLINE bytes kept(bytes x, const grid *g) {
    return (bytes)vmaxq_u8(vminq_u8((uint8x16_t)x, g->high), g->low);
}

/* Eight steps to bytes. */
INLINE uint8x8_t eight(ints a, ints b, const grid *g) {
    const int16x8_t words = vcombine_s16(vqmovn_s32((int32x4_t)a), vqmovn_s32((int32x4_t)b));
    return vqmovun_s16(vqaddq_s16(words, g->zero));
}

INLINE bytes narrowed(const ints *steps, const grid *g) {
    return kept((bytes)vcombine_u8(eight(steps[0], steps[1], g), eight(steps[2], steps[3], g)), g);
}

INLINE bytes larger(bytes a, bytes b) { return (bytes)vmaxq_u8((uint8x16_t)a, (uint8x16_t)b); }

INLINE void zip(bytes a, bytes b, bytes *both) {
    both[0] = (bytes)vzip1q_u8((uint8x16_t)a, (uint8x16_t)b);
    both[1] = (bytes)vzip2q_u8((uint8x16_t)a, (uint8x16_t)b);
}

INLINE void zip_rows(bytes a, bytes b, bytes c, bytes d, uint8_t *to) {
    const uint8x16x4_t rows = {{(uint8x16_t)a, (uint8x16_t)b, (uint8x16_t)c, (uint8x16_t)d}};
    vst4q_u8(to, rows);
}

/* Looks bytes up, in 64 entries at a time: indices beyond those give 0. */
INLINE bytes looked_up(bytes x, const uint8_t *table) {
    uint8x16_t index = (uint8x16_t)x, found = vdupq_n_u8(0);
    for (int i = 0; i < 256; i += 64) {
        const uint8x16x4_t entries = {{vld1q_u8(table + i), vld1q_u8(table + i + 16),
                                       vld1q_u8(table + i + 32), vld1q_u8(table + i + 48)}};
        found = vorrq_u8(found, vqtbl4q_u8(entries, index));
        index = vsubq_u8(index, vdupq_n_u8(64));
    }
    return (bytes)found;
}

INLINE void look_up(bytes *x, const uint8_t *table_x, bytes *y, const uint8_t *table_y) {
    *x = looked_up(*x, table_x);
    *y = looked_up(*y, table_y);
}
