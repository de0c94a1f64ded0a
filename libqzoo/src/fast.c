/* Which layers kernels compute, how their weights are packed, and the loops around the kernels. */
#include "fast.h"

#include <stdlib.h>
#include <string.h>

/* Of a window. */
#define MOST_TAPS 1024
/* Bytes of a line of the caches: loads within one are faster than across two. */
#define LINE 64
/* Pixels of a row that a thread computes at least: a multiple of what most kernels do at once. */
#define CHUNK 12
/* Bytes that a strip of a depthwise layer's quads takes at most, so that it stays in the nearest
 * cache. */
#define STRIP 16384

typedef enum { DENSE, DEPTHWISE, REAL } kind;

struct fast {
    kind kind;
    int32_t
        width; /* channels of a tile at most; of a grouped layer, whole groups or parts of one */
    int32_t padded; /* output channels, rounded up to whole tiles */
    void *memory;   /* of what follows, which begins at lines of the caches */
    int8_t *weights;
    int32_t *start;
    float *multiplier, *addend;
    /* Dense: whether the pixels of a window's row are one run of bytes, and how many there are. */
    bool merged;
    int32_t runs, quads;
    /* Depthwise: output rows at a time, and fours of input rows that they read. */
    int32_t rows, fours;
    /* Real, for layers that are kept in float: [groups][window][inputs][outputs of a group]. */
    float *reals;
};

static int32_t round_up(int32_t value, int32_t to) { return (value + to - 1) / to * to; }

static int32_t at_most(int32_t value, int32_t most) { return value < most ? value : most; }

/* Vectors of the dense tile that begins at a channel. */
static int32_t vectors_at(const struct fast *f, int32_t first) {
    return at_most(f->padded - first, f->width) / 16;
}

/* Width of the depthwise tile that begins at a channel. */
static int32_t narrowed(const qz_kernels *kernels, int32_t channels) {
    if (!kernels->narrow || channels > 32) return QZ_WIDTH;
    return channels > 16 ? 32 : 16;
}

/* Where a channel of a tile of four vectors stands. */
static int32_t lane_of(const qz_kernels *kernels, int32_t channel) {
    if (!kernels->interleaved) return channel;
    return channel / 4 % 4 * 16 + channel / 16 * 4 + channel % 4;
}

/* Channels of a dense tile; 0 where tiles would be parts of several groups. */
static int32_t width_of(const qz_node *node) {
    if (node->groups == 1) return QZ_WIDTH;
    const int32_t each = node->weight_shape[0] / node->groups;
    for (int32_t width = QZ_WIDTH; width > 16; width /= 2)
        if (each % width == 0) return width;
    /* No tile may have fewer groups than others: it would read beyond the last pixel. */
    return each % 16 == 0 || (16 % each == 0 && node->groups % (16 / each) == 0) ? 16 : 0;
}

/* Whether weights fit into 8 bits, which zero points may move them out of, and steps into 32. */
static bool fits(const step *step, int64_t row) {
    for (int32_t o = 0; o < step->node.weight_shape[0]; o++) {
        int64_t sum = 0;
        int16_t least = 0, greatest = 0;
        for (int64_t i = 0; i < row; i++) {
            const int16_t w = step->weight[o * row + i];
            least = w < least ? w : least;
            greatest = w > greatest ? w : greatest;
            sum += abs(w);
        }
        if (least < -128 || greatest > 127) return false;
        const double most = 255.0 * (double)sum * step->multiplier[o] +
                            (step->addend ? fabs((double)step->addend[o]) : 0.0);
        if (!(most < 0x1p30)) return false;
    }
    return true;
}

static void pack_channel(struct fast *f, int32_t to, const step *step, int32_t o, int64_t sum,
                         int32_t zero) {
    f->start[to] = (int32_t)(uint32_t)(uint64_t)(zero * sum);
    f->multiplier[to] = step->multiplier[o];
    f->addend[to] = step->addend ? step->addend[o] : 0.0f;
}

