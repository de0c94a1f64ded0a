/* Kernels by AVX2 without VNNI. */
#include "kernels.h"

#if defined(__x86_64__)

#define NAME "AVX2"
#define TARGET "avx2"
#define VNNI 0
#include "ymm.h"

#include "sixteen.h"

const qz_kernels *qz_avx2(void) { return has_avx2() ? &kernels : NULL; }

#else

const qz_kernels *qz_avx2(void) { return NULL; }

#endif
