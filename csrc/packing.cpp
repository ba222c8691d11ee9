#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <numeric>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace headroute {

namespace {

// A block's centroids and answers are read once per tile of rows, so they must stay in L2 (1 MiB on the CPUs that
// this was tuned on, with room left for queries, weights and output).
constexpr std::size_t kBlockBytes = 800 * 1024;
// A tile's weights stay in L1: 14 rows × 512 heads × 4 bytes = 28 KiB; int16 has them twice, in floats and in pairs,
// 21 KiB for 256 heads (2 % faster than 192, 384 or 512 at K = 1,024 and 4,096).
constexpr std::size_t max_block_heads(Precision precision) {
    return precision == Precision::int16 ? kInt16BlockHeads : 512;
}

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Panels [ceil(columns / panel)][depth][panel] of element(k, column), zero beyond the last column; the last is half as
// wide where that will do. Returns their end.
template <typename Element, typename Value>
Element* pack_panels(std::size_t depth, std::size_t columns, std::size_t panel, std::size_t lanes, Element* to,
                     Value element) {
    for (std::size_t first = 0; first < columns; first += panel) {
        const std::size_t width = columns - first <= lanes ? lanes : panel;
        const std::size_t used = std::min(width, columns - first);
        for (std::size_t k = 0; k < depth; ++k, to += width) {
            for (std::size_t c = 0; c < used; ++c) to[c] = element(k, first + c);
            std::fill(to + used, to + width, Element{0});
        }
    }
    return to;
}

std::size_t panel_of(const PackedHeads& layout, const Kernel& kernel) {
    return layout.step == 1 ? 2 * kernel.lanes : kernel.lanes;
}

PackedHeads head_layout(std::size_t n_heads, std::size_t query_dim, std::size_t answer_dim, Precision precision,
                        const Kernel& kernel) {
    const std::size_t panel = 2 * kernel.lanes;
    const Int16Kernel& int16 = kernel.int16(n_heads);
    const std::size_t values = precision == Precision::float32 ? 1
                               : precision == Precision::int16 ? 2
                                                               : kernel.screened.values;
    const std::size_t columns = precision == Precision::screened ? query_dim : query_dim + answer_dim;
    const std::size_t planes = precision == Precision::int16 ? int16.planes : 1;
    const std::size_t fit = kBlockBytes / sizeof(float) * values / columns;
    const std::size_t granule = planes == 1 ? panel : 4 * kStrip;  // whole tiles of weights
    const std::size_t largest = std::clamp(fit / granule * granule, granule, max_block_heads(precision));
    PackedHeads layout{};
    layout.precision = precision;
    layout.values = values * planes;
    layout.planes = planes;
    layout.step = precision == Precision::float32 ? 1
                  : precision == Precision::int16 ? int16.step
                                                  : kernel.screened.step;
    layout.n_heads = layout.block_heads = n_heads;
    layout.query_dim = query_dim;
    layout.answer_dim = answer_dim;
    layout.n_blocks = 1;
    layout.answer_scale = 1.0f;
    layout.centroid_scale = 1.0;
    if (n_heads > largest) {  // blocks of equal size: a short last one would use its answers' panels badly
        const std::size_t blocks = divide_up(n_heads, largest);
        layout.block_heads = round_up(divide_up(n_heads, blocks), granule);
        layout.n_blocks = divide_up(n_heads, layout.block_heads);
    }
    return layout;
}

std::size_t packed_elements(const PackedHeads& layout, const Kernel& kernel) {
    const std::size_t last = layout.n_heads - (layout.n_blocks - 1) * layout.block_heads;
    return (layout.n_blocks - 1) * block_elements(layout, layout.block_heads, kernel.lanes) +
           block_elements(layout, last, kernel.lanes);
}

// The power of 2 that answers are divided by: so small that their products with weights are as far from subnormal as
// can be, so large that the sum of K of them is finite, and this scale over the sum of K weights normal. Encoders have
// columns of 1e-33 (all-MiniLM-L6-v2 has two), and some CPUs take 100 cycles for a subnormal product:
// docs/decisions/0014.
float float_answer_scale(double largest, std::size_t n_heads) {
    double scale = 0x1p-125;
    while (static_cast<double>(n_heads) * 0x1p-125 > scale) scale *= 2.0;
    while (largest * static_cast<double>(n_heads) / scale > 0x1p126) scale *= 2.0;
    return static_cast<float>(scale);
}

double largest_element(const float* values, std::size_t n) {
    double largest = 0.0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, static_cast<double>(std::fabs(values[i])));
    return largest;
}

