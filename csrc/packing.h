// Heads in the order that a kernel reads them. Done once per router.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "projection.h"

namespace headroute {

struct FreeAligned {
    void operator()(float* p) const noexcept;
};
using AlignedFloats = std::unique_ptr<float[], FreeAligned>;

// 64-byte aligned and uninitialised; 2 MiB aligned with huge pages asked for when it is larger than that.
// Throws std::bad_alloc.
AlignedFloats allocate_floats(std::size_t n);

// How far rounded heads are from the real ones, and what bounds on a projection need to know; relative to the largest
// ‖a‖ where it says so.
struct HeadRounding {
    double centroid_norm = 0;      // the largest ‖ĉ - μ‖
    double centroid_rounding = 0;  // the largest ‖(ĉ - μ) - c16 / centroid_scale‖
    double answer_radius = 0;      // the largest ‖a - mean a‖, relative
    double answer_rounding = 0;    // the largest ‖a - packed a‖, relative
    double query_scale = 0;        // ‖q16‖ if centroids were queries, the smallest; screened: the mean
    std::size_t weight_chain = 0;  // int16: as of Int16Kernel
    double weight_total = 0;
};

// Everything that a kernel needs to know of heads, and the memory behind it.
struct Heads {
    PackedHeads packed;
    HeadRounding rounding;  // not of float32
    AlignedFloats data;     // null when packed.data is somebody else's memory
    std::size_t data_elements;
    std::vector<float> inverse_limits;        // pairs of int16
    std::vector<float> dot_offsets;           // screened
    std::vector<std::uint32_t> search_order;  // screened
    AlignedFloats centroid_rows;              // screened
};

// centroids [K, d] with unit norm, answers [K, e], both C-contiguous, K, d, e >= 1. Copied, but for the answers of
// screened heads: those are read where they are, and must live as long as the result.
Heads pack_heads(const float* centroids, const float* answers, std::size_t n_heads, std::size_t query_dim,
                 std::size_t answer_dim, Precision precision, const Kernel& kernel);

// Packed heads may be kept in a file. Its reader compares the layout below, but cannot see the order of the elements in
// a block: whoever changes that order, or what an element is, counts this up.
constexpr int kPackedVersion = 1;

// How float32 heads are packed for a kernel, without data; and the bytes of it.
PackedHeads float32_layout(std::size_t n_heads, std::size_t query_dim, std::size_t answer_dim, const Kernel& kernel);
std::size_t packed_bytes(const PackedHeads& layout, const Kernel& kernel);

// float32 heads that are packed already, by pack_heads for the same kernel; read where they are, so the memory must
// live as long as the result. Throws std::invalid_argument when it is misaligned or not of the right size.
Heads borrow_heads(const void* data, std::size_t bytes, std::size_t n_heads, std::size_t query_dim,
                   std::size_t answer_dim, float answer_scale, const Kernel& kernel);

}  // namespace headroute
