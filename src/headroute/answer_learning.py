"""Answers that learn: values of the heads' groups, trained to be found among the given answers.

    p_i = Σ_g w_ig v_g
    minimise over V:   -Σ_i log softmax_j(p̂_i · â_j / t)_{group(i)}  +  ‖V - Â‖² / 2f

    w (n, G) routing weights of questions to heads without them
    a (G, e) given answers     v (G, e) learned ones

V = Â are the given answers, and f, the freedom, says how far V may go from them; both it and t are
chosen on held-out questions, f from 0 upwards. Documents are not touched: the given answers stay
what a projection is compared with.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from headroute._backends.reference import unit
from headroute._validate import Float32
from headroute.learning import FREEDOMS, deal_into_folds, one_blas_thread
from headroute.leave_one_out import (
    Cosines,
    Float64,
    Int64,
    LikelihoodCurve,
    best_temperature,
    known,
)
from headroute.training_record import Curve

# Smaller weights are left out: together they move a projection by less than float32 rounding moves
# what is learned from it.
_LEAST_WEIGHT = 1e-4

_MAX_ITERATIONS = 100
_RELATIVE_TOLERANCE = 1e-5
_BLOCK_ROWS = 2048


class LearnedAnswers(NamedTuple):
    """What was learned, and the likelihoods that chose it."""

    answers: Float32  # (G, e), lengths about 1
    freedom: float  # 0: the given answers, of unit length
    freedom_curve: Curve


class Weighted(NamedTuple):
    """Questions as what they are made of."""

    weights: Any  # (n, G) sparse, float32
    groups: Int64  # (n,)


def weigh(blocks: Iterable[Cosines], groups: Int64, temperature: float) -> Weighted:
    """Weights of groups, of cosines (n, K) to heads of groups (K,), ascending."""
    from scipy.sparse import vstack

    parts = [_weigh(block, groups, temperature) for block in blocks]
    return Weighted(
        vstack([part.weights for part in parts]).tocsr(),
        np.concatenate([part.groups for part in parts]),
    )


def _weigh(cosines: Cosines, groups: Int64, temperature: float) -> Weighted:
    from scipy.sparse import csr_array

    values, own = known(cosines, groups)
    weights = np.exp((values - values.max(axis=1, keepdims=True)) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    by_group = np.add.reduceat(weights, starts, axis=1)
    by_group[by_group < _LEAST_WEIGHT] = 0
    return Weighted(csr_array(by_group.astype(np.float32)), own)


def cosines_to_answers(values: Float64, answers: Float64, questions: Weighted) -> Cosines:
    """p̂ · â, (n, G), in place of cosines to heads."""
    return Cosines(unit(questions.weights @ values) @ answers.T, questions.groups)


def loss_and_gradient(
    values: Float64, answers: Float64, questions: Weighted, temperature: float
) -> tuple[float, Float64]:
    """Σ_i of the cross-entropies, and the gradient in V, (G, e). `answers` (G, e) are unit."""
    loss, gradient = 0.0, np.zeros_like(values)
    for start in range(0, len(questions.groups), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        weights, groups = questions.weights[rows], questions.groups[rows]
        each = np.arange(len(groups))
        projected = weights @ values
        lengths = np.linalg.norm(projected, axis=1, keepdims=True)
        lengths[lengths == 0] = 1
        directions = projected / lengths
        logits = directions @ answers.T / temperature
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        totals = shares.sum(axis=1)
        loss += float((np.log(totals) - logits[each, groups]).sum())
        shares /= totals[:, np.newaxis]
        shares[each, groups] -= 1
        slope = shares @ answers / temperature
        along = (slope * directions).sum(axis=1, keepdims=True)
        gradient += weights.T @ ((slope - along * directions) / lengths)
    return loss, gradient


def fit_values(
    values: Float64, answers: Float64, questions: Weighted, temperature: float, freedom: float
) -> Float64:
    """The V (G, e) of the least loss, sought from V on."""
    from scipy.optimize import minimize

    n = len(questions.groups)

    def objective(x: Float64) -> tuple[float, Float64]:
        trial = x.reshape(values.shape)
        loss, gradient = loss_and_gradient(trial, answers, questions, temperature)
        away = trial - answers
        loss += float(np.vdot(away, away)) / (2 * freedom)
        return loss / n, (gradient + away / freedom).ravel() / n

    with one_blas_thread():
        found = minimize(
            objective,
            values.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _MAX_ITERATIONS, "ftol": _RELATIVE_TOLERANCE, "gtol": 0},
        )
    result: Float64 = found.x.reshape(values.shape)
    return result


def learn_answers(
    answers: Float32, questions: Weighted, rng: np.random.Generator
) -> LearnedAnswers:
    """Choose the freedom by cross-validation, then fit to all.

    Args:
        answers: (G, e) the given ones, of any length.
        questions: routed by heads that do not know them.
    """
    directions = unit(answers.astype(np.float64))
    n_groups = len(directions)
    every = LikelihoodCurve(np.arange(n_groups))
    every.add(cosines_to_answers(directions, directions, questions))
    temperature = best_temperature(every.curve())
    counts = np.bincount(questions.groups, minlength=n_groups)
    folds = deal_into_folds(questions.groups, counts, rng)
    curves = {freedom: LikelihoodCurve(np.arange(n_groups)) for freedom in FREEDOMS}
    for fold in np.unique(folds[folds >= 0]):
        out = folds == fold
        seen = Weighted(questions.weights[~out], questions.groups[~out])
        unseen = Weighted(questions.weights[out], questions.groups[out])
        values = directions
        for freedom, curve in curves.items():
            if freedom:
                values = fit_values(values, directions, seen, temperature, freedom)
            curve.add(cosines_to_answers(values, directions, unseen))
    heights = {
        freedom: max(value for _, value in curve.curve())
        for freedom, curve in curves.items()
        if curve.questions
    }
    chosen = max(heights, key=lambda freedom: heights[freedom], default=0.0)
    values = directions
    if chosen:
        values = fit_values(values, directions, questions, temperature, chosen)
    return LearnedAnswers(values.astype(np.float32), chosen, tuple(heights.items()))
