// Attention, planning and the layers of an encoder on CPUs, single precision: what narrow heads and few rows need and
// general libraries lack.
//
// A head of 16 numbers and 200 tokens is too small for a matrix library's calls to be worth their price, and planning
// reads sums over rows of attention, never the rows. Here a head's keys are packed once, a few rows of scores stay in
// the first cache, and what is written is the result alone. The products of few rows are bound by reading weights and
// by what a library does before and after: product.inc.
//
// The same body is compiled for several instruction sets; the best that the machine has is chosen when called. Arguments
// are checked by the operators (operators.py); memory that is short is said by the functions here.

#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <algorithm>
#include <type_traits>

namespace {

// Queries, keys and values as they stand in memory: addresses in floats, the last dimension dense.
struct Rows {
    const float *data;
    int64_t sample, head, row;  // strides
};

struct Segment {
    int64_t write, writes, read, reads;  // first row and number of rows of queries, of keys
};

// What follows a product: rows (count, width) = gelu(product + bias) + residual; a residual where there is one.
struct Finish {
    const float *bias, *residual;
    float *out;
    int64_t row;  // stride of the residual and of out
    bool gelu;
};

enum Activation : int64_t { GELU, TANH_GELU, QUICK_GELU };  // as packed.py numbers them

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

// Outputs `first` to `first` + `width` of a packed weight; `width` is a multiple of 16.
struct Product {
    const float *packed, *bias;
    int64_t depth, first, width;
};

// norm_first: x + join(attend(norm(x))), then x + narrow(activation(widen(norm(x)))). Otherwise each norm stands after its
// sum.
struct Layer {
    Product qkv, join, widen, narrow;
    Norm first, second;
    int64_t width, stride;
    bool norm_first;
    int64_t activation;
};

inline int64_t room16(int64_t count) { return (count + 15) / 16 * 16; }

inline int64_t sum_of(const int64_t *counts, int64_t samples) {
    int64_t sum = 0;
    for (int64_t b = 0; b < samples; b++) sum += counts[b];
    return sum;
}

inline int64_t largest_of(const int64_t *counts, int64_t samples) {
    int64_t most = 0;
    for (int64_t b = 0; b < samples; b++) most = std::max(most, counts[b]);
    return most;
}

// Places of a layer's numbers in the packed buffer, in floats from where the layer begins.
struct Offsets {
    int64_t qkv, qkv_bias, join, join_bias, widen, widen_bias, narrow, narrow_bias, first, second, end;
};

// A packed encoder: its sizes, as Python hands them over, and where its numbers are.
struct Encoder {
    int64_t panel, layers, width, wide, heads, norm_first, activation;
    const float *packed;

    int64_t stride() const { return room16(width); }

    // Rows of a group of samples: few enough to stay in a cache between the parts of a layer, where its weights do, too;
    // otherwise enough to make reading the weights worth while.
    int64_t group_rows() const { return width <= 128 ? 256 : 1024; }

    int64_t weight_room(int64_t outputs, int64_t depth) const {
        return room16((room16(outputs) + panel - 1) / panel * panel * depth);
    }

    Offsets offsets() const {
        const int64_t w = stride(), f = room16(wide), norm = 2 * w + 16;
        Offsets at = {};
        at.qkv_bias = at.qkv + weight_room(3 * w, width);
        at.join = at.qkv_bias + 3 * w;
        at.join_bias = at.join + weight_room(w, width);
        at.widen = at.join_bias + w;
        at.widen_bias = at.widen + weight_room(f, width);
        at.narrow = at.widen_bias + f;
        at.narrow_bias = at.narrow + weight_room(w, wide);
        at.first = at.narrow_bias + w;
        at.second = at.first + norm;
        at.end = at.second + norm;
        return at;
    }

