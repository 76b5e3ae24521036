// Gathers one ISA's kernels in a table; dispatch.cpp chooses among the tables.
#include "cpu/kernels.h"

#define FASTSERVE_STRING_(x) #x
#define FASTSERVE_STRING(x) FASTSERVE_STRING_(x)

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

extern const OpTable table;
const OpTable table = {
    .isa = FASTSERVE_STRING(FASTSERVE_ISA_NAMESPACE),
    .embed = embed,
    .rms_norm = rms_norm,
    .matmul = matmul,
    .rotary = rotary,
    .store_kv = store_kv,
    .rotary_store_kv = rotary_store_kv,
    .paged_attention = paged_attention,
    .silu_mul = silu_mul,
    .select_rows = select_rows,
    .all_reduce = all_reduce,
    .matmul_all_reduce = matmul_all_reduce,
    .sample = sample,
    .reduce = reduce,
    .copy = copy,
    .compress = compress,
    .expand = expand,
};

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
