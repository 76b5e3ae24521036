// Compiled without sanitizers: what a switch does is not part of the program that they watch.
#include "fiber.h"

#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// There only in a program that is linked with the sanitizer.
extern "C" {
void* __tsan_get_current_fiber() __attribute__((weak));
void* __tsan_create_fiber(unsigned flags) __attribute__((weak));
void __tsan_destroy_fiber(void* fiber) __attribute__((weak));
void __tsan_switch_to_fiber(void* fiber, unsigned flags) __attribute__((weak));
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size)
    __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void* begin, size_t size) __attribute__((weak));
}

namespace fastserve::cuda_host {

namespace {

constexpr unsigned kNoSync = 1;  // __tsan_switch_to_fiber_no_sync

#if defined(__x86_64__)

// Pushes what the System V ABI asks a callee to keep, swaps stacks, pops.
extern "C" void fastserve_switch(void** save, void* load);
asm(R"(
    .text
    .type fastserve_switch, @function
fastserve_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size fastserve_switch, . - fastserve_switch
    .type fastserve_first, @function
fastserve_first:
    movq %rbx, %rdi
    callq *%r12
    hlt
    .size fastserve_first, . - fastserve_first
)");
extern "C" void fastserve_first();

// As fastserve_switch would have left it: six registers, then where to return to.
void* first_context(void* stack, size_t stack_bytes, void (*start)(void*), void* argument) {
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + stack_bytes) & ~uintptr_t{15};
    void** words = reinterpret_cast<void**>(top) - 9;  // a call leaves the stack at 8 mod 16
    for (int i = 0; i < 8; ++i) words[i] = nullptr;
    words[3] = reinterpret_cast<void*>(start);  // r12
    words[4] = argument;                        // rbx
    words[6] = reinterpret_cast<void*>(&fastserve_first);
    return words;
}

void swap(void*& save, void* load) {
    fastserve_switch(&save, load);
}

#else

void enter(unsigned start_high, unsigned start_low, unsigned argument_high, unsigned argument_low) {
    const auto join = [](unsigned high, unsigned low) { return uintptr_t{high} << 32 | low; };
    reinterpret_cast<void (*)(void*)>(join(start_high, start_low))(
        reinterpret_cast<void*>(join(argument_high, argument_low)));
}

void* first_context(void* stack, size_t stack_bytes, void (*start)(void*), void* argument) {
    auto* context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = stack_bytes;
    context->uc_link = nullptr;
    const auto s = reinterpret_cast<uintptr_t>(start), a = reinterpret_cast<uintptr_t>(argument);
    makecontext(context, reinterpret_cast<void (*)()>(enter), 4, unsigned(s >> 32), unsigned(s),
                unsigned(a >> 32), unsigned(a));
    return context;
}

void swap(void*& save, void* load) {
    if (save == nullptr) save = new ucontext_t;
    swapcontext(static_cast<ucontext_t*>(save), static_cast<ucontext_t*>(load));
}

#endif

}  // namespace

Fiber::Fiber() {
    if (__tsan_get_current_fiber != nullptr) tsan_fiber_ = __tsan_get_current_fiber();
}

Fiber::Fiber(void (*entry)(void*), void* argument, void* stack, size_t stack_bytes)
    : stack_(stack), stack_bytes_(stack_bytes), entry_(entry), argument_(argument) {
    if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(stack, stack_bytes);
    if (__tsan_create_fiber != nullptr) tsan_fiber_ = __tsan_create_fiber(0);
    context_ = first_context(stack, stack_bytes, &Fiber::start, this);
}

Fiber::~Fiber() {
    if (entry_ != nullptr && __tsan_destroy_fiber != nullptr) __tsan_destroy_fiber(tsan_fiber_);
#if !defined(__x86_64__)
    delete static_cast<ucontext_t*>(context_);
#endif
}

void Fiber::start(void* fiber) {
    Fiber* self = static_cast<Fiber*>(fiber);
    self->arrive();
    self->entry_(self->argument_);
    std::abort();
}

// What AddressSanitizer wants to hear on the new stack: also where the old one, an OS thread's, lies.
void Fiber::arrive() {
    if (__sanitizer_finish_switch_fiber == nullptr) return;
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
    if (came_from_ != nullptr && came_from_->stack_bytes_ == 0) {
        came_from_->stack_ = const_cast<void*>(bottom);
        came_from_->stack_bytes_ = size;
    }
}

void Fiber::switch_to(Fiber& to) {
    to.came_from_ = this;
    if (__sanitizer_start_switch_fiber != nullptr)
        __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.stack_bytes_);
    if (__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(to.tsan_fiber_, kNoSync);
    swap(context_, to.context_);
    arrive();
}

void Fiber::leave_to(Fiber& to) {
    to.came_from_ = this;
    if (__sanitizer_start_switch_fiber != nullptr)
        __sanitizer_start_switch_fiber(nullptr, to.stack_, to.stack_bytes_);
    if (__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(to.tsan_fiber_, kNoSync);
    swap(context_, to.context_);
    std::abort();
}

}  // namespace fastserve::cuda_host
