// A fiber: a stack of its own, and a switch that saves what a call must keep.
#pragma once

#include <cstddef>

namespace fastserve::cuda_host {

class Fiber {
  public:
    // Of the calling OS thread itself.
    Fiber();
    // Runs entry(argument) when first switched to; entry must not return.
    Fiber(void (*entry)(void*), void* argument, void* stack, size_t stack_bytes);
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Goes on where `to` was left; returns when somebody switches back. The sanitizers are told;
    // ThreadSanitizer is also told that a switch orders nothing.
    void switch_to(Fiber& to);
    // As switch_to, from a fiber that nobody will switch to again.
    [[noreturn]] void leave_to(Fiber& to);

  private:
    static void start(void* fiber);
    void arrive();

    void* context_ = nullptr;  // saved stack pointer, or ucontext_t
    void* stack_ = nullptr;
    size_t stack_bytes_ = 0;
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
    void* tsan_fiber_ = nullptr;
    void* fake_stack_ = nullptr;
    Fiber* came_from_ = nullptr;
};

}  // namespace fastserve::cuda_host
