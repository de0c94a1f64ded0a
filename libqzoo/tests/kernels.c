/* Compares every function of every set of kernels that this processor has with plain loops, over
 * all remainders: of channels, pixels, quads and bytes. Prints a line for each set and returns 1
 * where anything differs. Numbers are random, and often the extreme ones.
 */
#include "../src/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const qz_kernels *set;
static uint64_t state = 1;
static int32_t wrong;
static int64_t compared;

static uint32_t drawn(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static int32_t between(int32_t low, int32_t high) {
    return low + (int32_t)drawn((uint32_t)(high - low + 1));
}

static float real(float most) { return most * (float)between(-1000000, 1000000) / 1000000.0f; }

static void fill(void *to, size_t count) {
    uint8_t *bytes = to;
    const bool extreme = drawn(4) == 0;
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)(extreme ? (drawn(2) ? 128 : drawn(2) ? 255 : 127) : drawn(256));
}

static qz_node grid(void) {
    qz_node node = {0};
    node.low = drawn(2) ? 0 : between(0, 200);
    node.high = drawn(2) ? 255 : between(node.low, 255);
    node.zero_point = drawn(2) ? between(0, 255) : 128;
    node.scale = 1.0f;
    return node;
}

/* The arithmetic of plain C. Products are `volatile` so that compilers round them whatever they are
 * told about joining multiplications and additions. */
static uint8_t rounded(float steps, const qz_node *node) {
    const float low = (float)(node->low - node->zero_point);
    const float high = (float)(node->high - node->zero_point);
    float whole = nearbyintf(steps);
    whole = whole < low ? low : whole > high ? high : whole;
    return (uint8_t)((int32_t)whole + node->zero_point);
}

static uint8_t sum_of(float a, float b, const qz_node *node) {
    const volatile float x = a, y = b;
    return rounded(x + y, node);
}

static uint8_t kept(uint8_t value, const qz_node *node) {
    return (uint8_t)(value < node->low ? node->low : value > node->high ? node->high : value);
}

static void compare(const char *function, const uint8_t *got, const uint8_t *wanted, size_t count) {
    compared += (int64_t)count;
    for (size_t i = 0; i < count; i++)
        if (got[i] != wanted[i]) {
            if (wrong++ < 10)
                printf("%s: %s: byte %zu is %d, not %d\n", set->name, function, i, got[i],
                       wanted[i]);
            return;
        }
}

/* ---- Layers with weights ---- */

#define MOST_QUADS 64
#define MOST_BYTES 65536

/* Which channel of a tile a lane computes. */
static int32_t channel_of(int32_t lane, int32_t vectors) {
    if (!set->interleaved || vectors < 4) return lane;
    return lane % 16 / 4 * 16 + lane / 16 * 4 + lane % 4;
}

typedef struct {
    int8_t weights[MOST_QUADS * QZ_WIDTH * 4];
    int32_t start[QZ_WIDTH], plain_start[QZ_WIDTH];
    float multiplier[QZ_WIDTH], addend[QZ_WIDTH];
} layer;

static layer l;
static uint8_t in[MOST_BYTES], out[MOST_BYTES], wanted[MOST_BYTES], strip[MOST_BYTES];

/* Draws weights for lanes, [quads][vectors][16][4], and what else a layer has. */
static void draw_layer(int32_t quads, int32_t vectors) {
    fill(l.weights, sizeof(l.weights));
    for (int32_t lane = 0; lane < 16 * vectors; lane++) {
        int32_t sum = 0;
        for (int32_t q = 0; q < quads; q++)
            for (int32_t i = 0; i < 4; i++) sum += l.weights[(q * 16 * vectors + lane) * 4 + i];
        l.plain_start[lane] = between(-100000, 100000);
        l.start[lane] = l.plain_start[lane] + set->shift * sum;
        l.multiplier[lane] = ldexpf(1.0f + real(0.5f), -between(1, 16));
        l.addend[lane] = real(200.0f);
    }
    fill(in, sizeof(in));
    memset(out, 77, sizeof(out));
    memset(wanted, 77, sizeof(wanted));
}

static int32_t sum_of_lane(int32_t lane, int32_t quads, int32_t vectors, const uint8_t (*x)[4]) {
    int32_t sum = l.plain_start[lane];
    for (int32_t q = 0; q < quads; q++)
        for (int32_t i = 0; i < 4; i++)
            sum += x[q][i] * l.weights[(q * 16 * vectors + lane) * 4 + i];
    return sum;
}

/* What a lane gives for quads of the input. */
static uint8_t of_lane(int32_t lane, int32_t quads, int32_t vectors, const uint8_t (*x)[4],
                       const qz_node *node) {
    const volatile float product = (float)sum_of_lane(lane, quads, vectors, x) * l.multiplier[lane];
    return rounded(product + l.addend[lane], node);
}

