/* Ensembles of decision trees, answered as scikit-learn answers them: float32 compared with float32, leaves added up in
 * float64 in the order of the trees. `training/trees.py` writes what is read here and says what it means.
 *
 * Rows in tiles of 64 take the bit vectors of QuickScorer (Lucchese et al., SIGIR 2015; vectorised: SIGIR 2016): 32
 * leaves of a tree are one word a row, each test that sends the row right clears the leaves to its left, and the lowest
 * bit that stays is the row's leaf. A word has only the tests that clear some of its leaves. Few rows, and trees of more
 * than 256 leaves, are walked node by node, eight walks side by side, so that one's wait for memory is another's time to
 * compare. Both give the same bits.
 *
 * Nothing read from an artefact is believed: `load` checks every count and index before anything is answered.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "gcc or clang, and a little-endian machine: elsewhere ONNX serves"
#endif

#define INLINE static inline __attribute__((always_inline))
enum { TILE = 64, LANES = 8, ALIGNED = 64, BITS = 32, MOST_WORDS = 8, LINE = 16 };
enum { IDENTITY, EXP, LOGISTIC, SOFTMAX, EACH_LOGISTIC, LINKS }; /* as `training/trees.py` counts them */
enum { MISSING_LEFT = 1, LEFT_ENDS = 2, RIGHT_ENDS = 4, FLAGS = 8 };
#define MISSING_RIGHT 0x80000000u
#define MOST_FEATURES (1u << 20)
#define MOST_OUTPUTS (1u << 16)
#define MOST_NODES (1u << 30)
#define LONG_WORK 4096 /* rows times trees and outputs, some 20 us: from there on others have the interpreter */

typedef struct {
    char magic[8];
    uint32_t format, features, outputs, trees, nodes, width, link, unused;
    double divisor;
} Header;

typedef struct {
    float threshold;
    uint32_t feature; /* the highest bit: a missing value goes right */
    int32_t child[2]; /* left, right; below 0: ~leaf */
} Node;

typedef struct {
    uint32_t keep; /* the leaves of a word that stay for a row that goes right */
    float threshold;
    uint32_t feature;
} Test;

typedef struct {
    uint32_t first, missing_left, tests; /* the tests whose missing values go left come first */
} Word; /* BITS leaves of a tree, and the tests that clear some of them */

typedef struct {
    int32_t root;
    uint32_t first_leaf, column, first_word, words; /* no words: it is walked */
} Tree;

typedef struct {
    PyObject_HEAD
    Header head;
    uint32_t columns, tile_from; /* rows from which a tile is faster than walks: `python -m benchmarks.trees` */
    int fills;
    double *base, *slope, *intercept, *value;
    float *fill;
    Tree *tree;
    Node *node;
    Word *word;
    Test *test;
} Ensemble;

/* -- answering ------------------------------------------------------------------------------------------------------ */

/* A way to have the bits of the leaves that stay in one word of a tree, for the first `rows` rows of a tile at least. */
typedef void Way(const Test *test, uint32_t missing_left, uint32_t tests, const float *x, uint32_t rows, uint32_t *bits);

#define EACH(DO) DO(0) DO(1) DO(2) DO(3)
#define BEGIN(k) v##k = ~(Words){0};
#define STORE(k) memcpy(bits + row + k * lanes, &v##k, sizeof v##k);
#define FAIL_LEFT(k) v##k &= ~(Words)(column[k] > limit) | keep;
#define FAIL_RIGHT(k) v##k &= (Words)(column[k] <= limit) | keep;
#define TESTS(UNTIL, FAIL)                                                                          \
    for (; i < UNTIL; i++) {                                                                        \
        const Floats *column = (const Floats *)(x + (size_t)test[i].feature * TILE + row);          \
        Floats limit = test[i].threshold - (Floats){0};                                             \
        Words keep = test[i].keep + (Words){0};                                                     \
        EACH(FAIL)                                                                                  \
    }