void pack_float32(const float* centroids, const float* answers, const Kernel& kernel, Heads& heads) {
    PackedHeads& packed = heads.packed;
    const std::size_t d = packed.query_dim, e = packed.answer_dim;
    packed.answer_scale = float_answer_scale(largest_element(answers, packed.n_heads * e), packed.n_heads);
    const float factor = 1.0f / packed.answer_scale;
    float* to = heads.data.get();
    for (std::size_t first = 0; first < packed.n_heads; first += packed.block_heads) {
        const std::size_t n = std::min(packed.block_heads, packed.n_heads - first);
        const float* c = centroids + first * d;
        const std::size_t lanes = kernel.lanes;
        to = pack_panels(d, n, 2 * lanes, lanes, to, [&](std::size_t i, std::size_t k) { return c[k * d + i]; });
        const float* a = answers + first * e;
        to = pack_panels(n, e, 2 * lanes, lanes, to,
                         [&](std::size_t k, std::size_t i) { return a[k * e + i] * factor; });
    }
}

// The mean of rows [n, columns].
std::vector<double> mean_row(const float* rows, std::size_t n, std::size_t columns) {
    std::vector<double> mean(columns, 0.0);
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t i = 0; i < columns; ++i) mean[i] += rows[r * columns + i];
    for (double& x : mean) x /= static_cast<double>(n);
    return mean;
}

// Calls visit(chain, Σ x²) for the chains of value(0 … d - 1).
template <typename Value, typename Visit>
void visit_chains(std::size_t d, Value value, Visit visit) {
    for (std::size_t start = 0; start < d; start += kIntChain) {
        double squares = 0.0;
        for (std::size_t i = start; i < std::min(start + kIntChain, d); ++i) squares += value(i) * value(i);
        visit(start / kIntChain, squares);
    }
}

// Two integers that fit an int16, in one element.
std::int32_t pair(double low, double high) {
    const auto half = [](double x) { return std::uint32_t{static_cast<std::uint16_t>(static_cast<std::int16_t>(x))}; };
    return static_cast<std::int32_t>(half(low) | half(high) << 16);
}

// Element `index` of a row of integers that fit an int16, from value(0), value(1), …; in both layouts of them.
template <typename Value>
std::int32_t int16_element(const PackedHeads& layout, std::size_t index, Value value) {
    if (layout.planes == 1) return pair(value(2 * index), value(2 * index + 1));
    const std::size_t strip = index / kStrip;
    const int shift = strip % 2 == 0 ? 0 : 8;
    const std::size_t first = (strip / 2 * kStrip + index % kStrip) * 4;
    std::uint32_t bytes = 0;
    for (std::size_t j = 0; j < 4; ++j)
        bytes |= std::uint32_t{static_cast<std::uint8_t>(static_cast<int>(value(first + j)) >> shift)} << 8 * j;
    return static_cast<std::int32_t>(bytes);
}

// Values [K, columns] less `origin`, times `scale`, as the nearest int16.
class FixedPoint {
   public:
    FixedPoint(const float* values, std::size_t columns, const double* origin, double scale)
        : values_(values), columns_(columns), origin_(origin), scale_(scale) {}

    double exact(std::size_t head, std::size_t i) const {
        return values_[head * columns_ + i] - (origin_ == nullptr ? 0.0 : origin_[i]);
    }
    double rounded(std::size_t head, std::size_t i) const { return std::nearbyint(exact(head, i) * scale_); }
    // ‖exact - rounded / scale‖ of a head.
    double error(std::size_t head) const {
        double squares = 0.0;
        for (std::size_t i = 0; i < columns_; ++i) {
            const double x = exact(head, i) - rounded(head, i) / scale_;
            squares += x * x;
        }
        return std::sqrt(squares);
    }
    double norm(std::size_t head) const {
        double squares = 0.0;
        for (std::size_t i = 0; i < columns_; ++i) squares += exact(head, i) * exact(head, i);
        return std::sqrt(squares);
    }

   private:
    const float* values_;
    std::size_t columns_;
    const double* origin_;
    double scale_;
};

// ‖q16‖ over a chain may be at most this far below int32's range, over the norm of the heads' chain.
constexpr double kInt32Range = 2147483647.0;
constexpr double kComfortable = 46300.0;  // its root, less what rounding may add to a norm

