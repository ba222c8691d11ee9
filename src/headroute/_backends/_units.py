"""Unit centroids in float32, rounded once from float64: the same for every float32 backend."""

import numpy as np

from headroute._backends.reference import unit
from headroute._validate import Float32

# float64 bytes of one block, so that a million heads do not need twice their memory again.
_BLOCK_BYTES = 16 << 20


def unit_centroids(centroids: Float32) -> Float32:
    """ĉ = c / ‖c‖ of centroids (K, d): C-contiguous float32."""
    result = np.empty_like(centroids, order="C")
    step = max(1, _BLOCK_BYTES // (8 * centroids.shape[1]))
    for start in range(0, len(centroids), step):
        rows = slice(start, start + step)
        result[rows] = unit(centroids[rows].astype(np.float64))
    return result
