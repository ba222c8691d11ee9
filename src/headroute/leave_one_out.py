"""How well a question's group is found when the question is left out of its own head.

A head's centroid is a mean, so the centroid without question i has a closed form:

    c₋ᵢ = (n c - q_i) / (n - 1)

and the cosines of all questions to all heads, each to its own head without itself, come from one
pass and no refits. For several heads a group, which head a question belongs to stays as it is.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headroute._backends.reference import unit
from headroute._validate import Float32
from headroute.training_record import Curve

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# The temperatures of a curve: these, and each of them halved fourteen times, to 1e-4.
_TOP_TEMPERATURES = (2.0, math.sqrt(2))
_HALVINGS = 14

# Mean log-likelihood in nats above which nothing is left to gain.
_PERFECT = -1e-3

# float64 bytes of cosines held at once: they are gone over for every temperature.
_BLOCK_BYTES = 1 << 20


class HeadSums(NamedTuple):
    """K heads as sums of their questions. Heads of one group are neighbours."""

    sums: Float64  # (K, d)
    counts: Int64  # (K,)
    groups: Int64  # (K,) the group of each head, ascending


class Cosines(NamedTuple):
    """Cosines (n, K) of questions to heads that were made without them; -inf to a head of which
    nothing is left. `heads` (n,) is the one that each question belongs to.
    """

    values: Float64
    heads: Int64


def rows_at_once(n_heads: int) -> int:
    return max(1, _BLOCK_BYTES // (8 * n_heads))


def left_out_cosines(questions: Float32, heads: Int64, sums: HeadSums) -> Iterator[Cosines]:
    """Yield the cosines of questions (n, d), of heads (n,), in blocks."""
    centroids = unit(sums.sums).T
    step = rows_at_once(len(sums.counts))
    for start in range(0, len(questions), step):
        block, own = questions[start : start + step].astype(np.float64), heads[start : start + step]
        directions = unit(block)
        cosines = directions @ centroids
        others = np.einsum("ij,ij->i", directions, unit(sums.sums[own] - block))
        cosines[np.arange(len(own)), own] = np.where(sums.counts[own] > 1, others, -np.inf)
        yield Cosines(cosines, own)


class LikelihoodCurve:
    """Mean log-likelihood of questions' groups over τ, added up in blocks.

    Questions of whose group nothing is left are passed over. Likelihoods below e**-690 count as
    that.
    """

    def __init__(self, groups: Int64) -> None:
        """groups: (K,) the group of each head, ascending."""
        self._groups = groups
        self._starts = np.flatnonzero(np.diff(groups, prepend=-1))
        self._totals = {top / 2**i: 0.0 for i in range(_HALVINGS + 1) for top in _TOP_TEMPERATURES}
        self.questions = 0

    def add(self, cosines: Cosines) -> None:
        values, groups = known(cosines, self._groups)
        self.questions += len(groups)
        own = groups[:, np.newaxis]
        below_best = values - values.max(axis=1, keepdims=True)
        for top in _TOP_TEMPERATURES:
            weights = np.exp(below_best / top)
            for halving in range(_HALVINGS + 1):
                if halving:  # exp(x / τ) of half the temperature is the square
                    np.square(weights, out=weights)
                sums = weights
                if len(self._starts) < len(self._groups):
                    sums = np.add.reduceat(weights, self._starts, axis=1)
                likelihood = np.take_along_axis(sums, own, axis=1)[:, 0] / sums.sum(axis=1)
                logs = np.log(np.maximum(likelihood, 1e-300))
                self._totals[top / 2**halving] += float(logs.sum())

    def curve(self) -> Curve:
        """(τ, mean log-likelihood), τ descending; () without questions."""
        if self.questions == 0:
            return ()
        return tuple((tau, total / self.questions) for tau, total in self._totals.items())


def known(cosines: Cosines, groups: Int64) -> tuple[Float64, Int64]:
    """The rows of whose group something is left, (n, K), and their groups, (n,)."""
    own = groups[cosines.heads]
    inside = own[:, np.newaxis] == groups
    left = (inside & np.isfinite(cosines.values)).any(axis=1)
    return cosines.values[left], own[left]


def best_temperature(curve: Curve) -> float:
    """The τ of the highest likelihood, between the points by a parabola over log τ, to three
    digits: more would depend on the order of the questions.

    Where questions are told apart so well that every low τ is perfect, the highest of them.
    """
    taus = np.log([tau for tau, _ in curve])
    values = np.array([value for _, value in curve])
    best = int(np.argmax(np.minimum(values, _PERFECT)))
    place = taus[best]
    if 0 < best < len(values) - 1 and values[best] < _PERFECT:
        left, middle, right = values[best - 1 : best + 2]
        bend = left - 2 * middle + right
        if bend < 0:
            place += 0.5 * (left - right) / bend * (taus[best + 1] - taus[best])
    return float(f"{math.exp(place):.3g}")
