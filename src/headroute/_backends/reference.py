"""The definition of correctness: the formula of multi-head routing in float64 NumPy.

    s = q̂ · ĉ       w = softmax(s / τ)       p = w A

It is slow on purpose, and it is what every other backend is tested against.
"""

import numpy as np
import numpy.typing as npt

from headroute._validate import Float32

NAME = "reference"
CHAINS = False
HALVES = False

Float64 = npt.NDArray[np.float64]

# float64 bytes of weights held at once; what they are computed from takes several times as much.
_BLOCK_BYTES = 512 << 10


def unavailable() -> str | None:
    return None


def build_facts() -> dict[str, object]:
    return {}


def unit(rows: Float64) -> Float64:
    """Rows (n, d) divided by their norms, by the largest element first: no square can overflow."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    scaled = rows / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    result: Float64 = scaled / np.where(norm > 0, norm, 1)
    return result


def routing_weights(queries: Float64, centroids: Float64, temperature: float) -> Float64:
    """Weights (n, K) of finite queries (n, d) for unit centroids (K, d): softmax(cosines / τ)."""
    similarities = unit(queries) @ centroids.T
    with np.errstate(
        over="ignore"
    ):  # a tiny temperature: -inf, whose exponential is the 0 that is meant
        logits = (similarities - similarities.max(axis=1, keepdims=True)) / temperature
    weights = np.exp(logits)
    result: Float64 = weights / weights.sum(axis=1, keepdims=True)
    return result


class Heads:
    """Heads in float64; see `headroute._backends.Heads` for the shapes. One thread, always."""

    def __init__(self, centroids: Float32, answers: Float32) -> None:
        self._centroids = unit(centroids.astype(np.float64))
        self._answers = answers.astype(np.float64)

    def project(
        self,
        queries: Float32,
        temperature: float,
        out: Float32,
        num_threads: int,  # noqa: ARG002
    ) -> int:
        return self._run(queries, temperature, out, self._answers)

    def route(
        self,
        queries: Float32,
        temperature: float,
        out: Float32,
        num_threads: int,  # noqa: ARG002
    ) -> int:
        return self._run(queries, temperature, out, None)

    def info(self) -> dict[str, str | int]:
        return {}

    def _run(
        self, queries: Float32, temperature: float, out: Float32, answers: Float64 | None
    ) -> int:
        step = max(1, _BLOCK_BYTES // (8 * max(self._centroids.shape)))
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            block = queries[rows].astype(np.float64)
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                return start + int(bad.argmax())
            weights = routing_weights(block, self._centroids, temperature)
            out[rows] = weights if answers is None else weights @ answers
        return -1
