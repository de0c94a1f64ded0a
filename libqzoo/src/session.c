/* Sessions: a model made ready for one size of images. All tensors share one piece of memory, in
 * which the place of one that is not needed any more goes to another. What only moves bytes is
 * planned away where it can be: a slice is a part of its input's memory.
 */
#include "fast.h"
#include "pool.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_SIDE 32767
#define MAX_THREADS 256
/* Bytes that every tensor begins at a multiple of: a line of the caches, and the widest registers.
 */
#define ALIGNMENT 64

/* How a node's output comes about. */
typedef enum {
    COMPUTED,
    THERE,      /* it is another node's memory */
    ALTERNATING /* a concatenation whose two inputs take turns, for the channel shuffle behind it */
} manner;

typedef struct {
    manner manner;
    view view;    /* without data */
    int32_t root; /* the node whose memory it lies in */
    size_t start; /* where its data begins in the memory of all tensors */
    int32_t last; /* the last node that reads it, or for a root, anything in its memory */
    int32_t readers;
    int32_t tables; /* of a quantization of the images: number of its tables; else -1 */
} output;

struct qz_session {
    const qz_model *model;
    bool keep;
    int32_t threads;
    qz_pool *pool; /* NULL for one thread */
    view input;    /* without data, which each run brings */
    output *outputs;
    int32_t *order; /* of the nodes that compute something */
    int32_t computed;
    uint8_t *memory;
    size_t arena, scratch; /* bytes of tensors, and of what a thread needs besides */
    uint8_t *tables;       /* of each quantization of the images, [channels][256] */
    int32_t table_count;
    double *times; /* of each node, or NULL */
    size_t size;   /* of all memory */
};

/* What a call computes. */
typedef struct {
    qz_session *session;
    const float *images;
    const uint8_t *pictures; /* instead of images, or NULL */
    float *logits;
    int32_t image; /* that all threads compute together */
} job;

/* Lays a tensor out: row by row, the channels of a pixel side by side. */
static view laid_out(dims size) {
    return (view){NULL, 1, (ptrdiff_t)size.width * size.c, size.c, size};
}

/* Whether a node that moves integers cuts none off. */
static bool keeps_all(const qz_model *model, int32_t i) {
    const qz_node *node = &model->steps[i].node, *source = qz_grid_of(model, node->inputs[0]);
    return node->low <= source->low && node->high >= source->high;
}

/* Whether an output of two inputs in turn can be written at once: a concatenation, and the shuffle
 * of two groups that alone reads it. */
static bool alternates(const qz_session *session, int32_t i) {
    const qz_model *model = session->model;
    const qz_node *node = &model->steps[i].node;
    const int32_t last = session->outputs[i].last;
    if (node->op != QZ_CONCAT || node->input_count != 2 || session->keep ||
        session->outputs[i].readers != 1 || model->kernels == NULL ||
        model->kernels->alternate_tables == NULL)
        return false;
    const qz_node *reader = &model->steps[last].node;
    return reader->op == QZ_CHANNEL_SHUFFLE && reader->groups == 2 && keeps_all(model, last) &&
           session->outputs[node->inputs[0]].view.size.c ==
               session->outputs[node->inputs[1]].view.size.c;
}

/* Finds the output whose memory a node's output may take: that of an input which nothing reads
 * afterwards. Returns the input's node, or -1. */
static int32_t overwritten(const qz_session *session, int32_t i) {
    const qz_node *node = &session->model->steps[i].node;
    if (session->keep ||
        (node->op != QZ_TABLE && node->op != QZ_ADD && node->op != QZ_MUL && node->op != QZ_CLIP))
        return -1;
    const dims size = session->outputs[i].view.size;
    for (int32_t k = 0; k < node->input_count; k++) {
        const output *in = &session->outputs[node->inputs[k]];
        if (is_dense(&in->view) && in->view.size.c == size.c &&
            in->view.size.height == size.height && in->view.size.width == size.width &&
            session->outputs[in->root].last == i)
            return node->inputs[k];
    }
    return -1;
}

