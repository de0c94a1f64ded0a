/* A fuzzer of files: the reader, and models of what it reads. fuzz.py compiles and runs it. */
#define QZOO_FILE_IMPLEMENTATION
#include "qzoo_file.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char message[QZ_MESSAGE];
    qz_file file;
    uint8_t *bytes = exactly(size, 1); /* of its own, so that its end is noticed */
    memcpy(bytes, data, size);
    memset(message, 1, sizeof(message));
    const qz_status status = qz_file_read(bytes, size, &file, message);
    must(status == QZ_OK || memchr(message, 0, sizeof(message)), "a message that ends");
    if (status == QZ_OK) {
        const bool any = file.height == 0;
        qz_case c = {
            2,    file.channels, any ? 9 : file.height, any ? 11 : file.width, 0, NULL, NULL,
            NULL, NULL};
        if ((int64_t)c.height * c.width <= 64 * 64) fuzz(file.nodes, file.node_count, &c, 1);
    }
    qz_file_free(&file);
    qz_file_free(&file);
    free(bytes);
    return 0;
}
