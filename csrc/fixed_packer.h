// Queries in fixed point: rounded to int16 or int8 with a scale of each row's own, which goes into the scale of its
// dots. Not responsible for the scales of the heads (packing.cpp).
#pragma once

#include "beside.h"
#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

// A query whose norm is not comfortably inside float32: everything in double. Writes its strips, returns the scale of
// its dots; NaN if there is a NaN or infinity. Rare, so plain and slow.
template <typename Arithmetic, typename Query>
__attribute__((noinline)) double round_awkward(const Query* from, std::size_t d, const PackedHeads& heads,
                                               typename Arithmetic::Value* to, std::size_t height, double& rounding) {
    constexpr std::size_t kWidth = kStrip * Arithmetic::kValues;
    const std::size_t plane = height * kWidth;
    const auto element = [&](std::size_t i) { return load_query_partial(from + i, 1)[0]; };
    double norm2 = 0.0, limit2 = 0.0, chain2 = 0.0, largest = 0.0;
    for (std::size_t i = 0; i < d; ++i) {
        const float value = element(i);
        if (!is_finite(value)) return __builtin_nan("");
        const double x = value < 0 ? -static_cast<double>(value) : value;
        chain2 += x * x;
        norm2 += x * x;
        largest = x > largest ? x : largest;
        if constexpr (Arithmetic::kLimited) {
            const double ratio = chain2 * static_cast<double>(heads.inverse_limits[i / kIntChain]);
            limit2 = ratio > limit2 ? ratio : limit2;
        }
        if ((i + 1) % kIntChain == 0) chain2 = 0.0;
    }
    if (norm2 == 0.0) limit2 = largest = 1.0;
    const double by_norm = 1.0 / __builtin_sqrt(limit2), by_largest = Arithmetic::kLargest / largest;
    const double scale = 0.999999 * (by_norm < by_largest ? by_norm : by_largest);
    double error2 = 0.0;
    for (std::size_t i = 0; i < round_up(d, kWidth); ++i) {
        const double x = i < d ? element(i) * scale : 0.0, rounded = __builtin_floor(x + 0.5);
        error2 += (x - rounded) * (x - rounded);
        Arithmetic::store(to + i / kWidth * plane * Arithmetic::kPlanes + i % kWidth, plane,
                          static_cast<std::int32_t>(rounded + Arithmetic::kOrigin));
    }
    if (norm2 == 0.0) return 0.0;
    const double length = scale * __builtin_sqrt(norm2);
    rounding = __builtin_sqrt(error2) / length;
    return 1.0 / length;
}

// Rounds a tile's queries into its strips, [elements / 16][height][16]. First every row is measured, a row at a
// time; then the scales of all rows are found, so that one row's square roots need not wait for another's; then come 16
// elements of one row at a time.
template <typename Arithmetic, typename Query>
class FixedPacker {
   public:
    using Value = typename Arithmetic::Value;

    HR_MEMBER FixedPacker(const Rows& rows, const PackedHeads& heads, const Tile& tile)
        : tile_(tile),
          heads_(heads),
          n_rows_(tile.rows),
          d_(heads.query_dim),
          queries_(rows, tile),
          ahead_(rows, heads, tile, false, tile.height * (1 + divide_up(heads.query_dim, kWidth))),
          to_(reinterpret_cast<Value*>(tile.strips)),
          plane_(tile.height * kWidth),
          row_scale_(rows.log2e_over_temperature / heads.centroid_scale),
          want_rounding_(rows.account != nullptr) {
        for (std::size_t i = 0; i < tile.rows * kStrip; i += kLanes) store(tile.squares + i, zero());
    }

    HR_MEMBER void line() {
        if (measured_ < n_rows_) {
            measure(queries_.row(measured_));
            if (++measured_ == n_rows_) choose_scales();
        } else if (queries_.column() + kWidth <= d_ && n_rows_ > 0) {
            round(queries_.here());
            if constexpr (!Arithmetic::kRowsAhead)
                for (std::size_t i = 0; i < kWidth; i += kStrip) queries_.prefetch(i);
            next();
        }
        if constexpr (Arithmetic::kRowsAhead) ahead_.step();
    }

    HR_MEMBER void rest() {
        if (n_rows_ == 0) return;
        while (measured_ < n_rows_ || queries_.column() + kWidth <= d_) line();
        while (queries_.column() < d_) {
            const std::size_t n = d_ - queries_.column();
            round_partial(queries_.here(), n);
            next();
        }
        for (std::size_t m = 0; m < n_rows_; ++m) {
            if (inverse_length_[m] == 0.0f)
                pack_awkward(queries_.row(m), m);
            else if (want_rounding_)
                tile_.query_rounding[m] =
                    __builtin_sqrtf(sum_of_strip(tile_.squares + m * kStrip)) * inverse_length_[m];
        }
        const std::size_t columns = round_up(elements(heads_, d_), kStrip);
        for (std::size_t column = 0; column < columns; column += kStrip)
            for (std::size_t i = n_rows_ * kStrip; i < tile_.height * kStrip; i += kLanes)
                store(tile_.strips + column * tile_.height + i, zero());
    }