#define WAY(NAME, BYTES, TARGET)                                                                    \
    TARGET static void NAME(const Test *test, uint32_t missing_left, uint32_t tests, const float *x, \
                            uint32_t rows, uint32_t *bits) {                                        \
        typedef float Floats __attribute__((vector_size(BYTES)));                                   \
        typedef uint32_t Words __attribute__((vector_size(BYTES)));                                 \
        enum { lanes = BYTES / 4 };                                                                 \
        for (uint32_t row = 0; row < rows; row += 4 * lanes) {                                      \
            Words v0, v1, v2, v3;                                                                   \
            uint32_t i = 0;                                                                         \
            EACH(BEGIN)                                                                             \
            TESTS(missing_left, FAIL_LEFT)                                                          \
            TESTS(tests, FAIL_RIGHT)                                                                \
            EACH(STORE)                                                                             \
        }                                                                                           \
    }

WAY(plain, 16, )
#if defined(__x86_64__)
WAY(avx2, 32, __attribute__((target("avx2"))))
WAY(avx512, 64, __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw"))))
#endif

static struct {
    const char *name;
    Way *way;
} ways[4]; /* of this machine, the fastest for many rows first; ends with NULL */

static void find_ways(void) {
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        ways[count].name = "avx512", ways[count++].way = avx512;
    if (__builtin_cpu_supports("avx2")) ways[count].name = "avx2", ways[count++].way = avx2;
#endif
    ways[count].name = "plain", ways[count].way = plain;
}

/* Half a tile is not worth vectors of 64 bytes. */
static Way *best_way(uint32_t rows) { return rows <= TILE / 2 && ways[1].way ? ways[1].way : ways[0].way; }

INLINE void add_leaf(const Ensemble *e, const Tree *tree, uint32_t leaf, uint32_t row, double *sum) {
    const double *value = e->value + (size_t)leaf * e->head.width;
    if (e->head.width == 1)
        sum[(size_t)tree->column * TILE + row] += *value;
    else
        for (uint32_t k = 0; k < e->head.outputs; k++) sum[(size_t)k * TILE + row] += value[k];
}

/* Walks to their leaves, from the nodes `at`; the value of a feature is `x[lane][feature * stride]`. */
INLINE void descend(const Node *node, int32_t at[LANES], const float *const x[LANES], size_t stride) {
    for (;;) {
        int32_t all_end = -1;
        for (int k = 0; k < LANES; k++) all_end &= at[k];
        if (all_end < 0) return;
        for (int k = 0; k < LANES; k++) {
            int32_t here = at[k];
            const Node *n = node + (here & ~(here >> 31));
            float value = x[k][(size_t)(n->feature & ~MISSING_RIGHT) * stride];
            uint32_t right = (value > n->threshold) | ((n->feature >> 31) & (uint32_t)(value != value));
            int32_t next = n->child[right];
            at[k] = here < 0 ? here : next;
        }
    }
}

/* Add what the trees say of the first `rows` rows of a tile (`x`: features by TILE) to `sum` (outputs by TILE). */
static void answer_tile(const Ensemble *e, const float *x, uint32_t rows, Way *way, double *sum) {
    uint32_t bits[TILE], after[TILE], leaf[TILE];
    for (uint32_t t = 0; t < e->head.trees; t++) {
        const Tree *tree = e->tree + t;
        for (uint32_t w = tree->words; w--;) {
            const Word *word = e->word + tree->first_word + w;
            way(e->test + word->first, word->missing_left, word->tests, x, rows, bits);
            if (tree->words <= 2 && e->head.width == 1) { /* what most are, in a third of the time */
                const double *value = e->value + tree->first_leaf;
                double *own = sum + (size_t)tree->column * TILE;
                if (w)
                    memcpy(after, bits, sizeof bits);
                else if (tree->words == 1)
                    for (uint32_t row = 0; row < rows; row++) own[row] += value[__builtin_ctz(bits[row])];
                else
                    for (uint32_t row = 0; row < rows; row++)
                        own[row] += value[__builtin_ctzll(bits[row] | (uint64_t)after[row] << BITS)];
                continue;
            }
            uint32_t first = tree->first_leaf + w * BITS;
            for (uint32_t row = 0; row < rows; row++) {
                uint32_t found = first + (uint32_t)__builtin_ctz(bits[row] | 1u << (BITS - 1));
                leaf[row] = bits[row] || w + 1 == tree->words ? found : leaf[row];
            }
            if (w) continue;
            for (uint32_t row = 0; row < rows; row++) add_leaf(e, tree, leaf[row], row, sum);
        }
        if (tree->words) continue;
        for (uint32_t row = 0; row < rows; row += LANES) {
            int32_t at[LANES];
            const float *from[LANES];
            for (int k = 0; k < LANES; k++) at[k] = tree->root, from[k] = x + row + k;
            descend(e->node, at, from, TILE);
            for (uint32_t k = 0; k < LANES; k++) add_leaf(e, tree, (uint32_t)~at[k], row + k, sum);
        }
    }
}

/* One row, eight trees at a time, added up in their order. */
static void answer_row(const Ensemble *e, const float *x, double *sum) {
    for (uint32_t t = 0; t < e->head.trees; t += LANES) {
        uint32_t many = e->head.trees - t < LANES ? e->head.trees - t : LANES;
        int32_t at[LANES];
        const float *from[LANES];
        for (uint32_t k = 0; k < LANES; k++) at[k] = k < many ? e->tree[t + k].root : -1, from[k] = x;
        descend(e->node, at, from, 1);
        for (uint32_t k = 0; k < many; k++) add_leaf(e, e->tree + t + k, (uint32_t)~at[k], 0, sum);
    }
}

static double logistic(const Ensemble *e, uint32_t k, double sum) {
    return 1.0 / (1.0 + exp(e->slope[k] * sum + e->intercept[k])); /* expit(-(a * sum + b)) */
}

/* What the sums of a row mean; `sum` has one of each output, TILE apart. */
static void finish(const Ensemble *e, const double *sum, double *out) {
    uint32_t outputs = e->head.outputs;
    for (uint32_t k = 0; k < outputs; k++) out[k] = sum[(size_t)k * TILE] / e->head.divisor;
    if (e->head.link == EXP) {
        for (uint32_t k = 0; k < outputs; k++) out[k] = exp(out[k]);
    } else if (e->head.link == LOGISTIC) {
        out[1] = logistic(e, 0, out[0]);
        out[0] = 1.0 - out[1];
    } else if (e->head.link != IDENTITY) {
        double most = out[0], total = 0.0;
        for (uint32_t k = 1; k < outputs; k++) most = out[k] > most ? out[k] : most;
        for (uint32_t k = 0; k < outputs; k++)
            total += out[k] = e->head.link == SOFTMAX ? exp(out[k] - most) : logistic(e, k, out[k]);
        for (uint32_t k = 0; k < outputs; k++) out[k] = total != 0.0 ? out[k] / total : 1.0 / outputs;
    }
}

static void begin(const Ensemble *e, double *sum, uint32_t rows) {
    for (uint32_t k = 0; k < e->head.outputs; k++)
        for (uint32_t row = 0; row < rows; row++) sum[(size_t)k * TILE + row] = e->base[k];
}

INLINE float filled(const Ensemble *e, uint32_t feature, float value) {
    return e->fills && value != value ? e->fill[feature] : value;
}

/* `scratch`: features by TILE floats, then outputs by TILE doubles. Fewer than `from` rows are walked; `way` NULL: the
 * best for so many. */
static void answer_all(const Ensemble *e, const float *x, double *out, size_t rows, Way *way, size_t from, char *scratch) {
    size_t features = e->head.features;
    float *tile = (float *)scratch;
    double *sum = (double *)(scratch + features * TILE * sizeof(float));
    if (rows >= from) memset(tile, 0, features * TILE * sizeof(float)); /* the rest of the last tile is compared, too */
    while (rows) {
        uint32_t now = rows < TILE ? (uint32_t)rows : TILE;
        if (now >= from) {
            for (size_t f = 0; f < features; f += LINE) /* a line of memory of each row at a time */
                for (uint32_t row = 0; row < now; row++)
                    for (size_t k = f; k < features && k < f + LINE; k++)
                        tile[k * TILE + row] = filled(e, (uint32_t)k, x[row * features + k]);
            begin(e, sum, TILE);
            answer_tile(e, tile, now, way ? way : best_way(now), sum);
            for (uint32_t row = 0; row < now; row++) finish(e, sum + row, out + row * e->columns);
        } else {
            for (uint32_t row = 0; row < now; row++) {
                const float *one = x + row * features;
                if (e->fills) {
                    for (uint32_t f = 0; f < features; f++) tile[f] = filled(e, f, one[f]);
                    one = tile;
                }
                begin(e, sum, 1);
                answer_row(e, one, sum);
                finish(e, sum, out + row * e->columns);
            }
        }
        x += now * features, out += now * e->columns, rows -= now;
    }
}

/* -- reading what was written --------------------------------------------------------------------------------------- */

/* A copy of the next `count` items, at least one in size; NULL when there is no memory. */
static void *take(const char **from, size_t count, size_t size) {
    void *copy = malloc(count * size + 1);
    if (copy) memcpy(copy, *from, count * size);
    *from += count * size;
    return copy;
}

static const char *wrong_head(const Header *h, size_t length) {
    if (memcmp(h->magic, "EVGTREES", 8)) return "it does not begin as compiled trees do";
    if (h->format != 1) return "its format is not 1, the only one that this release reads";
    if (!h->features || h->features > MOST_FEATURES || !h->outputs || h->outputs > MOST_OUTPUTS || !h->trees ||
        h->trees > MOST_NODES || h->nodes > MOST_NODES || h->trees + h->nodes > MOST_NODES)
        return "a count in it is 0 or too large";
    if (h->width != 1 && h->width != h->outputs) return "its leaves have neither one value nor one for each output";
    if (h->link >= LINKS || h->unused || (h->link == LOGISTIC && h->outputs != 1) ||
        (h->link > LOGISTIC && h->outputs < 2))
        return "its link is unknown, or has another number of outputs";
    if (!(h->divisor > 0) || !isfinite(h->divisor)) return "its divisor is not a finite number above 0";
    uint64_t needed = sizeof *h + 24ull * h->outputs + 4ull * h->features + 8ull * h->trees + 9ull * h->nodes +
                      8ull * h->width * ((uint64_t)h->nodes + h->trees);
    return needed == length ? NULL : "its length is not what its counts say";
}

static int all_finite(const double *value, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!isfinite(value[i])) return 0;
    return 1;
}

