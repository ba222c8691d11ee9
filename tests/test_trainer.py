"""A trainer's routers are those of a full fit, whatever happened on the way."""

import numpy as np
import pytest

from headroute import HeadTrainer, train_heads

D, E = 8, 5


@pytest.fixture
def data(rng):
    """Six groups of 4 to 9 questions around far-apart centres."""
    groups = np.repeat(np.arange(6), [4, 5, 6, 7, 8, 9])
    questions = 2 * np.eye(6, D)[groups] + 0.5 * rng.standard_normal((len(groups), D))
    return questions.astype(np.float32), groups, rng.standard_normal((6, E)).astype(np.float32)


def same(one, other):
    np.testing.assert_array_equal(one.centroids, other.centroids)
    np.testing.assert_array_equal(one.answers, other.answers)
    np.testing.assert_array_equal(one.groups, other.groups)
    assert (one.temperature, one.names, one.training) == (
        other.temperature,
        other.names,
        other.training,
    )
    np.testing.assert_array_equal(one.calibration.scores, other.calibration.scores)


def full_trainer(data, **options):
    questions, groups, answers = data
    trainer = HeadTrainer(**options)
    for group, answer in enumerate(answers):
        trainer.add_group(f"g{group}", answer, questions[groups == group])
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "centroid"},
        {"temperature": 0.2},
        {"heads_per_group": 2},
        {"learn_answers": True},
    ],
)
def test_any_order_gives_the_same_router(data, rng, options):
    """Questions one by one in random order, groups added late, one removed and added again."""
    questions, groups, answers = data
    trainer = HeadTrainer(**options)
    for group in rng.permutation(6):
        trainer.add_group(f"g{group}", 0 * answers[group])
    trainer.add_group("passing", answers[0], questions[:3])
    for i in rng.permutation(len(questions)):
        trainer.partial_fit(questions[i : i + 1], [f"g{groups[i]}"])
    trainer.router()
    trainer.remove_group("passing").remove_group("g4")
    trainer.add_group("g4", answers[4]).partial_fit(questions[groups == 4], ["g4"] * 8)
    for group in range(6):
        trainer.update_answer(f"g{group}", answers[group])
    same(trainer.router(), full_trainer(data, **options).router())


def test_it_is_what_train_heads_makes(data):
    """Of the same questions in the same order, up to the order of a group's questions in sums."""
    questions, groups, answers = data
    ours = full_trainer(data, method="centroid").router()
    theirs = train_heads(questions, groups, answers, method="centroid")
    # Sums in float64, rounded once: another order may round the last bit the other way.
    np.testing.assert_array_max_ulp(ours.centroids, theirs.centroids, maxulp=1)
    assert ours.temperature == theirs.temperature


def test_a_group_without_questions_waits(data):
    trainer = full_trainer(data)
    trainer.add_group("soon", np.zeros(E))
    assert "soon" in trainer.groups
    assert "soon" not in trainer.router().names
    trainer.add_group("later", np.zeros(E), np.empty((0, D)))
    assert "later" not in trainer.router().names
    trainer.partial_fit(np.ones((1, D)), ["later"])
    assert "later" in trainer.router().names


def test_bad_input(data):
    trainer = full_trainer(data)
    before = trainer.router()
    for call, error, message in [
        (lambda: trainer.add_group("g1", np.zeros(E)), ValueError, "a group 'g1' already"),
        (lambda: trainer.add_group(1, np.zeros(E)), TypeError, "name must be a str, got 1"),
        (lambda: trainer.add_group("x", np.zeros(E + 1)), ValueError, r"\(5,\), got \(6,\)"),
        (lambda: trainer.add_group("x", [np.nan] * E), ValueError, "answer has a NaN"),
        (
            lambda: trainer.add_group("x", [1e300] * E),
            ValueError,
            r"1e\+300 in it, more than float32",
        ),
        (lambda: HeadTrainer().add_group("x", [1], [[]]), ValueError, r"\(n, d\), got \(1, 0\)"),
        (lambda: trainer.partial_fit(np.ones((1, D)), ["x"]), KeyError, "no group 'x'"),
        (lambda: trainer.partial_fit(np.ones((2, D)), ["g1"]), ValueError, "2 questions and 1 gr"),
        (lambda: trainer.partial_fit(np.ones((1, 3)), ["g1"]), ValueError, r"\(n, 8\), got \(1, 3"),
        (lambda: trainer.partial_fit([[np.inf] * D], ["g1"]), ValueError, "question 0 has a NaN"),
        (lambda: trainer.remove_group("x"), KeyError, "no group 'x'"),
        (lambda: trainer.update_answer("x", np.ones(E)), KeyError, "no group 'x'"),
        (lambda: HeadTrainer(method="magic"), ValueError, "method must be one of .*, got 'magic'"),
        (lambda: HeadTrainer().router(), ValueError, "two groups with questions, got 0"),
    ]:
        with pytest.raises(error, match=message):
            call()
    same(trainer.router(), before)
