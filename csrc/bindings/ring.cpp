// Groups of ranks for Python: the shared region, a rank's exchange, the watcher.
#include <pybind11/stl.h>

#include <climits>
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/losses.h"
#include "ring/exchange.h"
#include "ring/shared_region.h"
#include "ring/watcher.h"

namespace py = pybind11;
using namespace fastserve;

namespace {

uintptr_t epoch_address(const Exchange& exchange) {
    return reinterpret_cast<uintptr_t>(&exchange.region().epoch());
}

void check_outcome(const Exchange& exchange) {
    if (exchange.gave_up()) raise_loss(exchange.region());
}

Worker alone() {
    return {nullptr, 0, 1};
}

void all_reduce_f32(Exchange& exchange, uintptr_t address, int64_t rows, int64_t d) {
    if (rows < 0 || rows > INT32_MAX)
        throw py::value_error("rows must be in [0, 2^31), got " + std::to_string(rows));
    if (d < 1 || d > INT32_MAX) throw py::value_error("d must be in [1, 2^31), got " + std::to_string(d));
    if (exchange.rows_per_slice(static_cast<int32_t>(d)) == 0)
        throw py::value_error("a row of " + std::to_string(d) +
                              " floats does not fit the exchange buffers of " +
                              std::to_string(exchange.gather_capacity()) + " bytes");
    {
        const py::gil_scoped_release unlocked;
        const AllReduceArgs args{reinterpret_cast<float*>(address), d, static_cast<int32_t>(rows),
                                 static_cast<int32_t>(d), &exchange};
        op_table().all_reduce(args, alone());
    }
    check_outcome(exchange);
}

std::vector<py::bytes> all_gather(Exchange& exchange, const py::bytes& mine) {
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(mine.ptr(), &data, &size)) throw py::error_already_set();
    const size_t bytes = static_cast<size_t>(size);
    if (bytes > exchange.gather_capacity())
        throw py::value_error("a rank may gather at most " + std::to_string(exchange.gather_capacity()) +
                              " bytes, got " + std::to_string(bytes));
    const uint8_t* all = nullptr;
    size_t stride = 0;
    {
        const py::gil_scoped_release unlocked;
        all = exchange.all_gather(data, bytes, &stride, alone());
    }
    check_outcome(exchange);
    std::vector<py::bytes> parts;
    for (int rank = 0; rank < exchange.size(); ++rank)
        parts.emplace_back(reinterpret_cast<const char*>(all + static_cast<size_t>(rank) * stride), bytes);
    return parts;
}

void barrier(Exchange& exchange) {
    {
        const py::gil_scoped_release unlocked;
        exchange.barrier(alone());
    }
    check_outcome(exchange);
}

std::shared_ptr<Exchange> exchange_of(std::shared_ptr<SharedRegion> region, int rank) {
    std::shared_ptr<Exchange> exchange = make_exchange(std::move(region), rank);
    exchange->set_interrupted(&interrupted);
    return exchange;
}

const RankSlot& slot_of(const SharedRegion& region, int rank) {
    if (rank < 0 || rank >= region.num_ranks())
        throw py::value_error("rank must be in [0, " + std::to_string(region.num_ranks()) + "), got " +
                              std::to_string(rank));
    return region.slot(rank);
}

uint64_t beats_of(const SharedRegion& region, int rank) {
    return slot_of(region, rank).beats.load(std::memory_order_relaxed);
}

std::pair<double, double> times_of(const SharedRegion& region, int rank) {
    const RankSlot& slot = slot_of(region, rank);
    const double waiting_s = 1e-9 * static_cast<double>(slot.waiting_ns.load(std::memory_order_relaxed));
    return {1e-9 * static_cast<double>(slot.step_ns.load(std::memory_order_relaxed)) - waiting_s, waiting_s};
}

