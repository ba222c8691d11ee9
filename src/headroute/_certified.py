"""Arithmetic that comes with an account of its error: packed when it is first needed, run with a
bound for every row, and with the rows above a tolerance done again in float32.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from headroute._validate import Float32

# Rows that are projected and accounted for at once, 8 bytes each; and the bytes of queries and
# results that are copied when some of them are done again.
_ROWS = 1 << 16
_AGAIN_BYTES = 1 << 20

Kernel = Callable[[Float32, float, Float32, int], int]
# The same with an account, float32 (n, 2): what `Bounds` needs to know of every row.
MeasuredKernel = Callable[[Float32, float, Float32, int, Float32], int]
Bounds = Callable[[Float32], npt.NDArray[np.float64]]


T = TypeVar("T")


class Lazy(Generic[T]):
    """Something that takes time and memory to make; the first thread to ask for it does."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: T | None = None

    @property
    def made(self) -> T | None:
        return self._made

    def get(self) -> T:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


class CertifiedProjection:
    """`Heads.project` that looks at every row's bound.

    Rows whose bound exceeds `tolerance` are done again by `float32`, whose bound is
    `float32_bound`.
    """

    def __init__(
        self,
        project: MeasuredKernel,
        bounds: Bounds,
        tolerance: float,
        float32: Kernel,
        float32_bound: float,
    ) -> None:
        self._project = project
        self._bounds = bounds
        self._tolerance = tolerance
        self._float32 = float32
        self._float32_bound = float32_bound

    def __call__(self, queries: Float32, temperature: float, out: Float32, threads: int) -> int:
        return self.with_bounds(queries, temperature, out, None, threads)

    def with_bounds(
        self,
        queries: Float32,
        temperature: float,
        out: Float32,
        bounds_out: npt.NDArray[np.float64] | None,
        threads: int,
    ) -> int:
        """The same; every row's bound goes to `bounds_out` (n,)."""
        account = np.empty((min(len(queries), _ROWS), 2), np.float32)
        for start in range(0, len(queries), _ROWS):
            part = slice(start, start + _ROWS)
            rows, to = queries[part], out[part]
            measured = account[: len(rows)]
            bad = self._project(rows, temperature, to, threads, measured)
            if bad >= 0:
                return start + bad
            bounds = self._bounds(measured)
            again = np.flatnonzero(bounds > self._tolerance)
            self._do_again(again, rows, temperature, to, threads)
            if bounds_out is not None:
                bounds[again] = self._float32_bound
                bounds_out[part] = bounds
        return -1

    def _do_again(
        self,
        again: npt.NDArray[np.intp],
        rows: Float32,
        temperature: float,
        out: Float32,
        threads: int,
    ) -> None:
        columns = rows.shape[1] + out.shape[1]
        step = min(len(again), max(1, _AGAIN_BYTES // (4 * columns)))
        queries = np.empty((step, rows.shape[1]), rows.dtype)
        exact = np.empty((step, out.shape[1]), out.dtype)
        for start in range(0, len(again), max(step, 1)):
            part = again[start : start + step]
            n = len(part)
            np.take(rows, part, axis=0, out=queries[:n], mode="clip")  # "raise" would copy first
            self._float32(queries[:n], temperature, exact[:n], threads)
            out[part] = exact[:n]
