"""Ranks, recall and MRR on examples that can be worked out by hand."""

import math

import numpy as np
import pytest

from headroute import Router, evaluation
from headroute.evaluation import Metrics, compare, first_relevant_ranks, mrr_at_k, recall_at_k


def at(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_ranks_by_cosine():
    candidates = at(0, 30, 60, 90) * [[1], [100], [0.01], [5]]  # lengths do not matter
    owners = [7, 3, 3, 9]
    assert first_relevant_ranks(at(0, 0, 0, 50), candidates, owners, [7, 3, 9, 7]).tolist() == [
        1,
        2,
        4,
        4,
    ]


def test_ties_count_against_us():
    candidates = np.array([[1, 0], [1, 0], [2, 0], [0, 1]])
    assert first_relevant_ranks([[1, 0]], candidates, [0, 1, 2, 0], [0]).tolist() == [3]


def test_ties_that_rounding_tells_apart(rng):
    """The same answer under two groups is a tie, wherever the matrix product puts it."""
    answer = rng.standard_normal((1, 384))
    candidates = np.concatenate([rng.standard_normal((36, 384)), answer, answer * 3])
    owners = np.arange(38)
    ranks = first_relevant_ranks(answer + 0.1, candidates, owners, [36])
    assert (
        ranks.tolist()
        == first_relevant_ranks(answer + 0.1, candidates, owners, [37]).tolist()
        == [2]
    )


def test_own_candidates_are_not_competitors():
    candidates = at(0, 1, 2, 3)
    assert first_relevant_ranks(at(0), candidates, [5, 5, 5, 6], [5]).tolist() == [1]


def test_blocks_change_nothing(rng, monkeypatch):
    queries, candidates = rng.standard_normal((50, 8)), rng.standard_normal((40, 8))
    owners, groups = np.arange(40) % 9, np.arange(50) % 9
    whole = first_relevant_ranks(queries, candidates, owners, groups)
    monkeypatch.setattr(evaluation, "_BLOCK_BYTES", 7 * 8 * 40)
    np.testing.assert_array_equal(first_relevant_ranks(queries, candidates, owners, groups), whole)


def test_figures():
    ranks = [1, 2, 5, 6, 10, 11]
    assert recall_at_k(ranks, 1) == 1 / 6
    assert recall_at_k(ranks, 5) == 3 / 6
    assert math.isclose(mrr_at_k(ranks), (1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 10) / 6)
    assert math.isclose(mrr_at_k(ranks, k=2), 1.5 / 6)


@pytest.mark.parametrize("function", [recall_at_k, mrr_at_k])
def test_bad_figures(function):
    with pytest.raises(ValueError, match="ranks must be"):
        function([], 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        function([1], 0)


@pytest.mark.parametrize(
    ("queries", "candidates", "owners", "groups", "message"),
    [
        (at(0), np.ones((2, 3)), [0, 1], [0], "queries have 2 columns, candidates 3"),
        (at(0), at(0, 1), [0, 1], [2], "query 0 belongs to group 2, which has no candidate"),
        (at(0), at(0, 1), [0], [0], "every row needs one group: 1 queries and 1 groups, 2 cand"),
        (at(0), at(0), [0], [0, 0], "every row needs one group: 1 queries and 2 groups, 1 cand"),
        (at(0), np.full((1, 2), np.nan), [0], [0], "row 0 of candidates has a NaN or infinity"),
        (np.ones(2), at(0), [0], [0], r"queries must be two-dimensional, got shape \(2,\)"),
    ],
)
def test_bad_input(queries, candidates, owners, groups, message):
    with pytest.raises(ValueError, match=message):
        first_relevant_ranks(queries, candidates, owners, groups)


def test_compare(backend):
    """Answers lie a quarter turn from their questions, which only routing can know."""
    router = Router(at(0, 90, 180), at(90, 180, 270), temperature=0.01, backend=backend)
    queries, groups = at(5, 95, 175), [0, 1, 2]
    comparison = compare(router, queries, groups, at(90, 180, 270), [0, 1, 2])
    assert comparison.routing == Metrics(1.0, 1.0, 1.0, 3)
    assert comparison.routing_ranks.tolist() == [1, 1, 1]
    assert comparison.direct_ranks.tolist() == [1, 2, 3]
    assert comparison.direct == Metrics(1 / 3, 1.0, np.mean([1, 1 / 2, 1 / 3]), 3)
    hot = compare(router, queries, groups, at(90, 180, 270), [0, 1, 2], temperature=1e9)
    assert hot.routing.recall_at_1 < 1


def test_compare_between_spaces(backend):
    router = Router(at(0, 90), np.eye(2, 3), backend=backend)
    comparison = compare(router, at(0, 90), [0, 1], np.eye(2, 3), [0, 1])
    assert comparison.routing.recall_at_1 == 1
    assert comparison.direct is comparison.direct_ranks is None
