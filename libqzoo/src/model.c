/* Models: nodes checked once and copied, with weights in the order in which kernels read them. */
#include "fast.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bounds of what is possible at all; larger numbers would overflow sizes. */
#define MAX_NODES 10000
#define MAX_PIXELS 32767
#define MAX_CHANNELS (1 << 20)
#define MAX_VALUES ((int64_t)1 << 30)
#define SMALLEST_SCALE 0x1p-40f
#define LARGEST_SCALE 0x1p40f

qz_status qz_fail(char *message, qz_status status, const char *format, ...) {
    if (message != NULL) {
        va_list values;
        va_start(values, format);
        vsnprintf(message, QZ_MESSAGE, format, values);
        va_end(values);
    }
    return status;
}

const qz_node *qz_grid_of(const qz_model *model, int32_t input) {
    return input < 0 || model->steps[input].real ? NULL : &model->steps[input].node;
}

static bool is_real_out(int32_t op) { return op == QZ_AFFINE || op == QZ_DEQUANTIZE; }
static bool is_real_in(int32_t op) { return op == QZ_AFFINE || op == QZ_QUANTIZE; }
static bool is_weighted(int32_t op) { return op == QZ_CONV2D || op == QZ_LINEAR; }

/* Operations that move integers or cut them off, so that their grid is their input's. */
static bool keeps_grid(int32_t op) {
    return op == QZ_CLIP || op == QZ_MAX_POOL2D || op == QZ_CHANNEL_SHUFFLE || op == QZ_SLICE ||
           op == QZ_PAD || op == QZ_FLATTEN || op == QZ_RESHAPE;
}

static bool all_within(const int32_t *values, int count, int32_t low, int32_t high) {
    for (int i = 0; i < count; i++)
        if (values[i] < low || values[i] > high) return false;
    return true;
}

static bool is_usual(float value) { return value >= -0x1p40f && value <= 0x1p40f; /* no NaN */ }

static bool all_usual(const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (!is_usual(values[i])) return false;
    return true;
}

/* Checks what a node says by itself. */
static qz_status check_node(const qz_node *node, int32_t number, const qz_model *model,
                            char *message) {
    const int32_t op = node->op;
    if (op < 0 || op >= QZ_OPS)
        return qz_fail(message, QZ_BAD_MODEL, "node %d has an unknown operation %d", number, op);
    int32_t wanted = op == QZ_ADD || op == QZ_MUL ? 2 : 1;
    if (op == QZ_CONCAT ? node->input_count < 2 || node->input_count > QZ_MAX_INPUTS
                        : node->input_count != wanted)
        return qz_fail(message, QZ_BAD_MODEL, "node %d has %d inputs", number, node->input_count);
    if (node->inputs == NULL)
        return qz_fail(message, QZ_BAD_MODEL, "node %d lacks its inputs", number);
    for (int32_t i = 0; i < node->input_count; i++) {
        const int32_t input = node->inputs[i];
        if (input < QZ_IMAGES || input >= number)
            return qz_fail(message, QZ_BAD_MODEL, "node %d reads node %d, which is no earlier one",
                           number, input);
        if ((qz_grid_of(model, input) == NULL) != is_real_in(op))
            return qz_fail(message, QZ_BAD_MODEL, "node %d reads node %d, which is %s", number,
                           input, is_real_in(op) ? "quantized" : "float");
    }
    if (!is_real_out(op)) {
        if (!(node->scale >= SMALLEST_SCALE && node->scale <= LARGEST_SCALE))
            return qz_fail(message, QZ_BAD_MODEL, "node %d has an impossible scale", number);
        const int32_t whole[3] = {node->low, node->zero_point, node->high};
        if (!all_within(whole, 3, 0, 255) || node->low > node->high)
            return qz_fail(message, QZ_BAD_MODEL, "node %d has impossible bounds", number);
    }
    if (keeps_grid(op)) {
        const qz_node *source = qz_grid_of(model, node->inputs[0]);
        if (source->scale != node->scale || source->zero_point != node->zero_point)
            return qz_fail(message, QZ_BAD_MODEL, "node %d has another grid than its input",
                           number);
    }
    bool good = true;
    const bool pool = op == QZ_MAX_POOL2D || op == QZ_AVG_POOL2D;
    if (pool || op == QZ_CONV2D) good = good && all_within(node->stride, 2, 1, MAX_PIXELS);
    if (pool || op == QZ_CONV2D || op == QZ_PAD)
        good = good && all_within(node->padding, 4, 0, MAX_PIXELS);
    if (op == QZ_MAX_POOL2D || op == QZ_CONV2D)
        good = good && all_within(node->dilation, 2, 1, MAX_PIXELS);
    if (pool)
        good = good && all_within(node->kernel, 2, 1, MAX_PIXELS) &&
               node->padding[0] == node->padding[2] && node->padding[1] == node->padding[3] &&
               2 * node->padding[0] <= node->kernel[0] && 2 * node->padding[1] <= node->kernel[1];
    if (op == QZ_CONV2D || op == QZ_CHANNEL_SHUFFLE)
        good = good && node->groups >= 1 && node->groups <= MAX_CHANNELS;
    if (op == QZ_SLICE)
        good = good && node->start >= 0 && node->start < node->stop && node->stop <= MAX_CHANNELS;
    if (op == QZ_RESHAPE)
        good = good && node->rank >= 1 && node->rank <= 3 &&
               all_within(node->shape, node->rank, 1, MAX_CHANNELS);
    if (op == QZ_AFFINE)
        good = good && node->affine_count >= 1 && node->affine_count <= MAX_CHANNELS &&
               node->gain != NULL && node->offset != NULL &&
               all_usual(node->gain, node->affine_count) &&
               all_usual(node->offset, node->affine_count);
    if (op == QZ_TABLE) good = good && node->table != NULL;
    if (!good) return qz_fail(message, QZ_BAD_MODEL, "node %d has impossible attributes", number);
    return QZ_OK;
}

