// fuzz_gguf SEED_FILE NUM_MUTATIONS: damages a GGUF file in NUM_MUTATIONS ways and reads each.
//
// Exits 0 when every outcome was a file read whole or a WeightFileError; anything else is a sanitizer's
// report, a crash, or exit 1 with the number of the mutation. Mutation i depends on the seed file and on i
// alone, so that a third argument I repeats mutation I by itself. Build with -fsanitize=address,undefined.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "weights/gguf.h"

namespace {

using fastserve::GgufFile;
using fastserve::WeightFileError;
using Bytes = std::vector<uint8_t>;

// splitmix64: every seed, also 0, 1, 2, gives an independent stream.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    uint64_t below(uint64_t limit) { return limit == 0 ? 0 : next() % limit; }

  private:
    uint64_t state_;
};

void cut(Bytes& bytes, Random& random) {
    bytes.resize(random.below(bytes.size() + 1));
}

void grow(Bytes& bytes, Random& random) {
    const size_t at = random.below(2) == 0 ? bytes.size() : random.below(bytes.size() + 1);
    Bytes extra(1 + random.below(200));
    for (uint8_t& byte : extra) byte = static_cast<uint8_t>(random.next());
    bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), extra.begin(), extra.end());
}

void flip_bits(Bytes& bytes, Random& random) {
    for (uint64_t i = 1 + random.below(8); i > 0 && !bytes.empty(); --i) {
        bytes[random.below(bytes.size())] ^= static_cast<uint8_t>(1u << random.below(8));
    }
}

// Overwrites 4 or 8 bytes, anywhere, with a value that arithmetic is likely to trip over.
void smash_integer(Bytes& bytes, Random& random) {
    const uint64_t size = bytes.size();
    const uint64_t hard[] = {0,
                             1,
                             2,
                             8,
                             9,
                             31,
                             0x7f,
                             0xff,
                             0x100,
                             0xffff,
                             0x10000,
                             1ull << 20,
                             0x7fffffff,
                             1ull << 31,
                             0xffffffff,
                             1ull << 32,
                             1ull << 40,
                             (1ull << 40) + 1,
                             (1ull << 61) + 1,
                             1ull << 62,
                             (1ull << 63) - 1,
                             1ull << 63,
                             ~0ull,
                             ~0ull - 7,
                             ~0ull - 31,
                             size,
                             size - 1,
                             size + 1,
                             0 - size,
                             random.next(),
                             random.below(64),
                             random.below(4096)};
    const uint64_t value = hard[random.below(std::size(hard))];
    const size_t width = random.below(2) == 0 ? 4 : 8;
    if (size < width) return;
    std::memcpy(bytes.data() + random.below(size - width + 1), &value, width);
}

Bytes mutate(const Bytes& seed, uint64_t idx) {
    Random random(idx);
    Bytes bytes = seed;
    for (uint64_t i = 1 + random.below(3); i > 0; --i) {
        switch (random.below(8)) {
            case 0:
                cut(bytes, random);
                break;
            case 1:
                grow(bytes, random);
                break;
            case 2:
            case 3:
                flip_bits(bytes, random);
                break;
            default:
                smash_integer(bytes, random);
        }
    }
    return bytes;
}

uint64_t weigh(const fastserve::GgufScalar& scalar) {
    const auto* text = std::get_if<std::string_view>(&scalar);
    uint64_t sum = scalar.index();
    if (text != nullptr) {
        for (char c : *text) sum += static_cast<uint8_t>(c);
    }
    return sum;
}

// Touches all that the file offers. The sum keeps the reads alive.
uint64_t use(const GgufFile& file) {
    uint64_t sum = file.version();
    for (const auto& [key, value] : file.metadata()) {
        if (file.find_value(key) != &value) throw std::logic_error("a key leads elsewhere");
        for (uint64_t i = 0; i < value.count; ++i) sum += weigh(value.at(i));
    }
    for (const auto& tensor : file.tensors()) {
        if (&file.tensor(tensor.name) != &tensor) throw std::logic_error("a tensor's name leads elsewhere");
        sum += static_cast<uint64_t>(tensor.n) + static_cast<uint64_t>(tensor.k) + tensor.dims.size();
        if (!fastserve::type_supported(tensor.type)) continue;
        const uint8_t* data = file.tensor_data(tensor);
        for (uint64_t i = 0; i < tensor.bytes; i += 61) sum += data[i];
        if (tensor.bytes > 0) sum += data[tensor.bytes - 1];
    }
    // A tensor of a type without kernels must say so in the same way as any other flaw.
    for (const auto& tensor : file.tensors()) sum += *file.tensor_data(tensor);
    return sum;
}

enum class Outcome { whole, refused };

Outcome read(const Bytes& bytes, uint64_t& sum) {
    // An allocation of the very size, so that a read past its end is seen.
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]);
    std::copy(bytes.begin(), bytes.end(), exact.get());
    try {
        sum += use(GgufFile::from_memory({exact.get(), bytes.size()}, "mutant.gguf"));
        return Outcome::whole;
    } catch (const WeightFileError& error) {
        if (std::string(error.what()).find("mutant.gguf: byte ") != 0) throw std::logic_error(error.what());
        return Outcome::refused;
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return std::fprintf(stderr, "usage: fuzz_gguf SEED_FILE NUM_MUTATIONS [ONLY]\n"), 2;
    std::ifstream in(argv[1], std::ios::binary);
    const Bytes seed((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const uint64_t num_mutations = std::strtoull(argv[2], nullptr, 10);
    const uint64_t first = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0;
    const uint64_t end = argc > 3 ? first + 1 : num_mutations;
    uint64_t sum = 0, num_whole = 0, num_refused = 0;
    if (read(seed, sum) != Outcome::whole)
        return std::fprintf(stderr, "the seed file itself is refused\n"), 2;
    for (uint64_t idx = first; idx < end; ++idx) {
        try {
            (read(mutate(seed, idx), sum) == Outcome::whole ? num_whole : num_refused) += 1;
        } catch (const std::exception& error) {
            std::fprintf(stderr, "mutation %llu: %s\n", static_cast<unsigned long long>(idx), error.what());
            return 1;
        }
    }
    std::printf("%llu read whole, %llu refused (checksum %llx)\n", static_cast<unsigned long long>(num_whole),
                static_cast<unsigned long long>(num_refused), static_cast<unsigned long long>(sum));
    return 0;
}
