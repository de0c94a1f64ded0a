/* Runs an artifact, for tests on processors that Python does not run on here.
 *
 *     run_artifact FOLDER HEIGHT WIDTH OPTIONS THREADS
 *
 * FOLDER has model.safetensors; images, float [count, channels, HEIGHT, WIDTH]; and sizes, int64
 * [nodes]: how many integers each node gives, 0 for real numbers. It gets logits, float [count,
 * classes], and integers: those of all nodes, one after the other, for the last image. OPTIONS are
 * those of qz_model_create. Prints which instructions the fast kernels use here.
 */
#include <stdio.h>
#include <stdlib.h>

#define QZOO_FILE_IMPLEMENTATION
#include "../qzoo_file.h"

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static FILE *open_in(const char *folder, const char *name, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, mode);
    if (file == NULL) fail(path, "cannot be opened");
    return file;
}

static void *room(size_t size) {
    void *memory = malloc(size + 1);
    if (memory == NULL) fail("memory", "there is too little");
    return memory;
}

static void *read_all(const char *folder, const char *name, size_t *size) {
    FILE *file = open_in(folder, name, "rb");
    if (fseek(file, 0, SEEK_END) || (*size = (size_t)ftell(file)) == 0) fail(name, "is empty");
    rewind(file);
    void *bytes = room(*size);
    if (fread(bytes, 1, *size, file) != *size) fail(name, "cannot be read");
    fclose(file);
    return bytes;
}

static void write_all(const char *folder, const char *name, const void *bytes, size_t size) {
    FILE *file = open_in(folder, name, "wb");
    if (fwrite(bytes, 1, size, file) != size || fclose(file)) fail(name, "cannot be written");
}

static qz_session *ready(const qz_model *model, char **arguments, int32_t options) {
    char message[QZ_MESSAGE];
    qz_session *session;
    if (qz_session_create(model, atoi(arguments[2]), atoi(arguments[3]), atoi(arguments[5]),
                          options, &session, message))
        fail("session", message);
    return session;
}

int main(int count, char **arguments) {
    if (count != 6) fail("usage", "run_artifact FOLDER HEIGHT WIDTH OPTIONS THREADS");
    const char *folder = arguments[1];
    char message[QZ_MESSAGE];
    size_t size;
    void *bytes = read_all(folder, "model.safetensors", &size);
    qz_file file;
    if (qz_file_read(bytes, size, &file, message)) fail("file", message);
    qz_model *model;
    if (qz_model_create(file.nodes, file.node_count, file.channels, atoi(arguments[4]), &model,
                        message))
        fail("model", message);

    /* As users run it. */
    float *images = read_all(folder, "images", &size);
    const size_t image = (size_t)(file.channels * atoi(arguments[2]) * atoi(arguments[3]));
    const size_t images_count = size / sizeof *images / image;
    qz_session *session = ready(model, arguments, 0);
    const size_t classes = (size_t)qz_session_classes(session);
    float *logits = room(images_count * classes * sizeof *logits);
    qz_session_run(session, (int32_t)images_count, images, logits);
    write_all(folder, "logits", logits, images_count * classes * sizeof *logits);
    qz_session_free(session);

    /* And with the integers between. */
    int64_t *sizes = read_all(folder, "sizes", &size);
    if (size != (size_t)file.node_count * sizeof *sizes) fail("sizes", "has another length");
    session = ready(model, arguments, QZ_KEEP);
    qz_session_run(session, 1, images + (images_count - 1) * image, logits);
    FILE *integers = open_in(folder, "integers", "wb");
    for (int32_t i = 0; i < file.node_count; i++) {
        uint8_t *value = room((size_t)sizes[i]);
        if (sizes[i] > 0 && qz_session_value(session, i, value, (size_t)sizes[i], message))
            fail(file.names[i], message);
        if (fwrite(value, 1, (size_t)sizes[i], integers) != (size_t)sizes[i])
            fail("integers", "cannot be written");
        free(value);
    }
    if (fclose(integers)) fail("integers", "cannot be written");
    qz_session_free(session);
    qz_model_free(model);
    qz_file_free(&file);
    free(sizes);
    free(logits);
    free(images);
    free(bytes);
    puts(qz_instructions());
    return 0;
}
