// The kernels of one ISA. Each source of this folder is compiled once per ISA, into that ISA's namespace.
#pragma once

#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

void embed(const EmbedArgs& args, const Worker& worker);
void rms_norm(const RmsNormArgs& args, const Worker& worker);
void matmul(const MatmulArgs& args, const Worker& worker);
void rotary(const RotaryArgs& args, const Worker& worker);
void store_kv(const StoreKvArgs& args, const Worker& worker);
void rotary_store_kv(const RotaryStoreKvArgs& args, const Worker& worker);
void paged_attention(const PagedAttentionArgs& args, const Worker& worker);
void silu_mul(const SiluMulArgs& args, const Worker& worker);
void select_rows(const SelectRowsArgs& args, const Worker& worker);
void all_reduce(const AllReduceArgs& args, const Worker& worker);
void matmul_all_reduce(const MatmulAllReduceArgs& args, const Worker& worker);
void sample(const SampleArgs& args, const Worker& worker);
void reduce(const ReduceArgs& args);
void copy(const CopyArgs& args);
void compress(const CompressArgs& args);
void expand(const ExpandArgs& args);

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
