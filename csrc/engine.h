// Heads packed for one kernel, run over batches of queries on several threads.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

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
    float* rounding;  // [n][2] or null, see Rows::rounding
    double may_drop;  // see Rows
};

struct Outcome {
    std::size_t bad_row;  // the first query with a NaN or infinity, or kNoBadRow
    bool interrupted;
};

// Immutable once made: any number of threads may call it at the same time.
class Engine {
   public:
    Engine(Heads heads, const Kernel& kernel) : kernel_(kernel), heads_(std::move(heads)) {}

    // project in the precision of the heads, route of float32 heads only.
    // interrupted() is called by the calling thread about every 50 ms of a long call; true ends it early.
    Outcome project(const Batch& batch, const std::function<bool()>& interrupted) const;
    Outcome route(const Batch& batch, const std::function<bool()>& interrupted) const;

    const Kernel& kernel() const { return kernel_; }
    const PackedHeads& heads() const { return heads_.packed; }
    const HeadRounding& rounding() const { return heads_.rounding; }
    std::size_t packed_bytes() const;

   private:
    Outcome run(const Batch& batch, bool weights_only, const std::function<bool()>& interrupted) const;

    const Kernel& kernel_;
    Heads heads_;
};

}  // namespace headroute
