/* Drives libqzoo the way programs do, for sanitizers to watch and for tests of its memory:
 *
 *     drive compare file ...      every file in plain C, by every set of kernels, on 1 and 2
 * threads drive together file ...     several threads at once, each with sessions of its own drive
 * cycles n file ...     makes and frees n models and sessions; prints how memory grew
 */
#define QZOO_FILE_IMPLEMENTATION
#include "qzoo_file.h"

#include "compare.h"

#include <pthread.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#define CALLERS 4

static uint8_t *load(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    must(file != NULL && fseek(file, 0, SEEK_END) == 0, path);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = exactly(*size, 1);
    must(fread(bytes, 1, *size, file) == *size, path);
    fclose(file);
    return bytes;
}

/* Makes a model of a file, which may go then. */
static qz_model *model_of(const char *path, int32_t options, int32_t size[2]) {
    char message[QZ_MESSAGE] = "";
    size_t length;
    uint8_t *bytes = load(path, &length);
    qz_file file;
    qz_model *model = NULL;
    must(qz_file_read(bytes, length, &file, message) == QZ_OK, message);
    size[0] = file.height > 0 ? file.height : 32;
    size[1] = file.width > 0 ? file.width : 48;
    must(qz_model_create(file.nodes, file.node_count, file.channels, options, &model, message) ==
             QZ_OK,
         message);
    must(qz_model_memory(model) > 0 && qz_instructions()[0] != 0, "facts about a model");
    qz_file_free(&file);
    free(bytes);
    return model;
}

static qz_session *session_of(const qz_model *model, const int32_t size[2], int32_t threads,
                              int32_t options) {
    char message[QZ_MESSAGE] = "";
    qz_session *session = NULL;
    must(qz_session_create(model, size[0], size[1], threads, options, &session, message) == QZ_OK,
         message);
    must(qz_session_memory(session) > 0, "facts about a session");
    return session;
}

static void compare(const char *path) {
    static const int32_t ways[] = {QZ_PLAIN, 0, QZ_SKIP(1), QZ_SKIP(2), QZ_SKIP(3)};
    static const int32_t options[] = {0, QZ_KEEP, QZ_TIMES};
    qz_case c = {.count = 3, .channels = 3};
    for (size_t w = 0; w < sizeof(ways) / sizeof(ways[0]); w++) {
        int32_t size[2];
        qz_model *model = model_of(path, ways[w], size);
        if (w == 0) {
            c.height = size[0];
            c.width = size[1];
            case_start(&c, 1);
        }
        for (int32_t threads = 1; threads <= 2; threads++)
            for (size_t o = 0; o < sizeof(options) / sizeof(options[0]); o++) {
                qz_session *session = session_of(model, size, threads, options[o]);
                case_run(&c, session, path);
                case_run(&c, session, "a second run");
                qz_session_free(session);
            }
        qz_model_free(model);
    }
    case_end(&c);
}

typedef struct {
    const qz_model *model;
    const qz_case *wanted;
    int32_t size[2], threads;
} caller;

static void *call(void *argument) {
    const caller *own = argument;
    for (int i = 0; i < 3; i++) {
        qz_case c = *own->wanted; /* only read */
        qz_session *session = session_of(own->model, own->size, own->threads, i == 1 ? QZ_KEEP : 0);
        case_run(&c, session, "calls at the same time");
        qz_session_free(session);
    }
    return NULL;
}

/* Several threads at once on sessions of one model: of one thread, and of two. */
static void together(const char *path) {
    int32_t size[2];
    qz_model *model = model_of(path, 0, size);
    qz_case c = {.count = 2, .channels = 3, .height = size[0], .width = size[1]};
    case_start(&c, 2);
    qz_session *session = session_of(model, size, 1, 0);
    case_run(&c, session, path);
    qz_session_free(session);
    pthread_t threads[CALLERS];
    caller callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){model, &c, {size[0], size[1]}, 1 + i % 2};
        must(pthread_create(&threads[i], NULL, call, &callers[i]) == 0, "a thread");
    }
    for (int i = 0; i < CALLERS; i++) must(pthread_join(threads[i], NULL) == 0, "a thread's end");
    case_end(&c);
    qz_model_free(model);
}

/* Bytes that the process has allocated, or holds where the C library does not say. */
static size_t held(void) {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
#else
    return 0;
#endif
}

static size_t resident(void) {
    size_t all = 0, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%zu %zu", &all, &pages) != 2) pages = 0;
    fclose(file);
    return pages * 4096;
}

static void cycle(const char *path, int i) {
    int32_t size[2];
    qz_model *model = model_of(path, i % 5 == 0 ? QZ_PLAIN : 0, size);
    qz_session *session = session_of(model, size, 1 + i % 2, i % 3 == 0 ? QZ_KEEP : 0);
    if (i % 10 == 0) {
        qz_case c = {.count = 1, .channels = 3, .height = size[0], .width = size[1]};
        case_start(&c, 3);
        case_run(&c, session, path);
        case_end(&c);
    }
    /* What is refused must leave nothing either. */
    char message[QZ_MESSAGE];
    qz_session *none = NULL;
    must(qz_session_create(model, 0, 5, 1, 0, &none, message) == QZ_BAD_ARGUMENT, "a bad size");
    qz_session_free(session);
    qz_model_free(model);
}

static void cycles(int count, char **paths, int path_count) {
    for (int i = 0; i < count / 10; i++) cycle(paths[i % path_count], i); /* warm */
    const size_t before = held(), pages = resident();
    for (int i = 0; i < count; i++) cycle(paths[i % path_count], i);
    printf("%lld %lld\n", (long long)held() - (long long)before,
           (long long)resident() - (long long)pages);
}

int main(int count, char **arguments) {
    must(count >= 3, "usage: drive compare|together|cycles ...");
    const char *what = arguments[1];
    if (strcmp(what, "cycles") == 0) {
        must(count >= 4, "usage: drive cycles n file ...");
        cycles(atoi(arguments[2]), arguments + 3, count - 3);
        return 0;
    }
    for (int i = 2; i < count; i++) {
        if (strcmp(what, "compare") == 0)
            compare(arguments[i]);
        else
            together(arguments[i]);
    }
    return 0;
}
