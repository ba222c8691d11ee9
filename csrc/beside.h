// Products with something done beside them: a product is bound by its multiply-adds, and the CPU runs a line of loads
// and stores between two of them (docs/decisions/0008). Lines that will be needed are asked for, the next tile is
// packed, results leave. Every product here is a function of its own, as in multiply.h. Not responsible for what is
// packed (the kernels' Packers) or written (writer.h).
#pragma once

#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"
#include "writer.h"

namespace {

using namespace headroute;

constexpr std::size_t kLineBytes = 64;

// Asks for a tile's sums, which were last touched a pass of rows ago and are in L3: 2 to 3 % at K = 1,024.
class SumsAhead {
   public:
    HR_MEMBER SumsAhead(const Tile& tile, std::size_t n) : from_(tile.sums), end_(tile.sums + n) {}
    HR_MEMBER void line() {
        if (from_ >= end_) return;
        __builtin_prefetch(from_);
        from_ += kStrip;
    }

   private:
    const float* from_;
    const float* const end_;
};

// Asks for the queries of the tile after `next`, a row at a time, as evenly as `steps` allow; half of them beside each
// of two products, where there is only one block. docs/decisions/0017: 14 % of int16's time at K = 16.
class QueriesAhead {
   public:
    HR_MEMBER QueriesAhead(const Rows& rows, const PackedHeads& heads, const Tile& next, bool second, std::size_t steps)
        : bytes_(heads.query_dim * (rows.queries.half ? sizeof(half) : sizeof(float))),
          stride_(rows.query_stride * static_cast<std::ptrdiff_t>(rows.queries.half ? sizeof(half) : sizeof(float))) {
        const std::size_t first = next.first + next.rows, n = first < rows.n ? min(next.height, rows.n - first) : 0;
        const std::size_t middle = heads.n_blocks == 1 ? n / 2 : n;
        rows_left_ = second ? n - middle : middle;
        row_ = rows.queries.data + static_cast<std::ptrdiff_t>(first + (second ? middle : 0)) * stride_;
        at_once_ = divide_up(rows_left_ * divide_up(bytes_, kLineBytes), steps);
    }

    HR_MEMBER void step() {
        for (std::size_t i = 0; i < at_once_; ++i) line();
    }

   private:
    HR_MEMBER void line() {
        if (rows_left_ == 0) return;
        __builtin_prefetch(row_ + at_);
        at_ += kLineBytes;
        if (at_ < bytes_) return;
        at_ = 0;
        row_ += stride_;
        --rows_left_;
    }

    const std::size_t bytes_;
    const std::ptrdiff_t stride_;
    const char* row_;
    std::size_t rows_left_, at_once_, at_ = 0;
};
struct NothingAhead {
    HR_MEMBER void step() {}
};

// Asks for a tile's share of the next block, which may have to come from memory: 6 % at K = 100,000 where a pass has
// only 4 tiles, nothing where it has 72. docs/decisions/0018.
class BlockAhead {
   public:
    template <typename Element>
    HR_MEMBER BlockAhead(const PackedHeads& heads, const Rows& rows, const Block<Element>& block, const Tile& tile,
                         std::size_t steps) {
        const auto next = block_at<Element>(heads, block.first / heads.block_heads + 1);
        const std::size_t lines = divide_up(sizeof(Element) * block_elements(heads, next.heads, kLanes), kLineBytes);
        const std::size_t start = tile.first / rows.pass_rows * rows.pass_rows;
        const std::size_t pass = min(rows.pass_rows, rows.n - start);
        const auto share = [&](std::size_t row) { return lines * (row - start) / pass; };
        line_ = reinterpret_cast<const char*>(next.centroids) + share(tile.first) * kLineBytes;
        lines_left_ = share(tile.first + tile.rows) - share(tile.first);
        at_once_ = divide_up(lines_left_, steps);
    }

    HR_MEMBER void step() {
        for (std::size_t i = 0; i < at_once_ && lines_left_ > 0; ++i, --lines_left_, line_ += kLineBytes)
            __builtin_prefetch(line_);
    }

