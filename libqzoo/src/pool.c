#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <windows.h>
typedef SRWLOCK lock;
typedef CONDITION_VARIABLE condition;
#define LOCK(l) AcquireSRWLockExclusive(l)
#define UNLOCK(l) ReleaseSRWLockExclusive(l)
#define WAIT(c, l) SleepConditionVariableSRW(c, l, INFINITE, 0)
#define WAKE(c) WakeAllConditionVariable(c)
#define GIVE_WAY() SwitchToThread()
typedef HANDLE thread;
#else
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
typedef pthread_mutex_t lock;
typedef pthread_cond_t condition;
#define LOCK(l) pthread_mutex_lock(l)
#define UNLOCK(l) pthread_mutex_unlock(l)
#define WAIT(c, l) pthread_cond_wait(c, l)
#define WAKE(c) pthread_cond_broadcast(c)
#define GIVE_WAY() sched_yield()
typedef pthread_t thread;
#endif

/* How often a thread looks for something to do before it lets others run: they may need its core.
 */
#define LOOKS 2000
/* How long it goes on looking for the next call before it sleeps, in times of LOOKS. */
#define PATIENCE 8

typedef struct {
    qz_pool *pool;
    int32_t index;
} worker;

struct qz_pool {
    int32_t threads, started;
    lock mutex;
    condition wake;
    /* The upper half is the number of a step, counted over all calls; the lower half is the next of
     * its parts. Where that is no part, there is nothing to take at the moment. */
    atomic_uint_least64_t next;
    atomic_int done;     /* parts of this step */
    atomic_int sleeping; /* workers that must be woken */
    atomic_bool stop;
    const qz_work *work;
    atomic_int parts; /* of the work: read before a part is taken, when it may go any moment */
    uint32_t first;   /* number of the work's first step */
    worker *workers;
    thread *handles;
#if !defined(_WIN32)
    pid_t process; /* a forked one has no workers */
#endif
};

#define CLOSED UINT32_MAX

static inline void pause_a_little(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t ticket(uint32_t step, uint32_t part) { return (uint64_t)step << 32 | part; }

/* Takes a part and computes it; says whether there was one. */
static bool take(qz_pool *pool, int32_t thread) {
    uint64_t seen = atomic_load_explicit(&pool->next, memory_order_acquire);
    if ((uint32_t)seen == CLOSED ||
        !atomic_compare_exchange_strong(&pool->next, &seen,
                                        (uint32_t)seen + 1 == (uint32_t)pool->parts
                                            ? ticket((uint32_t)(seen >> 32), CLOSED)
                                            : seen + 1))
        return false;
    /* The work stays until this part is done, and no longer: what is asked then is read now. */
    const qz_work *work = pool->work;
    const int32_t parts = work->parts, steps = work->steps;
    const uint32_t number = (uint32_t)(seen >> 32), step = number - pool->first;
    work->compute(work->context, (int32_t)step, (int32_t)(uint32_t)seen, thread);
    if (atomic_fetch_add(&pool->done, 1) + 1 == parts) {
        atomic_store(&pool->done, 0);
        const bool last = step + 1 == (uint32_t)steps;
        atomic_store_explicit(&pool->next, ticket(number + 1, last ? CLOSED : 0),
                              memory_order_release);
    }
    return true;
}

/* Takes parts until the pool ends. */
static void serve(worker *self) {
    qz_pool *pool = self->pool;
    int looks = 0;
    while (!atomic_load(&pool->stop)) {
        if (take(pool, self->index)) {
            looks = 0;
            continue;
        }
        pause_a_little();
        if (++looks % LOOKS == 0) GIVE_WAY();
        if (looks < LOOKS * PATIENCE) continue;
        LOCK(&pool->mutex);
        atomic_fetch_add(&pool->sleeping, 1);
        while ((uint32_t)atomic_load(&pool->next) == CLOSED && !atomic_load(&pool->stop))
            WAIT(&pool->wake, &pool->mutex);
        atomic_fetch_sub(&pool->sleeping, 1);
        UNLOCK(&pool->mutex);
        looks = 0;
    }
}

#if defined(_WIN32)
static DWORD WINAPI begin(LPVOID self) {
    serve(self);
    return 0;
}
static bool start(qz_pool *pool, int32_t index) {
    pool->handles[index] = CreateThread(NULL, 0, begin, &pool->workers[index], 0, NULL);
    return pool->handles[index] != NULL;
}
static void finish(thread handle) {
    WaitForSingleObject(handle, INFINITE);
    CloseHandle(handle);
}
#else
static void *begin(void *self) {
    serve(self);
    return NULL;
}
static bool start(qz_pool *pool, int32_t index) {
    return pthread_create(&pool->handles[index], NULL, begin, &pool->workers[index]) == 0;
}
static void finish(thread handle) { pthread_join(handle, NULL); }
#endif

static bool is_forked(const qz_pool *pool) {
#if defined(_WIN32)
    (void)pool;
    return false;
#else
    return pool->process != getpid();
#endif
}

static void wake_all(qz_pool *pool) {
    if (atomic_load(&pool->sleeping) == 0) return;
    LOCK(&pool->mutex);
    WAKE(&pool->wake);
    UNLOCK(&pool->mutex);
}

qz_pool *qz_pool_create(int32_t threads) {
    qz_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) return NULL;
    pool->threads = threads;
    atomic_init(&pool->next, CLOSED);
#if defined(_WIN32)
    InitializeSRWLock(&pool->mutex);
    InitializeConditionVariable(&pool->wake);
#else
    pool->process = getpid();
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
#endif
    pool->started = 1;
    pool->workers = calloc((size_t)threads, sizeof(worker));
    pool->handles = calloc((size_t)threads, sizeof(thread));
    bool good = pool->workers != NULL && pool->handles != NULL;
    while (good && pool->started < threads) {
        pool->workers[pool->started] = (worker){pool, pool->started};
        good = start(pool, pool->started);
        if (good) pool->started++;
    }
    if (good) return pool;
    qz_pool_free(pool);
    return NULL;
}

void qz_pool_free(qz_pool *pool) {
    if (pool == NULL) return;
    if (!is_forked(pool)) {
        atomic_store(&pool->stop, true);
        wake_all(pool);
        for (int32_t i = 1; i < pool->started; i++) finish(pool->handles[i]);
#if !defined(_WIN32)
        pthread_mutex_destroy(&pool->mutex);
        pthread_cond_destroy(&pool->wake);
#endif
    }
    free(pool->workers);
    free(pool->handles);
    free(pool);
}

void qz_pool_run(qz_pool *pool, const qz_work *work) {
    pool->work = work;
    pool->parts = work->parts;
    pool->first = (uint32_t)(atomic_load(&pool->next) >> 32);
    const uint32_t end = pool->first + (uint32_t)work->steps;
    atomic_store_explicit(&pool->next, ticket(pool->first, 0), memory_order_seq_cst);
    if (!is_forked(pool)) wake_all(pool);
    for (int looks = 0;
         (uint32_t)(atomic_load_explicit(&pool->next, memory_order_acquire) >> 32) != end;) {
        if (take(pool, 0)) {
            looks = 0;
            continue;
        }
        pause_a_little();
        if (++looks % LOOKS == 0) GIVE_WAY();
    }
}
