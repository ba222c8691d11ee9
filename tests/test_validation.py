"""Validation of a database: folds that keep the same question together, every method, verdicts."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from databases import cluster
from test_pipeline import MODEL, vector_of

from headroute import pipeline, validation
from headroute.cli import main
from headroute.database import Database
from headroute.evaluation import Difference
from headroute.validation import Questions, same_questions, split, unseen
from headroute.validation_text import comparison_text, points, validation_text, verdict_text

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
    clusters = [
        cluster(word, [f"{word} question {i}" for i in range(6)], [f"answer to {word}"])
        for word in WORDS
    ]
    return trained_on([*clusters, cluster("lone", ["lone one"], ["for the lone"])], tmp_path)


def trained_on(clusters, folder):
    path = folder / "lda.db"
    path.unlink(missing_ok=True)
    with Database.create(path) as db:
        db.import_clusters(clusters, "qa")
    pipeline.train(path, MODEL)
    return path


def test_file(folder, *pairs):
    path = folder / "test.jsonl"
    lines = [json.dumps({"question": text, "cluster_id": name}) for text, name in pairs]
    path.write_text("\n".join(lines))
    return path


test_file.__test__ = False


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
    test = test_file(tmp_path, *((f"{word} new", word) for word in WORDS[:2]))
    report = validation.validate(path, test_set=test)
    assert (report.test_set, report.questions) == (str(test), 2)
    assert report.figures["nearest question"]["cosine_accuracy@1"] == 1
    assert "BM25" in report.figures
    assert report.verdict == "no evidence"
    last = "no evidence: a verdict takes 20 questions at least, got 2"
    assert validation_text(report).splitlines()[-1] == last


def test_training_questions_are_left_out_of_a_test_set(path, tmp_path):
    """The same but for case and spaces too; also where heads are trained and measured at once."""
    new = [(f"alpha new {i}", "alpha") for i in range(3)]
    test = test_file(tmp_path, *new, ("beta  QUESTION 1", "beta"), ("gamma question 2", "delta"))
    report = validation.validate(path, test_set=test)
    assert (report.questions, report.left_out) == (3, 2)
    assert "2 other questions left out, which the heads were trained on" in comparison_text(report)
    assert report.figures["routing"]["cosine_accuracy@1"] == 1
    trained = pipeline.train(path, MODEL, name="other", test_set=test)
    assert (trained.validation.questions, trained.validation.left_out) == (3, 2)


def test_a_test_set_of_training_questions_is_refused(path, tmp_path, capsys):
    test = test_file(tmp_path, *((f"{word} question 3", word) for word in WORDS))
    assert main(["validate", "--db", str(path), "--test-set", str(test)]) == 2
    message = f"headroute: error: {test}: the heads were trained on all of these questions\n"
    assert capsys.readouterr() == ("", message)
    assert main(["train", "--db", str(path), "--model", MODEL, "--test-set", str(test)]) == 2


def test_the_same_vector_is_the_same_question():
    held_out = Questions(np.float32([[1, 2], [3, 4]]), ["a", "b"], ["one?", "two"], "test")
    training = Questions(np.float32([[1, 2]]), ["a"], ["one"], None)
    kept = unseen(held_out, training)
    assert (kept.texts, kept.cluster_names, kept.left_out) == (["two"], ["b"], 1)
    np.testing.assert_array_equal(kept.vectors, [[3, 4]])
    none = Questions(np.empty((0, 2), np.float32), [], [], None)
    assert unseen(held_out, none).texts == ["one?", "two"]


def test_repeats_are_no_evidence(path, tmp_path):
    """A question counts once in a cluster, in another cluster again; training has them all."""
    test = test_file(
        tmp_path, ("alpha new", "alpha"), ("Alpha  new", "alpha"), ("alpha new", "beta")
    )
    report = validation.validate(path, test_set=test)
    assert (report.questions, report.repeated, report.left_out) == (2, 1, 0)
    assert "1 repeat of a question in its cluster not counted" in comparison_text(report)
    clusters = [
        cluster(w, [f"{w} {i}" for i in (1, 2, 3)] + [f"{w}  {i}" for i in (1, 2)], [f"to {w}"])
        for w in WORDS
    ]
    report = validation.validate(trained_on(clusters, tmp_path), folds=3)
    assert (report.questions, report.repeated, report.left_out) == (12, 8, 0)


def test_answers_that_changed_after_the_training(path, tmp_path):
    with Database.open(path) as db:
        names = [*WORDS, "lone"]
        texts = {"beta": ["a new answer"]}
        questions = {name: [f"{name} question {i}" for i in range(6)] for name in names}
        db.import_clusters(
            [cluster(n, questions[n], texts.get(n, [f"answer to {n}"])) for n in names], "qa"
        )
    test = test_file(tmp_path, ("alpha new", "alpha"))
    for options in ({}, {"folds": 2}, {"test_set": test}):
        with pytest.raises(ValueError, match="no answer of the cluster 'beta' has an embedding: t"):
            validation.validate(path, **options)
    pipeline.train(path, MODEL)
    assert validation.validate(path, folds=2).questions == 30


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_clusters_of_fewer_questions_than_folds(path, tmp_path, folds):
    """Of three, two and one questions; and one of whom all three are the same question."""
    few = [
        cluster("alpha", ["alpha a", "alpha b", "alpha c"], ["answer to alpha"]),
        cluster("beta", ["beta a", "beta b"], ["answer to beta"]),
        cluster("gamma", ["gamma a", "gamma b", "gamma c"], ["answer to gamma"]),
        cluster("lone", ["lone a"], ["for the lone"]),
        cluster("same", ["same a", "Same a", "same  A"], ["for the same"]),
    ]
    report = validation.validate(trained_on(few, tmp_path), folds=folds)
    assert (report.questions, report.repeated, report.left_out) == (8, 2, 2)
    assert report.figures["routing"]["cosine_accuracy@1"] == 1


def test_no_question_can_be_held_out(path, tmp_path):
    lone = [cluster(word, [f"{word} one"], [f"answer to {word}"]) for word in WORDS]
    path = trained_on(lone, tmp_path)
    with pytest.raises(ValueError, match="no cluster has two different questions, one to train on"):
        validation.validate(path, folds=3)


def test_no_question_is_found_by_itself(path):
    """The two questions of a cluster are unlike, so that each is found only if it is trained on."""
    unlike = [cluster(f"c{i}", [f"{i} a", f"x{i} b"], [f"about {i}"]) for i in range(12)]
    report = validation.validate(trained_on(unlike, path.parent), folds=4)
    assert (report.questions, report.left_out) == (24, 0)
    for method in ("nearest question", "nearest centroid", "logistic regression"):
        assert report.figures[method]["cosine_accuracy@1"] < 0.5


def test_the_command_line(path, capsys):
    """Every figure by sentence-transformers' name as JSON; the verdict in the exit code."""
    command = ["validate", "--db", str(path), "--cross-validate", "3"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "routing helps"
    assert (report["folds"], report["test_set"], report["left_out"]) == (3, None, 1)
    assert len(report["figures"]) == 7
    names = {f"cosine_{f}@{k}" for f in ("accuracy", "recall") for k in (1, 5, 10)}
    for figures in report["figures"].values():
        assert figures.keys() == names | {"cosine_mrr@10", "cosine_ndcg@10"}
    difference = report["accuracy_difference"]
    assert 0 < difference["low"] <= difference["mean"] <= difference["high"] <= 1
    assert report["worst_questions"] == report["worst_clusters"] == []
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\nMRR@10: +0." in out
    assert out.splitlines()[-1].startswith("routing helps: +")
    # At a huge temperature every question gets the same ranking.
    assert main([*command, "--temperature", "1e6", "0.05"]) == 1
    out = capsys.readouterr().out
    assert "\nJudged is the first temperature, τ = 1e+06.\n" in out
    assert "Questions that routing ranks worst" in out


@pytest.mark.parametrize(
    ("verdict", "code"), [("routing helps", 0), ("no evidence", 1), ("hurts", 1), (None, 1)]
)
def test_exit_codes(path, monkeypatch, capsys, verdict, code):
    report = dataclasses.replace(validation.validate(path, folds=3), verdict=verdict)
    monkeypatch.setattr(validation, "validate", lambda *_, **__: report)
    assert main(["validate", "--db", str(path)]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict or "no verdict: ")


def test_last_lines(path):
    report = dataclasses.replace(
        validation.validate(path, folds=3),
        accuracy_difference=Difference(0.06, 0.012, 0.109),
        verdict="routing helps",
    )
    line = "routing helps: +6.0 points of Recall@1 over direct, 95 %: +1.2 to +10.9"
    assert verdict_text(report) == line
    worse = Difference(-0.06, -0.109, -0.012)
    report = dataclasses.replace(report, accuracy_difference=worse, verdict="hurts")
    line = "hurts: -6.0 points of Recall@1 over direct, 95 %: -10.9 to -1.2"
    assert verdict_text(report) == line
    report = dataclasses.replace(report, accuracy_difference=None, verdict=None)
    assert verdict_text(report) == "no verdict: questions and answers are of different dimensions"


def test_the_table_and_the_verdict_round_alike():
    assert points(208 / 240 - 205 / 240) == points(3 / 240)


def test_without_scikit_learn(path, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["validate", "--db", str(path), "--cross-validate", "3"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("which is not installed: pip install 'headroute[learn]'\n")
    assert err.count("\n") == 1


def test_training_questions_get_no_verdict(path):
    report = validation.validate(path)
    assert report.verdict is None
    assert list(report.figures) == ["routing", "direct similarity"]
    assert validation_text(report).splitlines()[-1].startswith("no verdict: ")


def test_the_same_question_is_never_on_both_sides(rng):
    """Same but for case and spaces, the same vector, and one through the other."""
    texts = [f"question {i}" for i in range(40)]
    texts[1], texts[2] = "Question  0", "QUESTION 0 "
    vectors = rng.standard_normal((40, 3)).astype(np.float32)
    vectors[3] = vectors[2]
    groups = np.arange(40) % 4
    seen = []
    for train, test in split(same_questions(texts, vectors), groups, 5):
        assert len(set(train) & set(test)) == 0
        inside = {0, 1, 2, 3} & set(test.tolist())
        assert inside in (set(), {0, 1, 2, 3})
        seen += test.tolist()
        # Every group is spread: 2 of its 10 a fold, give or take the four that stay together.
        assert np.bincount(groups[test], minlength=4).min() >= 1
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize(("n", "k"), [(40, 5), (41, 7), (12, 12), (30, 2)])
def test_folds_are_even_and_so_is_every_group_in_them(rng, n, k):
    groups = np.sort(rng.integers(0, 4, n))
    tests = [test for _, test in split(np.arange(n), groups, k)]
    assert np.ptp([len(test) for test in tests]) <= 1
    per_fold = np.array([np.bincount(groups[test], minlength=4) for test in tests])
    assert np.ptp(per_fold, axis=0).max() <= 1


def test_same_questions_chain():
    """0 and 1 by their text, 1 and 2 by their vector, 3 alone; and many of them take no time."""
    vectors = np.float32([[1, 0], [2, 0], [2, 0], [3, 0]])
    assert same_questions(["a b", " A  B", "c", "d"], vectors).tolist() == [0, 0, 0, 1]
    many = same_questions(["same"] * 100_000, np.ones((100_000, 2), np.float32))
    assert not many.any()


@pytest.mark.parametrize("folds", [1, 40])
def test_bad_folds(folds):
    same = np.append(np.arange(39), 0)
    with pytest.raises(ValueError, match=f"at most one a different question, 39, got {folds}"):
        list(split(same, np.zeros(40, int), folds))
