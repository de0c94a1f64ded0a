/* Reads int8 models of qzoo, artifact version 3 (docs/artifact.md), into nodes for libqzoo.
 *
 * One header beside qzoo.h; it needs libc and libm, reads memory and no files, and has no globals.
 * In one C file of a program:
 *
 *     #define QZOO_FILE_IMPLEMENTATION
 *     #include "qzoo_file.h"
 *
 * Compile it like libqzoo, with -ffp-contract=off. examples/classify.c shows its use.
 */
#ifndef QZOO_FILE_H
#define QZOO_FILE_H

#include "qzoo.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a file holds. Texts are UTF-8, end in a zero and may hold control characters. */
typedef struct {
    int32_t node_count;
    qz_node *nodes;     /* for qz_model_create */
    const char **names; /* of the nodes */
    int32_t channels;   /* of the images */
    /* Of the only images that the model takes, in pixels; 0 where it takes any. */
    int32_t height, width;
    /* Names of the logits in their order; 0 and NULL where the file holds none. */
    int32_t class_count;
    const char **classes;
    /* How a picture becomes an image: its shorter side resized to resize_size pixels, a square of
     * crop_size cut out of the middle, bytes divided by 255, less mean, divided by std. All are 0
     * where the file does not say. */
    int32_t crop_size, resize_size;
    const char *interpolation; /* such as "bilinear" */
    float mean[3], std[3];
    const char *architecture; /* such as "resnet50", or NULL */
    void *memory;             /* what qz_file_free frees */
} qz_file;

/* Reads a file's bytes: checks all that it says, its checksum included.
 *
 * bytes: The whole file. Weights are not copied: the bytes must stay as they are while the nodes
 *     are used. qz_model_create copies what it needs, so that file and bytes may go after it.
 * file: Written; qz_file_free frees what it holds, and may be called after failures, too.
 * message: QZ_MESSAGE characters of ASCII, written where the result is not QZ_OK.
 *
 * How nodes fit together is checked by qz_model_create and qz_session_create.
 */
qz_status qz_file_read(const void *bytes, size_t size, qz_file *file, char *message);
void qz_file_free(qz_file *file);

#ifdef __cplusplus
}
#endif
#endif

#ifdef QZOO_FILE_IMPLEMENTATION
#undef QZOO_FILE_IMPLEMENTATION

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bounds of docs/artifact.md. */
#define QZF_DEPTH 32
#define QZF_HEADER ((uint64_t)8 << 20)
#define QZF_TENSORS 32768
#define QZF_NODES 10000
#define QZF_NAME 200
#define QZF_INPUTS 64
#define QZF_GROUPS 32768
#define QZF_PIXELS 32767
#define QZF_CHANNELS (1 << 20)
#define QZF_SIZE (((int64_t)1 << 40) - 1) /* of a tensor */
#define QZF_CLASS_NAME 1000
#define QZF_SMALLEST 0x1p-40 /* of scales */
#define QZF_LARGEST 0x1p40

/* ---- Memory and messages ---- */

typedef struct {
    const char *text;
    uint32_t size, number;
} qzf_name;

/* A JSON value. Those that an object or a list holds come after it. */
typedef struct {
    uint32_t start, size; /* of its text; for an object or list, how many it holds */
    uint32_t next;        /* the value behind it and all that it holds */
    char kind;            /* one of { [ " 0 t f n */
} qzf_value;

typedef struct {
    char *text; /* texts in it are unescaped where they stand */
    uint32_t size, at;
    qzf_value *values;
    uint32_t count, room;
} qzf_json;

typedef struct {
    qzf_name name; /* first, so that qzf_by_name sorts tensors, too */
    int kind;
    bool used;
    int rank;
    int64_t shape[4], count, place[2];
    const uint8_t *data;
} qzf_tensor;

/* Kinds of numbers: their names in the file and in the checksum, and how many bytes one takes. */
enum { QZF_I8, QZF_U8, QZF_F32, QZF_F64, QZF_KINDS };
static const struct {
    const char *stored, *summed;
    int64_t size;
} qzf_kinds[QZF_KINDS] = {
    {"I8", "int8", 1}, {"U8", "uint8", 1}, {"F32", "float32", 4}, {"F64", "float64", 8}};

typedef struct {
    qz_file *file;
    qz_status status;
    char *message;
    qzf_json table, header; /* safetensors' own JSON, and qzoo's within it */
    qzf_tensor *tensors;
    uint32_t tensor_count;
    qzf_name *names; /* of the nodes, sorted */
    bool *read;      /* which nodes feed others */
} qzf_reader;

typedef union qzf_block {
    union qzf_block *next;
    max_align_t alignment;
} qzf_block;

static bool qzf_fail(qzf_reader *r, const char *format, ...) {
    char text[QZ_MESSAGE];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof(text), format, values);
    va_end(values);
    /* What a file says may hold anything; a terminal shows only what is sure to be harmless. */
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
    if (r->message != NULL) memcpy(r->message, text, sizeof(text));
    r->status = QZ_BAD_MODEL;
    return false;
}

static bool qzf_no_memory(qzf_reader *r) {
    qzf_fail(r, "there is no memory for the file");
    r->status = QZ_NO_MEMORY;
    return false;
}

/* Returns zeroed memory that qz_file_free frees. */
static void *qzf_allocate(qzf_reader *r, size_t count, size_t size) {
    qzf_block *block = NULL;
    if (count <= (SIZE_MAX - sizeof(*block)) / size)
        block = calloc(1, sizeof(*block) + count * size);
    if (block == NULL) {
        qzf_no_memory(r);
        return NULL;
    }
    block->next = r->file->memory;
    r->file->memory = block;
    return block + 1;
}

void qz_file_free(qz_file *file) {
    for (qzf_block *block = file->memory, *next; block != NULL; block = next) {
        next = block->next;
        free(block);
    }
    memset(file, 0, sizeof(*file));
}

