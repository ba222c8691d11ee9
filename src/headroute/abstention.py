"""Which score tells best whether a query is in scope, and its calibration, from training questions.

No out-of-scope query is needed: to a router without its group, every question is one. The score
with the largest area under the ROC curve, of questions to their groups' other questions against
questions to other groups alone, is taken.
"""

from collections.abc import Callable, Iterable

import numpy as np

from headroute._validate import Float32
from headroute.leave_one_out import Cosines, Float64, Int64, known
from headroute.prediction import SCORES, Calibration, Groups, scores_of


def calibrate(
    cosines: Callable[[], Iterable[Cosines]],
    groups: Int64,
    temperature: float,
    source: str,
    *,
    twins: bool = False,
) -> Calibration | None:
    """Calibrate on questions that were left out of what they are compared with.

    Args:
        cosines: the same blocks at every call.
        groups: (K,) the group of each head, ascending.
        source: says in the calibration where the cosines are from.
        twins: whether some groups will have the same heads, so that there is no margin between
            them.

    None when there is no such question, or no other group.
    """
    if groups[-1] == 0:
        return None
    typical = typical_cosines(cosines(), len(groups))
    in_scope: dict[str, list[Float64]] = {score: [] for score in SCORES}
    out_of_scope: dict[str, list[Float64]] = {score: [] for score in SCORES}
    sums = Groups(groups)
    for block in cosines():
        values, own = known(block, groups)
        if len(own) == 0:
            continue
        elsewhere = np.where(own[:, np.newaxis] == groups, -np.inf, values)
        for found, seen in ((in_scope, values), (out_of_scope, elsewhere)):
            best = seen.max(axis=1)
            weights = np.exp((seen - best[:, np.newaxis]) / temperature)
            weights /= weights.sum(axis=1, keepdims=True)
            for score in SCORES:
                found[score].append(scores_of(score, best, weights, sums, temperature, typical))
    if not in_scope[SCORES[0]]:
        return None
    areas = {
        score: area_under_roc(np.concatenate(in_scope[score]), np.concatenate(out_of_scope[score]))
        for score in SCORES
    }
    candidates = [score for score in SCORES if not (twins and score == "margin")]
    chosen = max(candidates, key=lambda score: areas[score])
    scores = np.sort(np.concatenate(in_scope[chosen])).astype(np.float32)
    return Calibration(chosen, source, scores, typical if chosen == "relative" else None)


def typical_cosines(cosines: Iterable[Cosines], n_heads: int) -> Float32:
    """The mean cosine (K,) of the questions of each head to it; of all, to a head of one."""
    totals, counts = np.zeros(n_heads), np.zeros(n_heads)
    for values, heads in cosines:
        own = values[np.arange(len(heads)), heads]
        there = np.isfinite(own)
        totals += np.bincount(heads[there], weights=own[there], minlength=n_heads)
        counts += np.bincount(heads[there], minlength=n_heads)
    overall = totals.sum() / max(1, counts.sum())
    result: Float32 = np.where(counts, totals / np.maximum(counts, 1), overall).astype(np.float32)
    return result


def area_under_roc(positive: Float64, negative: Float64) -> float:
    """The probability that a positive is above a negative; a tie is half of that."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / 2 / len(order))
