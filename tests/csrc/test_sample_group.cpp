// sample with a vocabulary that is sharded over ranks equals sample alone, bit for bit.
#include "ranks.h"
#include "sample_batch.h"

namespace {

// Ranks with uneven shards, one of them empty, and a different number of threads each, end with the bits of
// one rank alone; 1,040 bytes of exchange cut rows and results in pieces.
void shards_draw_as_one(const OpTable& ops) {
    const Batch batch(3);
    const std::vector<SampleOut> alone = sample_alone(ops, batch.logits, batch.rows, 1);
    const int32_t begins[] = {0, 37, 37, 300};
    for (const size_t capacity : {size_t{1040}, size_t{1} << 16})
        run_ranks(SharedRegion::create(3, capacity, 0), [&](Exchange& exchange) {
            const int32_t begin = begins[exchange.rank()], n = begins[exchange.rank() + 1] - begin;
            const int threads = 1 + exchange.rank() % 2;
            Floats mine;
            for (size_t s = 0; s < batch.rows.size(); ++s) {
                const Floats row = batch.row(s);
                mine.insert(mine.end(), row.begin() + begin, row.begin() + begin + n);
            }
            Floats scratch(static_cast<size_t>(sample_scratch_bytes(threads, batch.v)) / 4, NAN);
            std::vector<SampleOut> out(batch.rows.size());
            run_op(ops.sample,
                   SampleArgs{mine.data(), n, static_cast<int32_t>(batch.rows.size()), n, begin, batch.v,
                              batch.rows.data(), &exchange, scratch.data(), out.data()},
                   threads);
            for (size_t s = 0; s < out.size(); ++s) CHECK(equal(out[s], alone[s]));
            CHECK(!exchange.gave_up());
        });
}

// Once the epoch is raised every wait returns at once with garbage; ids and sizes stay inside their arrays.
void a_lost_group_leaves_ids_in_range(const OpTable& ops) {
    const Batch batch(1);
    const auto region = SharedRegion::create(2, 4096, 0);
    const auto exchange = make_exchange(region, 0);
    std::memset(region->work(1, 0), 0x7f, region->buffer_bytes());
    exchange->raise_epoch();
    Floats mine = batch.logits, scratch(static_cast<size_t>(sample_scratch_bytes(2, batch.v)) / 4, NAN);
    std::vector<SampleOut> out(batch.rows.size());
    run_op(ops.sample,
           SampleArgs{mine.data(), batch.v, static_cast<int32_t>(batch.rows.size()), 150, 0, batch.v,
                      batch.rows.data(), exchange.get(), scratch.data(), out.data()},
           2);
    for (const SampleOut& result : out)
        CHECK(result.token >= 0 && result.token < batch.v && result.num_top >= 0 &&
              result.num_top <= kMaxTopLogprobs);
}

}  // namespace

int main() {
    for_each_isa(shards_draw_as_one);
    for_each_isa(a_lost_group_leaves_ids_in_range);
    return failures() != 0;
}
