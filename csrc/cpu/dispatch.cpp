// Chooses the ISA once: the widest that this CPU has, or the one that FASTSERVE_ISA names.
#include "cpu/dispatch.h"

#if FASTSERVE_HAS_neon
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace fastserve {

namespace portable {
extern const OpTable table;
}
#if FASTSERVE_HAS_avx2
namespace avx2 {
extern const OpTable table;
}
#endif
#if FASTSERVE_HAS_avx512
namespace avx512 {
extern const OpTable table;
}
#endif

#if FASTSERVE_HAS_neon
namespace neon {
extern const OpTable table;
}
namespace neon_bf16 {
extern const OpTable table;
}
#endif

const std::vector<Isa>& isas() {
    static const std::vector<Isa> all = [] {
        std::vector<Isa> found;
#if FASTSERVE_HAS_avx512
        const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                                __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
        found.push_back({"avx512", &avx512::table, has_avx512, "AVX-512 F, BW, VL, DQ, VNNI and BF16"});
#endif
#if FASTSERVE_HAS_avx2
        const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                              __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
        found.push_back({"avx2", &avx2::table, has_avx2, "AVX2, FMA, F16C and BMI2"});
#endif
#if FASTSERVE_HAS_neon
        // Bits of the kernel's interface, which older headers do not name
        // (Documentation/arm64/elf_hwcaps.rst).
        constexpr unsigned long kAtomics = 1ul << 8, kAsimdDp = 1ul << 20, kBf16 = 1ul << 14;
        const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
        const bool has_neon = (hwcap & kAtomics) && (hwcap & kAsimdDp);
        found.push_back(
            {"neon_bf16", &neon_bf16::table, has_neon && (hwcap2 & kBf16), "Armv8.2 with asimddp and bf16"});
        found.push_back({"neon", &neon::table, has_neon, "Armv8.2 with asimddp"});
#endif
        found.push_back({"portable", &portable::table, true, "nothing beyond the baseline"});
        return found;
    }();
    return all;
}

const OpTable& find_isa(const std::string& name) {
    std::string known;
    for (const Isa& isa : isas()) {
        if (name == isa.name) {
            if (!isa.supported)
                throw std::runtime_error("FASTSERVE_ISA=" + name + ": this CPU lacks it (needs " + isa.needs +
                                         ")");
            return *isa.table;
        }
        known += (known.empty() ? "" : ", ") + std::string(isa.name);
    }
    throw std::runtime_error("FASTSERVE_ISA=" + name + ": unknown; built here: " + known);
}

const OpTable& op_table() {
    static const OpTable& chosen = []() -> const OpTable& {
        const char* forced = std::getenv("FASTSERVE_ISA");
        if (forced && *forced) return find_isa(forced);
        for (const Isa& isa : isas())
            if (isa.supported) return *isa.table;
        return portable::table;
    }();
    return chosen;
}

}  // namespace fastserve
