/* Records in JSON straight into the matrix that a model reads: `{"records": [{…}, …]` as most programs write it.
 *
 * It takes what it is sure of and leaves the rest: a body of another form, a fault, an escape, a number that it cannot
 * round with certainty gives None, and the strict decoder reads the whole body (`monitoring/decode.py`), which has the
 * words. What it takes is to the last bit what that decoder and `Twin.encode` make of it.
 *
 * A body ends with a NUL, as every bytes object does, which stands for no JSON: nothing reads on behind it.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "gcc or clang, and a little-endian machine: elsewhere the strict decoder reads all bodies"
#endif

#define INLINE static inline __attribute__((always_inline))
enum { NUMERIC, BOOLEAN, CATEGORICAL, KINDS }; /* as `training/records.py` counts them */
enum { LEAST_BYTES = 5, VALUE_BYTES = 4, MOST_DIGITS = 19, EXACT_POWER = 22, MOST_POWERS = 3 };
#define EXACT_WHOLE (1ull << 53)
#define MARGIN 0x1p-49 /* of at most six roundings of a double, each 2^-53 */

typedef struct {
    char *text;
    size_t length;
    float code;
} Category;

typedef struct {
    char *name;
    size_t length;
    int kind;
    Py_ssize_t column; /* of the matrix; -1: no model reads it */
    float missing, unknown;
    Category *table; /* open addressing; a power of two in size, at most half full */
    size_t mask;
} Feature;

typedef struct {
    PyObject_HEAD
    Feature *feature;
    Py_ssize_t features, width;
    size_t least, most_chars; /* bytes of the shortest record; characters of a category */
} Reader;

typedef struct {
    Py_ssize_t start, end, rows;
} Cut;

typedef struct {
    float *matrix;
    Cut *cut;
    Py_ssize_t rows, cuts;
    const uint8_t *end;
} Found;

/* -- JSON ----------------------------------------------------------------------------------------------------------- */

