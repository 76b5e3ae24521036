// Collectives and messages of a rank for Python: addresses and sizes in, nothing of torch.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "benchmark/fill.h"
#include "bindings/bindings.h"
#include "bindings/losses.h"
#include "ring/collectives.h"
#include "ring/exchange.h"
#include "ring/hierarchy.h"
#include "ring/point_to_point.h"

namespace py = pybind11;
using namespace fastserve;

namespace {

using Address = uintptr_t;

// (rank, its number in the whole group, descriptors: of its streams, for messages, for its obituary)
using PeerConnections = std::vector<std::tuple<int, int, std::vector<int>, int, int>>;

std::shared_ptr<SocketLinks> links_of(const std::shared_ptr<PeerMemory>& memory, int rank,
                                      const PeerConnections& connections,
                                      std::vector<std::shared_ptr<SharedRegion>> levels,
                                      std::shared_ptr<SharedRegion> whole) {
    if (connections.empty()) return nullptr;
    std::vector<SocketLinks::Connections> peers;
    for (const auto& [peer, number, streams, mail, obituary] : connections)
        peers.push_back({peer, number, streams, mail, obituary});
    return std::make_shared<SocketLinks>(memory, rank, peers, std::move(levels), std::move(whole));
}

// A rank's place in a group whose region holds peer memory; other hosts are reached over connections. Where
// there are `local` and `across` (hierarchy.h), large sums go in levels.
class PeerGroup {
  public:
    PeerGroup(std::shared_ptr<Exchange> exchange, const PeerConnections& connections,
              std::shared_ptr<PeerGroup> local, std::shared_ptr<PeerGroup> across, int wire_bits,
              std::shared_ptr<SharedRegion> whole)
        : exchange_(std::move(exchange)),
          memory_(std::make_shared<PeerMemory>(exchange_->shared_region())),
          local_(std::move(local)),
          across_(std::move(across)),
          links_(links_of(memory_, exchange_->rank(), connections, level_regions(), std::move(whole))),
          collectives_(memory_, exchange_->rank(), links_),
          mail_(memory_, exchange_->rank(), links_) {
        collectives_.set_interrupted(&interrupted);
        if (wire_bits != 32 && wire_bits != 8)
            throw py::value_error("wire_bits must be 32 or 8, got " + std::to_string(wire_bits));
        if (wire_bits == 8) compressed_.emplace(collectives_);
        if (!local_ || !across_) return;
        CompressedAllReduce* compressed = across_->compressed_ ? &*across_->compressed_ : nullptr;
        hierarchy_.emplace(collectives_, local_->collectives_, across_->collectives_, compressed);
    }

    void leave() {
        const py::gil_scoped_release unlocked;
        for (const auto& level : {local_, across_})
            if (level) level->leave_alone();
        leave_alone();
    }

    int rank() const { return collectives_.rank(); }
    int size() const { return collectives_.size(); }

    void all_reduce(Address data, int64_t count, int type, int op, bool average) {
        const Reduction reduction = reduction_of(count, type, op, average);
        run([&] { return all_reduce(data, count, reduction); });
    }
    void fill_and_sum(Address data, int64_t count, int calls) {
        const Reduction sum = {DataType::f32, ReduceOp::sum, false};
        run([&] {
            for (int i = 0; i < calls; ++i) {
                fill_with_ones(static_cast<float*>(memory(data)), count);
                if (!all_reduce(data, count, sum)) return false;
            }
            return true;
        });
    }
    void reduce(Address data, int64_t count, int type, int op, bool average, int root) {
        check_rank("root", root);
        const Reduction reduction = reduction_of(count, type, op, average);
        run([&] { return collectives_.reduce(memory(data), count, reduction, root); });
    }
    void reduce_scatter(const std::vector<Address>& in, Address out, int64_t count, int type, int op,
                        bool average) {
        const Reduction reduction = reduction_of(count, type, op, average);
        const std::vector<void*> parts = memories("in", in);
        run([&] { return collectives_.reduce_scatter(parts.data(), memory(out), count, reduction); });
    }
    void all_gather(Address in, const std::vector<Address>& out, int64_t bytes) {
        check_bytes(bytes);
        const std::vector<void*> parts = memories("out", out);
        run([&] { return collectives_.all_gather(memory(in), parts.data(), bytes); });
    }
    void gather(Address in, const std::vector<Address>& out, int64_t bytes, int root) {
        check_rank("root", root);
        check_bytes(bytes);
        const std::vector<void*> parts = rank() == root ? memories("out", out) : std::vector<void*>();
        run([&] { return collectives_.gather(memory(in), parts.data(), bytes, root); });
    }
    void scatter(const std::vector<Address>& in, Address out, int64_t bytes, int root) {
        check_rank("root", root);
        check_bytes(bytes);
        const std::vector<void*> parts = rank() == root ? memories("in", in) : std::vector<void*>();
        run([&] { return collectives_.scatter(parts.data(), memory(out), bytes, root); });
    }
    void broadcast(Address data, int64_t bytes, int root) {
        check_rank("root", root);
        check_bytes(bytes);
        run([&] { return collectives_.broadcast(memory(data), bytes, root); });
    }
    void all_to_all(const std::vector<Address>& in, const std::vector<int64_t>& in_bytes,
                    const std::vector<Address>& out, const std::vector<int64_t>& out_bytes) {
        const std::vector<void*> from = memories("in", in), to = memories("out", out);
        for (const auto* sizes : {&in_bytes, &out_bytes}) {
            if (sizes->size() != from.size())
                throw py::value_error("sizes must be one per rank, got " + std::to_string(sizes->size()));
            for (const int64_t bytes : *sizes) check_bytes(bytes);
        }
        run([&] {
            return collectives_.all_to_all(from.data(), in_bytes.data(), to.data(), out_bytes.data());
        });
    }
    void barrier() {
        run([&] { return collectives_.barrier(); });
    }
    void send(int to, int64_t tag, Address data, int64_t bytes) {
        check_peer("to", to);
        check_bytes(bytes);
        run([&] { return mail_.send(to, tag, memory(data), bytes); });
    }
    void receive(int from, int64_t tag, Address data, int64_t bytes) {
        check_peer("from", from);
        check_bytes(bytes);
        run([&] { return mail_.receive(from, tag, memory(data), bytes); });
    }
    bool takes_in(int from, int64_t tag) {
        check_peer("from", from);
        bool found = false;
        run([&] {
            found = mail_.takes_in(from, tag);
            return !memory_->region().failed();
        });
        return found;
    }
    bool has_mail(int from) const {
        check_peer("from", from);
        return mail_.has_mail(from);
    }

