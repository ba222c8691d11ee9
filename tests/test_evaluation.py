"""Rankings, figures and verdicts on examples that can be worked out by hand."""

import math
import sys

import numpy as np
import pytest

from headroute import Router, baselines, evaluation
from headroute.evaluation import (
    DIRECT,
    Ranking,
    bootstrap,
    checked_task,
    conclude,
    cosine_scores,
    evaluate,
    figures_of,
    rank,
)


def at(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ranking_of(queries, candidates, owners, groups):
    task = checked_task(queries, groups, candidates, owners)
    return rank(cosine_scores(task.queries, task.candidates), task)


def test_ranks_by_cosine():
    candidates = at(0, 30, 60, 90) * [[1], [100], [0.01], [5]]  # lengths do not matter
    ranking = ranking_of(at(0, 0, 0, 50), candidates, [7, 3, 3, 9], [7, 3, 9, 7])
    assert ranking.first.tolist() == [1, 2, 4, 4]
    assert ranking.answers.tolist() == [1, 2, 1, 1]
    assert ranking.found.tolist() == [7, 7, 7, 3]
    assert ranking.relevant[1].nonzero()[0].tolist() == [1, 2]


def test_ties_count_against_us():
    candidates = np.array([[1, 0], [1, 0], [2, 0], [0, 1]])
    ranking = ranking_of([[1, 0]], candidates, [0, 1, 2, 0], [0])
    assert ranking.first.tolist() == [3]
    assert ranking.relevant[0, :4].tolist() == [False, False, True, True]


def test_ties_that_rounding_tells_apart(rng):
    """The same answer under two groups is a tie, wherever the matrix product puts it."""
    answer = rng.standard_normal((1, 384))
    candidates = np.concatenate([rng.standard_normal((36, 384)), answer, answer * 3])
    owners = np.arange(38)
    for group in (36, 37):
        assert ranking_of(answer + 0.1, candidates, owners, [group]).first.tolist() == [2]


@pytest.mark.parametrize("values", [[0, 1, 2], [-np.inf, 0.5], [-1500, -1e-300], [1e300]])
@pytest.mark.parametrize("e", [2, 384])
def test_ties_of_any_size_against_sorting(rng, values, e):
    """Of many equal scores the answers come last, also around the tenth place."""
    for _ in range(50):
        m = int(rng.integers(3, 60))
        owners = rng.permutation(np.arange(m) % 3)
        scores = rng.choice(np.array(values, float), (4, m))
        groups = rng.integers(0, 3, 4)
        task = evaluation.Task(np.zeros((4, e)), groups, np.zeros((m, e)), owners)
        ranking = rank(lambda rows, scores=scores: scores[rows], task)
        for row, group in enumerate(groups):
            own = owners == group
            order = sorted(range(m), key=lambda i: (-scores[row, i], own[i]))
            sorted_own = own[order]
            assert ranking.first[row] == 1 + sorted_own.argmax()
            expected = np.pad(sorted_own[:10], (0, max(0, 10 - m)))
            assert ranking.relevant[row].tolist() == expected.tolist()


def test_own_candidates_are_not_competitors():
    assert ranking_of(at(0), at(0, 1, 2, 3), [5, 5, 5, 6], [5]).first.tolist() == [1]


def test_blocks_change_nothing(rng, monkeypatch):
    queries, candidates = rng.standard_normal((50, 8)), rng.standard_normal((40, 8))
    owners, groups = np.arange(40) % 9, np.arange(50) % 9
    whole = ranking_of(queries, candidates, owners, groups)
    monkeypatch.setattr(evaluation, "BLOCK_BYTES", 7 * 8 * 40)
    for ours, theirs in zip(ranking_of(queries, candidates, owners, groups), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_figures():
    relevant = np.zeros((2, 10), bool)
    relevant[0, [1, 4]] = True
    ranking = Ranking(np.array([2, 11]), relevant, np.array([3, 1]), np.array([0, 0]))
    figures = figures_of(ranking)
    assert figures["cosine_accuracy@1"] == 0
    assert figures["cosine_accuracy@5"] == figures["cosine_accuracy@10"] == 1 / 2
    assert figures["cosine_recall@5"] == 2 / 3 / 2
    assert figures["cosine_mrr@10"] == 1 / 2 / 2
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    gain = 1 / math.log2(3) + 1 / math.log2(6)
    assert math.isclose(figures["cosine_ndcg@10"], gain / best / 2)


def test_the_figures_are_those_of_sentence_transformers(rng):
    """On the same vectors, without ties, several answers a query, and fewer than ten."""
    evaluators = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    queries, candidates = rng.standard_normal((60, 16)), rng.standard_normal((37, 16))
    owners, groups = np.arange(37) % 12, np.arange(60) % 12
    vectors = {f"q{i}": row for i, row in enumerate(queries)}
    vectors |= {f"d{i}": row for i, row in enumerate(candidates)}

    class Model:
        """Knows the vectors of its texts, and what an evaluator asks of a model."""

        similarity_fn_name = "cosine"
        similarity = staticmethod(
            lambda a, b: a @ b.T / a.norm(dim=1, keepdim=True) / b.norm(dim=1)
        )
        model_card_data = type("Card", (), {"set_evaluation_metrics": lambda *_: None})()

        def encode(self, texts, **_):
            import torch

            rows = np.stack([vectors[text] for text in texts])
            return torch.tensor(rows, dtype=torch.float64)

        encode_query = encode_document = encode

    evaluator = evaluators.InformationRetrievalEvaluator(
        {f"q{i}": f"q{i}" for i in range(60)},
        {f"d{i}": f"d{i}" for i in range(37)},
        {f"q{i}": {f"d{j}" for j in np.flatnonzero(owners == groups[i])} for i in range(60)},
        accuracy_at_k=[1, 5, 10],
        precision_recall_at_k=[1, 5, 10],
        write_csv=False,
    )
    theirs = evaluator(Model())
    for name, value in figures_of(ranking_of(queries, candidates, owners, groups)).items():
        assert value == pytest.approx(theirs[name], rel=1e-12), name


@pytest.mark.parametrize(
    ("queries", "candidates", "owners", "groups", "message"),
    [
        (at(0), np.ones((2, 3)), [0, 1], [0], "queries have 2 columns, candidates 3"),
        (at(0), at(0, 1), [0, 1], [2], "row 0 of queries belongs to group 2, which has no c"),
        (at(0), at(0, 1), [0], [0], "every row needs one group: 1 queries and 1 groups, 2 cand"),
        (at(0), at(0), [0], [0, 0], "every row needs one group: 1 queries and 2 groups, 1 cand"),
        (at(0), np.full((1, 2), np.nan), [0], [0], "row 0 of candidates has a NaN or infinity"),
        (np.ones(2), at(0), [0], [0], r"queries must be two-dimensional, got shape \(2,\)"),
        (np.ones((0, 2)), at(0), [0], [], "there are no queries to measure"),
    ],
)
def test_bad_input(queries, candidates, owners, groups, message):
    with pytest.raises(ValueError, match=message):
        figures_of(ranking_of(queries, candidates, owners, groups))


def test_evaluate(backend):
    """Answers lie a quarter turn from their questions, which only routing can know."""
    router = Router(at(0, 90, 180), at(90, 180, 270), temperature=0.01, backend=backend)
    queries, groups = at(5, 95, 175), [0, 1, 2]
    result = evaluate(router, queries, groups, at(90, 180, 270), [0, 1, 2])
    assert result.rankings["routing"].first.tolist() == [1, 1, 1]
    assert result.rankings[DIRECT].first.tolist() == [1, 2, 3]
    assert result.figures["routing"]["cosine_accuracy@1"] == 1
    assert result.figures[DIRECT]["cosine_accuracy@1"] == 1 / 3
    assert result.accuracy_difference.mean == pytest.approx(2 / 3)
    assert result.worst_groups == result.worst_queries(5) == []
    two = evaluate(router, queries, groups, at(90, 180, 270), [0, 1, 2], temperatures=[0.01, 1e9])
    assert two.figures["routing, τ = 0.01"] == result.figures["routing"]
    assert two.figures["routing, τ = 1e+09"]["cosine_accuracy@1"] < 1


def test_evaluate_between_spaces(backend):
    router = Router(at(0, 90), np.eye(2, 3), backend=backend)
    result = evaluate(router, at(0, 90), [0, 1], np.eye(2, 3), [0, 1])
    assert result.figures["routing"]["cosine_accuracy@1"] == 1
    assert result.verdict is result.accuracy_difference is None
    assert DIRECT not in result.figures


def ranks(first):
    n = len(first)
    return Ranking(np.array(first), np.zeros((n, 10), bool), np.ones(n, int), np.zeros(n, int))


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([1] * 40 + [2] * 10, [2] * 40 + [1] * 10, "routing helps"),
        ([2] * 40 + [1] * 10, [1] * 40 + [2] * 10, "hurts"),
        ([1] * 25 + [2] * 25, [2] * 25 + [1] * 25, "no evidence"),
        ([1] * 30 + [2] * 20, [2] * 24 + [1] * 26, "no evidence"),
        ([2] * 24 + [1] * 26, [1] * 30 + [2] * 20, "no evidence"),
        ([1] * 50, [1] * 50, "no evidence"),
    ],
)
def test_verdicts(ours, theirs, verdict):
    groups = np.zeros(50, int)
    assert conclude({"routing": ranks(ours), DIRECT: ranks(theirs)}, groups, 2).verdict == verdict


