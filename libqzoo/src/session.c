/* Sessions: a model made ready for one size of images. All tensors share one piece of
 * memory, in which the place of one that is not needed any more goes to another.
 */
#include "fast.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SIDE 32767
/* Bytes that every tensor begins at a multiple of: a line of the caches, and the widest registers.
 */
#define ALIGNMENT 64

struct qz_session {
    const qz_model *model;
    bool keep;
    view input;    /* without data, which each run brings */
    view *outputs; /* of each node; the last without data */
    uint8_t *memory, *arena, *scratch;
    size_t size, scratch_size;
};

typedef struct {
    size_t start, size;
    int32_t last; /* the node that reads it last */
} part;

/* Lays a tensor out: row by row, the channels of a pixel side by side. */
static view laid_out(dims size) {
    return (view){NULL, 1, (ptrdiff_t)size.width * size.c, size.c, size};
}

static int by_start(const void *a, const void *b) {
    const size_t x = ((const part *)a)->start, y = ((const part *)b)->start;
    return (x > y) - (x < y);
}

/* Finds the first gap that is large enough among the parts in use, sorted by their start. */
static size_t first_gap(const part *used, int32_t count, size_t size) {
    size_t start = 0;
    for (int32_t i = 0; i < count; i++) {
        if (used[i].start >= start + size) break;
        const size_t end = used[i].start + used[i].size;
        start = end > start ? end : start;
    }
    return start;
}

/* Gives every node's output but the last a place; writes how large all is together. */
static qz_status plan(qz_session *session, char *message) {
    const qz_model *model = session->model;
    const int32_t count = model->count;
    int32_t *last = calloc((size_t)count, sizeof(int32_t));
    part *used = calloc((size_t)count, sizeof(part));
    size_t *starts = calloc((size_t)count, sizeof(size_t));
    qz_status status = QZ_OK;
    int32_t using = 0;
    if (last == NULL || used == NULL || starts == NULL) {
        status = qz_fail(message, QZ_NO_MEMORY, "no memory for a plan");
        goto end;
    }
    for (int32_t i = 0; i < count; i++) {
        last[i] = session->keep ? count : i;
        for (int32_t k = 0; k < model->steps[i].node.input_count; k++)
            if (model->steps[i].inputs[k] >= 0 && !session->keep)
                last[model->steps[i].inputs[k]] = i;
    }
    for (int32_t i = 0; i < count - 1; i++) {
        const view *out = &session->outputs[i];
        size_t size = (size_t)out->row * (size_t)out->size.height;
        size *= model->steps[i].real ? sizeof(float) : 1;
        size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        int32_t still = 0;
        for (int32_t k = 0; k < using; k++)
            if (used[k].last >= i) used[still++] = used[k];
        using = still;
        qsort(used, (size_t)using, sizeof(part), by_start);
        starts[i] = first_gap(used, using, size);
        used[using++] = (part){starts[i], size, last[i]};
        if (starts[i] + size > session->size) session->size = starts[i] + size;
    }
    for (int32_t i = 0; i < count; i++) {
        const int32_t from = model->steps[i].inputs[0];
        const view *in = from < 0 ? &session->input : &session->outputs[from];
        const size_t size = qz_fast_scratch(&model->steps[i], in);
        if (size > session->scratch_size) session->scratch_size = size;
    }
    /* Kernels may read a few bytes beyond a tensor. */
    session->size += ALIGNMENT;
    session->memory = malloc(session->size + session->scratch_size + ALIGNMENT);
    if (session->memory == NULL) {
        status =
            qz_fail(message, QZ_NO_MEMORY, "no memory for %zu bytes of tensors", session->size);
        goto end;
    }
    session->arena = session->memory + (ALIGNMENT - (uintptr_t)session->memory % ALIGNMENT);
    session->scratch = session->arena + session->size;
    for (int32_t i = 0; i < count - 1; i++) session->outputs[i].data = session->arena + starts[i];
end:
    free(last);
    free(used);
    free(starts);
    return status;
}

