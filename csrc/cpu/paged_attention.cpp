// paged_attention: softmax(q . keys * scale) values over keys in KV blocks, with one running pass over the
// keys.
//
// Keys are split into *partitions* of 256 at absolute positions. In a partition a query's scores are computed
// (lane = key, 16 keys a block), then their maximum, exponentials and sum, and the weighted sum of the
// values; partitions are merged from left to right into (highest, sum, values). What a query computes depends
// on its own position and window alone: rows, threads, tiles and the place of blocks change how loads are
// shared, never an operation or its order.
//
// Sharing. A *tile* is up to 8 consecutive rows of one slot. Query heads that read one KV head are worked on
// together with the tile's rows: up to 32 queries go through a partition while it lies in L2 (256 keys x 64 x
// 4 bytes = 64 KB of keys), up to 6 of them while a vector lies in a register. Threads divide (tile, query
// head) by the keys they see, so a few rows are spread over all threads by heads, and prefill by its causal
// cost; of rows that are fewer than the threads, and long, they divide the partitions.
//
// Memory decides where one row meets its keys. All its heads then go through a partition before the next
// one, which is fetched meanwhile, a line for each line that is read (Ahead).
//
// Memory beyond a query's keys may hold anything (stale, or later tokens, or NaN): scores there are computed
// lane by lane and replaced by -inf before they meet another lane; values there are not multiplied, not even
// by 0.
#include "cpu/paged_attention.h"

#include "cpu/kernels.h"
#include "cpu/matmul_operand.h"
#include "cpu/share.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

constexpr int32_t kTileRows = 8;
constexpr int64_t kRowCost = 32;  // a row's fixed cost, in keys

int32_t partition_of(int32_t position) {
    return position / kPartitionSize;
}

int32_t first_key(const PagedAttentionArgs& args, int64_t t) {
    const int32_t begin = args.index.positions[t] - args.window + 1;
    return args.window > 0 && begin > 0 ? begin : 0;
}

// Query heads [head_begin, head_end) of rows [begin, end) of one slot: of many rows, heads of one KV head.
struct Tile {
    int64_t begin, end;
    int32_t head_begin, head_end;
};

Tile tile_of_row(int64_t t) {
    return {t, t + 1, 0, 0};
}

const int32_t* table_of(const PagedAttentionArgs& args, const Tile& tile) {
    return args.index.tables + int64_t{args.index.row_slot[tile.begin]} * args.index.max_blocks;
}

// The keys that a tile's rows see.
Span keys_of(const PagedAttentionArgs& args, const Tile& tile) {
    Span keys = {first_key(args, tile.begin), args.index.positions[tile.begin] + 1};
    for (int64_t t = tile.begin + 1; t < tile.end; ++t) {
        const int32_t begin = first_key(args, t), end = args.index.positions[t] + 1;
        keys = {begin < keys.begin ? begin : keys.begin, end > keys.end ? end : keys.end};
    }
    return keys;
}

// Those of the keys that lie in the partition.
Span keys_within(Span keys, int32_t partition) {
    const int32_t end = partition + kPartitionSize;
    return {keys.begin > partition ? keys.begin : partition, keys.end < end ? keys.end : end};
}

// The blocks of a partition that hold some of the keys.
Span blocks_of(Span keys, int32_t partition) {
    const auto [begin, end] = keys_within(keys, partition);
    return {begin / kBlockSize, (end + kBlockSize - 1) / kBlockSize};
}

// What one row's heads read of a partition is to be fetched: keys, if they are wanted, and values.
void add_partition(const PagedAttentionArgs& args, const Tile& tile, int32_t partition, bool keys,
                   Ahead* ahead) {
    if (tile.end - tile.begin > 1) return;  // many queries meet a key: it is there before they are done
    int32_t kv_begin = args.cache.num_kv_heads, kv_end = 0;
    for (int32_t h = tile.head_begin; h < tile.head_end; ++h) {
        const int32_t kv_head = args.kv_of_head[h];
        kv_begin = kv_head < kv_begin ? kv_head : kv_begin;
        kv_end = kv_head < kv_end ? kv_end : kv_head + 1;
    }
    const Span blocks = blocks_of(keys_of(args, tile), partition);
    const auto add = [&](const void* cache, int64_t block_bytes) {
        ahead->add(static_cast<const uint8_t*>(cache) + kv_begin * block_bytes, table_of(args, tile),
                   blocks.begin, blocks.end, args.cache.num_kv_heads * block_bytes,
                   (kv_end - kv_begin) * block_bytes);
    };
    if (keys) add(args.cache.k, key_block_bytes(args.cache.type, args.cache.head_dim));
    add(args.cache.v, value_block_bytes(args.cache.type, args.cache.head_dim));
}

