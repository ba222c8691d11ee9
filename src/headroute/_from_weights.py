"""What the compiled kernel finds in one pass, made from a backend's weights: for backends that only
project and route.

Blocks of weights are at most 1 MiB; N×K is never held at once.
"""

from collections.abc import Callable, Iterator

import numpy as np

from headroute._backends import Heads
from headroute._backends._units import unit_centroids
from headroute._backends.reference import unit
from headroute._selection import Indices, k_best
from headroute._validate import Float32

_BLOCK_BYTES = 1 << 20

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
        for start, weights in _blocks(len(queries), n_heads):
            rows = slice(start, start + len(weights))
            bad = heads.route(queries[rows], temperature, weights, threads)
            if bad >= 0:
                return start + bad
            indices[rows], best[rows] = k_best(weights, k)
        return -1

    return find


def project_with_stats(heads: Heads, centroids: Float32) -> StatsKernel:
    """For heads with centroids (K, d)."""
    directions = unit_centroids(centroids).astype(np.float64)

    def project(
        queries: Float32, temperature: float, out: Float32, stats: Float32, threads: int
    ) -> int:
        bad = heads.project(queries, temperature, out, threads)
        if bad >= 0:
            return bad
        for start, weights in _blocks(len(queries), len(centroids)):
            rows = slice(start, start + len(weights))
            heads.route(queries[rows], temperature, weights, threads)
            best = weights.argmax(axis=1)
            cosines = (unit(queries[rows].astype(np.float64)) * directions[best]).sum(axis=1)
            relative = weights.astype(np.float64) / weights.max(axis=1, keepdims=True)
            logs = np.log2(relative, where=relative > 0, out=np.zeros_like(relative))
            stats[rows, 0] = cosines
            stats[rows, 1] = relative.sum(axis=1)
            stats[rows, 2] = (relative * logs).sum(axis=1)
        return -1

    return project


def _blocks(n: int, n_heads: int) -> Iterator[tuple[int, Float32]]:
    """Yield (start, weights): an array (rows, K) to be filled, in the memory of the one before."""
    step = max(1, _BLOCK_BYTES // (4 * n_heads))
    buffer = np.empty((min(step, n), n_heads), np.float32)
    for start in range(0, n, step):
        yield start, buffer[: min(step, n - start)]
