// Every PTX instruction that the kernels use, one small function each.
//
// Without nvcc the same names are what tests/cuda_host/ptx_host.h makes of them, so that kernels can be
// compiled for the host and run there, under sanitizers. Nothing but this file knows the difference.
//
// Ranks talk by flags: one writes data with weak stores, meets its block at __syncthreads, and one thread
// then stores the flag with release; the reader loads the flag with acquire, meets its block, and everybody
// reads the data. Release and acquire are cumulative over the barrier (PTX ISA, memory consistency model), so
// that no fence is needed. `sys` is the scope that spans GPUs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#ifdef FASTSERVE_CUDA_HOST
#include "ptx_host.h"
#else

// `T* name`: this block's dynamic shared memory, 128-byte aligned. One declaration per kernel.
#define FS_DYN_SMEM(T, name)                                    \
    extern __shared__ __align__(128) unsigned char fs_shared[]; \
    T* name = reinterpret_cast<T*>(fs_shared)

namespace fastserve::cuda {

__device__ __forceinline__ uint32_t ld_acquire_sys(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ void st_release_sys(uint32_t* to, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t ld_relaxed_sys(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ void st_relaxed_sys(uint32_t* to, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void red_release_sys_add(uint32_t* to, uint32_t value) {
    asm volatile("red.release.sys.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// 16 bytes, 16-byte aligned. Never through the read-only cache: peers write what is read.
__device__ __forceinline__ uint4 ld_global_16(const void* from) {
    uint4 value;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

__device__ __forceinline__ void st_global_16(void* to, uint4 value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies 16 bytes from global to shared memory, behind the thread's back: cp_async_commit closes a group of
// copies, cp_async_wait<N> waits until at most the N youngest groups of this thread are unfinished.
__device__ __forceinline__ void cp_async_16(void* shared, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(from)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and gets in
// r[i] the elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of matrix i; `trans`: of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// d += a b, a [16, 16] by rows, b [16, 8] by columns, d [16, 8] fp32. Lane l holds, with g = l / 4 and
// q = 2 (l % 4): a[0] (g, q..q+1), a[1] (g + 8, q..), a[2] (g, q + 8..), a[3] (g + 8, q + 8..); b[0] (q..q+1,
// g), b[1] (q + 8.., g); d[0], d[1] (g, q..q+1), d[2], d[3] (g + 8, q..q+1).
__device__ __forceinline__ void mma_bf16_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_fp16_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Between two looks at a flag.
__device__ __forceinline__ void spin_pause() {
    asm volatile("nanosleep.u32 20;");
}

}  // namespace fastserve::cuda

#endif  // FASTSERVE_CUDA_HOST