INLINE const uint8_t *space(const uint8_t *p) {
    while (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t') p++;
    return p;
}

/* Behind a mark and the white space around it; NULL when another stands there. */
INLINE const uint8_t *mark(const uint8_t *p, char wanted) {
    p = space(p);
    return *p == (uint8_t)wanted ? space(p + 1) : NULL;
}

static const double power[EXACT_POWER + 1] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                              1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* The float32 of the double that is nearest to `whole` times ten to the `e`; 0 when that is not certain. */
INLINE int rounded(uint64_t whole, int e, float *to) {
    double value = (double)whole;
    if (whole <= EXACT_WHOLE && e >= -EXACT_POWER && e <= EXACT_POWER) { /* one rounding: the nearest double */
        *to = (float)(e < 0 ? value / power[-e] : value * power[e]);
        return isfinite(*to);
    }
    if (e < -EXACT_POWER * MOST_POWERS || e > EXACT_POWER * MOST_POWERS) return 0;
    for (; e < -EXACT_POWER; e += EXACT_POWER) value /= power[EXACT_POWER];
    for (; e > EXACT_POWER; e -= EXACT_POWER) value *= power[EXACT_POWER];
    value = e < 0 ? value / power[-e] : value * power[e];
    *to = (float)value;
    return isfinite(*to) && (float)(value - value * MARGIN) == (float)(value + value * MARGIN);
}

INLINE const uint8_t *digits(const uint8_t *p, uint64_t *whole) {
    for (uint8_t digit; (digit = (uint8_t)(*p - '0')) < 10; p++) *whole = *whole * 10 + digit;
    return p;
}

static const uint8_t *number(const uint8_t *p, float *to) {
    int negative = *p == '-', e = 0;
    p += negative;
    uint64_t whole = 0;
    const uint8_t *first = p, *last = p = digits(p, &whole);
    if (p == first || (*first == '0' && p > first + 1)) return NULL;
    if (*p == '.') {
        const uint8_t *behind = p + 1;
        last = p = digits(behind, &whole);
        if (p == behind) return NULL;
        e = p - behind > MOST_DIGITS * 4 ? INT16_MIN : -(int)(p - behind);
    }
    if (last - first > MOST_DIGITS) { /* the point may be among them */
        while (first < last && (*first == '0' || *first == '.')) first++;
        ptrdiff_t count = last - first;
        for (const uint8_t *at = first; at < last; at++) count -= *at == '.';
        if (count > MOST_DIGITS) return NULL;
    }
    if ((*p | 0x20) == 'e') {
        int less = *++p == '-', by = 0;
        p += *p == '-' || *p == '+';
        const uint8_t *begin = p;
        for (uint8_t digit; (digit = (uint8_t)(*p - '0')) < 10; p++) by = by < 1000 ? by * 10 + digit : by;
        if (p == begin) return NULL;
        e += less ? -by : by;
    }
    if (!whole)
        *to = 0;
    else if (!rounded(whole, e, to))
        return NULL;
    if (negative) *to = -*to;
    return p;
}

/* How many characters valid UTF-8 has (RFC 3629); SIZE_MAX for other bytes. */
static size_t characters(const uint8_t *p, const uint8_t *end) {
    size_t count = 0;
    for (; p < end; count++) {
        uint8_t c = *p++;
        if (c < 0x80) continue;
        int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
        uint8_t least = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, most = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
        if (c < 0xC2 || c > 0xF4 || end - p < more || *p < least || *p > most) return SIZE_MAX;
        for (int k = 1; k < more; k++)
            if ((p[k] & 0xC0) != 0x80) return SIZE_MAX;
        p += more;
    }
    return count;
}

static size_t hash(const char *text, size_t length) {
    uint64_t found = 0xCBF29CE484222325u; /* FNV-1a */
    for (size_t i = 0; i < length; i++) found = (found ^ (uint8_t)text[i]) * 0x100000001B3u;
    return (size_t)(found ^ found >> 32);
}

/* Where a category stands in its table, or would. */
INLINE Category *slot(const Feature *f, const char *text, size_t length) {
    for (size_t at = hash(text, length);; at++) {
        Category *found = f->table + (at & f->mask);
        if (!found->text || (found->length == length && !memcmp(found->text, text, length))) return found;
    }
}

/* `p` is behind the opening quote, what is returned behind the closing one. */
static const uint8_t *category(const Reader *r, const Feature *f, const uint8_t *p, float *to) {
    const uint8_t *first = p;
    uint8_t any = 0;
    for (; *p != '"'; any |= *p++)
        if (*p < 0x20 || *p == '\\') return NULL;
    size_t length = (size_t)(p - first);
    if ((any < 0x80 ? length : characters(first, p)) > r->most_chars) return NULL;
    if (f->column >= 0) {
        const Category *found = slot(f, (const char *)first, length);
        *to = found->text ? found->code : f->unknown;
    }
    return p + 1;
}

INLINE const uint8_t *value(const Reader *r, const Feature *f, const uint8_t *p, float *to) {
    if (!memcmp(p, "null", 4)) {
        *to = f->missing;
        return p + 4;
    }
    if (f->kind == NUMERIC) return number(p, to);
    if (f->kind == CATEGORICAL) return *p == '"' ? category(r, f, p + 1, to) : NULL;
    *to = *p == 't';
    return !memcmp(p, "true", 4) ? p + 4 : !memcmp(p, "false", 5) ? p + 5 : NULL;
}

INLINE int is_named(const Feature *f, const uint8_t *p, const uint8_t *end) {
    return (size_t)(end - p) > f->length && p[f->length] == '"' && !memcmp(p, f->name, f->length);
}

/* One record: every feature once, in any order. `given` has a byte for each, 0. */
static const uint8_t *record(const Reader *r, const uint8_t *p, const uint8_t *end, float *row, uint8_t *given) {
    Py_ssize_t expected = 0;
    if (!(p = mark(p, '{'))) return NULL;
    for (Py_ssize_t left = r->features; left; left--) {
        if (*p++ != '"') return NULL;
        if (expected == r->features || !is_named(r->feature + expected, p, end))
            for (expected = 0; !is_named(r->feature + expected, p, end);)
                if (++expected == r->features) return NULL;
        const Feature *f = r->feature + expected;
        if (given[expected]) return NULL;
        given[expected++] = 1;
        if (!(p = mark(p + f->length + 1, ':')) || end - p < VALUE_BYTES) return NULL; /* as in `1}]}` */
        float unread;
        if (!(p = value(r, f, p, f->column < 0 ? &unread : row + f->column))) return NULL;
        p = space(p);
        if (left > 1 && !(p = mark(p, ','))) return NULL;
    }
    memset(given, 0, (size_t)r->features);
    return *p == '}' ? p + 1 : NULL;
}

/* Whether all of it was read; `found->matrix` has room for `most` rows, and `found->cut` for every cut. */
static int read_all(const Reader *r, const uint8_t *body, const uint8_t *end, Py_ssize_t most, Py_ssize_t piece,
                    uint8_t *given, Found *found) {
    static const char head[] = "\"records\"";
    const uint8_t *p = mark(body, '{'), *first;
    if (!p || (size_t)(end - p) < sizeof head || memcmp(p, head, sizeof head - 1)) return 0;
    if (!(p = mark(p + sizeof head - 1, ':')) || !(p = mark(p, '['))) return 0;
    first = p;
    for (Py_ssize_t before = 0;;) {
        if (found->rows == most) return 0;
        p = record(r, p, end, found->matrix + found->rows++ * r->width, given);
        if (!p) return 0;
        const uint8_t *behind = p;
        p = space(p);
        int last = *p == ']';
        if (last || behind - first >= piece) {
            found->cut[found->cuts++] = (Cut){first - body, behind - body, found->rows - before};
            before = found->rows;
        }
        if (last) break;
        if (!(p = mark(p, ','))) return 0;
        if (before == found->rows) first = p;
    }
    found->end = p + 1;
    return 1;
}

/* -- Python --------------------------------------------------------------------------------------------------------- */

static void reader_dealloc(Reader *r) {
    PyTypeObject *type = Py_TYPE((PyObject *)r);
    for (Py_ssize_t i = 0; r->feature && i < r->features; i++) {
        Feature *f = r->feature + i;
        for (size_t at = 0; f->table && at <= f->mask; at++) free(f->table[at].text);
        free(f->name), free(f->table);
    }
    free(r->feature);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(r);
    Py_DECREF(type);
}

/* A copy of a text's UTF-8; NULL with an exception. */
static char *copied(PyObject *text, size_t *length) {
    Py_ssize_t bytes;
    const char *from = PyUnicode_AsUTF8AndSize(text, &bytes);
    char *copy = from ? malloc((size_t)bytes + 1) : NULL;
    if (from && !copy) PyErr_NoMemory();
    if (copy) memcpy(copy, from, *length = (size_t)bytes);
    return copy;
}

static int take_codes(Feature *f, PyObject *codes) {
    size_t size = 2;
    while (size < 2 * (size_t)PyDict_Size(codes)) size *= 2;
    f->mask = size - 1;
    if (!(f->table = calloc(size, sizeof *f->table))) {
        PyErr_NoMemory();
        return 0;
    }
    PyObject *text, *code;
    for (Py_ssize_t at = 0; PyDict_Next(codes, &at, &text, &code);) {
        if (text == Py_None) continue; /* what is missing has a code of its own */
        double number = PyFloat_AsDouble(code);
        size_t length;
        char *copy = number == -1.0 && PyErr_Occurred() ? NULL : copied(text, &length);
        if (!copy) return 0;
        *slot(f, copy, length) = (Category){copy, length, (float)number};
    }
    return 1;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *arguments, PyObject *names) {
    PyObject *features;
    Py_ssize_t most_chars;
    static char *keywords[] = {"features", "max_chars", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "O!n", keywords, &PyList_Type, &features, &most_chars)) return NULL;
    Reader *r = (Reader *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!r) return NULL;
    r->features = PyList_Size(features), r->most_chars = most_chars > 0 ? (size_t)most_chars : 0, r->least = 2;
    if (!(r->feature = calloc((size_t)r->features + 1, sizeof *r->feature))) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t i = 0; i < r->features; i++) {
        Feature *f = r->feature + i;
        PyObject *name, *codes;
        if (!PyArg_ParseTuple(PyList_GetItem(features, i), "UinOff", &name, &f->kind, &f->column, &codes, &f->missing,
                              &f->unknown) ||
            !(f->name = copied(name, &f->length)))
            goto failed;
        if (f->kind < 0 || f->kind >= KINDS || (f->kind == CATEGORICAL) != PyDict_Check(codes)) {
            PyErr_SetString(PyExc_ValueError, "wanted a kind, and codes of a categorical feature alone");
            goto failed;
        }
        r->width += f->column >= 0;
        r->least += f->length + LEAST_BYTES;
        if (f->kind == CATEGORICAL && !take_codes(f, codes)) goto failed;
    }
    for (Py_ssize_t column = 0, i; column < r->width; column++) {
        for (i = 0; i < r->features && r->feature[i].column != column; i++) {}
        if (i < r->features) continue;
        PyErr_SetString(PyExc_ValueError, "wanted one feature for each column of the matrix");
        goto failed;
    }
    if (r->width) return (PyObject *)r;
    PyErr_SetString(PyExc_ValueError, "wanted a feature that a model reads");
