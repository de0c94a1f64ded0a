/* Threads of a session's own, which sleep between calls. */
#ifndef QZ_POOL_H
#define QZ_POOL_H

#include <stdint.h>

typedef struct qz_pool qz_pool;

/* Work in steps, one after the other, each of some parts, which may be computed at once. */
typedef struct {
    void (*compute)(void *context, int32_t step, int32_t part, int32_t thread);
    void *context;
    int32_t steps, parts; /* 1 or more of both */
} qz_work;

/* Makes a pool of `threads` threads, the caller's included: 2 or more. Returns NULL where the
 * system gives none. */
qz_pool *qz_pool_create(int32_t threads);
void qz_pool_free(qz_pool *pool);

/* Does work. Threads take the parts as they come to them, so that one which the system keeps from
 * running keeps nobody waiting; the caller's has number 0. A forked process, which has no other
 * threads, does all by itself. */
void qz_pool_run(qz_pool *pool, const qz_work *work);

#endif
