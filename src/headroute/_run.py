"""Queries of any real dtype and layout on their way through a kernel: in place, or in converted
blocks; and which row was bad.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute import _validate

# (queries (n, d), τ, arrays of n rows to write …, threads) → the first bad row, or -1.
AnyKernel = Callable[..., int]


class Run:
    """Checked queries (n, d) and how they are to be run through kernels."""

    def __init__(
        self, rows: npt.NDArray[Any], temperature: float, threads: int, *, halves: bool
    ) -> None:
        self._rows = rows
        self._temperature = temperature
        self._threads = threads
        self._halves = halves  # the kernels read and write float16

    def __call__(self, kernel: AnyKernel, *outputs: npt.NDArray[Any], first_row: int = 0) -> None:
        """Write `outputs`, arrays of n rows. `first_row` is the number of row 0 for the user."""
        rows, first_output = self._rows, outputs[0]
        if len(rows) == 0:
            return
        narrow = first_output.dtype == np.float16 and not self._halves
        start = 0
        if not narrow and _validate.is_kernel_rows(rows, halves=self._halves):
            bad = kernel(rows, self._temperature, *outputs, self._threads)
        else:
            for start, block in _validate.float32_blocks(rows):
                first, *more = (array[start : start + len(block)] for array in outputs)
                result = np.empty(first.shape, np.float32) if narrow else first
                bad = kernel(block, self._temperature, result, *more, self._threads)
                if bad >= 0:
                    break
                if narrow:
                    with np.errstate(over="ignore"):
                        first[...] = result
        if bad >= 0:
            raise ValueError(f"query {first_row + start + bad} has a NaN or infinity in it")
