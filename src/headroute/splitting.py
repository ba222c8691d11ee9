"""Several heads for a group whose questions fall apart: k-means on their directions.

How many is chosen on held-out questions: a group gets more heads when that makes the held-out
questions of all groups likelier, by more than twice the standard error of the gain. Each group is
tried alone, with one head for each of the others.
"""

from typing import Literal

import numpy as np

from headroute._backends.reference import unit
from headroute._optional import library
from headroute._questions import Questions, sums_of
from headroute._validate import Float32
from headroute.learning import deal_into_folds, n_folds
from headroute.leave_one_out import Int64

_NUMBERS = (2, 3, 4, 6, 8)
_LEAST_QUESTIONS = 3  # of a head, on average


def split_groups(
    questions: Questions,
    heads_per_group: int | Literal["auto"],
    temperature: float,
    rng: np.random.Generator,
) -> tuple[Int64, Int64]:
    """Return the head of each question (n,), and the group of each head (K,), ascending.

    A group has no more heads than different questions that have a direction. `temperature` is the
    likeliest with one head a group.
    """
    rows = unit(questions.rows.astype(np.float64)).astype(np.float32)
    if heads_per_group == "auto":
        numbers = best_numbers(questions, rows, temperature, rng)
    else:
        numbers = np.full(len(questions.counts), heads_per_group)
    heads = np.empty(len(rows), np.int64)
    groups: list[int] = []
    for group, members in enumerate(members_of(questions.groups, questions.counts)):
        labels = cluster(rows[members], int(numbers[group]), rng)
        heads[members] = len(groups) + labels
        groups += [group] * (labels.max() + 1)
    return heads, np.array(groups)


def members_of(groups: Int64, counts: Int64) -> list[Int64]:
    """The rows of each group."""
    return np.split(np.argsort(groups, kind="stable"), np.cumsum(counts)[:-1])


def cluster(rows: Float32, number: int, rng: np.random.Generator) -> Int64:
    """Labels (n,) from 0 without gaps, at most `number` of them and one a different row.

    Rows of zeros, which have no direction, are of label 0: a head of their own would have none.
    """
    labels = np.zeros(len(rows), np.int64)
    directed = rows.any(axis=1)
    number = min(number, len(np.unique(rows[directed], axis=0)))
    if number > 1:
        clusters = library("sklearn.cluster", "more than one head a group", "learn")
        model = clusters.KMeans(number, n_init=4, random_state=int(rng.integers(2**31)))
        fitted = model.fit(rows[directed])
        labels[directed] = np.unique(fitted.labels_, return_inverse=True)[1]
    return labels


def best_numbers(
    questions: Questions, rows: Float32, temperature: float, rng: np.random.Generator
) -> Int64:
    """How many heads each group should have, (G,)."""
    n_groups = len(questions.counts)
    fold_of = deal_into_folds(questions.groups, questions.counts, rng)
    fold_of[~questions.telling] = -1
    shape = (n_groups, len(_NUMBERS))
    gains, squares, seen = np.zeros(shape), np.zeros(shape), 0
    for fold in range(n_folds(len(rows))):
        out = fold_of == fold
        seen += int(out.sum())
        own = questions.groups[out]
        left = questions.groups[~out]
        held_out = rows[out]
        centroids = unit(sums_of(rows[~out], left, n_groups)).astype(np.float32)
        logits = (held_out @ centroids.T).astype(np.float64) / temperature
        total = np.logaddexp.reduce(logits, axis=1)
        counts = np.bincount(left, minlength=n_groups)
        for group, members in enumerate(members_of(left, counts)):
            inside = own == group
            before = np.where(inside, logits[:, group], 0) - total
            share = np.minimum(np.exp(logits[:, group] - total), 1 - 1e-15)
            others = total + np.log1p(-share)
            best = 0.0
            for column, number in enumerate(_NUMBERS):
                if len(members) < _LEAST_QUESTIONS * number:
                    break
                mine = rows[~out][members]
                labels = cluster(mine, number, rng)
                heads = unit(sums_of(mine, labels, labels.max() + 1)).astype(np.float32)
                logit = np.logaddexp.reduce(
                    (held_out @ heads.T).astype(np.float64) / temperature, axis=1
                )
                gain = np.where(inside, logit, 0) - np.logaddexp(others, logit) - before
                gains[group, column] += gain.sum()
                squares[group, column] += (gain * gain).sum()
                if gain.sum() <= best:
                    break
                best = gain.sum()
    errors = np.sqrt(np.maximum(squares - gains**2 / max(1, seen), 0))
    worth = np.where(gains > 2 * errors, gains, 0)
    best = worth.argmax(axis=1)
    numbers: Int64 = np.where(worth.max(axis=1) > 0, np.array(_NUMBERS)[best], 1)
    return numbers
