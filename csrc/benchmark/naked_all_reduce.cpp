#include "benchmark/naked_all_reduce.h"

#include "cpu/threads.h"
#include "ops.h"

namespace fastserve {

void NakedAllReduce::meet() {
    peer_.value.store(++number_, std::memory_order_release);
    while (own_.value.load(std::memory_order_acquire) < number_) spin_pause();
}

void NakedAllReduce::sum(float* own, float* peer, int64_t count) {
    meet();
    const int64_t begin = rank_ * count / 2;
    const void* parts[] = {own + begin, peer + begin};
    void* outs[] = {own + begin, peer + begin};
    op_table().reduce({.parts = parts,
                       .num_parts = 2,
                       .count = count / 2,
                       .type = DataType::f32,
                       .op = ReduceOp::sum,
                       .average = false,
                       .outs = outs,
                       .num_outs = 2});
    meet();
}

}  // namespace fastserve
