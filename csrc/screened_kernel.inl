// The screened kernel: cosines of all heads in few bits, exact ones of the heads that may matter. Included by
// kernel.inl and isa_amx.cpp.
//
//   ŝ[n,k]     cosines from int8 (or int16) rows, less the mean centroid's; the true s[n,k] lies within β of it,
//              β = ‖q̂ - q8‖ max ‖c‖ + (1 + ‖q̂ - q8‖) max ‖c - c8‖   (Cauchy-Schwarz, from measured roundings)
//   v[n,k]     = 2^((ŝ[n,k] - max ŝ) · log2e / τ), a head's weight as the search sees it; the true one, on the same
//              scale, is at most 2^(β · log2e / τ) times as large
//   dropped    1. at sight: v so small beside Σ v that K heads like it may go       (an eighth of may_drop)
//              2. the lightest by v, when the list is full and when the search ends (kSearched of it, with those)
//              3. of those whose exact cosine was taken, the lightest by weight     (what is left)
//   p[n]       = Σ_kept (w / Σ_kept w) a, with w from exact cosines (float32)
//
// The error is the dropped part of the weight, at most, times the distance between two means of answers. The search
// guesses: it takes Σ v for what all heads weigh. What it dropped is then held, by β, against the exact weights of
// those that it left, and only what that proves is reported. A row that would keep more than kept_limit() heads, or
// whose guess was wrong, is given up: it reports infinity, and the caller projects it densely. What is kept depends on
// the row and the heads alone, so bits do too.
//
// Loop nest: blocks of heads, tiles of rows, as in projection_kernel.inl, without a second product; the last block's
// tiles finish their rows one by one: lists of a few hundred heads, read a row of memory at a time. Half of the time is
// the first product, at 4 times the multiply-adds of float32; most of the rest waits for those rows.

#include "beside.h"
#include "candidates.h"
#include "fixed_packer.h"
#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"
#include "writer.h"

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

// The part of may_drop that the search may use; the rest is for the lightest by their exact cosines. 0.6 is 2 % slower
// at τ = 0.03, 0.3 no faster.
constexpr float kSearched = 0.4f;

// Weights below 2^-125 are 0: no head of a list may weigh that little.
constexpr double kMostBits = 120.0;

// A row's search; it has the place of the row's squares.
struct __attribute__((may_alias)) Search {
    std::size_t n;     // candidates; more than the list may have: the row was given up
    float maximum;     // dot so far
    float least;       // dot of a candidate: what is below goes at sight
    float reach;       // how many times lighter than all together it then is, at least: an exponent of 2
    float margin;      // β, in exponents of 2
    float dropped;     // Σ v of what was on the list and is no more, at most,
    float dropped_at;  // for this maximum
};

HR_INLINE Search& search_of(const Tile& tile, std::size_t m) {
    static_assert(sizeof(Search) <= kStrip * sizeof(float), "");
    return *reinterpret_cast<Search*>(tile.squares + m * kStrip);
}

HR_INLINE bool given_up(const PackedHeads& heads, const Search& search) {
    return search.n > candidate_capacity(heads.n_heads);
}
HR_INLINE void give_up(const PackedHeads& heads, Search& search) { search.n = candidate_capacity(heads.n_heads) + 1; }

// β of a row that was rounded by `rounding`, in exponents of 2.
HR_INLINE double margin(const PackedHeads& heads, const Rows& rows, float rounding) {
    const double r = 1.0001 * static_cast<double>(rounding);
    const double beta = r * heads.centroid_norm + (1.0 + r) * heads.centroid_rounding;
    // What float32 does to dots: their scale, integers above 2^24 when there are thousands of columns, and the two
    // exact dots that they are held against.
    const double floats = 1.2e-5 + 2e-8 * static_cast<double>(heads.query_dim);
    return (1.0001 * beta + floats) * rows.log2e_over_temperature;
}

