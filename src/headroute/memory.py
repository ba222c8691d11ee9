"""Memory for results."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_LINE_BYTES = 64


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return uninitialised memory that begins at a cache line: the fastest `out` for
    `Router.project`.

    Results of more than 16 MiB are written past the caches, in whole lines, and np.empty's large
    arrays begin 16 bytes into one: 5 to 9 % of the time with 16 heads (docs/decisions/0019).
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _LINE_BYTES, np.uint8)
    start = -memory.__array_interface__["data"][0] % _LINE_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)