// Chooses the centroids' scale, and what it leaves for queries in each chain: no limit, where bytes are multiplied,
// whose sums fit anyway.
double choose_scales(const FixedPoint& centered, std::size_t n_heads, std::size_t d, bool limited,
                     std::vector<float>& limits) {
    double largest_chain = 0.0, largest = 0.0;
    for (std::size_t k = 0; k < n_heads; ++k) {
        const auto value = [&](std::size_t i) { return centered.exact(k, i); };
        visit_chains(d, value, [&](std::size_t, double s) { largest_chain = std::max(largest_chain, s); });
        for (std::size_t i = 0; i < d; ++i) largest = std::max(largest, std::fabs(value(i)));
    }
    // One head is its own mean: nothing is left to compare.
    if (largest == 0.0) largest = largest_chain = 1.0;
    const double by_largest = static_cast<double>(kLargestInt16 - 1) / largest;
    limits.assign(divide_up(d, kIntChain), 0.0f);
    if (!limited) return by_largest;
    const double scale = std::min(kComfortable / std::sqrt(largest_chain), by_largest);
    std::vector<double> chain_norms(limits.size(), 0.0);
    for (std::size_t k = 0; k < n_heads; ++k)
        visit_chains(
            d, [&](std::size_t i) { return std::nearbyint(centered.exact(k, i) * scale); },
            [&](std::size_t chain, double s) { chain_norms[chain] = std::max(chain_norms[chain], std::sqrt(s)); });
    for (std::size_t g = 0; g < limits.size(); ++g) {
        // Rounding moves a query's chain by at most √kIntChain / 2.
        const double limit = kInt32Range / std::max(chain_norms[g], 1.0) - std::sqrt(double{kIntChain}) / 2;
        limits[g] = static_cast<float>(1.0 / (limit * limit) * 1.000001);
    }
    return scale;
}

void pack_int16(const float* centroids, const float* answers, const Kernel& kernel, Heads& heads) {
    PackedHeads& packed = heads.packed;
    HeadRounding& rounding = heads.rounding;
    const std::size_t d = packed.query_dim, e = packed.answer_dim, n_heads = packed.n_heads;
    const std::vector<double> mean_centroid = mean_row(centroids, n_heads, d);
    const std::vector<double> mean_answer = mean_row(answers, n_heads, e);

    packed.centroid_scale = choose_scales(FixedPoint(centroids, d, mean_centroid.data(), 1.0), n_heads, d,
                                          packed.planes == 1, heads.inverse_limits);
    packed.inverse_limits = heads.inverse_limits.data();
    const double largest = largest_element(answers, n_heads * e);
    packed.answer_scale =
        largest == 0.0 ? 1.0f
                       : std::max(static_cast<float>(largest / (kLargestInt16 - 1)), std::numeric_limits<float>::min());
    const FixedPoint c(centroids, d, mean_centroid.data(), packed.centroid_scale);
    const FixedPoint a(answers, e, nullptr, 1.0 / static_cast<double>(packed.answer_scale));

    auto* to = reinterpret_cast<std::int32_t*>(heads.data.get());
    for (std::size_t first = 0; first < n_heads; first += packed.block_heads) {
        const std::size_t n = std::min(packed.block_heads, n_heads - first);
        const std::size_t lanes = kernel.lanes, panel = panel_of(packed, kernel);
        to = pack_panels(elements(packed, d), n, panel, lanes, to, [&](std::size_t index, std::size_t k) {
            return int16_element(packed, index, [&](std::size_t i) { return i < d ? c.rounded(first + k, i) : 0.0; });
        });
        to = pack_panels(elements(packed, n), e, panel, lanes, to, [&](std::size_t index, std::size_t i) {
            return int16_element(packed, index, [&](std::size_t k) { return k < n ? a.rounded(first + k, i) : 0.0; });
        });
    }

    const FixedPoint around_mean(answers, e, mean_answer.data(), 1.0);
    double answer_norm = 0.0;
    rounding.weight_chain = kernel.int16(n_heads).weight_chain;
    rounding.weight_total = static_cast<double>(kernel.int16(n_heads).weight_total);
    rounding.query_scale = std::numeric_limits<double>::infinity();
    for (std::size_t k = 0; k < n_heads; ++k) {
        rounding.centroid_norm = std::max(rounding.centroid_norm, c.norm(k));
        rounding.centroid_rounding = std::max(rounding.centroid_rounding, c.error(k));
        rounding.answer_radius = std::max(rounding.answer_radius, around_mean.norm(k));
        rounding.answer_rounding = std::max(rounding.answer_rounding, a.error(k));
        answer_norm = std::max(answer_norm, a.norm(k));
        double limit2 = 0.0;
        const float* row = centroids + k * d;
        visit_chains(
            d, [&](std::size_t i) { return static_cast<double>(row[i]); },
            [&](std::size_t g, double s) { limit2 = std::max(limit2, s * heads.inverse_limits[g]); });
        rounding.query_scale =
            std::min({rounding.query_scale, 1.0 / std::sqrt(limit2), (kLargestInt16 - 1) / largest_element(row, d)});
    }
    if (answer_norm > 0.0) {
        rounding.answer_radius /= answer_norm;
        rounding.answer_rounding /= answer_norm;
    }
}

