// The fused kernel in 16-bit fixed point, for those who accept a bound on the error. Included after
// projection_kernel.inl by each isa_*.cpp.
//
//   q16 = round(q · S)        S, one a row, as large as int16 and the chains' limits allow: about 75,000 / ‖q‖
//   c16 = round((ĉ - μ) · S_c)
//   s[n,k] = Σ q16 · c16      int32 within a chain of kIntChain columns, where it is exact; chains are added as floats
//   w[n,k] = 2^((s - m) · c)  float32, as are m and Σw;  c = log2(e) / (τ ‖q‖ S S_c)
//   w16 = round(w · kWeightTotal / Σ w)   over a chain of kIntChain heads: |Σ w16 · a16| < 2^31
//   p[n] = Σ_chains (Σ w / kWeightTotal) (Σ w16 · a16) / Σ_k w[n,k]
//
// The loop nest is that of projection_kernel.inl, at twice the multiply-adds a second. No sum in integers can
// overflow: for cosines by Cauchy-Schwarz over the norms that were measured when the heads were packed, for sums of
// answers because Σ |w16| is at most kWeightTotal + kIntChain / 2. What all roundings together may do to a projected
// query is derived in src/headroute/rounding.py; the two parts of it that depend on the query are measured here, on
// demand. Not responsible for: limits and scales of the heads (packing.cpp).

#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

// What the rounded weights of a chain add up to, nearly. The largest may be the only one, and must fit an int16.
constexpr float kWeightTotal = 32760.0f;

constexpr std::size_t kPairStrip = 2 * kStrip;  // int16 in a row of a strip

// A query whose norm is not comfortably inside float32: everything in double. Writes its strips, returns the scale of
// its dots; NaN if there is a NaN or infinity. Rare, so plain and slow.
__attribute__((noinline)) double quantize_awkward(const float* from, std::size_t d, const PackedHeads& heads,
                                                  std::int16_t* to, std::size_t strip_stride, double& rounding) {
    double norm2 = 0.0, limit2 = 0.0, chain2 = 0.0, largest = 0.0;
    for (std::size_t i = 0; i < d; ++i) {
        if (!is_finite(from[i])) return __builtin_nan("");
        const double x = from[i] < 0 ? -static_cast<double>(from[i]) : from[i];
        chain2 += x * x;
        norm2 += x * x;
        largest = x > largest ? x : largest;
        const double ratio = chain2 * static_cast<double>(heads.inverse_limits[i / kIntChain]);
        limit2 = ratio > limit2 ? ratio : limit2;
        if ((i + 1) % kIntChain == 0) chain2 = 0.0;
    }
    if (norm2 == 0.0) limit2 = largest = 1.0;
    const double by_norm = 1.0 / __builtin_sqrt(limit2), by_largest = (kLargestInt16 - 1) / largest;
    const double scale = 0.999999 * (by_norm < by_largest ? by_norm : by_largest);
    double error2 = 0.0;
    for (std::size_t i = 0; i < round_up(d, kPairStrip); ++i) {
        const double x = i < d ? from[i] * scale : 0.0, rounded = __builtin_floor(x + 0.5);
        error2 += (x - rounded) * (x - rounded);
        to[i / kPairStrip * strip_stride + i % kPairStrip] = static_cast<std::int16_t>(rounded);
    }
    if (norm2 == 0.0) return 0.0;
    const double length = scale * __builtin_sqrt(norm2);
    rounding = __builtin_sqrt(error2) / length;
    return 1.0 / length;
}

// Rounds a tile's queries into its strips, [pairs / 16][height][16 pairs]. First every row is measured, a row at a
// time; then the scales of all rows are found, so that one row's square roots need not wait for another's; then come 32
// columns of one row at a time.
class Int16Packer {
   public:
    using Element = std::int32_t;

