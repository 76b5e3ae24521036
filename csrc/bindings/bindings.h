// One bind function per subject; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

void bind_weights(pybind11::module_& m);
void bind_packing(pybind11::module_& m);
void bind_ring(pybind11::module_& m);
void bind_collectives(pybind11::module_& m);
void bind_ops(pybind11::module_& m);
void bind_mailbox(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_slots(pybind11::module_& m);
void bind_benchmark(pybind11::module_& m);