typedef struct {
    int32_t *child; /* where the next node, or leaf, belongs */
    Node *of;       /* whose right child that is; NULL: a left one, or the root */
    int ends;
} Place;

/* One tree whose `inner` nodes come in the order of a walk from the left: where each leads follows from which of its
 * children are leaves. `left` and `split` take, for each node, the first leaf on its left and the first on its right. */
static const char *grow(Ensemble *e, Tree *tree, uint32_t first, uint32_t inner, const uint8_t *flag, Place *stack,
                        uint32_t *left, uint32_t *split) {
    uint32_t leaf = 0, depth = 0;
    Node *node = e->node;
    stack[depth++] = (Place){&tree->root, NULL, inner == 0};
    for (uint32_t i = first;; i++) {
        while (depth && stack[depth - 1].ends) {
            Place place = stack[--depth];
            if (leaf > inner) return "a tree has more leaves than its nodes allow";
            if (place.of) split[place.of - node - first] = leaf;
            *place.child = ~(int32_t)(tree->first_leaf + leaf++);
        }
        if (i == first + inner) break;
        if (!depth) return "a tree has nodes that nothing leads to";
        Place place = stack[--depth];
        if (place.of) split[place.of - node - first] = leaf;
        *place.child = (int32_t)i;
        left[i - first] = leaf;
        stack[depth++] = (Place){&node[i].child[1], node + i, (flag[i] & RIGHT_ENDS) != 0};
        stack[depth++] = (Place){&node[i].child[0], NULL, (flag[i] & LEFT_ENDS) != 0};
    }
    return depth || leaf != inner + 1 ? "a tree ends before all of its leaves" : NULL;
}