/* [tiles][runs][quads][vectors][16][4] */
static void pack_dense(struct fast *f, const step *step, const qz_kernels *kernels, int32_t zero) {
    const int32_t *shape = step->node.weight_shape;
    const int32_t area = shape[2] * shape[3], each = shape[0] / step->node.groups;
    const int64_t row = (int64_t)shape[1] * area;
    for (int32_t o = 0; o < shape[0]; o++) {
        const int32_t first = o / f->width * f->width, vectors = vectors_at(f, first);
        const int32_t before = (o / each - first / each) * shape[1]; /* inputs of other groups */
        const int32_t lane = vectors == 4 ? lane_of(kernels, o - first) : o - first;
        int8_t *tile = f->weights + (ptrdiff_t)first * f->runs * f->quads * 4;
        const size_t quad = (size_t)vectors * 64; /* bytes of four inputs for all channels */
        int64_t sum = 0;
        for (int32_t k = 0; k < area; k++) {
            const int16_t *weights = step->weight + o * row + (int64_t)k * shape[1];
            const size_t run = (size_t)(f->merged ? k / shape[3] : k);
            int8_t *to = tile + run * (size_t)f->quads * quad + (size_t)lane * 4;
            size_t byte = (size_t)(f->merged ? k % shape[3] * shape[1] : before);
            int32_t i = 0;
            if (byte % 4 == 0) /* whole quads, which are most */
                for (; i + 4 <= shape[1]; i += 4, byte += 4) {
                    const int8_t four[4] = {(int8_t)weights[i], (int8_t)weights[i + 1],
                                            (int8_t)weights[i + 2], (int8_t)weights[i + 3]};
                    memcpy(to + (byte >> 2) * quad, four, 4);
                    sum += four[0] + four[1] + four[2] + four[3];
                }
            for (; i < shape[1]; i++, byte++) {
                to[(byte >> 2) * quad + (byte & 3)] = (int8_t)weights[i];
                sum += weights[i];
            }
        }
        pack_channel(f, first + lane, step, o, sum, zero);
    }
}

/* [tiles][rows][fours][kernel width][4][16][4]; narrow tiles have all channels several times. */
static void pack_depthwise(struct fast *f, const step *step, const qz_kernels *kernels,
                           int32_t zero) {
    const qz_node *node = &step->node;
    const int32_t *shape = node->weight_shape;
    const int32_t area = shape[2] * shape[3];
    for (int32_t o = 0; o < shape[0]; o++) {
        const int32_t first = o / QZ_WIDTH * QZ_WIDTH;
        const int32_t width = narrowed(kernels, shape[0] - first);
        for (int32_t copy = 0; copy < QZ_WIDTH / width; copy++) {
            const int32_t lane = lane_of(kernels, o - first + copy * width);
            int64_t sum = 0;
            for (int32_t k = 0; k < area; k++) {
                const int16_t weight = step->weight[(int64_t)o * area + k];
                sum += weight;
                for (int32_t r = 0; r < f->rows; r++) {
                    const int32_t slot = k / shape[3] + r * node->stride[0];
                    const int32_t quad = (r * f->fours + slot / 4) * shape[3] + k % shape[3];
                    f->weights[((ptrdiff_t)first * f->rows * f->fours * shape[3] +
                                (ptrdiff_t)quad * QZ_WIDTH + lane) *
                                   4 +
                               slot % 4] = (int8_t)weight;
                }
            }
            pack_channel(f, first + lane, step, o, sum, zero);
        }
    }
}

/* Packs a layer that is kept in float: the outputs side by side, so that several are summed up at
 * once, each in the order of plain C. */
