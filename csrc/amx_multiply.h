// The product of int16 on tiles of AMX, which multiply bytes, 16 times as many a cycle as VNNI multiplies int16:
//
//   a · b = (256 a_h + a_l) (256 b_h + b_l) = 65536 a_h b_h + 256 (a_h b_l + a_l b_h) + a_l b_l
//
// a_h, b_h the high bytes (signed, but for weights), a_l, b_l the low ones (unsigned). The sums of the three orders of
// magnitude are exact, each on a tile of its own, and meet in float32.
//
// A tile is 16 rows of 64 bytes: of strips, 16 rows of 64 columns; of panels, 64 rows of 16 columns, four at a time;
// of sums, 16 × 16 int32. A product of tiles takes 16 cycles, and there are eight tiles: two sets of sums take turns.
// While one is added up, the other is stored and becomes floats: done in one piece when a set is complete, the next
// products would wait behind it (29 cycles a product instead of 22, of which loads take 4). Tiles are loaded,
// multiplied and stored in assembly, since GCC's intrinsics do not say that they read and write memory. Measurements:
// docs/decisions/0016. Not responsible for what is multiplied (amx_kernel.inl).
#pragma once

#include "multiply.h"
#include "projection.h"
#include "vec.h"

namespace {

using namespace headroute;

constexpr std::size_t kTileRows = 16;
constexpr std::size_t kTileBytes = 64;
// Rows of a set that become floats beside each product of the next.
constexpr std::size_t kRowsBeside = 1;

// int16 as two planes of bytes; SIGNED_ROWS: whether those of the strips are signed.
template <bool SIGNED_ROWS>
struct BytePlanes {
    using Element = std::int32_t;
    static constexpr bool kInRegisters = false;

    using Value = std::uint8_t;
    static constexpr std::size_t kValues = 4, kPlanes = 2;
    static constexpr float kLargest = 32766.0f, kOrigin = 0.0f;
    static constexpr bool kLimited = false, kRowsAhead = false;
    HR_MEMBER static void store(Value* to, std::size_t plane, vint x) {
        store_low_bytes(to, x);
        store_low_bytes(to + plane, x >> 8);
    }
    HR_MEMBER static void store(Value* to, std::size_t plane, std::int32_t x) {
        to[0] = static_cast<Value>(x);
        to[plane] = static_cast<Value>(x >> 8);
    }
};

// int8, for a search: a product leaves int32 where floats are left elsewhere.
struct SignedBytes {
    using Element = std::int32_t;

