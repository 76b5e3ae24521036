// A panel interleaves 16 output columns, so a source row is spread over one lane of its panel. For Q4_0 and
// Q4_1 the 16 bytes of a block keep their order: byte j holds weights j and j + 16 both in the file and in
// the lane's groups.
#include "weights/packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "weights/gguf_type.h"
#include "weights/half.h"
#include "weights/packed_layout.h"

namespace fastserve {
namespace {

constexpr int64_t kMaxFileK = int64_t{1} << 31;  // keeps sizes in bytes far from overflow
constexpr int kGroup = 4;  // weights of one column side by side: the operand of vpdpbusd

// One output column of a packed weight.
class Lane {
  public:
    Lane(const PackedWeight& weight, uint8_t* data, int64_t column)
        : type_(weight.type), panel_(data + column / kPanel * weight.panel_bytes), lane_(column % kPanel) {}

    // Of weight k: f32, f16, bf16.
    uint8_t* weight(int64_t k) const {
        switch (type_) {
            case WeightType::f32:
                return panel_ + (k * kPanel + lane_) * 4;
            case WeightType::f16:
                return panel_ + (k * kPanel + lane_) * 2;
            default:
                return panel_ + (k / 2 * kPanel + lane_) * 4 + k % 2 * 2;
        }
    }
    uint8_t* scale(int64_t block) const { return panel_ + block * block_bytes() + lane_ * 2; }
    uint8_t* minimum(int64_t block) const { return scale(block) + kPanel * 2; }
    // The j-th byte of the block's codes: one weight of q8, two of q4 and q4m.
    uint8_t* code(int64_t block, int j) const {
        const int64_t group = j / kGroup * kPanel + lane_;
        return panel_ + block * block_bytes() + header_bytes() + group * kGroup + j % kGroup;
    }
    int num_code_bytes() const { return type_ == WeightType::q8 ? 32 : 16; }
    bool has_minimum() const { return type_ == WeightType::q4m; }

  private:
    int64_t header_bytes() const { return kPanel * (has_minimum() ? 4 : 2); }
    int64_t block_bytes() const { return header_bytes() + kPanel * num_code_bytes(); }

