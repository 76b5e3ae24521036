// The word by which the host ends the kernels that wait for a lost rank: 0 until one is lost. Needs no header
// of CUDA.
#pragma once

#include <cstdint>

namespace fastserve::cuda {

class EpochWord {
  public:
    // word: of a group's shared memory (SharedRegion::epoch), mapped as long as this lives: whoever raises
    // it, in whichever process, ends kernels here too. Null: a word of its own. Throws std::runtime_error
    // with CUDA's words.
    explicit EpochWord(uint32_t* word);
    ~EpochWord();
    EpochWord(const EpochWord&) = delete;
    EpochWord& operator=(const EpochWord&) = delete;

    // Where kernels see it.
    const uint32_t* on_device() const { return on_device_; }
    // From any thread.
    void raise();

  private:
    void release();

    uint32_t* word_;
    void* page_ = nullptr;  // of a group's memory; null: the word is this one's own
    const uint32_t* on_device_ = nullptr;
};

}  // namespace fastserve::cuda
