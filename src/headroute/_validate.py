"""Every check of arrays and options, so that each backend raises the same type with the same
message.

A wrong kind of thing is a TypeError, a wrong value a ValueError, and the message holds the value.
The one check that is not here is the search for NaN and infinity in queries: a backend meets every
element anyway when it takes the norms.
"""

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]

_FLOAT32 = np.dtype(np.float32)
_FLOAT16 = np.dtype(np.float16)

# float32 bytes of one converted block of queries: half of what a call may use for one thread.
_BLOCK_BYTES = 4 << 20

# Rows of wider types whose largest element lies within 2**±100 go to float32 as they are: what is
# lost to float32's underflow is below 2**-49 of the largest element. Other rows are scaled first.
_COMFORTABLE_EXPONENT = 100


def temperature(value: float) -> float:
    """Return `value` as a float.

    TypeError unless it is a real number, ValueError unless it is positive and finite.
    """
    result = _float(value, "temperature")
    if not (math.isfinite(result) and result > 0):
        raise ValueError(f"temperature must be a positive, finite number, got {result!r}")
    return result


def tolerance(value: float) -> float:
    """Return `value` as a float.

    TypeError unless it is a real number, ValueError unless it is finite and not negative.
    """
    result = _float(value, "tolerance")
    if not (math.isfinite(result) and result >= 0):
        raise ValueError(f"tolerance must be a finite number of at least 0, got {result!r}")
    return result


def _float(value: float, what: str) -> float:
    """A real number as a float, infinite if float has no such number; TypeError for others."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def one_of(value: str, what: str, valid: Sequence[str]) -> str:
    """Return `value`; ValueError unless it is one of `valid`."""
    if value not in valid:
        raise ValueError(f"{what} must be one of {', '.join(valid)}, got {value!r}")
    return value


def precision(value: str | None, valid: Sequence[str]) -> str | None:
    """Return `value`; ValueError unless it is None or one of `valid`."""
    if value is not None and value not in valid:
        raise ValueError(f"precision must be None or one of {', '.join(valid)}, got {value!r}")
    return value


def num_threads(value: int) -> int:
    """Return `value` as an int; TypeError unless it is an integer, ValueError below 1."""
    # No more than any machine has, and than every backend's integer holds.
    return min(at_least_1(value, "num_threads"), 1 << 20)


def level(value: float) -> float:
    """Return `value`, a probability, as a float.

    TypeError unless it is a real number, ValueError unless it is above 0 and below 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"abstain must be a number, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"abstain must be above 0 and below 1, got {value!r}")
    return float(value)


def at_least_1(value: int, what: str) -> int:
    """Return `value` as an int; TypeError unless it is an integer, ValueError below 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{what} must be at least 1, got {value}")
    return int(value)


def seed(value: int | None) -> int | None:
    """Return `value`; TypeError unless it is None or an integer, ValueError below 0."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"random_state must be None or an integer, got {value!r}")
    if value < 0:
        raise ValueError(f"random_state must be at least 0, got {value}")
    return int(value)


def top_k(value: int, most: int, what: str) -> int:
    """Return `value` as an int.

    TypeError unless it is an integer, ValueError outside 1..most, the number of `what`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"k must be an integer, got {value!r}")
    if not 1 <= value <= most:
        raise ValueError(f"k must be between 1 and the number of {what} ({most}), got {value}")
    return int(value)


def group_names(names: Sequence[str] | None, n_groups: int) -> tuple[str, ...]:
    """Return one name a group, "0", "1", … by default.

    TypeError unless all are str, ValueError for a wrong count.
    """
    if names is None:
        return tuple(str(k) for k in range(n_groups))
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be a sequence of str, got {names!r}")
    if len(names) != n_groups:
        raise ValueError(f"{len(names)} names for {n_groups} heads or groups of heads")
    return tuple(names)


def groups_of_heads(values: npt.ArrayLike | None, n_heads: int) -> npt.NDArray[np.int64]:
    """Return the group of each head, (K,) int64: head k is group k by default.

    TypeError unless they are integers, ValueError for a wrong count, a negative one, or a group
    without heads.
    """
    if values is None:
        return np.arange(n_heads, dtype=np.int64)
    groups = group_numbers(values)
    if len(groups) != n_heads:
        raise ValueError(f"{len(groups)} groups for {n_heads} heads")
    if groups.min() < 0:
        raise ValueError(f"groups must be at least 0, got {groups.min()}")
    present = np.unique(groups)
    if len(present) <= groups.max():
        missing = np.flatnonzero(present != np.arange(len(present)))
        raise ValueError(f"group {missing[0]} has no head")
    return groups


def real_array(values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Return `values` as an array, without a copy if it is one.

    TypeError unless it holds integers or real floats, ValueError if some are masked.
    """
    if type(values) is not np.ndarray and np.ma.is_masked(values):
        raise ValueError(f"{what} have masked numbers: fill or drop them first")
    array = np.asarray(values)
    if array.dtype is not _FLOAT32 and array.dtype.kind not in "fiu":
        raise TypeError(f"{what} must be real numbers, got dtype {array.dtype}")
    return array


