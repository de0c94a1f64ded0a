/* A fuzzer of nodes: graphs built from bytes, mostly possible ones. fuzz.py compiles and runs it.
 *
 * Every array has the size that its node says, so that a sanitizer notices what is read beyond. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define NODES 16
#define MOST_NUMBERS (1 << 13) /* of an array */
#define ARRAYS (8 * NODES)

typedef struct {
    const uint8_t *at, *end;
    bool wild; /* whether numbers may be anything */
    void *arrays[ARRAYS];
    int array_count;
    /* Of each node, as far as they are what they seem: the output's sizes. */
    int32_t rank[NODES], c[NODES], height[NODES], width[NODES];
    bool real[NODES];
} builder;

static uint32_t byte(builder *b) { return b->at < b->end ? *b->at++ : 0; }

static int32_t any(builder *b) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) value = value << 8 | byte(b);
    return (int32_t)value;
}

/* A number from low to high, or, where numbers may be anything, sometimes any. */
static int32_t whole(builder *b, int32_t low, int32_t high) {
    if (b->wild && byte(b) % 16 == 0) return any(b);
    return low + (int32_t)(byte(b) % (uint32_t)(high - low + 1));
}

static float real(builder *b) {
    static const float odd[] = {0.0f, -0.0f, 0x1p-149f, 0x1p-126f, 0x1p-40f, 0x1p40f, 0x1p127f};
    const uint32_t kind = b->wild ? byte(b) % 16 : 15;
    if (kind < 7) return odd[kind];
    if (kind == 7) {
        const int32_t bits = any(b);
        float value;
        memcpy(&value, &bits, sizeof(value));
        return value;
    }
    return ((float)byte(b) + 1.0f) * 0x1p-12f;
}

/* An array of numbers, or NULL where it would be absurdly large. */
static void *array(builder *b, int64_t count, size_t size, bool numbers) {
    if (count < 0 || count > MOST_NUMBERS || b->array_count == ARRAYS) return NULL;
    void *made = exactly((size_t)count, size);
    b->arrays[b->array_count++] = made;
    if (!numbers) {
        scatter(made, (size_t)count * size, byte(b));
        return made;
    }
    const float scale = real(b), first = real(b);
    for (int64_t i = 0; i < count; i++)
        ((float *)made)[i] = i == 0 ? first : scale * (float)(i % 13 + 1);
    return made;
}

static void weigh(builder *b, qz_node *node, int32_t channels) {
    const bool linear = node->op == QZ_LINEAR;
    int32_t *shape = node->weight_shape;
    const uint32_t form = byte(b);
    node->groups = 1;
    if (!linear && form % 4 == 0) node->groups = channels; /* depthwise */
    if (!linear && form % 4 == 1 && channels % 2 == 0) node->groups = 2;
    if (b->wild && form > 240) node->groups = whole(b, 1, 8);
    shape[1] = node->groups > 0 && channels >= node->groups ? channels / node->groups : 1;
    shape[0] = node->groups > 2 ? node->groups : whole(b, 1, 70);
    if (node->groups == 2 && shape[0] < 100) shape[0] = shape[0] / 2 * 2 + 2;
    shape[2] = linear ? 1 : whole(b, 1, 3);
    shape[3] = linear ? 1 : whole(b, 1, 3);
    if (b->wild && form > 230) shape[form % 4] = whole(b, 1, 9);
    int64_t count = 1;
    for (int i = 0; i < 4; i++) {
        if (shape[i] < 0 || shape[i] > MOST_NUMBERS) count = MOST_NUMBERS + 1;
        if (count <= MOST_NUMBERS) count *= shape[i];
    }
    if (form & 16) node->bias = array(b, shape[0], sizeof(float), true);
    if (form % 32 == 7) {
        node->float_weight = array(b, count, sizeof(float), true);
        return;
    }
    node->weight = array(b, count, 1, false);
    node->scale_count = form & 64 ? 1 : shape[0];
    if (b->wild && form > 250) node->scale_count = whole(b, 0, 3);
    node->weight_scale = array(b, node->scale_count, sizeof(float), true);
    if (form & 128) node->weight_zero_point = array(b, node->scale_count, 1, false);
}

static int32_t windows(int32_t size, int32_t kernel, int32_t stride, int32_t around,
                       int32_t apart) {
    const int64_t room = (int64_t)size + around - (int64_t)apart * (kernel - 1) - 1;
    return room < 0 || stride < 1 ? 1 : (int32_t)(room / stride) + 1;
}

