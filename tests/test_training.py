"""Means of groups, and the router made of them."""

import math

import numpy as np
import pytest

from headroute import HeadTrainer, train_heads
from headroute._questions import group_means


def test_means():
    vectors = [[1, 0], [10, 20], [3, 4], [5, 6]]
    means = group_means(vectors, [1, 0, 1, 2], 3)
    assert means.dtype == np.float32
    np.testing.assert_array_equal(means, [[10, 20], [2, 2], [5, 6]])


def test_sums_are_taken_in_float64():
    """In float32, 2**24 + 1 + 1 … would stay where it is."""
    vectors = np.ones((2**12 + 1, 1), np.float32)
    vectors[0] = 2**24
    mean = group_means(vectors, np.zeros(len(vectors), int), 1)
    assert mean[0, 0] == np.float32((2**24 + 2**12) / len(vectors))


def test_any_order_gives_the_same_groups(rng):
    vectors, groups = rng.standard_normal((200, 7)), np.append(rng.integers(5, size=195), range(5))
    expected = [vectors[groups == group].mean(axis=0) for group in range(5)]
    # One rounding to float32 of means below 4: half an ulp is 2**-23.
    np.testing.assert_allclose(group_means(vectors, groups, 5), expected, rtol=0, atol=2**-23)


@pytest.mark.parametrize(
    ("vectors", "groups", "n_groups", "message"),
    [
        ([[1], [2]], [0, 2], 2, "groups must be between 0 and 1, got 2"),
        ([[1], [2]], [0, -1], 2, "groups must be between 0 and 1, got -1"),
        ([[1], [2]], [0, 0], 2, "group 1 has no vectors"),
        ([[1], [2]], [0], 1, r"one group a row, got shape \(2, 1\) and 1 groups"),
        ([1, 2], [0, 0], 1, r"one group a row, got shape \(2,\) and 2 groups"),
        ([[1], [np.nan]], [0, 0], 1, "vector 1 has a NaN or infinity in it"),
        ([[1], [2]], [[0, 0]], 1, r"groups must have shape \(n,\), got \(1, 2\)"),
        (np.empty((0, 3)), [], 1, "group 0 has no vectors"),
    ],
)
def test_bad_groups(vectors, groups, n_groups, message):
    with pytest.raises(ValueError, match=message):
        group_means(vectors, groups, n_groups)


def test_wrong_kinds():
    with pytest.raises(TypeError, match="groups must be integers, got dtype float64"):
        group_means([[1], [2]], [0.0, 1.0], 2)
    with pytest.raises(TypeError, match="vectors must be real numbers, got dtype <U1"):
        group_means([["a"]], [0], 1)


def test_train_heads(backend, rng):
    questions = rng.standard_normal((30, 6))
    groups = np.arange(30) % 3
    answers = rng.standard_normal((3, 4))
    router = train_heads(
        questions,
        groups,
        answers,
        method="centroid",
        temperature=0.05,
        names=["a", "b", "c"],
        backend=backend,
    )
    np.testing.assert_array_equal(router.centroids, group_means(questions, groups, 3))
    np.testing.assert_array_equal(router.answers, answers.astype(np.float32))
    assert (router.temperature, router.names, router.backend) == (0.05, ("a", "b", "c"), backend)


def test_questions_find_their_group(backend, rng):
    """Questions around far-apart centres are routed to their own head."""
    groups = np.arange(40) % 4
    questions = 5 * np.eye(4, 16)[groups] + 0.1 * rng.standard_normal((40, 16))
    router = train_heads(questions, groups, np.eye(4), backend=backend)
    np.testing.assert_array_equal(router.top_heads(questions, 1).indices[:, 0], groups)


@pytest.mark.parametrize("answers", [np.ones(3), np.ones((0, 3))])
def test_bad_answers(answers):
    with pytest.raises(ValueError, match=r"answers must be a \(G, e\) array with a row a group"):
        train_heads([[1, 2]], [0], answers)


# ---- bad input: one clear error, with the value, before any training

QUESTIONS = np.arange(1, 13).reshape(6, 2) % 7
GROUPS = np.arange(6) % 3
ANSWERS = np.eye(3)


