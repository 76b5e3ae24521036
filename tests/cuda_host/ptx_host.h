// What ptx.cuh and CUDA C++ itself name, for the host: each function does what the instruction of its name
// does, no more.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#undef __global__
#define __global__
#undef __launch_bounds__
#define __launch_bounds__(...)
#define threadIdx (::fastserve::cuda_host::thread_index())
#define blockIdx (::fastserve::cuda_host::block_index())
#define blockDim (::fastserve::cuda_host::block_size())
#define gridDim (::fastserve::cuda_host::grid_size())
#define FS_DYN_SMEM(T, name) T* name = static_cast<T*>(::fastserve::cuda_host::shared_memory())

inline void __syncthreads() {
    fastserve::cuda_host::sync_block();
}
inline void __syncwarp(unsigned = ~0u) {
    fastserve::cuda_host::sync_warp();
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    T all[32];
    std::memcpy(all, fastserve::cuda_host::exchange_in_warp(&value, sizeof(T)), sizeof(all));
    return all[lane & 31];
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return __shfl_sync(mask, value, static_cast<int>(fastserve::cuda_host::thread_index().x % 32) ^ lanes);
}

namespace fastserve::cuda {

using std::max;
using std::min;

inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline float __expf(float x) {
    return std::exp(x);
}
inline float rsqrtf(float x) {
    return 1 / std::sqrt(x);
}

inline uint32_t ld_acquire_sys(const uint32_t* from) {
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
inline void st_release_sys(uint32_t* to, uint32_t value) {
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
inline uint32_t ld_relaxed_sys(const uint32_t* from) {
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}
inline void st_relaxed_sys(uint32_t* to, uint32_t value) {
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}
inline void red_release_sys_add(uint32_t* to, uint32_t value) {
    __atomic_fetch_add(to, value, __ATOMIC_RELEASE);
}

inline void check_aligned_16(const void* address) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
        cuda_host::fail("an access of 16 bytes that is not aligned");
}

inline uint4 ld_global_16(const void* from) {
    check_aligned_16(from);
    const auto* words = static_cast<const uint32_t*>(from);
    return make_uint4(words[0], words[1], words[2], words[3]);
}

inline void st_global_16(void* to, uint4 value) {
    check_aligned_16(to);
    auto* words = static_cast<uint32_t*>(to);
    words[0] = value.x, words[1] = value.y, words[2] = value.z, words[3] = value.w;
}

inline void cp_async_16(void* shared, const void* from) {
    check_aligned_16(shared);
    check_aligned_16(from);
    st_global_16(shared, make_uint4(~0u, ~0u, ~0u, ~0u));
    cuda_host::async_copies().add({shared, from});
}

inline void cp_async_commit() {
    cuda_host::async_copies().commit();
}

template <int N>
inline void cp_async_wait() {
    cuda_host::async_copies().wait(
        N, [](const cuda_host::AsyncCopy& copy) { st_global_16(copy.to, ld_global_16(copy.from)); });
}

namespace host {

// Element (row, column) of matrix i, whose rows' addresses lanes 8 i .. 8 i + 7 gave.
inline uint32_t element(const void* const* rows, int i, int row, int column) {
    return static_cast<const uint16_t*>(rows[8 * i + row])[column];
}

template <bool kTransposed>
void load_matrices(uint32_t (&r)[4], const void* shared) {
    check_aligned_16(shared);
    const void* rows[32];
    std::memcpy(rows, cuda_host::exchange_in_warp(&shared, sizeof(shared)), sizeof(rows));
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
        const uint32_t low = kTransposed ? element(rows, i, q, g) : element(rows, i, g, q);
        const uint32_t high = kTransposed ? element(rows, i, q + 1, g) : element(rows, i, g, q + 1);
        r[i] = low | high << 16;
    }
}

// Elements 2 i and 2 i + 1 of a fragment lie in word i.
template <typename T, int N>
void widen(const uint32_t (&words)[N], float (&values)[2 * N]) {
    for (int i = 0; i < 2 * N; ++i) {
        const T value = __builtin_bit_cast(T, static_cast<uint16_t>(words[i / 2] >> i % 2 * 16));
        if constexpr (std::is_same_v<T, __half>)
            values[i] = __half2float(value);
        else
            values[i] = __bfloat162float(value);
    }
}

template <typename T>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct {
        float a[8], b[4];
    } mine, all[32];
    widen<T>(a, mine.a);
    widen<T>(b, mine.b);
    std::memcpy(all, cuda_host::exchange_in_warp(&mine, sizeof(mine)), sizeof(all));
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
        const int low_or_high = i / 2, column = q + i % 2;  // row g, or g + 8
        for (int k = 0; k < 16; ++k) {
            const int owner = k % 8 / 2,
                      half = k / 8;  // the lane of a group of four that has k, and in which word
            d[i] += all[g * 4 + owner].a[half * 4 + low_or_high * 2 + k % 2] *
                    all[column * 4 + owner].b[half * 2 + k % 2];
        }
    }
}

}  // namespace host

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
    host::load_matrices<false>(r, shared);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
    host::load_matrices<true>(r, shared);
}

inline void mma_bf16_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    host::multiply<__nv_bfloat16>(d, a, b);
}

inline void mma_fp16_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    host::multiply<__half>(d, a, b);
}

inline void spin_pause() {
    cuda_host::yield();
}

}  // namespace fastserve::cuda
