/* Kernels by NEON with dot products: `sdot` multiplies signed bytes. */
#include "kernels.h"

#if defined(__AARCH64EL__)

#define NAME "NEON with dot products"
#define TARGET "arch=armv8.2-a+dotprod"
#define DOT 1
#define I8MM 0
#include "neon.h"

#include "sixteen.h"

const qz_kernels *qz_neon_dot(void) { return HAS_DOT ? &kernels : NULL; }

#else

const qz_kernels *qz_neon_dot(void) { return NULL; }

#endif