/* Decides for each node whether its output lies in memory of its own. */
static void share_memory(qz_session *session) {
    const qz_model *model = session->model;
    output *outputs = session->outputs;
    for (int32_t i = 0; i < model->count; i++) {
        const qz_node *node = &model->steps[i].node;
        output *out = &outputs[i];
        out->root = i;
        const output *in = node->inputs[0] < 0 ? NULL : &outputs[node->inputs[0]];
        int32_t from = -1;
        if (in != NULL && !model->steps[i].real) {
            const bool one = in->view.size.height * in->view.size.width == 1 &&
                             out->view.size.height * out->view.size.width == 1;
            if ((node->op == QZ_SLICE || node->op == QZ_CLIP ||
                 (one && (node->op == QZ_FLATTEN || node->op == QZ_RESHAPE)) ||
                 (node->op == QZ_CHANNEL_SHUFFLE && in->manner == ALTERNATING)) &&
                keeps_all(model, i)) {
                from = node->inputs[0];
                out->manner = THERE;
                out->view.row = in->view.row;
                out->view.column = in->view.column;
                out->start = in->start + (node->op == QZ_SLICE ? (size_t)node->start : 0);
            } else if (alternates(session, i)) {
                out->manner = ALTERNATING;
            } else {
                from = overwritten(session, i);
            }
        }
        if (from < 0) continue;
        out->root = outputs[from].root;
        output *root = &outputs[out->root];
        root->last = out->last > root->last ? out->last : root->last;
    }
}

static int by_start(const void *a, const void *b) {
    const output *x = *(const output *const *)a, *y = *(const output *const *)b;
    return (x->start > y->start) - (x->start < y->start);
}

