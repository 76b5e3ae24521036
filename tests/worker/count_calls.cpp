// Preloaded into a process: counts what each thread asks of the allocator, of mutexes and of the kernel (by
// libc's wrappers), for a test that wants a steady step to ask nothing.
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace {

enum Kind { kAllocation, kLock, kSyscall, kYield, kNumKinds };
constexpr int kMaxThreads = 256;

struct Row {
    std::atomic<int> tid;
    std::atomic<int64_t> counts[kNumKinds];
};
Row rows[kMaxThreads];
std::atomic<int> num_rows{0};
__thread Row* own_row __attribute__((tls_model("initial-exec"))) = nullptr;

void count(Kind kind) {
    if (own_row == nullptr) {
        const int row = num_rows.fetch_add(1);
        if (row >= kMaxThreads) return;
        own_row = &rows[row];
        own_row->tid = static_cast<int>(gettid());
    }
    own_row->counts[kind].fetch_add(1, std::memory_order_relaxed);
}

template <class Function>
Function* next(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

// What a thread has asked for so far; false if it never asked for anything.
bool counts_of(int tid, int64_t* counts) {
    for (int row = 0; row < num_rows && row < kMaxThreads; ++row) {
        if (rows[row].tid != tid) continue;
        for (int kind = 0; kind < kNumKinds; ++kind) counts[kind] = rows[row].counts[kind];
        return true;
    }
    return false;
}

void* malloc(size_t size) {
    count(kAllocation);
    return __libc_malloc(size);
}
void* calloc(size_t number, size_t size) {
    count(kAllocation);
    return __libc_calloc(number, size);
}
void* realloc(void* old, size_t size) {
    count(kAllocation);
    return __libc_realloc(old, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
    count(kAllocation);
    return __libc_memalign(alignment, size);
}
int posix_memalign(void** result, size_t alignment, size_t size) {
    count(kAllocation);
    *result = __libc_memalign(alignment, size);
    return *result == nullptr ? 12 : 0;
}
void free(void* memory) {
    if (memory != nullptr) count(kAllocation);
    __libc_free(memory);
}

int pthread_mutex_lock(pthread_mutex_t* mutex) {
    static auto* const original = next<int(pthread_mutex_t*)>("pthread_mutex_lock");
    count(kLock);
    return original(mutex);
}

long syscall(long number, ...) {
    static auto* const original = next<long(long, ...)>("syscall");
    count(kSyscall);
    va_list list;
    va_start(list, number);
    long arguments[6];
    for (long& argument : arguments) argument = va_arg(list, long);
    va_end(list);
    return original(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                    arguments[5]);
}
int sched_yield() {
    static auto* const original = next<int()>("sched_yield");
    count(kYield);
    return original();
}
int nanosleep(const timespec* time, timespec* left) {
    static auto* const original = next<int(const timespec*, timespec*)>("nanosleep");
    count(kSyscall);
    return original(time, left);
}
int poll(pollfd* fds, nfds_t number, int timeout) {
    static auto* const original = next<int(pollfd*, nfds_t, int)>("poll");
    count(kSyscall);
    return original(fds, number, timeout);
}
ssize_t read(int fd, void* to, size_t size) {
    static auto* const original = next<ssize_t(int, void*, size_t)>("read");
    count(kSyscall);
    return original(fd, to, size);
}
ssize_t write(int fd, const void* from, size_t size) {
    static auto* const original = next<ssize_t(int, const void*, size_t)>("write");
    count(kSyscall);
    return original(fd, from, size);
}

}  // extern "C"
