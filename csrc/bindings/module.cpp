#include "bindings/bindings.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "The native engine: weight readers, packed weights, rings, ops, programs.";
    m.attr("__version__") = FASTSERVE_VERSION;
    bind_weights(m);
    bind_packing(m);
    bind_ring(m);
    bind_collectives(m);
    bind_ops(m);
    bind_mailbox(m);
    bind_program(m);
    bind_slots(m);
    bind_benchmark(m);
}
