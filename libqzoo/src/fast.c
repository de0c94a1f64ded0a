/* Which layers fast kernels compute, and the loops around those kernels. */
#include "fast.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Channels that one call of a kernel computes at most. */
#define WIDTH 64
/* Of a window. */
#define MOST_TAPS 1024

struct fast {
    bool depthwise;
    bool merged; /* whether the pixels of a window's row are one run of bytes */
    int32_t runs, quads, taps;
    int32_t
        width; /* channels of a tile at most; of a grouped layer, whole groups or parts of one */
    int32_t padded; /* output channels, rounded up to whole vectors */
    int8_t *weights;
    int32_t *start;
    float *multiplier, *addend;
};

static int32_t round_up(int32_t value, int32_t to) { return (value + to - 1) / to * to; }

/* Vectors of the tile that begins at a channel. */
static int32_t vectors_at(const struct fast *f, int32_t first) {
    const int32_t left = (f->padded - first) / 16, most = f->width / 16;
    return left > most ? most : left;
}

/* Where a channel of a tile stands: within 128 bits, vector j holds numbers 4 j to 4 j + 3. */
static int32_t lane_of(int32_t channel, int32_t vectors) {
    if (vectors < 4) return channel;
    return channel / 4 % 4 * 16 + channel / 16 * 4 + channel % 4;
}

/* Channels of a tile; 0 where tiles would be parts of several groups. */
static int32_t width_of(const qz_node *node, bool depthwise) {
    if (depthwise || node->groups == 1) return WIDTH;
    const int32_t each = node->weight_shape[0] / node->groups;
    for (int32_t width = WIDTH; width > 16; width /= 2)
        if (each % width == 0) return width;
    /* No tile may have fewer groups than others: it would read beyond the last pixel. */
    return each % 16 == 0 || (16 % each == 0 && node->groups % (16 / each) == 0) ? 16 : 0;
}

