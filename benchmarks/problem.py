"""One projection to time: heads, queries, and the float64 answer that every contender must give.

    p = Σ_k softmax_k(q̂ · ĉ / τ) a_k

The reference is written out here, not taken from headroute: a benchmark whose subject is also its
judge proves nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Runner = Callable[[], Float32]  # projects all queries, (N, e)

DIM = 384  # d = e: all-MiniLM-L6-v2 and its many relatives
TEMPERATURE = 0.1
# Of one component in int16; the answers have unit norm, and a whole row is off by about 1e-4.
INT16_TOLERANCE = 1e-4
_CHECKED_ROWS = 48
_BLOCK_ROWS = 16384


@dataclass(frozen=True, eq=False)
class Problem:
    """Heads and queries; arrays are C-contiguous float32."""

    centroids: Float32  # (K, d), not normalised
    answers: Float32  # (K, e)
    queries: Float32  # (N, d), not normalised
    temperature: float

    @classmethod
    def random(
        cls,
        n_heads: int,
        n_queries: int,
        d: int = DIM,
        e: int = DIM,
        temperature: float = TEMPERATURE,
    ) -> "Problem":
        """Queries that lie around heads (cosine about 0.7), as embeddings of real questions do.

        Independent directions would give weights of nearly 1/K, and a wrong result would be small
        enough to pass.
        """
        rng = np.random.default_rng([n_heads, n_queries])
        centroids = _directions(rng, n_heads, d)
        answers = _directions(rng, n_heads, e)
        noise = _directions(rng, n_queries, d)
        queries = centroids[rng.integers(n_heads, size=n_queries)] + noise
        queries *= rng.uniform(0.5, 2.0, (n_queries, 1)).astype(np.float32)
        centroids *= rng.uniform(0.5, 2.0, (n_heads, 1)).astype(np.float32)
        return cls(centroids, answers, queries, temperature)

    @property
    def n_heads(self) -> int:
        return len(self.centroids)

    @property
    def n_queries(self) -> int:
        return len(self.queries)

    @property
    def facts(self) -> dict[str, int]:
        """What the report needs to turn seconds into ns a query and GFLOP/s, and bytes."""
        return {
            "heads": self.n_heads,
            "queries": self.n_queries,
            "query_dim": self.queries.shape[1],
            "answer_dim": self.answers.shape[1],
            "flop": self._flop,
        }

    @property
    def _flop(self) -> int:
        """Of the two matrix products alone."""
        return 2 * self.n_queries * self.n_heads * (self.queries.shape[1] + self.answers.shape[1])

    def keys(self) -> Float32:
        """ĉᵀ/τ, (d, K): what a peer may prepare once, so that a call only multiplies."""
        unit = _unit(self.centroids.astype(np.float64))
        return np.ascontiguousarray((unit / self.temperature).T.astype(np.float32))

    @cached_property
    def _sample(self) -> npt.NDArray[np.intp]:
        """Rows that are compared: the first, the last and some between, odd positions included."""
        count = min(_CHECKED_ROWS, self.n_queries)
        return np.linspace(0, self.n_queries - 1, count).astype(np.intp)

    @cached_property
    def _expected(self) -> Float64:
        """(rows of the sample, e)"""
        return self.expected(self._sample)

    def expected(self, rows: npt.NDArray[np.intp] | slice = slice(None)) -> Float64:
        """p of some queries in float64, (n, e)."""
        queries = _unit(self.queries[rows].astype(np.float64))
        blocks = list(_blocks(self.n_heads))
        cosines = [queries @ _unit(self.centroids[b].astype(np.float64)).T for b in blocks]
        logits = np.concatenate(cosines, axis=1) / self.temperature
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return sum(weights[:, b] @ self.answers[b].astype(np.float64) for b in blocks)

    @property
    def tolerance(self) -> float:
        """Largest absolute error of one component of p that float32 arithmetic explains.

        Rounding errors of a sum of n terms grow as λ√n·u, u = 2⁻²⁴, with λ = 6 exceeded about once
        in 10⁷ (Higham and Mary, 2019); terms of a cosine add up to at most 1 in absolute value. So
            a logit:  λ√d·u/τ, and 4u/τ for the norms and the scale
            a weight: twice that (its own and the sum's logits), λ√K·u for the sum, 4u for exp and /
            p:        that times max |a|, and λ√K·u·max |a| for the second product.
        """
        u, growth = 2.0**-24, 6.0
        logit = (growth * self.queries.shape[1] ** 0.5 + 4) * u / self.temperature
        sums = 2 * growth * self.n_heads**0.5 * u
        return float((2 * logit + sums + 4 * u) * np.abs(self.answers).max())

    @property
    def bf16_tolerance(self) -> float:
        """The same for bfloat16 operands, u = 2⁻⁹, added up in float32.

        Every product of a cosine is off by 2u at most, independently, and there are products of
        about 1/d: λ·2u/√d, for a logit over τ, and u of a logit where it is stored. Weights,
        answers and the result are rounded once each.
        """
        u, growth = 2.0**-9, 6.0
        logit = (2 * growth / self.queries.shape[1] ** 0.5 + 1) * u / self.temperature
        return float((2 * logit + 3 * u) * np.abs(self.answers).max())

    def checked(self, runner: Runner, tolerance: float | None = None) -> Runner:
        """Return `runner` once its result (N, e) agrees with the float64 reference on a sample: no
        component is off by more than `tolerance`, by default what float32 explains."""
        result = runner()
        assert result.shape == (self.n_queries, self.answers.shape[1])
        error = np.abs(result[self._sample] - self._expected).max()
        tolerance = self.tolerance if tolerance is None else tolerance
        assert error <= tolerance, f"off by {error:.2e}, and {tolerance:.2e} is explained"
        return runner


def _blocks(n: int) -> Iterator[slice]:
    """Rows of heads that are worked on together: a million heads have no room for a second array
    of theirs in float64."""
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, n, _BLOCK_ROWS))


def _directions(rng: np.random.Generator, n: int, dim: int) -> Float32:
    """Random unit rows, (n, dim)."""
    rows = np.empty((n, dim), np.float32)
    for block in _blocks(n):
        rng.standard_normal(out=rows[block], dtype=np.float32)
        rows[block] = _unit(rows[block])
    return rows


def _unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