failed:
    Py_DECREF(r);
    return NULL;
}

static PyObject *reader_read(Reader *r, PyObject *arguments) {
    PyObject *body, *cuts = NULL, *matrix = NULL, *answer = NULL;
    Py_ssize_t most, piece;
    if (!PyArg_ParseTuple(arguments, "Snn", &body, &most, &piece)) return NULL;
    const uint8_t *from = (const uint8_t *)PyBytes_AsString(body);
    size_t length = (size_t)PyBytes_Size(body), rows = length / r->least + 1;
    if (most < 0) most = 0;
    if (rows > (size_t)most) rows = (size_t)most;
    if (piece < 1) piece = 1;
    Found found = {.matrix = malloc((rows * (size_t)r->width + 1) * sizeof(float)),
                   .cut = malloc((length / (size_t)piece + 2) * sizeof(Cut))};
    uint8_t *given = calloc((size_t)r->features + 1, 1);
    int whole = 0;
    if (!found.matrix || !found.cut || !given) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    whole = read_all(r, from, from + length, (Py_ssize_t)rows, piece, given, &found);
    Py_END_ALLOW_THREADS
    if (!whole) {
        answer = Py_NewRef(Py_None);
        goto done;
    }
    cuts = PyList_New(found.cuts);
    for (Py_ssize_t i = 0; cuts && i < found.cuts; i++) {
        PyObject *cut = Py_BuildValue("nnn", found.cut[i].start, found.cut[i].end, found.cut[i].rows);
        if (!cut || PyList_SetItem(cuts, i, cut)) Py_CLEAR(cuts);
    }
    matrix = PyBytes_FromStringAndSize((const char *)found.matrix, found.rows * r->width * (Py_ssize_t)sizeof(float));
    if (cuts && matrix) answer = Py_BuildValue("OOn", matrix, cuts, (Py_ssize_t)(found.end - from));
done:
    Py_XDECREF(cuts);
    Py_XDECREF(matrix);
    free(found.matrix), free(found.cut), free(given);
    return answer;
}

