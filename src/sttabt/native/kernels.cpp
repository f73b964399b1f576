// Attention and planning on CPUs, single precision: what narrow heads and few rows need and general libraries lack.
//
// A head of 16 numbers and 200 tokens is too small for a matrix library's calls to be worth their price, and planning
// reads sums over rows of attention, never the rows. Here a head's keys are packed once, a few rows of scores stay in
// the first cache, and what is written is the result alone. Threads: one task a head of a sample.
//
// The same body is compiled for several instruction sets; the best that the machine has is chosen when called.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

namespace {

// Queries, keys and values as they stand in memory: addresses in floats, the last dimension dense.
struct Rows {
    const float *data;
    int64_t sample, head, row;  // strides
};

struct Segment {
    int64_t write, writes, read, reads;  // first row and number of rows of queries, of keys
};

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STTABT_DISPATCH 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#define LANES 16
#define ROWS 6
#define BLOCK 4
namespace avx512 {
#include "kernels_body.inc"
}
#undef LANES
#undef ROWS
#undef BLOCK
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define ROWS 4
#define BLOCK 2
namespace avx2 {
#include "kernels_body.inc"
}
#undef LANES
#undef ROWS
#undef BLOCK
#pragma GCC pop_options
#endif

#define LANES 4
#define ROWS 4
#define BLOCK 2
namespace baseline {
#include "kernels_body.inc"
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

// What follows a product, in place, row by row: rows (count, width) = gelu(rows + bias) + residual; gelu, by erf, and the
// residual, null, can be left out.
PUBLIC void sttabt_finish_rows(
    float *rows, const float *bias, const float *residual, int64_t count, int64_t width, int64_t gelu
) {
    CALL(finish_rows, rows, bias, residual, count, width, gelu != 0);
}
}
