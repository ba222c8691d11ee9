"""The chapter's functions, against its own few lines of NumPy."""

import numpy as np
import pytest

from headroute import Router, project_multi_head, route_query, visualize_routing


@pytest.fixture
def heads(rng):
    return [
        {"centroid": 3 * rng.standard_normal(8), "answer_emb": rng.standard_normal(8)}
        for _ in range(5)
    ]


def chapter(query, heads, temperature):
    """What the chapter computes: cosines, a softmax of them over τ, a weighted sum."""
    cosines = np.array(
        [
            query @ head["centroid"] / (np.linalg.norm(query) * np.linalg.norm(head["centroid"]))
            for head in heads
        ]
    )
    powers = np.exp((cosines - cosines.max()) / temperature)
    weights = powers / powers.sum()
    blend = sum(weight * head["answer_emb"] for weight, head in zip(weights, heads, strict=True))
    return weights, blend


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_chapters_results(rng, heads, temperature, dtype):
    heads = [{key: value.astype(dtype) for key, value in head.items()} for head in heads]
    query = rng.standard_normal(8).astype(dtype)
    weights, blend = chapter(
        query.astype(float),
        [{key: value.astype(float) for key, value in head.items()} for head in heads],
        temperature,
    )
    # Both in float64; 1e-12 is far above its rounding at τ = 0.01 and far below the 1e-6 promised.
    np.testing.assert_allclose(route_query(query, heads, temperature), weights, rtol=0, atol=1e-12)
    projected = project_multi_head(query, heads, temperature)
    np.testing.assert_allclose(projected, blend, rtol=0, atol=1e-12)


def test_the_default_temperature(rng, heads):
    query = rng.standard_normal(8)
    np.testing.assert_array_equal(route_query(query, heads), route_query(query, heads, 0.1))
    expected = project_multi_head(query, heads, temperature=0.1)
    np.testing.assert_array_equal(project_multi_head(query, heads), expected)


def test_the_same_as_a_router(rng, heads):
    query = rng.standard_normal(8)
    centroids, answers = (
        np.array([head[key] for head in heads]) for key in ("centroid", "answer_emb")
    )
    router = Router(centroids, answers)
    # float32 against float64: cosines off by 8 u each way, times 2 / τ = 20, below 1e-5.
    np.testing.assert_allclose(router.route(query), route_query(query, heads), atol=1e-5)
    np.testing.assert_allclose(router.project(query), project_multi_head(query, heads), atol=1e-5)


def test_plain_lists_and_a_zero_query():
    heads = [
        {"centroid": [1, 0], "answer_emb": [1, 2, 3]},
        {"centroid": [0, 2], "answer_emb": [3, 2, 1]},
    ]
    np.testing.assert_array_equal(route_query([0, 0], heads), [0.5, 0.5])
    np.testing.assert_array_equal(project_multi_head([0, 0], heads), [2, 2, 2])


def test_routing_needs_no_answers():
    np.testing.assert_array_equal(route_query([1, 2], [{"centroid": [3, 4]}]), [1])


@pytest.mark.parametrize(
    ("query", "heads", "message"),
    [
        ([1, 2, 3], [{"centroid": [1, 0]}], "queries have 3 columns, the heads expect 2"),
        ([[1, 2]], [{"centroid": [1, 0]}], r"takes one query of shape \(2,\), got \(1, 2\)"),
        ([1, np.nan], [{"centroid": [1, 0]}], "query 0 has a NaN or infinity in it"),
        ([1, 2], [], "a router needs at least one head"),
        ([1, 2], [{"centroid": [1, 0]}, {"centroid": [0, 0]}], "head 1 has a zero centroid"),
        ([1, 2], [{"centroid": [1, 0]}, {"answer_emb": [0, 0]}], "head 1 has no 'centroid'"),
        ([1, 2], [{"centroid": [1, 0]}, {"centroid": [1]}], r"head 1 has a 'centroid' of shape"),
    ],
)
def test_bad_input(query, heads, message):
    with pytest.raises(ValueError, match=message):
        route_query(query, heads)


def test_more_bad_input():
    head = {"centroid": [1, 0], "answer_emb": [np.inf, 0]}
    with pytest.raises(ValueError, match="temperature must be a positive, finite number, got 0"):
        route_query([1, 2], [head], 0)
    with pytest.raises(TypeError, match="queries must be real numbers, got dtype <U1"):
        route_query(["a", "b"], [head])
    with pytest.raises(ValueError, match="head 0 has a NaN or infinity in its answer"):
        project_multi_head([1, 2], [head])


class Words:
    """Embeds two words, as an embedder with `encode` would."""

    def encode(self, text):
        return {"auth": np.array([1.0, 0.0]), "both": np.array([1.0, 1.0])}[text]


def test_bars(capsys):
    heads = [{"centroid": [1, 0]}, {"centroid": [0, 1]}]
    visualize_routing("both", heads, embedder=Words())
    half = "█" * 20
    assert capsys.readouterr().out == f"Query: both\n  Head 0: 0.50 {half}\n  Head 1: 0.50 {half}\n"
    named = [{**head, "name": name} for head, name in zip(heads, ("Auth", "Data"), strict=True)]
    visualize_routing("auth", named, 0.01, embedder=Words())
    full = "█" * 40
    expected = f"Query: auth\n  Head 0 (Auth): 1.00 {full}\n  Head 1 (Data): 0.00 \n"
    assert capsys.readouterr().out == expected
