// A tile of rows on its way through the kernels: where its queries, numbers and sums are, in which order tiles and
// blocks of heads meet, and how finished columns leave. Shared by every precision; not responsible for what is
// multiplied (projection_kernel.inl, int16_kernel.inl) or how (multiply.h).
#pragma once

#include "multiply.h"
#include "projection.h"
#include "vec.h"

namespace {

using namespace headroute;

// A tile of rows on its way through the kernel: which rows, and where they are in the thread's scratch.
struct Tile {
    std::size_t first;       // counted from the start of `Rows`
    std::size_t rows;        // real ones, 0 when there are none left; up to `height` the rest is padding
    std::size_t height;      // kRows, kFewRows or 1
    float* strips;           // [elements of d / 16][height][16] queries; int16: pairs
    float* sums;             // [height][sum_stride(e)] Σ w a so far
    float* squares;          // [height][16] Σ q², of roundings in int16, to be added up; screened: then its Search
    float* scale;            // [height] c, from dots to exponents of 2; 0 for a zero query: all weights equal
    float* maximum;          // [height] m
    float* weight_sum;       // [height] Σ w
    float* weight_log;       // [height] Σ w log2(w); with Rows::stats only
    float* inverse_norm;     // [height] 1 / ‖q‖, 0 for a zero query; with Rows::stats only
    float* query_rounding;   // [height] and
    float* weight_rounding;  // [height] as in Rows::rounding, the second not yet divided; int16 only
    float* candidates;       // screened_kernel.inl
};

// The tile of `n` rows from `first` on, n <= height, at a place in the scratch.
HR_INLINE Tile make_tile(const PackedHeads& heads, float* scratch, std::size_t slot, std::size_t first, std::size_t n,
                         std::size_t height) {
    Tile tile{};
    tile.first = first;
    tile.rows = n;
    tile.height = height;
    tile.strips = scratch + slot * slot_floats(heads, kRows);
    tile.sums = tile.strips + kRows * round_up(elements(heads, heads.query_dim), kStrip);
    tile.squares = tile.sums + kRows * sum_stride(heads.answer_dim);
    tile.scale = tile.squares + kRows * kStrip;
    tile.maximum = tile.scale + kMostRows;
    tile.weight_sum = tile.maximum + kMostRows;
    tile.weight_log = tile.weight_sum + kMostRows;
    tile.inverse_norm = tile.weight_log + kMostRows;
    tile.query_rounding = tile.inverse_norm + kMostRows;
    tile.weight_rounding = tile.query_rounding + kMostRows;
    tile.candidates = tile.weight_rounding + kMostRows;
    return tile;
}

// The tile that begins with row `first` of a pass that ends before row `end`.
HR_INLINE Tile tile_at(const PackedHeads& heads, const Rows& rows, std::size_t slot, std::size_t first,
                       std::size_t end) {
    const std::size_t rest = end - first;
    const std::size_t height = rest == 1 ? 1 : rest > kRows / 2 ? kRows : kFewRows;
    return make_tile(heads, rows.scratch, slot, first, min(rest, height), height);
}

// A vector of queries, from either type of them; the partial one has zeros behind its first n lanes.
HR_INLINE vfloat load_query(const float* p) { return load(p); }
HR_INLINE vfloat load_query(const half* p) { return load_half(p); }
HR_INLINE vfloat load_query_partial(const float* p, std::size_t n) { return load_partial(p, n, 0.0f); }
HR_INLINE vfloat load_query_partial(const half* p, std::size_t n) { return load_half_partial(p, n); }

// Calls use(Value{}) with the type of the queries, or of `out`.
template <typename Byte, typename Use>
HR_INLINE void with_type(const Matrix<Byte>& matrix, Use use) {
    if (matrix.half)
        use(half{});
    else
        use(float{});
}

// The queries of a tile, a strip of one row at a time: down the rows, then to the next columns.
template <typename Value>
class QueryCursor {
   public:
    HR_MEMBER QueryCursor(const Rows& rows, const Tile& tile)
        : n_rows_(tile.rows),
          stride_(rows.query_stride),
          // The rows of the tile after this one are asked for now: a tile's time before they are read.
          ahead_(tile.first + 2 * tile.rows <= rows.n ? static_cast<std::ptrdiff_t>(tile.rows) * stride_ : 0),
          first_(reinterpret_cast<const Value*>(rows.queries.data) + static_cast<std::ptrdiff_t>(tile.first) * stride_),
          at_(first_) {}