qz_status qz_pack_fast(qz_model *model, step *step, const qz_node *source, int32_t number,
                       char *message) {
    const qz_node *node = &step->node;
    const int32_t *shape = node->weight_shape;
    const int32_t area = shape[2] * shape[3];
    const int64_t row = (int64_t)shape[1] * area;
    const bool depthwise = node->groups == shape[0] && shape[1] == 1 && shape[0] > 1;
    const int32_t width = width_of(node, depthwise);
    if (step->weight == NULL || !model->vnni || width == 0 || area > MOST_TAPS) return QZ_OK;
    /* A tile reads the inputs of all groups that it has channels of. */
    const int32_t each = shape[0] / node->groups;
    const int32_t inputs = shape[1] * (node->groups > 1 && width > each ? width / each : 1);
    for (int32_t o = 0; o < shape[0]; o++) { /* weights must fit into 8 bits, steps into 32 */
        int64_t sum = 0;
        int16_t least = 0, greatest = 0;
        for (int64_t i = 0; i < row; i++) {
            const int16_t w = step->weight[o * row + i];
            least = w < least ? w : least;
            greatest = w > greatest ? w : greatest;
            sum += abs(w);
        }
        if (least < -128 || greatest > 127) return QZ_OK; /* zero points move them out */
        const double most = 255.0 * (double)sum * step->multiplier[o] +
                            (step->addend ? fabs((double)step->addend[o]) : 0.0);
        if (!(most < 0x1p30)) return QZ_OK;
    }
    struct fast *f = calloc(1, sizeof(*f));
    if (f == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for node %d", number);
    step->fast = f;
    f->depthwise = depthwise;
    f->width = width;
    f->merged = node->groups == 1 && (node->dilation[1] == 1 || shape[3] == 1);
    f->runs = f->merged ? shape[2] : area;
    f->quads = round_up(inputs * (f->merged ? shape[3] : 1), 4) / 4;
    f->taps = round_up(area, 4);
    f->padded = round_up(shape[0], depthwise ? WIDTH : 16);
    const size_t per_channel = depthwise ? (size_t)f->taps : (size_t)f->runs * (size_t)f->quads * 4;
    const size_t channels = (size_t)f->padded;
    f->weights = qz_allocate(model, channels * per_channel + 64, 1);
    f->start = qz_allocate(model, channels, sizeof(int32_t));
    f->multiplier = qz_allocate(model, channels, sizeof(float));
    f->addend = qz_allocate(model, channels, sizeof(float));
    if (!f->weights || !f->start || !f->multiplier || !f->addend)
        return qz_fail(message, QZ_NO_MEMORY, "no memory for the weights of node %d", number);
    for (int32_t o = 0; o < shape[0]; o++) {
        const int32_t first = o / width * width, vectors = depthwise ? 4 : vectors_at(f, first);
        const int32_t before = (o / each - first / each) * shape[1]; /* inputs of other groups */
        const int32_t lane = lane_of(o - first, vectors);
        int8_t *tile = f->weights + (size_t)first * per_channel;
        int64_t sum = 0;
        for (int32_t k = 0; k < area; k++) {
            const int16_t *weights = step->weight + o * row + (int64_t)k * shape[1];
            if (depthwise) {
                tile[(k / 4 * WIDTH + lane) * 4 + k % 4] = (int8_t)*weights;
                sum += *weights;
                continue;
            }
            const size_t run = (size_t)(f->merged ? k / shape[3] : k);
            const size_t quad = (size_t)vectors * 64; /* bytes of four inputs for all channels */
            int8_t *to = tile + run * (size_t)f->quads * quad + (size_t)lane * 4;
            size_t byte = (size_t)(f->merged ? k % shape[3] * shape[1] : before);
            for (int32_t i = 0; i < shape[1]; i++, byte++) {
                to[(byte >> 2) * quad + (byte & 3)] = (int8_t)weights[i];
                sum += weights[i];
            }
        }
        f->start[first + lane] = (int32_t)(uint32_t)(uint64_t)(-source->zero_point * sum);
        f->multiplier[first + lane] = step->multiplier[o];
        f->addend[first + lane] = step->addend ? step->addend[o] : 0.0f;
    }
    return QZ_OK;
}

void qz_free_fast(struct fast *f) {
    if (f == NULL) return;
    free(f->weights);
    free(f->start);
    free(f->multiplier);
    free(f->addend);
    free(f);
}

static bool is_padded(const qz_node *node) {
    return node->padding[0] || node->padding[1] || node->padding[2] || node->padding[3];
}

static ptrdiff_t padded_row(const qz_node *node, const view *in) {
    return (ptrdiff_t)(in->size.width + node->padding[1] + node->padding[3]) * in->size.c;
}

size_t qz_fast_scratch(const step *step, const view *in) {
    const qz_node *node = &step->node;
    if (step->fast == NULL || !is_padded(node)) return 0;
    const size_t rows = (size_t)(in->size.height + node->padding[0] + node->padding[2]);
    return rows * (size_t)padded_row(node, in) + WIDTH; /* kernels read beyond the last byte */
}

/* Copies an image with its padding around it, whose bytes are the zero point. */
static void copy_padded(const qz_node *node, const view *in, const uint8_t *image, uint8_t zero,
                        uint8_t *to) {
    const size_t row = (size_t)padded_row(node, in), inside = (size_t)in->row;
    const size_t before = (size_t)node->padding[1] * (size_t)in->size.c;
    memset(to, zero, row * (size_t)node->padding[0]);
    to += row * (size_t)node->padding[0];
    for (int32_t y = 0; y < in->size.height; y++, to += row, image += in->row) {
        memset(to, zero, before);
        memcpy(to + before, image, inside);
        memset(to + before + inside, zero, row - before - inside);
    }
    memset(to, zero, row * (size_t)node->padding[2]);
}

static void image_dense(const step *step, const uint8_t *in, ptrdiff_t row, int32_t channels,
                        uint8_t *image, const view *out) {
    const struct fast *f = step->fast;
    const qz_node *node = &step->node;
    const int32_t *shape = node->weight_shape;
    const int32_t stride_y = node->stride[0], stride_x = node->stride[1];
    int32_t height = out->size.height, width = out->size.width;
    ptrdiff_t offsets[f->runs];
    for (int32_t r = 0; r < f->runs; r++) {
        const int32_t i = f->merged ? r : r / shape[3], j = f->merged ? 0 : r % shape[3];
        offsets[r] = i * node->dilation[0] * row + (ptrdiff_t)j * node->dilation[1] * channels;
    }
    dense_tile t = {.runs = f->runs,
                    .quads = f->quads,
                    .offsets = offsets,
                    .step = (ptrdiff_t)stride_x * channels,
                    .out_step = out->size.c};
    if (f->runs == 1 && stride_x == 1 && stride_y == 1 && row == (ptrdiff_t)width * channels) {
        width *= height; /* one long row */
        height = 1;
    }
    const size_t per_channel = (size_t)f->runs * (size_t)f->quads * 4;
    for (int32_t first = 0; first < f->padded; first += f->width) {
        const uint8_t *from = in;
        if (node->groups > 1) from += first / (shape[0] / node->groups) * shape[1];
        t.vectors = vectors_at(f, first);
        t.channels = shape[0] - first < f->width ? shape[0] - first : f->width;
        t.weights = f->weights + (size_t)first * per_channel;
        t.start = f->start + first;
        t.multiplier = f->multiplier + first;
        t.addend = f->addend + first;
        for (int32_t y = 0; y < height; y++)
            qz_dense_avx512(&t, from + (ptrdiff_t)y * stride_y * row,
                            image + (ptrdiff_t)y * width * out->size.c + first, width, node);
    }
}

static void image_depthwise(const step *step, const uint8_t *in, ptrdiff_t row, int32_t channels,
                            uint8_t *image, const view *out) {
    const struct fast *f = step->fast;
    const qz_node *node = &step->node;
    const int32_t area = node->weight_shape[2] * node->weight_shape[3];
    ptrdiff_t offsets[f->taps];
    for (int32_t k = 0; k < f->taps; k++) {
        const int32_t tap = k < area ? k : 0;
        const int32_t i = tap / node->weight_shape[3], j = tap % node->weight_shape[3];
        offsets[k] = i * node->dilation[0] * row + (ptrdiff_t)j * node->dilation[1] * channels;
    }
    depthwise_tile t = {.taps = f->taps,
                        .offsets = offsets,
                        .step = (ptrdiff_t)node->stride[1] * channels,
                        .out_step = channels};
    for (int32_t y = 0; y < out->size.height; y++) {
        for (int32_t first = 0; first < channels; first += WIDTH) {
            t.channels = channels - first < WIDTH ? channels - first : WIDTH;
            t.weights = f->weights + (size_t)first * (size_t)f->taps;
            t.start = f->start + first;
            t.multiplier = f->multiplier + first;
            t.addend = f->addend + first;
            qz_depthwise_avx512(&t, in + (ptrdiff_t)y * node->stride[0] * row + first,
                                image + (ptrdiff_t)y * out->row + first, out->size.width, node);
        }
    }
}

void qz_compute_fast(const step *step, const view *in, const view *out, const qz_node *source,
                     uint8_t *scratch) {
    const qz_node *node = &step->node;
    const uint8_t *from = in->data;
    ptrdiff_t row = in->row;
    if (is_padded(node)) {
        copy_padded(node, in, from, (uint8_t)source->zero_point, scratch);
        from = scratch;
        row = padded_row(node, in);
    }
    if (step->fast->depthwise)
        image_depthwise(step, from, row, in->size.c, out->data, out);
    else
        image_dense(step, from, row, in->size.c, out->data, out);
}
