// What launchers throw, out of line: the standard's strings and exceptions are a second of nvcc's time in
// each file.
#pragma once

namespace fastserve::cuda {

[[noreturn]] void throw_invalid_argument(const char* rule);
[[noreturn]] void throw_cuda_error(const char* words);  // std::runtime_error, "CUDA: " before the words

}  // namespace fastserve::cuda