template <class Element>
void load_queries(const PagedAttentionArgs& args, const Tile& tile, Pass<Element>* pass) {
    const int32_t e = args.cache.head_dim;
    for (int64_t t = tile.begin; t < tile.end; ++t) {
        for (int32_t d = tile.head_begin * e; d < tile.head_end * e; d += kLanes) {
            prefetch(args.q + t * args.ldq + d);
            if (args.out) prefetch(args.out + t * args.ldo + d);
        }
    }
    pass->num_queries = 0;
    for (int64_t t = tile.begin; t < tile.end; ++t) {
        for (int32_t head = tile.head_begin; head < tile.head_end; ++head) {
            load_query(args.q + t * args.ldq + head * e, e, &pass->operands[pass->num_queries]);
            pass->queries[pass->num_queries++] = {
                first_key(args, t), args.index.positions[t] + 1, t, head, 0.0f, 0.0f};
        }
    }
}

template <class Element>
const Element* block_at(const void* cache, int64_t offset_bytes) {
    return reinterpret_cast<const Element*>(static_cast<const uint8_t*>(cache) + offset_bytes);
}

// Takes the keys of the partition that begins at `begin` up into the pass, one KV head after the other.
template <class Element>
void attend_partition(const PagedAttentionArgs& args, const Tile& tile, int32_t begin, Pass<Element>* pass,
                      Ahead* ahead) {
    const int32_t e = args.cache.head_dim;
    const int32_t* const table = table_of(args, tile);
    const Span blocks = blocks_of(keys_of(args, tile), begin);
    const int64_t k_bytes = key_block_bytes(args.cache.type, e),
                  v_bytes = value_block_bytes(args.cache.type, e);
    Partition<Element> partition;
    partition.begin = begin;
    for (int32_t i = 0; i < pass->num_queries;) {
        const int32_t kv_head = args.kv_of_head[pass->queries[i].head];
        for (int32_t b = blocks.begin; b < blocks.end; ++b) {
            const int64_t block = int64_t{table[b]} * args.cache.num_kv_heads + kv_head;
            partition.k[b - begin / kBlockSize] = block_at<Element>(args.cache.k, block * k_bytes);
            partition.v[b - begin / kBlockSize] = block_at<Element>(args.cache.v, block * v_bytes);
        }
        int32_t idx[kMaxQueries], num = 0;
        for (; i < pass->num_queries && args.kv_of_head[pass->queries[i].head] == kv_head; ++i)
            if (pass->queries[i].begin < begin + kPartitionSize && pass->queries[i].end > begin)
                idx[num++] = i;
        for (int32_t j = 0; j < num; j += kRegisterQueries)
            attend(partition, e, args.scale, pass, idx + j,
                   num - j < kRegisterQueries ? num - j : kRegisterQueries, ahead);
    }
}

void write_out(const PagedAttentionArgs& args, const Query& query, float* values) {
    const int32_t e = args.cache.head_dim;
    float* const out = args.out ? args.out + query.row * args.ldo + query.head * e : values;
    for (int32_t d = 0; d < e; d += kLanes)
        store_n(out + d, div(load(values + d), splat(query.sum)), e - d < kLanes ? e - d : kLanes);
    OperandWriter(args.operand, args.rows, args.num_heads * e)
        .write(query.row, query.head * e, (query.head + 1) * e, out);
}

// Rows [begin, end) of one slot: up to kTileRows.
int64_t end_of_tile(const PagedAttentionArgs& args, int64_t begin) {
    int64_t end = begin + 1;
    while (end < args.rows && end - begin < kTileRows &&
           args.index.row_slot[end] == args.index.row_slot[begin])
        ++end;
    return end;
}

// A thread's share of query heads that cost `head_cost` each, in the order in which they are asked for.
class CostShare {
  public:
    CostShare(int64_t total, const Worker& worker)
        : begin_(total * worker.thread_idx / worker.num_threads),
          end_(total * (worker.thread_idx + 1) / worker.num_threads) {}

    // Of the next `num_heads` those whose middle lies in the share.
    Span take_heads(int32_t num_heads, int64_t head_cost) {
        Span heads = {num_heads, 0};
        for (int32_t h = 0; h < num_heads; ++h, at_ += head_cost) {
            const int64_t middle = at_ + head_cost / 2;
            if (middle < begin_ || middle >= end_) continue;
            heads = {h < heads.begin ? h : heads.begin, h + 1};
        }
        return heads;
    }

