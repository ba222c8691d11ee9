"""How far a projected query may be from the exact one, and which arithmetic that allows.

The unit of every error here is the largest ‖a_k‖. Three facts carry all of it:

- Logits that are off by at most b each (after any shift that all of them share) give weights w'
  with Σ |w' - w| <= 2 tanh(b / 2): the odds of a set of heads change by a factor of exp(2b) at
  most, and its weight moves furthest when they go from exp(-b) to exp(b). As Σ (w' - w) = 0,
  answers count by their distance from any one point, here their mean:
  ‖Σ (w' - w) a‖ <= 2 tanh(b / 2) max ‖a_k - ā‖.
- A dot product moves by at most the product of norms (Cauchy-Schwarz): with q̂ off by r_q and the
  centered centroid c by r_c, a cosine moves by ‖r_q‖ ‖c‖ + (1 + ‖r_q‖) ‖r_c‖.
- Heads that are left out, a part x of the weight, move a projection by x times the distance between
  the mean of the answers that stay and that of those that go: at most 2x max ‖a_k - ā‖.

float32 roundings are bounded by u = 2⁻²⁴ times the number of them that a term passes through.
int16 residuals are measured: those of the heads when they are packed, those of a query beside its
projection.

This module computes; it runs no kernel.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headroute._validate import Float32

U = 2.0**-24  # float32's unit roundoff

PRECISIONS = ("float32", "int16", "screened")

# The layout of sums in csrc/: dot products in chains of 96, weighted sums in blocks of at most 512
# heads, sums of weights in chains shorter than that.
_DOT_CHAIN = 96
_HEAD_BLOCK = 512
_LARGEST_INT16 = 32767

# int16 is chosen for what its bounds are on ordinary queries; rows that are worse than the
# tolerance are done again in float32. This much room keeps them rare.
_ROOM = 0.9
# Below this many heads a vector of them is not full, and int16 was not measured. On Zen 4, bounds
# checked: 1.25 times as fast at K = 16, 1.4 at 24, 1.5 at 32.
_FEWEST_HEADS = 16
# Below this many there is too little to leave out.
_FEWEST_SEARCHED = 512
# screened is taken when it is predicted to be this much faster than the next best; the prediction
# is for queries like the heads.
_SCREENED_LEAD = 0.9
# Heads that a screened row keeps, at most, for its float32 sums to be allowed for beforehand.
_ORDINARY_KEPT = 1024


class Plan(NamedTuple):
    """Which arithmetic `project` uses at one temperature, and what that may cost.

    Errors are ‖projected - exact‖ / max_k ‖a_k‖.
    """

    precision: str  # "float32", "int16" or "screened"
    temperature: float
    tolerance: float
    bound: float  # no finite query's error is larger
    expected_error: float  # about the root mean square over ordinary queries
    reason: str  # one line, for people
    checks_rows: bool  # each row's own bound is checked, and rows above the tolerance done again


class HeadRounding(NamedTuple):
    """What packing measured of heads in int16 or int8: `csrc/packing.h`."""

    centroid_norm: float
    centroid_rounding: float
    answer_radius: float
    answer_rounding: float
    query_scale: float
    weight_chain: int
    weight_total: float


def underflow(answers: Float32) -> float:
    """What float32's smallest numbers add to every bound: a product of each head, in each column,
    may be off by 2⁻¹⁴⁹. Next to nothing, unless all answers are as small."""
    largest = float(max(answers.max(initial=0), -answers.min(initial=0)))
    n_heads, columns = answers.shape
    return 2 * n_heads * math.sqrt(columns) * 2.0**-149 / largest if largest else 0.0


def float32_bound(n_heads: int, d: int, temperature: float, *, chains: bool) -> float:
    """Bound of float32 arithmetic; `chains` when sums are cut as the compiled kernels cut them."""
    dot = _DOT_CHAIN + math.ceil(d / _DOT_CHAIN) if chains else d
    cosine = (dot + d / 16 + 24) * U
    heads = min(n_heads, _HEAD_BLOCK) + n_heads / 32 if chains else 2 * n_heads
    return float(_logit_part(cosine / temperature, 1.0) + (heads + 64) * U)


def int16_bound(
    heads: HeadRounding,
    n_heads: int,
    d: int,
    temperature: float,
    query_rounding: npt.ArrayLike,
    weight_rounding: npt.ArrayLike,
) -> npt.NDArray[np.float64]:
    """Bounds of int16 arithmetic, of the shape of the two measured figures.

    `query_rounding` is ‖q̂ - its rounding‖, `weight_rounding` Σ |w - its rounding| / Σ w. Sums of
    integers become floats after every chain of 128 columns, or once for each of three orders of
    magnitude (csrc/amx_multiply.h), of which the middle one is below 2²⁴ d where a cosine of 1 is
    at least 2²⁹: (d / 32 + 64) u covers either.
    """
    # Measured in float32, by sums of d and K terms: a thousandth covers that.
    r_q = 1.001 * np.asarray(query_rounding, np.float64)
    r_w = 1.001 * np.asarray(weight_rounding, np.float64)
    cosine = r_q * heads.centroid_norm + (1 + r_q) * heads.centroid_rounding + (d / 32 + 64) * U
    floats = (n_heads / 64 + 64) * U
    result: npt.NDArray[np.float64] = (
        _logit_part(cosine / temperature, heads.answer_radius)
        + (r_w + floats) * (1 + heads.answer_rounding)
        + heads.answer_rounding
    )
    return result


def _logit_part(b: float | npt.NDArray[np.float64], radius: float) -> Any:
    """‖Σ (w' - w) a‖ for logits that are off by at most b."""
    return 2 * np.tanh(b / 2) * min(radius, 1.0)


class Screening(NamedTuple):
    """What a search in few bits promises for queries like the heads."""

    cost: float  # of a row, beside float32
    kept: float  # part of the heads whose exact cosine is taken


class Int16Errors:
    """What int16 arithmetic may do to queries of `d` columns, projected through packed heads."""

    def __init__(
        self, heads: HeadRounding, n_heads: int, d: int, underflow: float, cost: float
    ) -> None:
        self.cost = cost  # of a row, beside float32
        self._heads = heads
        self._n_heads = n_heads
        self._d = d
        self._underflow = underflow

    def bounds(self, account: Float32, temperature: float) -> npt.NDArray[np.float64]:
        """Bounds (n,) of queries from what the kernel measured of them, (n, 2)."""
        bounds: npt.NDArray[np.float64] = self._bound(temperature, account[:, 0], account[:, 1])
        return bounds

    def worst(self, temperature: float) -> float:
        """The bound of any finite query: all of its length in one column, every rounding a half."""
        r_q = 0.5 * math.sqrt(self._d) / (0.99999 * (_LARGEST_INT16 - 1))
        r_w = 0.5 * self._chain / self._heads.weight_total
        # Measured, it may come out a few ulp larger.
        return 1.00001 * float(self._bound(temperature, r_q, r_w))

    def ordinary(self, temperature: float) -> float:
        """A bound that ordinary queries stay below: like the centroids, roundings all over [0, ½].

        The mean square of a rounding is 1/12 and its mean ¼; sums of d and of a chain of them stay
        within a few standard deviations of that.
        """
        r_q = (math.sqrt(self._d / 12) + 1.0) / self._heads.query_scale
        r_w = (0.25 * self._chain + 0.7 * math.sqrt(self._chain)) / self._heads.weight_total
        return float(self._bound(temperature, r_q, r_w))

    def expected(self, temperature: float) -> float:
        """About the root mean square error: independent roundings, of variance 1/12."""
        heads = self._heads
        cosine = math.hypot(
            heads.centroid_norm / heads.query_scale / math.sqrt(12),
            heads.centroid_rounding / math.sqrt(self._d),
        )
        weights = math.sqrt(self._chain / 12) / heads.weight_total
        logits = min(1.0, cosine / temperature) * heads.answer_radius
        return math.hypot(logits, weights, heads.answer_rounding)

    @property
    def _chain(self) -> int:
        return min(self._n_heads, self._heads.weight_chain)

    def _bound(self, temperature: float, r_q: npt.ArrayLike, r_w: npt.ArrayLike) -> Any:
        bound = int16_bound(self._heads, self._n_heads, self._d, temperature, r_q, r_w)
        return bound + self._underflow


class ScreenedErrors:
    """What leaving out light heads may do to queries of `d` columns."""

    def __init__(self, heads: HeadRounding, d: int, underflow: float) -> None:
        self._underflow = underflow
        self._radius = min(heads.answer_radius, 1.0)
        self._d = d
        self.heads = heads

    def may_drop(self, tolerance: float, temperature: float) -> float:
        """The part of a row's weight that may be dropped within a tolerance; 0 or less if none."""
        room = tolerance - self._floats(temperature, _ORDINARY_KEPT)
        return float(min(0.5, room / max(self._distance(temperature), 1e-6)))

    def bounds(self, account: Float32, temperature: float) -> npt.NDArray[np.float64]:
        """Bounds (n,) from what the kernel says of every row, (n, 2): part dropped, heads kept."""
        dropped, kept = account.astype(np.float64).T
        done = np.isfinite(dropped)
        result = np.full(len(done), np.inf)
        result[done] = self._distance(temperature) * dropped[done]
        result[done] += self._floats(temperature, kept[done])
        return result

    def _distance(self, temperature: float) -> float:
        """Between the means of two sets of answers, at most; a little more, as dropped weights are
        added up in float32."""
        return 2 * self._radius * math.exp(min(2 * self._cosine / temperature, 100.0))

    @property
    def _cosine(self) -> float:
        """Error of an exact cosine in float32: 16 sums over each dot product and norm."""
        return (self._d / 8 + 32) * U

    def _floats(self, temperature: float, kept: float | npt.NDArray[np.float64]) -> Any:
        """Of exact cosines in float32, and of sums over the kept heads."""
        logits = _logit_part(self._cosine / temperature, self._radius)
        return logits + (1.5 * kept + 64) * U + self._underflow


def choose(
    forced: str | None,
    tolerance: float,
    temperature: float,
    float32: float,
    n_heads: int,
    int16: Callable[[], Int16Errors] | None,
    screening: Callable[[float], Screening | None] | None,
) -> Plan:
    """Choose the arithmetic for one temperature.

    `float32` is that arithmetic's bound; `int16` makes the errors of the other, and `screening` the
    prospects of a search at a temperature; None where the backend has no such arithmetic.
    """

    def plan(precision: str, bound: float, expected: float, reason: str, checks: bool) -> Plan:
        return Plan(precision, temperature, tolerance, bound, expected, reason, checks)

    def stay(reason: str) -> Plan:
        # A random walk over the chain of a dot product, in logits.
        return plan("float32", float32, min(1.0, U * (2 / temperature + 2)), reason, False)

    if forced == "float32":
        return stay("precision='float32' was asked for")
    if forced is None and tolerance <= float32:
        return stay(
            "no tolerance was given"
            if tolerance == 0
            else f"the tolerance {tolerance:g} is below what float32 itself promises, {float32:.2g}"
        )
    if int16 is None or screening is None:
        return stay("this backend has float32 arithmetic alone")
    if forced is None and n_heads < _FEWEST_HEADS:
        return stay(f"nothing is faster than float32 with fewer than {_FEWEST_HEADS} heads")

    if forced == "screened":
        return plan(
            "screened",
            max(tolerance, float32),
            0.1 * tolerance,
            "precision='screened' was asked for",
            True,
        )
    if forced == "int16":
        errors = int16()
        worst, expected = errors.worst(temperature), errors.expected(temperature)
        return plan("int16", worst, expected, "precision='int16' was asked for", False)

    errors = int16()
    worst, ordinary = errors.worst(temperature), errors.ordinary(temperature)
    int16_will_do = worst <= tolerance or ordinary <= _ROOM * tolerance
    prospects = screening(temperature) if n_heads >= _FEWEST_SEARCHED else None
    if prospects is not None and prospects.cost < _SCREENED_LEAD * (
        errors.cost if int16_will_do else 1.0
    ):
        reason = (
            f"queries like the heads keep {prospects.kept:.2g} of them and take about "
            f"{prospects.cost:.2f} of float32's time; each row's bound is checked, and a row above "
            f"the tolerance {tolerance:g} done in float32"
        )
        return plan("screened", tolerance, 0.1 * tolerance, reason, True)
    expected = errors.expected(temperature)
    if worst <= tolerance:
        reason = f"no query can be off by more than {worst:.2g}, within the tolerance {tolerance:g}"
        return plan("int16", worst, expected, reason, False)
    if int16_will_do:
        reason = (
            f"bounds of about {ordinary:.2g} are within the tolerance {tolerance:g}; each row's is "
            "checked, and a row above it done again in float32"
        )
        return plan("int16", tolerance, expected, reason, True)
    return stay(
        f"int16 could promise about {ordinary:.2g}, above the tolerance {tolerance:g}, and too "
        "few heads can be left out"
    )