/* The tests of one tree, word by word: a node clears the leaves on its left, from `left` up to `split`. */
static uint32_t list_tests(Ensemble *e, const Tree *tree, uint32_t first, uint32_t inner, const uint32_t *left,
                           const uint32_t *split, uint32_t test) {
    for (uint32_t w = 0; w < tree->words; w++) {
        Word *word = e->word + tree->first_word + w;
        word->first = test;
        for (int right = 0; right < 2; right++) {
            for (uint32_t i = 0; i < inner; i++) {
                const Node *node = e->node + first + i;
                uint32_t from = left[i] > w * BITS ? left[i] - w * BITS : 0, all = ~0u;
                uint32_t to = split[i] < (w + 1) * BITS ? split[i] : (w + 1) * BITS;
                if (right != (node->feature >= MISSING_RIGHT) || to <= w * BITS || from >= to - w * BITS) continue;
                to -= w * BITS;
                uint32_t cleared = (to == BITS ? all : (1u << to) - 1) & all << from;
                e->test[test++] = (Test){~cleared, node->threshold, node->feature & ~MISSING_RIGHT};
            }
            if (!right) word->missing_left = test - word->first;
        }
        word->tests = test - word->first;
    }
    return test;
}

static const char *const no_memory = "";

static const char *load(Ensemble *e, const char *from, size_t length) {
    if (length < sizeof e->head) return "it is shorter than its head";
    memcpy(&e->head, from, sizeof e->head);
    const char *wrong = wrong_head(&e->head, length);
    if (wrong) return wrong;
    from += sizeof e->head;
    const Header *h = &e->head;
    size_t leaves = (size_t)h->nodes + h->trees;
    e->columns = h->link == LOGISTIC ? 2 : h->outputs;
    e->base = take(&from, h->outputs, 8), e->slope = take(&from, h->outputs, 8);
    e->intercept = take(&from, h->outputs, 8), e->value = take(&from, leaves * h->width, 8);
    e->fill = take(&from, h->features, 4);
    uint32_t *inner = take(&from, h->trees, 4), *column = take(&from, h->trees, 4), most = 0;
    float *threshold = take(&from, h->nodes, 4);
    uint32_t *feature = take(&from, h->nodes, 4);
    uint8_t *flag = take(&from, h->nodes, 1);
    e->tree = calloc(h->trees, sizeof *e->tree), e->node = calloc(h->nodes + 1, sizeof *e->node);
    Place *stack = NULL;
    uint32_t *left = NULL, *split = NULL;
    wrong = no_memory;
    if (!e->base || !e->slope || !e->intercept || !e->value || !e->fill || !inner || !column || !threshold || !feature ||
        !flag || !e->tree || !e->node)
        goto done;
    wrong = "a number in it is not finite";
    if (!all_finite(e->base, h->outputs) || !all_finite(e->slope, h->outputs) || !all_finite(e->intercept, h->outputs) ||
        !all_finite(e->value, leaves * h->width))
        goto done;
    for (uint32_t f = 0; f < h->features; f++) {
        if (isinf(e->fill[f])) goto done;
        e->fills |= e->fill[f] == e->fill[f];
    }
    uint64_t nodes = 0, tests = 0, words = 0;
    for (uint32_t t = 0; t < h->trees; t++) {
        nodes += inner[t];
        e->tree[t].words = inner[t] < BITS * MOST_WORDS ? inner[t] / BITS + 1 : 0;
        e->tree[t].first_word = (uint32_t)words;
        words += e->tree[t].words, tests += (uint64_t)inner[t] * e->tree[t].words;
        if (inner[t] > most) most = inner[t];
        wrong = "a tree adds to an output that there is not";
        if (column[t] >= h->outputs) goto done;
    }
    wrong = "its trees have another number of nodes than it says";
    if (nodes != h->nodes) goto done;
    for (uint32_t i = 0; i < h->nodes; i++) {
        wrong = "a node compares a feature that there is not, or with no number";
        if (feature[i] >= h->features || threshold[i] != threshold[i]) goto done;
        wrong = "a node has flags that this release does not know";
        if (flag[i] >= FLAGS) goto done;
        e->node[i].threshold = threshold[i];
        e->node[i].feature = feature[i] | (flag[i] & MISSING_LEFT ? 0 : MISSING_RIGHT);
    }
    e->test = malloc(tests * sizeof *e->test + 1), e->word = malloc(words * sizeof *e->word + 1);
    stack = malloc((most + 2) * sizeof *stack), left = malloc(most * 4 + 1), split = malloc(most * 4 + 1);
    wrong = no_memory;
    if (!e->test || !e->word || !stack || !left || !split) goto done;
    uint32_t first = 0, test = 0;
    for (uint32_t t = 0; t < h->trees; first += inner[t], t++) {
        Tree *tree = e->tree + t;
        tree->first_leaf = first + t, tree->column = column[t];
        wrong = grow(e, tree, first, inner[t], flag, stack, left, split);
        if (wrong) goto done;
        test = list_tests(e, tree, first, inner[t], left, split, test);
    }
    /* Measured: 2 to 4 rows where a tree has one word, 5 or 6 where it has two, 13 where it has seven. */
    e->tile_from = 1 + 2 * (uint32_t)((words + h->trees - 1) / h->trees);
    for (uint32_t t = 0; t < h->trees; t++)
        if (!e->tree[t].words && e->tile_from < LANES) e->tile_from = LANES;
    Test *fitting = realloc(e->test, test * sizeof *e->test + 1);
    if (fitting) e->test = fitting;
    wrong = NULL;
done:
    free(inner), free(column), free(threshold), free(feature), free(flag), free(stack), free(left), free(split);
    return wrong;
}