    // Nothing is left.
    bool is_taken() const { return at_ >= end_; }

  private:
    int64_t begin_, end_, at_ = 0;
};

int64_t num_keys(const PagedAttentionArgs& args, int64_t t) {
    return args.index.positions[t] + 1 - first_key(args, t);
}

int64_t row_cost(const PagedAttentionArgs& args, int64_t t) {
    return kRowCost + num_keys(args, t);
}

int64_t cost_of_all(const PagedAttentionArgs& args) {
    int64_t total = 0;
    for (int64_t t = 0; t < args.rows; ++t) total += row_cost(args, t) * args.num_heads;
    return total;
}

// A thread's share of (tile, query head), by the keys that they see.
class Tiles {
  public:
    Tiles(const PagedAttentionArgs& args, const Worker& worker)
        : args_(args), share_(cost_of_all(args), worker) {}

    // The next part of the share that one pass has room for, or false.
    bool next(Tile* part) {
        while (whole_.head_begin >= whole_.head_end) {
            if (whole_.end == args_.rows) return false;
            turn_to_rows(whole_.end);
        }
        const auto rows = static_cast<int32_t>(whole_.end - whole_.begin);
        const int32_t first = whole_.head_begin;
        int32_t h = first;
        while (h < whole_.head_end && (h + 1 - first) * rows <= kMaxQueries &&
               (rows == 1 || args_.kv_of_head[h] == args_.kv_of_head[first]))
            ++h;
        *part = {whole_.begin, whole_.end, first, h};
        whole_.head_begin = h;
        return true;
    }

  private:
    void turn_to_rows(int64_t begin) {
        const int64_t end = end_of_tile(args_, begin);
        int64_t head_cost = 0;
        for (int64_t t = begin; t < end; ++t) head_cost += row_cost(args_, t);
        const Span heads = share_.take_heads(args_.num_heads, head_cost);
        whole_ = {begin, end, heads.begin, heads.end};
    }

    const PagedAttentionArgs& args_;
    CostShare share_;
    Tile whole_ = {0, 0, 0, 0};
};

template <class Element>
void attend_share(const PagedAttentionArgs& args, const Worker& worker) {
    Tiles tiles(args, worker);
    Tile tile, next;
    bool is_first = true;
    for (bool more = tiles.next(&tile); more; tile = next, is_first = false) {
        more = tiles.next(&next);
        Pass<Element> pass;
        load_queries(args, tile, &pass);
        const Span keys = keys_of(args, tile);
        const int32_t first = partition_of(keys.begin) * kPartitionSize;
        for (int32_t p = first; p < keys.end; p += kPartitionSize) {
            Ahead ahead(args.q);
            if (is_first && p == first) add_partition(args, tile, p, false, &ahead);
            if (p + kPartitionSize < keys.end)
                add_partition(args, tile, p + kPartitionSize, true, &ahead);
            else if (more)
                add_partition(args, next, partition_of(keys_of(args, next).begin) * kPartitionSize, true,
                              &ahead);
            attend_partition(args, tile, p, &pass, &ahead);
        }
        for (int32_t i = 0; i < pass.num_queries; ++i) write_out(args, pass.queries[i], pass.values[i]);
    }
}

int32_t num_partitions(Span keys) {
    return partition_of(keys.end - 1) - partition_of(keys.begin) + 1;
}

// Rows fewer than the threads, each of a slot of its own, and long. Of others shares of query heads serve as
// well, and wait for nobody.
bool divides_partitions(const PagedAttentionArgs& args, int32_t num_threads) {
    if (!args.parts || args.rows >= num_threads) return false;
    int32_t num = 0;
    for (int64_t t = 0; t < args.rows; ++t) {
        if (end_of_tile(args, t) > t + 1) return false;
        num += num_partitions(keys_of(args, tile_of_row(t)));
    }
    return num >= 2 * num_threads && num <= max_partitions(args.index.max_blocks);
}

// What query heads found of the partitions of all rows, to be merged: of each {values [E], highest, sum}.
class Parts {
  public:
    explicit Parts(const PagedAttentionArgs& args)
        : floats_(args.parts),
          num_heads_(args.num_heads),
          e_(args.cache.head_dim),
          stride_(partition_part_floats(args.cache.head_dim)) {}

