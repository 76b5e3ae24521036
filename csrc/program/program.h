// A recorded forward pass and the loop that replays it.
//
// Recording appends ops with fixed addresses: buffers lie in one arena whose offsets the recorder planned
// from their lifetimes, weights and KV blocks never move, and the rows of a step are written by the SlotTable
// to fixed arrays. Replaying fills in the row counts and calls op after op on a team of threads, with a
// barrier between: no allocation, no lock, no Python.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "cpu/threads.h"
#include "ops.h"
#include "program/faults.h"
#include "program/op.h"
#include "program/slots.h"
#include "program/timeline.h"

namespace fastserve {

// Anonymous zeroed memory, page aligned, in huge pages where the kernel grants them.
class Pages {
  public:
    explicit Pages(size_t bytes);
    ~Pages();
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    uint8_t* data_;
    size_t size_;
};

class Program {
  public:
    // exchange may be null: a group of one. activation_bits: of the matmuls that are appended. Throws what
    // op_table() throws, std::invalid_argument.
    Program(SlotLimits limits, std::shared_ptr<Exchange> exchange, int32_t activation_bits = 14);

    SlotTable& slots() { return slots_; }
    Exchange* exchange() const { return exchange_.get(); }
    int32_t activation_bits() const { return activation_bits_; }

    void allocate_arena(size_t bytes);
    float* buffer(size_t offset) const;  // throws std::out_of_range beyond the arena
    // Room for the KV blocks of one layer, bound to the program's life.
    KvCache add_kv_cache(KvType type, int32_t num_blocks, int32_t num_kv_heads, int32_t head_dim);
    // A copy that lives as long as the program.
    const float* keep(std::vector<float> values);
    const int32_t* keep(std::vector<int32_t> values);
    void append(Op op) { ops_.push_back(std::move(op)); }
    const std::vector<Op>& ops() const { return ops_; }

    // For tests; replaces those that were there. Throws std::invalid_argument.
    void commit_faults(std::vector<Fault> faults);

    // From the next pass on, each is timed; only while nothing is replayed. Null before.
    void record_timeline() { timeline_ = std::make_unique<Timeline>(); }
    Timeline* timeline() const { return timeline_.get(); }

    // One forward pass over the rows that slots().apply laid out. False if the exchange failed: nothing was
    // taken in, and what was left of the pass was left out.
    bool replay(Team& team);

  private:
    int32_t rows_of(const Op& op) const;
    bool leaves_copies(const Op& op) const;
    void run(const Op& op, const Worker& worker);
    void run_timed(size_t idx, const Worker& worker);
    void end_timed_pass(uint32_t num_barriers);
    void begin_op(size_t idx);
    void end_op(size_t idx);

    const OpTable& table_;
    SlotTable slots_;
    std::shared_ptr<Exchange> exchange_;
    int32_t activation_bits_;
    std::unique_ptr<Pages> arena_;
    std::vector<std::unique_ptr<Pages>> kv_;
    std::vector<std::unique_ptr<std::vector<float>>> kept_floats_;
    std::vector<std::unique_ptr<std::vector<int32_t>>> kept_ints_;
    std::vector<Op> ops_;
    std::unique_ptr<Faults> faults_;
    std::unique_ptr<Timeline> timeline_;
    std::atomic<size_t> last_op_{0};  // of the pass under way: it may end before the last one
};

}  // namespace fastserve