/* -- Python --------------------------------------------------------------------------------------------------------- */

static void ensemble_dealloc(Ensemble *e) {
    PyTypeObject *type = Py_TYPE((PyObject *)e);
    free(e->base), free(e->slope), free(e->intercept), free(e->value), free(e->fill);
    free(e->tree), free(e->node), free(e->word), free(e->test);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(e);
    Py_DECREF(type);
}

static PyObject *ensemble_new(PyTypeObject *type, PyObject *arguments, PyObject *names) {
    Py_buffer content;
    static char *keywords[] = {"content", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "y*", keywords, &content)) return NULL;
    Ensemble *e = (Ensemble *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    const char *wrong = e ? load(e, content.buf, (size_t)content.len) : NULL;
    PyBuffer_Release(&content);
    if (wrong) {
        Py_DECREF(e);
        if (wrong == no_memory) return PyErr_NoMemory();
        return PyErr_Format(PyExc_ValueError, "these compiled trees cannot be used: %s", wrong);
    }
    return (PyObject *)e;
}

static int is_matrix(const Py_buffer *b, const char *format, size_t columns) {
    return b->ndim == 2 && b->format && !strcmp(b->format, format) && (size_t)b->shape[1] == columns;
}

static PyObject *ensemble_predict(Ensemble *e, PyObject *arguments) {
    PyObject *given, *taken, *answer = NULL;
    const char *name = NULL;
    if (!PyArg_ParseTuple(arguments, "OO|z", &given, &taken, &name)) return NULL;
    Way *way = NULL;
    size_t from = e->tile_from;
    if (name) {
        from = strcmp(name, "walk") ? 1 : SIZE_MAX;
        for (int i = 0; ways[i].name; i++)
            if (!strcmp(name, ways[i].name)) way = ways[i].way;
        if (!way && from == 1) return PyErr_Format(PyExc_ValueError, "no way %s on this machine", name);
    }
    Py_buffer x, out;
    if (PyObject_GetBuffer(given, &x, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) return NULL;
    if (PyObject_GetBuffer(taken, &out, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)) {
        PyBuffer_Release(&x);
        return NULL;
    }
    size_t features = e->head.features;
    if (!is_matrix(&x, "f", features) || !is_matrix(&out, "d", e->columns) || x.shape[0] != out.shape[0]) {
        PyErr_Format(PyExc_ValueError, "wanted n by %u of float32, and room for n by %u of float64", (unsigned)features,
                     (unsigned)e->columns);
        goto done;
    }
    size_t rows = (size_t)x.shape[0], needed = features * TILE * sizeof(float) + e->head.outputs * TILE * sizeof(double);
    char *scratch = aligned_alloc(ALIGNED, needed);
    if (!scratch) {
        PyErr_NoMemory();
        goto done;
    }
    if (rows * (e->head.trees + e->head.outputs) < LONG_WORK) {
        answer_all(e, x.buf, out.buf, rows, way, from, scratch);
    } else {
        Py_BEGIN_ALLOW_THREADS
        answer_all(e, x.buf, out.buf, rows, way, from, scratch);
        Py_END_ALLOW_THREADS
    }
    free(scratch);
    answer = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&x);
    PyBuffer_Release(&out);
    return answer;
}

