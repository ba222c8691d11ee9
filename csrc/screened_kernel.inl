// The screened kernel: cosines of all heads in few bits, exact ones of the heads that may matter. Included by
// kernel.inl after int16_kernel.inl.
//
//   ŝ[n,k]     cosines from int8 (or int16) rows; the true s[n,k] lies within β of it,
//              β = ‖q̂ - q8‖ max ‖c‖ + (1 + ‖q̂ - q8‖) max ‖c - c8‖   (Cauchy-Schwarz, from measured roundings)
//   u[n,k]     = 2^((ŝ[n,k] - max ŝ + 2β) · log2e / τ)   bounds what head k weighs beside the heaviest
//   dropped    1. while searching: u so small that K heads like it may go          (an eighth of may_drop)
//              2. of the rest, the lightest by u                                   (three eighths)
//              3. of those whose exact cosine was taken, the lightest by weight    (a half)
//   p[n]       = Σ_kept (w / Σ_kept w) a, with w from exact cosines (float32)
//
// The error is the dropped part of the weight, at most, times the distance between two means of answers. That part is
// added up and reported. A row that would keep more than kept_limit() heads is given up: it reports infinity, and the
// caller projects it densely. What is kept depends on the row and the heads alone, so bits do too.
//
// Loop nest: blocks of heads, tiles of rows, as in projection_kernel.inl, without a second product; the last block's
// tiles finish their rows one by one: lists of a few hundred heads, read a row of memory at a time. Half of the time is
// the first product, at 4 times the multiply-adds of float32; most of the rest waits for those rows.

#include "fixed_packer.h"
#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

#if defined(__AMX_INT8__)
using Screen = SignedBytes;
#elif defined(__AVX512VNNI__)
using Screen = Int8Quads;
#else
using Screen = Int16Pairs;
#endif

template <typename Query>
using ScreenPacker = FixedPacker<Screen, Query>;

// Exponents of 2 that a list is sorted into, by which the lightest are found.
constexpr std::size_t kBuckets = 64;

// The candidates of a row: heads and, at first, their screened dots.
struct Candidates {
    float* values;         // [capacity]
    std::uint32_t* heads;  // [capacity], as places in the search order until exact cosines are taken
};

HR_INLINE Candidates candidates_of(const PackedHeads& heads, const Tile& tile, std::size_t m) {
    const std::size_t capacity = round_up(candidate_capacity(heads.n_heads), kStrip);
    float* const values = tile.candidates + 2 * m * capacity;
    return {values, reinterpret_cast<std::uint32_t*>(values + capacity)};
}

// Numbers of a row that the search keeps in the tile: how many candidates, and how far below the maximum one may be.
// A count above the capacity means that the row was given up.
HR_INLINE float& count_of(const Tile& tile, std::size_t m) { return tile.weight_sum[m]; }
HR_INLINE float& reach_of(const Tile& tile, std::size_t m) { return tile.weight_rounding[m]; }

// Keeps the candidates with values of at least `least`; returns how many.
HR_INLINE std::size_t keep_from(const Candidates& list, std::size_t n, float least) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < n; ++i) {
        list.values[kept] = list.values[i];
        list.heads[kept] = list.heads[i];
        kept += list.values[i] >= least;
    }
    return kept;
}

// Puts the lanes of `mask` behind the first n of a list; lane 0 is head `first`. Writes a whole vector.
HR_INLINE void append(const Candidates& list, std::size_t n, vfloat values, std::uint32_t first, unsigned mask) {
#if defined(__AVX512F__)
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i heads = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first)));
    const auto m = static_cast<__mmask16>(mask);
    store(list.values + n, (vfloat)_mm512_maskz_compress_ps(m, (__m512)values));
    _mm512_storeu_si512(list.heads + n, _mm512_maskz_compress_epi32(m, heads));
#else
    for (; mask != 0; mask &= mask - 1, ++n) {
        const auto lane = static_cast<unsigned>(__builtin_ctz(mask));
        list.values[n] = values[lane];
        list.heads[n] = first + lane;
    }
#endif
}

// 2β, in exponents of 2, of a row that was rounded by `rounding`.
HR_INLINE double margin(const PackedHeads& heads, const Rows& rows, float rounding) {
    const double r = 1.0001 * static_cast<double>(rounding);
    const double beta = r * heads.centroid_norm + (1.0 + r) * heads.centroid_rounding;
    // What float32 does to dots: their scale, and integers above 2^24 when there are thousands of columns.
    const double floats = 8e-6 + 4e-9 * static_cast<double>(heads.query_dim);
    return 2.0 * (1.0001 * beta + floats) * rows.log2e_over_temperature;
}