static qz_status check_weights(const qz_node *node, int32_t number, char *message) {
    const int32_t *shape = node->weight_shape;
    int64_t values = 1;
    for (int i = 0; i < 4; i++) {
        if (shape[i] < 1 || shape[i] > MAX_CHANNELS || (values *= shape[i]) > MAX_VALUES)
            return qz_fail(message, QZ_BAD_MODEL, "node %d has a weight of impossible shape",
                           number);
    }
    if (node->op == QZ_CONV2D ? shape[0] % node->groups != 0 : shape[2] != 1 || shape[3] != 1)
        return qz_fail(message, QZ_BAD_MODEL, "node %d has a weight of impossible shape", number);
    if ((node->weight == NULL) == (node->float_weight == NULL))
        return qz_fail(message, QZ_BAD_MODEL, "node %d needs weights of one kind", number);
    if (node->bias != NULL && !all_usual(node->bias, shape[0]))
        return qz_fail(message, QZ_BAD_MODEL, "node %d has an impossible bias", number);
    if (node->float_weight != NULL) {
        if (!all_usual(node->float_weight, values))
            return qz_fail(message, QZ_BAD_MODEL, "node %d has impossible weights", number);
        return QZ_OK;
    }
    if ((node->scale_count != 1 && node->scale_count != shape[0]) || node->weight_scale == NULL)
        return qz_fail(message, QZ_BAD_MODEL, "node %d lacks its weight scales", number);
    for (int32_t i = 0; i < node->scale_count; i++)
        if (!(node->weight_scale[i] >= 0x1p-126f && node->weight_scale[i] <= LARGEST_SCALE))
            return qz_fail(message, QZ_BAD_MODEL, "node %d has an impossible weight scale", number);
    return QZ_OK;
}

void *qz_allocate(qz_model *model, size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (memory != NULL) model->memory += count * size;
    return memory;
}