@pytest.mark.parametrize(("n", "verdict"), [(1, "no evidence"), (19, "no evidence"), (20, "hurts")])
def test_few_queries_get_no_verdict(n, verdict):
    groups = np.zeros(n, int)
    worse = conclude({"routing": ranks([2] * n), DIRECT: ranks([1] * n)}, groups, 2)
    assert (worse.accuracy_difference.high, worse.verdict) == (-1, verdict)


def test_without_a_difference_verdicts_are_rare(rng):
    """Of FEWEST_QUERIES queries, however often two equally good methods disagree: the exact share
    of samples whose interval leaves out 0, nominally 5 %, is 5.7 % at most."""
    n = evaluation.FEWEST_QUERIES
    shares = np.linspace(0.05, 1, 20)  # of queries that one of them has right and the other not
    wrong = np.zeros(len(shares))
    for more in range(1, n + 1):
        for fewer in range(min(more, n - more + 1)):
            sample = np.repeat([1.0, -1.0, 0.0], [more, fewer, n - more - fewer])
            if bootstrap(sample, rng).low > 0:
                ways = math.comb(n, more) * math.comb(n - more, fewer)
                equal = (1 - shares) ** (n - more - fewer)
                wrong += 2 * ways * (shares / 2) ** (more + fewer) * equal
    assert wrong.max() < 0.065


