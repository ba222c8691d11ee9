"""Heads that learn: one linear map of all mean centroids, trained by the cross-entropy of routing.

    ĉ_k = W m_k / ‖W m_k‖      w_ik = softmax_k(q̂_i · ĉ_k / τ)
    minimise over W:   -Σ_i log Σ_{k in group(i)} w_ik  +  ‖W - I‖² / 2f

    q (n, d) questions     m (K, d) unit means of the heads' questions     W (d, d)

W = I are the mean centroids, and f, the freedom, says how far W may go from them. What is learned
is shared by all heads, so that a few questions a head are enough. A question that helped to make
its own head would teach W to recognise questions instead of groups, so each is compared with its
head as it is without it: a head's questions are dealt into at most `PARTS` parts, and W maps the
head without each part too.

f and τ are chosen on held-out questions, f from 0, the mean centroids, upwards. Which
measurements led here: docs/decisions/0011.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headroute._backends.reference import unit
from headroute._threads import get_num_threads
from headroute._validate import Float32
from headroute.leave_one_out import (
    Cosines,
    Float64,
    HeadSums,
    Int64,
    LikelihoodCurve,
    rows_at_once,
)
from headroute.training_record import Curve

# Leave-one-out up to this many questions a head. With more, one of them matters less than the time
# that another mapped vector takes.
PARTS = 10

# Learning at a higher temperature than the likeliest keeps questions that are right by a little in
# play: 1 to 2 is flat, 1 loses half a point of accuracy.
HEAT = 1.5

FREEDOMS = (0.0, 0.3)

# A fifth of the questions is held out at a time: five times, but less often the more there are. The
# fewer, the more the choice depends on which ones were held out.
FOLDS = 5
_QUESTIONS_FITTED = 15_000

_MAX_ITERATIONS = 100
_RELATIVE_TOLERANCE = 2e-4  # of the loss; 1e-6 takes three times as long for 0.0002 of accuracy
_REMEMBERED_STEPS = 5  # of L-BFGS; 10 take 5 ms more an iteration (d = 384), and save none

# Questions worked on at once: 1 MiB of logits, but not so few that what is added up for each
# block, (K, d) and (d, d), is more than what went into it.
_BLOCK_BYTES = 1 << 20
_BLOCK_ROWS = 256


class Task(NamedTuple):
    """What W is trained on. Questions are sorted by part, and parts by head."""

    questions: Float32  # (n, d), of unit length
    heads: Int64  # (n,) the head of each
    parts: Int64  # (n,) the part of each, ascending from 0
    means: Float32  # (K, d), of unit length
    means_without: Float32  # (P, d) of a part's head without the part
    groups: Int64  # (K,) the group of each head, ascending
    left: npt.NDArray[np.bool_]  # (P,) whether anything is left of a part's head without it
    learnable: npt.NDArray[np.bool_]  # (n,) whether anything is left of the question's group
    one_head_each: bool  # a group


def make_task(
    questions: Float32,
    heads: Int64,
    telling: npt.NDArray[np.bool_],
    sums: HeadSums,
    rng: np.random.Generator,
) -> Task:
    """Deal the questions (n, d) of heads (n,) into parts; W learns from those of `telling` (n,)."""
    shuffled = rng.permutation(len(questions))
    by_head = shuffled[np.argsort(heads[shuffled], kind="stable")]
    place = np.arange(len(questions)) - np.repeat(np.cumsum(sums.counts) - sums.counts, sums.counts)
    part = heads[by_head] * PARTS + place % PARTS
    by_part = np.argsort(part, kind="stable")
    order, part = by_head[by_part], part[by_part]
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    parts = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(part)))
    own = heads[order]
    own_of_part = own[starts]
    without = sums.sums[own_of_part] - np.add.reduceat(
        questions[order], starts, axis=0, dtype=np.float64
    )
    alone = sums.counts[own_of_part] == 1
    without[alone] = 0  # exactly
    heads_of_group = np.bincount(sums.groups)
    learnable = ((heads_of_group[sums.groups[own]] > 1) | ~alone[parts]) & telling[order]
    return Task(
        directions_of(questions[order]),
        own,
        parts,
        unit(sums.sums).astype(np.float32),
        unit(without).astype(np.float32),
        sums.groups,
        ~alone,
        learnable,
        len(heads_of_group) == len(sums.groups),
    )


def directions_of(rows: Float32) -> Float32:
    """Rows (n, d) divided by their norms, which float32 may not hold, nor their squares."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    result = np.empty_like(rows)
    np.divide(rows, np.where(norms > 0, norms, 1)[:, np.newaxis], out=result, casting="same_kind")
    return result