def changed(array, place, value):
    result = np.array(array, float)
    result[place] = value
    return result


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": GROUPS + 1}, ValueError, "groups must be between 0 and 2, got 3"),
        ({"groups": GROUPS - 1}, ValueError, "groups must be between 0 and 2, got -1"),
        ({"groups": GROUPS % 2}, ValueError, "group 2 has no questions"),
        ({"groups": GROUPS[:5]}, ValueError, r"got shape \(6, 2\) and 5 groups"),
        ({"groups": GROUPS / 1}, TypeError, "groups must be integers, got dtype float64"),
        ({"groups": GROUPS > 0}, TypeError, "groups must be integers, got dtype bool"),
        (
            {"groups": GROUPS[np.newaxis]},
            ValueError,
            r"groups must have shape \(n,\), got \(1, 6\)",
        ),
        ({"groups": [0] * 6, "answers": [[1]]}, ValueError, "needs at least two groups, got 1"),
        ({"questions": np.empty((0, 2)), "groups": []}, ValueError, "group 0 has no questions"),
        ({"questions": np.empty((6, 0))}, ValueError, r"at least one column, got shape \(6, 0\)"),
        ({"questions": np.ones(6)}, ValueError, r"got shape \(6,\) and 6 groups"),
        ({"questions": [["a"]] * 6}, TypeError, "questions must be real numbers, got dtype <U1"),
        ({"questions": QUESTIONS * 1j}, TypeError, "real numbers, got dtype complex128"),
        ({"questions": changed(QUESTIONS, 4, math.nan)}, ValueError, "question 4 has a NaN"),
        (
            {"questions": changed(QUESTIONS, 3, -math.inf)},
            ValueError,
            "question 3 has a NaN or inf",
        ),
        (
            {"questions": changed(QUESTIONS, 5, -1e200)},
            ValueError,
            r"question 5 has 1e\+200 in it, more than float32 holds",
        ),
        ({"answers": changed(ANSWERS, 2, math.nan)}, ValueError, "head 2 has a NaN"),
        ({"answers": changed(ANSWERS, 1, 1e200)}, ValueError, r"head 1 has 1e\+200 in its answer"),
        ({"answers": np.empty((3, 0))}, ValueError, r"at least one column, got shape \(3, 0\)"),
        ({"answers": [["a"]] * 3}, TypeError, "answers must be real numbers, got dtype <U1"),
        ({"names": ["a", "b"]}, ValueError, "2 names for 3 heads or groups"),
        ({"names": "abc"}, TypeError, "names must be a sequence of str, got 'abc'"),
        ({"backend": "abacus"}, ValueError, "backend 'abacus' cannot be used"),
        ({"method": "x"}, ValueError, "method must be one of centroid, learned, got 'x'"),
        ({"heads_per_group": 0}, ValueError, "heads_per_group must be at least 1, got 0"),
        ({"heads_per_group": 1.5}, TypeError, r"heads_per_group must be an integer, got 1\.5"),
        ({"heads_per_group": "many"}, TypeError, "heads_per_group must be an integer, got 'many'"),
        ({"heads_per_group": True}, TypeError, "heads_per_group must be an integer, got True"),
        ({"temperature": 0}, ValueError, r"temperature must be a positive, .* number, got 0\.0"),
        ({"temperature": math.nan}, ValueError, "temperature must be a positive, .*, got nan"),
        ({"temperature": "x"}, TypeError, "temperature must be a number, got 'x'"),
        ({"temperature": np.ones(2)}, TypeError, r"temperature must be a number, got array"),
        ({"random_state": "x"}, TypeError, "random_state must be None or an integer, got 'x'"),
        ({"random_state": 1.5}, TypeError, r"random_state must be None or an integer, got 1\.5"),
        ({"random_state": -1}, ValueError, "random_state must be at least 0, got -1"),
    ],
)
def test_bad_input(monkeypatch, arguments, error, message):
    def too_late(*_):
        raise AssertionError("training had begun")

    monkeypatch.setattr("headroute.training.merge_twins", too_late)
    arguments = {"questions": QUESTIONS, "groups": GROUPS, "answers": ANSWERS} | arguments
    with pytest.raises(error, match=message):
        train_heads(**arguments)


@pytest.mark.parametrize("method", ["centroid", "learned"])
@pytest.mark.parametrize("zero", [[[1, 2], [-1, -2]], [[0, 0], [0, 0]]], ids=["opposite", "zero"])
def test_questions_that_sum_to_zero(zero, method):
    """A group of them has no direction; the error names it."""
    questions = QUESTIONS.copy()
    questions[GROUPS == 1] = zero
    with pytest.raises(ValueError, match="the questions of group 1 sum to zero"):
        train_heads(questions, GROUPS, ANSWERS, method=method)