static size_t bytes_of(const output *out, bool real) {
    const size_t values = (size_t)out->view.row * (size_t)out->view.size.height;
    return (values * (real ? sizeof(float) : 1) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Gives every root but the last node a place: the first gap among those in use. */
static qz_status place(qz_session *session, char *message) {
    const qz_model *model = session->model;
    output **used = calloc((size_t)model->count, sizeof(*used));
    if (used == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for a plan");
    int32_t using = 0;
    for (int32_t i = 0; i < model->count - 1; i++) {
        output *out = &session->outputs[i];
        if (out->root != i) {
            out->start += session->outputs[out->root].start;
            continue;
        }
        const size_t size = bytes_of(out, model->steps[i].real);
        int32_t still = 0;
        for (int32_t k = 0; k < using; k++)
            if (used[k]->last >= i) used[still++] = used[k];
        using = still;
        qsort(used, (size_t)using, sizeof(*used), by_start);
        for (int32_t k = 0; k < using && used[k]->start < out->start + size; k++) {
            const size_t end =
                used[k]->start + bytes_of(used[k], model->steps[used[k] - session->outputs].real);
            out->start = end > out->start ? end : out->start;
        }
        used[using++] = out;
        if (out->start + size > session->arena) session->arena = out->start + size;
    }
    free(used);
    return QZ_OK;
}

static qz_status plan(qz_session *session, char *message) {
    const qz_model *model = session->model;
    output *outputs = session->outputs;
    for (int32_t i = 0; i < model->count; i++) {
        const step *step = &model->steps[i];
        outputs[i].last = session->keep ? model->count : i;
        for (int32_t k = 0; k < step->node.input_count; k++)
            if (step->inputs[k] >= 0) {
                output *in = &outputs[step->inputs[k]];
                in->last = session->keep ? model->count : i;
                in->readers++;
            }
    }
    share_memory(session);
    for (int32_t i = 0; i < model->count; i++)
        if (outputs[i].manner != THERE) session->order[session->computed++] = i;
    const qz_status status = place(session, message);
    if (status != QZ_OK) return status;
    for (int32_t i = 0; i < model->count; i++) {
        const int32_t from = model->steps[i].inputs[0];
        if (from < 0) continue;
        const view *in = &outputs[from].view;
        const size_t fast = qz_fast_scratch(&model->steps[i], in);
        const size_t rows = qz_rows_scratch(&model->steps[i], in, &outputs[i].view);
        const size_t size = fast > rows ? fast : rows;
        if (size > session->scratch) session->scratch = size;
    }
    /* Kernels may read a few bytes beyond a tensor. */
    session->arena += ALIGNMENT;
    session->scratch = (session->scratch + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t each = session->arena + session->scratch;
    const size_t all = (size_t)session->threads * each + ALIGNMENT;
    session->memory = each > SIZE_MAX / 2 / MAX_THREADS ? NULL : malloc(all);
    if (session->memory == NULL)
        return qz_fail(message, QZ_NO_MEMORY, "no memory for %zu bytes of tensors", all);
    session->size += all;
    return QZ_OK;
}

/* Counts the quantizations of the images, which pictures need tables for. */
static qz_status make_tables(qz_session *session, char *message) {
    const qz_model *model = session->model;
    for (int32_t i = 0; i < model->count; i++) {
        int32_t from = model->steps[i].inputs[0];
        session->outputs[i].tables = -1;
        if (model->steps[i].node.op != QZ_QUANTIZE) continue;
        while (from >= 0 && model->steps[from].node.op == QZ_AFFINE)
            from = model->steps[from].inputs[0];
        if (from < 0) session->outputs[i].tables = session->table_count++;
    }
    const size_t size = (size_t)session->table_count * (size_t)model->channels * 256;
    session->tables = malloc(size + 1);
    if (session->tables == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for tables");
    session->size += size;
    return QZ_OK;
}

static qz_status size_up(qz_session *session, dims images, char *message) {
    const qz_model *model = session->model;
    dims *sizes = calloc((size_t)model->count, sizeof(dims));
    if (sizes == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for sizes");
    qz_status status = QZ_OK;
    for (int32_t i = 0; status == QZ_OK && i < model->count; i++) {
        status = qz_output_size(model, i, sizes, images, &sizes[i], message);
        if (status == QZ_OK) session->outputs[i].view = laid_out(sizes[i]);
    }
    free(sizes);
    return status;
}

qz_status qz_session_create(const qz_model *model, int32_t height, int32_t width, int32_t threads,
                            int32_t options, qz_session **session, char *message) {
    if (session == NULL || model == NULL)
        return qz_fail(message, QZ_BAD_ARGUMENT, "there is no model or nowhere to put a session");
    *session = NULL;
    if (height < 1 || height > MAX_SIDE || width < 1 || width > MAX_SIDE)
        return qz_fail(message, QZ_BAD_ARGUMENT, "images of %dx%d pixels are impossible", height,
                       width);
    if (threads < 1 || threads > MAX_THREADS)
        return qz_fail(message, QZ_BAD_ARGUMENT, "%d threads are not from 1 to %d", threads,
                       MAX_THREADS);
    qz_session *made = calloc(1, sizeof(*made));
    if (made == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for a session");
    made->model = model;
    made->keep = (options & QZ_KEEP) != 0;
    made->threads = threads;
    const size_t count = (size_t)model->count;
    const ptrdiff_t plane = (ptrdiff_t)height * width;
    made->input = (view){NULL, plane, width, 1, {4, model->channels, height, width}};
    made->outputs = calloc(count, sizeof(output));
    made->order = calloc(count, sizeof(int32_t));
    if (options & QZ_TIMES) made->times = calloc(count, sizeof(double));
    made->size = sizeof(*made) + count * (sizeof(output) + sizeof(int32_t));
    qz_status status = QZ_OK;
    if (made->outputs == NULL || made->order == NULL ||
        ((options & QZ_TIMES) && made->times == NULL))
        status = qz_fail(message, QZ_NO_MEMORY, "no memory for a session");
    if (status == QZ_OK) status = size_up(made, made->input.size, message);
    if (status == QZ_OK) status = plan(made, message);
    if (status == QZ_OK) status = make_tables(made, message);
    if (status == QZ_OK && threads > 1 && (made->pool = qz_pool_create(threads)) == NULL)
        status = qz_fail(message, QZ_NO_MEMORY, "the system gives no %d threads", threads);
    if (status == QZ_OK)
        *session = made;
    else
        qz_session_free(made);
    return status;
}

void qz_session_free(qz_session *session) {
    if (session == NULL) return;
    qz_pool_free(session->pool);
    free(session->outputs);
    free(session->order);
    free(session->memory);
    free(session->tables);
    free(session->times);
    free(session);
}

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The memory of a thread's tensors; what it needs besides lies behind. */
static uint8_t *arena_of(const qz_session *session, int32_t thread) {
    uint8_t *first = session->memory + (ALIGNMENT - (uintptr_t)session->memory % ALIGNMENT);
    return first + (size_t)thread * (session->arena + session->scratch);
}

/* A quantization of a picture's bytes, by a table for each channel. */
static void quantize_picture(const qz_session *session, const output *out, const uint8_t *picture,
                             uint8_t *to, part part) {
    const qz_kernels *kernels = session->model->kernels;
    const int32_t channels = session->model->channels;
    const uint8_t *tables = session->tables + (size_t)out->tables * (size_t)channels * 256;
    const int64_t pixels = (int64_t)out->view.size.height * out->view.size.width;
    const int64_t from = share(pixels, part), end = share_end(pixels, part);
    if (channels == 3 && kernels != NULL && kernels->three_tables != NULL) {
        kernels->three_tables(picture + from * 3, end - from, tables, to + from * 3);
        return;
    }
    for (int64_t i = from; i < end; i++)
        for (int32_t c = 0; c < channels; c++)
            to[i * channels + c] = tables[256 * c + picture[i * channels + c]];
}

/* Computes a part of one node for one image. */
static void compute(const job *job, int32_t i, int32_t image, uint8_t *arena, uint8_t *scratch,
                    part part) {
    const qz_session *session = job->session;
    const qz_model *model = session->model;
    const step *step = &model->steps[i];
    const output *output = &session->outputs[i];
    const size_t values = (size_t)session->input.channel * (size_t)model->channels;
    view inputs[QZ_MAX_INPUTS], out = output->view;
    out.data = arena + output->start;
    if (i == model->count - 1)
        out.data = job->logits + (size_t)image * (size_t)qz_session_classes(session);
    if (job->pictures != NULL && output->tables >= 0) {
        quantize_picture(session, output, job->pictures + (size_t)image * values, out.data, part);
        return;
    }
    /* Tables hold what an affine does to pictures. */
    if (job->pictures != NULL && step->node.op == QZ_AFFINE) return;
    for (int32_t k = 0; k < step->node.input_count; k++) {
        const int32_t from = step->inputs[k];
        inputs[k] = from < 0 ? session->input : session->outputs[from].view;
        if (from >= 0)
            inputs[k].data = arena + session->outputs[from].start;
        else /* only read */
            inputs[k].data = (void *)(uintptr_t)(job->images + (size_t)image * values);
    }
    if (output->manner == ALTERNATING)
        qz_alternate(step, inputs, &out, model->kernels, part);
    else if (step->fast != NULL)
        qz_compute_fast(step, inputs, &out, model, part, scratch);
    else
        qz_compute(step, inputs, &out, model, part, scratch);
}

/* Computes one image in one thread. */
static void run_alone(void *context, int32_t step, int32_t image, int32_t thread) {
    const job *job = context;
    const qz_session *session = job->session;
    uint8_t *arena = arena_of(session, thread);
    (void)step;
    const bool timed = session->times != NULL && thread == 0;
    double before = timed ? seconds() : 0.0;
    for (int32_t k = 0; k < session->computed; k++) {
        compute(job, session->order[k], image, arena, arena + session->arena, (part){0, 1});
        if (!timed) continue;
        const double now = seconds();
        session->times[session->order[k]] = now - before;
        before = now;
    }
}

/* Computes a part of a node for the image that all threads compute. */
static void run_part(void *context, int32_t step, int32_t index, int32_t thread) {
    const job *job = context;
    const qz_session *session = job->session;
    const int32_t node = session->order[step];
    const double before = session->times != NULL && index == 0 ? seconds() : 0.0;
    compute(job, node, job->image, arena_of(session, 0), arena_of(session, thread) + session->arena,
            (part){index, session->threads});
    if (session->times != NULL && index == 0) session->times[node] = seconds() - before;
}

static void run(job *job, int32_t count) {
    const qz_session *session = job->session;
    const int32_t threads = session->threads;
    if (session->pool == NULL) {
        for (int32_t n = 0; n < count; n++) run_alone(job, 0, n, 0);
        return;
    }
    const int32_t alone = count / threads * threads; /* as many for each thread */
    if (alone > 0)
        qz_pool_run(session->pool,
                    &(qz_work){.compute = run_alone, .context = job, .steps = 1, .parts = alone});
    for (job->image = alone; job->image < count; job->image++)
        qz_pool_run(session->pool, &(qz_work){.compute = run_part,
                                              .context = job,
                                              .steps = session->computed,
                                              .parts = threads});
}

void qz_session_run(qz_session *session, int32_t count, const float *images, float *logits) {
    run(&(job){.session = session, .images = images, .logits = logits}, count);
}

/* What a chain of affines makes of a number. */
static float transformed(const qz_model *model, int32_t node, int32_t channel, float value) {
    if (node < 0) return value;
    const step *step = &model->steps[node];
    value = transformed(model, step->inputs[0], channel, value);
    const float product = value * step->affine[channel];
    return product + step->affine[step->node.affine_count + channel];
}

void qz_session_run_bytes(qz_session *session, int32_t count, const uint8_t *pictures,
                          const float *values, float *logits) {
    const qz_model *model = session->model;
    for (int32_t i = 0; i < model->count; i++) {
        const step *step = &model->steps[i];
        const int32_t number = session->outputs[i].tables;
        if (number < 0) continue;
        for (int32_t c = 0; c < model->channels; c++)
            for (int32_t byte = 0; byte < 256; byte++) {
                const float value = transformed(model, step->inputs[0], c, values[256 * c + byte]);
                session->tables[((size_t)number * (size_t)model->channels + (size_t)c) * 256 +
                                (size_t)byte] =
                    qz_rounded(value * step->multiplier[0], &step->node);
            }
    }
    run(&(job){.session = session, .pictures = pictures, .logits = logits}, count);
}

int32_t qz_session_classes(const qz_session *session) {
    return session->outputs[session->model->count - 1].view.size.c;
}

size_t qz_session_memory(const qz_session *session) { return session->size; }

qz_status qz_session_times(const qz_session *session, double *seconds, char *message) {
    if (session->times == NULL)
        return qz_fail(message, QZ_BAD_ARGUMENT, "the session takes no times");
    memcpy(seconds, session->times, (size_t)session->model->count * sizeof(double));
    return QZ_OK;
}

qz_status qz_session_value(const qz_session *session, int32_t node, uint8_t *integers, size_t size,
                           char *message) {
    const qz_model *model = session->model;
    if (node < 0 || node >= model->count - 1 || model->steps[node].real || !session->keep)
        return qz_fail(message, QZ_BAD_ARGUMENT, "the integers of node %d were not kept", node);
    const output *output = &session->outputs[node];
    const view *v = &output->view;
    const size_t there = (size_t)v->size.c * (size_t)v->size.height * (size_t)v->size.width;
    if (size != there)
        return qz_fail(message, QZ_BAD_ARGUMENT, "node %d has %zu integers, not %zu", node, there,
                       size);
    const uint8_t *data = arena_of(session, 0) + output->start;
    for (int32_t c = 0; c < v->size.c; c++)
        for (int32_t y = 0; y < v->size.height; y++)
            for (int32_t x = 0; x < v->size.width; x++)
                *integers++ = data[c * v->channel + y * v->row + x * v->column];
    return QZ_OK;
}
