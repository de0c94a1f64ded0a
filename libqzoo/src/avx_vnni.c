/* Kernels by AVX-VNNI: `vpdpbusd` for processors that have it without AVX-512. */
#include "kernels.h"

#if defined(__x86_64__)

#define VNNI 1
#if defined(QZ_AVX512_FORMS)
/* The same instructions as AVX-512 encodes them, for tests on processors without AVX-VNNI. */
#define NAME "AVX-VNNI in the forms of AVX-512"
#define TARGET "avx2,avx512vl,avx512vnni"
#define DOT _mm256_dpbusd_epi32
#else
#define NAME "AVX-VNNI"
#define TARGET "avx2,avxvnni"
#define DOT _mm256_dpbusd_avx_epi32
#endif
#include "ymm.h"

#include "sixteen.h"

const qz_kernels *qz_avx_vnni(void) {
    unsigned a, b, c, d;
    if (!has_avx2()) return NULL;
#if defined(QZ_AVX512_FORMS)
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 31 && (c >> 11 & 1) ? &kernels : NULL;
#else
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) ? &kernels : NULL;
#endif
}

#else

const qz_kernels *qz_avx_vnni(void) { return NULL; }

#endif
