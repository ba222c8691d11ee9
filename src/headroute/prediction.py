"""Which group a query belongs to, and whether to answer it at all.

    group = argmax_g Σ_{k in g} w_k

How much in scope a query is, higher for more, is one of

    best_cosine    max_k s_k
    log_partition  log Σ_k exp(s_k / τ), the energy of out-of-scope detection (Liu et al. 2020)
    relative       log Σ_k exp((s_k - t_k / 2) / τ), t_k the mean cosine that the head's own
                   questions have to it: less is expected of a wide group, up to 120 τ less than
                   of the narrowest
    margin         the heaviest group's weight less the next one's

A level α becomes a threshold by split conformal prediction (Vovk et al. 2005): of m scores of
in-scope queries, the ⌊α(m + 1)⌋-th smallest. A new in-scope query, exchangeable with them, is below
it with a probability of at most ⌊α(m + 1)⌋ / (m + 1) <= α.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._backends.reference import unit
from headroute._validate import Float32, Floats

Float64 = npt.NDArray[np.float64]

SCORES = ("best_cosine", "log_partition", "relative", "margin")

# Of `relative`: t_k counts as at least the largest less this times τ.
_LEAST_EXPECTED = 120

# float32 bytes of weights held at once.
_BLOCK_BYTES = 2 << 20


class Prediction(NamedTuple):
    """One entry a query, each (N,), or () for one query."""

    group: npt.NDArray[np.int64]  # the group of most weight, also where `abstained`
    score: Float32  # higher for more in scope; which score it is, `Router.calibration` says
    abstained: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """Scores of in-scope queries, which turn a level into a threshold.

    Raises ValueError for what cannot be one: it may come from a file.
    """

    score: str  # one of SCORES
    source: str  # "held-out": not trained on; "leave-one-out" or "cross-validation": trained on
    scores: Float32  # (m,), ascending
    typical: Float32 | None = None  # (K,) t_k; None unless the score needs it

    def __post_init__(self) -> None:
        _validate.one_of(self.score, "score", SCORES)
        scores = self.scores
        if scores.ndim != 1 or len(scores) == 0 or not np.array_equal(scores, np.sort(scores)):
            raise ValueError("a calibration needs scores, (m,) ascending, m >= 1")
        if self.score == "relative" and self.typical is None:
            raise ValueError("a calibration of score 'relative' needs typical cosines")

    def of_heads(self, kept: npt.NDArray[Any]) -> "Calibration":
        """For a router with these heads, a mask or indices."""
        typical = None if self.typical is None else self.typical[kept]
        return Calibration(self.score, self.source, self.scores, typical)

    def threshold(self, alpha: float) -> float:
        """The score below which a query is refused at level `alpha`; -inf when m is too small for
        any to be: below 1/α - 1.

        Raises ValueError for a level outside (0, 1).
        """
        level = _validate.level(alpha)
        place = math.floor(level * (len(self.scores) + 1) + 1e-9)  # 0.07 · 100 is 7.000000000000001
        return float(self.scores[min(place, len(self.scores)) - 1]) if place else -math.inf


class Groups:
    """Which group each of K heads belongs to, and the sums of weights over groups."""

    def __init__(self, group_of_head: npt.NDArray[np.int64]) -> None:
        self._one_head_each = np.array_equal(group_of_head, np.arange(len(group_of_head)))
        self._order = np.argsort(group_of_head, kind="stable")
        counts = np.bincount(group_of_head)
        self._starts = np.cumsum(counts) - counts

    def sums(self, weights: Floats) -> Floats:
        """Weights of heads (n, K) as weights of groups (n, G)."""
        if self._one_head_each:
            return weights
        result: Floats = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return result


def best_cosines(
    queries: npt.NDArray[np.floating[Any]], centroids: Float32, heads: npt.NDArray[np.int64]
) -> Float64:
    """Cosines (n,) of queries (n, d) to their heads (n,) among centroids (K, d)."""
    # In the type of a long double, which float64 may not hold.
    directions = unit(queries.astype(np.result_type(queries, np.float64)))
    cosines = np.einsum("ij,ij->i", directions, unit(centroids[heads].astype(np.float64)))
    result: Float64 = cosines.astype(np.float64)
    return result


def log_of_relative(weights: Floats, typical: Float32, temperature: float) -> Float64:
    """log Σ_k w_k exp(-t_k / 2τ), (n,): what `relative` is beyond `log_partition`."""
    expected = typical.astype(np.float64)
    # float32 has weights below e**-87 of the largest as 0: so no factor may be worth as much.
    expected = np.maximum(expected, expected.max() - _LEAST_EXPECTED * temperature)
    least = float(expected.min())
    factors = np.exp((least - expected) / (2 * temperature))
    result: Float64 = np.log(weights @ factors) - least / (2 * temperature)
    return result


def margins(group_weights: Floats) -> Float64:
    """First less second weight (n,) of (n, G); 1 when there is one group."""
    if group_weights.shape[1] == 1:
        return np.ones(len(group_weights))
    second, first = np.partition(group_weights, -2, axis=1)[:, -2:].T
    result: Float64 = first.astype(np.float64) - second
    return result


def scores_of(
    score: str,
    best_cosine: Float64,
    weights: Floats,
    groups: Groups,
    temperature: float,
    typical: Float32 | None,
) -> Float64:
    """The scores (n,) of queries of best cosines (n,) and weights (n, K)."""
    if score == "best_cosine":
        return best_cosine
    if score == "margin":
        return margins(groups.sums(weights))
    result: Float64 = best_cosine / temperature - np.log(weights.max(axis=1).astype(np.float64))
    if score == "relative" and typical is not None:
        result += log_of_relative(weights, typical, temperature)
    return result


def score_of(calibration: Calibration | None, wanted: str | None = None) -> str:
    """The score to use: the one that is wanted, or the calibration's, or the best cosine.

    Raises ValueError for an unknown one, and for one that needs more than the router knows.
    """
    if wanted is None:
        return "best_cosine" if calibration is None else calibration.score
    score = _validate.one_of(wanted, "score", SCORES)
    if score == "relative" and (calibration is None or calibration.typical is None):
        raise ValueError("score='relative' is only known to routers that were trained with it")
    return score


def threshold_of(calibration: Calibration | None, abstain: float | None) -> float:
    """The score below which a query is refused at level `abstain`; -inf for None.

    Raises ValueError for a level outside (0, 1), and without a calibration.
    """
    if abstain is None:
        return -math.inf
    level = _validate.level(abstain)
    if calibration is None:
        raise ValueError(
            f"abstain={abstain!r} needs scores of in-scope queries: "
            "router.calibrate(queries) gives a router that has them"
        )
    return calibration.threshold(level)


def judge(
    queries: npt.NDArray[Any],
    route: Callable[[slice, Float32], None],
    centroids: Float32,
    groups: Groups,
    temperature: float,
    score: str,
    typical: Float32 | None,
) -> tuple[npt.NDArray[np.int64], Float32]:
    """Groups and scores, both (n,), of queries (n, d).

    `route(rows, weights)` writes the weights of some rows, (rows, K). N×K is never held at once.
    """
    n, n_heads = len(queries), len(centroids)
    group, scores = np.empty(n, np.int64), np.empty(n, np.float32)
    step = max(1, _BLOCK_BYTES // (4 * n_heads))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        weights = np.empty((rows.stop - start, n_heads), np.float32)
        route(rows, weights)
        group[rows] = groups.sums(weights).argmax(axis=1)
        best = best_cosines(queries[rows], centroids, weights.argmax(axis=1))
        scores[rows] = scores_of(score, best, weights, groups, temperature, typical)
    return group, scores