/* A number half way between two whole ones, where the last bit decides how it is rounded. */
static float tie(void) { return (float)between(-100, 100) + 0.5f; }

/* Brings what a lane gives for quads of the input close to a tie, every other time. */
static void make_tie(int32_t lane, int32_t quads, int32_t vectors, const uint8_t (*x)[4]) {
    const volatile float product = (float)sum_of_lane(lane, quads, vectors, x) * l.multiplier[lane];
    if (drawn(2)) l.addend[lane] = tie() - product;
}

static void dense(int32_t channels, int32_t pixels) {
    const qz_node node = grid();
    const int32_t runs = between(1, 3), quads = between(1, MOST_QUADS / 3);
    const int32_t vectors = (channels + 15) / 16;
    const ptrdiff_t offsets[3] = {between(0, 99), between(0, 9999), between(0, 9999)};
    const dense_tile tile = {.vectors = vectors,
                             .channels = channels,
                             .runs = runs,
                             .quads = quads,
                             .offsets = offsets,
                             .step = between(1, 300),
                             .out_step = channels + between(0, 9),
                             .weights = l.weights,
                             .start = l.start,
                             .multiplier = l.multiplier,
                             .addend = l.addend};
    draw_layer(runs * quads, vectors);
    for (int32_t p = 0; p < pixels; p++) {
        uint8_t x[MOST_QUADS][4];
        for (int32_t q = 0; q < runs * quads; q++)
            memcpy(x[q], in + offsets[q / quads] + q % quads * 4 + p * tile.step, 4);
        for (int32_t lane = 0; p == 0 && lane < 16 * vectors; lane++)
            make_tie(lane, runs * quads, vectors, x);
        for (int32_t lane = 0; lane < 16 * vectors; lane++)
            if (channel_of(lane, vectors) < channels)
                wanted[p * tile.out_step + channel_of(lane, vectors)] =
                    of_lane(lane, runs * quads, vectors, x, &node);
    }
    set->dense(&tile, in, out, pixels, &node);
    compare("dense", out, wanted, (size_t)(pixels * tile.out_step) + QZ_WIDTH);
}

/* Gives the lanes of all copies of a narrow tile's channels what those of the first copy have. */
static void repeat(int32_t quads, int32_t width) {
    for (int32_t lane = 0; lane < QZ_WIDTH; lane++) {
        int32_t from = 0;
        while (channel_of(from, 4) != channel_of(lane, 4) % width) from++;
        for (int32_t q = 0; q < quads; q++)
            memcpy(l.weights + (q * QZ_WIDTH + lane) * 4, l.weights + (q * QZ_WIDTH + from) * 4, 4);
        l.start[lane] = l.start[from];
        l.plain_start[lane] = l.plain_start[from];
        l.multiplier[lane] = l.multiplier[from];
        l.addend[lane] = l.addend[from];
    }
}

static void depthwise(int32_t channels, int32_t pixels) {
    const qz_node node = grid();
    const int32_t width = !set->narrow || channels > 32 ? QZ_WIDTH : channels > 16 ? 32 : 16;
    const int32_t count = between(1, 9), columns = pixels + 5;
    ptrdiff_t offsets[9];
    int32_t column[9];
    for (int32_t q = 0; q < count; q++) offsets[q] = width * (column[q] = between(0, 5));
    const uint8_t *rows[4];
    for (int r = 0; r < 4; r++) rows[r] = in + between(0, 3000);
    const ptrdiff_t step = between(channels, 300), vector = 64 * (columns + 8);
    const depthwise_tile tile = {.width = width,
                                 .channels = channels,
                                 .count = count,
                                 .offsets = offsets,
                                 .vector = vector,
                                 .out_step = channels + between(0, 9),
                                 .weights = l.weights,
                                 .start = l.start,
                                 .multiplier = l.multiplier,
                                 .addend = l.addend};
    draw_layer(count, 4);
    for (int32_t lane = 0; lane < QZ_WIDTH; lane++) {
        uint8_t x[9][4];
        for (int32_t q = 0; q < count; q++)
            for (int r = 0; r < 4; r++)
                x[q][r] = rows[r][column[q] * step + channel_of(lane, 4) % width];
        make_tie(lane, count, 4, x);
    }
    repeat(count, width);
    for (int32_t p = 0; p < pixels; p++)
        for (int32_t lane = 0; lane < QZ_WIDTH; lane++) {
            const int32_t channel = channel_of(lane, 4) % width;
            uint8_t x[9][4];
            if (channel >= channels) continue;
            for (int32_t q = 0; q < count; q++)
                for (int r = 0; r < 4; r++) x[q][r] = rows[r][(p + column[q]) * step + channel];
            wanted[p * tile.out_step + channel] = of_lane(lane, count, 4, x, &node);
        }
    set->interleave(rows, step, columns, channels, width, vector, strip);
    set->depthwise(&tile, strip, out, pixels, &node);
    compare("depthwise", out, wanted, (size_t)(pixels * tile.out_step) + QZ_WIDTH);
}