    size_t heap_bytes() const { return memory_->heap_bytes(); }
    Address heap_address() const { return heap_address_of(rank()); }
    Address heap_address_of(int rank) const {
        check_rank("rank", rank);
        return reinterpret_cast<Address>(memory_->heap(rank));
    }

  private:
    bool all_reduce(Address data, int64_t count, const Reduction& reduction) {
        const int64_t offset = heap_offset(data);
        if (offset >= 0) return collectives_.all_reduce_symmetric(offset, count, reduction);
        if (hierarchy_ && hierarchy_->takes(count, reduction))
            return hierarchy_->all_reduce(memory(data), count, reduction);
        if (compressed_ && CompressedAllReduce::takes(count, reduction))
            return compressed_->all_reduce(static_cast<float*>(memory(data)), count);
        return collectives_.all_reduce(memory(data), count, reduction);
    }
    // Of this rank's heap; -1 for memory that is somewhere else, or that vectors do not like.
    int64_t heap_offset(Address data) const {
        const Address heap = heap_address();
        if (links_ || data < heap || data >= heap + heap_bytes() || (data - heap) % 64 != 0) return -1;
        return static_cast<int64_t>(data - heap);
    }
    static void* memory(Address address) { return reinterpret_cast<void*>(address); }
    std::vector<void*> memories(const char* name, const std::vector<Address>& addresses) const {
        if (addresses.size() != static_cast<size_t>(size()))
            throw py::value_error(std::string(name) + " must be one per rank (" + std::to_string(size()) +
                                  "), got " + std::to_string(addresses.size()));
        std::vector<void*> pointers;
        for (const Address address : addresses) pointers.push_back(memory(address));
        return pointers;
    }
    static void check_bytes(int64_t bytes) {
        if (bytes < 0) throw py::value_error("bytes must be >= 0, got " + std::to_string(bytes));
    }
    void check_rank(const char* name, int rank) const {
        if (rank < 0 || rank >= size())
            throw py::value_error(std::string(name) + " must be a rank below " + std::to_string(size()) +
                                  ", got " + std::to_string(rank));
    }
    void check_peer(const char* name, int rank) const {
        check_rank(name, rank);
        if (rank == this->rank())
            throw py::value_error(std::string(name) + " must be another rank than this one");
    }
    static Reduction reduction_of(int64_t count, int type, int op, bool average) {
        if (count < 0) throw py::value_error("count must be >= 0, got " + std::to_string(count));
        if (type < 0 || type > static_cast<int>(DataType::s64))
            throw py::value_error("no element type has the number " + std::to_string(type));
        if (op < 0 || op > static_cast<int>(ReduceOp::bit_xor))
            throw py::value_error("no reduction has the number " + std::to_string(op));
        const bool is_integer = type >= static_cast<int>(DataType::u8);
        if (op >= static_cast<int>(ReduceOp::bit_and) && !is_integer)
            throw py::value_error("bitwise reductions are for integers");
        return {static_cast<DataType>(type), static_cast<ReduceOp>(op), average};
    }
    template <class Call>
    void run(const Call& call) const {
        bool is_whole;
        {
            const py::gil_scoped_release unlocked;
            is_whole = call();
        }
        if (is_whole) return;
        // What ended one level ends all: this region's epoch is raised for the other hosts and the levels.
        const SharedRegion& lost = lost_region();
        if (&lost != &memory_->region()) memory_->region().raise_epoch(lost.loss(), lost.lost_pid());
        raise_loss(lost);
    }
    const SharedRegion& lost_region() const {
        if (!memory_->region().failed())
            for (const auto& level : {local_, across_})
                if (level && level->memory_->region().failed()) return level->memory_->region();
        return memory_->region();
    }
    std::vector<std::shared_ptr<SharedRegion>> level_regions() const {
        std::vector<std::shared_ptr<SharedRegion>> regions;
        for (const auto& level : {local_, across_})
            if (level) regions.push_back(level->exchange_->shared_region());
        return regions;
    }
    void leave_alone() {
        if (links_) links_->leave();
        exchange_->leave();
    }