    void keep(int32_t partition, const Query& query, const float* values) const {
        float* const to = at(partition, query.head);
        for (int32_t d = 0; d < e_; d += kLanes) store(to + d, load(values + d));
        to[stride_ - 2] = query.highest;
        to[stride_ - 1] = query.sum;
    }

    void merge_into(Query* query, float* values, int32_t partition) const {
        const float* const from = at(partition, query->head);
        merge(query, values, from[stride_ - 2], from[stride_ - 1], from, e_);
    }

  private:
    float* at(int32_t partition, int32_t head) const {
        return floats_ + (int64_t{partition} * num_heads_ + head) * stride_;
    }

    float* floats_;
    int32_t num_heads_, e_;
    int64_t stride_;
};

// A thread's share of (partition, query head) of all rows.
template <class Element>
void find_parts(const PagedAttentionArgs& args, const Worker& worker, const Parts& parts) {
    int64_t total = 0;
    for (int64_t t = 0; t < args.rows; ++t) total += num_keys(args, t) * args.num_heads;
    CostShare share(total, worker);
    int32_t partition = 0;
    bool is_first = true;
    for (int64_t t = 0; t < args.rows; ++t) {
        const Span keys = keys_of(args, tile_of_row(t));
        for (int32_t p = partition_of(keys.begin) * kPartitionSize; p < keys.end;
             p += kPartitionSize, ++partition) {
            const auto [begin, end] = keys_within(keys, p);
            const Span heads = share.take_heads(args.num_heads, end - begin);
            for (int32_t h = heads.begin; h < heads.end; h += kMaxQueries) {
                const Tile tile = {t, t + 1, h, h + kMaxQueries < heads.end ? h + kMaxQueries : heads.end};
                Pass<Element> pass;
                load_queries(args, tile, &pass);
                Ahead ahead(args.q);
                if (is_first) add_partition(args, tile, p, false, &ahead);
                if (p + kPartitionSize < keys.end && !share.is_taken())
                    add_partition(args, tile, p + kPartitionSize, true, &ahead);
                attend_partition(args, tile, p, &pass, &ahead);
                for (int32_t i = 0; i < pass.num_queries; ++i)
                    parts.keep(partition, pass.queries[i], pass.values[i]);
                is_first = false;
            }
        }
    }
}

// In the order in which one thread would have: the same bits.
void merge_parts(const PagedAttentionArgs& args, const Worker& worker, const Parts& parts) {
    const Share share = share_of(args.rows * args.num_heads, worker);
    int32_t partition = 0;
    for (int64_t t = 0; t < args.rows; ++t) {
        const Span keys = keys_of(args, tile_of_row(t));
        const int32_t end = partition + num_partitions(keys);
        for (int32_t h = 0; h < args.num_heads; ++h) {
            const int64_t item = t * args.num_heads + h;
            if (item < share.begin || item >= share.end) continue;
            alignas(64) float values[kMaxHeadDim];
            Query query = {keys.begin, keys.end, t, h, 0.0f, 0.0f};
            for (int32_t p = partition; p < end; ++p) parts.merge_into(&query, values, p);
            write_out(args, query, values);
        }
        partition = end;
    }
}

template <class Element>
void attend_all(const PagedAttentionArgs& args, const Worker& worker) {
    if (!divides_partitions(args, worker.num_threads)) return attend_share<Element>(args, worker);
    const Parts parts(args);
    find_parts<Element>(args, worker, parts);
    team_barrier(worker);
    merge_parts(args, worker, parts);
}

}  // namespace

void merge(Query* query, float* values, float highest, float sum, const float* part, int32_t e) {
    if (query->sum == 0.0f) {  // the first partition
        query->highest = highest;
        query->sum = sum;
        for (int32_t d = 0; d < e; d += kLanes) store(values + d, load(part + d));
        return;
    }
    const float top = highest > query->highest ? highest : query->highest;
    const Vec keep = exp(splat(query->highest - top)), gain = exp(splat(highest - top));
    query->highest = top;
    query->sum = reduce_max(fma(splat(sum), gain, mul(splat(query->sum), keep)));  // all lanes are equal
    for (int32_t d = 0; d < e; d += kLanes)
        store(values + d, fma(load(part + d), gain, mul(load(values + d), keep)));
}

void paged_attention(const PagedAttentionArgs& args, const Worker& worker) {
    switch (args.cache.type) {
        case KvType::f32:
            return attend_all<float>(args, worker);
        case KvType::bf16:
            return attend_all<uint16_t>(args, worker);
        case KvType::int8:
            return attend_all<uint8_t>(args, worker);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
