// Queries in fixed point: rounded to int16 or int8 with a scale of each row's own, which goes into the scale of its
// dots. Not responsible for the scales of the heads (packing.cpp).
#pragma once

#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

// A query whose norm is not comfortably inside float32: everything in double. Writes its strips, returns the scale of
// its dots; NaN if there is a NaN or infinity. Rare, so plain and slow.
template <typename Arithmetic>
__attribute__((noinline)) double round_awkward(const float* from, std::size_t d, const PackedHeads& heads,
                                               typename Arithmetic::Value* to, std::size_t strip_stride,
                                               double& rounding) {
    constexpr std::size_t kWidth = kStrip * Arithmetic::kValues;
    double norm2 = 0.0, limit2 = 0.0, chain2 = 0.0, largest = 0.0;
    for (std::size_t i = 0; i < d; ++i) {
        if (!is_finite(from[i])) return __builtin_nan("");
        const double x = from[i] < 0 ? -static_cast<double>(from[i]) : from[i];
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
        const double x = i < d ? from[i] * scale : 0.0, rounded = __builtin_floor(x + 0.5);
        error2 += (x - rounded) * (x - rounded);
        to[i / kWidth * strip_stride + i % kWidth] =
            static_cast<typename Arithmetic::Value>(rounded + Arithmetic::kOrigin);
    }
    if (norm2 == 0.0) return 0.0;
    const double length = scale * __builtin_sqrt(norm2);
    rounding = __builtin_sqrt(error2) / length;
    return 1.0 / length;
}

// Rounds a tile's queries into its strips, [elements / 16][height][16]. First every row is measured, a row at a
// time; then the scales of all rows are found, so that one row's square roots need not wait for another's; then come 16
// elements of one row at a time.
template <typename Arithmetic>
class FixedPacker {
   public:
    using Element = typename Arithmetic::Element;
    using Value = typename Arithmetic::Value;

    HR_MEMBER FixedPacker(const Rows& rows, const PackedHeads& heads, const Tile& tile)
        : tile_(tile),
          heads_(heads),
          n_rows_(tile.rows),
          d_(heads.query_dim),
          stride_(rows.query_stride),
          row_scale_(rows.log2e_over_temperature / heads.centroid_scale),
          want_rounding_(rows.rounding != nullptr),
          first_row_(rows.queries + static_cast<std::ptrdiff_t>(tile.first) * stride_),
          // The rows of the tile after this one are asked for now: a tile's time before they are read.
          ahead_(tile.first + 2 * tile.rows <= rows.n ? static_cast<std::ptrdiff_t>(tile.rows) * stride_ : 0) {
        for (std::size_t i = 0; i < tile.height * kStrip; i += kLanes) store(tile.squares + i, zero());
        begin_strip();
    }

    HR_MEMBER void line() {
        if (measured_ < n_rows_) {
            measure();
            if (++measured_ == n_rows_) choose_scales();
        } else if (column_ + kWidth <= d_ && n_rows_ > 0) {
            round(from_);
            for (std::size_t i = 0; i < kWidth; i += kStrip) __builtin_prefetch(from_ + ahead_ + i);
            next_row();
        }
    }

    HR_MEMBER void rest() {
        if (n_rows_ == 0) return;
        while (measured_ < n_rows_ || column_ + kWidth <= d_) line();
        if (column_ < d_)
            for (std::size_t m = 0; m < n_rows_; ++m) {
                float padded[kWidth] = {};
                __builtin_memcpy(padded, from_, (d_ - column_) * sizeof(float));
                round(padded);
                next_row();
            }
        for (std::size_t m = 0; m < n_rows_; ++m) {
            if (inverse_length_[m] == 0.0f)
                pack_awkward(m);
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

    HR_MEMBER void begin_strip() {
        row_ = 0;
        from_ = first_row_ + column_;
        to_ = reinterpret_cast<Value*>(tile_.strips) + column_ * tile_.height;
    }
    HR_MEMBER void next_row() {
        from_ += stride_;
        to_ += kWidth;
        if (++row_ < n_rows_) return;
        column_ += kWidth;
        begin_strip();
    }

    // ‖q‖², the largest |q|, and what 1 / S² must not be below.
    HR_MEMBER void measure() {
        const float* from = first_row_ + static_cast<std::ptrdiff_t>(measured_) * stride_;
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
            for (; i + kLanes <= end; i += kLanes) add(load(from + i));
            if (i < end) add(load_partial(from + i, end - i, 0.0f));
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
    HR_MEMBER void pack_awkward(std::size_t m) {
        double rounding = 0.0;
        const double inverse_length = round_awkward<Arithmetic>(
            first_row_ + static_cast<std::ptrdiff_t>(m) * stride_, d_, heads_,
            reinterpret_cast<Value*>(tile_.strips) + m * kWidth, tile_.height * kWidth, rounding);
        tile_.scale[m] = within_float(row_scale_ * inverse_length);
        tile_.query_rounding[m] = static_cast<float>(rounding);
    }

    HR_MEMBER static float within_float(double scale) { return static_cast<float>(scale > 0x1p127 ? 0x1p127 : scale); }

    HR_MEMBER void round(const float* from) {
        const vfloat bias = splat(kRoundBias + Arithmetic::kOrigin), scale = splat(scale_[row_]);
        for (std::size_t j = 0; j < kWidth; j += kLanes) {
            const vfloat x = load(from + j);
            const vfloat biased = fma(x, scale, bias);
            Arithmetic::store(to_ + j, (vint)biased);
            if (!want_rounding_) continue;
            float* squares = tile_.squares + row_ * kStrip + j % kStrip;
            const vfloat error = fma(x, scale, bias - biased);
            store(squares, fma(error, error, load(squares)));
        }
    }

    const Tile& tile_;
    const PackedHeads& heads_;
    const std::size_t n_rows_, d_;
    const std::ptrdiff_t stride_;
    const double row_scale_;
    const bool want_rounding_;
    const float* const first_row_;
    const std::ptrdiff_t ahead_;
    std::size_t measured_ = 0;  // rows
    float norm2_[kRows], limit2_[kRows], largest_[kRows];
    float scale_[kRows], inverse_length_[kRows];  // S, 1 / (S ‖q‖)
    const float* from_ = nullptr;
    Value* to_ = nullptr;
    std::size_t row_ = 0, column_ = 0;
};

// Finishes the numbers of a packed tile. Returns its first row with a NaN or infinity, or kNoBadRow.
HR_INLINE std::size_t check_fixed(const Tile& tile) {
    for (std::size_t m = 0; m < tile.height; ++m) {
        tile.maximum[m] = -__builtin_inff();
        tile.weight_sum[m] = 0.0f;
        tile.weight_rounding[m] = 0.0f;
        if (m >= tile.rows)
            tile.scale[m] = 0.0f;
        else if (tile.scale[m] != tile.scale[m])
            return tile.first + m;
    }
    return kNoBadRow;
}

}  // namespace