def test_the_interval_covers_the_truth_as_often_as_it_says(rng):
    """Of 400 samples of known mean, 95 % ± 3 standard errors (1.1 % each) are covered; the
    percentile interval of 100 differences is itself about 1 % short."""
    truth, covered = 0.1, 0
    for _ in range(400):
        sample = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=100)
        found = bootstrap(sample, rng)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 400 <= 0.985


def test_the_worst_come_first():
    ranking = ranks([1, 5, 3, 1, 2, 1])._replace(found=np.array([0, 1, 1, 1, 1, 2]))
    result = conclude({"routing": ranking}, np.array([0, 0, 0, 1, 1, 2]), 9)
    assert result.worst_queries(2) == [1, 2]
    assert result.worst_queries(9) == [1, 2, 4]
    assert [(f.group, f.queries) for f in result.worst_groups] == [(0, 3), (1, 2)]


def test_baselines_by_hand():
    """Group 0's questions lie at 0° and 60°, group 1's at 100°; a query at 70° is closest to a
    question of 0, and to the centroid of 1. Group 2 has no question: it comes last."""
    task = checked_task(at(70), [0], at(0, 100, 200), [0, 1, 2])
    methods = baselines.trained(task, at(0, 60, 100), [0, 0, 1])
    part = slice(0, 1)
    assert np.argmax(methods["nearest question"]()(part)) == 0
    assert np.argmax(methods["nearest centroid"]()(part)) == 1
    np.testing.assert_allclose(methods["nearest centroid"]()(part)[0, 1], np.cos(np.radians(30)))
    for name in ("nearest question", "nearest centroid", "logistic regression"):
        assert methods[name]()(part)[0, 2] == -np.inf


