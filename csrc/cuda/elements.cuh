// 16 bytes of memory as floats, and back: 8 elements of bf16 or fp16, 4 of fp32.
#pragma once

#include "ptx.cuh"

namespace fastserve::cuda {

template <typename T>
constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));

template <typename T>
__host__ __device__ __forceinline__ int num_vectors(int columns) {
    return (columns + kPerVector<T> - 1) / kPerVector<T>;
}

__device__ __forceinline__ float to_float(float x) {
    return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x) {
    return __half2float(x);
}

// To nearest, ties to even.
__device__ __forceinline__ void round_to(float x, float& y) {
    y = x;
}
__device__ __forceinline__ void round_to(float x, __nv_bfloat16& y) {
    y = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void round_to(float x, __half& y) {
    y = __float2half_rn(x);
}

// The same 16 bytes, as a vector register and as elements.
template <typename T>
union Vector {
    uint4 bits;
    T elements[kPerVector<T>];
    __device__ Vector() : bits{} {}
};

// Two elements that are stored at once.
template <typename T>
union Pair {
    uint32_t bits;
    T elements[2];
    __device__ Pair() : bits{} {}
};
template <>
union Pair<float> {
    uint2 bits;
    float elements[2];
    __device__ Pair() : bits{} {}
};

template <typename T>
__device__ __forceinline__ void unpack(uint4 bits, float (&values)[kPerVector<T>]) {
    Vector<T> vector;
    vector.bits = bits;
#pragma unroll
    for (int i = 0; i < kPerVector<T>; ++i) values[i] = to_float(vector.elements[i]);
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float (&values)[kPerVector<T>]) {
    Vector<T> vector;
#pragma unroll
    for (int i = 0; i < kPerVector<T>; ++i) round_to(values[i], vector.elements[i]);
    return vector.bits;
}

// Rows of d elements, `ld` apart, seen as vectors of 16 bytes; the last of a row may be cut short, and rows
// need not be aligned: what does not lie at a multiple of 16 bytes goes element by element.
template <typename T>
struct Rows {
    T* data;
    long long ld;
    int d;
    bool aligned;  // data and ld: multiples of 16 bytes

    __device__ __forceinline__ uint4 load(int row, int vector) const {
        const T* from = data + row * ld + vector * kPerVector<T>;
        const int count = d - vector * kPerVector<T>;
        if (aligned && count >= kPerVector<T>) return ld_global_16(from);
        Vector<T> part;
#pragma unroll
        for (int i = 0; i < kPerVector<T>; ++i)
            if (i < count) part.elements[i] = from[i];
        return part.bits;
    }

    __device__ __forceinline__ void store(int row, int vector, uint4 bits) const {
        T* to = data + row * ld + vector * kPerVector<T>;
        const int count = d - vector * kPerVector<T>;
        if (aligned && count >= kPerVector<T>) {
            st_global_16(to, bits);
            return;
        }
        Vector<T> whole;
        whole.bits = bits;
#pragma unroll
        for (int i = 0; i < kPerVector<T>; ++i)
            if (i < count) to[i] = whole.elements[i];
    }
};

}  // namespace fastserve::cuda