# ---- input of every kind


@pytest.mark.parametrize(
    "change",
    [
        np.float32,
        np.float64,
        np.float16,
        np.int16,
        np.asfortranarray,
        np.ndarray.tolist,
        lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
        lambda rows: np.broadcast_to(rows, rows.shape),  # read-only
        lambda rows: rows.astype(">f8"),
    ],
    ids=["f4", "f8", "f2", "i2", "Fortran", "list", "strided", "read-only", "big-endian"],
)
@pytest.mark.parametrize("heads_per_group", [1, 2])
def test_the_same_numbers_train_the_same(rng, change, heads_per_group):
    """Whole numbers, which every type holds: the router's bits do not depend on the type."""
    questions = rng.integers(-20, 20, (30, 5))
    groups, answers = np.arange(30) % 3, rng.integers(0, 9, (3, 4))
    expected, router = (
        train_heads(rows, groups, answers, heads_per_group=heads_per_group)
        for rows in (questions, change(questions))
    )
    assert router.to_bytes() == expected.to_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [-90, 99, 101, 120])
@pytest.mark.parametrize("method", ["centroid", "learned"])
def test_scale_does_not_matter(rng, dtype, exponent, method):
    """Questions times a power of two, about 1e30 and beyond, give the same heads times that."""
    questions = rng.standard_normal((30, 5)).astype(np.float32).astype(dtype)
    questions[::4] /= 8
    groups = np.arange(30) % 3
    expected, router = (
        train_heads(rows, groups, ANSWERS, method=method)
        for rows in (questions, questions * dtype(2.0**exponent))
    )
    assert router.temperature == expected.temperature
    assert router.training.freedom == expected.training.freedom
    scale = 1 if router.training.freedom else np.float32(2.0**exponent)
    np.testing.assert_array_equal(router.centroids, expected.centroids * scale)


def test_a_trainer_does_not_scale_questions_either():
    """A long question next to a short one: the mean is that of the two."""
    trainer = HeadTrainer(method="centroid")
    trainer.add_group("a", [1], [[2.0**110, 0], [0, 2.0**90]]).add_group("b", [1], [[-1.0, -1]])
    np.testing.assert_array_equal(trainer.router().centroids[0], [2.0**109, 2.0**89])
    with pytest.raises(ValueError, match=r"question 0 has 1e\+99 in it, more than float32 holds"):
        trainer.partial_fit([[1e99, 0]], ["a"])


def test_options_may_be_numpys(rng):
    """A router trained with NumPy's numbers can be saved."""
    numbers = {"heads_per_group": np.int8(2), "temperature": np.float32(0.5)}
    arguments = (rng.standard_normal((30, 5)), np.arange(30) % 3, ANSWERS)
    router = train_heads(*arguments, random_state=np.int64(3), **numbers)
    expected = train_heads(*arguments, random_state=3, heads_per_group=2, temperature=0.5)
    assert router.to_bytes() == expected.to_bytes()


def test_answers_of_another_dimension(rng):
    """e need not be d, with one head a group and with several."""
    questions = rng.standard_normal((30, 5))
    for e in (1, 17):
        answers = rng.standard_normal((3, e)).astype(np.float32)
        router = train_heads(questions, np.arange(30) % 3, answers, heads_per_group=2)
        np.testing.assert_array_equal(router.answers, answers[router.groups])


# ---- what could not be estimated


def test_lone_questions_say_nothing_of_the_temperature(rng):
    """One question a group trains, at the chapter's temperature and with a warning."""
    questions = rng.standard_normal((3, 5)).astype(np.float32)
    with pytest.warns(UserWarning, match="no group has two questions of its own: the temperature"):
        router = train_heads(questions, range(3), ANSWERS)
    record = router.training
    assert (router.temperature, record.temperature_source) == (0.1, "default")
    assert (record.lone_questions, record.temperature_curve, record.freedom) == (3, (), None)
    assert router.calibration is None
    np.testing.assert_array_equal(router.centroids, questions)


def test_two_questions_a_group(rng):
    """Enough to leave one out: nothing is said to be missing."""
    questions = rng.standard_normal((6, 5))
    router = train_heads(questions, np.arange(6) % 3, ANSWERS)
    assert router.training.temperature_source in ("leave-one-out", "cross-validation")
    assert router.training.lone_questions == 0
    assert len(router.calibration.scores) == 6