    Layer layer(int64_t l) const {
        const Offsets at = offsets();
        const int64_t w = stride(), f = room16(wide);
        const float *own = packed + l * at.end;
        const auto norm = [own, w](int64_t place) { return Norm{own + place, own + place + w, own[place + 2 * w]}; };
        return {
            {own + at.qkv, own + at.qkv_bias, width, 0, 3 * w}, {own + at.join, own + at.join_bias, width, 0, w},
            {own + at.widen, own + at.widen_bias, width, 0, f}, {own + at.narrow, own + at.narrow_bias, wide, 0, w},
            norm(at.first), norm(at.second), width, w, norm_first != 0, activation,
        };
    }
};

// Back-tracking top-k. keep (layers): shares of a sample's tokens, or with as_counts numbers of tokens. dynamic: as many
// as have more than dynamic_share of the largest importance, between the shares `lowest` and `highest`. inclusive: the
// tokens of the layer above are part of a layer's number, and not added to it.
struct Topk {
    const double *keep;
    int64_t outputs, as_counts, dynamic, inclusive;
    float propagation, dynamic_share;
    double lowest, highest;
};

// Concrete masks; p_logit (layers). Rows that weigh no more than `negligible` are left out.
struct Concrete {
    const float *p_logit;
    int64_t outputs;
    float propagation, temperature, negligible;
};

// A sample's queries and keys (columns.inc), and memory to score them with.
struct Traced {
    const Encoder &encoder;
    float *queries;
    int64_t n, stride;
    float *scratch;
    int64_t threads;

    float *query(int64_t l) const { return queries + l * 2 * encoder.stride() * stride; }
    float *key(int64_t l) const { return query(l) + encoder.stride() * stride; }
};

// Layers but the last go on with the tokens that receive most attention (mean over heads and rows): counts (layers - 1,
// samples) of them, or all above threshold (layers - 1). The first `outputs` of a sample always do, and are what the
// last layer writes, or with `survivors` all that it reads.
struct Selection {
    const int64_t *counts;
    const float *threshold;
    int64_t outputs, survivors;
};

// Layers but the last merge merged (layers - 1) pairs; the rest as in Selection.
struct Merging {
    const int64_t *merged;
    int64_t outputs, survivors;
};

// Floats of memory that a thread needs for a head of `tokens` tokens.
inline int64_t attention_room(int64_t tokens, int64_t width) {
    const int64_t n = room16(tokens), w = room16(width);
    return width * n + 2 * n + 8 * (n + w) + std::max(n * w, n) + 16;
}

inline int64_t feed_forward_room(const Encoder &encoder, int64_t rows) {
    return std::min(rows, (int64_t)512) * (room16(encoder.wide) + encoder.stride());
}

inline int64_t encoder_room(const Encoder &encoder, int64_t rows, int64_t longest, int64_t samples, int64_t threads) {
    const int64_t memory = attention_room(longest, encoder.width / encoder.heads), segments = room16(8 * samples);
    return 8 * rows * encoder.stride() + feed_forward_room(encoder, rows) + threads * room16(memory) + segments;
}

// Of a group of samples whose layers decide: Buffers.
inline int64_t online_room(const Encoder &encoder, int64_t rows, int64_t longest, int64_t samples, int64_t threads) {
    const int64_t n = room16(longest), own = room16(rows) + 2 * n * (encoder.width / encoder.heads) + 3 * n + 4 * samples;
    return encoder_room(encoder, rows, longest, samples, threads) + room16(encoder.heads * rows) + 2 * room16(rows + 2 * samples) + 3 * n + own + 64;
}

// A group's buffers of `rows` rows each, out of online_room floats.
struct Buffers {
    float *x, *normed, *qkv, *attended, *other, *inner, *received, *memory, *bias, *own;
    int64_t room;
    Segment *segment;
    int32_t *place, *ranked;
    unsigned char *marked;

    Buffers(const Encoder &encoder, int64_t rows, int64_t longest, int64_t group, int64_t threads, float *scratch) {
        const int64_t whole = rows * encoder.stride(), many = room16(rows), long_ = room16(longest);
        room = room16(attention_room(longest, encoder.width / encoder.heads));
        x = scratch, normed = x + whole, attended = normed + whole, other = attended + whole, qkv = other + whole;
        inner = qkv + 3 * whole;
        received = inner + feed_forward_room(encoder, rows);
        memory = received + room16(encoder.heads * rows);
        bias = memory + threads * room;
        place = (int32_t *)(bias + room16(rows + 2 * group));
        segment = (Segment *)(place + many);
        ranked = (int32_t *)(segment + group);
        marked = (unsigned char *)(ranked + 2 * long_);
        own = (float *)(marked + 4 * long_);
    }
};

// Of a sample's trace and plan: numbers of its tokens, queries and keys, and what columns.inc and planning.inc need.
inline int64_t plan_room(const Encoder &encoder, int64_t tokens, int64_t threads) {
    const int64_t n = room16(tokens), block = 4 * 16, features = encoder.stride();
    const int64_t own = block * (2 * features + room16(encoder.wide) + n) + 16 * n;
    return 8 * n + encoder.layers * 2 * features * n + 3 * features * n + 3 * n + threads * own;
}

// Samples that threads compute on their own: `count` groups of neighbours. One group: all threads share its rows.
struct Groups {
    int64_t samples, count, room;
    int64_t first(int64_t group) const { return samples * group / count; }

