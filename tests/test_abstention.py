"""Which score tells best what is in scope."""

import numpy as np
import pytest

from headroute import abstention, train_heads
from headroute.abstention import area_under_roc, calibrate, typical_cosines
from headroute.leave_one_out import Cosines
from headroute.prediction import SCORES


def test_area_under_roc(rng):
    """The share of pairs in the right order, ties counting half."""
    positive, negative = rng.integers(0, 12, 41) + 2.0, rng.integers(0, 12, 30) * 1.0
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
    # A mean of whole numbers and two divisions.
    assert area_under_roc(positive, negative) == pytest.approx(wins / (41 * 30), rel=2.0**-51)


def test_typical_cosines(rng):
    """The mean over a head's own questions, in any number of blocks; -inf is left out; a head
    without questions has the mean of all.
    """
    values, heads = rng.uniform(-1, 1, (50, 4)), rng.integers(0, 3, 50)
    values[7, heads[7]] = -np.inf
    own = values[np.arange(50), heads]
    kept = np.isfinite(own)
    expected = [own[kept & (heads == k)].mean() for k in range(3)] + [own[kept].mean()]
    blocks = [Cosines(values[part], heads[part]) for part in (slice(20), slice(20, 50))]
    np.testing.assert_array_equal(typical_cosines(blocks, 4), np.float32(expected))


# Cosines (n, K) to a group's own head, and to the others', by the score that tells them apart.
SEPARATED = {
    # The best cosine of another group is always lower. All scores tell: the first is taken.
    "best_cosine": ([[0.9, 0.1, 0.2], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9]], 0.05),
    # Some questions are close to everything, but only the own group stands out.
    "margin": ([[0.3, 0.1, 0.1], [0.7, 0.9, 0.7], [0.7, 0.7, 0.9]], 0.05),
    # Of group 1 less is expected: its own cosine is below another's of a question of group 0.
    "relative": ([[0.9, 0.3, 0.52], [0.45, 0.5, 0.42], [0.52, 0.3, 0.9]], 0.01),
    # Several heads are close, but none is closer than the best of another group.
    "log_partition": ([[0.5, 0.5, 0.49], [0.5, 0.5, 0.49], [0.49, 0.49, 0.5]], 0.5),
}


@pytest.mark.parametrize("score", SCORES)
def test_the_score_that_tells_is_taken(score):
    cosines, temperature = SEPARATED[score]
    block = Cosines(np.array(cosines), np.arange(3))
    calibration = calibrate(lambda: [block], np.arange(3), temperature, "leave-one-out")
    assert (calibration.score, calibration.source) == (score, "leave-one-out")
    assert (calibration.typical is not None) == (score == "relative")
    assert len(calibration.scores) == 3


@pytest.mark.filterwarnings("ignore:.*more than one group")
@pytest.mark.parametrize("twins", [False, True])
def test_there_is_no_margin_between_twins(rng, monkeypatch, twins):
    """However well it tells: groups of the same questions would all be refused."""
    areas = iter([0.6, 0.7, 0.8, 0.9])
    monkeypatch.setattr(abstention, "area_under_roc", lambda *_: next(areas))
    questions, groups = rng.standard_normal((12, 5)), np.repeat([0, 1, 2], 4)
    if twins:
        questions, groups = np.concatenate([questions, questions[:4]]), np.append(groups, [3] * 4)
    router = train_heads(questions, groups, np.eye(groups.max() + 1))
    assert router.calibration.score == SCORES[-2 if twins else -1]


def test_scores_of_left_out_questions(rng):
    """The calibration's scores are those of questions that their own heads do not know."""
    groups = np.arange(30) % 3
    questions = np.eye(3, 8)[groups] + 0.3 * rng.standard_normal((30, 8))
    router = train_heads(questions, groups, np.eye(3), method="centroid", temperature=0.1)
    rows = questions.astype(np.float32).astype(np.float64)
    scores = []
    for i in range(30):
        others = np.arange(30) != i
        means = np.array([rows[others & (groups == k)].mean(axis=0) for k in range(3)])
        cosines = means @ rows[i] / np.linalg.norm(means, axis=1) / np.linalg.norm(rows[i])
        scores.append(cosines.max())
    assert router.calibration.score == "best_cosine"
    np.testing.assert_allclose(router.calibration.scores, np.sort(scores), rtol=2.0**-24, atol=0)


@pytest.mark.parametrize("groups", [[0, 0], [0, 1]], ids=["one group", "lone questions"])
def test_nothing_to_calibrate_on(groups):
    """Without another group nothing is out of scope; a lone question has nothing to be left to."""
    groups = np.array(groups)
    values = np.array([[0.5, 0.6], [0.7, 0.8]])
    if groups[1]:
        values[[0, 1], [0, 1]] = -np.inf
    block = Cosines(values, np.arange(2))
    assert calibrate(lambda: [block], groups, 0.1, "leave-one-out") is None


@pytest.mark.parametrize("temperature", [1e-3, 0.05, 2, 100])
@pytest.mark.parametrize("score", SCORES)
def test_fresh_questions_are_refused_no_more_than_they_may(rng, monkeypatch, score, temperature):
    """Calibrated by training questions alone, at any temperature, for groups of any width."""
    monkeypatch.setattr(abstention, "SCORES", (score,))
    widths = np.linspace(0.1, 0.6, 6)

    def sample(n):
        groups = np.arange(n) % 6
        noise = widths[groups, np.newaxis] * rng.standard_normal((n, 16))
        return np.eye(6, 16)[groups] + noise, groups

    questions, groups = sample(600)
    router = train_heads(questions, groups, np.eye(6), method="centroid", temperature=temperature)
    assert router.calibration.score == score
    m, fresh = 600, 6000
    for alpha in (0.05, 0.2):
        refused = router.predict(sample(fresh)[0], abstain=alpha).abstained.mean()
        # The refused share is beta(j, m + 1 - j) for the threshold, and binomial given that.
        deviation = np.sqrt(alpha * (1 - alpha) * (1 / m + 1 / fresh))
        assert refused <= alpha + 4 * deviation
        # A score that is many questions' refuses none of them.
        if (router.calibration.scores == router.calibration.threshold(alpha)).sum() == 1:
            assert refused >= alpha - 4 * deviation


def test_learned_heads_are_calibrated_by_questions_held_out(rng):
    """Compared with heads that learned from the others: their cosines are not the means'."""

    def sample(n):
        groups = np.arange(n) % 6
        angles = groups[:, np.newaxis] * np.pi / 3
        centres = np.hstack([np.cos(angles), np.sin(angles), np.zeros((n, 8))])
        return centres + rng.standard_normal((n, 10)) * ([0.2] * 2 + [1.5] * 8), groups

    m, fresh, alpha = 600, 6000, 0.2
    router = train_heads(*sample(m), np.eye(6))
    assert router.training.freedom > 0
    refused = router.predict(sample(fresh)[0], abstain=alpha).abstained.mean()
    # Four fifths of the questions make heads a little worse than all: a little fewer are refused.
    deviation = np.sqrt(alpha * (1 - alpha) * (1 / m + 1 / fresh))
    assert alpha - 5 * deviation <= refused <= alpha + 4 * deviation