// Begins the search in a tile that has just been packed.
HR_INLINE std::size_t begin_search(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
    const std::size_t bad = begin_fixed(tile);
    if (bad != kNoBadRow) return bad;
    // K heads that are each this many times lighter than all together weigh an eighth of may_drop.
    const double lighter = 8.0 * static_cast<double>(heads.n_heads) / rows.may_drop;
    double bits = 0.0;
    for (double power = 1.0; power < lighter && bits < 1000.0; power *= 2.0) ++bits;
    for (std::size_t m = 0; m < tile.rows; ++m) {
        Search& search = search_of(tile, m);
        search = {};
        const double beta = margin(heads, rows, tile.query_rounding[m]);
        search.margin = static_cast<float>(beta);
        search.reach = static_cast<float>(bits + beta);
        // The heads of a zero query, or at such a temperature, weigh all the same; and reach / scale has to be finite.
        if (!(bits + beta < kMostBits && tile.scale[m] > 0x1p-100f)) give_up(heads, search);
    }
    return kNoBadRow;
}

// What the heads that went at sight weigh, at most, where the heaviest on the list has v = 1.
HR_INLINE float dropped_at_sight(const PackedHeads& heads, const Search& search, float scale) {
    return static_cast<float>(heads.n_heads) * power_of_2((search.least - search.maximum) * scale);
}

// Drops the lightest of a row's list, until all that the search dropped is kSearched of may_drop. weights: [capacity]
// floats of scratch.
__attribute__((noinline)) void narrow(const PackedHeads& heads, const Rows& rows, const Tile& tile, std::size_t m,
                                      float* weights) {
    Search& search = search_of(tile, m);
    const Candidates list = candidates_of(heads, tile, m);
    const float scale = tile.scale[m];
    search.n = keep_from(list, list.values, search.n, search.least);
    const float all = weigh(list.values, search.n, search.maximum, scale, weights);
    if (search.dropped > 0.0f) search.dropped *= power_of_2((search.dropped_at - search.maximum) * scale);
    search.dropped_at = search.maximum;
    // What may go at sight: light beside all of them, not only beside the heaviest.
    const float least = search.maximum - (search.reach - static_cast<float>(__builtin_ilogbf(all))) / scale;
    search.least = least > search.least ? least : search.least;
    const float budget = kSearched * static_cast<float>(rows.may_drop) * all * power_of_2(-search.margin) -
                         search.dropped - dropped_at_sight(heads, search, scale);
    search.n = keep_from(list, weights, search.n, lightest(weights, search.n, budget, search.dropped));
}

// Looks through a tile's dots with a block, [block / 16][ROWS][16].
template <std::size_t ROWS>
HR_INLINE void search_block(const PackedHeads& heads, const Rows& rows, const Block<Screen::Element>& block,
                            const Tile& tile, const float* dots, float* weights) {
    const float* offsets = heads.dot_offsets + block.first;
    const std::size_t capacity = candidate_capacity(heads.n_heads);
    for (std::size_t m = 0; m < tile.rows; ++m) {
        Search& search = search_of(tile, m);
        if (given_up(heads, search)) continue;
        const float* row = dots + m * kStrip;
        const auto value = [&](std::size_t k) __attribute__((always_inline)) {
            const float* p = row + k / kStrip * ROWS * kStrip + k % kStrip;
            const vfloat dot = Screen::dots(p);
            if (k + kLanes <= block.heads) return dot - load(offsets + k);
            return dot - load_partial(offsets + k, block.heads - k, __builtin_inff());
        };
        const float reach = search.reach / tile.scale[m];
        float maximum = search.maximum, least = search.least;
        if (block.is_first) {  // before anything is put on the list; later maxima are found on their way to it
            vfloat largest = value(0);
            for (std::size_t k = kLanes; k < block.heads; k += kLanes) largest = max(value(k), largest);
            maximum = reduce_max(largest);
            least = maximum - reach;
        }
        std::size_t n = search.n;
        const Candidates list = candidates_of(heads, tile, m);
        for (std::size_t k = 0; k < block.heads; k += kLanes) {
            const vfloat v = value(k);
            const unsigned mask = at_least(v, least);
            if (n + kLanes > capacity) {
                search.n = n;
                search.maximum = maximum;
                search.least = least;
                narrow(heads, rows, tile, m, weights);
                n = search.n;
                least = search.least;
                if (n > capacity - capacity / 8) {
                    n = capacity + 1;
                    break;
                }
            }
            n = append(list, n, v, lane_numbers() + splat_int(static_cast<std::int32_t>(block.first + k)), mask);
            if (at_least(v, maximum) != 0) {
                maximum = reduce_max(v);
                if (maximum - reach > least) least = maximum - reach;
            }
        }
        search.n = n;
        search.maximum = maximum;
        search.least = least;
    }
}