/* Follows the sizes of possible graphs, so that most nodes fit their inputs. */
static void follow(builder *b, const qz_node *node, int32_t i) {
    const int32_t from = node->inputs[0] < 0 || node->inputs[0] >= i ? 0 : node->inputs[0];
    b->rank[i] = b->rank[from];
    b->c[i] = b->c[from];
    b->height[i] = b->height[from];
    b->width[i] = b->width[from];
    const bool conv = node->op == QZ_CONV2D;
    if (conv || node->op == QZ_LINEAR) b->c[i] = node->weight_shape[0];
    if (conv || node->op == QZ_MAX_POOL2D || node->op == QZ_AVG_POOL2D) {
        const int32_t *kernel = conv ? node->weight_shape + 2 : node->kernel;
        const int32_t apart[2] = {node->op == QZ_AVG_POOL2D ? 1 : node->dilation[0],
                                  node->op == QZ_AVG_POOL2D ? 1 : node->dilation[1]};
        b->height[i] = windows(b->height[i], kernel[0], node->stride[0],
                               (node->padding[0] & 255) + (node->padding[2] & 255), apart[0]);
        b->width[i] = windows(b->width[i], kernel[1], node->stride[1],
                              (node->padding[1] & 255) + (node->padding[3] & 255), apart[1]);
    } else if (node->op == QZ_CONCAT) {
        b->c[i] = 0;
        for (int32_t k = 0; k < node->input_count && node->input_count <= 70; k++)
            if (node->inputs[k] >= 0 && node->inputs[k] < i) b->c[i] += b->c[node->inputs[k]];
    } else if (node->op == QZ_MEAN) {
        b->rank[i] = node->keep_dimensions ? 4 : 2;
        b->height[i] = b->width[i] = 1;
    } else if (node->op == QZ_SLICE) {
        b->c[i] = (node->stop & 4095) - (node->start & 4095);
    } else if (node->op == QZ_PAD) {
        b->height[i] += (node->padding[0] & 255) + (node->padding[2] & 255);
        b->width[i] += (node->padding[1] & 255) + (node->padding[3] & 255);
    } else if (node->op == QZ_FLATTEN) {
        b->rank[i] = 2;
        b->c[i] = (b->c[i] & 4095) * (b->height[i] & 255) * (b->width[i] & 255);
        b->height[i] = b->width[i] = 1;
    } else if (node->op == QZ_RESHAPE) {
        b->rank[i] = (node->rank & 3) + 1;
        b->c[i] = node->shape[0];
        b->height[i] = node->rank > 1 ? node->shape[1] : 1;
        b->width[i] = node->rank > 2 ? node->shape[2] : 1;
    }
    if (b->c[i] < 1 || b->c[i] > 4096) b->c[i] = 1;
    if (b->height[i] < 1 || b->height[i] > 512) b->height[i] = 1;
    if (b->width[i] < 1 || b->width[i] > 512) b->width[i] = 1;
}

static bool keeps_grid(int32_t op) {
    return op == QZ_CLIP || op == QZ_MAX_POOL2D || op == QZ_CHANNEL_SHUFFLE || op == QZ_SLICE ||
           op == QZ_PAD || op == QZ_FLATTEN || op == QZ_RESHAPE;
}

/* Chooses inputs of the kinds that the operation takes, mostly. */
static void choose_inputs(builder *b, qz_node *node, int32_t i) {
    const bool images = node->op == QZ_AFFINE || node->op == QZ_QUANTIZE;
    int32_t count = node->op == QZ_ADD || node->op == QZ_MUL ? 2 : 1;
    if (node->op == QZ_CONCAT) count = whole(b, 2, 4);
    if (b->wild && byte(b) == 0) count = whole(b, 0, 70);
    const int32_t room = count > 0 && count <= 70 ? count : 0; /* more are refused */
    int32_t *inputs = array(b, room > 0 ? room : 1, sizeof(int32_t), false);
    if (inputs == NULL) return;
    inputs[0] = QZ_IMAGES;
    for (int32_t k = 0; k < room; k++) {
        /* Near ones mostly; of the same size as the first, where that matters. */
        int32_t from = i - 1 - (int32_t)(byte(b) % 4);
        if (from < 0) from = i - 1;
        for (int32_t j = i - 1; k > 0 && j >= 0 && from >= 0; j--) {
            const int32_t first = inputs[0] < 0 || inputs[0] >= i ? 0 : inputs[0];
            if (b->height[from] == b->height[first] && b->width[from] == b->width[first]) break;
            from = j;
        }
        if (i == 0) from = QZ_IMAGES;
        if (images) from = i > 0 && b->real[i - 1] ? i - 1 : QZ_IMAGES;
        inputs[k] = b->wild && byte(b) == 0 ? any(b) : from;
    }
    node->inputs = inputs;
    node->input_count = count;
}

