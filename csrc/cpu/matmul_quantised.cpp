// Tiles of q8, q4 and q4m weights: integer dot products of 8-bit codes, one float link per block of 32.
//
// Per block, row and panel: 8 dot products (32 x 16 products) for each of the two digits of the activations
// and, in floats, int -> float, scale of weights x scale of activations, fma; q4m one fma more for the
// minimum. The digits go one after the other, over the same weights: the integer sum of the high ones is
// shifted and taken up by the low ones, so a tile needs no more registers than with one digit. Few rows take
// codes from the packed weight as they go; many rows share codes unpacked to L1.
#include <cstddef>

#include "cpu/matmul.h"
#include "cpu/matmul_tiles.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kGroups = 8;  // of 4 k in a block
constexpr int kHighOffset = offsetof(QuantisedBlock, high), kLowOffset = offsetof(QuantisedBlock, low);
constexpr int kScaleOffset = offsetof(QuantisedBlock, scale), kBaseOffset = offsetof(QuantisedBlock, base);
static_assert(sizeof(QuantisedBlock) == 2 * kQuantBlock + 8);  // matmul_scratch_bytes
constexpr int kMaxChunkBlocks = 32;                            // choose_matmul's chunk of 1024
constexpr int kMaxUnpackedPanels = 2;                          // choose_matmul's max_panels with a chunk

// How a panel's block is laid out, packed. pair(block, g) yields the codes of groups g and g + 4.
template <WeightType type>
struct Packed {
    static constexpr bool kHasMinimum = type == WeightType::q4m;
    static constexpr bool kNarrow = type != WeightType::q8;  // codes < 16
    static constexpr int kHeader = kPanel * (kHasMinimum ? 4 : 2);
    static constexpr int kBlockBytes = kHeader + (kNarrow ? 4 : 8) * kVectorBytes;

    FASTSERVE_INLINE static void pair(const uint8_t* block, int g, VecI& low, VecI& high) {
        const VecI bytes = load(block + kHeader + g * kVectorBytes);
        if constexpr (kNarrow) {
            low = low_nibbles(bytes);
            high = high_nibbles(bytes);
        } else {
            low = bytes;
            high = load(block + kHeader + (g + 4) * kVectorBytes);
        }
    }
    FASTSERVE_INLINE static Vec scale(const uint8_t* block) {
        return load_half(reinterpret_cast<const uint16_t*>(block));
    }
    FASTSERVE_INLINE static Vec minimum(const uint8_t* block) {
        return load_half(reinterpret_cast<const uint16_t*>(block) + kPanel);
    }
};

// The same with float scales and minima and a byte per code.
template <WeightType type>
struct Unpacked {
    static constexpr bool kHasMinimum = Packed<type>::kHasMinimum;
    static constexpr bool kNarrow = Packed<type>::kNarrow;
    static constexpr int kHeader = 2 * kVectorBytes;
    static constexpr int kBlockBytes = kHeader + kGroups * kVectorBytes;

    FASTSERVE_INLINE static void pair(const uint8_t* block, int g, VecI& low, VecI& high) {
        low = load(block + kHeader + g * kVectorBytes);
        high = load(block + kHeader + (g + 4) * kVectorBytes);
    }
    FASTSERVE_INLINE static Vec scale(const uint8_t* block) {
        return load(reinterpret_cast<const float*>(block));
    }
    FASTSERVE_INLINE static Vec minimum(const uint8_t* block) {
        return load(reinterpret_cast<const float*>(block) + kPanel);
    }
};

template <WeightType type>
void unpack_panel(const uint8_t* from, int num_blocks, uint8_t* to) {
    for (int b = 0; b < num_blocks; ++b) {
        store(reinterpret_cast<float*>(to), Packed<type>::scale(from));
        if constexpr (Packed<type>::kHasMinimum)
            store(reinterpret_cast<float*>(to) + kPanel, Packed<type>::minimum(from));
        for (int g = 0; g < kGroups / 2; ++g) {
            VecI low, high;
            Packed<type>::pair(from, g, low, high);
            store(to + Unpacked<type>::kHeader + g * kVectorBytes, low);
            store(to + Unpacked<type>::kHeader + (g + 4) * kVectorBytes, high);
        }
        from += Packed<type>::kBlockBytes;
        to += Unpacked<type>::kBlockBytes;
    }
}

// The running sum of a block's products with one digit: on AVX2 those of 4-bit codes stay in 16 bits
// meanwhile.
template <bool narrow>
FASTSERVE_INLINE auto begin_digit(VecI sum) {
    if constexpr (narrow)
        return begin_u4s7(sum);
    else
        return sum;
}
template <bool narrow, class Sum>
FASTSERVE_INLINE Sum dot(Sum sum, VecI u, VecI s) {
    if constexpr (narrow)
        return dot_u4s7(sum, u, s);
    else
        return dot_u8s7(sum, u, s);
}
template <bool narrow, class Sum>
FASTSERVE_INLINE VecI end_digit(VecI sum, Sum digit) {
    if constexpr (narrow)
        return end_u4s7(sum, digit);
    else
        return digit;
}

template <WeightType type, bool unpacked>
struct Quantised {
    static constexpr int kMaxPanels = unpacked ? kMaxUnpackedPanels : 4, kMaxTile = 12;
    using Layout = __typeof__([] {
        if constexpr (unpacked)
            return Unpacked<type>{};
        else
            return Packed<type>{};
    }());

