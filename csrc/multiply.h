// The one product under both of the kernel's GEMMs: a tile of rows times panels of columns.
//
//   target[row][column] (+)= Σ_k strips[row][k] · panels[k][column]
//
// Rows are broadcast, panels are loaded, accumulators stay in registers over a chain of k. Each element is added up
// in one order, k ascending, whatever the tile's height and the element's place in it. Everything here has internal
// linkage and is compiled for the instruction set of the file that includes it. Not responsible for: what is packed
// where (projection.h), what the product means (projection_kernel.inl).
#pragma once

#include "projection.h"
#include "vec.h"

namespace {

using namespace headroute;

constexpr std::size_t kPanel = 2 * kLanes;

// Rows of the largest tile: kRows × 2 accumulators, 2 panel vectors and 1 broadcast fill the register file (32
// vectors, 16 on AVX2 and SSE2). More rows also mean fewer bytes of panel from L2 for each multiplication.
#if defined(__AMX_INT8__)
constexpr std::size_t kRows = 32;  // amx_multiply.h
#elif defined(__AVX512F__)
constexpr std::size_t kRows = 14;
#elif defined(__AVX2__)
constexpr std::size_t kRows = 6;
#elif defined(__SSE2__)
constexpr std::size_t kRows = 5;  // mul and add need a temporary, since there is no FMA
#else
constexpr std::size_t kRows = 12;
#endif
// Tiles for what is left over: 4 rows, and 1 row (a single query) over several panels at once, because 2
// accumulators alone would wait for the latency of the multiply-add.
#if defined(__AMX_INT8__)
constexpr std::size_t kFewRows = 16;
#else
constexpr std::size_t kFewRows = 4;
#endif
static_assert(kRows <= kMostRows);

template <std::size_t N>
struct Constant {
    static constexpr std::size_t value = N;
};

HR_INLINE constexpr std::size_t min(std::size_t a, std::size_t b) { return a < b ? a : b; }

// What strips and panels hold, and what one step of a product does with it. An element is 4 bytes in both.
struct Float32 {
    using Element = float;
    using Vector = vfloat;
    static constexpr bool kInRegisters = true;  // sums, when their chain ends
    HR_MEMBER static Vector splat(Element x) { return ::splat(x); }
    HR_MEMBER static Vector multiply_add(Vector a, Vector b, Vector sum) { return fma(a, b, sum); }
    HR_MEMBER static vfloat value(Vector sum) { return sum; }
};
// Pairs of int16: a step adds two products to an int32. Exact, in any order, while the sums of a chain fit.
struct Int16Pairs {
    using Element = std::int32_t;
    using Vector = vint;
    static constexpr bool kInRegisters = true;
    HR_MEMBER static vpair splat(Element x) { return splat_pair(x); }
    HR_MEMBER static Vector multiply_add(vpair a, Vector b, Vector sum) { return add_pairs(a, b, sum); }
    HR_MEMBER static vfloat value(Vector sum) { return to_float(sum); }

    // How rows are rounded (fixed_packer.h): values in an element, planes, the largest value, what is added to them,
    // whether sums need the heads' limits to fit, whether queries are asked for by QueriesAhead, and a vector of
    // them stored; another plane is `plane` values further.
    using Value = std::int16_t;
    static constexpr std::size_t kValues = 2, kPlanes = 1;
    static constexpr float kLargest = 32766.0f, kOrigin = 0.0f;
    static constexpr bool kLimited = true, kRowsAhead = true;
    static constexpr std::size_t kStep = 1;
    HR_MEMBER static vfloat dots(const float* p) { return load(p); }  // a vector of them, as a product leaves them
    HR_MEMBER static void store(Value* to, std::size_t, vint x) { store_low_halves(to, x); }
    HR_MEMBER static void store(Value* to, std::size_t, std::int32_t x) { *to = static_cast<Value>(x); }
};
#if defined(__AVX512VNNI__)
// Fours of int8: unsigned in the strips, which is why a row's values are moved up by 128, signed in the panels.
struct Int8Quads {
    using Element = std::int32_t;
    using Vector = vint;
    HR_MEMBER static Vector splat(Element x) { return splat_int(x); }
    HR_MEMBER static Vector multiply_add(Vector a, Vector b, Vector sum) { return add_quads(a, b, sum); }
    HR_MEMBER static vfloat value(Vector sum) { return to_float(sum); }

