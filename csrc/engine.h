// Heads packed for one kernel, run over batches of queries on several threads.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

#include "packing.h"
#include "projection.h"

namespace headroute {

enum class Task { project, route, top_heads };

struct Batch {
    Matrix<const char> queries;   // [n, d]
    std::ptrdiff_t query_stride;  // elements between two rows
    std::size_t n;
    Matrix<char> out;  // [n, e], [n, K] or [n, k], C-contiguous; float32 unless it is projected
    double temperature;
    std::size_t n_threads;
    // See Rows; null, or 0, where they do not apply.
    float* stats = nullptr;
    Top top = {nullptr, 0};
    float* account = nullptr;
    double may_drop = 0.0;
};

struct Outcome {
    std::size_t bad_row;  // the first query with a NaN or infinity, or kNoBadRow
    bool interrupted;
};

// Immutable once made: any number of threads may call it at the same time.
class Engine {
   public:
    Engine(Heads heads, const Kernel& kernel) : kernel_(kernel), heads_(std::move(heads)) {}

    // project in the precision of the heads, the other tasks with float32 heads only.
    // interrupted() is called by the calling thread about every 50 ms of a long call; true ends it early.
    Outcome run(Task task, const Batch& batch, const std::function<bool()>& interrupted) const;

    // Whether a call on n rows is too short for a second thread.
    bool one_thread(Task task, std::size_t n) const;

    const Kernel& kernel() const { return kernel_; }
    const PackedHeads& heads() const { return heads_.packed; }
    const HeadRounding& rounding() const { return heads_.rounding; }
    std::size_t packed_bytes() const;

   private:
    const Kernel& kernel_;
    Heads heads_;
};

}  // namespace headroute