static void build(builder *b, qz_node *node, const qz_node *nodes, int32_t i, int32_t op) {
    node->op = op;
    choose_inputs(b, node, i);
    if (node->inputs == NULL) return;
    const int32_t from = node->input_count < 1 ? -1 : node->inputs[0];
    const int32_t known = from < 0 || from >= i ? 0 : from;
    node->scale = real(b);
    node->low = whole(b, 0, 3) == 0 ? whole(b, 0, 128) : 0;
    node->high = whole(b, node->low < 255 && node->low >= 0 ? node->low : 0, 255);
    node->zero_point = whole(b, 0, 255);
    if (keeps_grid(op) && i > 0 && !(b->wild && byte(b) == 0)) {
        node->scale = nodes[known].scale;
        node->zero_point = nodes[known].zero_point;
    }
    for (int k = 0; k < 2; k++) {
        node->kernel[k] = whole(b, 1, 3);
        node->stride[k] = whole(b, 1, 2);
        node->dilation[k] = whole(b, 0, 7) == 7 ? 2 : 1;
        node->padding[k] = op == QZ_CONV2D || op == QZ_PAD ? whole(b, 0, 2) : node->kernel[k] / 2;
        node->padding[k + 2] = op == QZ_CONV2D || op == QZ_PAD ? whole(b, 0, 2) : node->padding[k];
    }
    const int32_t channels = i == 0 ? 3 : b->c[known];
    node->groups = 1;
    if (op == QZ_CHANNEL_SHUFFLE)
        for (int32_t g = whole(b, 1, 4), least = g > 9 ? g : 2; g >= least; g--)
            if (channels % g == 0 || g > 9) node->groups = g;
    node->ceil_mode = whole(b, 0, 1);
    node->count_include_pad = whole(b, 0, 1);
    node->keep_dimensions = whole(b, 0, 3) > 0;
    node->start = op == QZ_SLICE ? whole(b, 0, channels > 1 ? (channels - 1) & 127 : 0) : 0;
    node->stop = op == QZ_SLICE
                     ? whole(b, node->start < channels && node->start >= 0 ? node->start + 1 : 1,
                             channels < 1 ? 1 : channels)
                     : 0;
    if (op == QZ_RESHAPE) {
        node->rank = whole(b, 1, 3);
        node->shape[0] = b->c[known] * (node->rank < 3 ? b->width[known] : 1) *
                         (node->rank < 2 ? b->height[known] : 1);
        node->shape[1] = b->height[known];
        node->shape[2] = b->width[known];
    }
    if (op == QZ_AFFINE) {
        node->affine_count = whole(b, 3, 3);
        node->gain = array(b, node->affine_count, sizeof(float), true);
        node->offset = array(b, node->affine_count, sizeof(float), true);
    }
    if (op == QZ_TABLE) node->table = array(b, 256, 1, false);
    if (op == QZ_CONV2D || op == QZ_LINEAR) weigh(b, node, channels);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    builder b = {.at = data, .end = data + size};
    qz_node nodes[NODES] = {{0}};
    const uint32_t head = byte(&b);
    b.wild = head & 1;
    qz_case c = {1 + (int32_t)(head >> 1 & 1),
                 3,
                 whole(&b, 1, 20),
                 whole(&b, 1, 40),
                 0,
                 NULL,
                 NULL,
                 NULL,
                 NULL};
    const int32_t threads = head >> 2 == 0 ? 2 : 1; /* more take a fuzzer's time */
    if (c.height < 1 || c.height > 40) c.height = 5;
    if (c.width < 1 || c.width > 40) c.width = 5;
    int32_t count = 0;
    const int32_t middle = (int32_t)(byte(&b) % (NODES - 4));
    for (int32_t i = 0; i < middle + 4; i++, count++) {
        /* Images become integers, then anything, then the mean, and logits. */
        int32_t op = (int32_t)(byte(&b) % QZ_OPS);
        if (i == 0) op = byte(&b) % 4 ? QZ_QUANTIZE : QZ_AFFINE;
        if (i > 0 && (op == QZ_AFFINE || op == QZ_QUANTIZE || op == QZ_DEQUANTIZE) && !b.wild)
            op = QZ_CONV2D;
        if (i == 1 && nodes[0].op == QZ_AFFINE) op = QZ_QUANTIZE;
        if (i > 1 && i <= middle && b.rank[i - 1] != 4 && !b.wild) op = QZ_LINEAR;
        if (i == middle + 1) op = b.rank[i - 1] == 4 ? QZ_MEAN : QZ_CLIP;
        if (i == middle + 2) op = b.rank[i - 1] == 2 ? QZ_LINEAR : QZ_FLATTEN;
        if (i == middle + 3) op = QZ_DEQUANTIZE;
        build(&b, &nodes[i], nodes, i, op);
        if (nodes[i].inputs == NULL) break;
        b.real[i] = op == QZ_AFFINE || op == QZ_DEQUANTIZE;
        if (i == 0) {
            b.rank[0] = 4;
            b.c[0] = 3;
            b.height[0] = c.height;
            b.width[0] = c.width;
        } else {
            follow(&b, &nodes[i], i);
        }
    }
    fuzz(nodes, count, &c, threads);
    while (b.array_count > 0) free(b.arrays[--b.array_count]);
    return 0;
}
