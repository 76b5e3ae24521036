// Tiles of f32, f16 and bf16 weights: activations broadcast, one weight vector per panel and step of K.
#include "cpu/matmul.h"
#include "cpu/matmul_tiles.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

// A step takes one k of f32 and f16, two of bf16. kOnePanel: what choose_matmul says.
struct F32 {
    using Weight = Vec;
    static constexpr int kStep = 1, kStepBytes = 64, kXBytes = 4;
    static constexpr bool kOnePanel = false;
    FASTSERVE_INLINE static Vec weight(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
    FASTSERVE_INLINE static Vec accumulate(Vec acc, Vec w, const uint8_t* x) {
        return fma(w, as_float(broadcast4(x)), acc);
    }
};

struct F16 {
    using Weight = Vec;
    static constexpr int kStep = 1, kStepBytes = 32, kXBytes = 4;
    static constexpr bool kOnePanel = false;
    FASTSERVE_INLINE static Vec weight(const uint8_t* p) {
        return load_half(reinterpret_cast<const uint16_t*>(p));
    }
    FASTSERVE_INLINE static Vec accumulate(Vec acc, Vec w, const uint8_t* x) {
        return fma(w, as_float(broadcast4(x)), acc);
    }
};

struct Bf16 {
    using Weight = VecI;
    static constexpr int kStep = 2, kStepBytes = 64, kXBytes = 2;
    static constexpr bool kOnePanel = true;
    FASTSERVE_INLINE static VecI weight(const uint8_t* p) { return load(p); }
    FASTSERVE_INLINE static Vec accumulate(Vec acc, VecI w, const uint8_t* x) {
        return dot_bf16(acc, w, broadcast4(x));
    }
};

template <class Format>
struct Plain {
    static constexpr int kMaxPanels = Format::kOnePanel ? 1 : 4, kMaxTile = Format::kOnePanel ? 8 : 24;
    static constexpr int kMaxRows = Format::kOnePanel && kNumRegisters >= 32 ? 8 : kMaxTileRows;

    const uint8_t* x;
    int64_t x_row_bytes;
    PackedWeight weight;
    float* y;
    int64_t ldy;
    // Of the current chunk and panel group:
    const uint8_t* chunk_x;  // of row 0
    const uint8_t* chunk_w;
    float* chunk_y;
    int num_columns, num_steps;
    bool first;

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        constexpr int kStep = Format::kStep;
        chunk_x = x + int64_t{k_begin} * Format::kXBytes;
        chunk_w = weight.data + panel * weight.panel_bytes + int64_t{k_begin / kStep} * Format::kStepBytes;
        chunk_y = y + int64_t{panel} * kPanel;
        num_columns = weight.n - panel * kPanel;
        num_steps = (k_end - k_begin + kStep - 1) / kStep;
        first = k_begin == 0;
    }

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][P];
        float* const out = chunk_y + row * ldy;
        load_chain(acc, out, ldy, num_columns, first);
        const uint8_t* from = chunk_x + row * x_row_bytes;
        const uint8_t* w = chunk_w;
        for (int step = 0; step < num_steps; ++step) {
            typename Format::Weight weights[P];
            if constexpr (Format::kOnePanel && kAheadBytes > 0 && R >= kAheadRows) prefetch(w + kAheadBytes);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) weights[p] = Format::weight(w + p * weight.panel_bytes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p)
                    acc[r][p] = Format::accumulate(acc[r][p], weights[p], from + r * x_row_bytes);
            from += Format::kStep * Format::kXBytes;
            w += Format::kStepBytes;
        }
        store_chain(acc, out, ldy, num_columns);
    }
};

template <class Format>
void run(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy, const void* x, int64_t ldx) {
    Plain<Format> kind = {};
    kind.x = static_cast<const uint8_t*>(x);
    kind.x_row_bytes = ldx * Format::kXBytes;
    kind.weight = args.w;
    kind.y = y;
    kind.ldy = ldy;
    const MatmulConfig config = choose_matmul(part.row_end - part.row_begin, args.w.type);
    walk_tiles(kind, args.w.k, part, config);
}

}  // namespace

void matmul_tile_plain(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    if (args.w.type == WeightType::f32)
        run<F32>(args, part, y, ldy, args.x, args.ldx);
    else if (args.w.type == WeightType::f16)
        run<F16>(args, part, y, ldy, args.x, args.ldx);
    else
        run<Bf16>(args, part, y, ldy, args.scratch, bf16_operand_stride(args.w.k));
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
