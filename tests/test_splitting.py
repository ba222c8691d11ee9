"""Several heads for groups whose questions fall apart, and one for those whose do not."""

import numpy as np
import pytest
from accuracy import U

from headroute import train_heads
from headroute._questions import questions_of
from headroute.splitting import cluster, split_groups

D = 16


@pytest.fixture
def data(rng):
    """Group 1 is about two things, far apart; groups 0 and 2 about one each."""
    centres = np.eye(4, D)[np.repeat([0, 1, 2, 3], 40)]
    questions = centres + 0.15 * rng.standard_normal((160, D))
    return questions.astype(np.float32), np.repeat([0, 1, 1, 2], 40)


@pytest.mark.parametrize("method", ["centroid", "learned"])
def test_auto(data, method):
    """A head for each thing that a group is about, so that the group is likelier than with one."""
    questions, groups = data
    router = train_heads(questions, groups, np.eye(3), heads_per_group="auto", method=method)
    np.testing.assert_array_equal(router.groups, [0, 1, 1, 2])
    np.testing.assert_array_equal(router.answers, np.eye(3)[[0, 1, 1, 2]])
    one = train_heads(questions, groups, np.eye(3), method=method)
    # Both are perfect at low temperatures.
    two_heads, one_head = (dict(r.training.temperature_curve)[0.5] for r in (router, one))
    assert two_heads > one_head


def test_the_heads_are_the_means_of_the_things(data):
    """k-means puts every question of a thing in the same head."""
    questions, groups = data
    router = train_heads(questions, groups, np.eye(3), heads_per_group="auto", method="centroid")
    # Clusters are those of the directions, means those of the questions as they are.
    means = questions.astype(np.float64).reshape(4, 40, D).mean(axis=1)
    middle = sorted(router.centroids[1:3].tolist(), key=lambda row: -row[1])
    expected = [means[0], *means[1:3], means[3]]
    actual = [router.centroids[0], *middle, router.centroids[3]]
    np.testing.assert_allclose(actual, expected, rtol=U, atol=0)


def test_compact_groups_keep_one_head(rng):
    """Under "auto", noise around one centre is not split."""
    groups = np.arange(200) % 5
    questions = np.eye(5, D)[groups] + 0.2 * rng.standard_normal((200, D))
    router = train_heads(questions, groups, np.eye(5), heads_per_group="auto")
    np.testing.assert_array_equal(router.groups, np.arange(5))


def test_names_and_predictions_are_of_groups(backend, data):
    """A group has one name, and its weight is the sum of its heads' weights."""
    questions, groups = data
    router = train_heads(
        questions, groups, np.eye(3), heads_per_group=2, names=["a", "b", "c"], backend=backend
    )
    np.testing.assert_array_equal(router.groups, [0, 0, 1, 1, 2, 2])
    assert router.names == ("a", "b", "c")
    assert (router.n_groups, router.n_heads) == (3, 6)
    np.testing.assert_array_equal(router.predict(questions).group, groups)
    weights = router.route(questions).astype(np.float64)
    expected = np.add.reduceat(weights, [0, 2, 4], axis=1)
    np.testing.assert_allclose(router.route_groups(questions), expected, rtol=U, atol=0)


@pytest.mark.parametrize("number", [2, 5, 1000])
def test_no_more_heads_than_different_questions(rng, number):
    """Duplicates are one question: three different rows make three heads at most."""
    questions = np.repeat(rng.standard_normal((6, D)), 4, axis=0)
    groups = np.repeat([0, 1], 12)
    router = train_heads(
        questions, groups, np.eye(2), heads_per_group=number, method="centroid", temperature=0.1
    )
    np.testing.assert_array_equal(np.bincount(router.groups), [min(3, number)] * 2)


def test_rows_that_differ_in_their_last_bits(rng):
    """They may be taken for the same, without a warning; labels have no gaps."""
    row = rng.standard_normal(D).astype(np.float32)
    rows = np.stack([row, np.nextafter(row, np.float32(9)), np.nextafter(row, np.float32(-9)), row])
    labels = cluster(rows, 3, rng)
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert labels[0] == labels[3]


def test_lengths_do_not_matter(data, rng):
    """Clusters are of directions: questions of other lengths fall apart in the same way."""
    questions, groups = data
    longer = questions * rng.uniform(0.1, 10, (160, 1)).astype(np.float32)
    heads, heads_of_longer = (
        split_groups(questions_of(rows, groups, 3), 2, 0.1, np.random.default_rng(0))[0]
        for rows in (questions, longer)
    )
    np.testing.assert_array_equal(heads[40:120], heads_of_longer[40:120])
    assert len(np.unique(heads[40:80])) == len(np.unique(heads[80:120])) == 1


def test_a_group_that_sums_to_zero_has_two_heads(rng):
    """Opposite questions have no direction in common, and one each."""
    questions = rng.standard_normal((8, D))
    questions[1] = -questions[0]
    groups = [0, 0, 1, 1, 1, 2, 2, 2]
    router = train_heads(questions, groups, np.eye(3), heads_per_group=2, temperature=0.1)
    assert np.bincount(router.groups)[0] == 2
    np.testing.assert_array_equal(router.predict(questions[:2]).group, [0, 0])


def test_lone_questions(rng):
    """Groups of one question have one head, whatever is asked for."""
    questions, groups = rng.standard_normal((9, D)), np.array([0, 1, 1, 1, 1, 2, 2, 2, 2])
    for number in (3, "auto"):
        router = train_heads(questions, groups, np.eye(3), heads_per_group=number)
        assert np.bincount(router.groups)[0] == 1
        assert router.training.lone_questions == 1