class Mapped(NamedTuple):
    """Unit vectors W m / ‖W m‖, (K, d), and the lengths ‖W m‖, (K, 1)."""

    directions: Float32
    lengths: Float32

    @classmethod
    def of(cls, w: Float32, means: Float32) -> "Mapped":
        mapped = means @ w.T
        lengths = np.linalg.norm(mapped, axis=1, keepdims=True)
        lengths[lengths == 0] = 1
        return cls(mapped / lengths, lengths)

    def gradient(self, slope: Float32, means: Float32) -> Float32:
        """The gradient in W (d, d), from that in the directions (K, d)."""
        along = (slope * self.directions).sum(axis=1, keepdims=True)
        result: Float32 = ((slope - along * self.directions) / self.lengths).T @ means
        return result


class Slopes(NamedTuple):
    """What some questions add to the loss, and how it changes with the heads."""

    loss: float
    of_heads: Float32  # (K, d) without the questions' own heads
    of_w: Float32  # (d, d) by way of their own heads without their parts


def slopes_of(
    w: Float32, task: Task, rows: slice, heads: Mapped, temperature: np.float32
) -> Slopes:
    """Of the questions of a slice; slopes are yet to be divided by τ."""
    from scipy.sparse import csr_array

    questions, own = task.questions[rows], task.heads[rows]
    first, last = task.parts[rows][[0, -1]]
    parts = task.parts[rows] - first  # of the slice; a part on its edge is in two slices
    left, means_without = task.left[first : last + 1], task.means_without[first : last + 1]
    without = Mapped.of(w, means_without)
    each = np.arange(len(questions))
    logits = questions @ heads.directions.T
    logits[each, own] = np.where(
        left[parts], np.einsum("ij,ij->i", questions, without.directions[parts]), -np.inf
    )
    logits -= logits.max(axis=1, keepdims=True)
    logits /= temperature
    weights = np.exp(logits, out=logits)
    if task.one_head_each:
        of_group = weights[each, own][:, np.newaxis]
    else:
        of_group = np.where(task.groups[own][:, np.newaxis] == task.groups, weights, 0)
    totals = weights.sum(axis=1)
    # A weight that float32 has as 0 counts as its least: the slope stays finite.
    sums = np.maximum(of_group.sum(axis=1), np.finfo(np.float32).tiny)
    learnable = task.learnable[rows]
    logs = np.log(totals, dtype=np.float64) - np.log(sums, dtype=np.float64)
    # The slope of the loss to a logit is its weight, less its share of the group's.
    weights *= np.where(learnable, 1 / totals, 0)[:, np.newaxis]
    shares = np.where(learnable, 1 / sums, 0)[:, np.newaxis] * of_group
    if task.one_head_each:
        weights[each, own] -= shares[:, 0]
    else:
        weights -= shares
    starts = np.flatnonzero(np.diff(parts, prepend=-1, append=-1))
    of_own = csr_array((weights[each, own], each, starts), shape=(len(left), len(questions)))
    weights[each, own] = 0
    return Slopes(
        float(logs[learnable].sum()),
        weights.T @ questions,
        without.gradient(of_own @ questions, means_without),
    )