static int qzf_by_name(const void *a, const void *b) {
    const qzf_name *x = a, *y = b;
    const int order = memcmp(x->text, y->text, x->size < y->size ? x->size : y->size);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

static bool qzf_is(const qzf_json *json, const qzf_value *value, const char *text) {
    return value->kind == '"' && strcmp(json->text + value->start, text) == 0;
}

/* ---- JSON, strict: UTF-8, no key twice, no zero character, numbers that are finite ---- */

static bool qzf_is_utf8(const char *text, uint32_t size) {
    const uint8_t *t = (const uint8_t *)text;
    for (uint32_t i = 0, more; i < size; i += more + 1) {
        more = t[i] < 0x80 ? 0 : t[i] < 0xe0 ? 1 : t[i] < 0xf0 ? 2 : 3;
        if (more == 0) continue;
        if (t[i] < 0xc2 || t[i] > 0xf4 || more > size - i - 1) return false;
        for (uint32_t k = 1; k <= more; k++)
            if ((t[i + k] & 0xc0) != 0x80) return false;
        /* Longer than need be, halves of surrogate pairs, beyond the last character. */
        if ((t[i] == 0xe0 && t[i + 1] < 0xa0) || (t[i] == 0xed && t[i + 1] > 0x9f) ||
            (t[i] == 0xf0 && t[i + 1] < 0x90) || (t[i] == 0xf4 && t[i + 1] > 0x8f))
            return false;
    }
    return true;
}

static int qzf_peek(const qzf_json *j) { return j->at < j->size ? (uint8_t)j->text[j->at] : -1; }

static bool qzf_is_digit(int c) { return c >= '0' && c <= '9'; }

static void qzf_space(qzf_json *j) {
    while (j->at < j->size && strchr(" \t\n\r", j->text[j->at]) && j->text[j->at]) j->at++;
}

static bool qzf_bad_json(qzf_reader *r, const qzf_json *j) {
    return qzf_fail(r, "the header is damaged: it is no JSON at its byte %u", (unsigned)j->at);
}

static bool qzf_add(qzf_reader *r, qzf_json *j, char kind, uint32_t start, uint32_t size) {
    if (j->count == j->room) {
        const uint32_t room = j->room ? 2 * j->room : 256;
        qzf_value *values = realloc(j->values, room * sizeof(*values));
        if (values == NULL) return qzf_no_memory(r);
        j->values = values;
        j->room = room;
    }
    j->values[j->count] = (qzf_value){start, size, j->count + 1, kind};
    j->count++;
    return true;
}

/* Reads the four digits of \uXXXX; -1 where they are none. */
static int32_t qzf_hex(qzf_json *j) {
    int32_t code = 0;
    for (int i = 0; i < 4; i++, j->at++) {
        const int c = qzf_peek(j), letter = c | 0x20;
        if (!qzf_is_digit(c) && (letter < 'a' || letter > 'f')) return -1;
        code = code * 16 + (qzf_is_digit(c) ? c - '0' : letter - 'a' + 10);
    }
    return code;
}

/* Reads what follows a backslash and writes it; the text only gets shorter. */
static bool qzf_escape(qzf_reader *r, qzf_json *j, uint32_t *to) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    const int c = qzf_peek(j);
    if (c < 1) return qzf_bad_json(r, j);
    j->at++;
    if (c != 'u') {
        const char *found = strchr(from, c);
        if (found == NULL) return qzf_bad_json(r, j);
        j->text[(*to)++] = into[found - from];
        return true;
    }
    int32_t code = qzf_hex(j);
    if (code >= 0xd800 && code < 0xdc00) { /* the first half of a pair */
        int32_t second = -1;
        if (j->size - j->at >= 6 && j->text[j->at] == '\\' && j->text[j->at + 1] == 'u') {
            j->at += 2;
            second = qzf_hex(j);
        }
        if (second < 0xdc00 || second > 0xdfff) return qzf_bad_json(r, j);
        code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
    } else if (code <= 0 || (code >= 0xdc00 && code < 0xe000)) {
        return qzf_bad_json(r, j);
    }
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const uint8_t first[] = {0, 0xc0, 0xe0, 0xf0};
    j->text[(*to)++] = (char)(first[more] | code >> 6 * more);
    for (int i = more - 1; i >= 0; i--) j->text[(*to)++] = (char)(0x80 | (code >> 6 * i & 0x3f));
    return true;
}

static bool qzf_string(qzf_reader *r, qzf_json *j) {
    const uint32_t start = ++j->at;
    uint32_t to = start;
    for (;;) {
        const int c = qzf_peek(j);
        if (c < ' ') return qzf_bad_json(r, j); /* a control character, or the end */
        j->at++;
        if (c == '"') break;
        if (c != '\\')
            j->text[to++] = (char)c;
        else if (!qzf_escape(r, j, &to))
            return false;
    }
    j->text[to] = 0;
    return qzf_add(r, j, '"', start, to - start);
}

/* Returns the double that is nearest to a number's text.
 *
 * strtod takes the locale's character for a decimal point, so it gets numbers without one: 1.25e3
 * as 125e1. No more than 767 digits decide which double is the nearest, but for whether others
 * follow.
 */
static double qzf_real(const char *text, uint32_t size) {
    enum { DIGITS = 768 };
    char digits[DIGITS + 20];
    int count = 0;
    int32_t exponent = 0;
    bool point = false, more = false;
    uint32_t i = text[0] == '-';
    for (; i < size && text[i] != 'e' && text[i] != 'E'; i++) {
        if (text[i] == '.') {
            point = true;
            continue;
        }
        if (point) exponent--;
        if (count == 0 && text[i] == '0') continue;
        if (count < DIGITS) {
            digits[count++] = text[i];
        } else {
            exponent++;
            more = more || text[i] != '0';
        }
    }
    if (i < size) {
        const bool minus = text[++i] == '-';
        int32_t written = 0;
        for (i += minus || text[i] == '+'; i < size; i++)
            if (written < 100000000) written = written * 10 + (text[i] - '0');
        exponent += minus ? -written : written;
    }
    if (more) {
        digits[count++] = '1';
        exponent--;
    }
    if (count == 0) digits[count++] = '0';
    snprintf(digits + count, sizeof(digits) - (size_t)count, "e%ld", (long)exponent);
    const double value = strtod(digits, NULL);
    return text[0] == '-' ? -value : value;
}

static bool qzf_digits(qzf_json *j) {
    const uint32_t start = j->at;
    while (qzf_is_digit(qzf_peek(j))) j->at++;
    return j->at > start;
}

static bool qzf_number(qzf_reader *r, qzf_json *j) {
    const uint32_t start = j->at;
    bool whole = true;
    if (qzf_peek(j) == '-') j->at++;
    if (qzf_peek(j) == '0')
        j->at++;
    else if (!qzf_digits(j))
        return qzf_bad_json(r, j);
    if (qzf_peek(j) == '.') {
        whole = false;
        j->at++;
        if (!qzf_digits(j)) return qzf_bad_json(r, j);
    }
    if (qzf_peek(j) == 'e' || qzf_peek(j) == 'E') {
        whole = false;
        j->at++;
        if (qzf_peek(j) == '-' || qzf_peek(j) == '+') j->at++;
        if (!qzf_digits(j)) return qzf_bad_json(r, j);
    }
    const uint32_t size = j->at - start;
    if (!whole && !isfinite(qzf_real(j->text + start, size)))
        return qzf_fail(r, "the header is damaged: it holds a number that is too large");
    return qzf_add(r, j, '0', start, size);
}

static bool qzf_scalar(qzf_reader *r, qzf_json *j) {
    static const char *const words[] = {"true", "false", "null"};
    if (qzf_peek(j) == '"') return qzf_string(r, j);
    for (int i = 0; i < 3; i++) {
        const uint32_t size = (uint32_t)strlen(words[i]);
        if (j->size - j->at < size || memcmp(j->text + j->at, words[i], size) != 0) continue;
        j->at += size;
        return qzf_add(r, j, words[i][0], j->at - size, size);
    }
    return qzf_number(r, j);
}

static bool qzf_key(qzf_reader *r, qzf_json *j) {
    qzf_space(j);
    if (qzf_peek(j) != '"') return qzf_bad_json(r, j);
    if (!qzf_string(r, j)) return false;
    qzf_space(j);
    if (qzf_peek(j) != ':') return qzf_bad_json(r, j);
    j->at++;
    return true;
}

