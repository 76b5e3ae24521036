#include "program/program.h"

#include <sys/mman.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "ring/exchange.h"

namespace fastserve {

Pages::Pages(size_t bytes) : size_(bytes ? bytes : 1) {
    void* address =
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED)
        throw std::system_error(errno, std::generic_category(),
                                "cannot map " + std::to_string(bytes) + " bytes");
    data_ = static_cast<uint8_t*>(address);
    madvise(data_, size_, MADV_HUGEPAGE);  // a hint: ordinary pages serve as well
}

Pages::~Pages() {
    munmap(data_, size_);
}

Program::Program(SlotLimits limits, std::shared_ptr<Exchange> exchange, int32_t activation_bits)
    : table_(op_table()),
      slots_(std::move(limits)),
      exchange_(std::move(exchange)),
      activation_bits_(activation_bits) {
    if (activation_bits != 14 && activation_bits != 8)
        throw std::invalid_argument("activation_bits must be 14 or 8, got " +
                                    std::to_string(activation_bits));
}

void Program::allocate_arena(size_t bytes) {
    arena_ = std::make_unique<Pages>(bytes);
}

float* Program::buffer(size_t offset) const {
    if (!arena_ || offset >= arena_->size() || offset % sizeof(float))
        throw std::out_of_range("no arena at offset " + std::to_string(offset));
    return reinterpret_cast<float*>(arena_->data() + offset);
}

KvCache Program::add_kv_cache(KvType type, int32_t num_blocks, int32_t num_kv_heads, int32_t head_dim) {
    const size_t num_head_blocks = static_cast<size_t>(num_blocks) * num_kv_heads;
    const size_t k_bytes = num_head_blocks * key_block_bytes(type, head_dim);
    kv_.push_back(std::make_unique<Pages>(k_bytes + num_head_blocks * value_block_bytes(type, head_dim)));
    uint8_t* data = kv_.back()->data();
    return {data, data + k_bytes, type, num_blocks, num_kv_heads, head_dim};
}

const float* Program::keep(std::vector<float> values) {
    kept_floats_.push_back(std::make_unique<std::vector<float>>(std::move(values)));
    return kept_floats_.back()->data();
}

const int32_t* Program::keep(std::vector<int32_t> values) {
    kept_ints_.push_back(std::make_unique<std::vector<int32_t>>(std::move(values)));
    return kept_ints_.back()->data();
}

int32_t Program::rows_of(const Op& op) const {
    return op.rows == Rows::tokens ? slots_.num_tokens() : slots_.num_samples();
}

// Whether every thread goes on with what it has made for itself.
bool Program::leaves_copies(const Op& op) const {
    const auto* args = std::get_if<MatmulAllReduceArgs>(&op.args);
    return args && args->norm.operand.copy_rows > 0 && rows_of(op) <= args->norm.operand.copy_rows;
}

void Program::run(const Op& op, const Worker& worker) {
    const OpTable& table = table_;
    const int32_t rows = rows_of(op);
    if (rows == 0) return;
    const auto with_rows = [rows](auto args) {
        args.rows = rows;
        return args;
    };
    std::visit(Overloaded{
                   [&](const EmbedArgs& a) { table.embed(with_rows(a), worker); },
                   [&](const RmsNormArgs& a) { table.rms_norm(with_rows(a), worker); },
                   [&](const MatmulArgs& a) { table.matmul(with_rows(a), worker); },
                   [&](const RotaryArgs& a) { table.rotary(with_rows(a), worker); },
                   [&](const StoreKvArgs& a) { table.store_kv(with_rows(a), worker); },
                   [&](RotaryStoreKvArgs a) {
                       a.rotary.rows = a.store.rows = rows;
                       table.rotary_store_kv(a, worker);
                   },
                   [&](const PagedAttentionArgs& a) { table.paged_attention(with_rows(a), worker); },
                   [&](const SiluMulArgs& a) { table.silu_mul(with_rows(a), worker); },
                   [&](const SelectRowsArgs& a) { table.select_rows(with_rows(a), worker); },
                   [&](const SampleArgs& a) { table.sample(with_rows(a), worker); },
                   [&](MatmulAllReduceArgs a) {
                       a.matmul.rows = rows;
                       table.matmul_all_reduce(a, worker);
                   },
               },
               op.args);
}

void Program::commit_faults(std::vector<Fault> faults) {
    faults_.reset();
    for (const Fault& fault : faults)
        if (!fault.op.empty() && !is_op_name(fault.op))
            throw std::invalid_argument("a program has no op called '" + fault.op + "'");
    if (!faults.empty()) faults_ = std::make_unique<Faults>(std::move(faults), exchange_.get());
}

// By thread 0, before and after its part of the op.
void Program::begin_op(size_t idx) {
    if (exchange_) exchange_->beat();
    if (faults_) [[unlikely]]
        faults_->before(name_of(ops_[idx].args));
}

// Every thread leaves after the same op: thread 0 says so before the barrier behind that op, and who reads it
// early, one barrier before, finds an op that is still to come.
void Program::end_op(size_t idx) {
    if (faults_) [[unlikely]]
        faults_->after();
    if (exchange_ && exchange_->failed() && idx < last_op_.load(std::memory_order_relaxed))
        last_op_.store(idx, std::memory_order_relaxed);
}

void Program::run_timed(size_t idx, const Worker& worker) {
    if (rows_of(ops_[idx]) == 0) return;
    const int64_t begin_ns = Timeline::now_ns();
    run(ops_[idx], worker);
    timeline_->add(idx, worker.thread_idx, {begin_ns, Timeline::now_ns()});
}

void Program::end_timed_pass(uint32_t num_barriers) {
    std::vector<OpCost> costs;
    for (const Op& op : ops_) costs.push_back(cost_of(op.args, rows_of(op)));
    timeline_->end_pass(slots_.num_tokens(), slots_.num_samples(), num_barriers, std::move(costs));
}

bool Program::replay(Team& team) {
    last_op_.store(ops_.size(), std::memory_order_relaxed);
    if (timeline_) timeline_->begin_pass(ops_.size(), team.size());
    const uint32_t barriers_before = team.num_barriers();
    team.run([this](const Worker& worker) {
        for (size_t i = 0; i < ops_.size(); ++i) {
            if (worker.thread_idx == 0) begin_op(i);
            if (timeline_) [[unlikely]]
                run_timed(i, worker);
            else
                run(ops_[i], worker);
            if (worker.thread_idx == 0) end_op(i);
            if (i + 1 == ops_.size()) return;  // a run ends in a barrier
            if (leaves_copies(ops_[i])) continue;
            team_barrier(worker);
            if (i >= last_op_.load(std::memory_order_relaxed)) return;
        }
    });
    if (exchange_ && exchange_->failed()) return false;
    if (timeline_) end_timed_pass(team.num_barriers() - barriers_before);
    slots_.commit();
    return true;
}

}  // namespace fastserve
