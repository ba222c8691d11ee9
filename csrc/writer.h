// How a tile's results leave: vectors to `out` in either type, past the caches or not, and whole rows of sums. Not
// responsible for when (beside.h).
#pragma once

#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

// A vector to where `out` is, in either type of it; past the caches if told so.
HR_INLINE void put(float* p, vfloat v, bool past_caches) { past_caches ? stream(p, v) : store(p, v); }
HR_INLINE void put(half* p, vfloat v, bool past_caches) { past_caches ? stream_half(p, v) : store_half(p, v); }
// The first n lanes, four at a time: where lines are streamed, a masked store over the end of one costs 5 % at K = 16.
template <typename Value>
HR_INLINE void put_partial(Value* p, vfloat v, std::size_t n) {
    Value lanes[kLanes];
    put(lanes, v, false);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) __builtin_memcpy(p + i, lanes + i, 4 * sizeof(Value));
    for (; i < n; ++i) p[i] = lanes[i];
}

// to = from · factor for any number of columns.
template <typename Value>
HR_INLINE void put_scaled(Value* to, const float* from, std::size_t n, float factor) {
    const vfloat f = splat(factor);
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(to + i, load(from + i) * f, false);
    if (i < n) put_partial(to + i, load_partial(from + i, n - i, 0.0f) * f, n - i);
}

// Writes finished columns of a tile to `out`, a row at a time: sums · factor. Past the caches, if rows.stream says so,
// and then in whole cache lines wherever `out` starts: a line may have to wait for the next panel.
template <typename Value>
class Writer {
   public:
    HR_MEMBER Writer(const Rows& rows, const PackedHeads& heads, const Tile& tile, const float* factor)
        : e_(heads.answer_dim),
          stream_(rows.stream),
          rows_(tile.rows),
          sums_(tile.sums),
          out_(reinterpret_cast<Value*>(rows.out.data) + tile.first * e_),
          factor_(factor),
          row_(rows_) {}

    // Columns up to `columns` are complete in all rows.
    HR_MEMBER void ready(std::size_t columns) {
        rest();
        written_ = ready_;
        ready_ = columns;
        row_ = 0;
    }

    HR_MEMBER void row() {
        if (row_ == rows_) return;
        const float* from = sums_ + row_ * sum_stride(e_);
        Value* to = out_ + row_ * e_;
        const vfloat f = splat(factor_[row_++]);
        const std::size_t head = head_of(to);
        for (std::size_t i = head + (written_ < head ? 0 : (written_ - head) / kLine * kLine); i + kLine <= ready_;
             i += kLine)
            for (std::size_t j = 0; j < kLine; j += kLanes) put(to + i + j, load(from + i + j) * f, stream_);
    }

    HR_MEMBER void rest() {
        while (row_ < rows_) row();
    }

    // What is less than a line, at both ends of every row. A line that two rows share is written as one: half a line
    // past the caches would have to be read first.
    HR_MEMBER void ends() const {
        for (std::size_t m = 0; m < rows_; ++m) {
            const float* from = sums_ + m * sum_stride(e_);
            Value* to = out_ + m * e_;
            const std::size_t head = head_of(to), tail = (e_ - head) % kLine;
            const bool shared = stream_ && e_ >= kLine;
            if (!shared || m == 0) put_scaled(to, from, head, factor_[m]);
            if (!shared || m + 1 == rows_)
                put_scaled(to + e_ - tail, from + e_ - tail, tail, factor_[m]);
            else if (tail > 0)
                put_joined(to + e_ - tail, from + e_ - tail, from + sum_stride(e_) - tail, tail, m);
        }
    }

   private:
    static constexpr std::size_t kLine = 64 / sizeof(Value);

    // A line of the last n columns of row m and the first of the next, at `end` and n before `next`.
    HR_MEMBER void put_joined(Value* to, const float* end, const float* next, std::size_t n, std::size_t m) const {
        for (std::size_t j = 0; j < kLine; j += kLanes) {
            const vint is_end = lane_numbers() < splat_int(static_cast<std::int32_t>(n) - static_cast<std::int32_t>(j));
            const vfloat factor = select(is_end, splat(factor_[m]), splat(factor_[m + 1]));
            put(to + j, select(is_end, load(end + j), load(next + j)) * factor, true);
        }
    }

    // Columns of a row before its first whole line.
    HR_MEMBER std::size_t head_of(const Value* row) const {
        const std::size_t misaligned = stream_ ? reinterpret_cast<std::uintptr_t>(row) % 64 / sizeof(Value) : 0;
        return misaligned == 0 ? 0 : min(kLine - misaligned, e_);
    }

    const std::size_t e_;
    const bool stream_;
    const std::size_t rows_;
    const float* const sums_;
    Value* const out_;
    const float* const factor_;
    std::size_t row_;
    std::size_t written_ = 0, ready_ = 0;  // columns
};

}  // namespace
