// sample: draws a token for each row from logits that are sharded over the vocabulary.
//
// Plain rows need no more than the best score: a rank finds the best of its columns and the ranks exchange
// {score, id}, 8 bytes a row. Rows that need the whole distribution (top-k, top-p, min-p, logprobs, a target)
// are gathered, worked on by one rank and one thread each, and the outcomes exchanged. Both paths draw with
// the same noise and the same arithmetic (sample_draw.h), so filters that keep a token do not change who
// wins.
//
// All ranks take the same branches: they hold the same rows' states. After a failed exchange what it returned
// is garbage: then every id and size is bounded before it is used, and what a branch depends on is read by
// one thread.
#include "cpu/kernels.h"
#include "cpu/sample_row.h"
#include "cpu/sample_scratch.h"
#include "cpu/share.h"
#include "ring/exchange.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

struct Shard {
    int32_t begin, n;
};

struct Scratch {
    Candidate* candidates;
    Candidate* records;
    Shard* shards;
    SampleOut* outs;
    float* padded;
    float* gathered;
    RowScratch row;  // this thread's
};

Scratch lay_out(const SampleArgs& args, const Worker& worker) {
    const SampleScratchLayout layout = sample_scratch_layout(worker.num_threads, args.vocab_size);
    float* base = args.scratch;
    float* row = base + layout.work + 3 * int64_t{worker.thread_idx} * args.vocab_size;
    return {reinterpret_cast<Candidate*>(base + layout.candidates),
            reinterpret_cast<Candidate*>(base + layout.records),
            reinterpret_cast<Shard*>(base + layout.shards),
            reinterpret_cast<SampleOut*>(base + layout.outs),
            base + layout.padded,
            base + layout.gathered,
            {row, row + args.vocab_size, reinterpret_cast<int32_t*>(row + 2 * int64_t{args.vocab_size})}};
}

