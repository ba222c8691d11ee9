"""A router's heads in int16: packed when they are first needed, run with or without an account of
every row's error.
"""

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headroute._backends import Int16Heads
from headroute._validate import Float32
from headroute.precision import Int16Errors

# Rows whose roundings are measured at once, 8 bytes each.
_MEASURED_ROWS = 1 << 17

Kernel = Callable[[Float32, float, Float32, int], int]


class LazyInt16Heads:
    """Int16 heads that any thread may ask for; the first to do so packs them."""

    def __init__(
        self,
        make: Callable[[Float32, Float32], Int16Heads],
        centroids: Float32,
        answers: Float32,
    ) -> None:
        self._make = make
        self._arrays = centroids, answers
        self._lock = threading.Lock()
        self._packed: Int16Heads | None = None

    @property
    def packed_bytes(self) -> int:
        """0 until they are packed."""
        return 0 if self._packed is None else self._packed.packed_bytes

    def heads(self) -> Int16Heads:
        with self._lock:
            if self._packed is None:
                self._packed = self._make(*self._arrays)
            return self._packed

    def errors(self) -> Int16Errors:
        centroids, _ = self._arrays
        return Int16Errors(self.heads().rounding, *centroids.shape)


class MeasuredInt16:
    """`Heads.project` in int16 that keeps every row's bound in `bounds`, in order of the calls.

    Rows whose bound exceeds `tolerance` are done again by `float32`, whose bound is
    `float32_bound`.
    """

    def __init__(
        self, lazy: LazyInt16Heads, tolerance: float, float32: Kernel, float32_bound: float
    ) -> None:
        self._heads = lazy.heads()
        self._errors = lazy.errors()
        self._tolerance = tolerance
        self._float32 = float32
        self._float32_bound = float32_bound
        self.bounds: list[npt.NDArray[np.float64]] = []

    def __call__(self, queries: Float32, temperature: float, out: Float32, threads: int) -> int:
        rounding = np.empty((min(len(queries), _MEASURED_ROWS), 2), np.float32)
        for start in range(0, len(queries), _MEASURED_ROWS):
            rows, to = (array[start : start + _MEASURED_ROWS] for array in (queries, out))
            measured = rounding[: len(rows)]
            bad = self._heads.project(rows, temperature, to, threads, measured)
            if bad >= 0:
                return start + bad
            bounds = self._errors.bounds(measured, temperature)
            again = np.flatnonzero(bounds > self._tolerance)
            for i in again:
                self._float32(rows[i : i + 1], temperature, to[i : i + 1], 1)
            bounds[again] = self._float32_bound
            self.bounds.append(bounds)
        return -1
