#include "program/worker_loop.h"

#include <chrono>
#include <exception>

#include "ring/exchange.h"

namespace fastserve {

namespace {

constexpr int kSpinUs = 50;             // covers the gap between two steps that were queued ahead
constexpr int kPollMs = 250;            // an idle rank beats this often; a step wakes it at once
constexpr int kResultTimeoutMs = 5000;  // the engine reads results or is gone

}  // namespace

WorkerLoop::WorkerLoop(std::shared_ptr<Program> program, std::vector<int> cores,
                       std::shared_ptr<Mailbox> steps, int reader, std::shared_ptr<Mailbox> results)
    : program_(std::move(program)),
      cores_(std::move(cores)),
      steps_(std::move(steps)),
      results_(std::move(results)),
      reader_(reader) {}

std::string WorkerLoop::run() {
    pin_current_thread(cores_.at(0));
    Team team(cores_);
    for (;;) {
        const Mailbox::Read read = steps_->read(reader_, message_, kSpinUs, kPollMs);
        Exchange* exchange = program_->exchange();
        if (exchange && exchange->failed()) return "the group ended while this rank was waiting for a step";
        if (exchange) exchange->beat();
        if (read == Mailbox::Read::closed) return "";
        if (read == Mailbox::Read::timeout) continue;
        try {
            const std::string error = run_step(team);
            if (!error.empty()) return error;
        } catch (const std::exception& error) {
            return error.what();
        }
    }
}

std::string WorkerLoop::run_step(Team& team) {
    const auto start = std::chrono::steady_clock::now();
    program_->slots().apply(reinterpret_cast<const int32_t*>(message_.data()), message_.size() / 4);
    if (!program_->replay(team)) return "a rank of the group was lost in the middle of a step";
    const auto elapsed = std::chrono::steady_clock::now() - start;
    if (program_->exchange())
        program_->exchange()->add_step(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count());
    if (!results_) return "";
    const auto elapsed_us = std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
    program_->slots().encode_result(static_cast<int32_t>(elapsed_us), result_);
    if (!results_->write(result_.data(), 4 * result_.size(), kResultTimeoutMs))
        return "the engine reads no results";
    return "";
}

WorkerThread::WorkerThread(std::unique_ptr<WorkerLoop> loop, std::shared_ptr<Mailbox> steps,
                           std::shared_ptr<Mailbox> results)
    : loop_(std::move(loop)), steps_(std::move(steps)), results_(std::move(results)) {
    thread_ = std::thread([this] {
        error_ = loop_->run();
        ended_.store(true, std::memory_order_release);
        results_->close();
    });
}

WorkerThread::~WorkerThread() {
    stop();
}

void WorkerThread::stop() {
    steps_->close();
    if (thread_.joinable()) thread_.join();
}

}  // namespace fastserve
