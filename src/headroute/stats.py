"""What the softmax over the heads says of a query, beside its projection."""

import math
from typing import NamedTuple

import numpy as np

from headroute._validate import Float32


class Stats(NamedTuple):
    """Of each query, s_k its cosines and w = softmax(s / τ); every array (N,), or () for one query.

    All in float32; a zero query has cosines of 0.
    """

    log_partition: Float32  # log Σ_k exp(s_k / τ)
    entropy: Float32  # -Σ_k w_k log w_k, in nats: from 0, one head has it all, to log K
    best_cosine: Float32  # max_k s_k


def stats_of(raw: Float32, temperature: float, shape: tuple[int, ...]) -> Stats:
    """Finish what a kernel adds up, (n, 3): the largest cosine, Σ v and Σ v log2(v), where v are
    the weights beside the heaviest head's.
    """
    cosine, total, logs = raw.astype(np.float64).T
    log_total = np.log(total)
    entropy = np.maximum(log_total - math.log(2) * logs / total, 0)
    with np.errstate(over="ignore"):  # at a tiny temperature: infinite, as float32 has it
        columns = (cosine / temperature + log_total, entropy, cosine)
        return Stats(*(values.astype(np.float32).reshape(shape) for values in columns))
