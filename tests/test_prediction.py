"""Groups, scores and refusals, against their definitions in float64."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from accuracy import U, weight_error
from safetensors.numpy import save_file

from headroute import Calibration, Router, train_heads
from headroute.prediction import SCORES, margins

D = 6
ONE_HEAD_EACH = list(range(7))
SEVERAL_HEADS = [2, 0, 1, 1, 0, 3, 1]  # in no order


def heads(rng, n_heads=7):
    return rng.standard_normal((n_heads, D)).astype(np.float32)


def calibration(score, typical=None, scores=(0.0,)):
    return Calibration(score, "held-out", np.array(scores, np.float32), typical)


def exact(queries, router):
    """Logits (n, K) and weights of groups (n, G)."""
    q, c = queries.astype(np.float64), router.centroids.astype(np.float64)
    lengths = np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(c, axis=1))
    logits = q @ c.T / lengths / router.temperature
    weights = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, np.newaxis])
    of_groups = np.stack(
        [weights[:, router.groups == g].sum(axis=1) for g in range(router.n_groups)], axis=1
    )
    return logits, of_groups


def definition(score, queries, router, typical):
    """Scores (n,)."""
    tau = router.temperature
    logits, of_groups = exact(queries, router)
    if score == "best_cosine":
        return logits.max(axis=1) * tau
    if score == "margin":
        second, first = np.sort(of_groups, axis=1)[:, -2:].T
        return first - second
    if score == "relative":
        expected = np.maximum(typical.astype(np.float64), typical.max() - 120 * tau)
        logits = logits - expected / 2 / tau
    return np.logaddexp.reduce(logits, axis=1)


@pytest.mark.parametrize("groups", [ONE_HEAD_EACH, SEVERAL_HEADS], ids=["one head", "several"])
@pytest.mark.parametrize("temperature", [1e-3, 0.02, 0.1, 2, 100])
@pytest.mark.parametrize("score", SCORES)
def test_scores(backend, rng, score, temperature, groups):
    typical = np.linspace(0.3, 0.9, 7).astype(np.float32)
    router = Router(
        heads(rng),
        np.eye(7),
        temperature=temperature,
        groups=groups,
        backend=backend,
        calibration=calibration(score, typical),
    )
    queries = rng.standard_normal((300, D)).astype(np.float32)
    found = router.predict(queries)
    assert found.score.dtype == np.float32
    expected = definition(score, queries, router, typical)
    # The relative error of a weight; for a sum, of at most K weights that are rounded once more.
    weight = weight_error(D, 7, temperature) + 7 * U
    tolerance = {
        # Heads that float32 has as equally heavy may be taken for each other.
        "best_cosine": -temperature * math.log1p(-2 * weight),
        "margin": weight,  # times the sum of two weights, at most 1
        "log_partition": -math.log1p(-weight),
        # And heads of less than e**-87 that count up to e**60 times as much.
        "relative": -math.log1p(-weight) + 7 * math.exp(60 - 87),
    }[score]
    np.testing.assert_allclose(found.score, expected, rtol=U, atol=tolerance + 2.0**-125)
    _, of_groups = exact(queries, router)
    second, first = np.sort(of_groups, axis=1)[:, -2:].T
    clear = first - second > 2 * weight
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.group[clear], of_groups.argmax(axis=1)[clear])
    assert not found.abstained.any()


def test_without_a_calibration_the_score_is_the_best_cosine(router, rng):
    queries = rng.standard_normal((20, D))
    expected = definition("best_cosine", queries, router, None)
    atol = -0.1 * math.log1p(-2 * weight_error(D, 10, 0.1))
    np.testing.assert_allclose(router.predict(queries).score, expected, rtol=U, atol=atol)


def test_margins_of_many_groups(rng):
    """The two largest of a row, wherever they are; one group has no rival."""
    weights = rng.random((50, 5000)).astype(np.float32)
    second, first = np.sort(weights.astype(np.float64), axis=1)[:, -2:].T
    np.testing.assert_array_equal(margins(weights), first - second)
    np.testing.assert_array_equal(margins(weights[:, :1]), 1)


def test_one_query_and_none(router, rng):
    """The shapes are those of the queries."""
    query = rng.standard_normal(D)
    one, many = router.predict(query), router.predict(query[np.newaxis])
    for single, rows in zip(one, many, strict=True):
        assert single.shape == ()
        assert single == rows[0]
    for nothing in router.predict(np.empty((0, D))):
        assert nothing.shape == (0,)


@pytest.mark.parametrize(
    ("dtype", "length"),
    [
        ("f2", "64"),
        (">f4", "1e30"),
        ("f8", "1e200"),
        ("f8", "1e-200"),
        ("i2", "1"),
        ("g", "1e4000"),
    ],
)
def test_every_kind_of_query(backend, rng, dtype, length):
    """Only its direction counts, also of a query that no other type could hold."""
    queries = rng.integers(-9, 10, (20, D))
    with np.errstate(over="ignore"):
        scaled = queries.astype(dtype) * np.dtype(dtype).type(length)
    if not np.isfinite(scaled).all():
        pytest.skip("this machine has no longer double")
    router = Router(heads(rng), np.eye(7), backend=backend)
    expected = definition("best_cosine", queries, router, None)
    # As above, and a rounding of each column.
    atol = -0.1 * math.log1p(-2 * weight_error(D, 7, 0.1)) + 2 * U
    np.testing.assert_allclose(router.predict(scaled).score, expected, rtol=0, atol=atol)


def test_blocks_are_put_together(router, rng, monkeypatch):
    """Many blocks of queries are judged as one; a bad one is named by its place among all."""
    queries = rng.standard_normal((50, D)).astype(np.float32)
    whole = router.predict(queries)
    monkeypatch.setattr("headroute.prediction._BLOCK_BYTES", 4 * 10 * 7)
    blocks = router.predict(queries)
    np.testing.assert_array_equal(blocks.group, whole.group)
    np.testing.assert_allclose(blocks.score, whole.score, rtol=0, atol=U)
    queries[33, 2] = np.nan
    with pytest.raises(ValueError, match="query 33 has a NaN or infinity in it"):
        router.predict(queries)


# ---- the level


@pytest.mark.parametrize("m", [9, 19, 99])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("score", ["best_cosine", "log_partition", "relative"])
def test_a_level_holds_in_finite_samples(backend, rng, score, alpha, m):
    """A fresh query is refused with a probability of ⌊α(m + 1)⌋ / (m + 1), whatever m is."""
    trained = Router(
        heads(rng),
        np.eye(7),
        backend=backend,
        calibration=calibration(score, np.linspace(0.3, 0.9, 7).astype(np.float32)),
    )
    splits, fresh = 40, 100
    refused = 0
    for _ in range(splits):
        queries = rng.standard_normal((m + fresh, D)).astype(np.float32)
        router = trained.calibrate(queries[:m])
        refused += router.predict(queries[m:], abstain=alpha).abstained.sum()
    place = math.floor(alpha * (m + 1) + 1e-9)
    p = place / (m + 1)
    # The refused of a split are beta-binomial: thresholds vary, and so does what is below them.
    deviation = math.sqrt(p * (1 - p) * (m + 1 + fresh) / (m + 2) / fresh / splits)
    assert refused / splits / fresh == pytest.approx(p, rel=0, abs=4 * deviation)
    assert p <= alpha


def ramp(m):
    """A calibration of scores 1, 2, …, m."""
    return calibration("best_cosine", scores=np.arange(1, m + 1))


@pytest.mark.parametrize(
    ("m", "alpha", "threshold"),
    [
        (9, 0.0999, -math.inf),
        (9, 0.1, 1),
        (9, 0.2, 2),
        (99, 0.07, 7),
        (99, 0.29, 29),
        (1, 0.49, -math.inf),
        (1, 0.5, 1),
        (10, 1 - 1e-3, 10),
        (10, 1 - 1e-12, 10),
        (100_000, 1e-5, 1),
    ],
)
def test_thresholds(m, alpha, threshold):
    """The ⌊α(m + 1)⌋-th smallest score, none for less than the first, and no more than the last."""
    assert ramp(m).threshold(alpha) == threshold


def test_too_few_scores_refuse_nothing(router, rng):
    """A level below 1 / (m + 1) cannot be kept but by answering all."""
    calibrated = router.calibrate(rng.standard_normal((9, D)))
    far = -calibrated.centroids.sum(axis=0)
    assert not calibrated.predict(far, abstain=0.09).abstained
    assert calibrated.predict(far, abstain=0.1).abstained == (
        calibrated.predict(far).score < calibrated.calibration.scores[0]
    )


def test_ties_are_answered(router, rng):
    """A query as good as the threshold is not below it."""
    query = rng.standard_normal(D).astype(np.float32)
    calibrated = router.calibrate(np.tile(query, (10, 1)))
    for alpha in (0.1, 0.5, 0.99):
        assert calibrated.calibration.threshold(alpha) == calibrated.predict(query).score
        assert not calibrated.predict(query, abstain=alpha).abstained


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (0, ValueError, "abstain must be above 0 and below 1, got 0"),
        (1, ValueError, "abstain must be above 0 and below 1, got 1"),
        (-0.1, ValueError, "abstain must be above 0 and below 1, got -0.1"),
        (math.nan, ValueError, "abstain must be above 0 and below 1, got nan"),
        ("0.1", TypeError, "abstain must be a number, got '0.1'"),
        (True, TypeError, "abstain must be a number, got True"),
    ],
)
def test_bad_levels(router, rng, alpha, error, message):
    calibrated = router.calibrate(rng.standard_normal((9, D)))
    with pytest.raises(error, match=message):
        calibrated.predict(np.ones(D), abstain=alpha)


def test_what_cannot_be_calibrated(router):
    """Levels without scores, scores without queries, and scores that only training knows."""
    with pytest.raises(ValueError, match=r"abstain=0\.1 needs scores of in-scope queries"):
        router.predict(np.ones(D), abstain=0.1)
    with pytest.raises(ValueError, match=r"\(m, d\) queries, m >= 1, got shape \(0, 6\)"):
        router.calibrate(np.empty((0, D)))
    with pytest.raises(ValueError, match=r"\(m, d\) queries, m >= 1, got shape \(6,\)"):
        router.calibrate(np.ones(D))
    with pytest.raises(ValueError, match=r"score must be one of .*, got 'entropy'"):
        router.calibrate(np.ones((2, D)), score="entropy")
    with pytest.raises(ValueError, match="score='relative' is only known to routers"):
        router.calibrate(np.ones((2, D)), score="relative")
    with pytest.raises(ValueError, match="query 1 has a NaN"):
        router.calibrate([[1] * D, [math.nan] * D])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("entropy", "x", np.zeros(1)), "score must be one of .*, got 'entropy'"),
        (("margin", "x", np.zeros(0)), "needs scores"),
        (("margin", "x", np.zeros((1, 1))), "needs scores"),
        (("margin", "x", np.array([2.0, 1.0])), "needs scores"),
        (("margin", "x", np.array([1.0, math.nan])), "needs scores"),
        (("relative", "x", np.zeros(1)), "'relative' needs typical cosines"),
    ],
)
def test_what_is_no_calibration(arguments, message):
    with pytest.raises(ValueError, match=message):
        Calibration(*arguments)


def test_typical_cosines_are_those_of_the_heads(rng):
    with pytest.raises(ValueError, match=r"7 heads but typical cosines of shape \(6,\)"):
        Router(heads(rng), np.eye(7), calibration=calibration("relative", np.zeros(6)))


# ---- keeping


def test_calibrate_keeps_the_heads(router, rng):
    """The heads are not packed again, all calls give the same bits, and the original stays."""
    queries = rng.standard_normal((40, D)).astype(np.float32)
    weights, before = router.route(queries), router.predict(queries)
    calibrated = router.calibrate(queries, score="margin")
    assert router.calibration is None
    assert calibrated.calibration.score == "margin"
    assert np.shares_memory(calibrated.centroids, router.centroids)
    np.testing.assert_array_equal(calibrated.route(queries), weights)
    np.testing.assert_array_equal(calibrated.project(queries), router.project(queries))
    np.testing.assert_array_equal(calibrated.predict(queries).group, before.group)
    np.testing.assert_array_equal(router.predict(queries).score, before.score)
    again = calibrated.calibrate(queries[:10])
    assert (again.calibration.score, len(again.calibration.scores)) == ("margin", 10)
    assert len(calibrated.calibration.scores) == 40


def load(router, folder):
    router.save(folder / "router")
    return Router.load(folder / "router", backend=router.backend)


COPIES = {
    "file": load,
    "pickle": lambda router, _: pickle.loads(pickle.dumps(router)),
    "deepcopy": lambda router, _: copy.deepcopy(router),
}


def assert_same(one, other, queries):
    np.testing.assert_array_equal(one.groups, other.groups)
    assert (one.names, one.training) == (other.names, other.training)
    assert one.calibration.score == other.calibration.score
    assert one.calibration.source == other.calibration.source
    np.testing.assert_array_equal(one.calibration.scores, other.calibration.scores)
    for mine, yours in zip(
        one.predict(queries, abstain=0.2), other.predict(queries, abstain=0.2), strict=True
    ):
        np.testing.assert_array_equal(mine, yours)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("score", SCORES)
def test_copies_of_what_was_trained(rng, tmp_path, copied, score, monkeypatch):
    """Groups, calibration and training, by every way to keep a router."""
    monkeypatch.setattr("headroute.abstention.SCORES", (score,))
    questions, groups = rng.standard_normal((40, D)), np.arange(40) % 4
    router = train_heads(questions, groups, np.eye(4), heads_per_group=2)
    assert (router.calibration.score, router.n_heads) == (score, 8)
    assert_same(COPIES[copied](router, tmp_path), router, questions)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("groups", [SEVERAL_HEADS, [6, 5, 4, 3, 2, 1, 0]], ids=["several", "one"])
def test_copies_keep_groups_in_any_order(backend, rng, tmp_path, copied, groups):
    """Also when no group has several heads, but head k is not group k."""
    router = Router(heads(rng), np.eye(7), groups=groups, backend=backend)
    queries = rng.standard_normal((20, D))
    router = router.calibrate(queries)
    assert_same(COPIES[copied](router, tmp_path), router, queries)


def test_a_file_of_heads_alone(tmp_path, rng):
    """Files from before groups and calibrations load, and cannot abstain."""
    facts = {"version": 1, "temperature": 0.1, "names": list("abcdefg")}
    tensors = {"centroids": heads(rng), "answers": np.eye(7, dtype=np.float32)}
    save_file(tensors, tmp_path / "router", {"headroute-router": json.dumps(facts)})
    router = Router.load(tmp_path / "router")
    np.testing.assert_array_equal(router.groups, np.arange(7))
    assert router.calibration is router.training is None
    with pytest.raises(ValueError, match="needs scores"):
        router.predict(np.ones(D), abstain=0.1)


def test_a_damaged_calibration_is_no_router(tmp_path, rng):
    """What is in a file is checked: scores in another order would give other thresholds."""
    facts = {"version": 1, "temperature": 0.1, "names": list("abcdefg")}
    facts |= {"score": "margin", "calibrated": "held-out"}
    tensors = {"centroids": heads(rng), "answers": np.eye(7, dtype=np.float32)}
    tensors["calibration"] = np.array([2, 1], np.float32)
    save_file(tensors, tmp_path / "router", {"headroute-router": json.dumps(facts)})
    with pytest.raises(ValueError, match="is not a router's file: a calibration needs scores"):
        Router.load(tmp_path / "router")
