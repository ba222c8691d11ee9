"""Questions and the groups they belong to, checked; their sums and means."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._validate import Float32, Floats
from headroute.leave_one_out import Float64, Int64


class Questions(NamedTuple):
    """Checked training questions."""

    rows: Float32  # (n, d), C-contiguous
    groups: Int64  # (n,)
    counts: Int64  # (G,) questions of each group, >= 1
    # (n,) False for a vector that is in more than one group: it belongs to their heads, but says
    # nothing of which of them is right.
    telling: npt.NDArray[np.bool_]


def checked_questions(
    vectors: npt.ArrayLike, groups: npt.ArrayLike, n_groups: int, what: str = "question"
) -> Questions:
    """Check vectors (n, d) and their groups (n,), integers in 0..n_groups-1, each with a vector.

    Raises TypeError for wrong dtypes; ValueError for wrong shapes, a group out of range or without
    vectors, NaN, infinity and more than float32 holds. `what` names a vector in the message.
    """
    rows = _validate.real_array(vectors, f"{what}s")
    numbers = _validate.group_numbers(groups)
    if rows.ndim != 2 or len(rows) != len(numbers):
        raise ValueError(
            f"{what}s must be an (n, d) array with one group a row, got shape {rows.shape} "
            f"and {len(numbers)} groups"
        )
    if rows.shape[1] == 0:
        raise ValueError(f"{what}s must have at least one column, got shape {rows.shape}")
    outside = (numbers < 0) | (numbers >= n_groups)
    if outside.any():
        raise ValueError(
            f"groups must be between 0 and {n_groups - 1}, got {numbers[outside.argmax()]}"
        )
    counts = np.bincount(numbers, minlength=n_groups)
    if (counts == 0).any():
        raise ValueError(f"group {(counts == 0).argmax()} has no {what}s")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"{what} {finite.argmin()} has a NaN or infinity in it")
    return questions_of(_validate.float32_training_rows(rows, what), numbers, n_groups)


def questions_of(rows: Float32, groups: Int64, n_groups: int) -> Questions:
    pairs = np.unique(np.stack([vector_numbers(rows), groups]), axis=1)
    several = np.bincount(pairs[0]) > 1
    return Questions(
        rows, groups, np.bincount(groups, minlength=n_groups), ~several[vector_numbers(rows)]
    )


def vector_numbers(rows: Float32) -> Int64:
    """(n,) the same number for the same row of (n, d)."""
    rows = rows + np.float32(0)  # -0 is 0
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
    numbers: Int64 = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return numbers


def merge_twins(questions: Questions) -> tuple[Questions, Int64]:
    """Merge groups that have the same questions: nothing can tell them apart. A question that they
    have in common counts once.

    Returns the questions of the merged groups, and the merged group of each group (G,).
    """
    n_groups = len(questions.counts)
    own = np.bincount(questions.groups[questions.telling], minlength=n_groups)
    if own.all():
        return questions, np.arange(n_groups)
    numbers = vector_numbers(questions.rows)
    groups, different = np.unique(np.stack([questions.groups, numbers]), axis=1)
    ends = np.cumsum(np.bincount(groups, minlength=n_groups))[:-1]
    # Numbered by their first groups.
    seen: dict[bytes, int] = {}
    sets = np.split(different, ends)
    merged = np.array([seen.setdefault(one.tobytes(), len(seen)) for one in sets])
    groups = merged[questions.groups]
    was_merged = np.bincount(merged)[groups] > 1
    first = np.zeros(len(numbers), bool)
    first[np.unique(np.stack([numbers, groups]), axis=1, return_index=True)[1]] = True
    kept = first | ~was_merged
    return questions_of(questions.rows[kept], groups[kept], len(seen)), merged


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
    checked = checked_questions(vectors, groups, n_groups, "vector")
    return means(sums_of(checked.rows, checked.groups, n_groups), checked.counts)


def sums_of(rows: Floats, groups: Int64, n_groups: int) -> Float64:
    """Sums (n_groups, d) in float64 of the rows of each group, which has at least one."""
    counts = np.bincount(groups, minlength=n_groups)
    by_group = rows[np.argsort(groups, kind="stable")]
    result: Float64 = np.add.reduceat(
        by_group, np.cumsum(counts) - counts, axis=0, dtype=np.float64
    )
    return result


def means(sums: Float64, counts: Int64) -> Float32:
    return (sums / counts[:, np.newaxis]).astype(np.float32)
