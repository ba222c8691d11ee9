"""Does routing help? Rankings of answers by several methods, and what they are worth.

A query's answers are the candidates of its group. Figures have sentence-transformers' names:

    cosine_accuracy@k   share of queries with an answer among the first k: "Recall@k" in our tables
    cosine_recall@k     share of a query's answers among the first k, mean over queries
    cosine_mrr@10       mean of 1 / rank of the first answer, 0 beyond 10
    cosine_ndcg@10      discounted gain of the answers among the first 10, over the best possible

Pure functions on arrays. What the methods are is baselines.py's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._backends.reference import unit
from headroute.progress import progress_bar
from headroute.router import Router

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# The scores (b, m) of all candidates for the queries of a slice.
Scores = Callable[[slice], Float64]
# Fits a method.
Method = Callable[[], Scores]

DEPTH = 10
CUTOFFS = (1, 5, 10)
RESAMPLES = 10_000
# Of fewer queries there is no verdict: without any difference between two methods, the interval
# leaves out 0 for up to 8 % of samples of 15, 16 % of 4 and all of 1, but at most 6 % from 20 on.
FEWEST_QUERIES = 20

# float64 bytes of scores held at once.
BLOCK_BYTES = 8 << 20

ROUTING = "routing"
DIRECT = "direct similarity"


class Task(NamedTuple):
    """Queries, and the candidates to rank for each."""

    queries: npt.NDArray[Any]  # (n, d)
    groups: Int64  # (n,) the right group of each
    candidates: npt.NDArray[Any]  # (m, e)
    candidate_groups: Int64  # (m,)


class Ranking(NamedTuple):
    """Where a method put the answers of each query."""

    first: Int64  # (n,) rank of the first answer, from 1
    relevant: npt.NDArray[np.bool_]  # (n, DEPTH) whether the candidate at rank 1, 2, … is an answer
    answers: Int64  # (n,) how many there are
    found: Int64  # (n,) group of the candidate at rank 1


@dataclass(frozen=True)
class Difference:
    """Of a figure of routing to direct similarity, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupFigures:
    group: int
    queries: int
    right: float  # share whose first candidate is of the group


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    queries: int
    candidates: int
    figures: dict[str, dict[str, float]]  # by method, by sentence-transformers' name
    accuracy_difference: Difference | None  # of cosine_accuracy@1; None without direct similarity
    mrr_difference: Difference | None
    verdict: str | None  # "routing helps", "no evidence", "hurts"; None without direct similarity
    rankings: dict[str, Ranking]
    worst_groups: list[GroupFigures]  # by routing, of all groups with a mistake, worst first

    def worst_queries(self, n: int) -> list[int]:
        """The n queries whose answers routing ranks lowest, worst first; right ones are not bad."""
        first = self.rankings[next(iter(self.rankings))].first
        order = np.argsort(-first, kind="stable")[:n]
        return [int(row) for row in order if first[row] > 1]


def evaluate(
    router: Router,
    queries: npt.ArrayLike,
    groups: npt.ArrayLike,
    candidates: npt.ArrayLike,
    candidate_groups: npt.ArrayLike,
    *,
    training: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    temperatures: Sequence[float] = (),
    random_state: int = 0,
) -> Evaluation:
    """Rank the candidates for every query by routing and by what else there is; say what helps.

    Args:
        router: heads of query dimension d and answer dimension e.
        queries: (n, d) that the heads were not trained on, or the figures flatter them; each once,
            or the intervals are too narrow.
        groups: (n,) integers, the right group of each query.
        candidates: (m, e) answers; candidate_groups: (m,) integers.
        training: the heads' questions (t, d) and groups (t,): adds nearest centroid, nearest
            question, a linear adapter by ridge regression and logistic regression. Needs
            scikit-learn.
        texts: of the n queries and of the m candidates: adds BM25. Needs bm25s.
        temperatures: τ to route at; by default the router's. The first is what is judged.
        random_state: seed of the bootstrap.

    Direct similarity needs d = e. "routing helps" when the 95 % interval of the difference in
    cosine_accuracy@1, by a paired bootstrap over queries, is above 0; "hurts" when it is below; of
    fewer than 20 queries always "no evidence".

    Raises what `Router.project` raises; TypeError for wrong dtypes; ValueError for no queries,
    wrong shapes, NaN or infinity, and a query or training question whose group has no candidate.
    """
    task = checked_task(queries, groups, candidates, candidate_groups)
    if len(task.groups) == 0:
        raise ValueError("there are no queries to measure")
    rankings = rank_by_all(router, task, training, texts, temperatures)
    return conclude(rankings, task.groups, len(task.candidates), random_state)


