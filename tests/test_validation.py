"""Validation of a database: folds that keep the same question together, every method, verdicts."""

import numpy as np
import pytest
from databases import cluster
from test_pipeline import MODEL, vector_of

from headroute import pipeline, validation
from headroute.database import Database
from headroute.validation import Questions, split
from headroute.validation_text import validation_text

WORDS = ("alpha", "beta", "gamma", "delta")


def embed(_model, _kind, texts):
    """A text lies near the word it starts with."""
    return np.stack([4 * vector_of(text.split()[0].lower()) + vector_of(text) for text in texts])


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Four clusters of six questions, one of a single question; answers share no word with them."""
    for module in (pipeline, validation):
        monkeypatch.setattr(module, "embed", embed)
    monkeypatch.setattr(pipeline, "resolve_model", lambda model: (model, "the test"))
    path = tmp_path / "lda.db"
    with Database.create(path) as db:
        clusters = [
            cluster(word, [f"{word} question {i}" for i in range(6)], [f"answer to {word}"])
            for word in WORDS
        ]
        db.import_clusters([*clusters, cluster("lone", ["lone one"], ["for the lone"])], "qa")
    pipeline.train(path, MODEL)
    return path


def test_cross_validation(path):
    report = validation.validate(path, folds=3)
    assert (report.questions, report.left_out, report.folds) == (24, 1, 3)
    assert list(report.figures) == [
        "routing",
        "direct similarity",
        "nearest centroid",
        "nearest question",
        "linear adapter",
        "logistic regression",
        "BM25",
    ]
    # Answers are as far from the questions as chance has it, and heads know better.
    assert report.figures["routing"]["cosine_accuracy@1"] == 1
    assert report.figures["nearest centroid"]["cosine_accuracy@1"] == 1
    assert report.figures["direct similarity"]["cosine_accuracy@1"] < 0.8
    assert report.verdict == "routing helps"
    lines = validation_text(report).splitlines()
    assert "1 question left out, whose cluster had no other to train on" in lines
    assert lines[-1].startswith("routing helps: +")
    assert max(map(len, lines)) <= 80


def test_a_test_set(path, tmp_path):
    test = tmp_path / "test.jsonl"
    test.write_text("".join(f'{{"question": "{w} new", "cluster_id": "{w}"}}\n' for w in WORDS[:2]))
    report = validation.validate(path, test_set=test)
    assert (report.test_set, report.questions) == (str(test), 2)
    assert report.figures["nearest question"]["cosine_accuracy@1"] == 1
    assert "BM25" in report.figures
    assert report.verdict is not None


def test_training_questions_get_no_verdict(path):
    report = validation.validate(path)
    assert report.verdict is None
    assert list(report.figures) == ["routing", "direct similarity"]
    assert validation_text(report).splitlines()[-1].startswith("no verdict: ")


def questions(texts, vectors):
    return Questions(np.asarray(vectors, np.float32), ["a"] * len(texts), texts, None)


def test_the_same_question_is_never_on_both_sides(rng):
    """Same but for case and spaces, the same vector, and one through the other."""
    texts = [f"question {i}" for i in range(40)]
    texts[1], texts[2] = "Question  0", "QUESTION 0 "
    vectors = rng.standard_normal((40, 3))
    vectors[3] = vectors[2]
    groups = np.arange(40) % 4
    seen = []
    for train, test in split(questions(texts, vectors), groups, 5):
        assert len(set(train) & set(test)) == 0
        inside = {0, 1, 2, 3} & set(test.tolist())
        assert inside in (set(), {0, 1, 2, 3})
        seen += test.tolist()
        # Every group is spread: 2 of its 10 a fold, give or take the four that stay together.
        assert np.bincount(groups[test], minlength=4).min() >= 1
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize("folds", [1, 41])
def test_bad_folds(rng, folds):
    bad = questions([str(i) for i in range(40)], rng.standard_normal((40, 3)))
    with pytest.raises(ValueError, match=f"2 to 40 folds, one a question, got {folds}"):
        list(split(bad, np.zeros(40, int), folds))