    using Value = std::uint8_t;
    static constexpr std::size_t kValues = 4, kPlanes = 1;
    static constexpr float kLargest = 127.0f, kOrigin = 128.0f;
    static constexpr bool kLimited = false, kRowsAhead = false;
    static constexpr std::size_t kStep = 1;
    HR_MEMBER static vfloat dots(const float* p) { return load(p); }
    HR_MEMBER static void store(Value* to, std::size_t, vint x) { store_low_bytes(to, x); }
    HR_MEMBER static void store(Value* to, std::size_t, std::int32_t x) { *to = static_cast<Value>(x); }
};
#endif

// Where a product goes: element (row, column) is at data[row · row_stride + column / 16 · strip_stride + column % 16].
struct Target {
    float* data;  // or half, if the product's results are left as that
    std::size_t row_stride;
    std::size_t strip_stride;
    bool add;            // to what is there, instead of replacing it
    const float* scale;  // [chain][ROWS], or null: each chain's sum is multiplied by its row's
};

// strips [depth / 16][ROWS][16] times panels, in chains of at most `chain` of depth.
template <typename Arithmetic>
struct Product {
    const typename Arithmetic::Element* strips;
    const typename Arithmetic::Element* panels;
    std::size_t depth, chain, columns;
    Target target;
};

// How results are left at a target.
struct Stored {
    using Value = float;
    static constexpr bool kAdds = true;  // it may be asked to add
    HR_MEMBER void operator()(float* p, vfloat sum) const { store(p, sum); }
};

// Columns [column, column + VECTORS · kLanes) of the product of ROWS rows over one chain.
//   strips   [depth / 16][ROWS][16]
//   panels   vector j of column k at panels + (j / 2) · panel_stride + k · width + (j % 2) · kLanes,
//            width = kPanel, or kLanes for the half panel (VECTORS == 1)
// Calls beside() at every k: room for a load and a store or two of somebody else, since a step is bound by its ROWS ·
// VECTORS multiply-adds and leaves most of the load and store ports idle.
template <typename Arithmetic, std::size_t ROWS, std::size_t VECTORS, typename Beside, typename Leave>
HR_INLINE void multiply_chain(const typename Arithmetic::Element* strips, const typename Arithmetic::Element* panels,
                              std::size_t panel_stride, std::size_t depth, std::size_t column, const Target& target,
                              Beside beside, const Leave& leave) {
    constexpr std::size_t kWidth = VECTORS == 1 ? kLanes : kPanel;
    using Vector = typename Arithmetic::Vector;
    Vector acc[ROWS][VECTORS];
#pragma GCC unroll 16
    for (std::size_t m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (std::size_t j = 0; j < VECTORS; ++j) acc[m][j] = Vector{};

    const auto step = [&](std::size_t k) __attribute__((always_inline)) {
        const auto* panel = panels + k * kWidth;
        beside();
        Vector b[VECTORS];
#pragma GCC unroll 8
        for (std::size_t j = 0; j < VECTORS; ++j) b[j] = load(panel + (j / 2) * panel_stride + (j % 2) * kLanes);
#pragma GCC unroll 16
        for (std::size_t m = 0; m < ROWS; ++m) {
            const auto a = Arithmetic::splat(strips[m * kStrip + k]);
#pragma GCC unroll 8
            for (std::size_t j = 0; j < VECTORS; ++j) acc[m][j] = Arithmetic::multiply_add(a, b[j], acc[m][j]);
        }
    };
    std::size_t start = 0;
    for (; start + kStrip <= depth; start += kStrip) {
        for (std::size_t k = 0; k < kStrip; k += 2) {
            step(k);
            step(k + 1);
        }
        strips += ROWS * kStrip;
        panels += kStrip * kWidth;
    }
    for (std::size_t k = 0; start + k < depth; ++k) step(k);

    // Two loops without a branch inside, and no address of an accumulator taken: GCC would keep all of them in memory.
    const auto finish = [&](auto combine) __attribute__((always_inline)) {
        using Value = typename Leave::Value;
        Value* row = reinterpret_cast<Value*>(target.data) + column / kStrip * target.strip_stride + column % kStrip;
        // GCC would find the addresses of all accumulators before the product, and keep them on the stack.
        __asm__("" : "+r"(row));
#pragma GCC unroll 16
        for (std::size_t m = 0; m < ROWS; ++m, row += target.row_stride)
#pragma GCC unroll 8
            for (std::size_t j = 0; j < VECTORS; ++j) {
                const std::size_t at = j * kLanes;  // a panel never crosses the end of a strip but at its own middle
                Value* p = row + at / kStrip * target.strip_stride + at % kStrip;
                leave(p, combine(p, m, Arithmetic::value(acc[m][j])));
            }
    };
    const float* scale = target.scale;
    if constexpr (Leave::kAdds) {
        if (target.add) {
            if (scale != nullptr)
                finish([scale](const float* p, std::size_t m, vfloat sum)
                           __attribute__((always_inline)) { return fma(sum, splat(scale[m]), load(p)); });
            else
                finish([](const float* p, std::size_t, vfloat sum)
                           __attribute__((always_inline)) { return load(p) + sum; });
            return;
        }
    }
    if (scale != nullptr)
        finish([scale](const void*, std::size_t m, vfloat sum)
                   __attribute__((always_inline)) { return sum * splat(scale[m]); });
    else
        finish([](const void*, std::size_t, vfloat sum) __attribute__((always_inline)) { return sum; });
}

// The whole product of ROWS rows: full panels, then the half panel if there is one. Calls beside() at every k of every
// chain, and done(columns) each time that so many columns are complete.
template <std::size_t ROWS, typename Arithmetic, typename Beside, typename Done, typename Leave = Stored>
HR_INLINE void multiply(const Product<Arithmetic>& product, Beside beside, Done done, const Leave& leave = {}) {
    const auto [strips, panels, depth, chain, columns, target] = product;
    constexpr std::size_t kWide = ROWS == 1 ? 8 : ROWS == kFewRows && kLanes == 16 ? 4 : 2;
    const std::size_t padded = round_up(columns, kLanes);
    std::size_t column = 0;
    const auto tile = [&](auto vectors) __attribute__((always_inline)) {
        constexpr std::size_t kVectors = decltype(vectors)::value;
        constexpr std::size_t kWidth = kVectors == 1 ? kLanes : kPanel;
        const auto* panel = panels + column * depth;
        Target part = target;
        for (std::size_t start = 0; start < depth;
             start += chain, part.add = true, part.scale += part.scale == nullptr ? 0 : ROWS)
            multiply_chain<Arithmetic, ROWS, kVectors>(strips + start * ROWS, panel + start * kWidth, kPanel * depth,
                                                       min(chain, depth - start), column, part, beside, leave);
        column += kVectors * kLanes;
        done(min(column, columns));
    };
    if constexpr (kWide > 2)
        while (column + kWide * kLanes <= padded) tile(Constant<kWide>{});
    while (column + kPanel <= padded) tile(Constant<2>{});
    if (column < padded) tile(Constant<1>{});
}

// The same with nothing beside it. This and its relatives in beside.h are functions of their own: GCC compiles a loop
// that stands alone better than one of a dozen in a function (30 % at K = 16 in int16).
template <std::size_t ROWS, typename Arithmetic>
__attribute__((noinline)) void multiply_alone(const Product<Arithmetic>& product) {
    multiply<ROWS>(product, [] {}, [](std::size_t) {});
}

}  // namespace