/* Real numbers, whose sums depend on their order. */
static void reals(int32_t lanes) {
    static float weights[40 * (QZ_WIDTH + 9)];
    double values[40], got[QZ_WIDTH], sums[QZ_WIDTH] = {0};
    const int32_t count = between(1, 40), step = lanes + between(0, 9);
    for (int32_t i = 0; i < count * step; i++) weights[i] = ldexpf(real(1.0f), between(-20, 20));
    for (int32_t k = 0; k < count; k++) values[k] = (double)ldexpf(real(1.0f), between(-20, 20));
    set->sum_reals(weights, values, count, step, lanes, got);
    for (int32_t i = 0; i < lanes; i++)
        for (int32_t k = 0; k < count; k++) {
            const volatile double product = values[k] * (double)weights[k * step + i];
            sums[i] += product;
        }
    compare("sum_reals", (uint8_t *)got, (uint8_t *)sums, (size_t)lanes * sizeof(double));
}

/* ---- Rows ---- */

#define MOST_TAPS 20

/* Memory that ends with its last byte, so that AddressSanitizer sees what reads on. */
static void *exact(const void *from, size_t count) {
    void *memory = malloc(count);
    if (memory == NULL) exit(2);
    memcpy(memory, from, count);
    return memory;
}

/* Compares what a function makes of a span: `VALUE` of the inputs' bytes x and y for each, or for
 * two bytes where `EACH` is 2, of which `k` is the number. */
#define SPAN(NAME, EACH, CALL, VALUE)                                                              \
    do {                                                                                           \
        memset(out, 77, sizeof(out));                                                              \
        memset(wanted, 77, sizeof(wanted));                                                        \
        CALL;                                                                                      \
        for (int64_t p = 0; p < s.pixels; p++)                                                     \
            for (int64_t i = 0; i < s.count; i++)                                                  \
                for (int k = 0; k < (EACH); k++) {                                                 \
                    const uint8_t x = a[p * s.a_step + i], y = b[p * s.b_step + i];                \
                    (void)x, (void)y;                                                              \
                    wanted[p * s.out_step + (EACH)*i + k] = (VALUE);                               \
                }                                                                                  \
        compare(NAME, out, wanted, (size_t)(3 * s.out_step) + 64);                                 \
    } while (0)

static void spans(int32_t count) {
    const qz_node node = grid(), first = grid(), second = grid();
    const qz_node *const sources[2] = {&first, &second};
    float m[2] = {real(2.0f), ldexpf(real(2.0f), between(-8, 40))}, small = real(0.03f);
    fill(in, sizeof(in));
    const int32_t x0 = in[0] - first.zero_point, y0 = in[1000] - second.zero_point;
    if (drawn(4) && x0 != 0 && y0 != 0) {
        const volatile float product = (float)x0 * m[0];
        m[1] = (tie() - product) / (float)y0;
        small = tie() / (float)(x0 * y0);
    }
    span s = {.pixels = between(1, 3),
              .count = count,
              .out = out,
              .a_step = count + between(0, 9),
              .b_step = drawn(2) ? 0 : count + between(0, 9),
              .out_step = 2 * count + between(0, 9)};
    uint8_t *a = exact(in, (size_t)((s.pixels - 1) * s.a_step + count));
    uint8_t *b = exact(in + 1000, (size_t)((s.pixels - 1) * s.b_step + count));
    uint8_t *tables = exact(in + 5000, 512), *second_table = tables + 256;
    s.a = a;
    s.b = b;
    SPAN("rescale", 1, set->rescale(&s, &first, m[1], &node),
         rounded((float)(x - first.zero_point) * m[1], &node));
    SPAN(
        "add", 1, set->add(&s, sources, m, &node),
        sum_of((float)(x - first.zero_point) * m[0], (float)(y - second.zero_point) * m[1], &node));
    SPAN("multiply", 1, set->multiply(&s, sources, small, &node),
         rounded((float)((x - first.zero_point) * (y - second.zero_point)) * small, &node));
    SPAN("keep", 1, set->keep(&s, &node), kept(x, &node));
    SPAN("alternate", 2, set->alternate(&s, &node), kept(k ? y : x, &node));
    if (set->table != NULL) SPAN("table", 1, set->table(&s, tables), tables[x]);
    if (set->alternate_tables != NULL)
        SPAN("alternate_tables", 2, set->alternate_tables(&s, tables, second_table),
             k ? second_table[y] : tables[x]);

    /* In place. */
    s.pixels = 1;
    memcpy(strip, a, (size_t)count);
    s.a = strip;
    s.out = strip;
    set->add(&s, sources, m, &node);
    for (int32_t i = 0; i < count; i++)
        wanted[i] = sum_of((float)(a[i] - first.zero_point) * m[0],
                           (float)(b[i] - second.zero_point) * m[1], &node);
    compare("add in place", strip, wanted, (size_t)count);
    if (set->table != NULL) {
        memcpy(strip, a, (size_t)count);
        set->table(&s, tables);
        for (int32_t i = 0; i < count; i++) wanted[i] = tables[a[i]];
        compare("table in place", strip, wanted, (size_t)count);
    }
    free(a), free(b), free(tables);
}

