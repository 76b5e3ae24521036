// What the walk over the keys of a paged_attention (paged_attention.cpp) shares with the arithmetic of each
// type of KV cache.
#pragma once

#include "cpu/simd.h"
#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr int32_t kMaxQueries = 32;  // of one pass: 32 KB of running values, half of L1 at head dim 256
constexpr int32_t kRegisterQueries = kNumRegisters < 32 ? 4 : 6;  // that share a loaded vector
constexpr int32_t kPartitionBlocks = kPartitionSize / kBlockSize;

struct Query {
    int32_t begin, end;  // positions of the keys it sees
    int64_t row;
    int32_t head;
    float highest, sum;  // of the partitions so far
};

// A query as it is multiplied. Element is the cache's: float, uint16_t for bfloat16, uint8_t for codes.
template <class Element>
struct Operand {
    alignas(64) Element q[kMaxHeadDim];
};

// In 14 bits, as the activations of quantised weights (cpu/matmul_operand.h): code = 128 * high + low.
template <>
struct Operand<uint8_t> {
    alignas(64) int8_t high[kMaxHeadDim];
    alignas(64) int8_t low[kMaxHeadDim];
    float scale;
    int32_t base;  // what the integer products with keys lack
};

template <class Element>
struct Pass {
    Query queries[kMaxQueries];
    int32_t num_queries;
    alignas(64) float values[kMaxQueries][kMaxHeadDim];  // running weighted sums
    Operand<Element> operands[kMaxQueries];
};

// The blocks of one partition for one KV head.
template <class Element>
struct Partition {
    int32_t begin;  // position of its first key
    const Element* k[kPartitionBlocks];
    const Element* v[kPartitionBlocks];
};

// What of a KV cache is read next, to be fetched while something else is worked on, in the order of memory:
// where blocks lie one behind the other, hardware then fetches on by itself. A core of a Zen 4 reads 26 GB/s
// so, and 12 GB/s of pieces of 2 KB, which is what it has buffers for that software can ask for.
class Ahead {
  public:
    // Nothing yet: `anything` is fetched instead.
    explicit Ahead(const void* anything) : at_(static_cast<const uint8_t*>(anything)), end_(at_) {}

    // Of blocks [first, end) of a table, whose distance is `stride` bytes, `bytes` each. At most three times.
    void add(const uint8_t* blocks, const int32_t* table, int32_t first, int32_t end, int64_t stride,
             int64_t bytes) {
        stretches_[num_++] = {blocks, table, first, end, stride, bytes};
        if (at_ == end_) turn_to_next_block();
    }

    // Where the next `bytes` lie; the last ones of a block may reach past its end.
    FASTSERVE_INLINE const uint8_t* take(int64_t bytes) {
        const uint8_t* const from = at_;
        if (at_ != end_) {
            at_ += bytes;
            if (at_ >= end_) turn_to_next_block();
        }
        return from;
    }

  private:
    void turn_to_next_block() {
        at_ = end_;
        while (current_ < num_ && stretches_[current_].first == stretches_[current_].end) ++current_;
        if (current_ == num_) return;
        Stretch& stretch = stretches_[current_];
        at_ = stretch.blocks + stretch.table[stretch.first++] * stretch.stride;
        end_ = at_ + stretch.bytes;
    }

    struct Stretch {
        const uint8_t* blocks;
        const int32_t* table;
        int32_t first, end;
        int64_t stride, bytes;
    };
    const uint8_t *at_, *end_;
    Stretch stretches_[3];
    int32_t num_ = 0, current_ = 0;
};

// So few queries wait for memory: for each line that they read one is fetched ahead.
template <int kQueries>
constexpr bool kFetchesAhead = kQueries <= 3;
constexpr int64_t kLineBytes = 64;

// Keys of a partition, from its first one on.
struct Span {
    int32_t begin, end;
};
inline Span keys_seen(const Query& query, int32_t partition_begin) {
    const int32_t begin = query.begin - partition_begin, end = query.end - partition_begin;
    return {begin > 0 ? begin : 0, end < kPartitionSize ? end : kPartitionSize};
}