/* Ends an object or a list; an object's keys are all different. */
static bool qzf_close(qzf_reader *r, qzf_json *j, uint32_t number) {
    qzf_value *value = &j->values[number];
    value->next = j->count;
    if (value->kind != '{' || value->size < 2) return true;
    qzf_name *keys = malloc(value->size * sizeof(*keys));
    if (keys == NULL) return qzf_no_memory(r);
    for (uint32_t i = number + 1, n = 0; i < j->count; i = j->values[i + 1].next)
        keys[n++] = (qzf_name){j->text + j->values[i].start, j->values[i].size, 0};
    qsort(keys, value->size, sizeof(*keys), qzf_by_name);
    bool good = true;
    for (uint32_t i = 1; good && i < value->size; i++)
        if (qzf_by_name(&keys[i - 1], &keys[i]) == 0)
            good =
                qzf_fail(r, "the header is damaged: it names the key '%.80s' twice", keys[i].text);
    free(keys);
    return good;
}

/* Reads a JSON text. Objects and lists that are open are numbers on a short stack: no recursion. */
static bool qzf_parse(qzf_reader *r, qzf_json *j) {
    uint32_t open[QZF_DEPTH];
    uint32_t depth = 0;
    for (;;) {
        qzf_space(j);
        const int c = qzf_peek(j);
        if (c == '{' || c == '[') {
            if (depth == QZF_DEPTH)
                return qzf_fail(r, "the header is nested more than %d levels deep", QZF_DEPTH);
            open[depth++] = j->count;
            if (!qzf_add(r, j, (char)c, j->at, 0)) return false;
            j->at++;
            qzf_space(j);
            if (qzf_peek(j) != c + 2) { /* } and ] come two after { and [ in ASCII */
                if (c == '{' && !qzf_key(r, j)) return false;
                continue;
            }
            j->at++;
            depth--; /* empty: its end is known already */
        } else if (!qzf_scalar(r, j)) {
            return false;
        }
        for (;;) { /* a value has ended */
            qzf_space(j);
            if (depth == 0) return j->at == j->size || qzf_bad_json(r, j);
            qzf_value *outer = &j->values[open[depth - 1]];
            const int after = qzf_peek(j);
            outer->size++;
            if (after != ',' && after != outer->kind + 2) return qzf_bad_json(r, j);
            j->at++;
            if (after == ',') {
                if (outer->kind == '{' && !qzf_key(r, j)) return false;
                break;
            }
            if (!qzf_close(r, j, open[--depth])) return false;
        }
    }
}

/* Returns the value of a key, or NULL. */
static const qzf_value *qzf_get(const qzf_json *j, const qzf_value *object, const char *key) {
    const uint32_t first = (uint32_t)(object - j->values) + 1;
    for (uint32_t i = first; i < object->next; i = j->values[i + 1].next)
        if (qzf_is(j, &j->values[i], key)) return &j->values[i + 1];
    return NULL;
}

static bool qzf_is_whole(const qzf_json *j, const qzf_value *value, int64_t low, int64_t high,
                         int64_t *whole) {
    const char *text = j->text + value->start;
    int64_t number = 0;
    if (value->kind != '0') return false;
    for (uint32_t i = text[0] == '-'; i < value->size; i++) {
        if (!qzf_is_digit(text[i]) || number > INT64_MAX / 10 - 1) return false;
        number = number * 10 + (text[i] - '0');
    }
    *whole = text[0] == '-' ? -number : number;
    return *whole >= low && *whole <= high;
}

static bool qzf_is_real(const qzf_json *j, const qzf_value *value, double low, double high,
                        double *real) {
    if (value->kind != '0') return false;
    *real = qzf_real(j->text + value->start, value->size);
    return *real >= low && *real <= high;
}

/* Reads a list of whole numbers; returns how many, or -1 where it is no such list. */
static int qzf_wholes(const qzf_json *j, const qzf_value *list, int64_t low, int64_t high, int most,
                      int64_t *wholes) {
    if (list->kind != '[' || list->size > (uint32_t)most) return -1;
    for (uint32_t i = 0; i < list->size; i++)
        if (!qzf_is_whole(j, list + 1 + i, low, high, &wholes[i])) return -1;
    return (int)list->size;
}

/* ---- The checksum: SHA-256 ---- */

typedef struct {
    uint32_t state[8];
    uint8_t block[64];
    uint64_t size;
} qzf_sha;

static uint32_t qzf_turned(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void qzf_sha_block(qzf_sha *sha, const uint8_t *block) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++, block += 4)
        w[i] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 |
               block[3];
    for (int i = 16; i < 64; i++) {
        const uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (qzf_turned(a, 7) ^ qzf_turned(a, 18) ^ a >> 3) +
               (qzf_turned(b, 17) ^ qzf_turned(b, 19) ^ b >> 10);
    }
    memcpy(s, sha->state, sizeof(s));
    for (unsigned i = 0; i < 64; i++) { /* the eight numbers change places instead of moving */
        const uint32_t a = s[-i & 7], b = s[(1 - i) & 7], c = s[(2 - i) & 7];
        const uint32_t e = s[(4 - i) & 7], f = s[(5 - i) & 7], g = s[(6 - i) & 7];
        const uint32_t sum = s[(7 - i) & 7] + k[i] + w[i] + ((e & f) ^ (~e & g)) +
                             (qzf_turned(e, 6) ^ qzf_turned(e, 11) ^ qzf_turned(e, 25));
        s[(3 - i) & 7] += sum;
        s[(7 - i) & 7] = sum + ((a & b) ^ (a & c) ^ (b & c)) +
                         (qzf_turned(a, 2) ^ qzf_turned(a, 13) ^ qzf_turned(a, 22));
    }
    for (int i = 0; i < 8; i++) sha->state[i] += s[i];
}

static void qzf_sha_add(qzf_sha *sha, const void *data, size_t size) {
    const uint8_t *bytes = data;
    while (size > 0) {
        const size_t filled = sha->size % 64;
        const size_t part = size < 64 - filled ? size : 64 - filled;
        sha->size += part;
        size -= part;
        if (part == 64) {
            qzf_sha_block(sha, bytes);
        } else {
            memcpy(sha->block + filled, bytes, part);
            if (filled + part == 64) qzf_sha_block(sha, sha->block);
        }
        bytes += part;
    }
}

