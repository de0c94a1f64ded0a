/* Kernels by NEON with dot products of unsigned and signed bytes: `usdot` and `sudot`. */
#include "kernels.h"

#if defined(__AARCH64EL__)

#define NAME "NEON with I8MM"
#define TARGET "arch=armv8.2-a+dotprod+i8mm"
#define DOT 1
#define I8MM 1
#include "neon.h"

#include "sixteen.h"

const qz_kernels *qz_neon_i8mm(void) { return HAS_DOT && HAS_I8MM ? &kernels : NULL; }

#else

const qz_kernels *qz_neon_i8mm(void) { return NULL; }

#endif
