"""Fit heads from embeddings and groups. Pure functions: arrays in, a router out, no files.

A head's centroid is the mean of its group's question embeddings; its answer is given.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._validate import Float32
from headroute.router import Router


def group_means(vectors: npt.ArrayLike, groups: npt.ArrayLike, n_groups: int) -> Float32:
    """Return the mean vector of every group.

    Args:
        vectors: (n, d) real numbers, finite.
        groups: (n,) integers in 0..n_groups-1, the group of each vector.
        n_groups: number of groups, >= 1; each must have a vector.

    Returns (n_groups, d) float32; the sums are taken in float64.

    Raises TypeError for wrong dtypes; ValueError for wrong shapes, a group out of range or without
    vectors, NaN and infinity.
    """
    rows = _validate.real_array(vectors, "vectors")
    numbers = _validate.group_numbers(groups)
    if rows.ndim != 2 or len(rows) != len(numbers):
        raise ValueError(
            f"vectors must be an (n, d) array with one group a row, got shape {rows.shape} "
            f"and {len(numbers)} groups"
        )
    outside = (numbers < 0) | (numbers >= n_groups)
    if outside.any():
        raise ValueError(
            f"groups must be between 0 and {n_groups - 1}, got {numbers[outside.argmax()]}"
        )
    counts = np.bincount(numbers, minlength=n_groups)
    if (counts == 0).any():
        raise ValueError(f"group {(counts == 0).argmax()} has no vectors")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"vector {finite.argmin()} has a NaN or infinity in it")
    by_group = rows[np.argsort(numbers, kind="stable")]
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(by_group, starts, axis=0, dtype=np.float64)
    return (sums / counts[:, np.newaxis]).astype(np.float32)


def train_heads(
    questions: npt.ArrayLike,
    groups: npt.ArrayLike,
    answers: npt.ArrayLike,
    *,
    temperature: float = 0.1,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> Router:
    """Return a router with one head a group: the centroid is the mean of the group's questions.

    Args:
        questions: (n, d) embeddings of the training questions.
        groups: (n,) integers, the group of each question.
        answers: (K, e) one answer embedding a group; its length says how many groups there are.
        temperature, names, backend: as for `Router`.

    Raises what `group_means` and `Router` raise.
    """
    rows = _validate.real_array(answers, "answers")
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(
            f"answers must be a (K, e) array with a row a group, got shape {rows.shape}"
        )
    centroids = group_means(questions, groups, len(rows))
    return Router(centroids, rows, temperature=temperature, names=names, backend=backend)