    // counts (boundaries, samples). A thread's share of the rows must not exceed the mean by much.
    Groups(const Encoder &encoder, int64_t samples, const int64_t *counts, int64_t boundaries, int64_t threads)
        : samples(samples), count(1) {
        const int64_t rows = sum_of(counts, samples), wanted = rows / encoder.group_rows() + 1;
        for (int64_t tried : {(wanted + threads - 1) / threads * threads, samples}) {
            count = std::max(std::min(tried, samples), (int64_t)1);
            if (threads == 1 || is_balanced(counts, boundaries, threads)) break;
            count = 1;
        }
        room = largest_room(counts, threads, [&](auto... sizes) { return encoder_room(encoder, sizes...); });
    }

    // The most that `room_of`(rows, longest sample, samples, threads) says of a group.
    template <typename Room>
    int64_t largest_room(const int64_t *counts, int64_t threads, Room room_of) const {
        int64_t most = 0;
        for (int64_t group = 0; group < count; group++) {
            const int64_t from = first(group), size = first(group + 1) - from;
            most = std::max(most, room_of(sum_of(counts + from, size), largest_of(counts + from, size), size, count > 1 ? 1 : threads));
        }
        return most;
    }

    bool is_balanced(const int64_t *counts, int64_t boundaries, int64_t threads) const {
        int64_t load[256] = {}, all = 0;
        if (threads > 256 || count < threads) return false;
        for (int64_t group = 0; group < count; group++) {
            int64_t *least = std::min_element(load, load + threads);
            for (int64_t l = 0; l < boundaries; l++) {
                const int64_t rows = sum_of(counts + l * samples + first(group), first(group + 1) - first(group));
                *least += rows;
                all += rows;
            }
        }
        return *std::max_element(load, load + threads) * threads <= 1.1 * all;
    }
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
#include "columns.inc"
#include "planning.inc"
#include "online.inc"
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
#include "columns.inc"
#include "planning.inc"
#include "online.inc"
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
#include "columns.inc"
#include "planning.inc"
#include "online.inc"
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
#define CALL(function, ...)                            \
    switch (lanes()) {                                 \
        case 16: avx512::function(__VA_ARGS__); break; \
        case 8: avx2::function(__VA_ARGS__); break;    \
        default: baseline::function(__VA_ARGS__);      \
    }
#else
#define CALL(function, ...) baseline::function(__VA_ARGS__)
#endif

// A child that was forked has none of the threads that OpenMP believes in, and would wait for them for ever.
static bool forked = false;
static void on_fork() { forked = true; }
__attribute__((constructor)) static void watch_forks() { pthread_atfork(nullptr, nullptr, on_fork); }
static int64_t allowed(int64_t threads) { return forked ? 1 : threads; }

// Memory for the time of a call; null where it is short.
struct Memory {
    float *data;
    explicit Memory(int64_t floats) : data((float *)aligned_alloc(64, (size_t)room16(floats) * 4 + 64)) {}
    ~Memory() { free(data); }
};

#define PUBLIC extern "C" __attribute__((visibility("default")))

// All functions that return int64_t: 1 for done, 0 where memory is short (nothing was written).

// Use vectors of at most this many floats (4, 8, 16), so that one machine can test them all; returns those in use.
PUBLIC int64_t sttabt_limit(int64_t floats) {
    widest = floats;
    return lanes();
}

// How a hash of the sources begins that this was built from.
PUBLIC const char *sttabt_sources() { return STTABT_SOURCES; }

// Outputs that a panel of a packed weight holds next to each other.
PUBLIC int64_t sttabt_panel() {
    switch (lanes()) {
#ifdef STTABT_DISPATCH
        case 16: return avx512::PANEL;
        case 8: return avx2::PANEL;
#endif
        default: return baseline::PANEL;
    }
}

// sizes: panel, layers, width, wide, heads, norm_first, activation. offsets: 11 numbers, see Offsets; the last is a layer's length.
PUBLIC void sttabt_offsets(const int64_t *sizes, int64_t *offsets) {
    Encoder encoder = {};
    memcpy(&encoder, sizes, 7 * sizeof(int64_t));
    const Offsets at = encoder.offsets();
    memcpy(offsets, &at, sizeof(at));
}

// Whether counts (boundaries, samples) fall from boundary to boundary to no less than 0, from `first` rows to `last`.
PUBLIC int64_t sttabt_counts_fit(const int64_t *counts, int64_t boundaries, int64_t samples, int64_t first, int64_t last) {
    for (int64_t n = 0; n < boundaries * samples; n++)
        if (counts[n] < 0 || counts[n] > first || (n >= samples && counts[n] > counts[n - samples])) return 0;
    return sum_of(counts, samples) == first && sum_of(counts + (boundaries - 1) * samples, samples) == last;
}

static Encoder described(const int64_t *sizes, const float *packed) {
    Encoder encoder = {};
    memcpy(&encoder, sizes, 7 * sizeof(int64_t));
    encoder.packed = packed;
    return encoder;
}

// out (rows after the last layer, width) from x (rows before the first) through all layers. counts (layers + 1,
// samples): the rows of each sample before and after a layer, which writes the first of those that it reads.
// With `kept` (layers, rows, 2 * stride) instead of out: queries and keys of each layer, counts (samples).
PUBLIC int64_t sttabt_encode(
    const float *x, const int64_t *sizes, const float *packed, int64_t samples, const int64_t *counts, float *kept,
    float *out, int64_t threads
) {
    threads = allowed(threads);
    const Encoder encoder = described(sizes, packed);
    const Groups groups(encoder, samples, counts, kept ? 1 : encoder.layers + 1, threads);
    const Memory memory(groups.room * (groups.count > 1 ? threads : 1));
    if (!memory.data) return 0;
    const int64_t kept_layer = 2 * encoder.stride() * sum_of(counts, samples);
    CALL(encode, encoder, x, samples, counts, kept, kept_layer, groups, memory.data, out, threads);
    return 1;
}

// The parts of one layer. part 0: out (count, 3 * stride), queries, keys and values of x, (count, width); 1: queries
// alone, 2: keys and values, (count, stride) and (count, 2 * stride). 3: out (count, width) = what `project` makes of
// x and attended; 4: of feed_forward; 5: of both, one after the other.
PUBLIC int64_t sttabt_layer(
    const float *x, const float *attended, int64_t count, const int64_t *sizes, const float *packed, int64_t l,
    int64_t part, float *out, int64_t threads
) {
    threads = allowed(threads);
    const Encoder encoder = described(sizes, packed);
    const int64_t share = count >= 128 * threads ? 128 : std::max(count, (int64_t)1);
    const int64_t room = 4 * share * encoder.stride() + feed_forward_room(encoder, share);
    const Memory memory(room * threads);
    if (!memory.data) return 0;
    CALL(layer_part, encoder, x, attended, count, l, part, share, memory.data, room, out, threads);
    return 1;
}

// Attention of all rows of a layer, see layer_attend in encoder.inc: x and out (rows, width), received (heads, rows);
// counts (samples).
PUBLIC int64_t sttabt_layer_attend(
    const float *x, const int64_t *sizes, const float *packed, int64_t l, int64_t samples, const int64_t *counts,
    float *out, float *received, int64_t threads
) {
    threads = allowed(threads);
    const Encoder encoder = described(sizes, packed);
    const Groups groups(encoder, samples, counts, 1, threads);
    const Memory memory(groups.room * (groups.count > 1 ? threads : 1));
    if (!memory.data) return 0;
    CALL(layer_attend, encoder, x, samples, counts, l, out, received, groups, memory.data, threads);
    return 1;
}

// lifetime (samples, tokens), scored (samples, layers), see planning.inc, from x (rows, width). counts (samples). rule: a
// Topk, or with `concrete` a Concrete.
PUBLIC int64_t sttabt_plan(
    const float *x, const int64_t *sizes, const float *packed, int64_t samples, const int64_t *counts, int64_t tokens,
    const void *rule, int64_t concrete, int64_t *lifetime, int64_t *scored, int64_t threads
) {
    threads = allowed(threads);
    const Encoder encoder = described(sizes, packed);
    const int64_t outer = samples >= threads ? threads : 1;
    const int64_t room = room16(plan_room(encoder, largest_of(counts, samples), outer > 1 ? 1 : threads));
    const Memory memory(room * outer);
    if (!memory.data) return 0;
    if (concrete) {
        CALL(plan, encoder, x, samples, counts, *(const Concrete *)rule, tokens, lifetime, scored, memory.data, room, threads);
    } else {
        CALL(plan, encoder, x, samples, counts, *(const Topk *)rule, tokens, lifetime, scored, memory.data, room, threads);
    }
    return 1;
}

// What layers that decide by the attention received leave of x (rows, width): left (samples) rows of `out` each, and
// lifetime (rows), at how many boundaries each row is alive. counts (samples); keep, threshold, outputs, survivors: see
// Selection. out: room for all rows, or without survivors for the first `outputs` of each sample.
PUBLIC int64_t sttabt_select(
    const float *x, const int64_t *sizes, const float *packed, int64_t samples, const int64_t *counts,
    const int64_t *keep, const float *threshold, int64_t outputs, int64_t survivors, int64_t *lifetime, int64_t *left,
    float *out, int64_t threads
) {
    threads = allowed(threads);
    const Encoder encoder = described(sizes, packed);
    const Groups groups(encoder, samples, counts, 1, threads);
    const int64_t room = room16(groups.largest_room(counts, threads, [&](auto... of) { return online_room(encoder, of...); }));
    const Memory memory(room * (groups.count > 1 ? threads : 1));
    if (!memory.data) return 0;
    const Selection rule = {keep, threshold, outputs, survivors};
    CALL(select, encoder, x, samples, counts, rule, groups, lifetime, left, out, memory.data, room, threads);
    return 1;
}

// Likewise of layers that merge, of samples of `tokens` rows; counts (samples) says so. merged (layers - 1) pairs; out
// (samples * written, width).
PUBLIC int64_t sttabt_merge(
    const float *x, const int64_t *sizes, const float *packed, int64_t samples, const int64_t *counts, int64_t tokens,
    const int64_t *merged, int64_t outputs, int64_t survivors, int64_t *lifetime, int64_t written, float *out,
    int64_t threads
) {
    threads = allowed(threads);
    const Encoder encoder = described(sizes, packed);
    const Groups groups(encoder, samples, counts, 1, threads);
    const int64_t room = room16(groups.largest_room(counts, threads, [&](auto... of) { return online_room(encoder, of...); }));
    const Memory memory(room * (groups.count > 1 ? threads : 1));
    if (!memory.data) return 0;
    const Merging rule = {merged, outputs, survivors};
    CALL(merge, encoder, x, samples, tokens, rule, groups, lifetime, written, out, memory.data, room, threads);
    return 1;
}

// out (sum of writes, heads * width) = softmax(query . key / sqrt(width) + bias) . value, within each sample: reads and
// writes (samples), rows of keys and of queries. bias: one a key row, or null.
PUBLIC int64_t sttabt_attend(
    const float *query, int64_t query_row, const float *key, int64_t key_row, const float *value, int64_t value_row,
    const float *bias, float *out, int64_t heads, int64_t width, int64_t samples, const int64_t *reads,
    const int64_t *writes, int64_t threads
) {
    threads = allowed(threads);
    const int64_t room = room16(attention_room(largest_of(reads, samples), width));
    const Memory memory(threads * room + 8 * samples);
    if (!memory.data) return 0;
    Segment *segment = (Segment *)(memory.data + threads * room);
    for (int64_t b = 0, from = 0, to = 0; b < samples; from += reads[b], to += writes[b], b++)
        segment[b] = {to, writes[b], from, reads[b]};
    const Rows q = {query, 0, width, query_row}, k = {key, 0, width, key_row}, v = {value, 0, width, value_row};
    const float scale = 1.0f / sqrtf((float)width);
    CALL(attend, q, k, v, bias, out, heads * width, heads, width, scale, samples, segment, false, nullptr, 0, memory.data, room, threads);
    return 1;
}

// out (samples, heads, tokens) = sum over rows q with weight[q] > least of weight[q] * row q of the attention:
// its softmax, or with `standard` its standardised scores through erf(x / sqrt 2).
// strides: sample, head, row of query, then of key; weight (samples, tokens); real (samples, tokens) or null.
PUBLIC int64_t sttabt_sum_rows(
    const float *query, const float *key, const int64_t *strides, const float *weight, const unsigned char *real,
    float *out, int64_t samples, int64_t heads, int64_t tokens, int64_t width, float scale, float least,
    int64_t standard, int64_t threads
) {
    threads = allowed(threads);
    const int64_t room = room16(attention_room(tokens, width));
    const Memory memory(threads * room);
    if (!memory.data) return 0;
    const Rows q = {query, strides[0], strides[1], strides[2]}, k = {key, strides[3], strides[4], strides[5]};
    CALL(sum_rows, q, k, weight, real, out, samples, heads, tokens, width, scale, least, standard != 0, memory.data, room, threads);
    return 1;
}