def checked_task(
    queries: npt.ArrayLike,
    groups: npt.ArrayLike,
    candidates: npt.ArrayLike,
    candidate_groups: npt.ArrayLike,
    what: str = "queries",
) -> Task:
    """Check everything; `what` names the queries in messages."""
    rows, others = _finite_rows(queries, what), _finite_rows(candidates, "candidates")
    right, owners = _validate.group_numbers(groups), _validate.group_numbers(candidate_groups)
    if len(rows) != len(right) or len(others) != len(owners):
        raise ValueError(
            f"every row needs one group: {len(rows)} {what} and {len(right)} groups, "
            f"{len(others)} candidates and {len(owners)} groups"
        )
    missing = ~np.isin(right, owners)
    if missing.any():
        number = int(missing.argmax())
        raise ValueError(
            f"row {number} of {what} belongs to group {right[number]}, which has no candidate"
        )
    return Task(rows, right, others, owners)


def rank_by_all(
    router: Router,
    task: Task,
    training: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    temperatures: Sequence[float] = (),
    *,
    progress: bool = False,
) -> dict[str, Ranking]:
    """A ranking a method, routing first."""
    from headroute import baselines

    def routing(tau: float) -> Scores:
        return cosine_scores(router.project(task.queries, temperature=tau), task.candidates)

    several = len(temperatures) > 1
    methods: dict[str, Method] = {
        f"{ROUTING}, τ = {tau:g}" if several else ROUTING: partial(routing, tau)
        for tau in temperatures or [router.temperature]
    }
    if router.query_dim == router.answer_dim:
        methods[DIRECT] = partial(cosine_scores, task.queries, task.candidates)
    if training is not None:
        methods |= baselines.trained(task, *training)
    if texts is not None:
        methods["BM25"] = partial(baselines.bm25, task, *texts)
    rankings = {}
    with progress_bar(len(methods), "Comparing", "method", shown=progress) as bar:
        for name, method in methods.items():
            rankings[name] = rank(method(), task)
            bar.update()
    return rankings


def cosine_scores(queries: npt.NDArray[Any], candidates: npt.NDArray[Any]) -> Scores:
    """Cosines of queries (n, e) and candidates (m, e); ValueError when they differ in e."""
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} columns, candidates {candidates.shape[1]}"
        )
    targets = unit(candidates.astype(np.float64)).T
    return lambda rows: unit(queries[rows].astype(np.float64)) @ targets