def centroids(values: npt.ArrayLike) -> Floats:
    """Return centroids as a (K, d) array of floats: finite, K >= 1, no zero row.

    Integers become float64.
    """
    array = real_array(values, "centroids")
    if array.shape[:1] == (0,):
        raise ValueError(f"a router needs at least one head, got centroids of shape {array.shape}")
    rows = _matrix(array, "centroids", "(K, d)")
    _check_heads_finite(rows, "centroid")
    zero = ~rows.any(axis=1)
    if zero.any():
        raise ValueError(f"head {zero.argmax()} has a zero centroid: it has no direction")
    return rows


def answers(values: npt.ArrayLike, n_heads: int) -> Floats:
    """Return answers as a (K, e) array of floats: finite, K = n_heads, e >= 1.

    Integers become float64.
    """
    rows = _matrix(real_array(values, "answers"), "answers", "(K, e)")
    if len(rows) != n_heads:
        raise ValueError(f"{n_heads} centroids but {len(rows)} answers")
    if rows.shape[1] == 0:
        raise ValueError(f"answers must have at least one column, got shape {rows.shape}")
    _check_heads_finite(rows, "answer")
    return rows


def float32_answers(rows: Floats) -> Float32:
    """Return a C-contiguous float32 copy of checked answers (K, e).

    ValueError for one that float32 cannot hold.
    """
    with np.errstate(over="ignore"):
        result = np.array(rows, dtype=np.float32, order="C")
    large = ~np.isfinite(result).all(axis=1)
    if large.any():
        head = large.argmax()
        raise ValueError(
            f"head {head} has {np.abs(rows[head]).max():.4g} in its answer, more than float32 holds"
        )
    return result


def heads(
    centroids_: npt.ArrayLike, answers_: npt.ArrayLike, *, copy: bool
) -> tuple[Float32, Float32]:
    """Return centroids (K, d) and answers (K, e) as C-contiguous float32 that point in the same
    directions: copies, or with copy=False as they are where they are that already.

    Raises what `centroids`, `answers` and `float32_answers` raise.
    """
    rows = centroids(centroids_)
    columns = answers(answers_, len(rows))

    def in_place(array: Floats) -> bool:
        flags = array.flags
        return not copy and array.dtype == _FLOAT32 and flags.c_contiguous and flags.aligned

    return (
        rows if in_place(rows) else float32_rows(rows),
        columns if in_place(columns) else float32_answers(columns),
    )


def _matrix(array: npt.NDArray[Any], what: str, shape: str) -> Floats:
    if array.ndim != 2:
        raise ValueError(f"{what} must be a {shape} array, got shape {array.shape}")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _check_heads_finite(rows: Floats, what: str) -> None:
    step = max(1, _BLOCK_BYTES // (4 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        bad = ~np.isfinite(rows[start : start + step]).all(axis=1)
        if bad.any():
            raise ValueError(f"head {start + bad.argmax()} has a NaN or infinity in its {what}")


def queries(values: npt.ArrayLike, d: int) -> npt.NDArray[Any]:
    """Return queries as an (N, d) or (d,) array of real numbers, without a copy if they are one."""
    array = real_array(values, "queries")
    if array.ndim not in (1, 2):
        raise ValueError(f"queries must have shape (N, {d}) or ({d},), got {array.shape}")
    if array.shape[-1] != d:
        raise ValueError(
            f"queries have {array.shape[-1]} columns, the heads expect {d}: "
            "embedded with another model?"
        )
    return array


def documents(values: npt.ArrayLike, e: int) -> Float32:
    """Return documents as a C-contiguous (D, e) float32 array: finite, D >= 1."""
    array = real_array(values, "documents")
    if array.ndim != 2 or len(array) == 0 or array.shape[1] != e:
        raise ValueError(
            f"documents must have shape (D, {e}), D >= 1, one column an answer's, got {array.shape}"
        )
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array, np.float32)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(
            f"document {bad.argmax()} has a NaN, an infinity or more than float32 holds"
        )
    return rows


