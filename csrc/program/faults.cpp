#include "program/faults.h"

#include <signal.h>
#include <unistd.h>

#include <stdexcept>
#include <thread>

#include "cpu/threads.h"
#include "ring/exchange.h"

namespace fastserve {

namespace {

void strike(const Fault& fault) {
    switch (fault.action) {
        case FaultAction::kill:
            kill(getpid(), SIGKILL);
            break;
        case FaultAction::stop:
            kill(getpid(), SIGSTOP);
            break;
        case FaultAction::delay:
            std::this_thread::sleep_for(std::chrono::duration<double>(fault.amount));
            break;
        case FaultAction::slow:
            break;
    }
}

}  // namespace

Faults::Faults(std::vector<Fault> faults, Exchange* exchange) : exchange_(exchange) {
    for (Fault& fault : faults) {
        if (fault.segment > 0 && !exchange)
            throw std::invalid_argument("a fault in an exchange needs a group of several ranks");
        if (fault.segment > 0 && fault.action == FaultAction::slow)
            throw std::invalid_argument("slow is for whole ops, not for a segment");
        if (fault.action == FaultAction::slow ? fault.amount < 1.0 : fault.amount < 0.0)
            throw std::invalid_argument("amount must be >= 1 for slow and >= 0 for delay, got " +
                                        std::to_string(fault.amount));
        planned_.push_back({std::move(fault)});
    }
    if (exchange_) exchange_->observe(&Faults::published, this);
}

Faults::~Faults() {
    if (exchange_) exchange_->observe(nullptr, nullptr);
}

void Faults::before(const char* op) {
    slowness_ = 1.0;
    const Fault* in_exchange = nullptr;
    for (Planned& planned : planned_) {
        const Fault& fault = planned.fault;
        if (!fault.op.empty() && fault.op != op) continue;
        ++planned.calls;
        if (fault.call > 0 && planned.calls != fault.call) continue;
        if (fault.segment > 0) {
            in_exchange = &fault;
        } else if (fault.action == FaultAction::slow) {
            slowness_ *= fault.amount;
        } else {
            strike(fault);
        }
    }
    num_published_.store(0, std::memory_order_relaxed);
    in_exchange_ = in_exchange;
    start_ = Clock::now();
    waited_ns_ = exchange_ ? exchange_->waiting_ns() : 0;
}

void Faults::after() {
    if (slowness_ <= 1.0) return;
    const auto now = Clock::now();
    // A slow device does not wait more slowly.
    const std::chrono::nanoseconds waited((exchange_ ? exchange_->waiting_ns() : 0) - waited_ns_);
    const auto end =
        now + std::chrono::duration_cast<Clock::duration>((now - start_ - waited) * (slowness_ - 1));
    while (Clock::now() < end) spin_pause();
}

void Faults::published(void* self) {
    static_cast<Faults*>(self)->count_published();
}

void Faults::count_published() {
    const int64_t count = num_published_.fetch_add(1, std::memory_order_relaxed) + 1;
    if (in_exchange_ && count == in_exchange_->segment) strike(*in_exchange_);
}

}  // namespace fastserve
