// Heads packed for one kernel, run over batches of queries on several threads.
#pragma once

#include <cstddef>
#include <functional>

#include "packing.h"
#include "projection.h"

namespace headroute {

struct Batch {
    const float* queries;         // [n, d]
    std::ptrdiff_t query_stride;  // floats between two rows
    std::size_t n;
    float* out;  // [n, e] or [n, K], C-contiguous
    double temperature;
    std::size_t n_threads;
};

struct Outcome {
    std::size_t bad_row;  // the first query with a NaN or infinity, or kNoBadRow
    bool interrupted;
};

// Immutable once made: any number of threads may call it at the same time.
class Engine {
   public:
    // centroids [K, d] with unit norm, answers [K, e], C-contiguous, K, d, e >= 1; copied.
    Engine(const float* centroids, const float* answers, std::size_t n_heads, std::size_t query_dim,
           std::size_t answer_dim, const Kernel& kernel);

    // interrupted() is called by the calling thread about every 50 ms of a long call; true ends it early.
    Outcome project(const Batch& batch, const std::function<bool()>& interrupted) const;
    Outcome route(const Batch& batch, const std::function<bool()>& interrupted) const;

    const Kernel& kernel() const { return kernel_; }
    const PackedHeads& heads() const { return heads_; }
    std::size_t packed_bytes() const;

   private:
    Outcome run(const Batch& batch, bool weights_only, const std::function<bool()>& interrupted) const;

    const Kernel& kernel_;
    PackedHeads heads_;
    AlignedFloats packed_;
};

}  // namespace headroute
