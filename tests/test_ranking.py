"""score_answers, against scores of all documents in float64."""

import numpy as np
import pytest

from headroute import RankedDocuments, Router, ranking


@pytest.mark.parametrize(
    ("n_heads", "n", "n_documents"),
    [
        (3, 40, 200),  # by weights: fewer heads than columns
        (64, 3, 200),  # by projections
        (5, 700, 1500),  # several blocks of rows and of documents
        (1, 1, 1),
    ],
)
def test_the_best_documents(backend, rng, n_heads, n, n_documents):
    e = 24
    router = Router(
        rng.standard_normal((n_heads, 8)), rng.standard_normal((n_heads, e)), backend=backend
    )
    queries = rng.standard_normal((n, 8)).astype(np.float32)
    documents = rng.standard_normal((n_documents, e)).astype(np.float32)
    scores = router.project(queries).astype(np.float64) @ documents.T.astype(np.float64)
    for k in {1, min(7, n_documents), n_documents}:
        ranked = router.score_answers(queries, documents, k)
        assert isinstance(ranked, RankedDocuments)
        assert ranked.indices.shape == ranked.scores.shape == (n, k)
        assert ranked.indices.dtype == np.int64
        best = -np.sort(-scores, axis=1)[:, :k]
        np.testing.assert_allclose(ranked.scores, best, rtol=0, atol=2e-5)
        found = np.take_along_axis(scores, ranked.indices, axis=1)
        np.testing.assert_allclose(ranked.scores, found, rtol=0, atol=2e-5)
        assert all(len(set(row)) == k for row in ranked.indices.tolist())


def test_both_ways_are_taken():
    assert ranking.by_weights(1000, 1000, n_heads=16, answer_dim=384)
    assert not ranking.by_weights(1000, 1000, n_heads=1000, answer_dim=384)
    assert not ranking.by_weights(1, 1000, n_heads=16, answer_dim=384)


@pytest.mark.parametrize("n_heads", [2, 300])
def test_equal_scores_go_by_index(backend, rng, n_heads):
    """More equal documents than one block holds."""
    router = Router(
        rng.standard_normal((n_heads, 8)),
        np.abs(rng.standard_normal((n_heads, 4))),
        backend=backend,
    )
    documents = np.tile(np.ones(4, np.float32), (3000, 1))
    documents[[1000, 2500]] = 2
    ranked = router.score_answers(rng.standard_normal((600, 8)), documents, 4)
    np.testing.assert_array_equal(ranked.indices, np.tile([1000, 2500, 0, 1], (600, 1)))


@pytest.mark.filterwarnings("error")
def test_products_of_answers_that_nobody_asks_for_may_overflow(backend):
    """The answers' products with the documents are infinite, the projections' are 6 and 3."""
    answers = [[1, 1, 1], [3e38, 3e38, 0]]
    router = Router([[1, 0], [-1, 0]], answers, temperature=0.001, backend=backend)
    documents = [[2, 2, 2], [1, 1, 1]]
    for n in (1, 3, 500):
        ranked = router.score_answers([[1, 0]] * n, documents, 2)
        np.testing.assert_array_equal(ranked.scores, [[6, 3]] * n)


def test_one_query(router, rng):
    documents = rng.standard_normal((9, 4))
    query = rng.standard_normal(6)
    one = router.score_answers(query, documents, 3)
    many = router.score_answers(query[np.newaxis], documents, 3)
    assert one.indices.shape == one.scores.shape == (3,)
    np.testing.assert_array_equal(one.indices, many.indices[0])
    none = router.score_answers(np.empty((0, 6)), documents, 3)
    assert none.indices.shape == (0, 3)


def test_bad_documents(router, rng):
    query = rng.standard_normal(6)
    message = r"documents must have shape \(D, 4\), D >= 1, one column an answer's, got \(9, 5\)"
    with pytest.raises(ValueError, match=message):
        router.score_answers(query, np.ones((9, 5)), 3)
    with pytest.raises(ValueError, match=r"got \(0, 4\)"):
        router.score_answers(query, np.ones((0, 4)), 1)
    bad = np.ones((9, 4))
    bad[7, 1] = np.inf
    with pytest.raises(ValueError, match="document 7 has a NaN, an infinity or more than float32"):
        router.score_answers(query, bad, 3)
    with pytest.raises(ValueError, match=r"number of documents \(9\), got 10"):
        router.score_answers(query, np.ones((9, 4)), 10)
    with pytest.raises(TypeError, match="documents must be real numbers"):
        router.score_answers(query, [["a"] * 4], 1)
    huge = np.ones((9, 4))
    huge[6] = 3e38
    with pytest.raises(ValueError, match="query 0 and document 6 have a dot product larger than"):
        router.score_answers(np.sign(router.centroids[0]), huge * np.sign(router.answers[0]), 3)
    with pytest.raises(ValueError, match="query 0 has a NaN"):
        router.score_answers(np.full(6, np.nan), np.ones((9, 4)), 3)
