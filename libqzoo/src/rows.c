/* Operations without weights, by kernels: which pixels and rows they get. */
#include "fast.h"

#include <string.h>

/* Of a window whose pixels are looked at together. */
#define MOST_PIXELS 1024

static uint8_t *pixel(const view *v, int32_t y, int32_t x) {
    return (uint8_t *)v->data + y * v->row + x * v->column;
}

static bool same_size(const view *a, const view *b) {
    return a->size.c == b->size.c && a->size.height == b->size.height &&
           a->size.width == b->size.width;
}

/* The spans of a part of an output and of the same places of its inputs, one after the other: all
 * bytes at once where nothing lies between them, else row by row. Begin with {0}. */
typedef struct {
    span span;
    bool begun;
    int32_t y, end;
} spans;

static bool next_span(spans *s, const view *a, const view *b, const view *out, part part) {
    if (is_dense(a) && is_dense(b) && is_dense(out)) {
        const int64_t bytes = (int64_t)out->size.c * out->size.height * out->size.width;
        const int64_t units = (bytes + 63) / 64;
        const int64_t from = share(units, part) * 64, to = share_end(units, part) * 64;
        const uint8_t *const data_a = a->data, *const data_b = b->data;
        s->span = (span){.pixels = 1,
                         .count = (to < bytes ? to : bytes) - from,
                         .a = data_a + from,
                         .b = data_b + from,
                         .out = (uint8_t *)out->data + from};
        if (s->begun || s->span.count <= 0) return false;
        return s->begun = true;
    }
    if (!s->begun) {
        s->begun = true;
        s->y = (int32_t)share(out->size.height, part);
        s->end = (int32_t)share_end(out->size.height, part);
    }
    if (s->y == s->end) return false;
    s->span = (span){.pixels = out->size.width,
                     .count = out->size.c,
                     .a = pixel(a, s->y, 0),
                     .b = pixel(b, s->y, 0),
                     .out = pixel(out, s->y, 0),
                     .a_step = a->column,
                     .b_step = b->column,
                     .out_step = out->column};
    s->y++;
    return true;
}

static bool quantize(const step *step, const view *in, const view *out, const qz_kernels *kernels,
                     part part) {
    if (in->channel == 1 || in->row != in->size.width || !is_dense(out)) return false;
    const int64_t pixels = (int64_t)in->size.height * in->size.width, units = (pixels + 63) / 64;
    const int64_t from = share(units, part) * 64, to = share_end(units, part) * 64;
    const int64_t count = (to < pixels ? to : pixels) - from;
    if (count > 0)
        kernels->quantize((const float *)in->data + from, count, in->size.c, in->channel,
                          step->multiplier[0], &step->node,
                          (uint8_t *)out->data + from * in->size.c);
    return true;
}

static bool pointwise(const step *step, const view *in, const view *out,
                      const qz_node *const *sources, const qz_kernels *kernels, part part,
                      uint8_t *scratch) {
    const qz_node *node = &step->node;
    spans s = {0};
    if (same_size(&in[0], &in[1])) {
        while (next_span(&s, &in[0], &in[1], out, part))
            if (node->op == QZ_ADD)
                kernels->add(&s.span, sources, step->multiplier, node);
            else
                kernels->multiply(&s.span, sources, step->multiplier[0], node);
        return true;
    }
    /* A factor for each channel, as squeeze and excitation has it; either input may be it. */
    const int k = in[0].size.height == 1 && in[0].size.width == 1 ? 0 : 1;
    const view *whole = &in[1 - k];
    if (node->op == QZ_ADD || in[k].size.height != 1 || in[k].size.width != 1 ||
        in[k].size.c != whole->size.c)
        return false;
    const qz_node *const ordered[2] = {sources[1 - k], sources[k]};
    view each = in[k];
    each.row = each.column = 0;             /* its pixel serves all */
    if (is_dense(whole) && is_dense(out)) { /* a row of it does, without bytes left over */
        const int32_t width = whole->size.width;
        for (int32_t x = 0; x < width; x++)
            memcpy(scratch + (ptrdiff_t)x * each.size.c, each.data, (size_t)each.size.c);
        const int64_t end = share_end(out->size.height, part);
        for (int64_t y = share(out->size.height, part); y < end; y++)
            kernels->multiply(&(span){.pixels = 1,
                                      .count = (int64_t)width * each.size.c,
                                      .a = pixel(whole, (int32_t)y, 0),
                                      .b = scratch,
                                      .out = pixel(out, (int32_t)y, 0)},
                              ordered, step->multiplier[0], node);
        return true;
    }
    while (next_span(&s, whole, &each, out, part))
        kernels->multiply(&s.span, ordered, step->multiplier[0], node);
    return true;
}