    const QuantisedBlock* x;
    int64_t blocks_per_row;
    PackedWeight weight;
    float* y;
    int64_t ldy;
    uint8_t* buffer;  // kMaxUnpackedPanels x kMaxChunkBlocks unpacked blocks
    // Of the current chunk and panel group:
    const uint8_t* chunk_w;
    int64_t panel_bytes;
    float* chunk_y;
    int num_columns, first_block, num_blocks;

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        first_block = k_begin / kQuantBlock;
        num_blocks = (k_end - k_begin) / kQuantBlock;
        chunk_y = y + int64_t{panel} * kPanel;
        num_columns = weight.n - panel * kPanel;
        chunk_w = weight.data + panel * weight.panel_bytes + int64_t{first_block} * Packed<type>::kBlockBytes;
        panel_bytes = weight.panel_bytes;
        if constexpr (unpacked) {
            panel_bytes = kMaxChunkBlocks * Layout::kBlockBytes;
            for (int p = 0; p < P; ++p)
                unpack_panel<type>(chunk_w + p * weight.panel_bytes, num_blocks, buffer + p * panel_bytes);
            chunk_w = buffer;
        }
    }

    // sums[r][p] += block w of panel p . the 32 digits at digits(r).
    template <int R, int P, class Digits>
    FASTSERVE_INLINE void add_digit(VecI (&sums)[R][P], const uint8_t* w, Digits digits) const {
        constexpr bool kNarrow = Layout::kNarrow;
        decltype(begin_digit<kNarrow>(zero_i())) running[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) running[r][p] = begin_digit<kNarrow>(sums[r][p]);
#pragma GCC unroll 8
        for (int g = 0; g < kGroups / 2; ++g)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                VecI low, high;
                Layout::pair(w + p * panel_bytes, g, low, high);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    running[r][p] = dot<kNarrow>(running[r][p], low, broadcast4(digits(r) + 4 * g));
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    running[r][p] = dot<kNarrow>(running[r][p], high, broadcast4(digits(r) + 4 * g + 16));
            }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[r][p] = end_digit<kNarrow>(sums[r][p], running[r][p]);
    }

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][P];
        float* const out = chunk_y + row * ldy;
        load_chain(acc, out, ldy, num_columns, first_block == 0);
        const uint8_t* w = chunk_w;
        // Two pointers and a stride reach six rows with what an x86 address can express.
        const int64_t ldx = blocks_per_row * static_cast<int64_t>(sizeof(QuantisedBlock));
        const auto* top = reinterpret_cast<const uint8_t*>(x + row * blocks_per_row + first_block);
        const uint8_t* bottom = top + 3 * ldx;
        for (int b = 0; b < num_blocks; ++b) {
            const auto at = [=](int r, int64_t offset) __attribute__((always_inline)) {
                return (r < 3 ? top + r * ldx : bottom + (r - 3) * ldx) + offset;
            };
            VecI sums[R][P];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) sums[r][p] = zero_i();
            add_digit(sums, w, [=](int r) __attribute__((always_inline)) { return at(r, kHighOffset); });
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) {
                    sums[r][p] = shift_left<kDigitBits>(sums[r][p]);
                    if constexpr (!Layout::kHasMinimum)
                        sums[r][p] = add(sums[r][p], broadcast4(at(r, kBaseOffset)));
                }
            add_digit(sums, w, [=](int r) __attribute__((always_inline)) { return at(r, kLowOffset); });
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                const Vec scale = Layout::scale(w + p * panel_bytes);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const Vec scale_product = mul(scale, as_float(broadcast4(at(r, kScaleOffset))));
                    acc[r][p] = fma(to_float(sums[r][p]), scale_product, acc[r][p]);
                }
                if constexpr (Layout::kHasMinimum) {
                    const Vec minimum = Layout::minimum(w + p * panel_bytes);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r)
                        acc[r][p] = fma(minimum, as_float(broadcast4(at(r, kBaseOffset))), acc[r][p]);
                }
            }
            top += sizeof(QuantisedBlock);
            bottom += sizeof(QuantisedBlock);
            w += Layout::kBlockBytes;
        }
        store_chain(acc, out, ldy, num_columns);
    }
};

template <WeightType type, bool unpacked>
void run(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy, const MatmulConfig& config) {
    constexpr int kBufferBytes =
        unpacked ? kMaxUnpackedPanels * kMaxChunkBlocks * Unpacked<type>::kBlockBytes : 64;
    alignas(kVectorBytes) uint8_t buffer[kBufferBytes];
    Quantised<type, unpacked> kind = {};
    kind.x = static_cast<const QuantisedBlock*>(args.scratch);
    kind.blocks_per_row = args.w.k / kQuantBlock;
    kind.weight = args.w;
    kind.y = y;
    kind.ldy = ldy;
    kind.buffer = buffer;
    walk_tiles(kind, args.w.k, part, config);
}

template <WeightType type>
void run(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    const MatmulConfig config = choose_matmul(part.row_end - part.row_begin, type);
    if (config.chunk > 0)
        run<type, true>(args, part, y, ldy, config);
    else
        run<type, false>(args, part, y, ldy, config);
}

}  // namespace

void matmul_tile_quantised(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    if (args.w.type == WeightType::q8)
        run<WeightType::q8>(args, part, y, ldy);
    else if (args.w.type == WeightType::q4)
        run<WeightType::q4>(args, part, y, ldy);
    else
        run<WeightType::q4m>(args, part, y, ldy);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