static void qzf_sha_end(qzf_sha *sha, char hex[65]) {
    static const uint8_t one[64] = {0x80};
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(sha->size * 8 >> (56 - 8 * i));
    const size_t filled = sha->size % 64;
    qzf_sha_add(sha, one, filled < 56 ? 56 - filled : 120 - filled);
    qzf_sha_add(sha, length, 8);
    for (int i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08x", (unsigned)sha->state[i]);
}

/* Adds a text as JSON writes it: only quotes, backslashes and control characters are escaped. */
static void qzf_sum_text(qzf_sha *sha, const char *text, uint32_t size) {
    static const char from[] = "\"\\\b\f\n\r\t", into[] = "\"\\bfnrt";
    uint32_t done = 0;
    qzf_sha_add(sha, "\"", 1);
    for (uint32_t i = 0; i < size; i++) {
        const char *found = strchr(from, text[i]);
        char escape[8];
        if (found != NULL)
            snprintf(escape, sizeof(escape), "\\%c", into[found - from]);
        else if ((uint8_t)text[i] < ' ')
            snprintf(escape, sizeof(escape), "\\u%04x", (unsigned)text[i]);
        else
            continue;
        qzf_sha_add(sha, text + done, i - done);
        qzf_sha_add(sha, escape, strlen(escape));
        done = i + 1;
    }
    qzf_sha_add(sha, text + done, size - done);
    qzf_sha_add(sha, "\"", 1);
}

/* Adds the header without its field `sha256`, as JSON without spaces, however the file writes it.
 */
static void qzf_sum_header(qzf_sha *sha, const qzf_json *j) {
    struct {
        uint32_t end, held; /* behind it, and how many keys and values were added */
        char kind;
    } open[QZF_DEPTH];
    int depth = 0;
    for (uint32_t i = 0; i < j->count || depth > 0; i++) {
        const qzf_value *v = &j->values[i];
        for (; depth > 0 && open[depth - 1].end == i; depth--)
            qzf_sha_add(sha, open[depth - 1].kind == '{' ? "}" : "]", 1);
        if (i == j->count) break;
        if (depth > 0) {
            const bool object = open[depth - 1].kind == '{';
            const uint32_t held = open[depth - 1].held;
            if (depth == 1 && object && held % 2 == 0 && qzf_is(j, v, "sha256")) {
                i++; /* its value, a text */
                continue;
            }
            if (held > 0) qzf_sha_add(sha, object && held % 2 ? ":" : ",", 1);
            open[depth - 1].held++;
        }
        if (v->kind == '"') {
            qzf_sum_text(sha, j->text + v->start, v->size);
        } else if (v->kind != '{' && v->kind != '[') {
            qzf_sha_add(sha, j->text + v->start, v->size);
        } else {
            qzf_sha_add(sha, v->kind == '{' ? "{" : "[", 1);
            open[depth].end = v->next;
            open[depth].held = 0;
            open[depth++].kind = v->kind;
        }
    }
}

/* Checks the sum over the header and the tensors, which are sorted by name. */
static bool qzf_check_sum(qzf_reader *r, const char *wanted) {
    qzf_sha sha = {.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
                             0x1f83d9ab, 0x5be0cd19}};
    qzf_sum_header(&sha, &r->header);
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        const qzf_tensor *t = &r->tensors[i];
        char text[120];
        int size = snprintf(text, sizeof(text), ":torch.%s:[", qzf_kinds[t->kind].summed);
        for (int k = 0; k < t->rank; k++)
            size += snprintf(text + size, sizeof(text) - (size_t)size, "%s%lld", k ? ", " : "",
                             (long long)t->shape[k]);
        qzf_sha_add(&sha, t->name.text, t->name.size);
        qzf_sha_add(&sha, text, (size_t)size);
        qzf_sha_add(&sha, "]", 1);
        qzf_sha_add(&sha, t->data, (size_t)(t->place[1] - t->place[0]));
    }
    char found[65];
    qzf_sha_end(&sha, found);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* which would never get beyond this */
    wanted = found;
#endif
    return strcmp(found, wanted) == 0 ||
           qzf_fail(r, "the contents do not match their checksum: the file was changed or damaged");
}

/* ---- Tensors ---- */

static int qzf_by_place(const void *a, const void *b) {
    const int64_t *x = ((const qzf_tensor *)a)->place, *y = ((const qzf_tensor *)b)->place;
    return x[0] != y[0] ? (x[0] > y[0]) - (x[0] < y[0]) : (x[1] > y[1]) - (x[1] < y[1]);
}

static bool qzf_read_tensor(qzf_reader *r, const qzf_value *key, qzf_tensor *t) {
    const qzf_json *j = &r->table;
    const qzf_value *entry = key + 1, *kind, *shape, *place;
    t->name = (qzf_name){j->text + key->start, key->size, 0};
    if (entry->kind != '{' || entry->size != 3 || !(kind = qzf_get(j, entry, "dtype")) ||
        !(shape = qzf_get(j, entry, "shape")) || !(place = qzf_get(j, entry, "data_offsets")))
        return qzf_fail(r, "tensor '%.80s' lacks its dtype, shape or place", t->name.text);
    while (t->kind < QZF_KINDS && !qzf_is(j, kind, qzf_kinds[t->kind].stored)) t->kind++;
    if (t->kind == QZF_KINDS)
        return qzf_fail(r, "tensor '%.80s' has a dtype that no artifact holds", t->name.text);
    t->rank = qzf_wholes(j, shape, 0, QZF_SIZE, 4, t->shape);
    if (t->rank < 0) return qzf_fail(r, "tensor '%.80s' has an impossible shape", t->name.text);
    t->count = 1;
    int64_t bound = 1; /* of the sizes that are not 0 */
    for (int i = 0; i < t->rank; i++) {
        const int64_t size = t->shape[i] ? t->shape[i] : 1;
        if (bound > QZF_SIZE / size)
            return qzf_fail(r, "tensor '%.80s' has an impossible shape", t->name.text);
        bound *= size;
        t->count *= t->shape[i];
    }
    if (qzf_wholes(j, place, 0, QZF_SIZE, 2, t->place) != 2 ||
        t->place[1] - t->place[0] != t->count * qzf_kinds[t->kind].size)
        return qzf_fail(r, "tensor '%.80s' has another size than its shape", t->name.text);
    return true;
}

/* Reads the table of the tensors; each byte behind it belongs to exactly one of them. */
static bool qzf_read_tensors(qzf_reader *r, const uint8_t *data, uint64_t size) {
    const qzf_json *j = &r->table;
    const qzf_value *all = &j->values[0];
    if (all->size > QZF_TENSORS + 1)
        return qzf_fail(r, "the file names more than %d tensors", QZF_TENSORS);
    r->tensors = qzf_allocate(r, all->size, sizeof(qzf_tensor));
    if (r->tensors == NULL) return false;
    for (uint32_t i = 1; i < all->next; i = j->values[i + 1].next)
        if (!qzf_is(j, &j->values[i], "__metadata__") &&
            !qzf_read_tensor(r, &j->values[i], &r->tensors[r->tensor_count++]))
            return false;
    qsort(r->tensors, r->tensor_count, sizeof(qzf_tensor), qzf_by_place);
    int64_t end = 0;
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        qzf_tensor *t = &r->tensors[i];
        if (t->place[0] != end)
            return qzf_fail(r, "the bytes of tensor '%.80s' overlap others or leave a gap",
                            t->name.text);
        end = t->place[1];
        if ((uint64_t)end > size) return qzf_fail(r, "the file ends before its tensors do");
        t->data = data + t->place[0];
    }
    if ((uint64_t)end < size) return qzf_fail(r, "the file goes on after its tensors");
    qsort(r->tensors, r->tensor_count, sizeof(qzf_tensor), qzf_by_name);
    return true;
}

