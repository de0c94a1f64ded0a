/* Runs nodes in every way that there is and ends the program where two ways give other numbers. */
#ifndef QZ_COMPARE_H
#define QZ_COMPARE_H

#include "qzoo.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Fails the way that sanitizers and fuzzers notice. */
static void must(bool good, const char *what) {
    if (good) return;
    fprintf(stderr, "FAILED: %s\n", what);
    abort();
}

/* Random bytes, the same for the same seed. */
static void scatter(void *to, size_t size, uint64_t seed) {
    uint8_t *bytes = to;
    seed = seed * 2 + 1;
    for (size_t i = 0; i < size; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(seed >> 56);
    }
}

/* Pictures, and what the library makes of them. Every piece of memory is exactly as large as the
 * header of the library says, so that a sanitizer notices the first byte beyond. */
typedef struct {
    int32_t count, channels, height, width, classes;
    uint8_t *pictures; /* [count, height, width, channels] */
    float *values;     /* [channels, 256] */
    float *images;     /* [count, channels, height, width], the same numbers */
    float *logits;     /* [count, classes], of plain C; NULL before the first run */
} qz_case;

static void *exactly(size_t count, size_t size) {
    void *made = malloc(count * size > 0 ? count * size : 1);
    must(made != NULL, "memory for a test");
    return made;
}

static void case_start(qz_case *c, uint64_t seed) {
    const size_t area = (size_t)c->height * (size_t)c->width, channels = (size_t)c->channels;
    const size_t all = (size_t)c->count * channels * area;
    c->pictures = exactly(all, 1);
    c->values = exactly(channels * 256, sizeof(float));
    c->images = exactly(all, sizeof(float));
    c->logits = NULL;
    scatter(c->pictures, all, seed);
    for (size_t i = 0; i < channels * 256; i++)
        c->values[i] = ((float)(i % 256) - 100.0f) * 0.02f + (float)(i / 256);
    for (size_t n = 0; n < (size_t)c->count; n++)
        for (size_t k = 0; k < channels; k++)
            for (size_t i = 0; i < area; i++)
                c->images[(n * channels + k) * area + i] =
                    c->values[k * 256 + c->pictures[(n * area + i) * channels + k]];
}

static void case_end(qz_case *c) {
    free(c->pictures);
    free(c->values);
    free(c->images);
    free(c->logits);
}

/* Runs a session on the case, from floats and from bytes; keeps or compares the logits. */
static void case_run(qz_case *c, qz_session *session, const char *how) {
    if (c->logits == NULL) c->classes = qz_session_classes(session);
    must(qz_session_classes(session) == c->classes, "the number of classes");
    const size_t all = (size_t)c->count * (size_t)c->classes;
    float *logits = exactly(all, sizeof(float));
    memset(logits, 0xff, all * sizeof(float));
    qz_session_run(session, c->count, c->images, logits);
    if (c->logits == NULL) {
        c->logits = exactly(all, sizeof(float));
        memcpy(c->logits, logits, all * sizeof(float));
    }
    must(memcmp(c->logits, logits, all * sizeof(float)) == 0, how);
    memset(logits, 0xff, all * sizeof(float));
    qz_session_run_bytes(session, c->count, c->pictures, c->values, logits);
    must(memcmp(c->logits, logits, all * sizeof(float)) == 0, how);
    free(logits);
}

#endif
