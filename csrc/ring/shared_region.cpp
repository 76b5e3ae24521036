#include "ring/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace fastserve {

namespace {

constexpr uint64_t kMagic = 0x676e697265767366;  // "fsvering"
constexpr uint32_t kLayout = 4;
constexpr size_t kPage = 4096;
constexpr size_t kMaxHalfBytes = size_t{1} << 36;
constexpr int kMaxTeamThreads = 4096;
constexpr size_t kMaxExtraBytes = size_t{1} << 36;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

size_t pages(size_t bytes) {
    return (bytes + kPage - 1) / kPage * kPage;
}

[[noreturn]] void refuse(const std::string& what) {
    throw std::runtime_error("not the shared memory of a group: " + what);
}

[[noreturn]] void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

struct SharedRegion::Header {
    uint64_t magic;
    uint32_t layout;
    int32_t num_ranks;
    uint64_t half_bytes, extra_bytes, total_bytes;
    int32_t team_threads;
    alignas(kCacheLines) std::atomic<uint32_t> epoch;  // 0 while the group is whole
    std::atomic<uint32_t> claimed;                     // the first to raise it writes the reason
    std::atomic<int32_t> loss, lost_pid;
    RankSlot slots[kMaxRanks];
};

// A slot holds a chunk, which is at most twice an equal share; or a whole row of fewer panels than ranks.
SharedRegion::SharedRegion(int fd, size_t half_bytes, size_t extra_bytes, int num_ranks, int team_threads)
    : fd_(fd),
      num_ranks_(num_ranks),
      team_threads_(team_threads),
      half_bytes_(half_bytes),
      slot_bytes_(num_ranks > 1 ? pages(2 * half_bytes / static_cast<size_t>(num_ranks)) : 0),
      extra_bytes_(extra_bytes) {
    const size_t ranks = static_cast<size_t>(num_ranks);
    buffers_offset_ = pages(sizeof(Header)) + pages(ranks * kFlagsPerRank * sizeof(Flag));
    extra_offset_ = buffers_offset_ + ranks * buffer_bytes();
    total_bytes_ = extra_offset_ + pages(extra_bytes);
}

std::shared_ptr<SharedRegion> SharedRegion::create(int num_ranks, size_t half_bytes, size_t extra_bytes,
                                                   int team_threads) {
    if (num_ranks < 1 || num_ranks > kMaxRanks)
        throw std::invalid_argument("num_ranks must be in [1, " + std::to_string(kMaxRanks) + "], got " +
                                    std::to_string(num_ranks));
    if (half_bytes < 1 || half_bytes > kMaxHalfBytes)
        throw std::invalid_argument("symmetric_bytes must be in [1, 2^36], got " +
                                    std::to_string(half_bytes));
    if (extra_bytes > kMaxExtraBytes)
        throw std::invalid_argument("extra_bytes must be at most 2^36, got " + std::to_string(extra_bytes));
    if (team_threads < 1 || team_threads > kMaxTeamThreads)
        throw std::invalid_argument("team_threads must be in [1, " + std::to_string(kMaxTeamThreads) +
                                    "], got " + std::to_string(team_threads));
    const int fd = memfd_create("fastserve-group", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) fail("memfd_create");
    std::shared_ptr<SharedRegion> region(
        new SharedRegion(fd, pages(half_bytes), extra_bytes, num_ranks, team_threads));
    if (ftruncate(fd, static_cast<off_t>(region->total_bytes_)) < 0) fail("sizing a group's shared memory");
    if (fcntl(fd, F_ADD_SEALS, kSeals) < 0) fail("sealing a group's shared memory");
    void* memory = mmap(nullptr, region->total_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) fail("mapping a group's shared memory");
    region->memory_ = static_cast<uint8_t*>(memory);
    region->header_ = static_cast<Header*>(memory);
    // A fresh memfd is all zeros: epoch 0, every flag 0, no rank present.
    Header& header = *region->header_;
    header.layout = kLayout;
    header.num_ranks = num_ranks;
    header.team_threads = team_threads;
    header.half_bytes = region->half_bytes_;
    header.extra_bytes = extra_bytes;
    header.total_bytes = region->total_bytes_;
    header.magic = kMagic;
    return region;
}

std::shared_ptr<SharedRegion> SharedRegion::attach(int fd) {
    struct stat status;
    if (fstat(fd, &status) < 0) fail("looking at a group's shared memory");
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & kSeals) != kSeals) refuse("it is no sealed memfd");
    const size_t size = static_cast<size_t>(status.st_size);
    if (size < sizeof(Header)) refuse("it holds " + std::to_string(size) + " bytes");
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) fail("mapping a group's shared memory");
    // Copied before they are checked: a peer may write them at any time.
    const Header& header = *static_cast<const Header*>(memory);
    const uint64_t magic = header.magic, half = header.half_bytes, extra = header.extra_bytes,
                   total = header.total_bytes;
    const uint32_t layout = header.layout;
    const int32_t ranks = header.num_ranks, threads = header.team_threads;
    std::string wrong;
    if (magic != kMagic)
        wrong = "its magic number is wrong";
    else if (layout != kLayout)
        wrong = "its layout is " + std::to_string(layout) + ", this build has " + std::to_string(kLayout);
    else if (ranks < 1 || ranks > kMaxRanks)
        wrong = "it claims " + std::to_string(ranks) + " ranks";
    else if (threads < 1 || threads > kMaxTeamThreads)
        wrong = "it claims teams of " + std::to_string(threads) + " threads";
    else if (half < 1 || half > kMaxHalfBytes || half % kPage || extra > kMaxExtraBytes)
        wrong = "it claims buffers of " + std::to_string(half) + " and " + std::to_string(extra) + " bytes";
    std::shared_ptr<SharedRegion> region;
    if (wrong.empty()) {
        region.reset(new SharedRegion(-1, half, extra, ranks, threads));
        if (region->total_bytes_ != size || total != size) {
            wrong = "it holds " + std::to_string(size) + " bytes, its header implies " +
                    std::to_string(region->total_bytes_);
            region.reset();
        }
    }
    if (!wrong.empty()) {
        munmap(memory, size);
        refuse(wrong);
    }
    region->memory_ = static_cast<uint8_t*>(memory);
    region->header_ = static_cast<Header*>(memory);
    region->fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (region->fd_ < 0) fail("duplicating a descriptor");
    return region;
}