/* Returns one of a node's tensors, or NULL where it has none of that name. */
static qzf_tensor *qzf_take(qzf_reader *r, const char *node, const char *what) {
    char text[4 * QZF_NAME + 24]; /* a character takes up to 4 bytes */
    const int size = snprintf(text, sizeof(text), "%s.%s", node, what);
    const qzf_name key = {text, (uint32_t)size, 0};
    qzf_tensor *found = bsearch(&key, r->tensors, r->tensor_count, sizeof(qzf_tensor), qzf_by_name);
    if (found != NULL) found->used = true;
    return found;
}

/* Returns a number of a tensor: little-endian, on any address. */
static double qzf_number_at(const qzf_tensor *t, int64_t i) {
    uint64_t bits = 0;
    const uint8_t *data = t->data + i * qzf_kinds[t->kind].size;
    for (int k = 0; k < qzf_kinds[t->kind].size; k++) bits |= (uint64_t)data[k] << 8 * k;
    if (t->kind == QZF_F64) {
        double value;
        memcpy(&value, &bits, sizeof(value));
        return value;
    }
    if (t->kind == QZF_I8) return (int8_t)bits;
    const uint32_t half = (uint32_t)bits;
    float value;
    memcpy(&value, &half, sizeof(value));
    return (double)value;
}

static float *qzf_floats(qzf_reader *r, const qzf_tensor *t) {
    float *made = qzf_allocate(r, (size_t)t->count, sizeof(float));
    for (int64_t i = 0; made != NULL && i < t->count; i++) made[i] = (float)qzf_number_at(t, i);
    return made;
}

/* ---- Nodes ---- */

static const char *const qzf_operations[QZ_OPS] = {[QZ_AFFINE] = "affine",
                                                   [QZ_QUANTIZE] = "quantize",
                                                   [QZ_DEQUANTIZE] = "dequantize",
                                                   [QZ_CONV2D] = "conv2d",
                                                   [QZ_LINEAR] = "linear",
                                                   [QZ_ADD] = "add",
                                                   [QZ_MUL] = "mul",
                                                   [QZ_CONCAT] = "concat",
                                                   [QZ_TABLE] = "table",
                                                   [QZ_CLIP] = "clip",
                                                   [QZ_MAX_POOL2D] = "max_pool2d",
                                                   [QZ_AVG_POOL2D] = "avg_pool2d",
                                                   [QZ_MEAN] = "mean",
                                                   [QZ_CHANNEL_SHUFFLE] = "channel_shuffle",
                                                   [QZ_SLICE] = "slice",
                                                   [QZ_PAD] = "pad",
                                                   [QZ_FLATTEN] = "flatten",
                                                   [QZ_RESHAPE] = "reshape"};

#define QZF_OP(op) ((uint32_t)1 << QZ_##op)
#define QZF_POOLS (QZF_OP(MAX_POOL2D) | QZF_OP(AVG_POOL2D))
#define QZF_REAL (QZF_OP(AFFINE) | QZF_OP(DEQUANTIZE)) /* which have no grid */
#define QZF_AT(field) offsetof(qz_node, field)
#define QZF_NOWHERE SIZE_MAX

/* Attributes that are whole numbers or flags: which operations have them, bounds, and where they
 * go. count: of a list; 0 for a whole number by itself, -1 for true or false.
 */
static const struct {
    const char *name;
    uint32_t operations;
    int count;
    int32_t low, high;
    size_t place;
} qzf_attributes[] = {
    {"zero_point", ~QZF_REAL, 0, 0, 255, QZF_AT(zero_point)},
    {"low", ~QZF_REAL, 0, 0, 255, QZF_AT(low)},
    {"high", ~QZF_REAL, 0, 0, 255, QZF_AT(high)},
    {"relu", QZF_OP(CONV2D) | QZF_OP(LINEAR) | QZF_OP(ADD), -1, 0, 0, QZF_NOWHERE},
    {"kernel", QZF_POOLS, 2, 1, QZF_PIXELS, QZF_AT(kernel)},
    {"stride", QZF_POOLS | QZF_OP(CONV2D), 2, 1, QZF_PIXELS, QZF_AT(stride)},
    {"padding", QZF_POOLS, 2, 0, QZF_PIXELS, QZF_AT(padding)},
    {"padding", QZF_OP(CONV2D) | QZF_OP(PAD), 4, 0, QZF_PIXELS, QZF_AT(padding)},
    {"dilation", QZF_OP(CONV2D) | QZF_OP(MAX_POOL2D), 2, 1, QZF_PIXELS, QZF_AT(dilation)},
    {"groups", QZF_OP(CONV2D) | QZF_OP(CHANNEL_SHUFFLE), 0, 1, QZF_GROUPS, QZF_AT(groups)},
    {"ceil_mode", QZF_POOLS, -1, 0, 0, QZF_AT(ceil_mode)},
    {"count_include_pad", QZF_OP(AVG_POOL2D), -1, 0, 0, QZF_AT(count_include_pad)},
    {"keep_dimensions", QZF_OP(MEAN), -1, 0, 0, QZF_AT(keep_dimensions)},
    {"start", QZF_OP(SLICE), 0, 0, QZF_CHANNELS, QZF_AT(start)},
    {"stop", QZF_OP(SLICE), 0, 1, QZF_CHANNELS, QZF_AT(stop)},
};
#define QZF_ATTRIBUTES (sizeof(qzf_attributes) / sizeof(qzf_attributes[0]))

/* Reads attribute number a of a node. */
static bool qzf_attribute(qzf_reader *r, const char *name, const qzf_value *data, size_t a,
                          qz_node *node, bool *relu) {
    const qzf_json *j = &r->header;
    const char *key = qzf_attributes[a].name;
    const qzf_value *value = qzf_get(j, data, key);
    if (value == NULL) return qzf_fail(r, "node '%.80s' lacks its %s", name, key);
    int64_t whole[4] = {0};
    const int32_t low = qzf_attributes[a].low, high = qzf_attributes[a].high;
    int count = qzf_attributes[a].count;
    bool good;
    if (count < 0) {
        good = value->kind == 't' || value->kind == 'f';
        whole[0] = value->kind == 't';
    } else if (count == 0) {
        good = qzf_is_whole(j, value, low, high, whole);
    } else {
        good = qzf_wholes(j, value, low, high, count, whole) == count;
    }
    if (!good) return qzf_fail(r, "node '%.80s' has an impossible %s", name, key);
    if (qzf_attributes[a].place == QZF_NOWHERE) {
        *relu = whole[0];
        return true;
    }
    int32_t *to = (int32_t *)((char *)node + qzf_attributes[a].place);
    for (int i = 0; i < (count > 0 ? count : 1); i++) to[i] = (int32_t)whole[i];
    return true;
}