    std::shared_ptr<Exchange> exchange_;  // holds the rank's slot in the region
    std::shared_ptr<PeerMemory> memory_;
    std::shared_ptr<PeerGroup> local_, across_;
    std::shared_ptr<SocketLinks> links_;
    Collectives collectives_;
    PointToPoint mail_;
    std::optional<CompressedAllReduce> compressed_;
    std::optional<Hierarchy> hierarchy_;
};

}  // namespace

void bind_collectives(py::module_& m) {
    m.def("peer_memory_bytes", &PeerMemory::num_bytes, py::arg("num_ranks"), py::arg("heap_bytes") = 0,
          "Extra bytes of a region that a PeerGroup needs.");
    m.attr("DATA_TYPES") = py::make_tuple("f32", "f64", "f16", "bf16", "u8", "s8", "s16", "s32", "s64");
    m.attr("REDUCE_OPS") = py::make_tuple("sum", "product", "min", "max", "bit_and", "bit_or", "bit_xor");
    py::class_<PeerGroup, std::shared_ptr<PeerGroup>>(
        m, "PeerGroup", "Collectives on addresses; types and ops are indices of DATA_TYPES and REDUCE_OPS.")
        .def(py::init<std::shared_ptr<Exchange>, const PeerConnections&, std::shared_ptr<PeerGroup>,
                      std::shared_ptr<PeerGroup>, int, std::shared_ptr<SharedRegion>>(),
             py::arg("exchange"), py::arg("connections") = PeerConnections(), py::arg("local") = nullptr,
             py::arg("across") = nullptr, py::arg("wire_bits") = 32, py::arg("whole") = nullptr,
             "connections: (rank, its number in the whole group, descriptors of streams, for messages, for "
             "its "
             "obituary) of each rank on another host; taken over. local, across: the ranks of this host, and "
             "those with this one's place on each host. whole: for such a level, the whole group's region.")
        .def_property_readonly("heap_bytes", &PeerGroup::heap_bytes, "Of each rank's symmetric buffers.")
        .def_property_readonly("heap_address", &PeerGroup::heap_address)
        .def("heap_address_of", &PeerGroup::heap_address_of, py::arg("rank"),
             "Where this process has another rank's heap.")
        .def("leave", &PeerGroup::leave, "Leaves the group in good order; nothing may follow.")
        .def_property_readonly("rank", &PeerGroup::rank)
        .def_property_readonly("size", &PeerGroup::size)
        .def("all_reduce", py::overload_cast<Address, int64_t, int, int, bool>(&PeerGroup::all_reduce),
             py::arg("data"), py::arg("count"), py::arg("type"), py::arg("op"), py::arg("average"))
        .def("fill_and_sum", &PeerGroup::fill_and_sum, py::arg("data"), py::arg("count"), py::arg("calls"),
             "So many times: writes ones into fp32 memory and sums it. What a benchmark calls.")
        .def("reduce", &PeerGroup::reduce, py::arg("data"), py::arg("count"), py::arg("type"), py::arg("op"),
             py::arg("average"), py::arg("root"))
        .def("reduce_scatter", &PeerGroup::reduce_scatter, py::arg("parts"), py::arg("out"), py::arg("count"),
             py::arg("type"), py::arg("op"), py::arg("average"))
        .def("all_gather", &PeerGroup::all_gather, py::arg("part"), py::arg("out"), py::arg("num_bytes"))
        .def("gather", &PeerGroup::gather, py::arg("part"), py::arg("out"), py::arg("num_bytes"),
             py::arg("root"))
        .def("scatter", &PeerGroup::scatter, py::arg("parts"), py::arg("out"), py::arg("num_bytes"),
             py::arg("root"))
        .def("broadcast", &PeerGroup::broadcast, py::arg("data"), py::arg("num_bytes"), py::arg("root"))
        .def("all_to_all", &PeerGroup::all_to_all, py::arg("parts"), py::arg("part_bytes"), py::arg("out"),
             py::arg("out_bytes"))
        .def("barrier", &PeerGroup::barrier)
        .def("send", &PeerGroup::send, py::arg("to"), py::arg("tag"), py::arg("data"), py::arg("num_bytes"))
        .def("receive", &PeerGroup::receive, py::arg("source"), py::arg("tag"), py::arg("data"),
             py::arg("num_bytes"))
        .def("takes_in", &PeerGroup::takes_in, py::arg("source"), py::arg("tag"),
             "Whether a message with that tag has come: its receive does not wait.")
        .def("has_mail", &PeerGroup::has_mail, py::arg("source"));
}
