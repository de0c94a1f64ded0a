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

/* How often a thread looks before it lets others run: they may need its core. */
#define LOOKS 2000
/* How long it goes on looking for the next call before it sleeps, in times of LOOKS. */
#define PATIENCE 8

typedef struct {
    qz_pool *pool;
    int32_t index;
} worker;

struct qz_pool {
    int32_t threads, started;
    bool stop;
    lock mutex;
    condition wake;
    atomic_uint calls;   /* how many there have been */
    atomic_int sleeping; /* workers that must be woken */
    atomic_int arrived;  /* threads that wait in qz_pool_meet */
    atomic_uint meetings;
    void (*work)(void *context, int32_t index);
    void *context;
    worker *workers;
    thread *handles;
#if !defined(_WIN32)
    pid_t process; /* a forked one has no workers */
#endif
};

static inline void pause_a_little(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void qz_pool_meet(qz_pool *pool) {
    const unsigned meeting = atomic_load_explicit(&pool->meetings, memory_order_acquire);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == pool->threads) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->meetings, meeting + 1, memory_order_release);
        return;
    }
    for (int looks = 0; atomic_load_explicit(&pool->meetings, memory_order_acquire) == meeting;
         looks++) {
        if (looks < LOOKS)
            pause_a_little();
        else
            GIVE_WAY();
    }
}

/* Waits for a call after the one that was seen; returns its number. */
static unsigned next_call(qz_pool *pool, unsigned seen) {
    for (int looks = 0; looks < LOOKS * PATIENCE; looks++) {
        const unsigned calls = atomic_load_explicit(&pool->calls, memory_order_acquire);
        if (calls != seen) return calls;
        pause_a_little();
        if (looks % LOOKS == LOOKS - 1) GIVE_WAY();
    }
    LOCK(&pool->mutex);
    atomic_fetch_add(&pool->sleeping, 1);
    while (atomic_load(&pool->calls) == seen) WAIT(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleeping, 1);
    UNLOCK(&pool->mutex);
    return atomic_load(&pool->calls);
}

static void serve(worker *self) {
    qz_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        seen = next_call(pool, seen);
        if (pool->stop) return;
        pool->work(pool->context, self->index);
        qz_pool_meet(pool);
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

/* Starts the workers; says whether all could be. */
static bool start_all(qz_pool *pool) {
#if defined(_WIN32)
    InitializeSRWLock(&pool->mutex);
    InitializeConditionVariable(&pool->wake);
#else
    pool->process = getpid();
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
#endif
    atomic_init(&pool->calls, 0);
    atomic_init(&pool->sleeping, 0);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->meetings, 0);
    for (pool->started = 1; pool->started < pool->threads; pool->started++) {
        pool->workers[pool->started] = (worker){pool, pool->started};
        if (!start(pool, pool->started)) return false;
    }
    return true;
}

static void call(qz_pool *pool) {
    atomic_fetch_add(&pool->calls, 1);
    if (atomic_load(&pool->sleeping) > 0) {
        LOCK(&pool->mutex);
        WAKE(&pool->wake);
        UNLOCK(&pool->mutex);
    }
}

qz_pool *qz_pool_create(int32_t threads) {
    qz_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) return NULL;
    pool->threads = threads;
    pool->workers = calloc((size_t)threads, sizeof(worker));
    pool->handles = calloc((size_t)threads, sizeof(thread));
    if (pool->workers != NULL && pool->handles != NULL && start_all(pool)) return pool;
    qz_pool_free(pool);
    return NULL;
}

void qz_pool_free(qz_pool *pool) {
    if (pool == NULL) return;
#if !defined(_WIN32)
    const bool here = pool->process == getpid();
#else
    const bool here = true;
#endif
    if (here && pool->started > 1) {
        pool->stop = true;
        call(pool);
        for (int32_t i = 1; i < pool->started; i++) finish(pool->handles[i]);
    }
    free(pool->workers);
    free(pool->handles);
    free(pool);
}

int32_t qz_pool_threads(const qz_pool *pool) { return pool->threads; }

void qz_pool_run(qz_pool *pool, void (*work)(void *context, int32_t index), void *context) {
#if !defined(_WIN32)
    /* A forked process lacks the workers. */
    if (pool->process != getpid() && !start_all(pool)) pool->threads = pool->started;
#endif
    pool->work = work;
    pool->context = context;
    call(pool);
    work(context, 0);
    qz_pool_meet(pool);
}