    HR_MEMBER Int16Packer(const Rows& rows, const PackedHeads& heads, const Tile& tile)
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
        } else if (column_ + kPairStrip <= d_ && n_rows_ > 0) {
            round(from_);
            __builtin_prefetch(from_ + ahead_);
            __builtin_prefetch(from_ + ahead_ + kStrip);
            next_row();
        }
    }

    HR_MEMBER void rest() {
        if (n_rows_ == 0) return;
        while (measured_ < n_rows_ || column_ + kPairStrip <= d_) line();
        if (column_ < d_)
            for (std::size_t m = 0; m < n_rows_; ++m) {
                float padded[kPairStrip] = {};
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
    HR_MEMBER void begin_strip() {
        row_ = 0;
        from_ = first_row_ + column_;
        to_ = reinterpret_cast<std::int16_t*>(tile_.strips) + column_ * tile_.height;
    }
    HR_MEMBER void next_row() {
        from_ += stride_;
        to_ += kPairStrip;
        if (++row_ < n_rows_) return;
        column_ += kPairStrip;
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
            const float ratio = chain2 * heads_.inverse_limits[start / kIntChain];
            limit2 = ratio > limit2 ? ratio : limit2;
        }
        norm2_[measured_] = norm2;
        limit2_[measured_] = limit2;
        largest_[measured_] = reduce_max(largest);
    }

    HR_MEMBER void choose_scales() {
        for (std::size_t m = 0; m < n_rows_; ++m) {
            const float by_norm = 1.0f / __builtin_sqrtf(limit2_[m]);
            const float by_largest = static_cast<float>(kLargestInt16 - 1) / largest_[m];
            scale_[m] = 0.999999f * (by_norm < by_largest ? by_norm : by_largest);
            inverse_length_[m] = 1.0f / (scale_[m] * __builtin_sqrtf(norm2_[m]));
            if (!(norm2_[m] > 0x1p-40f && norm2_[m] < 0x1p80f)) scale_[m] = inverse_length_[m] = 0.0f;
            tile_.scale[m] = within_float(row_scale_ * static_cast<double>(inverse_length_[m]));
        }
    }

    // A row that choose_scales() gave up: a zero query, one with a NaN, or one whose norm float32 cannot hold.
    HR_MEMBER void pack_awkward(std::size_t m) {
        double rounding = 0.0;
        const double inverse_length = quantize_awkward(
            first_row_ + static_cast<std::ptrdiff_t>(m) * stride_, d_, heads_,
            reinterpret_cast<std::int16_t*>(tile_.strips) + m * kPairStrip, tile_.height * kPairStrip, rounding);
        tile_.scale[m] = within_float(row_scale_ * inverse_length);
        tile_.query_rounding[m] = static_cast<float>(rounding);
    }

    HR_MEMBER static float within_float(double scale) { return static_cast<float>(scale > 0x1p127 ? 0x1p127 : scale); }

    HR_MEMBER void round(const float* from) {
        const vfloat bias = splat(kRoundBias), scale = splat(scale_[row_]);
        for (std::size_t j = 0; j < kPairStrip; j += kLanes) {
            const vfloat x = load(from + j);
            const vfloat biased = fma(x, scale, bias);
            store_low_halves(to_ + j, (vint)biased);
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
    std::int16_t* to_ = nullptr;
    std::size_t row_ = 0, column_ = 0;
};

// Finishes the numbers of a packed tile. Returns its first row with a NaN or infinity, or kNoBadRow.
HR_INLINE std::size_t check_int16(const Tile& tile) {
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

// A tile's weights on their way from the first product to the second.
struct Int16Weights {
    float* dots;          // [block / 16][ROWS][16]; then weights
    std::int32_t* pairs;  // [block / 2 / 16][ROWS][16]
    float* scales;        // [chain][ROWS]: pairs times these are weights
};

// The dots of one chain of a row → weights; returns their sum.
HR_INLINE float chain_weights(float* row, std::size_t row_stride, std::size_t heads, float maximum, float scale) {
    const vfloat m = splat(maximum), c = splat(scale);
    vfloat sum = zero();
    std::size_t k = 0;
    for (; k + kLanes <= heads; k += kLanes) {
        float* p = row + k / kStrip * row_stride + k % kStrip;
        const vfloat w = exp2_nonpositive((load(p) - m) * c);
        store(p, w);
        sum += w;
    }
    if (k < heads) {
        float* p = row + k / kStrip * row_stride + k % kStrip;
        store_partial(p, exp2_nonpositive((load_partial(p, heads - k, maximum) - m) * c), heads - k);
        const vfloat w = load_partial(p, heads - k, 0.0f);
        store(p, w);
        sum += w;
    }
    return reduce_add(sum);
}

// Online softmax over one block of a tile: raw dots → weights in pairs and their scales.
template <std::size_t ROWS>
HR_INLINE void softmax_int16(const Tile& tile, const Int16Weights& weights, std::size_t heads, std::size_t e,
                             bool want_rounding) {
    const vfloat bias = splat(kRoundBias);
    for (std::size_t m = 0; m < ROWS; ++m) {
        float* row = weights.dots + m * kStrip;
        raise_maximum(tile, m, row_maximum(row, ROWS * kStrip, heads), e);
        for (std::size_t start = 0; start < heads; start += kIntChain) {
            const std::size_t n = min(kIntChain, heads - start);
            float* chain = row + start * ROWS;
            const float sum = chain_weights(chain, ROWS * kStrip, n, tile.maximum[m], tile.scale[m]);
            tile.weight_sum[m] += sum;
            // A chain of next to nothing beside a sum of at least 1 is nothing.
            const float factor = sum > 0x1p-100f ? kWeightTotal / sum : 0.0f;
            weights.scales[start / kIntChain * ROWS + m] = sum * (1.0f / kWeightTotal);
            std::int16_t* to = reinterpret_cast<std::int16_t*>(weights.pairs) + start * ROWS + m * kPairStrip;
            vfloat errors = zero();
            for (std::size_t k = 0; k < n; k += kLanes) {
                const vfloat w = load(chain + k / kStrip * ROWS * kStrip + k % kStrip);
                const vfloat biased = fma(w, splat(factor), bias);
                store_low_halves(to + k / kPairStrip * ROWS * kPairStrip + k % kPairStrip, (vint)biased);
                if (want_rounding) errors += abs(fma(w, splat(factor), bias - biased));
            }
            if (want_rounding) tile.weight_rounding[m] += reduce_add(errors) * (sum * (1.0f / kWeightTotal));
        }
    }
}

// One block of a tile, projected.
template <std::size_t ROWS>
HR_INLINE void project_block_int16(const PackedHeads& heads, const Rows& rows, const Block<std::int32_t>& block,
                                   const Tile& tile, const Tile& next, const Int16Weights& weights) {
    const std::size_t e = heads.answer_dim;
    constexpr std::size_t kChainPairs = kIntChain / 2;
    const auto product = [&](auto beside) __attribute__((always_inline)) {
        multiply<Int16Pairs, ROWS>(reinterpret_cast<const std::int32_t*>(tile.strips), block.centroids,
                                   elements(heads, heads.query_dim), kChainPairs, block.heads,
                                   Target{weights.dots, kStrip, ROWS * kStrip, false, nullptr}, beside,
                                   [](std::size_t) {});
    };
    if (block.is_first) {
        Int16Packer packer(rows, heads, next);  // not passed on by reference: docs/decisions/0008
        product([&]() __attribute__((always_inline)) { packer.line(); });
        packer.rest();
    } else {
        SumsAhead sums_ahead(tile, ROWS * sum_stride(e));
        product([&]() __attribute__((always_inline)) { sums_ahead.line(); });
    }
    softmax_int16<ROWS>(tile, weights, block.heads, e, rows.rounding != nullptr);
    const auto mix = [&](auto beside, auto done) __attribute__((always_inline)) {
        const Target sums{tile.sums, sum_stride(e), kStrip, !block.is_first, weights.scales};
        multiply<Int16Pairs, ROWS>(weights.pairs, block.answers, elements(heads, block.heads), kChainPairs, e, sums,
                                   beside, done);
    };
    if (!block.is_last) return mix(nothing, [](std::size_t) {});
    Writer writer(rows, heads, tile);
    mix([&]() __attribute__((always_inline)) { writer.row(); },
        [&](std::size_t columns) __attribute__((always_inline)) { writer.ready(columns); });
    writer.rest();
    writer.ends();
    if (rows.rounding == nullptr) return;
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* rounding = rows.rounding + 2 * (tile.first + m);
        rounding[0] = tile.query_rounding[m];
        rounding[1] = tile.weight_rounding[m] / tile.weight_sum[m];
    }
}

std::size_t project_int16(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const dots = tile_weights(heads, rows);
    float* const pairs = dots + weight_floats(heads, kRows);
    const Int16Weights weights{dots, reinterpret_cast<std::int32_t*>(pairs), pairs + weight_pairs(heads, kRows)};
    return for_each_tile<Int16Packer>(
        heads, rows, interrupt, check_int16,
        [&](auto height, const Block<std::int32_t>& block, const Tile& tile, const Tile& next) {
            project_block_int16<decltype(height)::value>(heads, rows, block, tile, next, weights);
        });
}

}  // namespace
