"""Means of groups, and the router made of them."""

import numpy as np
import pytest

from headroute import train_heads
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
