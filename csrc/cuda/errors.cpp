#include "errors.h"

#include <stdexcept>
#include <string>

namespace fastserve::cuda {

void throw_invalid_argument(const char* rule) {
    throw std::invalid_argument(rule);
}

void throw_cuda_error(const char* words) {
    throw std::runtime_error(std::string("CUDA: ") + words);
}

}  // namespace fastserve::cuda
