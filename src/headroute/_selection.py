"""The k largest numbers of every row, in order."""

import numpy as np
import numpy.typing as npt

from headroute._validate import Float32

Indices = npt.NDArray[np.int64]


def k_best(values: Float32, k: int) -> tuple[Indices, Float32]:
    """Return (columns, values), both (n, k), best first, of values (n, m), k <= m.

    Equal ones go by lower column, which argpartition cannot promise.
    """
    kth = np.partition(values, -k, axis=1)[:, -k, np.newaxis]
    above = values > kth
    equal = values == kth
    places = k - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= places))
    columns = np.nonzero(chosen)[1].reshape(len(values), k)
    best = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(best, order, axis=1)