def test_nearest_question_by_brute_force(rng, monkeypatch):
    queries, questions = rng.standard_normal((9, 5)), rng.standard_normal((31, 5))
    groups = np.arange(31) % 4
    task = checked_task(queries, np.zeros(9, int), rng.standard_normal((6, 5)), [0, 1, 2, 3, 0, 1])
    monkeypatch.setattr(baselines, "BLOCK_BYTES", 2 * 8 * 31)
    found = baselines.trained(task, questions, groups)["nearest question"]()(slice(1, 8))
    for row, query in enumerate(queries[1:8]):
        cosines = questions @ query / np.linalg.norm(questions, axis=1) / np.linalg.norm(query)
        expected = [cosines[groups == owner].max() for owner in task.candidate_groups]
        np.testing.assert_allclose(found[row], expected, rtol=1e-12)


def test_a_lone_question_does_not_stop_the_choice_of_c():
    """Three narrow bands side by side: only a large C finds the one in the middle."""
    degrees = np.arange(60)
    groups = degrees // 20
    assert baselines.logistic_regression(at(*degrees), groups).__self__.C == 100
    lone = baselines.logistic_regression(at(*degrees, 200), np.append(groups, 3)).__self__
    assert lone.C == 100
    assert len(lone.classes_) == 4


@pytest.mark.parametrize(
    ("training", "texts", "message"),
    [
        ((np.ones((2, 3)), [0, 1]), None, r"questions of 2 columns like the queries, got .* 3\)"),
        ((np.ones((0, 2)), []), None, r"there must be training questions .* shape \(0, 2\)"),
        ((at(0, 9), [0, 4]), None, "row 1 of training questions belongs to group 4, which has no"),
        ((at(0, 9), [0]), None, "one group: 2 training questions and 1 groups"),
        (None, (["a"], ["b", "c"]), "one text: 2 queries and 1 texts, 2 candidates and 2 texts"),
        (None, (["a", "b"], ["c"]), "one text: 2 queries and 2 texts, 2 candidates and 1 texts"),
    ],
)
def test_bad_training_and_texts(training, texts, message):
    router = Router(at(0, 90), at(0, 90))
    with pytest.raises(ValueError, match=message):
        evaluate(router, at(0, 90), [0, 1], at(0, 90), [0, 1], training=training, texts=texts)


def test_no_queries():
    with pytest.raises(ValueError, match="there are no queries to measure"):
        evaluate(Router(at(0, 90), at(0, 90)), np.ones((0, 2)), [], at(0, 90), [0, 1])


def test_a_linear_adapter_learns_a_rotation(rng):
    """Answers are the questions turned by a quarter: exactly what a linear map can do."""
    angles = rng.uniform(0, 360, 60)
    questions, answers = at(*angles), at(*(angles + 90))
    task = checked_task(questions, range(60), answers, range(60))
    methods = baselines.trained(task, questions, range(60))
    assert figures_of(rank(methods["linear adapter"](), task))["cosine_accuracy@1"] == 1


def test_bm25_ranks_by_words():
    task = checked_task(at(0, 0, 0), [0, 0, 0], at(0, 0, 0), [0, 1, 2])
    scores = baselines.bm25(
        task,
        ["where is the red printer", "", "unheard"],
        ["a red printer", "a blue cat", "the sea"],
    )(slice(0, 3))
    assert scores.shape == (3, 3)
    assert np.argmax(scores[0]) == 0
    assert not scores[1:].any()


def test_bm25_of_answers_without_words():
    task = checked_task(at(0), [0], at(0, 0), [0, 1])
    assert not baselines.bm25(task, ["red printer"], ["the", "?"])(slice(0, 1)).any()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r"needs bm25s, .* pip install 'headroute\[learn\]'"):
        baselines.bm25(checked_task(at(0), [0], at(0), [0]), ["a"], ["b"])