/* Texts as binary tensors have them, each behind its length: where they end, int32 from 0 on, and the texts without. */
static PyObject *texts(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    Py_ssize_t many, at = 0, row = 0, filled = 0;
    if (!PyArg_ParseTuple(arguments, "y*n", &data, &many)) return NULL;
    PyObject *answer = NULL;
    if (many < 0 || many > data.len / 4 || data.len > INT32_MAX) { /* each has a length at least */
        PyBuffer_Release(&data);
        return Py_NewRef(Py_None);
    }
    int32_t *end = malloc(((size_t)many + 1) * sizeof *end);
    char *joined = malloc((size_t)data.len + 1);
    if (!end || !joined) {
        PyErr_NoMemory();
        goto done;
    }
    end[0] = 0;
    for (const char *from = data.buf; row < many && data.len - at >= 4; row++) {
        uint32_t length;
        memcpy(&length, from + at, 4);
        at += 4;
        if ((Py_ssize_t)length > data.len - at) break;
        memcpy(joined + filled, from + at, length);
        at += length, filled += length;
        end[row + 1] = (int32_t)filled;
    }
    answer = row == many && at == data.len ? Py_BuildValue("y#y#", (char *)end, (many + 1) * (Py_ssize_t)sizeof *end, joined, filled)
                                           : Py_NewRef(Py_None);
done:
    free(end), free(joined);
    PyBuffer_Release(&data);
    return answer;
}

static PyMethodDef methods[] = {
    {"read", (PyCFunction)reader_read, METH_VARARGS,
     "read(body, max_rows, piece_bytes): the matrix, (start, end, rows) of each piece, and where the records end."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, reader_new}, {Py_tp_dealloc, reader_dealloc}, {Py_tp_methods, methods}, {0, NULL}};
static PyType_Spec spec = {"training._records.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, slots};
static PyMethodDef functions[] = {
    {"texts", texts, METH_VARARGS, "texts(data, n): (ends, joined) of n texts, each behind its length; None: they are not."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "training._records", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__records(void) {
    PyObject *made = PyModule_Create(&module), *type = PyType_FromSpec(&spec);
    if (!made || !type || PyModule_AddObjectRef(made, "Reader", type)) Py_CLEAR(made);
    Py_XDECREF(type);
    return made;
}
