// The ISAs that were built, and which of them this CPU can run.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace fastserve {

struct Isa {
    const char* name;
    const OpTable* table;
    bool supported;
    const char* needs;
};

// Widest first.
const std::vector<Isa>& isas();

// Throws std::runtime_error, in words for the user, for an ISA that is unknown or lacking here.
const OpTable& find_isa(const std::string& name);

}  // namespace fastserve