def rank(scores: Scores, task: Task) -> Ranking:
    """Rank all candidates for every query; n×m scores are never held at once.

    Candidates of other groups that score as much as an answer count as ahead of it, so that ties
    never flatter. As much means within the rounding of float64 dot products of unit vectors, off by
    at most e·eps/2 each. Scores may be -inf.
    """
    n, owners = len(task.groups), task.candidate_groups
    tie = task.candidates.shape[1] * np.finfo(np.float64).eps
    lowest = np.finfo(np.float64).min / 2  # there are numbers below it
    depth = min(DEPTH, len(owners))
    first, found = np.empty(n, np.int64), np.empty(n, np.int64)
    relevant = np.zeros((n, DEPTH), bool)
    answers = np.empty(n, np.int64)
    step = max(1, BLOCK_BYTES // (8 * len(owners)))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        own = owners == task.groups[rows, np.newaxis]
        block = np.maximum(scores(rows), lowest)
        # Below what they tie with, however large or small it is.
        block[own] = np.nextafter(block[own] - tie, -np.inf)
        best = np.where(own, block, -np.inf).max(axis=1, keepdims=True)
        first[rows] = 1 + ((block >= best) & ~own).sum(axis=1)
        top = np.argpartition(-block, depth - 1, axis=1)[:, :depth]
        # Others before answers where they are equal.
        order = np.lexsort(
            (np.take_along_axis(own, top, 1), -np.take_along_axis(block, top, 1)), axis=1
        )
        top = np.take_along_axis(top, order, axis=1)
        relevant[rows, :depth] = np.take_along_axis(own, top, axis=1)
        answers[rows] = own.sum(axis=1)
        found[rows] = owners[top[:, 0]]
    return Ranking(first, relevant, answers, found)


def figures_of(ranking: Ranking) -> dict[str, float]:
    """The figures by sentence-transformers' names; ValueError without queries."""
    if len(ranking.first) == 0:
        raise ValueError("there are no queries to measure")
    result: dict[str, float] = {}
    hits = ranking.relevant.cumsum(axis=1)
    for k in CUTOFFS:
        result[f"cosine_accuracy@{k}"] = float((ranking.first <= k).mean())
    for k in CUTOFFS:
        result[f"cosine_recall@{k}"] = float((hits[:, k - 1] / ranking.answers).mean())
    reciprocal = np.where(ranking.first <= DEPTH, 1 / ranking.first, 0)
    result[f"cosine_mrr@{DEPTH}"] = float(reciprocal.mean())
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    best = np.cumsum(discounts)[np.minimum(ranking.answers, DEPTH) - 1]
    result[f"cosine_ndcg@{DEPTH}"] = float((ranking.relevant @ discounts / best).mean())
    return result


def conclude(
    rankings: Mapping[str, Ranking], groups: Int64, n_candidates: int, random_state: int = 0
) -> Evaluation:
    """What the rankings, routing first, say about queries of groups (n,)."""
    routing = next(iter(rankings.values()))
    accuracy = mrr = verdict = None
    if DIRECT in rankings:
        direct = rankings[DIRECT]
        rng = np.random.default_rng(random_state)
        right = (routing.first == 1) - (direct.first == 1).astype(np.float64)
        accuracy = bootstrap(right, rng)
        gain = [np.where(r.first <= DEPTH, 1 / r.first, 0) for r in (routing, direct)]
        mrr = bootstrap(gain[0] - gain[1], rng)
        verdict = "no evidence"
        if len(groups) >= FEWEST_QUERIES and accuracy.low > 0:
            verdict = "routing helps"
        elif len(groups) >= FEWEST_QUERIES and accuracy.high < 0:
            verdict = "hurts"
    return Evaluation(
        queries=len(groups),
        candidates=n_candidates,
        figures={name: figures_of(ranking) for name, ranking in rankings.items()},
        accuracy_difference=accuracy,
        mrr_difference=mrr,
        verdict=verdict,
        rankings=dict(rankings),
        worst_groups=worst_groups(routing, groups),
    )


def bootstrap(differences: Float64, rng: np.random.Generator) -> Difference:
    """The mean of paired differences (n,), and its 95 % percentile interval over resamples."""
    n = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    # A resample of n differences is a multinomial draw of how often each value is in it.
    draws = rng.multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.percentile(draws @ values / n, [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high))


def worst_groups(ranking: Ranking, groups: Int64) -> list[GroupFigures]:
    present, numbers, counts = np.unique(groups, return_inverse=True, return_counts=True)
    right = np.bincount(numbers, weights=ranking.first == 1) / counts
    order = np.lexsort((-counts, right))
    return [
        GroupFigures(int(present[i]), int(counts[i]), float(right[i]))
        for i in order
        if right[i] < 1
    ]


def concatenate(parts: Sequence[Mapping[str, Ranking]]) -> dict[str, Ranking]:
    """The rankings of the methods that every part has, one part after the other."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    columns = {name: zip(*(part[name] for part in parts), strict=True) for name in names}
    return {name: Ranking(*map(np.concatenate, columns[name])) for name in names}


def _finite_rows(values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    rows = _validate.real_array(values, what)
    if rows.ndim != 2:
        raise ValueError(f"{what} must be two-dimensional, got shape {rows.shape}")
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(f"row {bad.argmax()} of {what} has a NaN or infinity in it")
    return rows
