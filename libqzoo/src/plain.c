/* Every operation in plain C, one loop for one operation: the arithmetic of docs/artifact.md to the
 * letter. Faster kernels give the same integers.
 */
#include "fast.h"

#include <math.h>
#include <string.h>

static inline uint8_t kept(uint8_t value, const qz_node *node) {
    return value < node->low    ? (uint8_t)node->low
           : value > node->high ? (uint8_t)node->high
                                : value;
}

static inline ptrdiff_t place(const view *v, int32_t c, int32_t y, int32_t x) {
    return c * v->channel + y * v->row + x * v->column;
}

static inline uint8_t *integer(const view *v, int32_t c, int32_t y, int32_t x) {
    return (uint8_t *)v->data + place(v, c, y, x);
}

static inline float *real(const view *v, int32_t c, int32_t y, int32_t x) {
    return (float *)v->data + place(v, c, y, x);
}

/* Goes through the elements of an output's part: some of its rows. */
#define EACH(out)                                                                                  \
    for (int32_t y = (int32_t)share((out)->size.height, part),                                     \
                 end = (int32_t)share_end((out)->size.height, part);                               \
         y < end; y++)                                                                             \
        for (int32_t x = 0; x < (out)->size.width; x++)                                            \
            for (int32_t c = 0; c < (out)->size.c; c++)

static void affine(const step *step, const view *in, const view *out, part part) {
    const float *gain = step->affine, *offset = gain + step->node.affine_count;
    EACH(out) { *real(out, c, y, x) = *real(in, c, y, x) * gain[c] + offset[c]; }
}

static void quantize(const step *step, const view *in, const view *out, part part) {
    const float per_step = step->multiplier[0];
    EACH(out) { *integer(out, c, y, x) = qz_rounded(*real(in, c, y, x) * per_step, &step->node); }
}

static void dequantize(const view *in, const view *out, const qz_node *source, part part) {
    EACH(out) {
        *real(out, c, y, x) = (float)(*integer(in, c, y, x) - source->zero_point) * source->scale;
    }
}

/* The sum over one window for one output channel. */
static float window_sum(const step *step, const view *in, const qz_node *source, int32_t o,
                        int32_t top, int32_t left) {
    const qz_node *node = &step->node;
    const int32_t *shape = node->weight_shape;
    const int32_t group = o / (shape[0] / node->groups), first = group * shape[1];
    ptrdiff_t at = (ptrdiff_t)o * shape[1] * shape[2] * shape[3];
    int64_t sum = 0;
    double real_sum = 0.0;
    for (int32_t i = 0; i < shape[2]; i++) {
        for (int32_t j = 0; j < shape[3]; j++, at += shape[1]) {
            const int32_t y = top + i * node->dilation[0], x = left + j * node->dilation[1];
            if (y < 0 || y >= in->size.height || x < 0 || x >= in->size.width) continue;
            const uint8_t *values = integer(in, first, y, x);
            for (int32_t c = 0; c < shape[1]; c++) {
                const int32_t value = values[c * in->channel] - source->zero_point;
                if (step->weight != NULL)
                    sum += value * step->weight[at + c];
                else
                    real_sum += (double)((float)value * source->scale) * step->float_weight[at + c];
            }
        }
    }
    return step->weight != NULL ? (float)sum : (float)real_sum;
}

static void weighted(const step *step, const view *in, const view *out, const qz_node *source,
                     part part) {
    const qz_node *node = &step->node;
    EACH(out) {
        const float sum = window_sum(step, in, source, c, y * node->stride[0] - node->padding[0],
                                     x * node->stride[1] - node->padding[1]);
        float steps = sum * step->multiplier[c];
        if (step->addend != NULL) steps += step->addend[c];
        *integer(out, c, y, x) = qz_rounded(steps, node);
    }
}