static PyObject *ensemble_shape(Ensemble *e, PyObject *unused) {
    (void)unused;
    return Py_BuildValue("II", (unsigned)e->head.features, (unsigned)e->columns);
}

static PyObject *list_ways(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *found = PyList_New(0);
    for (int i = 0; found && ways[i].name; i++) {
        PyObject *name = PyUnicode_FromString(ways[i].name);
        if (!name || PyList_Append(found, name)) Py_CLEAR(found);
        Py_XDECREF(name);
    }
    return found;
}

static PyMethodDef methods[] = {
    {"predict", (PyCFunction)ensemble_predict, METH_VARARGS,
     "predict(x, out, way=None): answer the rows of x (float32, n by features) into out (float64, n by columns)."},
    {"shape", (PyCFunction)ensemble_shape, METH_NOARGS, "Features of a row, and columns of its answer."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, ensemble_new}, {Py_tp_dealloc, ensemble_dealloc}, {Py_tp_methods, methods}, {0, NULL}};
static PyType_Spec spec = {"training._trees.Ensemble", sizeof(Ensemble), 0, Py_TPFLAGS_DEFAULT, slots};
/* Rows as tuples become the rows of a matrix: a number as it is, None as NaN, a category by its column's table. */
static PyObject *encode(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *rows, *places, *tables, *taken, *answer = NULL;
    if (!PyArg_ParseTuple(arguments, "O!O!O!O", &PyList_Type, &rows, &PyTuple_Type, &places, &PyTuple_Type, &tables, &taken))
        return NULL;
    Py_buffer out;
    if (PyObject_GetBuffer(taken, &out, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)) return NULL;
    Py_ssize_t many = PyList_Size(rows), width = PyTuple_Size(places);
    Py_ssize_t *place = malloc((size_t)width * sizeof *place + 1);
    if (!place || !is_matrix(&out, "f", (size_t)width) || out.shape[0] != many || PyTuple_Size(tables) != width) {
        PyErr_SetString(PyExc_ValueError, "wanted a table or None for each place, and room for rows by places of float32");
        goto done;
    }
    for (Py_ssize_t j = 0; j < width; j++) {
        place[j] = PyLong_AsSsize_t(PyTuple_GetItem(places, j));
        if (PyErr_Occurred()) goto done;
    }
    float *to = out.buf;
    for (Py_ssize_t i = 0; i < many; i++) {
        PyObject *row = PyList_GetItem(rows, i);
        for (Py_ssize_t j = 0; j < width; j++) {
            PyObject *value = row ? PyTuple_GetItem(row, place[j]) : NULL, *table = PyTuple_GetItem(tables, j);
            if (!value) goto done;
            if (table != Py_None) { /* (codes by category, the code of any other) */
                PyObject *code = PyDict_GetItemWithError(PyTuple_GetItem(table, 0), value);
                if (!code && PyErr_Occurred()) goto done;
                value = code ? code : PyTuple_GetItem(table, 1);
            }
            double number = value == Py_None ? (double)NAN : PyFloat_AsDouble(value);
            if (number == -1.0 && PyErr_Occurred()) goto done;
            *to++ = (float)number;
        }
    }
    answer = Py_NewRef(Py_None);
done:
    free(place);
    PyBuffer_Release(&out);
    return answer;
}

static PyMethodDef functions[] = {
    {"encode", encode, METH_VARARGS,
     "encode(rows, places, tables, out): write row[place] for each row and place, as tables say, into out (float32)."},
    {"ways", list_ways, METH_NOARGS, "How this machine can answer a tile, the fastest first."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "training._trees", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__trees(void) {
    find_ways();
    PyObject *made = PyModule_Create(&module), *type = PyType_FromSpec(&spec);
    if (!made || !type || PyModule_AddObjectRef(made, "Ensemble", type)) Py_CLEAR(made);
    Py_XDECREF(type);
    return made;
}
