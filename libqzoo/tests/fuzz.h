/* What both fuzzers do with nodes: run them in plain C and by every set of kernels, and compare. */
#ifndef QZ_FUZZ_H
#define QZ_FUZZ_H

#include "compare.h"

/* Larger sessions take too long for a fuzzer. */
#define MOST_MEMORY ((size_t)1 << 17)

static void fuzz(const qz_node *nodes, int32_t count, qz_case *c, int32_t threads) {
    static const int32_t ways[] = {QZ_PLAIN, 0, QZ_SKIP(1), QZ_SKIP(2), QZ_SKIP(3)};
    char message[QZ_MESSAGE];
    case_start(c, (uint64_t)count);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        qz_model *model = NULL;
        qz_session *session = NULL;
        memset(message, 1, sizeof(message));
        const qz_status made = qz_model_create(nodes, count, c->channels, ways[i], &model, message);
        must((made == QZ_OK) == (model != NULL), "a model exactly where there is no error");
        must(made == QZ_OK || memchr(message, 0, sizeof(message)), "a message that ends");
        must(made == QZ_OK || i == 0 || c->logits == NULL, "the same answer of all kernels");
        if (model == NULL) break;
        const int32_t options = i == 1 ? QZ_KEEP | QZ_TIMES : 0;
        const qz_status ready = qz_session_create(model, c->height, c->width, i == 1 ? 1 : threads,
                                                  options, &session, message);
        must((ready == QZ_OK) == (session != NULL), "a session exactly where there is no error");
        must(ready == QZ_OK || c->logits == NULL, "the same answer of all kernels");
        const bool run = session != NULL && qz_session_memory(session) < MOST_MEMORY;
        if (run) case_run(c, session, i == 0 ? "plain C from bytes" : "other kernels");
        qz_session_free(session);
        qz_model_free(model);
        if (!run) break;
    }
    case_end(c);
}

#endif