    // Where the cursor is, and the beginning of any row.
    HR_MEMBER const Value* here() const { return at_; }
    HR_MEMBER const Value* row(std::size_t m) const { return first_ + static_cast<std::ptrdiff_t>(m) * stride_; }
    HR_MEMBER void prefetch(std::size_t column) const {
        __builtin_prefetch(at_ + ahead_ + column, 0, kRows == 32 ? 2 : 3);
    }
    // To the next row; true if that is the first one again, `width` columns further.
    HR_MEMBER bool advance(std::size_t width) {
        at_ += stride_;
        if (++row_ < n_rows_) return false;
        row_ = 0;
        column_ += width;
        at_ = first_ + column_;
        return true;
    }
    HR_MEMBER std::size_t row() const { return row_; }
    HR_MEMBER std::size_t column() const { return column_; }

   private:
    const std::size_t n_rows_;
    const std::ptrdiff_t stride_, ahead_;
    const Value* const first_;
    const Value* at_;
    std::size_t row_ = 0, column_ = 0;
};

template <typename Element>
struct Block {
    const Element* centroids;
    const Element* answers;
    std::size_t first;  // head
    std::size_t heads;
    bool is_first, is_last;
};

template <typename Element>
HR_INLINE Block<Element> block_at(const PackedHeads& heads, std::size_t index) {
    const std::size_t first = index * heads.block_heads;
    const std::size_t n = min(heads.block_heads, heads.n_heads - first);
    const Element* centroids =
        static_cast<const Element*>(heads.data) + index * block_elements(heads, heads.block_heads, kLanes);
    return {
        centroids, centroids + centroid_elements(heads, n, kLanes), first, n, index == 0, index + 1 == heads.n_blocks};
}

// The sum of the 16 floats of a row in a strip.
HR_INLINE float sum_of_strip(const float* row) {
    vfloat sum = zero();
    for (std::size_t j = 0; j < kStrip; j += kLanes) sum += load(row + j);
    return reduce_add(sum);
}

// The maximum of a row of dots. `row` points at its first strip.
HR_INLINE float row_maximum(const float* row, std::size_t row_stride, std::size_t heads) {
    const float lowest = -__builtin_inff();
    vfloat largest = splat(lowest);
    std::size_t k = 0;
    for (; k + kLanes <= heads; k += kLanes) largest = max(load(row + k / kStrip * row_stride + k % kStrip), largest);
    if (k < heads) largest = max(load_partial(row + k / kStrip * row_stride + k % kStrip, heads - k, lowest), largest);
    return reduce_max(largest);
}

// Lets the maximum of row m be at least `maximum`; what earlier blocks summed up shrinks accordingly.
HR_INLINE void raise_maximum(const Tile& tile, std::size_t m, float maximum, std::size_t e) {
    const float before = tile.maximum[m];
    if (!(maximum > before)) return;
    tile.maximum[m] = maximum;
    if (!(tile.weight_sum[m] > 0.0f)) return;  // the first block
    const float exponent = (before - maximum) * tile.scale[m];
    const vfloat decay = exp2_nonpositive(splat(exponent));
    const float factor = reduce_max(decay);
    // Σ w log2(w) of weights that are all `factor` of what they were.
    tile.weight_log[m] = factor > 0.0f ? factor * (tile.weight_log[m] + exponent * tile.weight_sum[m]) : 0.0f;
    tile.weight_sum[m] *= factor;
    tile.weight_rounding[m] *= factor;
    float* sums = tile.sums + m * sum_stride(e);
    for (std::size_t i = 0; i < e; i += kLanes) store(sums + i, load(sums + i) * decay);
}

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

// Writes what Rows::rounding wants of a finished tile; int16 only.
HR_INLINE void write_roundings(const Rows& rows, const Tile& tile) {
    if (rows.rounding == nullptr) return;
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* rounding = rows.rounding + 2 * (tile.first + m);
        rounding[0] = tile.query_rounding[m];
        rounding[1] = tile.weight_rounding[m] / tile.weight_sum[m];
    }
}