// Rows of heads that are read together, while the group after next is asked for.
constexpr std::size_t kGroup = 4;

// values[i] → q · ĉ of the listed heads.
HR_INLINE void exact_dots(const PackedHeads& heads, const float* query, const Candidates& list, std::size_t n) {
    constexpr std::size_t kParts = kStrip / kLanes;
    const std::size_t stride = row_stride(heads.query_dim);
    const auto row = [&](std::size_t i) { return heads.centroid_rows + list.heads[min(i, n - 1)] * stride; };
    for (std::size_t i = 0; i < n; i += kGroup) {
        const float* rows[kGroup];
        const float* soon[kGroup];
        for (std::size_t g = 0; g < kGroup; ++g) {
            rows[g] = row(i + g);
            soon[g] = row(i + 2 * kGroup + g);
        }
        vfloat acc[kGroup][kParts] = {};
        for (std::size_t j = 0; j < stride; j += kStrip)
#pragma GCC unroll 4
            for (std::size_t g = 0; g < kGroup; ++g) {
                __builtin_prefetch(soon[g] + j, 0, 2);
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

// sums [e] = Σ values[i] · a of the listed heads.
HR_INLINE void exact_mix(const PackedHeads& heads, const Candidates& list, std::size_t n, float* sums) {
    const std::size_t e = heads.answer_dim;
    for (std::size_t j = 0; j < e; j += kLanes) store(sums + j, zero());
    for (std::size_t i = 0; i < n; i += kGroup) {
        const float* rows[kGroup];
        const float* soon[kGroup];
        vfloat w[kGroup];
        for (std::size_t g = 0; g < kGroup; ++g) {
            rows[g] = heads.answer_rows + list.heads[min(i + g, n - 1)] * e;
            soon[g] = heads.answer_rows + list.heads[min(i + 2 * kGroup + g, n - 1)] * e;
            w[g] = splat(i + g < n ? list.values[i + g] : 0.0f);
        }
        std::size_t j = 0;
        for (; j + kLanes <= e; j += kLanes) {
            vfloat sum = load(sums + j);
#pragma GCC unroll 4
            for (std::size_t g = 0; g < kGroup; ++g) {
                if (j % kStrip == 0) __builtin_prefetch(soon[g] + j, 0, 2);
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

// Ends a row's search: lists the heads whose exact cosines are wanted, and asks for the first of them.
HR_INLINE void end_search(const PackedHeads& heads, const Rows& rows, const Tile& tile, std::size_t m, float* weights) {
    Search& search = search_of(tile, m);
    if (given_up(heads, search)) return;
    narrow(heads, rows, tile, m, weights);
    if (search.n > kept_limit(heads.n_heads)) return give_up(heads, search);
    std::uint32_t* const list = candidates_of(heads, tile, m).heads;
    for (std::size_t i = 0; i < search.n; ++i) list[i] = heads.search_order[list[i]];
    // The mean centroid is one more head: exact dots less its dot are what screened ones stand for.
    list[search.n] = static_cast<std::uint32_t>(heads.n_heads);
    const std::size_t stride = row_stride(heads.query_dim);
    for (std::size_t i = 0; i < min(search.n, 2 * kGroup); ++i)
        for (std::size_t j = 0; j < stride; j += kStrip)
            __builtin_prefetch(heads.centroid_rows + list[i] * stride + j, 0, 2);
}

// Finishes a row whose search has ended. Returns the part of its weight that was dropped, at most, or infinity if the
// row is given up.
HR_INLINE float finish_row(const PackedHeads& heads, const Rows& rows, const Tile& tile, std::size_t m, float* query,
                           float& n_kept) {
    const float infinity = __builtin_inff();
    n_kept = 0.0f;
    const Search& search = search_of(tile, m);
    if (given_up(heads, search)) return infinity;
    const Candidates list = candidates_of(heads, tile, m);
    std::size_t n = search.n;
    float norm2 = 0.0f;
    with_type(rows.queries, [&](auto value) __attribute__((always_inline)) {
        norm2 = copy_query(QueryCursor<decltype(value)>(rows, tile).row(m), heads.query_dim, query);
    });
    if (!(norm2 > 0x1p-40f && norm2 < 0x1p80f)) return infinity;
    exact_dots(heads, query, list, n + 1);
    const float mean_dot = list.values[n];
    const float maximum = list_maximum(list.values, n);
    double scale = rows.log2e_over_temperature / __builtin_sqrt(static_cast<double>(norm2));
    scale = scale < 0x1p127 ? scale : 0x1p127;
    const float all = weigh(list.values, n, maximum, static_cast<float>(scale), list.values);

    // From here on, weights are beside the heaviest head's.
    const double exponent = static_cast<double>(search.margin) +
                            static_cast<double>(search.maximum) * static_cast<double>(tile.scale[m]) -
                            (static_cast<double>(maximum) - static_cast<double>(mean_dot)) * scale;
    float dropped =
        (search.dropped + dropped_at_sight(heads, search, tile.scale[m])) * power_of_2(static_cast<float>(exponent));
    const float budget = static_cast<float>(rows.may_drop) * all - dropped;
    if (!(budget >= 0.0f)) return infinity;
    n = keep_from(list, list.values, n, lightest(list.values, n, budget, dropped));

    // Divided before they are used: the sum of a few large answers may be more than float32 holds.
    const vfloat share = splat(1.0f / list_sum(list.values, n));
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
                            const Tile& tile, const Tile& next, float* dots, float* query, float* weights) {
    const std::size_t chain = Screen::kLimited ? kIntChain / Screen::kValues : elements(heads, heads.query_dim);
    const auto product = dot_product<ROWS, Screen>(heads, block, tile, chain, dots);
    if (block.is_first)
        multiply_packing<ScreenPacker, ROWS>(product, heads, rows, next);
    else
        multiply_alone<ROWS>(product);
    search_block<ROWS>(heads, rows, block, tile, dots, weights);
    if (!block.is_last) return;
    for (std::size_t m = 0; m < tile.rows; ++m) end_search(heads, rows, tile, m, weights);
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* account = rows.account + 2 * (tile.first + m);
        account[0] = finish_row(heads, rows, tile, m, query, account[1]);
    }
}

std::size_t project_screened(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const dots = tile_weights(heads, rows);
    float* const query = dots + weight_floats(heads, kRows);
    float* const weights = query + row_stride(heads.query_dim);
    return for_each_tile<Screen::Element>(
        heads, rows, interrupt, [&](const Tile& tile) { pack_fixed<Screen>(heads, rows, tile); },
        [&](const Tile& tile) { return begin_search(heads, rows, tile); },
        [&](auto height, const Block<Screen::Element>& block, const Tile& tile, const Tile& next) {
            screen_block<decltype(height)::value>(heads, rows, block, tile, next, dots, query, weights);
        });
}

constexpr ScreenedKernel kScreened = {kRows,           Screen::kValues,
                                      Screen::kStep,   Screen::kLargest,
                                      Screen::kOrigin, Screen::kStep == 1 ? 0.16f : 0.06f,
                                      project_screened};

}  // namespace
