"""Learned answers: the gradient, and that they help only where they do."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from headroute import train_heads
from headroute._backends.reference import unit
from headroute.answer_learning import Weighted, loss_and_gradient, weigh
from headroute.leave_one_out import Cosines


def test_gradient(rng):
    """Central differences, whose error is about h² of the third derivative, 1e-8 here."""
    weights = rng.dirichlet(np.ones(5), 40)
    questions = Weighted(csr_array(weights), np.arange(40) % 5)
    answers = unit(rng.standard_normal((5, 7)))
    values, direction = rng.standard_normal((2, 5, 7))
    _, gradient = loss_and_gradient(values, answers, questions, 0.3)
    step = 1e-5
    ends = [
        loss_and_gradient(values + sign * step * direction, answers, questions, 0.3)[0]
        for sign in (1, -1)
    ]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(np.vdot(gradient, direction), rel=1e-6)


def test_weights_are_those_of_the_groups():
    cosines = Cosines(np.array([[0.9, 0.1, -np.inf], [-np.inf, 0.2, 0.2]]), np.array([2, 0]))
    weighted = weigh([cosines], np.array([0, 1, 1]), 0.5)
    # The second question is the only one of group 0: nothing is left of it.
    assert weighted.groups.tolist() == [1]
    first = 1 / (1 + np.exp(-0.8 / 0.5))
    np.testing.assert_allclose(weighted.weights.toarray(), [[first, 1 - first]], rtol=1e-6)


def data(rng, spread):
    groups = np.repeat(np.arange(8), 12)
    questions = np.eye(8, 24)[groups] + spread * rng.standard_normal((96, 24))
    return questions, groups


def test_they_help_at_a_temperature_that_blends(rng):
    """At τ = 1 projections lie near the mean of all answers; learned values undo the blend."""
    questions, groups = data(rng, 0.2)
    answers = unit(rng.standard_normal((8, 6)) + 1)
    fresh, right = data(np.random.default_rng(5), 0.2)
    recalls = []
    for learn in (False, True):
        router = train_heads(questions, groups, answers, temperature=1.0, learn_answers=learn)
        found = router.score_answers(fresh, answers, 1).indices[:, 0]
        recalls.append((found == right).mean())
    assert router.training.answer_freedom > 0
    assert recalls[0] < 0.7
    assert recalls[1] > 0.9


def test_given_answers_stay_where_nothing_is_gained(rng):
    questions, groups = data(rng, 0.05)
    answers = 3 * np.eye(8)
    router = train_heads(questions, groups, answers, learn_answers=True)
    assert router.training.answer_freedom == 0
    np.testing.assert_array_equal(router.answers, answers)