    WeightType type_;
    uint8_t* panel_;
    int64_t lane_;
};

void check_range(const char* name, int64_t begin, int64_t end, int64_t limit) {
    if (begin < 0 || begin >= end || end > limit)
        throw std::invalid_argument(std::string(name) +
                                    " must satisfy 0 <= begin < end <= " + std::to_string(limit) + ", got (" +
                                    std::to_string(begin) + ", " + std::to_string(end) + ")");
}

const GgufType& checked_type(uint32_t gguf_type) {
    packed_type(gguf_type);
    return *find_gguf_type(gguf_type);
}

int64_t row_bytes(const WeightSlice& slice) {
    const GgufType& type = checked_type(slice.gguf_type);
    return slice.file_k / type.block_weights * type.block_bytes;
}

void check_slice(const WeightSlice& slice, const PackedWeight& weight, int64_t at) {
    const GgufType& type = checked_type(slice.gguf_type);
    if (slice.data == nullptr) throw std::invalid_argument("address must not be null");
    if (slice.file_k < 1 || slice.file_k > kMaxFileK || slice.file_k % type.block_weights != 0)
        throw std::invalid_argument("file_k must be a positive multiple of " +
                                    std::to_string(type.block_weights) + ", got " +
                                    std::to_string(slice.file_k));
    check_range("cols", slice.col_begin, slice.col_end, slice.file_k);
    if (slice.col_begin % type.block_weights != 0 || slice.col_end - slice.col_begin != weight.k)
        throw std::invalid_argument("cols must begin at a multiple of " + std::to_string(type.block_weights) +
                                    " and span k = " + std::to_string(weight.k) + ", got (" +
                                    std::to_string(slice.col_begin) + ", " + std::to_string(slice.col_end) +
                                    ")");
    check_range("rows", slice.row_begin, slice.row_end,
                std::numeric_limits<int64_t>::max() / row_bytes(slice));
    if (at < 0 || at > weight.n - (slice.row_end - slice.row_begin))
        throw std::invalid_argument(
            "at must leave room for " + std::to_string(slice.row_end - slice.row_begin) +
            " of n = " + std::to_string(weight.n) + " columns, got " + std::to_string(at));
    if (packed_type(slice.gguf_type) != weight.type && type.block_weights > 1)
        throw std::invalid_argument(std::string("gguf_type must pack as ") + weight_type_name(weight.type) +
                                    ", got " + type.name);
}

void copy_plain(const uint8_t* row, int bytes, int64_t k, const Lane& lane) {
    for (int64_t i = 0; i < k; ++i) std::memcpy(lane.weight(i), row + i * bytes, static_cast<size_t>(bytes));
}

// Products read bf16 in pairs: behind an odd number of weights stands 0.
void end_pairs(const PackedWeight& weight, const Lane& lane) {
    if (weight.type == WeightType::bf16 && weight.k % 2 == 1) std::memset(lane.weight(weight.k), 0, 2);
}

// Blocks of Q4_0, Q4_1 and Q8_0: a half scale, for Q4_1 a half minimum, the codes.
void copy_blocks(const uint8_t* row, int64_t num_blocks, const Lane& lane) {
    const uint32_t sign = lane.num_code_bytes() == 32 ? 0x80808080 : 0;  // Q8_0 is signed, q8 is not
    for (int64_t block = 0; block < num_blocks; ++block) {
        std::memcpy(lane.scale(block), row, 2);
        row += 2;
        if (lane.has_minimum()) {
            std::memcpy(lane.minimum(block), row, 2);
            row += 2;
        }
        for (int j = 0; j < lane.num_code_bytes(); j += kGroup) {
            uint32_t codes;
            std::memcpy(&codes, row + j, sizeof codes);
            codes ^= sign;
            std::memcpy(lane.code(block, j), &codes, sizeof codes);
        }
        row += lane.num_code_bytes();
    }
}

float store_half(uint8_t* p, float value) {
    const uint16_t bits = float_to_half(value);
    std::memcpy(p, &bits, sizeof bits);
    return half_to_float(bits);
}

uint8_t code_of(float shifted, float scale, int highest) {
    const float code = std::nearbyint(scale == 0 ? 0.0f : shifted / scale);
    return static_cast<uint8_t>(std::clamp(code, 0.0f, static_cast<float>(highest)));
}

void quantise_block(const float* x, int64_t block, const Lane& lane, WeightType type) {
    const auto larger = [](float a, float b) { return std::abs(a) < std::abs(b); };
    const float extreme = *std::max_element(x, x + kQuantBlock, larger);
    float minimum, scale;
    if (type == WeightType::q4m) {
        const auto [low, high] = std::minmax_element(x, x + kQuantBlock);
        minimum = store_half(lane.minimum(block), *low);
        scale = store_half(lane.scale(block), (*high - minimum) / 15);
    } else {
        const float wanted = type == WeightType::q8 ? std::abs(extreme) / 127 : extreme / -8;
        scale = store_half(lane.scale(block), wanted);
        minimum = scale * (type == WeightType::q8 ? -128.0f : -8.0f);
    }
    if (type == WeightType::q8) {
        for (int j = 0; j < 32; ++j) *lane.code(block, j) = code_of(x[j] - minimum, scale, 255);
        return;
    }
    for (int j = 0; j < 16; ++j) {
        const int low = code_of(x[j] - minimum, scale, 15), high = code_of(x[j + 16] - minimum, scale, 15);
        *lane.code(block, j) = static_cast<uint8_t>(low | high << 4);
    }
}

void pack_float_row(const float* x, const PackedWeight& weight, uint8_t* data, int64_t column) {
    const Lane lane(weight, data, column);
    if (is_quantised(weight.type)) {
        for (int64_t block = 0; block < weight.k / kQuantBlock; ++block)
            quantise_block(x + block * kQuantBlock, block, lane, weight.type);
    } else if (weight.type == WeightType::f32) {
        copy_plain(reinterpret_cast<const uint8_t*>(x), 4, weight.k, lane);
    } else {
        for (int64_t i = 0; i < weight.k; ++i) {
            const uint16_t bits =
                weight.type == WeightType::f16 ? float_to_half(x[i]) : float_to_bfloat(x[i]);
            std::memcpy(lane.weight(i), &bits, sizeof bits);
        }
        end_pairs(weight, lane);
    }
}

void unpack_block(const Lane& lane, WeightType type, int64_t block, float* out) {
    const float scale = half_to_float(load_u16(lane.scale(block)));
    if (type == WeightType::q8) {
        for (int j = 0; j < 32; ++j) out[j] = scale * static_cast<float>(*lane.code(block, j) - 128);
        return;
    }
    const float minimum = lane.has_minimum() ? half_to_float(load_u16(lane.minimum(block))) : 0;
    const int offset = lane.has_minimum() ? 0 : 8;
    for (int j = 0; j < 16; ++j) {
        const int codes = *lane.code(block, j);
        out[j] = scale * static_cast<float>((codes & 15) - offset) + minimum;
        out[j + 16] = scale * static_cast<float>((codes >> 4) - offset) + minimum;
    }
}

}  // namespace

void pack_slice(const WeightSlice& slice, const PackedWeight& weight, uint8_t* data, int64_t at) {
    check_slice(slice, weight, at);
    const GgufType& type = checked_type(slice.gguf_type);
    const int64_t first_byte = slice.col_begin / type.block_weights * type.block_bytes;
    std::vector<float> floats(packed_type(slice.gguf_type) == weight.type ? 0
                                                                          : static_cast<size_t>(weight.k));
    for (int64_t r = slice.row_begin; r < slice.row_end; ++r) {
        const uint8_t* row = slice.data + r * row_bytes(slice) + first_byte;
        const int64_t column = at + r - slice.row_begin;
        const Lane lane(weight, data, column);
        if (!floats.empty()) {
            dequantise_row(slice.gguf_type, row, weight.k, floats.data());
            pack_float_row(floats.data(), weight, data, column);
        } else if (is_quantised(weight.type)) {
            copy_blocks(row, weight.k / kQuantBlock, lane);
        } else {
            copy_plain(row, static_cast<int>(type.block_bytes), weight.k, lane);
            end_pairs(weight, lane);
        }
    }
}

void pack_f32(const float* x, int64_t ldx, const PackedWeight& weight, uint8_t* data) {
    if (x == nullptr) throw std::invalid_argument("address must not be null");
    if (ldx < weight.k)
        throw std::invalid_argument("ldx must be >= k = " + std::to_string(weight.k) + ", got " +
                                    std::to_string(ldx));
    for (int64_t column = 0; column < weight.n; ++column)
        pack_float_row(x + column * ldx, weight, data, column);
}

void unpack(const PackedWeight& weight, float* out) {
    for (int64_t column = 0; column < weight.n; ++column, out += weight.k) {
        const Lane lane(weight, const_cast<uint8_t*>(weight.data), column);
        if (is_quantised(weight.type)) {
            for (int64_t block = 0; block < weight.k / kQuantBlock; ++block)
                unpack_block(lane, weight.type, block, out + block * kQuantBlock);
        } else if (weight.type == WeightType::f32) {
            for (int64_t i = 0; i < weight.k; ++i) std::memcpy(out + i, lane.weight(i), sizeof *out);
        } else {
            for (int64_t i = 0; i < weight.k; ++i) {
                const uint16_t bits = load_u16(lane.weight(i));
                out[i] = weight.type == WeightType::f16 ? half_to_float(bits) : bfloat_to_float(bits);
            }
        }
    }
}

void dequantise_row(uint32_t gguf_type, const uint8_t* row, int64_t k, float* out) {
    const GgufType& type = checked_type(gguf_type);
    if (k < 0 || k % type.block_weights != 0)
        throw std::invalid_argument("k must be a multiple of " + std::to_string(type.block_weights) +
                                    ", got " + std::to_string(k));
    const WeightType packed = packed_type(gguf_type);
    if (packed == WeightType::f32) {
        std::memcpy(out, row, static_cast<size_t>(k) * sizeof *out);
    } else if (type.block_weights == 1) {
        for (int64_t i = 0; i < k; ++i) {
            const uint16_t bits = load_u16(row + 2 * i);
            out[i] = packed == WeightType::f16 ? half_to_float(bits) : bfloat_to_float(bits);
        }
    } else {
        for (int64_t i = 0; i < k; i += kQuantBlock, row += type.block_bytes) {
            const float scale = half_to_float(load_u16(row));
            if (packed == WeightType::q8) {
                for (int j = 0; j < 32; ++j)
                    out[i + j] = scale * static_cast<float>(static_cast<int8_t>(row[2 + j]));
                continue;
            }
            const bool has_minimum = packed == WeightType::q4m;
            const float minimum = has_minimum ? half_to_float(load_u16(row + 2)) : 0;
            const int offset = has_minimum ? 0 : 8;
            const uint8_t* codes = row + (has_minimum ? 4 : 2);
            for (int j = 0; j < 16; ++j) {
                out[i + j] = scale * static_cast<float>((codes[j] & 15) - offset) + minimum;
                out[i + j + 16] = scale * static_cast<float>((codes[j] >> 4) - offset) + minimum;
            }
        }
    }
}

}  // namespace fastserve