def output(
    out: npt.NDArray[Any], shape: tuple[int, ...], queries: npt.NDArray[Any], *, halves: bool
) -> None:
    """Check an `out=` array; TypeError unless it is an array, ValueError for everything that cannot
    be written to. float16 is allowed with `halves`.

    Overlap is judged by address ranges: exact overlap of strided arrays is an NP-hard question.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.dtype != _FLOAT32 and not (halves and out.dtype == _FLOAT16):
        raise ValueError(
            f"out must have dtype float32{' or float16' if halves else ''}, got {out.dtype}"
        )
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not (out.flags.c_contiguous and out.flags.aligned):
        raise ValueError(f"out must be C-contiguous and aligned, got strides {out.strides}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if np.may_share_memory(out, queries):
        raise ValueError("out must not overlap the queries, got arrays whose address ranges meet")


def group_numbers(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return `values` as an (n,) int64 array.

    TypeError unless it holds integers, ValueError for another shape.
    """
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"groups must be integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"groups must have shape (n,), got {array.shape}")
    return array.astype(np.int64)


def is_kernel_rows(rows: npt.NDArray[Any], *, halves: bool) -> bool:
    """Whether checked queries (n, d) can be used in place: float32, or float16 with `halves`,
    native byte order, aligned, unit column stride, any row stride."""
    dtype = rows.dtype
    fits = dtype is _FLOAT32 or (halves and dtype is _FLOAT16)
    return fits and rows.strides[1] == dtype.itemsize and rows.flags.aligned


def float32_blocks(rows: npt.NDArray[Any]) -> Iterator[tuple[int, Float32]]:
    """Yield (start, block) over checked queries (n, d): float32 copies that `is_kernel_rows`.

    A block is at most 4 MiB, in the memory of the one before.
    """
    n, d = rows.shape
    step = max(1, _BLOCK_BYTES // (4 * d))
    buffer = np.empty((min(step, n), d), np.float32)
    for start in range(0, n, step):
        part = rows[start : start + step]
        block = buffer[: len(part)]
        _convert(part, block)
        yield start, block


def float32_rows(rows: npt.NDArray[Any]) -> Float32:
    """Return a C-contiguous float32 copy of rows (n, d) that points in the same directions.

    Rows of float64 and long double that float32 could not hold are scaled by a power of two of
    their own, which leaves every cosine as it was, so finite rows stay finite and rows other than
    zero stay other than zero. Rows with NaN or infinity keep them.
    """
    result = np.empty(rows.shape, np.float32)
    _convert(rows, result)
    return result


def float32_training_rows(rows: npt.NDArray[Any], what: str) -> Float32:
    """Return a C-contiguous float32 copy of finite rows (n, d), of which sums will be taken: none
    is scaled.

    ValueError for one that float32 cannot hold; `what` names a row.
    """
    result = np.empty(rows.shape, np.float32)
    with np.errstate(over="ignore"):
        np.copyto(result, rows, casting="unsafe")
    large = ~np.isfinite(result).all(axis=1)
    if large.any():
        row = large.argmax()
        raise ValueError(
            f"{what} {row} has {np.abs(rows[row]).max():.4g} in it, more than float32 holds"
        )
    return result


def _convert(rows: npt.NDArray[Any], result: Float32) -> None:
    with np.errstate(all="ignore"):
        if rows.dtype.kind == "f" and rows.dtype.itemsize > 4:
            largest = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))
            exponent = np.frexp(largest)[1]
            awkward = (abs(exponent) > _COMFORTABLE_EXPONENT) & np.isfinite(largest)
            if awkward.any():
                limits = np.finfo(rows.dtype)
                shift = np.clip(-exponent, limits.minexp, limits.maxexp - 1)
                scale = np.ldexp(rows.dtype.type(1), np.where(awkward, shift, 0))
                # Multiplied in the wide type; NumPy casts the products in small buffers, not in a
                # second array.
                np.multiply(rows, scale[:, np.newaxis], out=result, casting="same_kind")
                return
        np.copyto(result, rows, casting="unsafe")
