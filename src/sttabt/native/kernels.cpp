// Attention, planning and linear layers on CPUs, single precision: what narrow heads and few rows need and general
// libraries lack.
//
// A head of 16 numbers and 200 tokens is too small for a matrix library's calls to be worth their price, and planning
// reads sums over rows of attention, never the rows. Here a head's keys are packed once, a few rows of scores stay in
// the first cache, and what is written is the result alone. Threads: one task a head of a sample. The products of few
// rows are bound by reading weights and by what a library does before and after: product.inc.
//
// The same body is compiled for several instruction sets; the best that the machine has is chosen when called.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

// Queries, keys and values as they stand in memory: addresses in floats, the last dimension dense.
struct Rows {
    const float *data;
    int64_t sample, head, row;  // strides
};

struct Segment {
    int64_t write, writes, read, reads;  // first row and number of rows of queries, of keys
};

// What follows a product: rows (count, width) = gelu(product + bias) + residual, each of them where there is one.
struct Finish {
    const float *bias, *residual;
    float *out;
    int64_t row, width;  // row: stride of the residual and of out
    bool gelu;
};

// The parts of a layer as Python hands them over: numbers of 8 bytes.
struct Norm {
    const float *weight, *bias;  // null: no norm
    double epsilon;
};

struct Product {
    const float *weight, *packed;  // see sttabt_pack
    int64_t outputs, depth;  // of the weight
    int64_t first, width;  // the outputs that are computed
    const float *bias;  // of the first of them
};

// Pre-norm (norm_first): x + join(attend(norm(x))), then x + narrow(gelu(widen(norm(x)))). Otherwise each norm stands
// after its sum.
struct Layer {
    Product query, key, value, join, widen, narrow;
    Norm first, second;
    int64_t norm_first;
};

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STTABT_DISPATCH 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#define LANES 16
#define ROWS 6
#define TALL 6
#define BLOCK 4
namespace avx512 {
#include "vectors.inc"
#include "attention.inc"
#include "product.inc"
#include "encoder.inc"
}
#undef LANES
#undef ROWS
#undef TALL
#undef BLOCK
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define ROWS 4
#define TALL 6
#define BLOCK 2
namespace avx2 {
#include "vectors.inc"
#include "attention.inc"
#include "product.inc"
#include "encoder.inc"
}
#undef LANES
#undef ROWS
#undef TALL
#undef BLOCK
#pragma GCC pop_options
#endif

#define LANES 4
#define ROWS 4
#define TALL 4
#define BLOCK 2
namespace baseline {
#include "vectors.inc"
#include "attention.inc"
#include "product.inc"
#include "encoder.inc"
}

// The widest vectors to use, in floats: what the machine has, or less (sttabt_limit).
static int64_t widest = 16;

static int64_t lanes() {
#ifdef STTABT_DISPATCH
    const bool has16 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    const bool has8 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int64_t found = has16 ? 16 : has8 ? 8 : 4;
    return found < widest ? found : widest;
#else
    return 4;
#endif
}

#ifdef STTABT_DISPATCH
#define CALL(function, ...)                       \
    switch (lanes()) {                            \
        case 16: avx512::function(__VA_ARGS__); break; \
        case 8: avx2::function(__VA_ARGS__); break;    \
        default: baseline::function(__VA_ARGS__);      \
    }
#else
#define CALL(function, ...) baseline::function(__VA_ARGS__)
#endif

#define PUBLIC __attribute__((visibility("default")))

