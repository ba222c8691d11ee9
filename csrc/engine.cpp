#include "engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <new>
#include <thread>
#include <vector>

#include "parallel.h"

namespace headroute {

namespace {

constexpr double kLog2E = 1.4426950408889634;

// Rows that pass through all blocks of heads together. Enough of them that fetching a block from L3 is a small part
// of using it; few enough that their queries and sums stay in L3, and within the memory a thread may use.
constexpr std::size_t kMaxPassRows = 1008;  // 72 × 14, 84 × 12, 168 × 6; rounded down for 5 and 32
constexpr std::size_t kPassBytes = std::size_t{5} << 20;
// int8 blocks are small beside what is done with them: they need fewer rows to pay for fetching them.
constexpr std::size_t kScreenedPassRows = 168;

// Output larger than this leaves the caches before anybody reads it: do not fetch its lines in order to overwrite them.
constexpr std::size_t kStreamBytes = std::size_t{16} << 20;

// Heads larger than this do not stay in L3 between two units.
constexpr std::size_t kCacheBytes = std::size_t{16} << 20;

// Below this many multiply-adds (about 100 µs) a second thread costs more than it brings.
constexpr double kSerialMultiplyAdds = 5e6;

// Bytes that a call may use for one thread; shared tiles are used where they fit.
constexpr std::size_t kThreadBytes = std::size_t{6} << 20;

std::size_t multiple_of(std::size_t step, std::size_t n) { return std::max(n / step * step, step); }

// How a call ends early: somebody met a bad row, or the caller was interrupted.
class Ending {
   public:
    explicit Ending(const std::function<bool()>& interrupted)
        : interrupted_(interrupted), last_poll_(std::chrono::steady_clock::now()) {}

    // Asks the caller, at most every 50 ms; the calling thread only.
    bool poll() {
        const auto now = std::chrono::steady_clock::now();
        if (!stop_ && now - last_poll_ >= std::chrono::milliseconds(50)) {
            last_poll_ = now;
            if (interrupted_()) stop_ = true;
        }
        return stop_;
    }
    bool stopped() const { return stop_.load(std::memory_order_relaxed); }
    // What a kernel polls: the calling thread asks, the others only look at the answer.
    Interrupt interrupt(std::size_t thread) {
        if (thread == 0) return {[](void* self) { return static_cast<Ending*>(self)->poll(); }, this};
        return {[](void* self) { return static_cast<Ending*>(self)->stopped(); }, this};
    }

    void meet_bad_row(std::size_t row) {
        std::size_t known = bad_row_;
        while (row < known && !bad_row_.compare_exchange_weak(known, row)) {
        }
    }
    std::size_t bad_row() const { return bad_row_; }
    Outcome outcome() const { return {bad_row_, stop_}; }

   private:
    const std::function<bool()>& interrupted_;
    std::chrono::steady_clock::time_point last_poll_;
    std::atomic<bool> stop_{false};
    std::atomic<std::size_t> bad_row_{kNoBadRow};
};

Rows rows_of(const Batch& batch, std::size_t columns, std::size_t first, std::size_t n, float* scratch) {
    Rows rows{};
    rows.queries = batch.queries.from(static_cast<std::ptrdiff_t>(first) * batch.query_stride);
    rows.query_stride = batch.query_stride;
    rows.n = rows.pass_rows = n;
    rows.out = batch.out.from(static_cast<std::ptrdiff_t>(first * columns));
    rows.log2e_over_temperature = kLog2E / batch.temperature;
    rows.stats = batch.stats == nullptr ? nullptr : batch.stats + 3 * first;
    rows.top = {batch.top.heads == nullptr ? nullptr : batch.top.heads + first * batch.top.k, batch.top.k};
    rows.account = batch.account == nullptr ? nullptr : batch.account + 2 * first;
    rows.may_drop = batch.may_drop;
    rows.scratch = scratch;
    return rows;
}

// What a thread takes from the counter: unit i is tiles [begin(i), begin(i + 1)). Two for each thread let a slow one be
// helped. With one block of heads the last is smaller than the others, since threads begin one after another (10 % of
// 100 µs). With more, each unit has to fetch all heads, so units are equal, and one for each thread where the `bytes`
// of heads do not stay in L3 between two. docs/decisions/0018.
class Units {
   public:
    Units(const PackedHeads& heads, std::size_t bytes, std::size_t tiles, std::size_t most, std::size_t n_threads)
        : tiles_(tiles), equal_(heads.n_blocks > 1) {
        if (equal_) {
            const std::size_t wanted = bytes <= kCacheBytes ? 2 * n_threads : n_threads;
            count_ = std::min(round_up(std::max(wanted, divide_up(tiles, most)), n_threads), tiles);
            largest_ = divide_up(tiles, count_);
        } else {
            largest_ = std::min(tiles / (2 * n_threads) + 1, most);
            count_ = divide_up(tiles, largest_);
        }
    }
    std::size_t count() const { return count_; }
    std::size_t largest() const { return largest_; }  // tiles
    std::size_t begin(std::size_t unit) const {
        return equal_ ? unit * tiles_ / count_ : std::min(unit * largest_, tiles_);
    }