// |255 · 127 · d| < 2^31
constexpr std::size_t kMostScreenedColumns = 65536;

// Four integers that fit an int8, in one element.
std::int32_t quad(double a, double b, double c, double d) {
    const auto part = [](double x) { return std::uint32_t{static_cast<std::uint8_t>(static_cast<std::int8_t>(x))}; };
    return static_cast<std::int32_t>(part(a) | part(b) << 8 | part(c) << 16 | part(d) << 24);
}

// 0 … K - 1 in steps of about 0.618 K: whatever the first few hundred are, they are spread over all heads, so that the
// search soon knows about how large the maximum will be.
std::vector<std::uint32_t> spread_order(std::size_t n_heads) {
    std::size_t step = std::max<std::size_t>(1, static_cast<std::size_t>(0.6180339887 * static_cast<double>(n_heads)));
    while (std::gcd(step, n_heads) != 1) ++step;
    std::vector<std::uint32_t> order(n_heads);
    for (std::size_t k = 0; k < n_heads; ++k) order[k] = static_cast<std::uint32_t>(k * step % n_heads);
    return order;
}

void pack_screened(const float* centroids, const float* answers, const Kernel& kernel, Heads& heads) {
    PackedHeads& packed = heads.packed;
    HeadRounding& rounding = heads.rounding;
    const std::size_t d = packed.query_dim, e = packed.answer_dim, n_heads = packed.n_heads;
    const std::vector<double> mean_centroid = mean_row(centroids, n_heads, d);
    const std::vector<double> mean_answer = mean_row(answers, n_heads, e);
    const FixedPoint centered(centroids, d, mean_centroid.data(), 1.0);
    heads.dot_offsets.assign(n_heads, 0.0f);
    heads.search_order = spread_order(n_heads);
    if (packed.values == 4) {
        double largest = 0.0;
        for (std::size_t k = 0; k < n_heads; ++k)
            for (std::size_t i = 0; i < d; ++i) largest = std::max(largest, std::fabs(centered.exact(k, i)));
        packed.centroid_scale = largest == 0.0 ? 1.0 : static_cast<double>(kernel.screened.largest) / largest;
    } else {
        packed.centroid_scale = choose_scales(centered, n_heads, d, true, heads.inverse_limits);
        packed.inverse_limits = heads.inverse_limits.data();
    }
    const FixedPoint c(centroids, d, mean_centroid.data(), packed.centroid_scale);
    auto* to = reinterpret_cast<std::int32_t*>(heads.data.get());
    for (std::size_t first = 0; first < n_heads; first += packed.block_heads) {
        const std::size_t n = std::min(packed.block_heads, n_heads - first);
        const std::size_t lanes = kernel.lanes, panel = panel_of(packed, kernel);
        to = pack_panels(elements(packed, d), n, panel, lanes, to, [&](std::size_t element, std::size_t k) {
            const auto value = [&](std::size_t j) {
                const std::size_t i = element * packed.values + j;
                return i < d ? c.rounded(heads.search_order[first + k], i) : 0.0;
            };
            return packed.values == 4 ? quad(value(0), value(1), value(2), value(3)) : pair(value(0), value(1));
        });
    }

    const std::size_t stride = row_stride(d);
    heads.centroid_rows = allocate_floats((n_heads + 1) * stride);
    packed.centroid_rows = heads.centroid_rows.get();
    packed.dot_offsets = heads.dot_offsets.data();
    packed.search_order = heads.search_order.data();
    packed.answer_rows = answers;
    const FixedPoint around_mean(answers, e, mean_answer.data(), 1.0), a(answers, e, nullptr, 1.0);
    double answer_norm = 0.0;
    const auto add_row = [&](std::size_t k, const auto* values) {
        float* const row = heads.centroid_rows.get() + k * stride;
        std::transform(values, values + d, row, [](auto x) { return static_cast<float>(x); });
        std::fill(row + d, row + stride, 0.0f);
    };
    add_row(n_heads, mean_centroid.data());
    for (std::size_t k = 0; k < n_heads; ++k) {
        const float* row = centroids + k * d;
        add_row(k, row);
        if (kernel.screened.origin != 0.0f) {
            double sum = 0.0;
            for (std::size_t i = 0; i < d; ++i) sum += c.rounded(heads.search_order[k], i);
            heads.dot_offsets[k] = static_cast<float>(static_cast<double>(kernel.screened.origin) * sum);
        }
        rounding.centroid_norm = std::max(rounding.centroid_norm, c.norm(k));
        rounding.centroid_rounding = std::max(rounding.centroid_rounding, c.error(k));
        rounding.answer_radius = std::max(rounding.answer_radius, around_mean.norm(k));
        answer_norm = std::max(answer_norm, a.norm(k));
        rounding.query_scale +=
            static_cast<double>(kernel.screened.largest) / largest_element(row, d) / static_cast<double>(n_heads);
    }
    if (answer_norm > 0.0) rounding.answer_radius /= answer_norm;
    packed.centroid_norm = rounding.centroid_norm;
    packed.centroid_rounding = rounding.centroid_rounding;
}

}  // namespace