   private:
    static constexpr std::size_t kWidth = kStrip * Arithmetic::kValues;

    HR_MEMBER void next() {
        to_ += kWidth;
        if (queries_.advance(kWidth)) to_ += Arithmetic::kPlanes * plane_ - n_rows_ * kWidth;
    }

    // ‖q‖², the largest |q|, and what 1 / S² must not be below.
    HR_MEMBER void measure(const Query* from) {
        vfloat largest = zero();
        float norm2 = 0.0f, limit2 = 0.0f;
        for (std::size_t start = 0; start < d_; start += kIntChain) {
            const std::size_t end = min(start + kIntChain, d_);
            vfloat squares = zero();
            const auto add = [&](vfloat x) __attribute__((always_inline)) {
                squares = fma(x, x, squares);
                largest = max(abs(x), largest);
            };
            std::size_t i = start;
            for (; i + kLanes <= end; i += kLanes) add(load_query(from + i));
            if (i < end) add(load_query_partial(from + i, end - i));
            const float chain2 = reduce_add(squares);
            norm2 += chain2;
            if constexpr (Arithmetic::kLimited) {
                const float ratio = chain2 * heads_.inverse_limits[start / kIntChain];
                limit2 = ratio > limit2 ? ratio : limit2;
            }
        }
        norm2_[measured_] = norm2;
        limit2_[measured_] = limit2;
        largest_[measured_] = reduce_max(largest);
    }

    HR_MEMBER void choose_scales() {
        for (std::size_t m = 0; m < n_rows_; ++m) {
            const float by_norm = 1.0f / __builtin_sqrtf(limit2_[m]);  // infinite without limits
            const float by_largest = Arithmetic::kLargest / largest_[m];
            scale_[m] = 0.999999f * (by_norm < by_largest ? by_norm : by_largest);
            inverse_length_[m] = 1.0f / (scale_[m] * __builtin_sqrtf(norm2_[m]));
            if (!(norm2_[m] > 0x1p-40f && norm2_[m] < 0x1p80f)) scale_[m] = inverse_length_[m] = 0.0f;
            tile_.scale[m] = within_float(row_scale_ * static_cast<double>(inverse_length_[m]));
        }
    }

    // A row that choose_scales() gave up: a zero query, one with a NaN, or one whose norm float32 cannot hold.
    HR_MEMBER void pack_awkward(const Query* from, std::size_t m) {
        double rounding = 0.0;
        const double inverse_length = round_awkward<Arithmetic>(
            from, d_, heads_, reinterpret_cast<Value*>(tile_.strips) + m * kWidth, tile_.height, rounding);
        tile_.scale[m] = within_float(row_scale_ * inverse_length);
        tile_.query_rounding[m] = static_cast<float>(rounding);
    }

    HR_MEMBER static float within_float(double scale) { return static_cast<float>(scale > 0x1p127 ? 0x1p127 : scale); }

    HR_MEMBER void round(const Query* from) {
        const std::size_t m = queries_.row();
        const vfloat bias = splat(kRoundBias + Arithmetic::kOrigin), scale = splat(scale_[m]);
        for (std::size_t j = 0; j < kWidth; j += kLanes) {
            const vfloat x = load_query(from + j);
            const vfloat biased = fma(x, scale, bias);
            Arithmetic::store(to_ + j, plane_, (vint)biased);
            if (!want_rounding_) continue;
            float* squares = tile_.squares + m * kStrip + j % kStrip;
            const vfloat error = fma(x, scale, bias - biased);
            store(squares, fma(error, error, load(squares)));
        }
    }
    HR_MEMBER void round_partial(const Query* from, std::size_t n) {
        Query padded[kWidth] = {};
        __builtin_memcpy(padded, from, n * sizeof(Query));
        round(padded);
    }

    const Tile& tile_;
    const PackedHeads& heads_;
    const std::size_t n_rows_, d_;
    QueryCursor<Query> queries_;
    QueriesAhead ahead_;
    Value* to_;
    const std::size_t plane_;  // values
    const double row_scale_;
    const bool want_rounding_;
    std::size_t measured_ = 0;  // rows
    float norm2_[kRows], limit2_[kRows], largest_[kRows];
    float scale_[kRows], inverse_length_[kRows];  // S, 1 / (S ‖q‖)
};

template <typename Arithmetic>
HR_INLINE void pack_fixed(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
    with_type(rows.queries, [&](auto query) __attribute__((always_inline)) {
        FixedPacker<Arithmetic, decltype(query)>(rows, heads, tile).rest();
    });
}

// Resets the numbers of a packed tile. Returns its first row with a NaN or infinity, or kNoBadRow.
HR_INLINE std::size_t begin_fixed(const Tile& tile) {
    reset_numbers(tile);
    for (std::size_t m = 0; m < tile.rows; ++m)
        if (tile.scale[m] != tile.scale[m]) return tile.first + m;
    return kNoBadRow;
}

}  // namespace
