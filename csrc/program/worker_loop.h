// What a rank does all day: read a step, replay the program, report what was sampled.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "cpu/threads.h"
#include "program/mailbox.h"
#include "program/program.h"

namespace fastserve {

class WorkerLoop {
  public:
    // The rank reads steps as `reader`; the one with `results` non-null reports. Both outlive the loop.
    WorkerLoop(std::shared_ptr<Program> program, std::vector<int> cores, std::shared_ptr<Mailbox> steps,
               int reader, std::shared_ptr<Mailbox> results);

    // Until the mailbox is closed (returns "") or the step cannot be done (returns why, in one line).
    std::string run();

  private:
    std::string run_step(Team& team);

    std::shared_ptr<Program> program_;
    std::vector<int> cores_;
    std::shared_ptr<Mailbox> steps_, results_;
    int reader_;
    std::vector<uint8_t> message_;
    std::vector<int32_t> result_;
};

// The loop on a thread of its own that never takes the GIL: the rank of a group of one.
class WorkerThread {
  public:
    explicit WorkerThread(std::unique_ptr<WorkerLoop> loop, std::shared_ptr<Mailbox> steps,
                          std::shared_ptr<Mailbox> results);
    ~WorkerThread();
    bool ended() const { return ended_.load(std::memory_order_acquire); }
    std::string error() const { return ended() ? error_ : std::string(); }
    void stop();

  private:
    std::unique_ptr<WorkerLoop> loop_;
    std::shared_ptr<Mailbox> steps_, results_;
    std::string error_;
    std::atomic<bool> ended_{false};
    std::thread thread_;
};

}  // namespace fastserve