def loss_and_gradient(
    w: Float32, task: Task, temperature: float, pool: Executor
) -> tuple[float, Float32]:
    """Σ_i of the cross-entropies, and the gradient in W, (d, d)."""
    heads = Mapped.of(w, task.means)
    tau = np.float32(temperature)
    n, step = len(task.questions), max(_BLOCK_ROWS, _BLOCK_BYTES // (4 * len(task.means)))
    blocks = [slice(start, start + step) for start in range(0, n, step)]
    loss, of_heads, gradient = 0.0, np.zeros_like(task.means), np.zeros_like(w)
    # Added up in the order of the blocks, whoever is ready first.
    for slopes in pool.map(lambda rows: slopes_of(w, task, rows, heads, tau), blocks):
        loss += slopes.loss
        of_heads += slopes.of_heads
        gradient += slopes.of_w
    gradient += heads.gradient(of_heads, task.means)
    return loss, gradient / tau


def fit_map(w: Float32, task: Task, temperature: float, freedom: float, progress: Any) -> Float32:
    """The W (d, d) of the least loss, sought from W on; `progress.update()` each iteration."""
    from scipy.optimize import minimize

    n_learnable = max(1, int(task.learnable.sum()))
    identity = np.eye(len(w), dtype=np.float32)

    def objective(x: Float64) -> tuple[float, Float64]:
        trial = x.reshape(w.shape).astype(np.float32)
        loss, gradient = loss_and_gradient(trial, task, temperature, pool)
        away = trial - identity
        loss += float(np.vdot(away, away)) / (2 * freedom)
        gradient += away / np.float32(freedom)
        return loss / n_learnable, gradient.ravel().astype(np.float64) / n_learnable

    with one_blas_thread(), ThreadPoolExecutor(get_num_threads()) as pool:
        found = minimize(
            objective,
            w.ravel().astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            callback=lambda _: progress.update(),
            options={
                "maxiter": _MAX_ITERATIONS,
                "ftol": _RELATIVE_TOLERANCE,
                "gtol": 0,
                "maxcor": 5,
            },
        )
    result: Float32 = found.x.reshape(w.shape).astype(np.float32)
    return result


def one_blas_thread() -> AbstractContextManager[Any]:
    """Blocks run in threads of their own; and the threads of SciPy's BLAS, which are others than
    NumPy's, would spin beside these.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


class Fold(NamedTuple):
    """Questions held out of a map, and the heads without them."""

    questions: Float32  # (m, d)
    heads: Int64  # (m,)
    sums: HeadSums
    w: Float32  # (d, d)

    def cosines(self) -> Iterator[Cosines]:
        centroids = mapped_centroids(self.w, self.sums).T
        step = rows_at_once(len(self.sums.counts))
        for start in range(0, len(self.questions), step):
            rows = slice(start, start + step)
            directions = unit(self.questions[rows].astype(np.float64))
            yield Cosines(directions @ centroids, self.heads[rows])


class Learned(NamedTuple):
    """What was learned, and what was held out to choose it."""

    centroids: Float32  # (K, d), of unit length
    freedom: float  # 0: the mean centroids
    freedom_curve: Curve
    temperature_curve: Curve
    folds: list[Fold]  # at the chosen freedom

    def cosines(self) -> Iterator[Cosines]:
        """Of the questions held out."""
        return itertools.chain.from_iterable(fold.cosines() for fold in self.folds)


def learn(
    questions: Float32,
    heads: Int64,
    telling: npt.NDArray[np.bool_],
    sums: HeadSums,
    temperature: float,
    rng: np.random.Generator,
    progress: Any,
) -> Learned:
    """Choose the freedom on held-out questions, then fit to all.

    Args:
        questions: (n, d); heads: (n,) the head of each; sums: of these.
        telling: (n,) which questions to learn from, and to hold out.
        temperature: the likeliest τ of the mean centroids.
        progress: `.update()` is called at every iteration.

    A head's only question is never held out. Without any other the centroids stay means.
    """
    heat = HEAT * temperature
    fold_of = deal_into_folds(heads, sums.counts, rng)
    fold_of[~telling] = -1
    curves = {freedom: LikelihoodCurve(sums.groups) for freedom in FREEDOMS}
    folds: dict[float, list[Fold]] = {freedom: [] for freedom in FREEDOMS}
    for fold in range(n_folds(len(questions))):
        out = fold_of == fold
        if not out.any():
            continue
        left = without(sums, questions[out], heads[out])
        task = make_task(questions[~out], heads[~out], telling[~out], left, rng)
        w = np.eye(questions.shape[1], dtype=np.float32)
        for freedom, curve in curves.items():
            if freedom:
                w = fit_map(w, task, heat, freedom, progress)
            folds[freedom].append(Fold(questions[out], heads[out], left, w))
            for block in folds[freedom][-1].cosines():
                curve.add(block)
    heights = {
        freedom: max(value for _, value in curve.curve())
        for freedom, curve in curves.items()
        if curve.questions
    }
    chosen = max(heights, key=lambda freedom: heights[freedom], default=0.0)
    w = np.eye(questions.shape[1], dtype=np.float32)
    if chosen:
        task = make_task(questions, heads, telling, sums, rng)
        w = fit_map(folds[chosen][-1].w, task, heat, chosen, progress)
    return Learned(
        mapped_centroids(w, sums),
        chosen,
        tuple(heights.items()),
        curves[chosen].curve(),
        folds[chosen],
    )


def mapped_centroids(w: Float32, sums: HeadSums) -> Float32:
    return Mapped.of(w, unit(sums.sums).astype(np.float32)).directions


def n_folds(n_questions: int) -> int:
    return min(FOLDS, max(1, _QUESTIONS_FITTED // n_questions))


def deal_into_folds(heads: Int64, counts: Int64, rng: np.random.Generator) -> Int64:
    """Folds (n,) in 0..FOLDS-1 so that each has its share of every head; -1 for the only question
    of a head.
    """
    shuffled = rng.permutation(len(heads))
    by_head = shuffled[np.argsort(heads[shuffled], kind="stable")]
    folds = np.empty(len(heads), np.int64)
    # Running on from head to head, so that heads of a few questions are not all in fold 0.
    folds[by_head] = np.arange(len(heads)) % FOLDS
    folds[counts[heads] == 1] = -1
    return folds


def without(sums: HeadSums, questions: Float32, heads: Int64) -> HeadSums:
    """The heads without some of their questions."""
    less = np.zeros_like(sums.sums)
    np.add.at(less, heads, questions)
    return HeadSums(
        sums.sums - less,
        sums.counts - np.bincount(heads, minlength=len(sums.counts)),
        sums.groups,
    )
