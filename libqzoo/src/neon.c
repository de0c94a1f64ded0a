/* Kernels by NEON as every 64-bit ARM processor has it. */
#include "kernels.h"

#if defined(__AARCH64EL__)

#define NAME "NEON"
#define DOT 0
#include "neon.h"

#include "sixteen.h"

const qz_kernels *qz_neon(void) { return &kernels; }

#else

const qz_kernels *qz_neon(void) { return NULL; }

#endif
