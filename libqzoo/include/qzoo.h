/* libqzoo: runs int8 image classifiers, with the same integers on every processor.
 *
 * A model is made of the nodes of a qzoo artifact (docs/artifact.md), a session of a model for one
 * size of images. Making either allocates memory; running allocates none. A model never
 * changes and may serve any number of sessions in any number of threads; a session runs one call
 * at a time. There are no globals, and no files are read.
 */
#ifndef QZOO_H
#define QZOO_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32) && defined(QZ_BUILD)
#define QZ_API __declspec(dllexport)
#elif defined(QZ_BUILD)
#define QZ_API __attribute__((visibility("default")))
#else
#define QZ_API
#endif

/* What functions return; the message that they write says more. */
typedef enum {
    QZ_OK = 0,
    QZ_BAD_ARGUMENT = 1, /* of this call, such as images of a size that the model does not take */
    QZ_BAD_MODEL = 2,    /* the nodes do not fit together or hold impossible numbers */
    QZ_NO_MEMORY = 3
} qz_status;

/* Characters of a message, its final zero included. */
#define QZ_MESSAGE 200
/* Options of a model, for comparing kernels: compute in plain C, or leave out the best n sets of
 * kernels that this processor has. */
#define QZ_PLAIN 1
#define QZ_SKIP(n) ((n) << 1)
/* Options of a session: keep all nodes' integers for qz_session_value; take the time of each node.
 */
#define QZ_KEEP 1
#define QZ_TIMES 2
/* What a node calls the images instead of the number of a node. */
#define QZ_IMAGES (-1)

/* The operations, as docs/artifact.md defines them. */
typedef enum {
    QZ_AFFINE,
    QZ_QUANTIZE,
    QZ_DEQUANTIZE,
    QZ_CONV2D,
    QZ_LINEAR,
    QZ_ADD,
    QZ_MUL,
    QZ_CONCAT,
    QZ_TABLE,
    QZ_CLIP,
    QZ_MAX_POOL2D,
    QZ_AVG_POOL2D,
    QZ_MEAN,
    QZ_CHANNEL_SHUFFLE,
    QZ_SLICE,
    QZ_PAD,
    QZ_FLATTEN,
    QZ_RESHAPE,
    QZ_OPS /* how many there are */
} qz_op;

/* One node. Fields that its operation does not have are not looked at. Pairs are height, width. */
typedef struct {
    int32_t op; /* a qz_op */
    int32_t input_count;
    const int32_t *inputs; /* numbers of earlier nodes, or QZ_IMAGES */
    /* The grid of the output: real value = scale * (integer - zero_point), low <= integer <= high.
     */
    float scale;
    int32_t zero_point, low, high;
    /* Geometry of convolutions, pools and padding, in pixels; padding is top, left, bottom, right.
     */
    int32_t kernel[2], stride[2], padding[4], dilation[2];
    int32_t groups;            /* of conv2d and channel_shuffle */
    int32_t ceil_mode;         /* of pools: 0 or 1 */
    int32_t count_include_pad; /* of avg_pool2d: 0 or 1 */
    int32_t keep_dimensions;   /* of mean: 0 or 1 */
    int32_t start, stop;       /* of slice: channels */
    int32_t rank, shape[3];    /* of reshape: 1 to 3 sizes */
    /* Of affine: 3 or 1 numbers each. */
    int32_t affine_count;
    const float *gain, *offset;
    /* Of conv2d [O, I / groups, kH, kW] and linear [O, I, 1, 1]: either integers or real numbers.
     */
    int32_t weight_shape[4];
    const int8_t *weight;
    const float *float_weight;
    int32_t scale_count;             /* 1 or O */
    const float *weight_scale;       /* [scale_count] */
    const int8_t *weight_zero_point; /* [scale_count], or NULL where all are 0 */
    const float *bias;               /* [O], or NULL */
    const uint8_t *table;            /* of table: [256] */
} qz_node;

typedef struct qz_model qz_model;
typedef struct qz_session qz_session;

/* Makes a model; copies all it needs, so that the nodes may go afterwards.
 *
 * nodes: in the order in which they run; the last one gives the logits, float [images, classes].
 * channels: of the images, 3.
 * options: 0, QZ_PLAIN or QZ_SKIP(n).
 * message: QZ_MESSAGE characters, written where the result is not QZ_OK.
 */
QZ_API qz_status qz_model_create(const qz_node *nodes, int32_t count, int32_t channels,
                                 int32_t options, qz_model **model, char *message);
QZ_API void qz_model_free(qz_model *model);

/* Makes a model ready for images of one size, in pixels.
 *
 * threads: how many compute, the caller's included. One image is shared out among them; of several
 *     images, each gets its own, and memory for its tensors.
 * options: QZ_KEEP, QZ_TIMES, both or 0. Without QZ_KEEP, tensors share memory as soon as they are
 *     not needed any more, and some are never written.
 * The model must outlive its sessions.
 */
QZ_API qz_status qz_session_create(const qz_model *model, int32_t height, int32_t width,
                                   int32_t threads, int32_t options, qz_session **session,
                                   char *message);
QZ_API void qz_session_free(qz_session *session);

/* Computes the logits, float [count, classes], of float [count, channels, height, width]. */
QZ_API void qz_session_run(qz_session *session, int32_t count, const float *images, float *logits);
/* Computes them from pictures, bytes [count, height, width, channels].
 *
 * values: [channels][256], the real number that each byte of a channel stands for.
 */
QZ_API void qz_session_run_bytes(qz_session *session, int32_t count, const uint8_t *pictures,
                                 const float *values, float *logits);

/* Which instructions the fast kernels use here: "AVX-512 VNNI", or "plain C" where there are none.
 */
QZ_API const char *qz_instructions(void);
/* How many logits an image gets. */
QZ_API int32_t qz_session_classes(const qz_session *session);
/* Bytes that a session holds, and a model. */
QZ_API size_t qz_session_memory(const qz_session *session);
QZ_API size_t qz_model_memory(const qz_model *model);
/* Writes the seconds that each node took, as many as there are nodes: for the last image, or where
 * each thread had images of its own, for the last of the caller's. Nodes that are computed with an
 * earlier one, or need no computing, have 0. Needs QZ_TIMES. */
QZ_API qz_status qz_session_times(const qz_session *session, double *seconds, char *message);
/* Writes the integers that a node gave for the last image, in the order [C, H, W]; needs QZ_KEEP.
 *
 * size: bytes that there is room for; QZ_BAD_ARGUMENT unless it is exactly what there are.
 */
QZ_API qz_status qz_session_value(const qz_session *session, int32_t node, uint8_t *integers,
                                  size_t size, char *message);

#ifdef __cplusplus
}
#endif
#endif