static void windows(int32_t count) {
    const qz_node node = grid(), source = grid();
    const size_t n = (size_t)count;
    const float multiplier = real(0.25f);
    const uint8_t *taps[MOST_TAPS];
    const int32_t tap_count = between(1, MOST_TAPS);
    fill(in, sizeof(in));
    const span s = {.pixels = between(1, 3),
                    .count = count,
                    .out = out,
                    .a_step = between(0, 300),
                    .out_step = count + between(0, 9)};
    const size_t all = (size_t)((s.pixels - 1) * s.a_step + count);
    for (int32_t k = 0; k < tap_count; k++) taps[k] = exact(in + 100 * k, all);
    memset(out, 77, sizeof(out));
    memset(wanted, 77, sizeof(wanted));
    set->most(&s, taps, tap_count, &node);
    for (int64_t p = 0; p < s.pixels; p++)
        for (int64_t i = 0; i < s.count; i++) {
            uint8_t most = 0;
            for (int32_t k = 0; k < tap_count; k++) {
                const uint8_t x = taps[k][p * s.a_step + i];
                most = x > most ? x : most;
            }
            wanted[p * s.out_step + i] = kept(most, &node);
        }
    compare("most", out, wanted, (size_t)(3 * s.out_step) + 64);
    uint8_t *y = exact(out, n);
    set->average(taps, tap_count, count, source.zero_point, multiplier, &node, y);
    for (int32_t i = 0; i < count; i++) {
        int32_t sum = 0;
        for (int32_t k = 0; k < tap_count; k++) sum += taps[k][i] - source.zero_point;
        wanted[i] = rounded((float)sum * multiplier, &node);
    }
    compare("average", y, wanted, n);
    for (int32_t k = 0; k < tap_count; k++) free((void *)(uintptr_t)taps[k]);
    free(y);
}

static void images(int32_t count) {
    const qz_node node = grid();
    const int32_t channels = between(1, 5), plane = count + between(0, 9);
    const size_t n = (size_t)((channels - 1) * plane + count);
    const float per_step = real(50.0f);
    float *x = malloc(n * sizeof(float));
    uint8_t *y = exact(out, (size_t)(count * channels));
    if (x == NULL) exit(2);
    for (size_t i = 0; i < n; i++)
        x[i] = drawn(3) ? real(3.0f) : ldexpf(real(3.0f), between(-40, 60));
    set->quantize(x, count, channels, plane, per_step, &node, y);
    for (int32_t i = 0; i < count; i++)
        for (int32_t c = 0; c < channels; c++)
            wanted[i * channels + c] = rounded(x[c * plane + i] * per_step, &node);
    compare("quantize", y, wanted, (size_t)(count * channels));
    free(x), free(y);
    if (set->three_tables == NULL) return;
    fill(in, sizeof(in));
    uint8_t *picture = exact(in, (size_t)(3 * count)), *made = exact(out, (size_t)(3 * count));
    set->three_tables(picture, count, in + 10000, made);
    for (int32_t i = 0; i < 3 * count; i++) wanted[i] = in[10000 + 256 * (i % 3) + picture[i]];
    compare("three_tables", made, wanted, (size_t)(3 * count));
    free(picture), free(made);
}

int main(void) {
    int32_t sets = 0;
    for (; (set = qz_find_kernels(sets)) != NULL; sets++) {
        compared = 0;
        for (int32_t channels = 1; channels <= QZ_WIDTH; channels++)
            for (int32_t pixels = 1; pixels <= 16; pixels++) {
                dense(channels, pixels);
                depthwise(channels, pixels);
                reals(channels);
            }
        for (int32_t round = 0; round < 4; round++)
            for (int32_t count = 1; count <= 140; count++) {
                spans(count);
                windows(count);
                images(count);
            }
        printf("%s: %lld bytes compared, %s\n", set->name, (long long)compared,
               wrong ? "some differ" : "all equal");
    }
    if (sets == 0) printf("no kernels for this processor\n");
    return wrong != 0;
}