void FreeAligned::operator()(float* p) const noexcept { std::free(p); }

AlignedFloats allocate_floats(std::size_t n) {
    if (n > (SIZE_MAX - kHugePage) / sizeof(float)) throw std::bad_alloc();
    const std::size_t bytes = n * sizeof(float);
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    void* p = std::aligned_alloc(alignment, round_up(std::max<std::size_t>(bytes, 1), alignment));
    if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Packed heads are read in full by every tile of rows: 4 KiB pages would miss the TLB at every panel.
    if (alignment == kHugePage) madvise(p, round_up(bytes, alignment), MADV_HUGEPAGE);
#endif
    return AlignedFloats(static_cast<float*>(p));
}

Heads pack_heads(const float* centroids, const float* answers, std::size_t n_heads, std::size_t query_dim,
                 std::size_t answer_dim, Precision precision, const Kernel& kernel) {
    if (precision == Precision::screened && query_dim > kMostScreenedColumns)
        throw std::invalid_argument("screened heads have at most 65,536 columns");
    Heads heads;
    heads.packed = head_layout(n_heads, query_dim, answer_dim, precision, kernel);
    heads.data_elements = packed_elements(heads.packed, kernel);
    heads.data = allocate_floats(heads.data_elements);
    heads.packed.data = heads.data.get();
    const auto pack = precision == Precision::float32 ? pack_float32
                      : precision == Precision::int16 ? pack_int16
                                                      : pack_screened;
    pack(centroids, answers, kernel, heads);
    return heads;
}

PackedHeads float32_layout(std::size_t n_heads, std::size_t query_dim, std::size_t answer_dim, const Kernel& kernel) {
    return head_layout(n_heads, query_dim, answer_dim, Precision::float32, kernel);
}

std::size_t packed_bytes(const PackedHeads& layout, const Kernel& kernel) {
    return packed_elements(layout, kernel) * sizeof(float);
}

Heads borrow_heads(const void* data, std::size_t bytes, std::size_t n_heads, std::size_t query_dim,
                   std::size_t answer_dim, float answer_scale, const Kernel& kernel) {
    if (reinterpret_cast<std::uintptr_t>(data) % 64 != 0)
        throw std::invalid_argument("packed heads must be 64-byte aligned");
    if (!(answer_scale >= std::numeric_limits<float>::min() && answer_scale <= std::numeric_limits<float>::max()))
        throw std::invalid_argument("answer_scale must be finite, and not subnormal");
    // No size below can overflow when every matrix is at most as large as the memory.
    const std::size_t columns = std::max(query_dim, answer_dim);
    if (n_heads == 0 || query_dim == 0 || answer_dim == 0 || columns > bytes / sizeof(float) / n_heads)
        throw std::invalid_argument("packed heads are not of this size");
    Heads heads;
    heads.packed = float32_layout(n_heads, query_dim, answer_dim, kernel);
    heads.packed.answer_scale = answer_scale;
    heads.packed.data = data;
    heads.data_elements = packed_elements(heads.packed, kernel);
    if (bytes != heads.data_elements * sizeof(float)) throw std::invalid_argument("packed heads are not of this size");
    return heads;
}

}  // namespace headroute
