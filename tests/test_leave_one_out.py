"""Leave-one-out in closed form, against making every head again without the question."""

import math

import numpy as np
import pytest

from headroute import leave_one_out, train_heads
from headroute._questions import sums_of
from headroute.leave_one_out import (
    Cosines,
    HeadSums,
    LikelihoodCurve,
    best_temperature,
    known,
    left_out_cosines,
)

EPS = 2.0**-52

ONE_HEAD_EACH = [0, 1, 2, 3]
SEVERAL_HEADS = [0, 0, 1, 1, 1, 2, 3]
TAUS = [top / 2**halving for halving in range(15) for top in (2.0, math.sqrt(2))]


@pytest.fixture(params=[ONE_HEAD_EACH, SEVERAL_HEADS], ids=["one head", "several heads"])
def problem(request, rng, monkeypatch):
    """(questions, heads, sums), d = 7; the first head and the last have one question. A block holds
    a few questions.
    """
    groups = np.array(request.param)
    counts = np.append(1, np.append(rng.integers(2, 9, len(groups) - 2), 1))
    heads = rng.permutation(np.repeat(np.arange(len(groups)), counts))
    questions = rng.standard_normal((len(heads), 7)).astype(np.float32)
    monkeypatch.setattr(leave_one_out, "_BLOCK_BYTES", 8 * len(groups) * 5)
    sums = HeadSums(sums_of(questions, heads, len(groups)), counts, groups)
    return questions, heads, sums


def remade(questions, heads, i, k):
    """The mean (d,) of the questions of head k but question i; None of none."""
    mine = (heads == k) & (np.arange(len(heads)) != i)
    return questions[mine].astype(np.float64).mean(axis=0) if mine.any() else None


def remade_cosines(questions, heads, n_heads):
    """Cosines (n, K)."""
    result = np.full((len(questions), n_heads), -np.inf)
    for i, question in enumerate(questions.astype(np.float64)):
        for k in range(n_heads):
            mean = remade(questions, heads, i, k)
            if mean is not None:
                lengths = np.linalg.norm(question) * np.linalg.norm(mean)
                result[i, k] = question @ mean / lengths
    return result


def together(blocks):
    values, heads = zip(*blocks, strict=True)
    assert len(values) > 1
    return Cosines(np.concatenate(values), np.concatenate(heads))


def test_cosines(problem):
    """The cosine to a sum less the question is that to a mean of the others."""
    questions, heads, sums = problem
    cosines = together(left_out_cosines(questions, heads, sums))
    np.testing.assert_array_equal(cosines.heads, heads)
    expected = remade_cosines(questions, heads, len(sums.counts))
    # Sums of n <= 8 questions and products of d = 7, each step within an eps of the lengths that
    # went in; what is left of a head is shorter than that by some factor.
    lengths = np.linalg.norm(questions, axis=1)
    left = np.array(
        [remade(questions, heads, i, k) for i, k in enumerate(heads) if (heads == k).sum() > 1]
    )
    shortest = min(np.linalg.norm(left, axis=1).min(), np.linalg.norm(sums.sums, axis=1).min())
    atol = (8 + 2 * 7) * EPS * 8 * lengths.max() / shortest
    np.testing.assert_allclose(cosines.values, expected, rtol=0, atol=atol)


def test_likelihood(problem):
    """At each temperature the curve is the mean logarithm of a softmax, summed over a group."""
    questions, heads, sums = problem
    curve = LikelihoodCurve(sums.groups)
    for block in left_out_cosines(questions, heads, sums):
        curve.add(block)
    cosines = remade_cosines(questions, heads, len(sums.counts))
    inside = sums.groups[heads][:, np.newaxis] == sums.groups
    told = np.isfinite(np.where(inside, cosines, -np.inf)).any(axis=1)
    assert curve.questions == told.sum()
    taus, values = zip(*curve.curve(), strict=True)
    assert taus == tuple(TAUS)
    for tau, value in zip(taus, values, strict=True):
        logits = cosines[told] / tau
        own = np.where(inside[told], logits, -np.inf)
        logs = np.logaddexp.reduce(own, axis=1) - np.logaddexp.reduce(logits, axis=1)
        expected = np.maximum(logs, np.log(1e-300)).mean()
        # A squaring doubles the relative error and adds an eps: 2**15 eps after fourteen. The
        # cosines' own error is up to 100 eps here, over τ >= 2**-14 √2.
        assert value == pytest.approx(expected, rel=0, abs=2 * (2**15 + 100 * 2**14) * EPS)