   private:
    const std::size_t tiles_;
    const bool equal_;
    std::size_t count_, largest_;
};

// Fewer tiles than threads: all threads work on each tile, first on blocks of heads, then on panels of the result.
// Units are taken in order, so whoever waits for a tile's blocks waits for work that has begun.
void run_shared(const PackedHeads& heads, const Kernel& kernel, const Batch& batch, std::size_t n_threads,
                Ending& ending) {
    const std::size_t height = kernel.tile_rows(heads), n_tiles = divide_up(batch.n, height);
    const SharedKernel& steps =
        heads.precision == Precision::int16 ? kernel.int16(heads.n_heads).shared : kernel.shared_float32;
    struct SharedTile {
        float* dots;
        Rows rows;
        std::atomic<std::size_t> blocks_done{0};
    };
    const std::size_t tile_floats = shared_tile_floats(heads, height);
    const AlignedFloats memory =
        allocate_floats(n_tiles * tile_floats + n_threads * shared_scratch_floats(heads, height));
    float* const scratch = memory.get() + n_tiles * tile_floats;
    std::vector<SharedTile> tiles(n_tiles);
    for (std::size_t t = 0; t < n_tiles; ++t) {
        const std::size_t first = t * height;
        float* const slot = memory.get() + t * tile_floats;
        tiles[t].dots = slot + slot_floats(heads, height);
        tiles[t].rows = rows_of(batch, heads.answer_dim, first, std::min(height, batch.n - first), slot);
        const std::size_t bad = steps.begin(heads, tiles[t].rows);
        if (bad != kNoBadRow) return ending.meet_bad_row(first + bad);
    }

    const std::size_t panels = divide_up(heads.answer_dim, 2 * kernel.lanes), parts = std::min(n_threads, panels);
    const std::size_t units = heads.n_blocks + parts;  // of a tile
    const auto unit = [&](std::size_t index, std::size_t thread) {
        SharedTile& tile = tiles[index / units];
        const std::size_t step = index % units;
        if (step < heads.n_blocks) {
            if (!(thread == 0 ? ending.poll() : ending.stopped())) steps.dots(heads, tile.rows, tile.dots, step);
            ++tile.blocks_done;
            return;
        }
        while (tile.blocks_done != heads.n_blocks) std::this_thread::yield();
        if (ending.stopped()) return;
        const std::size_t part = step - heads.n_blocks;
        steps.finish(heads, tile.rows, tile.dots, part * panels / parts, (part + 1) * panels / parts,
                     scratch + thread * shared_scratch_floats(heads, height), ending.interrupt(thread));
    };
    parallel_for(n_tiles * units, n_threads, unit, [&] { ending.poll(); });
}

}  // namespace

std::size_t Engine::packed_bytes() const {
    const PackedHeads& heads = heads_.packed;
    const std::size_t rows = heads.centroid_rows == nullptr ? 0 : (heads.n_heads + 1) * row_stride(heads.query_dim);
    return (heads_.data_elements + rows) * sizeof(float);
}

bool Engine::one_thread(Task task, std::size_t n) const {
    const PackedHeads& heads = heads_.packed;
    const std::size_t columns = heads.query_dim + (task == Task::project ? heads.answer_dim : 0);
    return static_cast<double>(n) * static_cast<double>(heads.n_heads) * static_cast<double>(columns) <
           kSerialMultiplyAdds;
}

Outcome Engine::run(Task task, const Batch& batch, const std::function<bool()>& interrupted) const {
    if (batch.n == 0) return {kNoBadRow, false};
    const PackedHeads& heads = heads_.packed;
    const std::size_t height = kernel_.tile_rows(heads);
    const std::size_t columns = task == Task::project ? heads.answer_dim
                                : task == Task::route ? heads.n_heads
                                                      : batch.top.k;
    Ending ending(interrupted);

    const std::size_t tiles = divide_up(batch.n, height);
    const std::size_t wanted = one_thread(task, batch.n) ? 1 : std::max<std::size_t>(batch.n_threads, 1);
    const std::size_t sharing = std::min(wanted, tiles * heads.n_blocks);
    const std::size_t shared_bytes =
        sizeof(float) * (tiles * shared_tile_floats(heads, height) + sharing * shared_scratch_floats(heads, height));
    if (task == Task::project && heads.precision != Precision::screened && tiles < sharing &&
        shared_bytes <= sharing * kThreadBytes) {
        try {
            run_shared(heads, kernel_, batch, sharing, ending);
            return ending.outcome();
        } catch (const std::bad_alloc&) {  // thrown before anything began; what follows needs a hundredth
        }
    }

    const std::size_t n_threads = std::min(wanted, tiles);
    const Units units(heads, heads_.data_elements * sizeof(float), tiles, multiple_of(height, kMaxPassRows) / height,
                      n_threads);
    const std::size_t unit_rows = units.largest() * height;

    const std::size_t slot_bytes = slot_floats(heads, height) * sizeof(float);
    const std::size_t fitting_rows = multiple_of(height, kPassBytes / slot_bytes * height);
    const std::size_t most_rows = heads.precision == Precision::screened ? kScreenedPassRows : kMaxPassRows;
    const std::size_t pass_rows =
        heads.n_blocks == 1 ? unit_rows : std::min({unit_rows, fitting_rows, multiple_of(height, most_rows)});
    const std::size_t scratch_size = scratch_floats(heads, pass_rows, height);
    std::vector<AlignedFloats> scratch;
    for (std::size_t t = 0; t < n_threads; ++t) scratch.push_back(allocate_floats(scratch_size));

    const auto compute = task == Task::route                      ? kernel_.route
                         : task == Task::top_heads                ? kernel_.top_heads
                         : heads.precision == Precision::int16    ? kernel_.int16(heads.n_heads).project
                         : heads.precision == Precision::screened ? kernel_.screened.project
                                                                  : kernel_.project;
    const std::size_t out_bytes = batch.n * columns * (batch.out.half ? 2 : 4);
    const bool stream = task == Task::project && heads.precision != Precision::screened && out_bytes > kStreamBytes;
    const auto unit = [&](std::size_t index, std::size_t thread) {
        const std::size_t first = units.begin(index) * height;
        const std::size_t end = std::min(units.begin(index + 1) * height, batch.n);
        if (ending.stopped() || first > ending.bad_row()) return;  // rows before the first bad one are still looked at
        Rows rows = rows_of(batch, columns, first, end - first, scratch[thread].get());
        rows.pass_rows = pass_rows;
        rows.stream = stream;
        const std::size_t bad = compute(heads, rows, ending.interrupt(thread));
        if (bad != kNoBadRow) ending.meet_bad_row(first + bad);
    };
    parallel_for(units.count(), n_threads, unit, [&] { ending.poll(); });
    return ending.outcome();
}

}  // namespace headroute