    using Value = std::int8_t;
    static constexpr std::size_t kValues = 4, kPlanes = 1;
    static constexpr float kLargest = 127.0f, kOrigin = 0.0f;
    static constexpr bool kLimited = false, kRowsAhead = false;
    static constexpr std::size_t kStep = kStrip;
    HR_MEMBER static vfloat dots(const float* p) { return to_float(load(reinterpret_cast<const std::int32_t*>(p))); }
    HR_MEMBER static void store(Value* to, std::size_t, vint x) {
        store_low_bytes(reinterpret_cast<std::uint8_t*>(to), x);
    }
    HR_MEMBER static void store(Value* to, std::size_t, std::int32_t x) { *to = static_cast<Value>(x); }
};

// Tiles: two sets of sums, high · high and middle, of which one is added up while the other is stored; the sum of low ·
// low, stored before it is needed again; two of strips, one of panels.
enum TileName { kHigh, kMiddle, kSet, kLow = 2 * kSet, kHighRows, kLowRows, kPanelTile, kTiles };

template <int TILE>
HR_INLINE void tile_zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
HR_INLINE void tile_load(const void* from) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(kTileBytes), "i"(TILE) : "memory");
}
template <int TILE>
HR_INLINE void tile_store(void* to) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(kTileBytes), "i"(TILE) : "memory");
}
// sums += rows · panel
#define HR_TILE_PRODUCT(NAME, SUMS, ROWS) \
    __asm__ volatile(NAME " %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(ROWS), "i"(kPanelTile))

// Makes tiles of `rows` rows for strips and sums. Before every product, since whoever is called between two (a signal
// handler of Python) may have used the tiles for its own ends; a few dozen cycles.
HR_INLINE void configure_tiles(std::size_t rows) {
    struct alignas(64) {
        std::uint8_t palette, start_row, reserved[14];
        std::uint16_t row_bytes[16];
        std::uint8_t rows[16];
    } config{};
    config.palette = 1;
    for (std::size_t tile = 0; tile < kTiles; ++tile) {
        config.row_bytes[tile] = kTileBytes;
        config.rows[tile] = static_cast<std::uint8_t>(tile != kPanelTile ? rows : kTileRows);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
HR_INLINE void release_tiles() { __asm__ volatile("tilerelease"); }

// Where a set of sums goes: ROWS rows of 16 columns, times `scale` [ROWS] if that is not null.
struct Destination {
    float* data;
    std::size_t row_stride;
    const float* scale;
    bool add;
};

// A set of sums between its tiles and its destination.
template <std::size_t ROWS>
class StoredSums {
   public:
    template <int SET>
    HR_MEMBER void take() {
        tile_store<SET + kHigh>(high_);
        tile_store<SET + kMiddle>(middle_);
        tile_store<kLow>(low_);
    }
    HR_MEMBER void put_row(std::size_t m, const Destination& to) const {
        const vfloat step = splat(256.0f);
        const vfloat upper = fma(to_float(load(high_[m])), step, to_float(load(middle_[m])));
        const vfloat sum = fma(upper, step, to_float(load(low_[m])));
        const vfloat factor = splat(to.scale == nullptr ? 1.0f : to.scale[m]);
        float* p = to.data + m * to.row_stride;
        store(p, to.add ? fma(sum, factor, load(p)) : sum * factor);
    }

   private:
    alignas(64) std::int32_t high_[ROWS][kStrip], middle_[ROWS][kStrip], low_[ROWS][kStrip];
};

// 16 columns of the product of ROWS rows over one chain, on the set of tiles at SET. Beside it what the other tiles
// hold, complete since the call before, goes to `other`, if that is anywhere. Calls beside() after each of the four
// products of a step.
template <int SET, std::size_t ROWS, bool SIGNED_ROWS, typename Beside>
HR_INLINE void multiply_tile(const std::int32_t* strips, std::size_t strip_stride, const std::int32_t* panel,
                             std::size_t depth, StoredSums<ROWS>& stored, Destination other, Beside beside) {
    constexpr std::size_t kStep = 2 * kStrip;
    // One step. between(quarter) is called after every product, before_low() before the last.
    const auto step = [&](auto before_low, auto between) __attribute__((always_inline)) {
        tile_load<kHighRows>(strips + strip_stride);
        tile_load<kPanelTile>(panel + kStrip * kStrip);
        if constexpr (SIGNED_ROWS)
            HR_TILE_PRODUCT("tdpbssd", SET + kHigh, kHighRows);
        else
            HR_TILE_PRODUCT("tdpbusd", SET + kHigh, kHighRows);
        between(0);
        tile_load<kLowRows>(strips);
        HR_TILE_PRODUCT("tdpbusd", SET + kMiddle, kLowRows);
        between(1);
        tile_load<kPanelTile>(panel);
        if constexpr (SIGNED_ROWS)
            HR_TILE_PRODUCT("tdpbsud", SET + kMiddle, kHighRows);
        else
            HR_TILE_PRODUCT("tdpbuud", SET + kMiddle, kHighRows);
        between(2);
        before_low();
        HR_TILE_PRODUCT("tdpbuud", kLow, kLowRows);
        between(3);
        strips += 2 * strip_stride;
        panel += kStep * kStrip;
    };
    const auto nothing = [] {};
    const auto only_beside = [&](std::size_t) __attribute__((always_inline)) { beside(); };
    tile_zero<SET + kHigh>();
    tile_zero<SET + kMiddle>();
    step(
        [&]() __attribute__((always_inline)) {
            if (other.data != nullptr) stored.template take<kSet - SET>();
            tile_zero<kLow>();
        },
        only_beside);
    std::size_t k = kStep;
    if (other.data != nullptr) {
        std::size_t m = 0;
        for (; m + kRowsBeside * 4 <= ROWS && k < depth; m += kRowsBeside * 4, k += kStep)
            step(nothing, [&](std::size_t quarter) __attribute__((always_inline)) {
                for (std::size_t i = 0; i < kRowsBeside; ++i) stored.put_row(m + kRowsBeside * quarter + i, other);
                beside();
            });
        for (; m < ROWS; ++m) stored.put_row(m, other);
    }
    for (; k < depth; k += kStep) step(nothing, only_beside);
}

// As multiply() of multiply.h: the whole product of ROWS rows.
template <std::size_t ROWS, bool SIGNED_ROWS, typename Beside, typename Done>
HR_INLINE void multiply(const Product<BytePlanes<SIGNED_ROWS>>& product, Beside beside, Done done) {
    const auto [strips, panels, depth, chain, columns, target] = product;
    constexpr std::size_t kHeight = min(ROWS, kTileRows);
    configure_tiles(kHeight);
    StoredSums<kHeight> stored;
    Destination other{nullptr, target.row_stride, nullptr, false};
    bool second = false;
    for (std::size_t column = 0; column < columns; column += kStrip) {
        for (std::size_t start = 0; start < depth; start += chain)
            for (std::size_t m = 0; m < ROWS; m += kHeight) {  // the second one finds the panel in L1
                const auto* rows = strips + start * ROWS + m * kStrip;
                const auto* panel = panels + column * depth + start * kStrip;
                const std::size_t length = min(chain, depth - start);
                if (second)
                    multiply_tile<kSet, kHeight, SIGNED_ROWS>(rows, ROWS * kStrip, panel, length, stored, other,
                                                              beside);
                else
                    multiply_tile<0, kHeight, SIGNED_ROWS>(rows, ROWS * kStrip, panel, length, stored, other, beside);
                second = !second;
                other.data = target.data + m * target.row_stride + column / kStrip * target.strip_stride;
                other.scale = target.scale == nullptr ? nullptr : target.scale + m;
                other.add = target.add || start > 0;
                if (column > 0 && start == 0 && m == 0) done(column);  // the tiles of the columns before are written
            }
    }
    if (second)
        stored.template take<0>();
    else
        stored.template take<kSet>();
    for (std::size_t m = 0; m < kHeight; ++m) stored.put_row(m, other);
    done(columns);
    release_tiles();
}

// 16 columns of the product of int8: ROWS rows, on the set of one or two tiles at SET. Beside it the other set,
// complete since the call before, goes to `other` if that is not null.
template <int SET, std::size_t ROWS, typename Beside>
HR_INLINE void multiply_bytes(const std::int32_t* strips, const std::int32_t* panel, std::size_t depth, float* other,
                              Beside beside) {
    constexpr bool kTwo = ROWS > kTileRows;
    tile_zero<SET>();
    if constexpr (kTwo) tile_zero<SET + 1>();
    for (std::size_t k = 0; k < depth; k += kStrip, strips += ROWS * kStrip, panel += kStrip * kStrip) {
        tile_load<kPanelTile>(panel);
        tile_load<kHighRows>(strips);
        HR_TILE_PRODUCT("tdpbssd", SET, kHighRows);
        beside();
        if constexpr (kTwo) {
            tile_load<kLowRows>(strips + kTileRows * kStrip);
            HR_TILE_PRODUCT("tdpbssd", SET + 1, kLowRows);
            beside();
        }
        if (k == 0 && other != nullptr) {
            tile_store<kSet - SET>(other);
            if constexpr (kTwo) tile_store<kSet - SET + 1>(other + kTileRows * kStrip);
        }
    }
}

// multiply() of multiply.h for SignedBytes: all of depth is one chain, and sums are left as int32, in strips of ROWS
// rows; nothing is scaled or added to.
template <std::size_t ROWS, typename Beside, typename Done>
HR_INLINE void multiply(const Product<SignedBytes>& product, Beside beside, Done done) {
    configure_tiles(min(ROWS, kTileRows));
    const auto [strips, panels, depth, chain, columns, target] = product;
    float* other = nullptr;
    float* to = target.data;
    bool second = false;
    for (std::size_t column = 0; column < columns; column += kStrip, to += target.strip_stride, second = !second) {
        if (second)
            multiply_bytes<kSet, ROWS>(strips, panels + column * depth, depth, other, beside);
        else
            multiply_bytes<0, ROWS>(strips, panels + column * depth, depth, other, beside);
        other = to;
    }
    const auto take = [&](auto set) __attribute__((always_inline)) {
        constexpr int kFrom = decltype(set)::value;
        tile_store<kFrom>(other);
        if constexpr (ROWS > kTileRows) tile_store<kFrom + 1>(other + kTileRows * kStrip);
    };
    if (second)
        take(Constant<0>{});
    else
        take(Constant<kSet>{});
    done(columns);
    release_tiles();
}

}  // namespace