/* Puts weights into kernels' order, and refuses sums that 32 bits might not hold. */
static qz_status pack(qz_model *model, step *step, int32_t number, char *message) {
    const qz_node *node = &step->node;
    const int32_t *shape = node->weight_shape;
    const int64_t area = (int64_t)shape[2] * shape[3], row = shape[1] * area;
    const qz_node *source = qz_grid_of(model, step->inputs[0]);
    step->multiplier = qz_allocate(model, (size_t)shape[0], sizeof(float));
    if (node->bias != NULL) step->addend = qz_allocate(model, (size_t)shape[0], sizeof(float));
    if (node->float_weight != NULL)
        step->float_weight = qz_allocate(model, (size_t)(shape[0] * row), sizeof(float));
    else
        step->weight = qz_allocate(model, (size_t)(shape[0] * row), sizeof(int16_t));
    if (step->multiplier == NULL || (node->bias != NULL && step->addend == NULL) ||
        (step->weight == NULL && step->float_weight == NULL))
        return qz_fail(message, QZ_NO_MEMORY, "no memory for the weights of node %d", number);
    const int32_t below = source->zero_point - source->low,
                  above = source->high - source->zero_point;
    const int64_t reach = llabs(below) > llabs(above) ? llabs(below) : llabs(above);
    for (int32_t o = 0; o < shape[0]; o++) {
        const int32_t each = node->scale_count == 1 ? 0 : o;
        int32_t zero = 0;
        if (node->weight != NULL && node->weight_zero_point != NULL)
            zero = node->weight_zero_point[each];
        int64_t sum = 0;
        for (int64_t k = 0; k < area; k++) {
            const int64_t from = o * row + k, to = o * row + k * shape[1];
            if (node->float_weight != NULL) {
                for (int64_t i = 0; i < shape[1]; i++)
                    step->float_weight[to + i] = node->float_weight[from + i * area];
                continue;
            }
            int32_t part = 0; /* of at most 2^20 numbers up to 255 */
            for (int64_t i = 0; i < shape[1]; i++) {
                const int16_t weight = (int16_t)(node->weight[from + i * area] - zero);
                step->weight[to + i] = weight;
                part += abs(weight);
            }
            sum += part;
        }
        if (sum * reach > INT32_MAX)
            return qz_fail(message, QZ_BAD_MODEL, "node %d has sums that 32 bits do not hold",
                           number);
        /* Each is computed in double and rounded once. */
        if (node->float_weight != NULL)
            step->multiplier[o] = (float)(1.0 / (double)node->scale);
        else
            step->multiplier[o] = (float)((double)source->scale * (double)node->weight_scale[each] /
                                          (double)node->scale);
        if (node->bias != NULL)
            step->addend[o] = (float)((double)node->bias[o] / (double)node->scale);
    }
    const qz_status status = qz_pack_fast(model, step, source, number, message);
    if (step->fast != NULL) {
        model->memory -=
            (size_t)(shape[0] * row) * (step->weight != NULL ? sizeof(int16_t) : sizeof(float));
        free(step->weight);
        free(step->float_weight);
        step->weight = NULL;
        step->float_weight = NULL;
    }
    return status;
}

/* Computes what turns integers of the inputs into steps of the output. */
static qz_status scale_inputs(qz_model *model, step *step, int32_t number, char *message) {
    const qz_node *node = &step->node;
    step->multiplier = qz_allocate(model, (size_t)node->input_count, sizeof(float));
    if (step->multiplier == NULL)
        return qz_fail(message, QZ_NO_MEMORY, "no memory for node %d", number);
    for (int32_t i = 0; i < node->input_count; i++) {
        const qz_node *source = qz_grid_of(model, step->inputs[i]);
        double ratio = source == NULL ? 1.0 : (double)source->scale;
        if (node->op == QZ_MUL) ratio *= (double)qz_grid_of(model, step->inputs[1])->scale;
        step->multiplier[i] = (float)(ratio / (double)node->scale);
    }
    if (node->op != QZ_CONCAT) return QZ_OK;
    step->tables = qz_allocate(model, (size_t)node->input_count, 256);
    if (step->tables == NULL)
        return qz_fail(message, QZ_NO_MEMORY, "no memory for node %d", number);
    for (int32_t i = 0; i < node->input_count; i++) {
        const int32_t zero = qz_grid_of(model, step->inputs[i])->zero_point;
        for (int32_t byte = 0; byte < 256; byte++)
            step->tables[256 * i + byte] =
                qz_rounded((float)(byte - zero) * step->multiplier[i], node);
    }
    return QZ_OK;
}