/* Returns an input's element of a sum or product; sizes of 1 serve all places. */
static inline int32_t spread(const view *v, const qz_node *source, int32_t c, int32_t y,
                             int32_t x) {
    return *integer(v, v->size.c == 1 ? 0 : c, v->size.height == 1 ? 0 : y,
                    v->size.width == 1 ? 0 : x) -
           source->zero_point;
}

static void add(const step *step, const view *in, const view *out, const qz_node *const *sources,
                part part) {
    EACH(out) {
        const float a = (float)spread(&in[0], sources[0], c, y, x) * step->multiplier[0];
        const float b = (float)spread(&in[1], sources[1], c, y, x) * step->multiplier[1];
        *integer(out, c, y, x) = qz_rounded(a + b, &step->node);
    }
}

static void multiply(const step *step, const view *in, const view *out,
                     const qz_node *const *sources, part part) {
    EACH(out) {
        const int32_t product =
            spread(&in[0], sources[0], c, y, x) * spread(&in[1], sources[1], c, y, x);
        *integer(out, c, y, x) = qz_rounded((float)product * step->multiplier[0], &step->node);
    }
}

static void concat(const step *step, const view *in, const view *out, const qz_node *const *sources,
                   part part) {
    int32_t first = 0;
    for (int32_t i = 0; i < step->node.input_count; i++) {
        EACH(&in[i]) {
            const float value = (float)(*integer(&in[i], c, y, x) - sources[i]->zero_point);
            *integer(out, first + c, y, x) = qz_rounded(value * step->multiplier[i], &step->node);
        }
        first += in[i].size.c;
    }
}

static void max_pool(const step *step, const view *in, const view *out, part part) {
    const qz_node *node = &step->node;
    EACH(out) {
        uint8_t most = 0;
        for (int32_t i = 0; i < node->kernel[0]; i++) {
            for (int32_t j = 0; j < node->kernel[1]; j++) {
                const int32_t row = y * node->stride[0] - node->padding[0] + i * node->dilation[0];
                const int32_t column =
                    x * node->stride[1] - node->padding[1] + j * node->dilation[1];
                if (row < 0 || row >= in->size.height || column < 0 || column >= in->size.width)
                    continue;
                const uint8_t value = *integer(in, c, row, column);
                most = value > most ? value : most;
            }
        }
        *integer(out, c, y, x) = kept(most, node);
    }
}

/* Rounds a sum divided by a count, both of which change from place to place. */
static uint8_t averaged(const step *step, const qz_node *source, int64_t sum, int64_t number) {
    const float multiplier =
        (float)((double)source->scale / ((double)step->node.scale * (double)number));
    return qz_rounded((float)sum * multiplier, &step->node);
}

static void avg_pool(const step *step, const view *in, const view *out, const qz_node *source,
                     part part) {
    const qz_node *node = &step->node;
    const int32_t height = in->size.height, width = in->size.width;
    /* How far beyond the image a place still counts. */
    const int32_t below = node->count_include_pad ? node->padding[0] : 0;
    const int32_t right = node->count_include_pad ? node->padding[1] : 0;
    EACH(out) {
        int64_t sum = 0, number = 0;
        for (int32_t i = 0; i < node->kernel[0]; i++) {
            for (int32_t j = 0; j < node->kernel[1]; j++) {
                const int32_t row = y * node->stride[0] - node->padding[0] + i;
                const int32_t column = x * node->stride[1] - node->padding[1] + j;
                if (row >= -below && row < height + below && column >= -right &&
                    column < width + right)
                    number++;
                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                sum += *integer(in, c, row, column) - source->zero_point;
            }
        }
        *integer(out, c, y, x) = averaged(step, source, sum, number);
    }
}

static void mean(const step *step, const view *in, const view *out, const qz_node *source,
                 part part) {
    const int64_t number = (int64_t)in->size.height * in->size.width;
    for (int64_t c = share(in->size.c, part); c < share_end(in->size.c, part); c++) {
        int64_t sum = 0;
        for (int32_t y = 0; y < in->size.height; y++)
            for (int32_t x = 0; x < in->size.width; x++)
                sum += *integer(in, (int32_t)c, y, x) - source->zero_point;
        *integer(out, (int32_t)c, 0, 0) = averaged(step, source, sum, number);
    }
}

