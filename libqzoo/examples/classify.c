/* Classifies a picture with an int8 model of qzoo; docs/libqzoo.md says how to compile this.
 *
 *     classify model.safetensors picture.ppm
 *
 * The picture has the size that the model was made for: a PPM file (P6, 8 bits), or bytes without a
 * header, row by row, red, green and blue of each pixel.
 */
#define QZOO_FILE_IMPLEMENTATION
#include "qzoo_file.h"

#include <errno.h>

#define BEST 5

/* Says what is wrong and ends the program. */
static void stop(const char *what, const char *why) {
    fprintf(stderr, "classify: %s: %s\n", what, why);
    exit(2);
}

static void *memory(size_t size) {
    void *made = malloc(size > 0 ? size : 1);
    if (made == NULL) stop("memory", "there is not enough");
    return made;
}

/* Reads a whole file. */
static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) stop(path, strerror(errno));
    size_t room = 1 << 20;
    uint8_t *bytes = memory(room);
    *size = 0;
    for (size_t got; (got = fread(bytes + *size, 1, room - *size, file)) > 0;) {
        *size += got;
        if (*size < room) continue;
        uint8_t *more = room > SIZE_MAX / 2 ? NULL : realloc(bytes, room *= 2);
        if (more == NULL) stop(path, "there is not enough memory for it");
        bytes = more;
    }
    if (ferror(file)) stop(path, strerror(errno));
    fclose(file);
    return bytes;
}

/* Reads a number of a PPM file's header: spaces and comments may stand before it. */
static int ppm_number(const uint8_t **at, const uint8_t *end) {
    int number = 0;
    while (*at < end && (strchr(" \t\r\n\v\f#", **at) && **at))
        if (*(*at)++ == '#')
            while (*at < end && **at != '\n') ++*at;
    if (*at == end || **at < '0' || **at > '9') return -1;
    while (*at < end && **at >= '0' && **at <= '9' && number < 100000)
        number = number * 10 + *(*at)++ - '0';
    return number;
}

/* Returns where the pixels are, after checking that they are as many as the model takes. */
static const uint8_t *pixels(const char *path, const uint8_t *bytes, size_t size, int height,
                             int width) {
    char text[200];
    const size_t wanted = (size_t)3 * (size_t)height * (size_t)width;
    const uint8_t *at = bytes + 2, *end = bytes + size;
    if (size == wanted) return bytes; /* no header */
    if (size < 2 || bytes[0] != 'P' || bytes[1] != '6') {
        snprintf(text, sizeof(text), "is no PPM file (P6), nor the %zu bytes of %d x %d pixels",
                 wanted, width, height);
        stop(path, text);
    }
    const int columns = ppm_number(&at, end), rows = ppm_number(&at, end);
    if (ppm_number(&at, end) != 255 || columns < 0 || rows < 0 || at == end)
        stop(path, "has a PPM header that cannot be read, or more than 8 bits");
    if (columns != width || rows != height) {
        snprintf(text, sizeof(text), "has %d x %d pixels; the model takes %d x %d: resize it first",
                 columns, rows, width, height);
        stop(path, text);
    }
    at++; /* one space before the pixels */
    if ((size_t)(end - at) < wanted) stop(path, "ends before its pixels do");
    return at;
}

/* Prints a class: its name where the model knows it, without control characters, else its number.
 */
static void print_class(const qz_file *file, int number, double score) {
    printf("%6.2f %%  ", 100 * score);
    const char *name = file->class_count > 0 ? file->classes[number] : NULL;
    if (name == NULL) printf("%d", number);
    for (; name != NULL && *name; name++) {
        const bool second = (name[0] & 0xff) == 0xc2 && (name[1] & 0xff) < 0xa0; /* U+0080 to 9F */
        if ((name[0] & 0xff) < ' ' || name[0] == 0x7f || second)
            putchar('?');
        else
            putchar(name[0]);
        name += second;
    }
    putchar('\n');
}

int main(int count, char **arguments) {
    if (count != 3) stop("usage", "classify model.safetensors picture.ppm");
    char message[QZ_MESSAGE];
    size_t size;
    uint8_t *bytes = read_file(arguments[1], &size);
    qz_file file;
    if (qz_file_read(bytes, size, &file, message) != QZ_OK) stop(arguments[1], message);
    if (file.crop_size == 0) stop(arguments[1], "does not say how pictures become its images");
    const int height = file.height > 0 ? file.height : file.crop_size;
    const int width = file.width > 0 ? file.width : file.crop_size;
    uint8_t *picture = read_file(arguments[2], &size);
    const uint8_t *pictures = pixels(arguments[2], picture, size, height, width);
    qz_model *model;
    if (qz_model_create(file.nodes, file.node_count, file.channels, 0, &model, message) != QZ_OK)
        stop(arguments[1], message);
    qz_session *session;
    if (qz_session_create(model, height, width, 1, 0, &session, message) != QZ_OK)
        stop(arguments[1], message);
    const int classes = qz_session_classes(session);
    if (file.class_count > 0 && file.class_count != classes)
        stop(arguments[1], "has another number of class names than of classes");

    /* The number that each byte of a channel stands for; each step is rounded on its own. */
    float values[3][256], *logits = memory((size_t)classes * sizeof(float));
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 256; i++) {
            const float part = (float)i / 255.0f, centred = part - file.mean[c];
            values[c][i] = centred / file.std[c];
        }
    qz_session_run_bytes(session, 1, pictures, values[0], logits);

    double most = logits[0], sum = 0;
    for (int i = 1; i < classes; i++) most = logits[i] > most ? logits[i] : most;
    for (int i = 0; i < classes; i++) sum += exp(logits[i] - most);
    for (int n = 0; n < BEST && n < classes; n++) {
        int best = 0;
        for (int i = 1; i < classes; i++)
            if (logits[i] > logits[best]) best = i;
        print_class(&file, best,
                    classes == 1 ? 1 / (1 + exp(-most)) : exp(logits[best] - most) / sum);
        logits[best] = -INFINITY;
    }
    qz_session_free(session);
    qz_model_free(model);
    qz_file_free(&file);
    free(logits);
    free(picture);
    free(bytes);
    return fflush(stdout) == 0 ? 0 : 2;
}