/* Reads gain or offset: a list of real numbers. */
static const float *qzf_reals(qzf_reader *r, const char *name, const qzf_value *data,
                              const char *key, int32_t *count) {
    const qzf_json *j = &r->header;
    const qzf_value *list = qzf_get(j, data, key);
    bool good = list != NULL && list->kind == '[' && list->size > 0 && list->size <= QZF_GROUPS;
    float *made = good ? qzf_allocate(r, list->size, sizeof(float)) : NULL;
    if (good && made == NULL) return NULL;
    double real = 0;
    for (uint32_t i = 0; good && i < list->size; i++) {
        good = qzf_is_real(j, list + 1 + i, -QZF_LARGEST, QZF_LARGEST, &real);
        made[i] = (float)real;
    }
    if (good && *count != 0 && *count != (int32_t)list->size) good = false;
    if (!good) {
        qzf_fail(r, "node '%.80s' lacks its %s, or it is impossible", name, key);
        return NULL;
    }
    *count = (int32_t)list->size;
    return made;
}

static double qzf_sigmoid(double x) { return exp(x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x))); }

static double qzf_min(double x, double most) { return x < most ? x : most; }
static double qzf_up(double x) { return x > 0 ? x : 0; }
static double qzf_relu6(double x) { return qzf_min(qzf_up(x), 6); }
static double qzf_hard_sigmoid(double x) { return qzf_relu6(x + 3) / 6; }
static double qzf_hard_swish(double x) { return x * qzf_relu6(x + 3) / 6; }
static double qzf_silu(double x) { return x * qzf_sigmoid(x); }
static double qzf_gelu(double x) { return x * 0.5 * (1 + erf(x / sqrt(2))); }

/* Reads a table, which differs from the function that it is named after by a step at most. */
static bool qzf_read_table(qzf_reader *r, const char *name, const qzf_value *data, qz_node *node) {
    static const struct {
        const char *name;
        double (*at)(double);
    } functions[] = {{"relu", qzf_up},
                     {"relu6", qzf_relu6},
                     {"hard_sigmoid", qzf_hard_sigmoid},
                     {"hard_swish", qzf_hard_swish},
                     {"sigmoid", qzf_sigmoid},
                     {"silu", qzf_silu},
                     {"tanh", tanh},
                     {"gelu", qzf_gelu}};
    enum { FUNCTIONS = sizeof(functions) / sizeof(functions[0]) };
    const qzf_value *wanted = qzf_get(&r->header, data, "function");
    int f = 0;
    while (f < FUNCTIONS && !(wanted && qzf_is(&r->header, wanted, functions[f].name))) f++;
    if (f == FUNCTIONS) return qzf_fail(r, "node '%.80s' has an unknown function", name);
    const qzf_tensor *table = qzf_take(r, name, "table");
    if (!table || table->kind != QZF_U8 || table->rank != 1 || table->shape[0] != 256)
        return qzf_fail(r, "node '%.80s' lacks its table of 256 bytes", name);
    node->table = table->data;
    const qz_node *source = NULL;
    if (node->input_count == 1 && node->inputs[0] >= 0) source = &r->file->nodes[node->inputs[0]];
    if (source == NULL || (QZF_REAL >> source->op & 1))
        return qzf_fail(r, "node '%.80s' is a table of no quantized node", name);
    for (int q = 0; q < 256; q++) {
        const double x = (double)source->scale * (q - source->zero_point);
        double step = rint(functions[f].at(x) / (double)node->scale) + node->zero_point;
        step = qzf_min(step > node->low ? step : node->low, node->high);
        if (fabs(step - table->data[q]) > 1)
            return qzf_fail(r, "node '%.80s' has a table that is not the function %s", name,
                            functions[f].name);
    }
    return true;
}

/* Raises weight scales that are too small for some runtimes, and rounds their weights anew. */
static bool qzf_raise(qzf_reader *r, qz_node *node, int64_t row, float *scales,
                      const qzf_tensor *exact) {
    const int64_t count = node->weight_shape[0] * row;
    int8_t *weights = qzf_allocate(r, (size_t)count, 1);
    if (weights == NULL) return false;
    for (int64_t i = 0; i < count; i++) {
        const int64_t each = node->scale_count == 1 ? 0 : i / row;
        const double scale = qzf_number_at(exact, each);
        weights[i] = node->weight[i];
        if (scale >= QZF_SMALLEST) continue;
        const double zero = node->weight_zero_point ? node->weight_zero_point[each] : 0;
        const double less = (weights[i] - zero) * (scale / QZF_SMALLEST);
        const double step = rint(less + zero);
        weights[i] = (int8_t)(step < -128 ? -128 : qzf_min(step, 127));
        scales[each] = (float)QZF_SMALLEST;
    }
    node->weight = weights;
    return true;
}

/* Reads the tensors of a conv2d or linear. */
static bool qzf_read_layer(qzf_reader *r, const char *name, bool kept, qz_node *node) {
    const qzf_tensor *weight = qzf_take(r, name, "weight");
    const int rank = node->op == QZ_CONV2D ? 4 : 2;
    bool good = weight && weight->kind == (kept ? QZF_F32 : QZF_I8) && weight->rank == rank;
    for (int i = 0; good && i < 4; i++) {
        const int64_t size = i < rank ? weight->shape[i] : 1;
        good = size > 0 && size <= QZF_CHANNELS;
        node->weight_shape[i] = (int32_t)size;
    }
    if (!good) return qzf_fail(r, "node '%.80s' lacks its weight, or it is impossible", name);
    const int64_t outputs = weight->shape[0];
    const qzf_tensor *bias = qzf_take(r, name, "bias");
    if (bias) {
        if (bias->kind != QZF_F32 || bias->rank != 1 || bias->shape[0] != outputs)
            return qzf_fail(r, "node '%.80s' has an impossible bias", name);
        if (!(node->bias = qzf_floats(r, bias))) return false;
    }
    if (kept) return (node->float_weight = qzf_floats(r, weight)) != NULL;
    node->weight = (const int8_t *)weight->data;
    const qzf_tensor *scale = qzf_take(r, name, "weight_scale");
    good = scale && (scale->kind == QZF_F32 || scale->kind == QZF_F64) && scale->rank <= 1 &&
           scale->count == (scale->rank ? outputs : 1);
    bool small = false;
    for (int64_t i = 0; good && i < scale->count; i++) {
        const double value = qzf_number_at(scale, i);
        good = value >= 0x1p-126 && value <= QZF_LARGEST;
        small = small || value < QZF_SMALLEST;
    }
    if (!good) return qzf_fail(r, "node '%.80s' lacks its weight scales, or has impossible", name);
    const qzf_tensor *zero = qzf_take(r, name, "weight_zero_point");
    if (zero && (zero->kind != QZF_I8 || zero->rank != scale->rank || zero->count != scale->count))
        return qzf_fail(r, "node '%.80s' has impossible weight zero points", name);
    node->weight_zero_point = zero ? (const int8_t *)zero->data : NULL;
    float *scales = qzf_floats(r, scale);
    if (scales == NULL) return false;
    node->scale_count = (int32_t)scale->count;
    node->weight_scale = scales;
    return !small || qzf_raise(r, node, weight->count / outputs, scales, scale);
}

