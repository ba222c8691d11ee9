// Heads in the order that a kernel reads them. Done once per router.
#pragma once

#include <cstddef>
#include <memory>

#include "projection.h"

namespace headroute {

struct FreeAligned {
    void operator()(float* p) const noexcept;
};
using AlignedFloats = std::unique_ptr<float[], FreeAligned>;

// 64-byte aligned and uninitialised; 2 MiB aligned with huge pages asked for when it is larger than that.
// Throws std::bad_alloc.
AlignedFloats allocate_floats(std::size_t n);

// The layout for K heads of d and e columns; `data` is null and `answer_scale` is 1.
PackedHeads head_layout(std::size_t n_heads, std::size_t query_dim, std::size_t answer_dim, const Kernel& kernel);

// 1, or the power of 2 that keeps the sum of K answers finite before it is divided by the sum of the weights. No larger
// than it must be: what an answer loses at the small end of float32 is lost for good.
float answer_scale(const float* answers, std::size_t n_heads, std::size_t answer_dim);

std::size_t packed_floats(const PackedHeads& layout, const Kernel& kernel);

// centroids [K, d] with unit norm, answers [K, e], both C-contiguous → to [packed_floats()].
void pack_heads(const float* centroids, const float* answers, const PackedHeads& layout, const Kernel& kernel,
                float* to);

}  // namespace headroute
