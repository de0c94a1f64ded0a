/* Threads of a session's own, which sleep between calls. */
#ifndef QZ_POOL_H
#define QZ_POOL_H

#include <stdint.h>

typedef struct qz_pool qz_pool;

/* Makes a pool for work that `threads` threads do together, the caller's included: 2 or more.
 * Returns NULL where the system gives none. */
qz_pool *qz_pool_create(int32_t threads);
void qz_pool_free(qz_pool *pool);
/* How many there are, which may be fewer after a process was forked. */
int32_t qz_pool_threads(const qz_pool *pool);

/* Calls work(context, index) once in each thread; the caller's has index 0. */
void qz_pool_run(qz_pool *pool, void (*work)(void *context, int32_t index), void *context);

/* Waits, inside of work, until all threads are here. */
void qz_pool_meet(qz_pool *pool);

#endif
