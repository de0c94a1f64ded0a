/* Operations without weights, row by row where the processor has AVX-512. */
#include "rows.h"
#include "fast.h"

#include <string.h>

#if defined(__x86_64__)

/* Of a window whose pixels are looked at together. */
#define MOST_PIXELS 1024
/* Pixels of one channel that are rounded before the channels are brought side by side. */
#define STRIP 256

static uint8_t *pixel(const view *v, int32_t y, int32_t x) {
    return (uint8_t *)v->data + y * v->row + x * v->column;
}

static int64_t bytes_of(const view *v) { return (int64_t)v->row * v->size.height; }

static bool same_size(const view *a, const view *b) {
    return bytes_of(a) == bytes_of(b) && a->size.c == b->size.c && a->size.height == b->size.height;
}

static bool quantize(const step *step, const view *in, const view *out) {
    const qz_node *node = &step->node;
    const float per_step = step->multiplier[0];
    if (in->channel == 1) {
        qz_quantize_row(in->data, bytes_of(in), per_step, node, out->data);
        return true;
    }
    const int32_t channels = in->size.c;
    uint8_t strip[STRIP];
    for (int32_t y = 0; y < in->size.height; y++)
        for (int32_t c = 0; c < channels; c++)
            for (int32_t x = 0; x < in->size.width; x += STRIP) {
                const int32_t left = in->size.width - x, now = left < STRIP ? left : STRIP;
                const float *from = (const float *)in->data + c * in->channel + y * in->row + x;
                qz_quantize_row(from, now, per_step, node, strip);
                uint8_t *to = pixel(out, y, x) + c;
                for (int32_t i = 0; i < now; i++) to[i * channels] = strip[i];
            }
    return true;
}

static bool pointwise(const step *step, const view *in, const view *out,
                      const qz_node *const *sources) {
    const qz_node *node = &step->node;
    const bool add = node->op == QZ_ADD;
    if (same_size(&in[0], &in[1])) {
        const int64_t bytes = bytes_of(out);
        if (add)
            qz_add_row(in[0].data, in[1].data, bytes, sources, step->multiplier, node, out->data);
        else
            qz_multiply_row(in[0].data, in[1].data, bytes, sources, step->multiplier[0], node,
                            out->data);
        return true;
    }
    /* A factor for each channel, as squeeze and excitation has it; either input may be it. */
    const int k = in[0].size.height == 1 && in[0].size.width == 1 ? 0 : 1;
    const view *each = &in[k], *whole = &in[1 - k];
    if (add || each->size.height != 1 || each->size.width != 1 || each->size.c != whole->size.c)
        return false;
    const qz_node *const ordered[2] = {sources[1 - k], sources[k]};
    for (int32_t y = 0; y < out->size.height; y++)
        for (int32_t x = 0; x < out->size.width; x++)
            qz_multiply_row(pixel(whole, y, x), pixel(each, 0, 0), out->size.c, ordered,
                            step->multiplier[0], node, pixel(out, y, x));
    return true;
}

static bool concat(const step *step, const view *in, const view *out,
                   const qz_node *const *sources) {
    const qz_node *node = &step->node;
    int32_t first = 0;
    for (int32_t i = 0; i < node->input_count; i++) {
        const int32_t channels = in[i].size.c;
        const bool same =
            sources[i]->scale == node->scale && sources[i]->zero_point == node->zero_point;
        for (int32_t y = 0; y < out->size.height; y++)
            for (int32_t x = 0; x < out->size.width; x++) {
                const uint8_t *from = pixel(&in[i], y, x);
                uint8_t *to = pixel(out, y, x) + first;
                if (same)
                    qz_keep_row(from, channels, node, to);
                else
                    qz_rescale_row(from, channels, sources[i], step->multiplier[i], node, to);
            }
        first += channels;
    }
    return true;
}

/* Collects the pixels of a window that lie in the image; returns how many. */
static int32_t window_of(const qz_node *node, const view *in, int32_t y, int32_t x,
                         const uint8_t **taps) {
    const bool max = node->op == QZ_MAX_POOL2D;
    const int32_t down = max ? node->dilation[0] : 1, right = max ? node->dilation[1] : 1;
    int32_t found = 0;
    for (int32_t i = 0; i < node->kernel[0]; i++) {
        const int32_t row = y * node->stride[0] - node->padding[0] + i * down;
        if (row < 0 || row >= in->size.height) continue;
        for (int32_t j = 0; j < node->kernel[1]; j++) {
            const int32_t column = x * node->stride[1] - node->padding[1] + j * right;
            if (column < 0 || column >= in->size.width) continue;
            taps[found++] = pixel(in, row, column);
        }
    }
    return found;
}