static qz_status add_step(qz_model *model, const qz_node *node, int32_t number, char *message) {
    qz_status status = check_node(node, number, model, message);
    if (status == QZ_OK && is_weighted(node->op)) status = check_weights(node, number, message);
    if (status != QZ_OK) return status;
    step *step = &model->steps[number];
    step->node = *node;
    if (node->op == QZ_LINEAR) { /* a convolution of one pixel, whatever these fields hold */
        step->node.groups = 1;
        step->node.stride[0] = step->node.stride[1] = 1;
        step->node.dilation[0] = step->node.dilation[1] = 1;
        memset(step->node.padding, 0, sizeof(step->node.padding));
    }
    step->real = is_real_out(node->op);
    step->inputs = qz_allocate(model, (size_t)node->input_count, sizeof(int32_t));
    if (step->inputs == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for a node");
    memcpy(step->inputs, node->inputs, (size_t)node->input_count * sizeof(int32_t));
    if (is_weighted(node->op)) {
        status = pack(model, step, number, message);
    } else if (node->op == QZ_AFFINE) {
        const size_t count = (size_t)node->affine_count;
        step->affine = qz_allocate(model, 2 * count, sizeof(float));
        if (step->affine == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for a node");
        memcpy(step->affine, node->gain, count * sizeof(float));
        memcpy(step->affine + count, node->offset, count * sizeof(float));
    } else if (node->op == QZ_TABLE) {
        step->tables = qz_allocate(model, 1, 256);
        if (step->tables == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for a node");
        memcpy(step->tables, node->table, 256);
    } else if (!step->real) {
        status = scale_inputs(model, step, number, message);
    }
    /* The caller's memory may go now. */
    step->node.inputs = step->inputs;
    step->node.gain = step->node.offset = step->node.bias = step->node.weight_scale = NULL;
    step->node.weight = step->node.weight_zero_point = NULL;
    step->node.float_weight = NULL;
    step->node.table = NULL;
    return status;
}

qz_status qz_model_create(const qz_node *nodes, int32_t count, int32_t channels, int32_t options,
                          qz_model **model, char *message) {
    if (model == NULL) return qz_fail(message, QZ_BAD_ARGUMENT, "there is nowhere to put a model");
    *model = NULL;
    if (nodes == NULL || count < 1 || count > MAX_NODES || channels < 1 || channels > MAX_CHANNELS)
        return qz_fail(message, QZ_BAD_MODEL, "%d nodes and %d channels are impossible", count,
                       channels);
    qz_model *made = calloc(1, sizeof(*made));
    if (made == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for a model");
    made->memory = sizeof(*made);
    made->channels = channels;
    if (!(options & QZ_PLAIN)) made->kernels = qz_find_kernels((options >> 1) & 0xff);
    made->steps = qz_allocate(made, (size_t)count, sizeof(step));
    qz_status status = QZ_OK;
    if (made->steps == NULL) status = qz_fail(message, QZ_NO_MEMORY, "no memory for the nodes");
    for (int32_t i = 0; status == QZ_OK && i < count; i++) {
        made->count = i + 1; /* so that what a failing node has allocated is freed */
        status = add_step(made, &nodes[i], i, message);
    }
    if (status == QZ_OK && nodes[count - 1].op != QZ_DEQUANTIZE)
        status = qz_fail(message, QZ_BAD_MODEL, "the last node gives no real numbers");
    if (status == QZ_OK)
        *model = made;
    else
        qz_model_free(made);
    return status;
}

void qz_model_free(qz_model *model) {
    if (model == NULL) return;
    for (int32_t i = 0; i < model->count; i++) {
        step *step = &model->steps[i];
        free(step->inputs);
        free(step->weight);
        free(step->float_weight);
        free(step->multiplier);
        free(step->addend);
        free(step->affine);
        free(step->tables);
        qz_free_fast(step->fast);
    }
    free(model->steps);
    free(model);
}

const qz_kernels *qz_find_kernels(int32_t skipped) {
    const qz_kernels *found[] = {qz_avx512(),    qz_avx_vnni(), qz_avx2(),
                                 qz_neon_i8mm(), qz_neon_dot(), qz_neon()};
    for (size_t i = 0; i < sizeof(found) / sizeof(*found); i++)
        if (found[i] != NULL && skipped-- <= 0) return found[i];
    return NULL;
}

const char *qz_instructions(void) {
    const qz_kernels *found = qz_find_kernels(0);
    return found != NULL ? found->name : "plain C";
}

size_t qz_model_memory(const qz_model *model) { return model->memory; }

/* Returns how often a window fits, as PyTorch counts; 0 where the image is smaller than it. */
static int32_t windows(int64_t size, int64_t kernel, int64_t stride, int64_t before, int64_t after,
                       int64_t dilation, bool ceil) {
    const int64_t room = size + before + after - dilation * (kernel - 1) - 1;
    if (room < 0) return 0;
    int64_t count = (room + (ceil ? stride - 1 : 0)) / stride + 1;
    if (ceil && (count - 1) * stride >= size + before) count--;
    return count > MAX_CHANNELS ? 0 : (int32_t)count;
}

static bool broadcast(int32_t a, int32_t b, int32_t *size) {
    *size = a == 1 ? b : a;
    return a == b || a == 1 || b == 1;
}

qz_status qz_output_size(const qz_model *model, int32_t number, const dims *sizes, dims images,
                         dims *output, char *message) {
    const step *step = &model->steps[number];
    const qz_node *node = &step->node;
    const int32_t op = node->op;
    const dims first = step->inputs[0] < 0 ? images : sizes[step->inputs[0]];
    const int64_t values = (int64_t)first.c * first.height * first.width;
    dims out = first;
    bool good = true;
    switch (op) {
    case QZ_AFFINE: good = first.rank == 4 && node->affine_count == first.c; break;
    case QZ_CONV2D:
        good = first.rank == 4 && (int64_t)node->weight_shape[1] * node->groups == first.c;
        out.c = node->weight_shape[0];
        out.height = windows(first.height, node->weight_shape[2], node->stride[0], node->padding[0],
                             node->padding[2], node->dilation[0], false);
        out.width = windows(first.width, node->weight_shape[3], node->stride[1], node->padding[1],
                            node->padding[3], node->dilation[1], false);
        break;
    case QZ_LINEAR:
        good = first.rank == 2 && node->weight_shape[1] == first.c;
        out.c = node->weight_shape[0];
        break;
    case QZ_ADD:
    case QZ_MUL: {
        const dims second = step->inputs[1] < 0 ? images : sizes[step->inputs[1]];
        good = first.rank == second.rank && broadcast(first.c, second.c, &out.c) &&
               broadcast(first.height, second.height, &out.height) &&
               broadcast(first.width, second.width, &out.width);
        break;
    }
    case QZ_CONCAT: {
        int64_t channels = 0;
        for (int32_t i = 0; good && i < node->input_count; i++) {
            const dims part = step->inputs[i] < 0 ? images : sizes[step->inputs[i]];
            good =
                part.rank == first.rank && part.height == first.height && part.width == first.width;
            channels += part.c;
        }
        good = good && channels <= MAX_CHANNELS;
        out.c = (int32_t)channels;
        break;
    }
    case QZ_MAX_POOL2D:
    case QZ_AVG_POOL2D: {
        const bool max = op == QZ_MAX_POOL2D;
        good = first.rank == 4;
        out.height = windows(first.height, node->kernel[0], node->stride[0], node->padding[0],
                             node->padding[0], max ? node->dilation[0] : 1, node->ceil_mode != 0);
        out.width = windows(first.width, node->kernel[1], node->stride[1], node->padding[1],
                            node->padding[1], max ? node->dilation[1] : 1, node->ceil_mode != 0);
        break;
    }
    case QZ_MEAN:
        good = first.rank == 4;
        out = (dims){node->keep_dimensions ? 4 : 2, first.c, 1, 1};
        break;
    case QZ_CHANNEL_SHUFFLE: good = first.rank == 4 && first.c % node->groups == 0; break;
    case QZ_SLICE:
        good = node->stop <= first.c;
        out.c = node->stop - node->start;
        break;
    case QZ_PAD:
        good = first.rank == 4 && first.height < MAX_CHANNELS && first.width < MAX_CHANNELS;
        if (good) {
            out.height += node->padding[0] + node->padding[2];
            out.width += node->padding[1] + node->padding[3];
        }
        break;
    case QZ_FLATTEN:
        good = values <= MAX_VALUES;
        out = (dims){2, (int32_t)values, 1, 1};
        break;
    case QZ_RESHAPE: {
        int32_t shape[3] = {1, 1, 1};
        int64_t wanted = 1;
        for (int32_t i = 0; i < node->rank; i++) wanted *= shape[i] = node->shape[i];
        good = wanted == values;
        out = (dims){node->rank + 1, shape[0], shape[1], shape[2]};
        break;
    }
    default: break; /* the same as the input */
    }
    if (good && number == model->count - 1) good = out.rank == 2;
    if (!good) return qz_fail(message, QZ_BAD_MODEL, "node %d does not fit its inputs", number);
    if (out.height < 1 || out.width < 1)
        return qz_fail(message, QZ_BAD_ARGUMENT, "images of %dx%d pixels are too small for node %d",
                       images.height, images.width, number);
    if ((int64_t)out.height * out.width > MAX_VALUES ||
        (int64_t)out.height * out.width * out.c > MAX_VALUES)
        return qz_fail(message, QZ_BAD_ARGUMENT, "images of %dx%d pixels are too large for node %d",
                       images.height, images.width, number);
    *output = out;
    return QZ_OK;
}