// "" or the name of an algorithm.
void force_algorithm(Exchange& exchange, const std::string& name) {
    if (name.empty())
        exchange.force_algorithm(-1);
    else if (name == "one_shot")
        exchange.force_algorithm(static_cast<int32_t>(AllReduceAlgorithm::one_shot));
    else if (name == "two_shot")
        exchange.force_algorithm(static_cast<int32_t>(AllReduceAlgorithm::two_shot));
    else if (name == "ring")
        exchange.force_algorithm(static_cast<int32_t>(AllReduceAlgorithm::ring));
    else
        throw py::value_error("algorithm must be 'one_shot', 'two_shot', 'ring' or '', got '" + name + "'");
}

}  // namespace

void bind_ring(py::module_& m) {
    py::class_<SharedRegion, std::shared_ptr<SharedRegion>>(m, "SharedRegion")
        .def_static("create", &SharedRegion::create, py::arg("num_ranks"), py::arg("symmetric_bytes"),
                    py::arg("extra_bytes") = 0, py::arg("team_threads") = 1,
                    "Memory for a group. symmetric_bytes: what one collective can hold per rank.")
        .def_static("attach", &SharedRegion::attach, py::arg("fd"),
                    "Maps what create() made in another process; `fd` stays the caller's.")
        .def_property_readonly("fd", &SharedRegion::fd)
        .def_property_readonly("num_ranks", &SharedRegion::num_ranks)
        .def_property_readonly("symmetric_bytes", &SharedRegion::half_bytes)
        .def_property_readonly("extra_address",
                               [](const SharedRegion& r) { return reinterpret_cast<uintptr_t>(r.extra()); })
        .def_property_readonly("extra_bytes", &SharedRegion::extra_bytes)
        .def_property_readonly("failed", &SharedRegion::failed)
        .def_property_readonly("loss", &SharedRegion::loss_text, "What is known about the group's end.")
        .def("beats", &beats_of, py::arg("rank"), "How often a rank showed that it goes on.")
        .def(
            "times", &times_of, py::arg("rank"),
            "(busy, waiting): seconds that a rank has spent in steps computing, and waiting for other ranks.")
        .def("raise_epoch", [](SharedRegion& region) { region.raise_epoch(); });

    py::class_<Exchange, std::shared_ptr<Exchange>>(m, "Exchange")
        .def(py::init(&exchange_of), py::arg("region"), py::arg("rank"))
        .def_property_readonly("rank", &Exchange::rank)
        .def_property_readonly("size", &Exchange::size)
        .def_property_readonly("failed", &Exchange::failed)
        .def_property_readonly("gave_up", &Exchange::gave_up, "A result since the start is garbage.")
        .def_property_readonly("gather_capacity", &Exchange::gather_capacity)
        .def_property_readonly("tiles_sent_early", &Exchange::tiles_sent_early)
        .def_property_readonly("epoch_address", &epoch_address,
                               "Of an uint32: 0 while the group is whole, another once it is not.")
        .def("rows_per_slice", &Exchange::rows_per_slice, py::arg("d"))
        .def("force_algorithm", &force_algorithm, py::arg("name"))
        .def("all_reduce", &all_reduce_f32, py::arg("address"), py::arg("rows"), py::arg("d"),
             "Sums fp32 [rows, d], contiguous, over the ranks, in place. RankLostError when a rank is gone.")
        .def("all_gather", &all_gather, py::arg("mine"), "The bytes of every rank; all bring as many.")
        .def("barrier", &barrier)
        .def("check", &check_outcome, "Raises RankLostError if a wait of this rank was given up.")
        .def("leave", &Exchange::leave, "Leaves the group in good order; no collective may follow.")
        .def("beat", &Exchange::beat, "This rank is alive and goes on.")
        .def("add_step", &Exchange::add_step, py::arg("elapsed_ns"), "This rank has done a step.")
        .def("raise_epoch", &Exchange::raise_epoch);

    py::class_<Watcher>(m, "Watcher")
        .def(py::init<const std::vector<pid_t>&, std::shared_ptr<SharedRegion>>(), py::arg("pids"),
             py::arg("region"), "Raises the region's epoch when one of these processes ends.")
        .def("close", &Watcher::close, py::call_guard<py::gil_scoped_release>());
}