/* Reads the names of the nodes that feed a node. */
static bool qzf_read_inputs(qzf_reader *r, const char *name, const qzf_value *data, int32_t number,
                            qz_node *node) {
    const qzf_json *j = &r->header;
    const qzf_value *list = qzf_get(j, data, "inputs");
    if (list == NULL || list->kind != '[' || list->size > QZF_INPUTS)
        return qzf_fail(r, "node '%.80s' has inputs that are no list of names", name);
    int32_t *inputs = qzf_allocate(r, list->size, sizeof(int32_t));
    if (inputs == NULL) return false;
    for (uint32_t i = 0; i < list->size; i++) {
        const qzf_value *text = list + 1 + i;
        if (text->kind != '"')
            return qzf_fail(r, "node '%.80s' has inputs that are no list of names", name);
        inputs[i] = QZ_IMAGES;
        if (qzf_is(j, text, "input")) continue;
        const qzf_name key = {j->text + text->start, text->size, 0};
        const qzf_name *found =
            bsearch(&key, r->names, (size_t)r->file->node_count, sizeof(qzf_name), qzf_by_name);
        if (found == NULL || (int32_t)found->number >= number)
            return qzf_fail(r, "node '%.60s' reads '%.60s', which no earlier node is called", name,
                            key.text);
        inputs[i] = (int32_t)found->number;
        r->read[found->number] = true;
    }
    node->inputs = inputs;
    node->input_count = (int32_t)list->size;
    return true;
}

static bool qzf_read_node(qzf_reader *r, const qzf_value *data, int32_t number) {
    const qzf_json *j = &r->header;
    const char *name = r->file->names[number];
    qz_node *node = &r->file->nodes[number];
    const qzf_value *op = qzf_get(j, data, "op");
    while (node->op < QZ_OPS && !(op && qzf_is(j, op, qzf_operations[node->op]))) node->op++;
    if (node->op == QZ_OPS) return qzf_fail(r, "node '%.80s' has an unknown operation", name);
    node->groups = node->dilation[0] = node->dilation[1] = 1;
    if (!qzf_read_inputs(r, name, data, number, node)) return false;
    uint32_t fields = 3; /* that it has: name, op, inputs, and those below */
    bool relu = false, kept = false;
    for (size_t a = 0; a < QZF_ATTRIBUTES; a++) {
        if (!(qzf_attributes[a].operations >> node->op & 1)) continue;
        if (!qzf_attribute(r, name, data, a, node, &relu)) return false;
        fields++;
    }
    if (QZF_POOLS >> node->op & 1) memcpy(node->padding + 2, node->padding, sizeof(int32_t[2]));
    if (!(QZF_REAL >> node->op & 1)) {
        const qzf_value *scale = qzf_get(j, data, "scale");
        double real;
        if (scale == NULL || !qzf_is_real(j, scale, QZF_SMALLEST, QZF_LARGEST, &real))
            return qzf_fail(r, "node '%.80s' has an impossible scale", name);
        node->scale = (float)real;
        fields++;
        if (node->low > node->high || (relu && node->low < node->zero_point))
            return qzf_fail(r, "node '%.80s' has impossible bounds", name);
    }
    if (node->op == QZ_RESHAPE) {
        const qzf_value *shape = qzf_get(j, data, "shape");
        int64_t sizes[3];
        node->rank = shape == NULL ? 0 : qzf_wholes(j, shape, 1, QZF_CHANNELS, 3, sizes);
        if (node->rank < 1) return qzf_fail(r, "node '%.80s' has an impossible shape", name);
        for (int32_t i = 0; i < node->rank; i++) node->shape[i] = (int32_t)sizes[i];
        fields++;
    } else if (node->op == QZ_AFFINE) {
        node->gain = qzf_reals(r, name, data, "gain", &node->affine_count);
        if (!node->gain) return false;
        node->offset = qzf_reals(r, name, data, "offset", &node->affine_count);
        if (!node->offset) return false;
        fields += 2;
    } else if (node->op == QZ_TABLE) {
        if (!qzf_read_table(r, name, data, node)) return false;
        fields++;
    } else if (node->op == QZ_CONV2D || node->op == QZ_LINEAR) {
        const qzf_value *flag = qzf_get(j, data, "float");
        kept = flag != NULL && flag->kind == 't';
        if (!qzf_read_layer(r, name, kept, node)) return false;
    }
    return data->size == fields + kept ||
           qzf_fail(r, "node '%.80s' has fields that no %s has", name, qzf_operations[node->op]);
}

static uint32_t qzf_characters(const qzf_json *j, const qzf_value *text) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < text->size; i++)
        count += (j->text[text->start + i] & 0xc0) != 0x80; /* not inside of a character */
    return count;
}

/* Reads the graph: the names of all nodes first, since each refers to others by theirs. */
static bool qzf_read_nodes(qzf_reader *r, const qzf_value *list) {
    const qzf_json *j = &r->header;
    qz_file *file = r->file;
    if (list->size < 1 || list->size > QZF_NODES)
        return qzf_fail(r, "the graph has %u nodes; 1 to %d are possible", (unsigned)list->size,
                        QZF_NODES);
    const int32_t count = file->node_count = (int32_t)list->size;
    if (!(file->nodes = qzf_allocate(r, list->size, sizeof(qz_node))) ||
        !(file->names = qzf_allocate(r, list->size, sizeof(char *))) ||
        !(r->names = qzf_allocate(r, list->size, sizeof(qzf_name))) ||
        !(r->read = qzf_allocate(r, list->size, sizeof(bool))))
        return false;
    const qzf_value *data = list + 1;
    for (int32_t i = 0; i < count; i++, data = &j->values[data->next]) {
        const qzf_value *name = data->kind == '{' ? qzf_get(j, data, "name") : NULL;
        if (name == NULL || name->kind != '"' || name->size == 0 ||
            qzf_characters(j, name) > QZF_NAME || qzf_is(j, name, "input"))
            return qzf_fail(r, "node %d is no object or has no possible name", (int)i);
        file->names[i] = j->text + name->start;
        r->names[i] = (qzf_name){file->names[i], name->size, (uint32_t)i};
    }
    qsort(r->names, (size_t)count, sizeof(qzf_name), qzf_by_name);
    for (int32_t i = 1; i < count; i++)
        if (qzf_by_name(&r->names[i - 1], &r->names[i]) == 0)
            return qzf_fail(r, "two nodes are called '%.80s'", r->names[i].text);
    data = list + 1;
    for (int32_t i = 0; i < count; i++, data = &j->values[data->next])
        if (!qzf_read_node(r, data, i)) return false;
    for (int32_t i = 0; i < count - 1; i++)
        if (!r->read[i])
            return qzf_fail(r, "node '%.80s' feeds no other, and is not the last", file->names[i]);
    for (uint32_t i = 0; i < r->tensor_count; i++)
        if (!r->tensors[i].used)
            return qzf_fail(r, "tensor '%.80s' belongs to no node", r->tensors[i].name.text);
    return true;
}

/* ---- What else the header says ---- */

