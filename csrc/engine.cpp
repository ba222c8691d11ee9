#include "engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace headroute {

namespace {

constexpr double kLog2E = 1.4426950408889634;

// Rows that pass through all blocks of heads together. Enough of them that fetching a block from L3 is a small part
// of using it; few enough that their queries and sums stay in L3, and within the memory a thread may use.
constexpr std::size_t kMaxPassRows = 1008;  // 72 × 14, 84 × 12, 168 × 6; rounded down for SSE2's 5
constexpr std::size_t kPassBytes = std::size_t{5} << 20;
// int8 blocks are small beside what is done with them: they need fewer rows to pay for fetching them.
constexpr std::size_t kScreenedPassRows = 168;

// Output larger than this leaves the caches before anybody reads it: do not fetch its lines in order to overwrite them.
constexpr std::size_t kStreamBytes = std::size_t{16} << 20;

// Below this many multiply-adds (about 100 µs) a second thread costs more than it brings.
constexpr double kSerialMultiplyAdds = 5e6;

std::size_t multiple_of(std::size_t step, std::size_t n) { return std::max(n / step * step, step); }

}  // namespace

std::size_t Engine::packed_bytes() const {
    const PackedHeads& heads = heads_.packed;
    const std::size_t rows = heads.centroid_rows == nullptr ? 0 : heads.n_heads * row_stride(heads.query_dim);
    return (heads_.data_elements + rows) * sizeof(float);
}

Outcome Engine::project(const Batch& batch, const std::function<bool()>& interrupted) const {
    return run(batch, false, interrupted);
}

Outcome Engine::route(const Batch& batch, const std::function<bool()>& interrupted) const {
    return run(batch, true, interrupted);
}

Outcome Engine::run(const Batch& batch, bool weights_only, const std::function<bool()>& interrupted) const {
    if (batch.n == 0) return {kNoBadRow, false};
    const PackedHeads& heads = heads_.packed;
    const std::size_t height = kernel_.max_rows;
    const std::size_t columns = weights_only ? heads.n_heads : heads.answer_dim;

    const double multiply_adds = static_cast<double>(batch.n) * static_cast<double>(heads.n_heads) *
                                 static_cast<double>(heads.query_dim + (weights_only ? 0 : heads.answer_dim));
    const std::size_t tiles = (batch.n + height - 1) / height;
    const std::size_t wanted =
        multiply_adds < kSerialMultiplyAdds ? 1 : std::clamp<std::size_t>(batch.n_threads, 1, tiles);

    // A unit is what a thread takes from the counter. Two for each thread let a slow one be helped; with four, heads
    // that do not fit into L3 are fetched twice as often (2 to 4 % at K = 16,384).
    const std::size_t unit_rows =
        std::clamp(round_up(batch.n / (2 * wanted) + 1, height), height, multiple_of(height, kMaxPassRows));
    const std::size_t n_units = (batch.n + unit_rows - 1) / unit_rows;
    const std::size_t n_threads = std::min(wanted, n_units);

    const std::size_t slot_bytes = slot_floats(heads, height) * sizeof(float);
    const std::size_t fitting_rows = multiple_of(height, kPassBytes / slot_bytes * height);
    const std::size_t most_rows = heads.precision == Precision::screened ? kScreenedPassRows : kMaxPassRows;
    const std::size_t pass_rows =
        heads.n_blocks == 1 ? unit_rows : std::min({unit_rows, fitting_rows, multiple_of(height, most_rows)});
    const std::size_t scratch_size = scratch_floats(heads, pass_rows, height);
    std::vector<AlignedFloats> scratch;
    for (std::size_t t = 0; t < n_threads; ++t) scratch.push_back(allocate_floats(scratch_size));

    std::atomic<std::size_t> bad_row{kNoBadRow};
    std::atomic<bool> stop{false};
    auto last_poll = std::chrono::steady_clock::now();
    const auto poll_caller = [&] {
        const auto now = std::chrono::steady_clock::now();
        if (stop || now - last_poll < std::chrono::milliseconds(50)) return;
        last_poll = now;
        if (interrupted()) stop = true;
    };
    // The calling thread asks; the others only look at the answer.
    const std::function<bool()> caller_stops = [&] {
        poll_caller();
        return stop.load(std::memory_order_relaxed);
    };
    const Interrupt caller{[](void* f) { return (*static_cast<const std::function<bool()>*>(f))(); },
                           const_cast<std::function<bool()>*>(&caller_stops)};
    const Interrupt worker{[](void* flag) { return static_cast<std::atomic<bool>*>(flag)->load(); }, &stop};

    const auto compute = weights_only                             ? kernel_.route
                         : heads.precision == Precision::int16    ? kernel_.project_int16
                         : heads.precision == Precision::screened ? kernel_.project_screened
                                                                  : kernel_.project;
    const bool stream =
        !weights_only && heads.precision != Precision::screened && batch.n * columns * sizeof(float) > kStreamBytes;
    const auto unit = [&](std::size_t index, std::size_t thread) {
        const std::size_t first = index * unit_rows;
        if (stop || first > bad_row) return;  // rows before the first bad one are still looked at
        const Rows rows{batch.queries + static_cast<std::ptrdiff_t>(first) * batch.query_stride,
                        batch.query_stride,
                        std::min(unit_rows, batch.n - first),
                        pass_rows,
                        batch.out + first * columns,
                        kLog2E / batch.temperature,
                        stream,
                        batch.rounding == nullptr ? nullptr : batch.rounding + 2 * first,
                        batch.may_drop,
                        scratch[thread].get()};
        const std::size_t bad = compute(heads, rows, thread == 0 ? caller : worker);
        if (bad == kNoBadRow) return;
        std::size_t known = bad_row;
        while (first + bad < known && !bad_row.compare_exchange_weak(known, first + bad)) {
        }
    };
    parallel_for(n_units, n_threads, unit, poll_caller);
    return {bad_row, stop};
}

}  // namespace headroute
