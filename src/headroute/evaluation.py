"""Does routing help? Recall@k and MRR of projected queries against those of the queries themselves.

A query counts as answered at the rank of the first candidate of its group, by cosine. Pure
functions on arrays.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._backends.reference import unit
from headroute.router import Router

Ranks = npt.NDArray[np.int64]

# float64 bytes of similarities held at once.
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Metrics:
    """How well the right group was found, over n queries."""

    recall_at_1: float
    recall_at_5: float
    mrr_at_10: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Routing beside direct similarity.

    The latter needs queries and answers in one space, so it is None when d != e.
    """

    routing: Metrics
    direct: Metrics | None
    routing_ranks: Ranks  # (n,)
    direct_ranks: Ranks | None


def first_relevant_ranks(
    queries: npt.ArrayLike,
    candidates: npt.ArrayLike,
    candidate_groups: npt.ArrayLike,
    groups: npt.ArrayLike,
) -> Ranks:
    """Return the rank, from 1, of the first candidate of each query's group, by cosine.

    Candidates of other groups that are as close as it count as ahead of it, so that ties never
    flatter. As close means within the rounding of the float64 dot products.

    Args:
        queries: (n, e) real numbers, finite.
        candidates: (m, e) real numbers, finite.
        candidate_groups: (m,) integers.
        groups: (n,) integers, the right group of each query.

    Returns (n,) int64. The n×m similarities are never held at once.

    Raises TypeError for wrong dtypes; ValueError for wrong shapes, NaN or infinity, or a query
    whose group has no candidate.
    """
    rows, others = _finite_rows(queries, "queries"), _finite_rows(candidates, "candidates")
    right, owners = _validate.group_numbers(groups), _validate.group_numbers(candidate_groups)
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"queries have {rows.shape[1]} columns, candidates {others.shape[1]}")
    if len(rows) != len(right) or len(others) != len(owners):
        raise ValueError(
            f"every row needs one group: {len(rows)} queries and {len(right)} groups, "
            f"{len(others)} candidates and {len(owners)} groups"
        )
    missing = ~np.isin(right, owners)
    if missing.any():
        number = int(missing.argmax())
        raise ValueError(f"query {number} belongs to group {right[number]}, which has no candidate")
    # A dot product of unit vectors of e elements is off by at most e·eps/2, and so is the one it is
    # compared with.
    tie = rows.shape[1] * np.finfo(np.float64).eps
    targets = unit(others.astype(np.float64)).T
    ranks = np.empty(len(rows), np.int64)
    step = max(1, _BLOCK_BYTES // (8 * max(1, len(others))))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        similarities = unit(rows[block].astype(np.float64)) @ targets
        own = owners == right[block, np.newaxis]
        best = np.where(own, similarities, -np.inf).max(axis=1, keepdims=True)
        ranks[block] = 1 + ((similarities >= best - tie) & ~own).sum(axis=1)
    return ranks


def recall_at_k(ranks: npt.ArrayLike, k: int) -> float:
    """Return the share of ranks (n,) that are at most k; ValueError for n = 0 or k < 1."""
    return float((_checked_ranks(ranks, k) <= k).mean())


def mrr_at_k(ranks: npt.ArrayLike, k: int = 10) -> float:
    """Return the mean of 1/rank over ranks (n,), 0 for those beyond k.

    ValueError for n = 0 or k < 1.
    """
    checked = _checked_ranks(ranks, k)
    return float(np.where(checked <= k, 1 / checked, 0).mean())


def compare(
    router: Router,
    queries: npt.ArrayLike,
    groups: npt.ArrayLike,
    candidates: npt.ArrayLike,
    candidate_groups: npt.ArrayLike,
    temperature: float | None = None,
) -> Comparison:
    """Rank the candidates for every query twice: by the projected query, and by the query itself.

    Args:
        router: the heads, of query dimension d and answer dimension e.
        queries: (n, d).
        groups: (n,) integers, the right group of each query.
        candidates: (m, e) answers.
        candidate_groups: (m,) integers.
        temperature: τ, instead of the router's.

    Raises what `Router.project` and `first_relevant_ranks` raise.
    """
    projected = router.project(queries, temperature=temperature)
    routing = first_relevant_ranks(projected, candidates, candidate_groups, groups)
    direct = None
    if router.query_dim == router.answer_dim:
        direct = first_relevant_ranks(queries, candidates, candidate_groups, groups)
    return Comparison(
        _metrics(routing), None if direct is None else _metrics(direct), routing, direct
    )


def _metrics(ranks: Ranks) -> Metrics:
    return Metrics(recall_at_k(ranks, 1), recall_at_k(ranks, 5), mrr_at_k(ranks, 10), len(ranks))


def _finite_rows(values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    rows = _validate.real_array(values, what)
    if rows.ndim != 2:
        raise ValueError(f"{what} must be two-dimensional, got shape {rows.shape}")
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(f"row {bad.argmax()} of {what} has a NaN or infinity in it")
    return rows


def _checked_ranks(ranks: npt.ArrayLike, k: int) -> Ranks:
    checked = np.asarray(ranks)
    if checked.ndim != 1 or len(checked) == 0:
        raise ValueError(f"ranks must be (n,) with n >= 1, got shape {checked.shape}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return checked