static qz_status pack_real(qz_model *model, step *step, int32_t number, char *message) {
    const int32_t *shape = step->node.weight_shape;
    const int64_t count = (int64_t)shape[1] * shape[2] * shape[3];
    const int64_t each = shape[0] / step->node.groups;
    struct fast *f = calloc(1, sizeof(*f));
    if (f == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for node %d", number);
    step->fast = f;
    f->kind = REAL;
    f->memory = qz_allocate(model, (size_t)(shape[0] * count), sizeof(float));
    if (f->memory == NULL)
        return qz_fail(message, QZ_NO_MEMORY, "no memory for the weights of node %d", number);
    f->reals = f->memory;
    for (int64_t o = 0; o < shape[0]; o++)
        for (int64_t k = 0; k < count; k++)
            f->reals[(o / each * count + k) * each + o % each] = step->float_weight[o * count + k];
    return QZ_OK;
}

qz_status qz_pack_fast(qz_model *model, step *step, const qz_node *source, int32_t number,
                       char *message) {
    const qz_node *node = &step->node;
    const qz_kernels *kernels = model->kernels;
    const int32_t *shape = node->weight_shape;
    const int32_t area = shape[2] * shape[3];
    const bool depthwise = node->groups == shape[0] && shape[1] == 1 && shape[0] > 1;
    const int32_t width = depthwise ? QZ_WIDTH : width_of(node);
    /* Of a group with few outputs, hardly any are summed up at once. */
    if (step->float_weight != NULL && kernels != NULL && shape[0] / node->groups >= 8)
        return pack_real(model, step, number, message);
    const bool wide = depthwise && (int64_t)(shape[3] - 1) * node->dilation[1] > MOST_TAPS;
    if (step->weight == NULL || kernels == NULL || width == 0 || area > MOST_TAPS || wide ||
        !fits(step, (int64_t)shape[1] * area))
        return QZ_OK;
    struct fast *f = calloc(1, sizeof(*f));
    if (f == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for node %d", number);
    step->fast = f;
    f->kind = depthwise ? DEPTHWISE : DENSE;
    f->width = width;
    f->padded = round_up(shape[0], depthwise ? QZ_WIDTH : 16);
    size_t per_channel;
    if (depthwise) {
        f->fours = round_up(shape[2], 4) / 4;
        f->rows = node->dilation[0] > 1 ? 1 : (4 * f->fours - shape[2]) / node->stride[0] + 1;
        per_channel = (size_t)f->rows * (size_t)f->fours * (size_t)shape[3] * 4;
    } else {
        /* A tile reads the inputs of all groups that it has channels of. */
        const int32_t each = shape[0] / node->groups;
        const int32_t inputs = shape[1] * (node->groups > 1 && width > each ? width / each : 1);
        f->merged = node->groups == 1 && (node->dilation[1] == 1 || shape[3] == 1);
        f->runs = f->merged ? shape[2] : area;
        f->quads = round_up(inputs * (f->merged ? shape[3] : 1), 4) / 4;
        per_channel = (size_t)f->runs * (size_t)f->quads * 4;
    }
    const size_t numbers = ((size_t)f->padded * sizeof(float) + LINE - 1) / LINE * LINE;
    const size_t weights = (size_t)f->padded * per_channel;
    f->memory = qz_allocate(model, weights + 3 * numbers + 2 * LINE, 1);
    if (f->memory == NULL)
        return qz_fail(message, QZ_NO_MEMORY, "no memory for the weights of node %d", number);
    int8_t *first = (int8_t *)f->memory + (LINE - (uintptr_t)f->memory % LINE);
    f->start = (int32_t *)(void *)first;
    f->multiplier = (float *)(void *)(first + numbers);
    f->addend = (float *)(void *)(first + 2 * numbers);
    f->weights = first + 3 * numbers;
    (depthwise ? pack_depthwise : pack_dense)(f, step, kernels,
                                              kernels->shift - source->zero_point);
    return QZ_OK;
}

void qz_free_fast(struct fast *f) {
    if (f == NULL) return;
    free(f->memory);
    free(f);
}

static bool is_padded(const qz_node *node) {
    return node->padding[0] || node->padding[1] || node->padding[2] || node->padding[3];
}

/* Whether a dense layer computes from a copy of its input: with padding around it, or pixels side
 * by side where windows are read as runs of bytes. */
static bool is_copied(const step *step, const view *in) {
    return is_padded(&step->node) ||
           (step->fast->merged && step->node.weight_shape[3] > 1 && in->column != in->size.c);
}

static ptrdiff_t padded_row(const qz_node *node, const view *in) {
    return (ptrdiff_t)(in->size.width + node->padding[1] + node->padding[3]) * in->size.c;
}

/* Bytes of one vector of a depthwise layer's strip, for so many output pixels of a row. */
static ptrdiff_t strip_vector(const qz_node *node, int32_t pixels) {
    const int32_t spread = (node->weight_shape[3] - 1) * node->dilation[1];
    /* Kernels read whole vectors, and some beyond the last pixel. */
    return (ptrdiff_t)(pixels + spread / node->stride[1] + 8) * node->stride[1] * QZ_WIDTH;
}

/* How many output pixels of a row a strip is made for. */
static int32_t strip_pixels(const struct fast *f, const qz_node *node) {
    int32_t pixels = 64;
    while (pixels > 8 && strip_vector(node, pixels) * 4 * f->fours > STRIP) pixels -= 4;
    return pixels;
}

size_t qz_fast_scratch(const step *step, const view *in) {
    const qz_node *node = &step->node;
    const struct fast *f = step->fast;
    if (f == NULL) return 0;
    if (f->kind == REAL)
        return sizeof(double) * (size_t)node->weight_shape[1] * (size_t)node->weight_shape[2] *
               (size_t)node->weight_shape[3];
    if (f->kind == DEPTHWISE)
        return (size_t)(strip_vector(node, strip_pixels(f, node)) * 4 * f->fours) +
               (size_t)(in->size.width * in->column) + QZ_WIDTH;
    if (!is_copied(step, in)) return 0;
    const size_t rows = (size_t)(in->size.height + node->padding[0] + node->padding[2]);
    return rows * (size_t)padded_row(node, in) + QZ_WIDTH; /* kernels read beyond the last byte */
}

/* Copies rows of an image with its padding around it, whose bytes are the zero point. */
static void copy_padded(const qz_node *node, const view *in, int32_t from, int32_t to, uint8_t zero,
                        uint8_t *copy) {
    const size_t row = (size_t)padded_row(node, in), pixel = (size_t)in->size.c;
    const size_t before = (size_t)node->padding[1] * pixel;
    const size_t inside = (size_t)in->size.width * pixel;
    for (int32_t y = from - node->padding[0]; y < to - node->padding[0]; y++, copy += row) {
        if (y < 0 || y >= in->size.height) {
            memset(copy, zero, row);
            continue;
        }
        const uint8_t *image = (const uint8_t *)in->data + y * in->row;
        memset(copy, zero, before);
        if (in->column == in->size.c)
            memcpy(copy + before, image, inside);
        else
            for (int32_t x = 0; x < in->size.width; x++)
                memcpy(copy + before + (size_t)x * pixel, image + x * in->column, pixel);
        memset(copy + before + inside, zero, row - before - inside);
    }
}

/* What a thread computes of a dense layer: lines of tiles. A line is a row of outputs, or where all
 * rows are one, CHUNK pixels of it. */
typedef struct {
    int32_t lines;    /* of a tile */
    int64_t from, to; /* its lines, counted through all tiles one after the other */
    bool of_each;     /* instead: these lines of every tile */
} portion;

/* Threads share lines: so each computes from what it computed before, which is in its caches. Where
 * the weights take more room than the image, or lines are too few to be shared out evenly, they
 * share tiles. */
static portion portion_of(const qz_node *node, const view *out, int32_t lines, int32_t tiles,
                          part part) {
    const int32_t *shape = node->weight_shape;
    const int64_t image = (int64_t)out->size.height * out->size.width;
    const int64_t window = (int64_t)shape[0] * shape[2] * shape[3];
    const bool uneven = lines % part.count != 0 && lines < 16 * part.count;
    const bool of_each = part.count == 1 || (image >= window && !uneven);
    const int64_t units = of_each ? lines : (int64_t)lines * tiles;
    return (portion){lines, share(units, part), share_end(units, part), of_each};
}

/* The portion's lines of a tile. */
static void lines_of(const portion *p, int32_t tile, int32_t *first, int32_t *end) {
    const int64_t before = p->of_each ? 0 : (int64_t)tile * p->lines;
    const int64_t from = p->from - before, to = p->to - before;
    *first = from > 0 ? (int32_t)(from < p->lines ? from : p->lines) : 0;
    *end = to > 0 ? (int32_t)(to < p->lines ? to : p->lines) : 0;
}

static void compute_dense(const step *step, const view *in, const view *out, const qz_model *model,
                          part part, uint8_t *scratch) {
    const struct fast *f = step->fast;
    const qz_node *node = &step->node;
    const int32_t *shape = node->weight_shape;
    const int32_t stride_y = node->stride[0], stride_x = node->stride[1];
    const int32_t tiles = round_up(f->padded, f->width) / f->width;
    const int32_t height = out->size.height, width = out->size.width;
    const bool copied = is_copied(step, in);
    /* Whether all rows are one. */
    const bool whole = !copied && f->runs == 1 && stride_x == 1 && stride_y == 1 &&
                       in->row == width * in->column && out->row == width * out->column;
    const int32_t pixels = height * width;
    const portion p =
        portion_of(node, out, whole ? (pixels + CHUNK - 1) / CHUNK : height, tiles, part);
    if (p.from == p.to) return;
    const uint8_t *image = in->data;
    ptrdiff_t row = in->row, column = in->column;
    if (copied) { /* the rows that the portion needs */
        const bool one = p.of_each || p.from / p.lines == (p.to - 1) / p.lines; /* tile */
        const int32_t first = one ? (int32_t)(p.from % p.lines) : 0;
        const int32_t last = one ? (int32_t)((p.to - 1) % p.lines) : height - 1;
        const int32_t below = (shape[2] - 1) * node->dilation[0] + 1;
        copy_padded(node, in, first * stride_y, last * stride_y + below,
                    (uint8_t)qz_grid_of(model, step->inputs[0])->zero_point, scratch);
        row = padded_row(node, in);
        column = in->size.c;
        image = scratch - (ptrdiff_t)first * stride_y * row;
    }
    ptrdiff_t offsets[f->runs];
    for (int32_t r = 0; r < f->runs; r++) {
        const int32_t i = f->merged ? r : r / shape[3], j = f->merged ? 0 : r % shape[3];
        offsets[r] = i * node->dilation[0] * row + (ptrdiff_t)j * node->dilation[1] * column;
    }
    dense_tile t = {.runs = f->runs,
                    .quads = f->quads,
                    .offsets = offsets,
                    .step = stride_x * column,
                    .out_step = out->column};
    for (int32_t n = 0; n < tiles; n++) {
        int32_t line, end;
        lines_of(&p, n, &line, &end);
        if (line >= end) continue;
        const int32_t first = n * f->width;
        const uint8_t *from = image;
        uint8_t *to = (uint8_t *)out->data + first;
        if (node->groups > 1) from += first / (shape[0] / node->groups) * shape[1];
        t.vectors = vectors_at(f, first);
        t.channels = at_most(shape[0] - first, f->width);
        t.weights = f->weights + (ptrdiff_t)first * f->runs * f->quads * 4;
        t.start = f->start + first;
        t.multiplier = f->multiplier + first;
        t.addend = f->addend + first;
        if (whole) {
            const int32_t x = line * CHUNK, after = at_most(end * CHUNK, pixels);
            model->kernels->dense(&t, from + x * t.step, to + x * t.out_step, after - x, node);
            continue;
        }
        for (; line < end; line++)
            model->kernels->dense(&t, from + (ptrdiff_t)line * stride_y * row, to + line * out->row,
                                  width, node);
    }
}

/* Makes the quads that output pixels from `x` on need of the rows from `y` on. */
static void make_strip(const step *step, const view *in, const qz_kernels *kernels, int32_t first,
                       const depthwise_tile *t, int32_t y, int32_t x, int32_t pixels,
                       const uint8_t *zeros, uint8_t *strip) {
    const qz_node *node = &step->node;
    const struct fast *f = step->fast;
    const int32_t stride = node->stride[1];
    const int32_t slots = (f->rows - 1) * node->stride[0] + node->weight_shape[2];
    const ptrdiff_t phase = t->vector / stride;
    const int32_t spread = (node->weight_shape[3] - 1) * node->dilation[1];
    const int32_t left = x * stride - node->padding[1];
    const int32_t columns = (pixels - 1) * stride + spread + 1;
    const uint8_t *const outside[4] = {zeros, zeros, zeros, zeros};
    for (int32_t four = 0; four < f->fours; four++) {
        const uint8_t *rows[4];
        for (int32_t i = 0; i < 4; i++) {
            const int32_t slot = at_most(4 * four + i, slots - 1);
            const int32_t at = y * node->stride[0] - node->padding[0] + slot * node->dilation[0];
            const bool inside = at >= 0 && at < in->size.height;
            rows[i] = inside ? (const uint8_t *)in->data + at * in->row + first : zeros;
        }
        /* Columns whose number leaves the same rest lie side by side: those of one tap. */
        for (int32_t rest = 0; rest < stride && rest < columns; rest++) {
            uint8_t *to = strip + 4 * four * t->vector + rest * phase;
            const int32_t all = (columns - rest - 1) / stride + 1, start = left + rest;
            int32_t before = start < 0 ? at_most((-start + stride - 1) / stride, all) : 0;
            int32_t end = in->size.width > start
                              ? at_most((in->size.width - start - 1) / stride + 1, all)
                              : 0;
            end = end > before ? end : before;
            if (before > 0)
                kernels->interleave(outside, 0, before, t->channels, t->width, t->vector, to);
            if (end < all)
                kernels->interleave(outside, 0, all - end, t->channels, t->width, t->vector,
                                    to + end * t->width);
            if (end == before) continue;
            const ptrdiff_t skip = (start + before * stride) * in->column;
            const uint8_t *const from[4] = {rows[0] + skip, rows[1] + skip, rows[2] + skip,
                                            rows[3] + skip};
            kernels->interleave(from, stride * in->column, end - before, t->channels, t->width,
                                t->vector, to + before * t->width);
        }
    }
}

static void compute_depthwise(const step *step, const view *in, const view *out,
                              const qz_model *model, part part, uint8_t *scratch) {
    const struct fast *f = step->fast;
    const qz_node *node = &step->node;
    const qz_kernels *kernels = model->kernels;
    const int32_t channels = in->size.c, across = node->weight_shape[3];
    const int32_t blocks = f->padded / QZ_WIDTH, stride = node->stride[1];
    const int32_t groups = round_up(out->size.height, f->rows) / f->rows;
    const int32_t count = f->fours * across, pixels = strip_pixels(f, node);
    const ptrdiff_t vector = strip_vector(node, pixels);
    uint8_t *zeros = scratch + vector * 4 * f->fours; /* a row outside the image */
    memset(zeros, qz_grid_of(model, step->inputs[0])->zero_point,
           (size_t)(in->size.width * in->column) + QZ_WIDTH);
    ptrdiff_t offsets[count];
    depthwise_tile t = {
        .count = count, .offsets = offsets, .vector = vector, .out_step = out->column};
    for (int64_t unit = share((int64_t)groups * blocks, part);
         unit < share_end((int64_t)groups * blocks, part); unit++) {
        const int32_t y = (int32_t)(unit / blocks) * f->rows;
        const int32_t first = (int32_t)(unit % blocks) * QZ_WIDTH;
        t.channels = at_most(channels - first, QZ_WIDTH);
        t.width = narrowed(kernels, t.channels);
        t.start = f->start + first;
        t.multiplier = f->multiplier + first;
        t.addend = f->addend + first;
        for (int32_t k = 0; k < count; k++) {
            const int32_t j = k % across * node->dilation[1];
            offsets[k] =
                k / across * 4 * vector + j % stride * (vector / stride) + j / stride * t.width;
        }
        for (int32_t x = 0; x < out->size.width; x += pixels) {
            const int32_t now = at_most(out->size.width - x, pixels);
            make_strip(step, in, kernels, first, &t, y, x, now, zeros, scratch);
            for (int32_t r = 0; r < f->rows && y + r < out->size.height; r++) {
                t.weights = f->weights + ((ptrdiff_t)first * f->rows + QZ_WIDTH * r) * count * 4;
                kernels->depthwise(
                    &t, scratch,
                    (uint8_t *)out->data + (y + r) * out->row + x * out->column + first, now, node);
            }
        }
    }
}

static void compute_real(const step *step, const view *in, const view *out, const qz_model *model,
                         part part, uint8_t *scratch) {
    const qz_node *node = &step->node, *source = qz_grid_of(model, step->inputs[0]);
    const int32_t *shape = node->weight_shape, each = shape[0] / node->groups;
    const int64_t count = (int64_t)shape[1] * shape[2] * shape[3];
    double *values = (double *)(void *)scratch, sums[QZ_WIDTH];
    const int32_t end = (int32_t)share_end(out->size.height, part);
    for (int32_t y = (int32_t)share(out->size.height, part); y < end; y++)
        for (int32_t x = 0; x < out->size.width; x++)
            for (int32_t group = 0; group < node->groups; group++) {
                double *value = values; /* 0 outside the image */
                for (int32_t k = 0; k < shape[2] * shape[3]; k++, value += shape[1]) {
                    const int32_t row =
                        y * node->stride[0] - node->padding[0] + k / shape[3] * node->dilation[0];
                    const int32_t column =
                        x * node->stride[1] - node->padding[1] + k % shape[3] * node->dilation[1];
                    const bool inside =
                        row >= 0 && row < in->size.height && column >= 0 && column < in->size.width;
                    const uint8_t *from = (const uint8_t *)in->data + group * shape[1];
                    if (inside) from += row * in->row + column * in->column;
                    for (int32_t c = 0; c < shape[1]; c++)
                        value[c] =
                            inside ? (double)((float)(from[c] - source->zero_point) * source->scale)
                                   : 0.0;
                }
                for (int32_t first = 0; first < each; first += QZ_WIDTH) {
                    const int32_t lanes = at_most(each - first, QZ_WIDTH);
                    const int32_t o = group * each + first;
                    model->kernels->sum_reals(step->fast->reals + group * count * each + first,
                                              values, count, each, lanes, sums);
                    uint8_t *to = (uint8_t *)out->data + y * out->row + x * out->column + o;
                    for (int32_t i = 0; i < lanes; i++) {
                        float steps = (float)sums[i] * step->multiplier[o + i];
                        if (step->addend != NULL) steps += step->addend[o + i];
                        to[i] = qz_rounded(steps, node);
                    }
                }
            }
}

void qz_compute_fast(const step *step, const view *in, const view *out, const qz_model *model,
                     part part, uint8_t *scratch) {
    switch (step->fast->kind) {
    case DENSE: compute_dense(step, in, out, model, part, scratch); break;
    case DEPTHWISE: compute_depthwise(step, in, out, model, part, scratch); break;
    case REAL: compute_real(step, in, out, model, part, scratch); break;
    }
}