   private:
    const char* line_;
    std::size_t lines_left_, at_once_;
};

// A product beside which the next tile is packed.
template <template <typename> class Packer, std::size_t ROWS, typename Arithmetic, typename Query>
__attribute__((noinline)) void multiply_packing(const Product<Arithmetic>& product, const PackedHeads& heads,
                                                const Rows& rows, const Tile& next, Query) {
    Packer<Query> packer(rows, heads, next);  // not passed on by reference: docs/decisions/0008
    multiply<ROWS>(product, [&]() __attribute__((always_inline)) { packer.line(); }, [](std::size_t) {});
    packer.rest();
}
template <template <typename> class Packer, std::size_t ROWS, typename Arithmetic>
HR_INLINE void multiply_packing(const Product<Arithmetic>& product, const PackedHeads& heads, const Rows& rows,
                                const Tile& next) {
    with_type(rows.queries, [&](auto query) { multiply_packing<Packer, ROWS>(product, heads, rows, next, query); });
}

// A product beside which the tile's sums are fetched.
template <std::size_t ROWS, typename Arithmetic>
__attribute__((noinline)) void multiply_fetching(const Product<Arithmetic>& product, const PackedHeads& heads,
                                                 const Tile& tile) {
    SumsAhead sums_ahead(tile, ROWS * sum_stride(heads.answer_dim));
    multiply<ROWS>(product, [&]() __attribute__((always_inline)) { sums_ahead.line(); }, [](std::size_t) {});
}

// A product beside which the next block is asked for; not for a single row, which has as little to multiply as to read,
// and reads from L3 faster alone: 10 % at K = 1,024.
template <std::size_t ROWS, typename Arithmetic, typename Element>
__attribute__((noinline)) void multiply_asking(const Product<Arithmetic>& product, const PackedHeads& heads,
                                               const Rows& rows, const Block<Element>& block, const Tile& tile) {
    if constexpr (ROWS == 1) return multiply_alone<ROWS>(product);
    BlockAhead ahead(heads, rows, block, tile, product.depth * divide_up(product.columns, kPanel));
    multiply<ROWS>(product, [&]() __attribute__((always_inline)) { ahead.step(); }, [](std::size_t) {});
}

// What a tile's sums are multiplied by to be results: answer_scale / Σw. Where one chain completes a tile, its product
// does that, in int16 in one multiplication with the chain's own scale (1.5 % of the time at K = 16, decision 0021);
// not where that factor could be subnormal.
template <std::size_t ROWS>
struct Factors {
    float of_product[ROWS], of_sums[ROWS];
    bool complete;
};

template <std::size_t ROWS, typename Arithmetic>
HR_INLINE Factors<ROWS> find_factors(const Product<Arithmetic>& product, const PackedHeads& heads, const Tile& tile) {
    const float* const scale = product.target.scale;
    Factors<ROWS> factors;
    factors.complete = Arithmetic::kInRegisters && heads.n_blocks == 1 && product.depth <= product.chain &&
                       (scale == nullptr || heads.answer_scale > 0x1p-100f);
    for (std::size_t m = 0; m < ROWS; ++m) {
        const float factor = heads.answer_scale / tile.weight_sum[m];
        factors.of_product[m] = scale == nullptr ? factor : scale[m] * factor;
        factors.of_sums[m] = factors.complete ? 1.0f : factor;
    }
    return factors;
}

// How the results of a tile's only product leave: straight from the registers to `out`.
template <typename V, bool PAST_CACHES>
struct Finished {
    using Value = V;
    static constexpr bool kAdds = false;
    HR_MEMBER void operator()(Value* p, vfloat result) const { put(p, result, PAST_CACHES); }
};

// Whether they can: a whole tile whose rows are whole vectors; and past the caches rows have to be whole lines.
template <std::size_t ROWS>
HR_INLINE bool finishes_in_registers(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
    const std::size_t row_bytes = heads.answer_dim * (rows.out.half ? sizeof(half) : sizeof(float));
    return tile.rows == ROWS && heads.answer_dim % kLanes == 0 &&
           (!rows.stream ||
            (row_bytes % kLineBytes == 0 && reinterpret_cast<std::uintptr_t>(rows.out.data) % kLineBytes == 0));
}

// A tile's only product that can: 6 % of the time at K = 16, 9 % in int16. docs/decisions/0019.
template <std::size_t ROWS, typename Arithmetic, typename Ahead, typename Value, bool PAST_CACHES>
__attribute__((noinline)) void multiply_finishing(Product<Arithmetic> product, const PackedHeads& heads,
                                                  const Rows& rows, const Tile& tile, Ahead ahead,
                                                  Finished<Value, PAST_CACHES> finished) {
    Value* const out = reinterpret_cast<Value*>(rows.out.data) + tile.first * heads.answer_dim;
    product.target = {reinterpret_cast<float*>(out), heads.answer_dim, kStrip, false, product.target.scale};
    multiply<ROWS>(product, [&]() __attribute__((always_inline)) { ahead.step(); }, [](std::size_t) {}, finished);
}

// The last product of a tile, beside which finished columns are written to `out` and queries asked for.
template <std::size_t ROWS, typename Arithmetic, typename Ahead, typename Value>
__attribute__((noinline)) void multiply_writing(const Product<Arithmetic>& product, const PackedHeads& heads,
                                                const Rows& rows, const Tile& tile, const float* factor, Ahead ahead,
                                                Value) {
    Writer<Value> writer(rows, heads, tile, factor);
    const std::size_t at_once =
        divide_up(tile.rows, product.depth);  // above 1 with fewer than 14 heads, or 28 in int16
    multiply<ROWS>(
        product,
        [&]() __attribute__((always_inline)) {
            for (std::size_t i = 0; i < at_once; ++i) writer.row();
            ahead.step();
        },
        [&](std::size_t columns) __attribute__((always_inline)) { writer.ready(columns); });
    writer.rest();
    writer.ends();
}
template <std::size_t ROWS, typename Arithmetic, typename Ahead = NothingAhead>
HR_INLINE void multiply_writing(Product<Arithmetic> product, const PackedHeads& heads, const Rows& rows,
                                const Tile& tile, Ahead ahead = {}) {
    const Factors<ROWS> factors = find_factors<ROWS>(product, heads, tile);
    if (factors.complete) product.target.scale = factors.of_product;
    if constexpr (ROWS == kRows && Arithmetic::kInRegisters)
        if (factors.complete && finishes_in_registers<ROWS>(heads, rows, tile))
            return with_type(rows.out, [&](auto value) __attribute__((always_inline)) {
                using Value = decltype(value);
                if (rows.stream)
                    multiply_finishing<ROWS>(product, heads, rows, tile, ahead, Finished<Value, true>{});
                else
                    multiply_finishing<ROWS>(product, heads, rows, tile, ahead, Finished<Value, false>{});
            });
    with_type(rows.out,
              [&](auto value) { multiply_writing<ROWS>(product, heads, rows, tile, factors.of_sums, ahead, value); });
}

}  // namespace