static void concat(const step *step, const view *in, const view *out, const qz_node *const *sources,
                   const qz_kernels *kernels, part part) {
    const qz_node *node = &step->node;
    view to = *out;
    for (int32_t i = 0; i < node->input_count; i++) {
        to.size.c = in[i].size.c;
        const bool same =
            sources[i]->scale == node->scale && sources[i]->zero_point == node->zero_point;
        spans s = {0};
        while (next_span(&s, &in[i], &in[i], &to, part))
            if (same)
                kernels->keep(&s.span, node);
            else if (kernels->table != NULL)
                kernels->table(&s.span, step->tables + 256 * i);
            else
                kernels->rescale(&s.span, sources[i], step->multiplier[i], node);
        to.data = (uint8_t *)to.data + in[i].size.c;
    }
}

/* Collects the pixels of a window that lie in the image; returns how many. */
static int32_t window_of(const qz_node *node, const view *in, int32_t y, int32_t x,
                         const uint8_t **taps) {
    int32_t found = 0;
    for (int32_t i = 0; i < node->kernel[0]; i++) {
        const int32_t row = y * node->stride[0] - node->padding[0] + i;
        if (row < 0 || row >= in->size.height) continue;
        for (int32_t j = 0; j < node->kernel[1]; j++) {
            const int32_t column = x * node->stride[1] - node->padding[1] + j;
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

/* Bytes of a row that a max pool's windows reach, those beyond the image included. */
static size_t reach(const qz_node *node, const view *in, const view *out) {
    const size_t columns = (size_t)(out->size.width - 1) * (size_t)node->stride[1] +
                           (size_t)(node->kernel[1] - 1) * (size_t)node->dilation[1] + 1;
    const size_t least = (size_t)node->padding[1] + (size_t)in->size.width;
    return (columns > least ? columns : least) * (size_t)in->size.c;
}

size_t qz_rows_scratch(const step *step, const view *in, const view *out) {
    if (step->node.op == QZ_MUL) return (size_t)out->size.width * (size_t)out->size.c;
    return step->node.op == QZ_MAX_POOL2D ? reach(&step->node, in, out) : 0;
}

/* The greatest of each window: of its columns first, which neighbouring windows share. */
static bool max_pool(const step *step, const view *in, const view *out, const qz_kernels *kernels,
                     part part, uint8_t *scratch) {
    const qz_node *node = &step->node;
    const int32_t channels = in->size.c, *kernel = node->kernel;
    const uint8_t *taps[MOST_PIXELS];
    if (in->column != channels || kernel[0] > MOST_PIXELS || kernel[1] > MOST_PIXELS) return false;
    memset(scratch, 0, reach(node, in, out)); /* beyond the image: less than anything */
    uint8_t *inside = scratch + (ptrdiff_t)node->padding[1] * channels;
    const span columns = {.pixels = 1, .count = (int64_t)in->size.width * channels, .out = inside};
    const int32_t end = (int32_t)share_end(out->size.height, part);
    for (int32_t y = (int32_t)share(out->size.height, part); y < end; y++) {
        int32_t found = 0;
        for (int32_t i = 0; i < kernel[0]; i++) {
            const int32_t row = y * node->stride[0] - node->padding[0] + i * node->dilation[0];
            if (row >= 0 && row < in->size.height) taps[found++] = pixel(in, row, 0);
        }
        kernels->most(&columns, taps, found, node);
        for (int32_t j = 0; j < kernel[1]; j++)
            taps[j] = scratch + (ptrdiff_t)j * node->dilation[1] * channels;
        span row = {.pixels = out->size.width,
                    .count = channels,
                    .out = pixel(out, y, 0),
                    .a_step = (ptrdiff_t)node->stride[1] * channels,
                    .out_step = out->column};
        if (row.a_step == channels && row.out_step == channels) { /* nothing lies between them */
            row.count *= row.pixels;
            row.pixels = 1;
        }
        kernels->most(&row, taps, kernel[1], node);
    }
    return true;
}

static bool average_pool(const step *step, const view *in, const view *out, const qz_node *source,
                         const qz_kernels *kernels, part part) {
    const qz_node *node = &step->node;
    const uint8_t *taps[MOST_PIXELS];
    if ((int64_t)node->kernel[0] * node->kernel[1] > MOST_PIXELS) return false;
    const int32_t edge_y = node->count_include_pad ? node->padding[0] : 0;
    const int32_t edge_x = node->count_include_pad ? node->padding[1] : 0;
    const int32_t end = (int32_t)share_end(out->size.height, part);
    for (int32_t y = (int32_t)share(out->size.height, part); y < end; y++)
        for (int32_t x = 0; x < out->size.width; x++) {
            const int32_t found = window_of(node, in, y, x, taps);
            uint8_t *to = pixel(out, y, x);
            const int32_t top = y * node->stride[0] - node->padding[0];
            const int32_t left = x * node->stride[1] - node->padding[1];
            const double number = (double)counted(top, node->kernel[0], in->size.height, edge_y) *
                                  (double)counted(left, node->kernel[1], in->size.width, edge_x);
            const float multiplier =
                (float)((double)source->scale / ((double)node->scale * number));
            kernels->average(taps, found, out->size.c, source->zero_point, multiplier, node, to);
        }
    return true;
}

static bool mean(const step *step, const view *in, const view *out, const qz_node *source,
                 const qz_kernels *kernels, part part) {
    const int32_t height = in->size.height, width = in->size.width;
    const uint8_t *taps[MOST_PIXELS];
    if ((int64_t)height * width > MOST_PIXELS) return false;
    const double number = (double)height * (double)width;
    const float multiplier = (float)((double)source->scale / ((double)step->node.scale * number));
    const int64_t units = (in->size.c + 63) / 64, from = share(units, part) * 64;
    const int64_t end = share_end(units, part) * 64, to = end < in->size.c ? end : in->size.c;
    for (int32_t i = 0; i < height * width; i++) taps[i] = pixel(in, i / width, i % width) + from;
    if (from < to)
        kernels->average(taps, height * width, to - from, source->zero_point, multiplier,
                         &step->node, pixel(out, 0, 0) + from);
    return true;
}

static bool shuffle(const step *step, const view *in, const view *out, const qz_kernels *kernels,
                    part part) {
    if (step->node.groups != 2) return false;
    view a = *in, b = *in, half = *out;
    a.size.c = b.size.c = in->size.c / 2;
    b.data = (uint8_t *)in->data + a.size.c;
    half.size.c = a.size.c; /* of each input; the output's pixels are as far apart as they are */
    spans s = {0};
    while (next_span(&s, &a, &b, &half, part)) kernels->alternate(&s.span, &step->node);
    return true;
}

void qz_alternate(const step *step, const view *in, const view *out, const qz_kernels *kernels,
                  part part) {
    view half = *out;
    half.size.c = in[0].size.c;
    spans s = {0};
    while (next_span(&s, &in[0], &in[1], &half, part))
        kernels->alternate_tables(&s.span, step->tables, step->tables + 256);
}

static void slice(const step *step, const view *in, const view *out, const qz_kernels *kernels,
                  part part) {
    view from = *in;
    from.data = (uint8_t *)in->data + step->node.start;
    from.size.c = out->size.c;
    spans s = {0};
    while (next_span(&s, &from, &from, out, part)) kernels->keep(&s.span, &step->node);
}

static bool reshape(const step *step, const view *in, const view *out, const qz_kernels *kernels,
                    part part) {
    if (in->size.height * in->size.width != 1 || out->size.height * out->size.width != 1)
        return false;
    const span all = {
        .pixels = 1, .count = in->size.c, .a = in->data, .b = in->data, .out = out->data};
    if (part.index == 0) kernels->keep(&all, &step->node);
    return true;
}

bool qz_compute_rows(const step *step, const view *in, const view *out,
                     const qz_node *const *sources, const qz_model *model, part part,
                     uint8_t *scratch) {
    const qz_kernels *kernels = model->kernels;
    spans s = {0};
    if (kernels == NULL) return false;
    switch ((qz_op)step->node.op) {
    case QZ_QUANTIZE: return quantize(step, in, out, kernels, part);
    case QZ_ADD:
    case QZ_MUL: return pointwise(step, in, out, sources, kernels, part, scratch);
    case QZ_CONCAT: concat(step, in, out, sources, kernels, part); return true;
    case QZ_MAX_POOL2D: return max_pool(step, in, out, kernels, part, scratch);
    case QZ_AVG_POOL2D: return average_pool(step, in, out, sources[0], kernels, part);
    case QZ_MEAN: return mean(step, in, out, sources[0], kernels, part);
    case QZ_SLICE: slice(step, in, out, kernels, part); return true;
    case QZ_CHANNEL_SHUFFLE: return shuffle(step, in, out, kernels, part);
    case QZ_CLIP:
        while (next_span(&s, in, in, out, part)) kernels->keep(&s.span, &step->node);
        return true;
    case QZ_TABLE:
        if (kernels->table == NULL) return false;
        while (next_span(&s, in, in, out, part)) kernels->table(&s.span, step->tables);
        return true;
    case QZ_FLATTEN:
    case QZ_RESHAPE: return reshape(step, in, out, kernels, part);
    default: return false;
    }
}