def test_lone_questions_are_passed_over(problem):
    """Nothing is said of a group of which nothing is left; another of its heads is enough."""
    questions, heads, sums = problem
    cosines = together(left_out_cosines(questions, heads, sums))
    values, groups = known(cosines, sums.groups)
    sizes = np.bincount(sums.groups[heads])
    kept = sizes[sums.groups[heads]] > 1
    assert not kept.all()
    np.testing.assert_array_equal(groups, sums.groups[heads][kept])
    np.testing.assert_array_equal(values, cosines.values[kept])


def test_only_lone_questions(rng):
    """No curve, and no division by zero, when every group has one question."""
    curve = LikelihoodCurve(np.arange(3))
    questions = rng.standard_normal((3, 4)).astype(np.float32)
    sums = HeadSums(questions.astype(np.float64), np.ones(3, np.int64), np.arange(3))
    for block in left_out_cosines(questions, np.arange(3), sums):
        curve.add(block)
    assert (curve.questions, curve.curve()) == (0, ())


def test_train_heads_has_this_curve(rng):
    """The record of a training is the curve of its questions."""
    questions = rng.standard_normal((24, 5))
    groups = np.arange(24) % 4
    router = train_heads(questions, groups, np.eye(4), method="centroid")
    cosines = remade_cosines(questions.astype(np.float32), groups, 4)
    tau, value = router.training.temperature_curve[3]
    logits = cosines / tau
    logs = logits[np.arange(24), groups] - np.logaddexp.reduce(logits, axis=1)
    assert value == pytest.approx(logs.mean(), rel=0, abs=1e4 * EPS)  # as above, at 2**3 / √2 of it


# ---- the best temperature


@pytest.mark.parametrize("tau", [0.0456, 0.123, 1.07, 0.00301])
def test_a_parabola_is_found_between_the_points(tau):
    """The logarithm of τ of its top, to three digits."""
    curve = [(t, -0.5 - 0.1 * math.log(t / tau) ** 2) for t in TAUS]
    assert best_temperature(curve) == tau


def test_edges():
    """A likelihood that rises to an end of the curve takes that end: nothing is extrapolated."""
    rising = [(t, -1 + 0.01 * math.log(t)) for t in TAUS]
    falling = [(t, -1 - 0.01 * math.log(t)) for t in TAUS]
    assert best_temperature(rising) == 2
    assert best_temperature(falling) == float(f"{TAUS[-1]:.3g}")


def test_where_all_is_perfect_the_highest_is_taken():
    """Between temperatures that leave nothing to gain the likelihood does not choose."""
    curve = [(t, -1e-5 * t if t < 0.3 else -t) for t in TAUS]
    assert best_temperature(curve) == 0.25


def test_flat():
    """A curve without a bend has no top to look for: the highest."""
    assert best_temperature([(t, -0.7) for t in TAUS]) == 2


def test_order_does_not_matter(rng):
    """Sums in another order change the last bits of the curve, and not the temperature."""
    groups = np.repeat(np.arange(5), 20)
    questions = np.eye(5, 12)[groups] + 0.4 * rng.standard_normal((100, 12))
    found = set()
    for _ in range(5):
        order = rng.permutation(100)
        router = train_heads(questions[order], groups[order], np.eye(5), method="centroid")
        found.add(router.temperature)
    assert len(found) == 1
    (tau,) = found
    assert tau == float(f"{tau:.3g}")
    assert tau not in TAUS