SharedRegion::~SharedRegion() {
    if (memory_) munmap(memory_, total_bytes_);
    if (fd_ >= 0) close(fd_);
}

size_t SharedRegion::buffer_bytes() const {
    return 2 * (half_bytes_ + static_cast<size_t>(num_ranks_) * slot_bytes_);
}

uint8_t* SharedRegion::work(int rank, int half) const {
    return memory_ + buffers_offset_ + static_cast<size_t>(rank) * buffer_bytes() +
           static_cast<size_t>(half) * (buffer_bytes() / 2);
}

uint8_t* SharedRegion::inbox(int owner, int half, int slot) const {
    return work(owner, half) + half_bytes_ + static_cast<size_t>(slot) * slot_bytes_;
}

Flag& SharedRegion::flag(int rank, int32_t idx) const {
    Flag* flags = reinterpret_cast<Flag*>(memory_ + pages(sizeof(Header)));
    return flags[static_cast<size_t>(rank) * kFlagsPerRank + static_cast<size_t>(idx)];
}

RankSlot& SharedRegion::slot(int rank) const {
    return header_->slots[rank];
}

const std::atomic<uint32_t>& SharedRegion::epoch() const {
    return header_->epoch;
}

bool SharedRegion::failed() const {
    return epoch().load(std::memory_order_acquire) != 0;
}

void SharedRegion::raise_epoch(Loss loss, pid_t pid) {
    if (header_->claimed.exchange(1, std::memory_order_acq_rel) == 0) {
        header_->loss.store(static_cast<int32_t>(loss), std::memory_order_relaxed);
        header_->lost_pid.store(pid, std::memory_order_relaxed);
    }
    // Whoever comes second does not wait for the first: it may have been killed before this line.
    header_->epoch.store(1, std::memory_order_release);
}

Loss SharedRegion::loss() const {
    return static_cast<Loss>(header_->loss.load(std::memory_order_acquire));
}

pid_t SharedRegion::lost_pid() const {
    return header_->lost_pid.load(std::memory_order_acquire);
}

int SharedRegion::lost_rank() const {
    const pid_t pid = lost_pid();
    for (int rank = 0; pid != 0 && rank < num_ranks_; ++rank)
        if (slot(rank).pid.load(std::memory_order_acquire) == pid) return rank;
    return -1;
}

std::string SharedRegion::loss_text() const {
    if (!failed()) return "the group is whole";
    const pid_t pid = lost_pid();
    const int rank = lost_rank();
    const std::string where = pid < 0 ? " (on another host)" : " (pid " + std::to_string(pid) + ")";
    std::string who = pid ? "process " + std::to_string(pid) : "a rank";
    if (rank >= 0) who = "rank " + std::to_string(rank) + " of " + std::to_string(num_ranks_) + where;
    switch (loss()) {
        case Loss::died:
            return who + " died";
        case Loss::left:
            return who + " left the group while others still waited for it";
        case Loss::interrupted:
            return who + " was interrupted";
        case Loss::too_large:
            return who + " brought more than the group's exchange buffers hold";
        case Loss::unreachable:
            return who + " could not be reached any more";
        case Loss::garbled:
            return who + " sent what is no part of a collective";
        default:
            return "the group was closed";
    }
}

}  // namespace fastserve
