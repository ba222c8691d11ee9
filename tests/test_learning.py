"""The learned map: its loss and gradient against float64, and that it never hurts."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from accuracy import U

from headroute import learning, train_heads
from headroute._questions import sums_of
from headroute.learning import FOLDS, PARTS, deal_into_folds, learn, loss_and_gradient, make_task
from headroute.leave_one_out import HeadSums

TAU = 0.25  # exact in float32
D = 5

ONE_HEAD_EACH = [0, 1, 2, 3]
SEVERAL_HEADS = [0, 0, 1, 1, 1, 2, 3]


class Counter:
    """Progress that nobody sees."""

    def update(self):
        pass


@pytest.fixture(params=[ONE_HEAD_EACH, SEVERAL_HEADS], ids=["one head", "several heads"])
def task(request, rng):
    """In float64: the first head and the last have one question, one more than PARTS; and some
    questions say nothing.
    """
    groups = np.array(request.param)
    counts = np.append(1, np.append(rng.integers(2, 9, len(groups) - 2), 1))
    counts[1] = 2 * PARTS + 3
    heads = rng.permutation(np.repeat(np.arange(len(groups)), counts))
    questions = rng.standard_normal((len(heads), D)).astype(np.float32)
    sums = HeadSums(sums_of(questions, heads, len(groups)), counts, groups)
    telling = rng.random(len(heads)) > 0.2
    made = make_task(questions, heads, telling, sums, rng)
    assert 0 < made.learnable.sum() < len(heads)
    assert not made.left.all()
    wide = ("questions", "means", "means_without")
    return made._replace(**{name: getattr(made, name).astype(np.float64) for name in wide})


@pytest.fixture
def w(rng):
    return np.eye(D) + 0.3 * rng.standard_normal((D, D))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plain_loss(w, task):
    """The formula, one question after the other."""
    total = 0.0
    for i in np.flatnonzero(task.learnable):
        logits = unit(task.means @ w.T) @ task.questions[i] / TAU
        own, part = task.heads[i], task.parts[i]
        logits[own] = -np.inf
        if task.left[part]:
            logits[own] = unit(w @ task.means_without[part]) @ task.questions[i] / TAU
        inside = task.groups == task.groups[own]
        total += np.logaddexp.reduce(logits) - np.logaddexp.reduce(logits[inside])
    return total


# ---- the loss


def test_parts(rng):
    """A part's head is made of the head's questions in all other parts; at most PARTS of them. What
    is learned from has such a head, and tells.
    """
    heads = np.repeat([0, 1, 2], [1, 7, 47])
    questions = rng.standard_normal((55, D)).astype(np.float32)
    sums = HeadSums(sums_of(questions, heads, 3), np.bincount(heads), np.arange(3))
    telling = rng.random(55) > 0.3
    task = make_task(questions, heads, telling, sums, rng)
    directions = unit(questions.astype(np.float64))
    place = (task.questions @ directions.T).argmax(axis=1)
    np.testing.assert_array_equal(np.sort(place), np.arange(55))
    np.testing.assert_array_equal(heads[place], task.heads)
    np.testing.assert_array_equal(
        np.bincount(heads[np.unique(task.parts, return_index=True)[1]]), [1, 7, 10]
    )
    np.testing.assert_array_equal(task.left[task.parts], task.heads > 0)
    np.testing.assert_array_equal(task.learnable, telling[place] & (task.heads > 0))
    for part in np.flatnonzero(task.left):
        head = task.heads[task.parts == part][0]
        others = place[(task.heads == head) & (task.parts != part)]
        expected = unit(questions[others].astype(np.float64).sum(axis=0))
        np.testing.assert_allclose(task.means_without[part], expected, rtol=0, atol=U)


def test_loss(task, w, pool):
    """The blocks' sum is the formula's: sums of at most n · K terms in float64."""
    loss, _ = loss_and_gradient(w, task, TAU, pool)
    terms = task.learnable.sum() * len(task.means)
    assert loss == pytest.approx(plain_loss(w, task), rel=terms * 2.0**-52)


def test_gradient(task, w, pool):
    """Each of the d² slopes is that of the plain loss, up to what halving the step changes."""
    _, gradient = loss_and_gradient(w, task, TAU, pool)

    def difference(i, j, step):
        there, back = w.copy(), w.copy()
        there[i, j] += step
        back[i, j] -= step
        return (plain_loss(there, task) - plain_loss(back, task)) / (2 * step)

    step = 1e-4
    rounding = len(task.questions) * 2.0**-52 * plain_loss(w, task) / step
    for i, j in np.ndindex(D, D):
        fine, coarse = difference(i, j, step), difference(i, j, 2 * step)
        # The error of the fine one is a third of the difference, as it falls with step².
        assert gradient[i, j] == pytest.approx(fine, rel=0, abs=abs(coarse - fine) + rounding)
    assert np.abs(gradient).min() > 1e3 * rounding


def test_float32(task, w, pool):
    """In float32 the loss of a question is off by no more than its logits."""
    narrow = task._replace(
        **{
            name: getattr(task, name).astype(np.float32)
            for name in ("questions", "means", "means_without")
        }
    )
    loss, gradient = loss_and_gradient(w.astype(np.float32), narrow, TAU, pool)
    expected, slopes = loss_and_gradient(w, task, TAU, pool)
    assert gradient.dtype == np.float32
    # A cosine: two roundings of each input, products and sums of d = 5 in each of W m, its norm and
    # the dot product. W is worth a factor of its condition.
    cosine = (4 + 3 * D) * U * np.linalg.cond(w)
    n = task.learnable.sum()
    assert loss == pytest.approx(expected, rel=0, abs=n * 2 * cosine / TAU)
    # A slope is n products of a weight's error, twice that, with directions over the mapped length.
    least = np.linalg.norm(task.means @ w.T, axis=1).min()
    np.testing.assert_allclose(gradient, slopes, rtol=0, atol=n * 4 * cosine / TAU / TAU / least)


def test_blocks_and_threads_change_nothing(task, w, pool, monkeypatch):
    """Blocks of one question round sums differently; threads do not change a bit."""
    loss, gradient = loss_and_gradient(w, task, TAU, pool)
    monkeypatch.setattr(learning, "_BLOCK_BYTES", 4 * len(task.means))
    blocks, by_blocks = loss_and_gradient(w, task, TAU, pool)
    terms = len(task.questions) * len(task.means) * 2.0**-52
    assert blocks == pytest.approx(loss, rel=terms)
    np.testing.assert_allclose(by_blocks, gradient, rtol=0, atol=terms * len(task.questions) / TAU)
    with ThreadPoolExecutor(1) as alone:
        one, by_one = loss_and_gradient(w, task, TAU, alone)
    assert one == blocks
    np.testing.assert_array_equal(by_one, by_blocks)


@pytest.mark.parametrize("freedom", [0.01, 0.03])
def test_the_fit_has_no_slope_left(task, pool, monkeypatch, freedom):
    """At W the slope of the loss is that of the shrinkage, (W - I) / f, back."""
    monkeypatch.setattr(learning, "_RELATIVE_TOLERANCE", 0)
    w = learning.fit_map(np.eye(D, dtype=np.float32), task, TAU, freedom, Counter())
    _, start = loss_and_gradient(np.eye(D), task, TAU, pool)
    _, there = loss_and_gradient(w.astype(np.float64), task, TAU, pool)
    # Trials are rounded to float32, so that the loss is flat below the root of its eps.
    limit = 10 * np.sqrt(2 * U) * np.linalg.norm(start)
    assert np.linalg.norm(there + (w - np.eye(D)) / freedom) < limit
    assert np.linalg.norm(there - start) > 10 * limit


# ---- choosing


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30, 3e38])
def test_lengths_of_questions(rng, scale):
    """Questions are directions, however long the vectors: no norm of them overflows."""
    rows = (rng.uniform(-1, 1, (20, 384)) * scale).astype(np.float32)
    expected = unit(rows.astype(np.float64))
    # Rounded once.
    np.testing.assert_allclose(learning.directions_of(rows), expected, rtol=U, atol=0)


def test_freedom_0_is_the_mean_centroids(rng, monkeypatch):
    """Without freedom W is the identity, and heads are the directions of the means."""
    monkeypatch.setattr(learning, "FREEDOMS", (0.0,))
    questions, groups = rng.standard_normal((40, D)).astype(np.float32), np.arange(40) % 4
    sums = HeadSums(sums_of(questions, groups, 4), np.bincount(groups), np.arange(4))
    learned = learn(questions, groups, np.ones(40, bool), sums, 0.1, rng, Counter())
    assert learned.freedom == 0
    # Twice normalised: in float64, then in float32 with a norm of d = 5 squares.
    atol = (2 + D) * U
    np.testing.assert_allclose(learned.centroids, unit(sums.sums), rtol=0, atol=atol)


@pytest.mark.parametrize("counts", [[2] * 30, [1, 2, 3, 4, 5, 6, 7, 50], [1] * 6, [2], [5, 1]])
def test_deal_into_folds(rng, counts):
    """No fold takes all of a head, each takes its share of it, and lone questions are in none."""
    counts = np.array(counts)
    heads = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    folds = deal_into_folds(heads, counts, rng)
    np.testing.assert_array_equal(folds == -1, counts[heads] == 1)
    dealt = np.zeros((FOLDS, len(counts)), int)
    np.add.at(dealt, (folds[folds >= 0], heads[folds >= 0]), 1)
    assert (dealt <= -(-counts // FOLDS)).all()
    assert (dealt[:, counts > 1] < counts[counts > 1]).all()
    if (counts > 1).all():
        assert np.ptp(dealt.sum(axis=1)) <= 1


# ---- training


def likelihood(router, questions, groups):
    """Log-likelihoods (n,) of groups."""
    rows = unit(questions) @ unit(router.centroids.astype(np.float64)).T / router.temperature
    return rows[np.arange(len(groups)), groups] - np.logaddexp.reduce(rows, axis=1)


def test_it_learns_where_there_is_something_to_learn(rng):
    """Groups that differ in two dimensions of ten, the others loud: far better than the means."""

    def sample(n):
        groups = np.arange(n) % 6
        angles = groups * np.pi / 3
        centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        noise = rng.standard_normal((n, 8)) * 1.5
        return np.hstack([centres + 0.2 * rng.standard_normal((n, 2)), noise]), groups

    questions, groups = sample(120)
    test, expected = sample(3000)
    routers = [train_heads(questions, groups, np.eye(6), method=m) for m in ("learned", "centroid")]
    learned, means = (likelihood(router, test, expected) for router in routers)
    gains = learned - means
    record = routers[0].training
    assert record.freedom > 0
    # τ is the likeliest of what was chosen.
    assert (
        max(value for _, value in record.temperature_curve)
        == dict(record.freedom_curve)[record.freedom]
    )
    assert routers[0].calibration.source == record.temperature_source == "cross-validation"
    assert gains.mean() > 4 * gains.std() / np.sqrt(len(gains))


@pytest.mark.parametrize("seed", range(12))
def test_noise_teaches_nothing(seed):
    """Random labels: what is chosen is no worse on fresh questions than the means are, as far as
    60 held-out questions can tell.
    """
    groups, fresh = np.arange(60) % 6, np.arange(3000) % 6
    rng = np.random.default_rng(seed)
    questions, test = rng.standard_normal((60, 12)), rng.standard_normal((3000, 12))
    learned, means = (
        likelihood(train_heads(questions, groups, np.eye(6), method=method), test, fresh)
        for method in ("learned", "centroid")
    )
    gains = learned - means
    # 2 standard errors of a mean over 60, and 3 of one over 3,000.
    assert gains.mean() >= -gains.std() * (2 / np.sqrt(60) + 3 / np.sqrt(3000))


@pytest.mark.parametrize("heads_per_group", [1, 2])
def test_the_same_for_the_same_random_state(rng, heads_per_group, monkeypatch):
    """Bit for bit, whatever the threads; another random state deals other folds."""
    questions = np.eye(4, 8)[np.arange(80) % 4] + 0.5 * rng.standard_normal((80, 8))
    arguments = (questions, np.arange(80) % 4, np.eye(4))

    def train(random_state):
        return train_heads(*arguments, heads_per_group=heads_per_group, random_state=random_state)

    first = train(3)
    monkeypatch.setenv("HEADROUTE_NUM_THREADS", "1")
    assert train(3).to_bytes() == first.to_bytes()
    assert train(4).to_bytes() != first.to_bytes()


@pytest.mark.parametrize(
    ("counts", "d"),
    [
        ([2, 2], 4),
        ([2] * 12, 3),
        ([1, 2, 3], 4),
        ([1, 1, 1, 2], 4),
        ([3, 3, 3], 1),
        ([40, 40], 2),
    ],
    ids=["two of two", "K > d", "one to three", "one pair", "d = 1", "two groups"],
)
@pytest.mark.parametrize("method", ["centroid", "learned"])
def test_few_data(rng, counts, d, method):
    """Any number of questions trains; lone ones are counted, and the others calibrate."""
    groups = np.repeat(np.arange(len(counts)), counts)
    questions = rng.standard_normal((len(groups), d))
    router = train_heads(questions, groups, np.eye(len(counts)), method=method)
    lone = counts.count(1)
    assert router.training.lone_questions == lone
    assert router.training.questions == len(groups)
    assert len(router.calibration.scores) == len(groups) - lone
    assert np.isfinite(router.centroids).all()
    weights = router.route(questions)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=len(counts) * 2 * U)