// Begins the search in a tile that has just been packed.
HR_INLINE std::size_t begin_search(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
    const std::size_t bad = check_fixed(tile);
    if (bad != kNoBadRow) return bad;
    // K heads that are each this many times lighter than the heaviest weigh an eighth of may_drop.
    const double lighter = 8.0 * static_cast<double>(heads.n_heads) / rows.may_drop;
    double bits = 0.0;
    for (double power = 1.0; power < lighter && bits < 1000.0; power *= 2.0) ++bits;
    for (std::size_t m = 0; m < tile.height; ++m) {
        count_of(tile, m) = 0.0f;
        reach_of(tile, m) = 0.0f;
        if (m >= tile.rows) continue;
        const double reach = (bits + margin(heads, rows, tile.query_rounding[m])) / tile.scale[m];
        reach_of(tile, m) = static_cast<float>(reach < 0x1p120 ? reach : 0x1p120);  // a zero query: everything
    }
    return kNoBadRow;
}

// Looks through a tile's dots with a block, [block / 16][ROWS][16].
template <std::size_t ROWS>
HR_INLINE void search_block(const PackedHeads& heads, const Block<Screen::Element>& block, const Tile& tile,
                            const float* dots) {
    const float* offsets = heads.dot_offsets + block.first;
    const std::size_t capacity = candidate_capacity(heads.n_heads);
    for (std::size_t m = 0; m < tile.rows; ++m) {
        std::size_t n = static_cast<std::size_t>(count_of(tile, m));
        if (n > capacity) continue;
        const float* row = dots + m * kStrip;
        const auto value = [&](std::size_t k) __attribute__((always_inline)) {
            const float* p = row + k / kStrip * ROWS * kStrip + k % kStrip;
            const vfloat dot = Screen::dots(p);
            if (k + kLanes <= block.heads) return dot - load(offsets + k);
            return dot - load_partial(offsets + k, block.heads - k, __builtin_inff());
        };
        float maximum = tile.maximum[m];
        if (block.is_first) {  // before anything is put on the list; later maxima are found on their way to it
            vfloat largest = value(0);
            for (std::size_t k = kLanes; k < block.heads; k += kLanes) largest = max(value(k), largest);
            maximum = reduce_max(largest);
        }
        const float reach = reach_of(tile, m);
        const Candidates list = candidates_of(heads, tile, m);
        for (std::size_t k = 0; k < block.heads; k += kLanes) {
            const vfloat v = value(k);
            const unsigned mask = at_least(v, maximum - reach);
            if (mask == 0) continue;
            if (n + kLanes > capacity) {  // what came early came easily
                n = keep_from(list, n, maximum - reach);
                if (n > capacity - capacity / 8) {
                    n = capacity + 1;
                    break;
                }
            }
            append(list, n, v, static_cast<std::uint32_t>(block.first + k), mask);
            n += static_cast<std::size_t>(__builtin_popcount(mask));
            if (at_least(v, maximum) != 0) maximum = reduce_max(v);
        }
        tile.maximum[m] = maximum;
        count_of(tile, m) = static_cast<float>(n);
    }
}

// Of values that are weights of at most about 1, finds the lightest that together weigh at most `budget`: returns the
// least value to keep, and adds what all below it weigh to `dropped`.
HR_INLINE float lightest(const float* weights, std::size_t n, float budget, float& dropped) {
    float sums[kBuckets] = {};
    for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t bits;
        __builtin_memcpy(&bits, weights + i, sizeof bits);
        const std::uint32_t below = 128 - (bits >> 23);  // 2^(1-below) <= weight < 2^(2-below)
        sums[below < kBuckets ? below : kBuckets - 1] += weights[i];
    }
    float sum = 0.0f;
    for (std::size_t b = kBuckets - 1; b > 0; --b) {
        if (sum + sums[b] > budget) {
            dropped += sum;
            // The last bucket takes all that is lighter still.
            return b == kBuckets - 1 ? 0.0f : __builtin_ldexpf(1.0f, 1 - static_cast<int>(b));
        }
        sum += sums[b];
    }
    dropped += sum;
    return 0.5f;
}

// values[i] → 2^((values[i] - maximum) · scale); what is between n and the next vector's end is not used.
HR_INLINE void list_weights(const Candidates& list, std::size_t n, float maximum, float scale) {
    for (std::size_t i = 0; i < n; i += kLanes)
        store(list.values + i, exp2_nonpositive((load(list.values + i) - splat(maximum)) * splat(scale)));
}