static qz_status size_up(qz_session *session, dims images, char *message) {
    const qz_model *model = session->model;
    dims *sizes = calloc((size_t)model->count, sizeof(dims));
    if (sizes == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for sizes");
    qz_status status = QZ_OK;
    for (int32_t i = 0; status == QZ_OK && i < model->count; i++) {
        status = qz_output_size(model, i, sizes, images, &sizes[i], message);
        if (status == QZ_OK) session->outputs[i] = laid_out(sizes[i]);
    }
    free(sizes);
    return status;
}

qz_status qz_session_create(const qz_model *model, int32_t height, int32_t width, int32_t keep,
                            qz_session **session, char *message) {
    if (session == NULL || model == NULL)
        return qz_fail(message, QZ_BAD_ARGUMENT, "there is no model or nowhere to put a session");
    *session = NULL;
    if (height < 1 || height > MAX_SIDE || width < 1 || width > MAX_SIDE)
        return qz_fail(message, QZ_BAD_ARGUMENT, "images of %dx%d pixels are impossible", height,
                       width);
    qz_session *made = calloc(1, sizeof(*made));
    if (made == NULL) return qz_fail(message, QZ_NO_MEMORY, "no memory for a session");
    made->model = model;
    made->keep = keep != 0;
    const ptrdiff_t plane = (ptrdiff_t)height * width;
    made->input = (view){NULL, plane, width, 1, {4, model->channels, height, width}};
    made->outputs = calloc((size_t)model->count, sizeof(view));
    qz_status status = QZ_OK;
    if (made->outputs == NULL) status = qz_fail(message, QZ_NO_MEMORY, "no memory for a session");
    if (status == QZ_OK) status = size_up(made, made->input.size, message);
    if (status == QZ_OK) status = plan(made, message);
    if (status == QZ_OK)
        *session = made;
    else
        qz_session_free(made);
    return status;
}

void qz_session_free(qz_session *session) {
    if (session == NULL) return;
    free(session->outputs);
    free(session->memory);
    free(session);
}

static void run_one(const qz_session *session, const float *image, float *logits) {
    const qz_model *model = session->model;
    view inputs[QZ_MAX_INPUTS];
    for (int32_t i = 0; i < model->count; i++) {
        const step *step = &model->steps[i];
        for (int32_t k = 0; k < step->node.input_count; k++) {
            const int32_t from = step->inputs[k];
            inputs[k] = from < 0 ? session->input : session->outputs[from];
            if (from < 0) inputs[k].data = (void *)(uintptr_t)image; /* only read */
        }
        view output = session->outputs[i];
        if (i == model->count - 1) output.data = logits;
        if (step->fast != NULL)
            qz_compute_fast(step, inputs, &output, qz_grid_of(model, step->inputs[0]),
                            session->scratch);
        else
            qz_compute(step, inputs, &output, model);
    }
}

void qz_session_run(qz_session *session, int32_t count, const float *images, float *logits) {
    const size_t image = (size_t)session->input.channel * (size_t)session->model->channels;
    const size_t classes = (size_t)qz_session_classes(session);
    for (int32_t n = 0; n < count; n++)
        run_one(session, images + (size_t)n * image, logits + (size_t)n * classes);
}

int32_t qz_session_classes(const qz_session *session) {
    return session->outputs[session->model->count - 1].size.c;
}

size_t qz_session_memory(const qz_session *session) {
    return sizeof(*session) + session->size + session->scratch_size + ALIGNMENT +
           (size_t)session->model->count * sizeof(view);
}

qz_status qz_session_value(const qz_session *session, int32_t node, uint8_t *integers, size_t size,
                           char *message) {
    const qz_model *model = session->model;
    if (node < 0 || node >= model->count - 1 || model->steps[node].real || !session->keep)
        return qz_fail(message, QZ_BAD_ARGUMENT, "the integers of node %d were not kept", node);
    const view *v = &session->outputs[node];
    const size_t there = (size_t)v->row * (size_t)v->size.height;
    if (size != there)
        return qz_fail(message, QZ_BAD_ARGUMENT, "node %d has %zu integers, not %zu", node, there,
                       size);
    for (int32_t c = 0; c < v->size.c; c++)
        for (int32_t y = 0; y < v->size.height; y++)
            for (int32_t x = 0; x < v->size.width; x++)
                *integers++ =
                    ((const uint8_t *)v->data)[c * v->channel + y * v->row + x * v->column];
    return QZ_OK;
}
