"""What the compiled kernel finds in one pass, for backends that only project and route.

Blocks of weights or cosines are at most 512 KiB; N×K is never held at once.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute._backends import Heads
from headroute._backends.reference import unit
from headroute._selection import Indices, k_best
from headroute._validate import Float32

_BLOCK_BYTES = 1 << 19

_LEAST_LOGIT = -700.0  # below, a weight is nothing, and 0 times infinity would be NaN

# (queries (n, d), τ, indices (n, k) and weights (n, k) to write, threads) → bad row, or -1.
TopKernel = Callable[[Float32, float, Indices, Float32, int], int]
# (queries (n, d), τ, projected (n, e) and raw (n, 3) to write, threads) → bad row, or -1; raw is
# what `headroute.stats.stats_of` takes.
StatsKernel = Callable[[Float32, float, Float32, Float32, int], int]


def top_heads(heads: Heads, n_heads: int) -> TopKernel:

    def find(
        queries: Float32, temperature: float, indices: Indices, best: Float32, threads: int
    ) -> int:
        k = indices.shape[1]
        for start, weights in _blocks(len(queries), n_heads, np.float32):
            rows = slice(start, start + len(weights))
            bad = heads.route(queries[rows], temperature, weights, threads)
            if bad >= 0:
                return start + bad
            indices[rows], best[rows] = k_best(weights, k)
        return -1

    return find


def project_with_stats(heads: Heads, centroids: Float32) -> StatsKernel:
    """For heads with centroids (K, d): statistics by their definition, in float64."""
    directions = unit(centroids.astype(np.float64))

    def project(
        queries: Float32, temperature: float, out: Float32, stats: Float32, threads: int
    ) -> int:
        bad = heads.project(queries, temperature, out, threads)
        if bad >= 0:
            return bad
        for start, cosines in _blocks(len(queries), len(centroids), np.float64):
            rows = slice(start, start + len(cosines))
            np.matmul(unit(queries[rows].astype(np.float64)), directions.T, out=cosines)
            best = cosines.max(axis=1, keepdims=True)
            with np.errstate(over="ignore"):
                logits = np.maximum((cosines - best) / temperature, _LEAST_LOGIT)
            weights = np.exp(logits)
            stats[rows, 0] = best[:, 0]
            stats[rows, 1] = weights.sum(axis=1)
            stats[rows, 2] = (weights * logits).sum(axis=1) / math.log(2)
        return -1

    return project


def _blocks(
    n: int, n_heads: int, dtype: type[np.floating[Any]]
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield (start, block): an array (rows, K) to be filled, in the memory of the one before."""
    step = max(1, _BLOCK_BYTES // (np.dtype(dtype).itemsize * n_heads))
    buffer = np.empty((min(step, n), n_heads), dtype)
    for start in range(0, n, step):
        yield start, buffer[: min(step, n - start)]