int32_t bounded(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

int32_t num_ranks(const SampleArgs& args) {
    return args.exchange ? args.exchange->size() : 1;
}

// The best of each piece of each plain row: pieces are columns, so that a single row keeps the whole team
// busy.
void draw_pieces(const SampleArgs& args, const Worker& worker, int32_t first_row, int32_t num_rows,
                 int32_t pieces, Candidate* candidates) {
    const int32_t columns = ((args.n + pieces - 1) / pieces + kNoiseGroup - 1) / kNoiseGroup * kNoiseGroup;
    const Share share = share_of(int64_t{num_rows} * pieces, worker);
    for (int64_t item = share.begin; item < share.end; ++item) {
        const int64_t s = first_row + item / pieces;
        const int64_t begin = item % pieces * columns;
        candidates[item] = {kNoScore, INT32_MAX};
        if (begin >= args.n || needs_whole_row(args.sample_rows[s])) continue;
        const int32_t n = static_cast<int32_t>(args.n - begin < columns ? args.n - begin : columns);
        candidates[item] = draw_plain(args.logits + s * args.ldl + begin,
                                      args.vocab_begin + static_cast<int32_t>(begin), n, args.sample_rows[s]);
    }
}

void report_plain(int32_t token, const SampleArgs& args, int64_t s) {
    args.out[s].token = bounded(token, 0, args.vocab_size - 1);
    args.out[s].logprob = 0.0f;
    args.out[s].rank = 0;
    args.out[s].num_top = 0;
}

// records [num_rows] of every rank -> the winners.
void merge_ranks(const SampleArgs& args, const Worker& worker, int32_t first_row, int32_t num_rows,
                 const Candidate* records) {
    size_t stride = 0;
    const uint8_t* all = args.exchange->all_gather(records, sizeof(Candidate) * num_rows, &stride, worker);
    const Share share = share_of(num_rows, worker);
    for (int64_t i = share.begin; i < share.end; ++i) {
        if (needs_whole_row(args.sample_rows[first_row + i])) continue;
        Candidate best{kNoScore, INT32_MAX};
        for (int32_t rank = 0; rank < num_ranks(args); ++rank) {
            Candidate record;
            __builtin_memcpy(&record, all + rank * stride + sizeof record * i, sizeof record);
            best = better(best, record);
        }
        report_plain(best.id, args, first_row + i);
    }
}

void sample_plain_batch(const SampleArgs& args, const Worker& worker, int32_t first_row, int32_t num_rows,
                        const Scratch& scratch) {
    const int32_t wanted = (kPiecesPerThread * worker.num_threads + num_rows - 1) / num_rows;
    const int32_t pieces = worker.num_threads > 1 ? wanted : 1;
    draw_pieces(args, worker, first_row, num_rows, pieces, scratch.candidates);
    team_barrier(worker);
    const Share share = share_of(num_rows, worker);
    for (int64_t i = share.begin; i < share.end; ++i) {
        Candidate best{kNoScore, INT32_MAX};
        for (int32_t piece = 0; piece < pieces; ++piece)
            best = better(best, scratch.candidates[i * pieces + piece]);
        scratch.records[i] = best;
        if (num_ranks(args) == 1 && !needs_whole_row(args.sample_rows[first_row + i]))
            report_plain(best.id, args, first_row + i);
    }
    if (num_ranks(args) > 1) merge_ranks(args, worker, first_row, num_rows, scratch.records);
}

// Returns the number of rows that need their whole distribution.
int32_t sample_plain_rows(const SampleArgs& args, const Worker& worker, const Scratch& scratch) {
    int32_t num_whole = 0;
    for (int32_t first = 0; first < args.rows; first += kPlainBatch) {
        const int32_t num_rows = bounded(args.rows - first, 0, kPlainBatch);
        int32_t num_plain = num_rows;
        for (int32_t i = 0; i < num_rows; ++i)
            num_plain -= needs_whole_row(args.sample_rows[first + i]) ? 1 : 0;
        num_whole += num_rows - num_plain;
        if (num_plain == 0) continue;
        if (first > 0) team_barrier(worker);  // the last batch's candidates are read
        sample_plain_batch(args, worker, first, num_rows, scratch);
    }
    return num_whole;
}

void sample_whole_rows_alone(const SampleArgs& args, const Worker& worker, const Scratch& scratch) {
    int32_t idx = 0;
    for (int64_t s = 0; s < args.rows; ++s) {
        const SampleRow& row = args.sample_rows[s];
        if (!needs_whole_row(row) || idx++ % worker.num_threads != worker.thread_idx) continue;
        sample_whole_row(args.logits + s * args.ldl, args.vocab_size, row, scratch.row, &args.out[s]);
    }
}

// Which columns each rank holds; returns the widest shard.
int32_t gather_shards(const SampleArgs& args, const Worker& worker, Shard* shards) {
    const Shard mine{args.vocab_begin, args.n};
    size_t stride = 0;
    if (worker.thread_idx == 0) shards[0] = mine;
    const uint8_t* all = args.exchange->all_gather(&shards[0], sizeof mine, &stride, worker);
    if (worker.thread_idx == 0) {
        for (int32_t rank = 0; rank < num_ranks(args); ++rank) {
            Shard shard;
            __builtin_memcpy(&shard, all + rank * stride, sizeof shard);
            shard.begin = bounded(shard.begin, 0, args.vocab_size);
            shard.n = bounded(shard.n, 0, args.vocab_size - shard.begin);
            shards[rank] = shard;
        }
    }
    team_barrier(worker);
    int32_t widest = 0;
    for (int32_t rank = 0; rank < num_ranks(args); ++rank)
        widest = shards[rank].n > widest ? shards[rank].n : widest;
    return widest;
}

// Exchanges one row of logits; the rank that wants it passes where it goes, [V], the others null.
void gather_row(const SampleArgs& args, const Worker& worker, const float* logits, int32_t widest,
                const Scratch& scratch, float* whole) {
    const int32_t capacity = static_cast<int32_t>(
        bounded(static_cast<int32_t>(args.exchange->gather_capacity() / sizeof(float) & 0x7fffffff), 1,
                args.vocab_size));
    for (int32_t begin = 0; begin < widest; begin += capacity) {
        const int32_t n = bounded(widest - begin, 0, capacity);
        const float* mine = logits + begin;
        if (begin + n > args.n) {  // the widest shard is another's
            if (worker.thread_idx == 0)
                for (int32_t i = 0; i < n; ++i)
                    scratch.padded[i] = begin + i < args.n ? logits[begin + i] : 0.0f;
            mine = scratch.padded;
        }
        size_t stride = 0;
        const uint8_t* all = args.exchange->all_gather(mine, sizeof(float) * n, &stride, worker);
        if (!whole) continue;
        for (int32_t rank = 0; rank < num_ranks(args); ++rank) {
            const Shard shard = scratch.shards[rank];
            const Share share = share_of(bounded(shard.n - begin, 0, n), worker);
            __builtin_memcpy(whole + shard.begin + begin + share.begin,
                             all + rank * stride + sizeof(float) * share.begin,
                             sizeof(float) * static_cast<size_t>(share.end - share.begin));
        }
    }
}

// outs [num_rows] of every rank -> out; row j of the wave was rank j % R's, its number j / R.
void gather_outs(const SampleArgs& args, const Worker& worker, const int32_t* wave, int32_t num_wave,
                 const SampleOut* outs) {
    const int32_t ranks = num_ranks(args);
    const int32_t capacity =
        bounded(static_cast<int32_t>(args.exchange->gather_capacity() / sizeof(SampleOut) & 0x7fffffff), 1,
                kWaveRows);
    const int32_t num_outs = (num_wave + ranks - 1) / ranks;
    for (int32_t begin = 0; begin < num_outs; begin += capacity) {
        const int32_t n = bounded(num_outs - begin, 0, capacity);
        size_t stride = 0;
        const uint8_t* all = args.exchange->all_gather(outs + begin, sizeof(SampleOut) * n, &stride, worker);
        for (int32_t j = begin * ranks + worker.thread_idx; j < num_wave && j < (begin + n) * ranks;
             j += worker.num_threads) {
            SampleOut* out = &args.out[wave[j]];
            __builtin_memcpy(out, all + j % ranks * stride + sizeof(SampleOut) * (j / ranks - begin),
                             sizeof *out);
            out->token = bounded(out->token, 0, args.vocab_size - 1);
            out->num_top = bounded(out->num_top, 0, kMaxTopLogprobs);
        }
    }
}

// wave [num_wave]: rows, at most kWaveRows for each rank.
void sample_wave(const SampleArgs& args, const Worker& worker, const int32_t* wave, int32_t num_wave,
                 int32_t widest, const Scratch& scratch) {
    const int32_t ranks = num_ranks(args), rank = args.exchange->rank();
    for (int32_t j = 0; j < num_wave; ++j) {
        float* whole = j % ranks == rank ? scratch.gathered + int64_t{j / ranks} * args.vocab_size : nullptr;
        gather_row(args, worker, args.logits + wave[j] * args.ldl, widest, scratch, whole);
    }
    team_barrier(worker);
    for (int32_t i = worker.thread_idx; i * ranks + rank < num_wave; i += worker.num_threads)
        sample_whole_row(scratch.gathered + int64_t{i} * args.vocab_size, args.vocab_size,
                         args.sample_rows[wave[i * ranks + rank]], scratch.row, &scratch.outs[i]);
    gather_outs(args, worker, wave, num_wave, scratch.outs);
}

void sample_whole_rows_in_group(const SampleArgs& args, const Worker& worker, const Scratch& scratch) {
    const int32_t widest = gather_shards(args, worker, scratch.shards);
    const int32_t max_wave = kWaveRows * num_ranks(args);
    int32_t wave[kWaveRows * kMaxShards];
    int32_t num_wave = 0;
    for (int32_t s = 0; s < args.rows; ++s) {
        if (needs_whole_row(args.sample_rows[s])) wave[num_wave++] = s;
        if (num_wave == 0 || (num_wave < max_wave && s + 1 < args.rows)) continue;
        sample_wave(args, worker, wave, num_wave, widest, scratch);
        num_wave = 0;
    }
}

}  // namespace

void sample(const SampleArgs& args, const Worker& worker) {
    if (args.rows == 0) return;
    const Scratch scratch = lay_out(args, worker);
    if (sample_plain_rows(args, worker, scratch) == 0) return;
    if (num_ranks(args) == 1)
        sample_whole_rows_alone(args, worker, scratch);
    else
        sample_whole_rows_in_group(args, worker, scratch);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
