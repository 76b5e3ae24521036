// What the kernel tests share: every ISA of this machine, teams, deterministic numbers, a labelled check.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/threads.h"
#include "ops.h"

using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

inline void for_each_isa(const std::function<void(const fastserve::OpTable&)>& body) {
    for (const fastserve::Isa& isa : fastserve::isas()) {
        if (!isa.supported) continue;
        const int before = failures();
        body(*isa.table);
        if (failures() > before) std::printf("  ... on %s\n", isa.name);
    }
}

// Calls op(args, worker) on a team of num_threads.
template <class Args>
void run_op(void (*op)(const Args&, const fastserve::Worker&), const Args& args, int num_threads) {
    fastserve::Team team(std::vector<int>(static_cast<size_t>(num_threads), -1));
    team.run([&](const fastserve::Worker& worker) { op(args, worker); });
}

inline Floats random_floats(size_t n, uint32_t seed, float scale = 1.0f) {
    std::mt19937 random(seed);
    Floats values(n);
    for (float& value : values) value = scale * (static_cast<float>(random() >> 8) * 0x1p-23f - 1.0f);
    return values;
}

// The largest |a - b| / (|b| + floor); infinite where one is NaN and the other is not.
inline double worst_error(const Floats& a, const std::vector<double>& b, double floor) {
    double worst = a.size() == b.size() ? 0.0 : INFINITY;
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
        const double error = std::fabs(static_cast<double>(a[i]) - b[i]) / (std::fabs(b[i]) + floor);
        if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
    }
    return worst;
}

inline double rounded_to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    __builtin_memcpy(&value, &bits, 4);
    return static_cast<double>(value);
}