// What each of some queries sees of a partition, any of them, and all.
template <int kQueries>
struct Views {
    template <class Element>
    Views(const Partition<Element>& partition, const Pass<Element>& pass, const int32_t* idx) {
        for (int j = 0; j < kQueries; ++j) {
            const auto [begin, end] = keys_seen(pass.queries[idx[j]], partition.begin);
            each[j] = {begin, end};
            any = {begin < any.begin ? begin : any.begin, end > any.end ? end : any.end};
            all = {begin > all.begin ? begin : all.begin, end < all.end ? end : all.end};
        }
    }

    Span each[kQueries], any = {kPartitionSize, 0}, all = {0, kPartitionSize};
};

// The highest scores of a partition. Where all queries see all keys of some blocks they are found while the
// scores lie in registers.
template <int kQueries>
class Tops {
  public:
    explicit Tops(Span all_see) : all_see_(all_see) {
        for (int j = 0; j < kQueries; ++j) seen_[j] = others_[j] = splat(-__builtin_inff());
    }

    // What takes up the highest lanes of that many blocks, in ascending order.
    Vec* of(int32_t block, int32_t num_blocks) {
        const Span keys = {block * kBlockSize, (block + num_blocks) * kBlockSize};
        if (keys.begin < all_see_.begin || keys.end > all_see_.end) return others_;
        if (found_.end == 0) found_.begin = keys.begin;
        found_.end = keys.end;
        return seen_;
    }

    // The highest score that query j sees; the others become -inf. Done for all queries before exponentials
    // are, of which none waits for a maximum then: a block of scores takes 12 cycles, not 19.
    FASTSERVE_INLINE float mask_scores(float* scores, Span seen, int j) {
        const Vec nothing = splat(-__builtin_inff());
        const int32_t first = seen.begin / kBlockSize * kBlockSize;
        const int32_t last = (seen.end - 1) / kBlockSize * kBlockSize;
        store(scores + first, select_below(seen.begin - first, nothing, load(scores + first)));
        store(scores + last, select_below(seen.end - last, load(scores + last), nothing));
        Vec top = seen_[j];
        for (int32_t key = first; key < found_.begin; key += kBlockSize) top = max(load(scores + key), top);
        for (int32_t key = found_.end > first ? found_.end : first; key <= last; key += kBlockSize)
            top = max(load(scores + key), top);
        return reduce_max(top);
    }

  private:
    Span all_see_, found_ = {0, 0};
    Vec seen_[kQueries], others_[kQueries];
};

// Accumulators beside one query: 16 Vecs in all where a Vec is one register of 32; where it is two of 16, at
// most 6, so that nothing spills.
template <class V>
constexpr int32_t accumulators_per_query(int32_t num_queries) {
    if constexpr (requires(V a) { a.v; }) return 4;
    return num_queries == 1 ? 4 : num_queries < 4 ? 2 : 1;
}

// attend.operator()<num>(), 1 <= num <= kRegisterQueries.
template <class Attend>
FASTSERVE_INLINE void for_num_queries(int32_t num, Attend attend) {
    if (num == 1) return attend.template operator()<1>();
    if (num == 2) return attend.template operator()<2>();
    if (num == 3) return attend.template operator()<3>();
    if constexpr (kRegisterQueries == 6) {
        if (num == 5) return attend.template operator()<5>();
        if (num == 6) return attend.template operator()<6>();
    }
    attend.template operator()<4>();
}

// The running (highest, sum, values) and a partition's, brought to one maximum and added.
void merge(Query* query, float* values, float highest, float sum, const float* part, int32_t e);

// q [e] as it is multiplied: rounded to the cache's element, or codes of its mixed dimensions.
void load_query(const float* q, int32_t e, Operand<float>* to);
void load_query(const float* q, int32_t e, Operand<uint16_t>* to);
void load_query(const float* q, int32_t e, Operand<uint8_t>* to);

// Takes a partition's keys up into the queries idx[0 .. num), all of which see some of them; num <=
// kRegisterQueries.
void attend(const Partition<float>& partition, int32_t e, float scale, Pass<float>* pass, const int32_t* idx,
            int32_t num, Ahead* ahead);
void attend(const Partition<uint16_t>& partition, int32_t e, float scale, Pass<uint16_t>* pass,
            const int32_t* idx, int32_t num, Ahead* ahead);
void attend(const Partition<uint8_t>& partition, int32_t e, float scale, Pass<uint8_t>* pass,
            const int32_t* idx, int32_t num, Ahead* ahead);

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