HR_INLINE float list_sum(const Candidates& list, std::size_t n) {
    vfloat sum = zero();
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) sum += load(list.values + i);
    if (i < n) sum += load_partial(list.values + i, n - i, 0.0f);
    return reduce_add(sum);
}

// values[i] → q · ĉ of the listed heads, four at a time; the next four are asked for meanwhile.
HR_INLINE void exact_dots(const PackedHeads& heads, const float* query, const Candidates& list, std::size_t n) {
    constexpr std::size_t kGroup = 4, kParts = kStrip / kLanes;
    const std::size_t stride = row_stride(heads.query_dim);
    const auto row = [&](std::size_t i) { return heads.centroid_rows + list.heads[min(i, n - 1)] * stride; };
    for (std::size_t i = 0; i < n; i += kGroup) {
        const float* rows[kGroup];
        const float* soon[kGroup];
        for (std::size_t g = 0; g < kGroup; ++g) {
            rows[g] = row(i + g);
            soon[g] = row(i + kGroup + g);
        }
        vfloat acc[kGroup][kParts] = {};
        for (std::size_t j = 0; j < stride; j += kStrip)
#pragma GCC unroll 4
            for (std::size_t g = 0; g < kGroup; ++g) {
                __builtin_prefetch(soon[g] + j);
#pragma GCC unroll 4
                for (std::size_t part = 0; part < kParts; ++part)
                    acc[g][part] =
                        fma(load(query + j + part * kLanes), load(rows[g] + j + part * kLanes), acc[g][part]);
            }
        for (std::size_t g = 0; g < kGroup && i + g < n; ++g) {
            float strip[kStrip];
            for (std::size_t part = 0; part < kParts; ++part) store(strip + part * kLanes, acc[g][part]);
            list.values[i + g] = sum_of_strip(strip);
        }
    }
}

// sums [e] = Σ values[i] · a of the listed heads, four at a time.
HR_INLINE void exact_mix(const PackedHeads& heads, const Candidates& list, std::size_t n, float* sums) {
    constexpr std::size_t kGroup = 4;
    const std::size_t e = heads.answer_dim;
    for (std::size_t j = 0; j < e; j += kLanes) store(sums + j, zero());
    for (std::size_t i = 0; i < n; i += kGroup) {
        const float* rows[kGroup];
        const float* soon[kGroup];
        vfloat w[kGroup];
        for (std::size_t g = 0; g < kGroup; ++g) {
            rows[g] = heads.answer_rows + list.heads[min(i + g, n - 1)] * e;
            soon[g] = heads.answer_rows + list.heads[min(i + kGroup + g, n - 1)] * e;
            w[g] = splat(i + g < n ? list.values[i + g] : 0.0f);
        }
        std::size_t j = 0;
        for (; j + kLanes <= e; j += kLanes) {
            vfloat sum = load(sums + j);
#pragma GCC unroll 4
            for (std::size_t g = 0; g < kGroup; ++g) {
                if (j % kStrip == 0) __builtin_prefetch(soon[g] + j);
                sum = fma(w[g], load(rows[g] + j), sum);
            }
            store(sums + j, sum);
        }
        if (j < e) {
            vfloat sum = load(sums + j);
            for (std::size_t g = 0; g < kGroup; ++g) sum = fma(w[g], load_partial(rows[g] + j, e - j, 0.0f), sum);
            store(sums + j, sum);
        }
    }
}

// Copies a query, with zeros behind it to row_stride(d); returns its squared norm.
template <typename Value>
HR_INLINE float copy_query(const Value* from, std::size_t d, float* to) {
    vfloat squares = zero();
    for (std::size_t i = 0; i < row_stride(d); i += kLanes) {
        const std::size_t left = d - min(i, d);
        const vfloat x = left >= kLanes ? load_query(from + i) : left > 0 ? load_query_partial(from + i, left) : zero();
        squares = fma(x, x, squares);
        store(to + i, x);
    }
    return reduce_add(squares);
}

