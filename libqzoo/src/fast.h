/* What computes with kernels where there are some for the processor. */
#ifndef QZ_FAST_H
#define QZ_FAST_H

#include "kernels.h"

/* Packs a layer with weights for the model's kernels where they can compute it. */
qz_status qz_pack_fast(qz_model *model, step *step, const qz_node *source, int32_t number,
                       char *message);
/* How many bytes of scratch memory a packed layer needs for one call in one thread. */
size_t qz_fast_scratch(const step *step, const view *in);
/* Computes a part of a packed layer. */
void qz_compute_fast(const step *step, const view *in, const view *out, const qz_model *model,
                     part part, uint8_t *scratch);

/* Computes a part of an operation without weights where kernels can; says whether they could. */
bool qz_compute_rows(const step *step, const view *in, const view *out,
                     const qz_node *const *sources, const qz_model *model, part part,
                     uint8_t *scratch);
/* How many bytes of scratch memory that needs in one thread. */
size_t qz_rows_scratch(const step *step, const view *in, const view *out);

/* Computes a part of a concatenation of two inputs whose channels take turns in the output. */
void qz_alternate(const step *step, const view *in, const view *out, const qz_kernels *kernels,
                  part part);

#endif