HR_INLINE float* tile_weights(const PackedHeads& heads, const Rows& rows) {
    return rows.scratch + tile_slots(heads, rows.pass_rows, kRows) * slot_floats(heads, kRows);
}

// Products of a block with a tile. First its cosines: dots [block / 16][ROWS][16].
template <std::size_t ROWS, typename Arithmetic>
HR_INLINE Product<Arithmetic> dot_product(const PackedHeads& heads, const Block<typename Arithmetic::Element>& block,
                                          const Tile& tile, std::size_t chain, float* dots) {
    return {reinterpret_cast<const typename Arithmetic::Element*>(tile.strips),
            block.centroids,
            elements(heads, heads.query_dim),
            chain,
            block.heads,
            Target{dots, kStrip, ROWS * kStrip, false, nullptr}};
}

// Then its weights [block / 16][ROWS][16] times its answers, added to the sums.
template <typename Arithmetic>
HR_INLINE Product<Arithmetic> mix_product(const PackedHeads& heads, const Block<typename Arithmetic::Element>& block,
                                          const Tile& tile, const typename Arithmetic::Element* weights,
                                          std::size_t chain, const float* scales) {
    return {
        weights, block.answers,    elements(heads, block.heads),
        chain,   heads.answer_dim, Target{tile.sums, sum_stride(heads.answer_dim), kStrip, !block.is_first, scales}};
}

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

// Calls compute(Constant<tile height>).
template <typename Compute>
HR_INLINE void with_height(const Tile& tile, Compute compute) {
    if (tile.height == kRows)
        compute(Constant<kRows>{});
    else if (tile.height == kFewRows)
        compute(Constant<kFewRows>{});
    else
        compute(Constant<1>{});
}

// Calls compute(Constant<tile height>, block, tile, next tile) for every block and tile of every pass. A pass's first
// tile is packed here, whole, the others by compute() beside the tile before. measure(tile) finishes a packed tile's
// numbers, and returns its first row with a NaN or infinity.
template <typename Element, typename Pack, typename Measure, typename Compute>
HR_INLINE std::size_t for_each_tile(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt, Pack pack,
                                    Measure measure, Compute compute) {
    for (std::size_t start = 0; start < rows.n; start += rows.pass_rows) {
        const std::size_t end = min(start + rows.pass_rows, rows.n);
        for (std::size_t b = 0; b < heads.n_blocks; ++b) {
            const auto block = block_at<Element>(heads, b);
            std::size_t slot = 0, first = start;
            if (block.is_first) pack(tile_at(heads, rows, slot, first, end));
            while (first < end) {
                // Made anew: a copy would be loaded in one piece while its parts are still on their way to the cache.
                const Tile tile = tile_at(heads, rows, slot, first, end);
                if (block.is_first) {
                    const std::size_t bad = measure(tile);
                    if (bad != kNoBadRow) return bad;
                }
                first += tile.rows;
                slot = slot + 1 < tile_slots(heads, rows.pass_rows, kRows) ? slot + 1 : 0;
                const Tile next = tile_at(heads, rows, slot, first, end);
                with_height(tile, [&](auto height) { compute(height, block, tile, next); });
            }
            if (interrupt.requested(interrupt.context)) return kNoBadRow;
        }
    }
    if (rows.stream) stream_fence();
    return kNoBadRow;
}

}  // namespace