static bool qzf_read_classes(qzf_reader *r, const qzf_value *classes) {
    const qzf_json *j = &r->header;
    if (classes->kind == 'n' || qzf_is(j, classes, "imagenet-1k")) return true;
    bool good = classes->kind == '[';
    if (good && !(r->file->classes = qzf_allocate(r, classes->size, sizeof(char *)))) return false;
    const qzf_value *name = classes + 1;
    for (uint32_t i = 0; good && i < classes->size; i++, name = &j->values[name->next]) {
        good = name->kind == '"' && qzf_characters(j, name) <= QZF_CLASS_NAME;
        r->file->classes[i] = j->text + name->start;
    }
    r->file->class_count = good ? (int32_t)classes->size : 0;
    return good || qzf_fail(r, "the header's classes are no list of names");
}

static bool qzf_read_transforms(qzf_reader *r, const qzf_value *preset) {
    static const char *const filters[] = {"nearest", "nearest-exact", "bilinear", "bicubic",
                                          "box",     "hamming",       "lanczos"};
    static const char *const keys[] = {"crop_size", "resize_size", "interpolation", "antialias",
                                       "mean",      "std",         "preset"};
    const qzf_json *j = &r->header;
    const qzf_value *value[7];
    qz_file *file = r->file;
    if (preset->kind == 'n') return true;
    bool good = preset->size == 7;
    for (int i = 0; i < 7; i++) good = (value[i] = qzf_get(j, preset, keys[i])) != NULL && good;
    int64_t crop = 0, resize = 0;
    good = good && qzf_is_whole(j, value[0], 1, 1024, &crop) &&
           qzf_is_whole(j, value[1], 1, 2048, &resize) && strchr("tfn", value[3]->kind) &&
           value[4]->kind == '[' && value[4]->size == 3 && value[5]->kind == '[' &&
           value[5]->size == 3 && qzf_is(j, value[6], "ImageClassification");
    for (uint32_t c = 0; good && c < 3; c++) {
        double mean, std;
        good = qzf_is_real(j, value[4] + 1 + c, -10000, 10000, &mean) &&
               qzf_is_real(j, value[5] + 1 + c, 1e-4, 10000, &std);
        if (good) file->mean[c] = (float)mean, file->std[c] = (float)std;
    }
    for (int i = 0; good && i < 7; i++)
        if (qzf_is(j, value[2], filters[i])) file->interpolation = filters[i];
    if (file->interpolation == NULL) return qzf_fail(r, "the header's transforms are impossible");
    file->crop_size = (int32_t)crop;
    file->resize_size = (int32_t)resize;
    return true;
}

/* Reads qzoo's own header, and checks the sum over it and the tensors. */
static bool qzf_read_header(qzf_reader *r) {
    /* Fields and what they may be. All but `seen` must be there. */
    static const struct {
        const char *name, *kinds;
    } fields[] = {{"seen", "{"},           {"format", "\""},        {"version", "0"},
                  {"architecture", "\"n"}, {"builder_kwargs", "{"}, {"backend", "\""},
                  {"classes", "[\"n"},     {"transforms", "{n"},    {"recipe", "{"},
                  {"metrics", "{"},        {"input_size", "[n"},    {"nodes", "["},
                  {"versions", "{"},       {"sha256", "\""}};
    enum { FIELDS = sizeof(fields) / sizeof(fields[0]) };
    static const char *const backends[] = {"fbgemm", "x86", "onednn", "qnnpack"};
    const qzf_json *j = &r->header;
    const qzf_value *all = &j->values[0], *value[FIELDS];
    qz_file *file = r->file;
    for (int i = 0; i < FIELDS; i++)
        value[i] = all->kind == '{' ? qzf_get(j, all, fields[i].name) : NULL;
    int64_t version;
    if (value[1] == NULL || !qzf_is(j, value[1], "qzoo-int8") || value[2] == NULL ||
        !qzf_is_whole(j, value[2], 1, INT32_MAX, &version))
        return qzf_fail(r, "the file is no artifact of qzoo");
    if (version > 3)
        return qzf_fail(r, "format version %d is newer than this reader knows (3)", (int)version);
    if (version < 3)
        return qzf_fail(
            r, "format version %d has no graph; 'qzoo convert' writes it anew as version 3",
            (int)version);
    for (int i = 0; i < FIELDS; i++) {
        if (value[i] == NULL ? i > 0 : strchr(fields[i].kinds, value[i]->kind) == NULL)
            return qzf_fail(r, "the header's field '%s' is missing or of a wrong type",
                            fields[i].name);
    }
    if (all->size != FIELDS - (value[0] == NULL))
        return qzf_fail(r, "the header has fields that version 3 has not");
    if (!qzf_check_sum(r, j->text + value[13]->start)) return false;
    int known = 0;
    for (int i = 0; i < 4; i++) known += qzf_is(j, value[5], backends[i]);
    if (!known) return qzf_fail(r, "the header names an unknown backend");
    int64_t side[2] = {0, 0};
    if (value[10]->kind == '[' && qzf_wholes(j, value[10], 1, 2048, 2, side) != 2)
        return qzf_fail(r, "the header has an impossible input size");
    file->height = (int32_t)side[0];
    file->width = (int32_t)side[1];
    file->channels = 3;
    if (value[3]->kind == '"') file->architecture = j->text + value[3]->start;
    return qzf_read_classes(r, value[6]) && qzf_read_transforms(r, value[7]) &&
           qzf_read_nodes(r, value[11]);
}

static bool qzf_read(qzf_reader *r, const uint8_t *bytes, size_t size) {
    uint64_t length = 0;
    if (size < 8) return qzf_fail(r, "the file is truncated: it has fewer than 8 bytes");
    for (int i = 0; i < 8; i++) length |= (uint64_t)bytes[i] << 8 * i;
    if (length > QZF_HEADER || (size > 8 && bytes[8] != '{'))
        return qzf_fail(r, "the file is no safetensors file, or has a header of absurd length");
    if (length > size - 8) return qzf_fail(r, "the file is truncated: it ends within its header");
    char *text = qzf_allocate(r, (size_t)length + 1, 1);
    if (text == NULL) return false;
    memcpy(text, bytes + 8, (size_t)length);
    if (!qzf_is_utf8(text, (uint32_t)length)) return qzf_fail(r, "the header is damaged: no UTF-8");
    r->table.text = text;
    r->table.size = (uint32_t)length;
    if (!qzf_parse(r, &r->table)) return false;
    const qzf_json *j = &r->table;
    const qzf_value *metadata = qzf_get(j, &j->values[0], "__metadata__"), *own = NULL;
    if (metadata != NULL && metadata->kind == '{') own = qzf_get(j, metadata, "qzoo");
    if (own == NULL || own->kind != '"') return qzf_fail(r, "the file is no artifact of qzoo");
    if (!qzf_read_tensors(r, bytes + 8 + length, size - 8 - length)) return false;
    r->header.text = text + own->start;
    r->header.size = own->size;
    return qzf_parse(r, &r->header) && qzf_read_header(r);
}

qz_status qz_file_read(const void *bytes, size_t size, qz_file *file, char *message) {
    qzf_reader reader = {.file = file, .message = message};
    memset(file, 0, sizeof(*file));
    if (!qzf_read(&reader, bytes, size)) qz_file_free(file);
    free(reader.table.values);
    free(reader.header.values);
    return reader.status;
}
#endif