static void channel_shuffle(const step *step, const view *in, const view *out, part part) {
    const int32_t groups = step->node.groups, each = in->size.c / groups;
    EACH(out) {
        *integer(out, c, y, x) =
            kept(*integer(in, c % groups * each + c / groups, y, x), &step->node);
    }
}

static void slice(const step *step, const view *in, const view *out, part part) {
    EACH(out) {
        *integer(out, c, y, x) = kept(*integer(in, step->node.start + c, y, x), &step->node);
    }
}

static void clip(const step *step, const view *in, const view *out, part part) {
    EACH(out) { *integer(out, c, y, x) = kept(*integer(in, c, y, x), &step->node); }
}

static void table(const step *step, const view *in, const view *out, part part) {
    EACH(out) { *integer(out, c, y, x) = step->tables[*integer(in, c, y, x)]; }
}

static void pad(const step *step, const view *in, const view *out, part part) {
    const qz_node *node = &step->node;
    EACH(out) {
        const int32_t row = y - node->padding[0], column = x - node->padding[1];
        const bool inside =
            row >= 0 && row < in->size.height && column >= 0 && column < in->size.width;
        const uint8_t value = inside ? *integer(in, c, row, column) : (uint8_t)node->zero_point;
        *integer(out, c, y, x) = kept(value, node);
    }
}

/* Flatten and reshape: the elements in the order channel, row, column get other places. */
static void reshape(const step *step, const view *in, const view *out, part part) {
    const int32_t height = in->size.height, width = in->size.width;
    int32_t at = 0;
    if (part.index > 0) return; /* too little to share */
    for (int32_t c = 0; c < out->size.c; c++)
        for (int32_t y = 0; y < out->size.height; y++)
            for (int32_t x = 0; x < out->size.width; x++, at++) {
                const uint8_t value =
                    *integer(in, at / (height * width), at / width % height, at % width);
                *integer(out, c, y, x) = kept(value, &step->node);
            }
}

void qz_compute(const step *step, const view *in, const view *out, const qz_model *model, part part,
                uint8_t *scratch) {
    const qz_node *sources[QZ_MAX_INPUTS];
    for (int32_t i = 0; i < step->node.input_count; i++)
        sources[i] = qz_grid_of(model, step->inputs[i]);
    if (qz_compute_rows(step, in, out, sources, model, part, scratch)) return;
    switch ((qz_op)step->node.op) {
    case QZ_AFFINE: affine(step, in, out, part); break;
    case QZ_QUANTIZE: quantize(step, in, out, part); break;
    case QZ_DEQUANTIZE: dequantize(in, out, sources[0], part); break;
    case QZ_CONV2D:
    case QZ_LINEAR: weighted(step, in, out, sources[0], part); break;
    case QZ_ADD: add(step, in, out, sources, part); break;
    case QZ_MUL: multiply(step, in, out, sources, part); break;
    case QZ_CONCAT: concat(step, in, out, sources, part); break;
    case QZ_TABLE: table(step, in, out, part); break;
    case QZ_CLIP: clip(step, in, out, part); break;
    case QZ_MAX_POOL2D: max_pool(step, in, out, part); break;
    case QZ_AVG_POOL2D: avg_pool(step, in, out, sources[0], part); break;
    case QZ_MEAN: mean(step, in, out, sources[0], part); break;
    case QZ_CHANNEL_SHUFFLE: channel_shuffle(step, in, out, part); break;
    case QZ_SLICE: slice(step, in, out, part); break;
    case QZ_PAD: pad(step, in, out, part); break;
    case QZ_FLATTEN:
    case QZ_RESHAPE: reshape(step, in, out, part); break;
    case QZ_OPS: break;
    }
}