// Finishes a row whose candidates are all found. Returns the part of its weight that was dropped, at most, or infinity
// if the row is given up.
HR_INLINE float finish_row(const PackedHeads& heads, const Rows& rows, const Tile& tile, std::size_t m, float* query,
                           float& n_kept) {
    const float given_up = __builtin_inff();
    n_kept = 0.0f;
    std::size_t n = static_cast<std::size_t>(count_of(tile, m));
    if (n > candidate_capacity(heads.n_heads)) return given_up;
    const Candidates list = candidates_of(heads, tile, m);
    const float may_drop = static_cast<float>(rows.may_drop);

    // 1. What is out of reach of the final maximum. From here on, weights are beside the heaviest head's.
    n = keep_from(list, n, tile.maximum[m] - reach_of(tile, m));
    float dropped = may_drop / 8;

    // 2. The lightest by u. values = u / 2^shift, so that exp2's argument is not positive.
    list_weights(list, n, tile.maximum[m], tile.scale[m]);
    const auto shift = static_cast<float>(margin(heads, rows, tile.query_rounding[m]));
    const float unit = reduce_max(exp2_nonpositive(splat(-shift)));
    if (!(unit > 0.0f)) return given_up;
    float lost = 0.0f;
    n = keep_from(list, n, lightest(list.values, n, 3 * may_drop / 8 * unit, lost));
    dropped += lost / unit;
    if (n > kept_limit(heads.n_heads)) return given_up;
    for (std::size_t i = 0; i < n; ++i) list.heads[i] = heads.search_order[list.heads[i]];

    // 3. The lightest by their exact cosines.
    float norm2 = 0.0f;
    with_type(rows.queries, [&](auto value) __attribute__((always_inline)) {
        norm2 = copy_query(QueryCursor<decltype(value)>(rows, tile).row(m), heads.query_dim, query);
    });
    if (!(norm2 > 0x1p-40f && norm2 < 0x1p80f)) return given_up;
    exact_dots(heads, query, list, n);
    float maximum = list.values[0];
    for (std::size_t i = 1; i < n; ++i) maximum = list.values[i] > maximum ? list.values[i] : maximum;
    const double scale = rows.log2e_over_temperature / __builtin_sqrt(static_cast<double>(norm2));
    list_weights(list, n, maximum, static_cast<float>(scale < 0x1p127 ? scale : 0x1p127));
    const float all = list_sum(list, n);
    lost = 0.0f;
    n = keep_from(list, n, lightest(list.values, n, may_drop / 2 * all, lost));
    dropped += lost;

    // Divided before they are used: the sum of a few large answers may be more than float32 holds.
    const vfloat share = splat(1.0f / list_sum(list, n));
    for (std::size_t i = 0; i < n; i += kLanes) store(list.values + i, load(list.values + i) * share);
    float* sums = tile.sums + m * sum_stride(heads.answer_dim);
    exact_mix(heads, list, n, sums);
    n_kept = static_cast<float>(n);
    with_type(rows.out, [&](auto value) __attribute__((always_inline)) {
        auto* out = reinterpret_cast<decltype(value)*>(rows.out.data) + (tile.first + m) * heads.answer_dim;
        put_scaled(out, sums, heads.answer_dim, 1.0f);
    });
    return 1.001f * dropped / all;
}

template <std::size_t ROWS>
HR_INLINE void screen_block(const PackedHeads& heads, const Rows& rows, const Block<Screen::Element>& block,
                            const Tile& tile, const Tile& next, float* dots, float* query) {
    const std::size_t chain = Screen::kLimited ? kIntChain / Screen::kValues : elements(heads, heads.query_dim);
    const auto product = dot_product<ROWS, Screen>(heads, block, tile, chain, dots);
    if (block.is_first)
        multiply_packing<ScreenPacker, ROWS>(product, heads, rows, next);
    else
        multiply_alone<ROWS>(product);
    search_block<ROWS>(heads, block, tile, dots);
    if (!block.is_last) return;
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* rounding = rows.rounding + 2 * (tile.first + m);
        rounding[0] = finish_row(heads, rows, tile, m, query, rounding[1]);
    }
}

std::size_t project_screened(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const dots = tile_weights(heads, rows);
    float* const query = dots + weight_floats(heads, kRows);
    return for_each_tile<Screen::Element>(
        heads, rows, interrupt, [&](const Tile& tile) { pack_fixed<Screen>(heads, rows, tile); },
        [&](const Tile& tile) { return begin_search(heads, rows, tile); },
        [&](auto height, const Block<Screen::Element>& block, const Tile& tile, const Tile& next) {
            screen_block<decltype(height)::value>(heads, rows, block, tile, next, dots, query);
        });
}

constexpr ScreenedKernel kScreened = {
    kRows,           Screen::kValues, Screen::kStep, Screen::kOrigin != 0.0f, Screen::kStep == 1 ? 0.16f : 0.06f,
    project_screened};

}  // namespace