/* How many pixels of a window of one axis count, those beyond the image up to `edge` included. */
static int32_t counted(int32_t start, int32_t kernel, int32_t size, int32_t edge) {
    const int32_t from = start < -edge ? -edge : start;
    const int32_t to = start + kernel > size + edge ? size + edge : start + kernel;
    return to > from ? to - from : 0;
}

static bool pool(const step *step, const view *in, const view *out, const qz_node *source) {
    const qz_node *node = &step->node;
    const uint8_t *taps[MOST_PIXELS];
    if ((int64_t)node->kernel[0] * node->kernel[1] > MOST_PIXELS) return false;
    const int32_t edge_y = node->count_include_pad ? node->padding[0] : 0;
    const int32_t edge_x = node->count_include_pad ? node->padding[1] : 0;
    for (int32_t y = 0; y < out->size.height; y++)
        for (int32_t x = 0; x < out->size.width; x++) {
            const int32_t found = window_of(node, in, y, x, taps);
            uint8_t *to = pixel(out, y, x);
            if (node->op == QZ_MAX_POOL2D) {
                qz_max_row(taps, found, out->size.c, node, to);
                continue;
            }
            const int32_t top = y * node->stride[0] - node->padding[0];
            const int32_t left = x * node->stride[1] - node->padding[1];
            const double number = (double)counted(top, node->kernel[0], in->size.height, edge_y) *
                                  (double)counted(left, node->kernel[1], in->size.width, edge_x);
            const float multiplier =
                (float)((double)source->scale / ((double)node->scale * number));
            qz_average_row(taps, found, out->size.c, source->zero_point, multiplier, node, to);
        }
    return true;
}

static bool mean(const step *step, const view *in, const view *out, const qz_node *source) {
    const int32_t height = in->size.height, width = in->size.width;
    const uint8_t *taps[MOST_PIXELS];
    if ((int64_t)height * width > MOST_PIXELS) return false;
    const double number = (double)height * (double)width;
    const float multiplier = (float)((double)source->scale / ((double)step->node.scale * number));
    for (int32_t i = 0; i < height * width; i++) taps[i] = pixel(in, i / width, i % width);
    qz_average_row(taps, height * width, in->size.c, source->zero_point, multiplier, &step->node,
                   pixel(out, 0, 0));
    return true;
}

static bool by_pixel(const step *step, const view *in, const view *out) {
    const qz_node *node = &step->node;
    const bool slice = node->op == QZ_SLICE;
    if (!slice && node->groups != 2) return false;
    const int32_t half = in->size.c / 2;
    for (int32_t y = 0; y < out->size.height; y++)
        for (int32_t x = 0; x < out->size.width; x++) {
            const uint8_t *from = pixel(in, y, x);
            uint8_t *to = pixel(out, y, x);
            if (slice)
                qz_keep_row(from + node->start, out->size.c, node, to);
            else
                qz_interleave_row(from, from + half, half, node, to);
        }
    return true;
}

bool qz_compute_rows(const step *step, const view *in, const view *out,
                     const qz_node *const *sources, const qz_model *model) {
    if (!model->vnni) return false;
    switch ((qz_op)step->node.op) {
    case QZ_QUANTIZE: return quantize(step, in, out);
    case QZ_ADD:
    case QZ_MUL: return pointwise(step, in, out, sources);
    case QZ_CONCAT: return concat(step, in, out, sources);
    case QZ_MAX_POOL2D:
    case QZ_AVG_POOL2D: return pool(step, in, out, sources[0]);
    case QZ_MEAN: return mean(step, in, out, sources[0]);
    case QZ_SLICE:
    case QZ_CHANNEL_SHUFFLE: return by_pixel(step, in, out);
    case QZ_CLIP: qz_keep_row(in->data, bytes_of(in), &step->node, out->data); return true;
    case QZ_TABLE:
        if (!model->vbmi) return false;
        qz_table_row(in->data, bytes_of(in), step->table, out->data);
        return true;
    case QZ_FLATTEN:
    case QZ_RESHAPE:
        if (in->size.height * in->size.width != 1 || out->size.height * out->size.width != 1)
            return false;
        qz_keep_row(in->data, bytes_of(in), &step->node, out->data);
        return true;
    default: return false;
    }
}

#else

bool qz_compute_rows(const step *step, const view *in, const view *out,
                     const qz_node *const *sources, const qz_model *model) {
    (void)model, (void)step, (void)in, (void)out, (void)sources;
    return false;
}

#endif