extern "C" {

// Use vectors of at most this many floats (4, 8, 16), so that one machine can test them all; returns those in use.
PUBLIC int64_t sttabt_limit(int64_t floats) {
    widest = floats;
    return lanes();
}

// out (sum of writes, heads * width) = softmax(scale * query . key + bias) . value, within each segment.
// segments: 4 numbers each, see Segment; bias: one a key row, or null.
PUBLIC void sttabt_attend(
    const float *query, int64_t query_row, const float *key, int64_t key_row, const float *value, int64_t value_row,
    const float *bias, float *out, int64_t out_row, int64_t heads, int64_t width, float scale, int64_t segments,
    const int64_t *segment
) {
    const Rows q = {query, 0, width, query_row}, k = {key, 0, width, key_row}, v = {value, 0, width, value_row};
    CALL(attend, q, k, v, bias, out, out_row, heads, width, scale, segments, (const Segment *)segment);
}

// out (samples, heads, tokens) = sum over rows q with weight[q] > least of weight[q] * row q of the attention:
// its softmax (standing = 0), or its standardised scores through erf(x / sqrt 2) (standing = 1).
// strides: sample, head, row of query, then of key; weight (samples, tokens); real (samples, tokens) or null.
PUBLIC void sttabt_sum_rows(
    const float *query, const float *key, const int64_t *strides, const float *weight, const unsigned char *real,
    float *out, int64_t samples, int64_t heads, int64_t tokens, int64_t width, float scale, float least,
    int64_t standing
) {
    const Rows q = {query, strides[0], strides[1], strides[2]}, k = {key, strides[3], strides[4], strides[5]};
    CALL(sum_rows, q, k, weight, real, out, samples, heads, tokens, width, scale, least, standing != 0);
}

// Outputs of a panel, see sttabt_pack.
PUBLIC int64_t sttabt_panel() {
    switch (lanes()) {
#ifdef STTABT_DISPATCH
        case 16: return avx512::PANEL;
        case 8: return avx2::PANEL;
#endif
        default: return baseline::PANEL;
    }
}

// packed (outputs rounded up to whole panels, depth): the weight (outputs, depth) as sttabt_multiply reads it.
PUBLIC void sttabt_pack(const float *weight, int64_t outputs, int64_t depth, float *packed) {
    CALL(pack_weight, weight, outputs, depth, packed);
}

// Whether `packed` still holds the weight, as far as some places of it tell.
static bool is_packed(Product product) {
    const int64_t panel = sttabt_panel(), probes = 5;
    for (int64_t probe = 0; probe < probes; probe++) {
        const int64_t place = (product.outputs * product.depth - 1) * probe / (probes - 1);
        const int64_t output = place / product.depth, input = place % product.depth;
        const float *there = product.packed + (output / panel * product.depth + input) * panel + output % panel;
        if (memcmp(product.weight + place, there, sizeof(float))) return false;
    }
    return true;
}

// out (count, product.width) = gelu(norm(rows) . weight^T + bias) + residual; the norm, the bias, gelu (by erf) and the
// residual are left out where they are null or 0. product.first and .width: multiples of 16. scratch (count, depth):
// room for normalised rows, where there is a norm. Returns 0, with nothing done, if the weight is not what was packed.
PUBLIC int64_t sttabt_multiply(
    const float *rows, int64_t count, const void *product, const void *norm, float *scratch, const float *residual,
    int64_t gelu, float *out
) {
    const Product given = *(const Product *)product;
    if (!is_packed(given)) return 0;
    const Finish finish = {given.bias, residual, out, given.width, given.width, gelu != 0};
    if (norm) {
        CALL(normalise_rows, rows, count, given.depth, *(const Norm *)norm, scratch);
        rows = scratch;
    }
    CALL(multiply, rows, count, given, finish);
    return 1;
}

PUBLIC int64_t sttabt_encoder_room(const void *layer, int64_t rows) {
    return baseline::encoder_room((const Layer *)layer, rows);
}

// out (sum of the last counts, width) from x (sum of the first counts, width) through all layers. counts (layers + 1,
// samples): the rows of each sample before and after a layer; a layer writes the first of those that it reads.
// kept: a buffer (rows, 3 width) for each layer's queries, keys and values, when no layer drops a row; the last layer
// then stops at its queries and keys, and out is not written. Null: nothing is kept.
// scratch: sttabt_encoder_room floats. Returns 0, with nothing done, if a weight is not what was packed.
PUBLIC int64_t sttabt_encode(
    const float *x, const void *layer, int64_t layers, int64_t heads, int64_t samples, const int64_t *counts,
    float *const *kept, float *scratch, float *out
) {
    const Layer *given = (const Layer *)layer;
    for (const Layer *one = given; one < given + layers; one++)
        for (const Product *product = &one->query; product <= &one->narrow; product++)
            if (!is_packed(*product)) return 0;
    CALL(encode, x, given, layers, heads, samples, counts, kept, scratch, out);
    return 1;
}

// What follows a product that a library computed, in place: rows (count, width) = gelu(rows + bias) + residual.
PUBLIC void sttabt_finish_rows(
    float *rows, const float *bias, const float *residual, int64_t count, int64_t width, int64_t gelu
) {
    const Finish finish = {bias, residual, rows, width, width, gelu != 0};
    CALL(finish_rows, count, finish);
}
}