def test_a_given_temperature_is_kept(rng):
    """And what it would have been is there to see."""
    router = train_heads(rng.standard_normal((9, 5)), np.arange(9) % 3, ANSWERS, temperature=0.33)
    assert (router.temperature, router.training.temperature_source) == (0.33, "given")
    assert len(router.training.temperature_curve) == 30


def test_zero_questions(rng):
    """A question without a direction trains: it counts in the mean, and is equally far from all."""
    questions = rng.standard_normal((12, 5))
    questions[4] = 0
    router = train_heads(questions, np.arange(12) % 3, ANSWERS)
    centroid = train_heads(questions, np.arange(12) % 3, ANSWERS, method="centroid").centroids[1]
    # Questions and means below 4 are rounded to float32: half an ulp is 2**-23.
    np.testing.assert_allclose(centroid, questions[1::3].mean(axis=0), rtol=0, atol=2 * 2**-23)
    assert np.isfinite([value for _, value in router.training.temperature_curve]).all()
    assert len(router.calibration.scores) == 12


# ---- the same question in several groups


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_shared_question_is_reported(rng, zero):
    """It belongs to both heads, and nothing is estimated from it; -0 is 0."""
    questions = rng.standard_normal((12, 5)).astype(np.float32)
    questions[0, 0] = 0
    questions = np.concatenate([questions, questions[:1]])
    questions[12, 0] = zero
    groups = np.append(np.arange(12) % 3, 1)
    with pytest.warns(UserWarning, match="^2 questions are in more than one group"):
        router = train_heads(questions, groups, ANSWERS, method="centroid")
    assert router.training.shared_questions == 2
    assert len(router.calibration.scores) == 11
    np.testing.assert_array_equal(router.centroids, group_means(questions, groups, 3))


@pytest.mark.filterwarnings("ignore:.*more than one group")
def test_twins_share_a_head(rng):
    """Groups of the same questions, in any order and number, are one to what is estimated."""
    questions = rng.standard_normal((9, 5)).astype(np.float32)
    twins = np.concatenate([questions, questions[[2, 0, 1, 1]]])
    groups = np.append(np.repeat([0, 1, 2], 3), [3] * 4)
    router = train_heads(twins, groups, np.eye(4), method="centroid")
    expected = train_heads(questions, groups[:9], ANSWERS, method="centroid")
    np.testing.assert_array_equal(router.centroids, expected.centroids[[0, 1, 2, 0]])
    assert router.temperature == expected.temperature
    assert router.training.temperature_curve == expected.training.temperature_curve
    assert router.training.shared_questions == 7


@pytest.mark.filterwarnings("ignore:.*more than one group")
@pytest.mark.filterwarnings("ignore:no group has two questions")
def test_a_group_of_everything_merges_nothing():
    """A part is not its whole: questions of small groups that a large one has too stay apart."""
    questions = np.concatenate([np.eye(5), np.eye(5)])
    router = train_heads(questions, [0, 1, 2, 3, 4] + [5] * 5, np.eye(6))
    np.testing.assert_array_equal(router.predict(np.eye(5)).group, np.arange(5))


@pytest.mark.filterwarnings("ignore:.*more than one group")
def test_twins_alone(rng):
    """Two groups of the same questions: nothing tells them apart, and nothing can be estimated."""
    questions = np.tile(rng.standard_normal((3, 5)), (2, 1))
    with pytest.warns(UserWarning, match="the temperature is the default"):
        router = train_heads(questions, np.repeat([0, 1], 3), np.eye(2))
    np.testing.assert_array_equal(*router.centroids)
    assert router.calibration is None


@pytest.mark.parametrize("heads_per_group", [2, 3, "auto"])
def test_questions_of_zeros_have_no_head_of_their_own(heads_per_group, rng):
    questions = np.eye(3, 6).repeat(12, axis=0) + 0.1 * rng.standard_normal((36, 6))
    questions[:6] = 0
    router = train_heads(questions, np.arange(36) // 12, np.eye(3), heads_per_group=heads_per_group)
    assert router.centroids.any(axis=1).all()
    np.testing.assert_array_equal(router.predict(questions[6:]).group, np.arange(6, 36) // 12)


@pytest.mark.parametrize("method", ["centroid", "learned"])
def test_a_group_that_sums_to_zero_is_named(method, rng):
    questions = rng.standard_normal((12, 6))
    questions[4:6] = -questions[6:8]
    with pytest.raises(ValueError, match="questions of group 1 sum to zero"):
        train_heads(questions, np.arange(12) // 4, np.eye(3), method=method)
