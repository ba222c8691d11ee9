"""The estimator keeps scikit-learn's own rules, and is train_heads underneath."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from headroute import Router, train_heads
from headroute.sklearn import MultiHeadRouting


@parametrize_with_checks(
    [
        MultiHeadRouting(),
        MultiHeadRouting(method="centroid", temperature=0.1),
        MultiHeadRouting(heads_per_group=2),
        MultiHeadRouting(learn_answers=True),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def data(rng):
    """Three classes of 20 questions with string labels; class "b" lies in two places."""
    centres = np.repeat(np.eye(4, 12), [20, 10, 10, 20], axis=0)
    labels = np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 20)
    return centres + 0.2 * rng.standard_normal((60, 12)), labels


@pytest.fixture
def shuffled(data, rng):
    order = rng.permutation(len(data[1]))
    return tuple(values[order] for values in data)


def test_it_is_train_heads(data, rng):
    X, y = data
    answers = rng.standard_normal((3, 5))
    fitted = MultiHeadRouting(random_state=3).fit(X, y, answers)
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    # Its order: by class, then by the bytes of the questions.
    keys = [row.tobytes() for row in X.astype(np.float32)]
    order = sorted(range(60), key=lambda row: (y[row], keys[row]))
    groups = np.searchsorted(["a", "b", "c"], y[order])
    router = train_heads(X[order], groups, answers, random_state=seed)
    np.testing.assert_array_equal(fitted.router_.centroids, router.centroids)
    assert fitted.temperature_ == router.temperature
    np.testing.assert_array_equal(fitted.transform(X), router.project(X))
    np.testing.assert_array_equal(fitted.predict(X), y)
    # float32 sums of two or three weights, divided by their sum once more.
    np.testing.assert_allclose(fitted.predict_proba(X), router.route_groups(X), rtol=2**-21)
    assert fitted.get_feature_names_out().tolist() == [f"multiheadrouting{i}" for i in range(5)]
    assert fitted.score(X, y) == 1


def test_answers_are_unit_mean_questions_by_default(data):
    X, y = data
    fitted = MultiHeadRouting().fit(X, y)
    means = np.stack([X[y == label].mean(axis=0) for label in "abc"])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    # X is rounded to float32 once, and so is the result.
    np.testing.assert_allclose(fitted.router_.answers, means, rtol=0, atol=2**-23)


@pytest.mark.parametrize("heads_per_group", [1, 2])
@pytest.mark.parametrize("temperature", [0.002, 0.1, 3])
def test_decision_function_is_the_logarithm_of_the_weights(data, heads_per_group, temperature):
    """At τ = 0.002 most of the weights are 0 in float32."""
    X, y = data
    options = {"heads_per_group": heads_per_group, "temperature": temperature}
    fitted = MultiHeadRouting(**options).fit(X, y)
    router = fitted.router_
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, router.centroids)]
    logits = units[0] @ units[1].T / temperature
    groups = [np.logaddexp.reduce(logits[:, router.groups == g], axis=1) for g in range(3)]
    expected = np.stack(groups, axis=1) - np.logaddexp.reduce(logits, axis=1)[:, np.newaxis]
    # A float32 cosine of 12 columns and the exponential of it, 8 ulp of 1 together, over τ; half
    # of that again for the sum of all.
    within = 12 * 2**-23 / temperature
    np.testing.assert_allclose(fitted.decision_function(X), expected, rtol=0, atol=within)
    np.testing.assert_array_equal(
        fitted.classes_[fitted.decision_function(X).argmax(axis=1)], fitted.predict(X)
    )

    two = MultiHeadRouting(**options).fit(X[y != "b"], y[y != "b"])
    scores = two.decision_function(X)
    assert scores.shape == (60,)
    assert len(np.unique(scores)) == 60
    np.testing.assert_array_equal(scores > 0, two.predict(X) == "c")


def test_a_row_of_zeros_gets_the_same_weight_for_every_head(data):
    X, y = data
    fitted = MultiHeadRouting(heads_per_group=2).fit(np.vstack([X, 0 * X[:1]]), [*y, "a"])
    zeros = np.zeros((1, 12))
    # 1/6 in float32, added and divided.
    np.testing.assert_allclose(fitted.predict_proba(zeros), np.full((1, 3), 1 / 3), rtol=2**-22)
    # log 6 is rounded before it is divided by τ.
    within = 2**-49 / fitted.temperature_
    np.testing.assert_allclose(
        fitted.decision_function(zeros), np.full((1, 3), -np.log(3)), rtol=0, atol=within
    )


@pytest.mark.parametrize("options", [{}, {"method": "centroid"}, {"heads_per_group": 2}])
def test_partial_fit_is_fit_on_everything_in_any_order(data, shuffled, options):
    X, y = data
    whole = MultiHeadRouting(**options).fit(X, y)
    for rows, labels in (data, shuffled):
        parts = MultiHeadRouting(**options)
        parts.partial_fit(rows[:1], labels[:1])  # one class: nothing to predict yet
        assert not hasattr(parts, "router_")
        parts.partial_fit(rows[1:25], labels[1:25], classes=["a", "b", "c"])
        parts.partial_fit(rows[25:], labels[25:])
        np.testing.assert_array_equal(whole.classes_, parts.classes_)
        np.testing.assert_array_equal(whole.router_.centroids, parts.router_.centroids)
        np.testing.assert_array_equal(whole.transform(X), parts.transform(X))


def test_partial_fit_goes_on_after_fit(data, rng):
    X, y = data
    answers = rng.standard_normal((3, 5))
    whole = MultiHeadRouting().fit(X, y, answers)
    rows, given = X[::2].copy(), answers.copy()
    parts = MultiHeadRouting().fit(rows, y[::2], given)
    rows[:], given[:] = 0, 0  # what was fitted is kept as it was
    parts.partial_fit(X[1::2], y[1::2])
    np.testing.assert_array_equal(whole.transform(X), parts.transform(X))


def test_partial_fit_keeps_nothing_that_raised(data):
    X, y = data
    parts = MultiHeadRouting().fit(X, y, np.eye(3))
    with pytest.raises(ValueError, match=r"labels that are not in classes: \['z'\]"):
        parts.partial_fit(X[:1], ["z"], classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"a row for each of 4 classes, got shape \(3, 3\)"):
        parts.partial_fit(X[:1], ["z"])
    with pytest.raises(ValueError, match="labels of dtype int64, those so far are <U1"):
        parts.partial_fit(X[:1], [1])
    parts.partial_fit(X[:1], y[:1])
    assert parts.router_.training.questions == 61
    assert parts.classes_.tolist() == ["a", "b", "c"]


def test_what_training_reports_is_not_hidden(data):
    X, y = data
    with pytest.warns(UserWarning, match="2 questions are in more than one group"):
        MultiHeadRouting().fit(np.vstack([X, X[:1]]), [*y, "c"])


def test_a_class_that_sums_to_zero_is_refused(data):
    X, y = data
    X[:10] = -X[10:20]
    with pytest.raises(ValueError, match="group 0 sum to zero: its head has no direction"):
        MultiHeadRouting().fit(X, y)
    assert MultiHeadRouting(heads_per_group=2).fit(X, y).score(X, y) > 0.9


def test_rows_beyond_float32(data):
    """As a router and train_heads have them: a query keeps its direction, a question is refused."""
    X, y = data
    fitted = MultiHeadRouting().fit(X, y)
    np.testing.assert_array_equal(fitted.predict(X * 2.0**900), fitted.predict(X))
    np.testing.assert_array_equal(fitted.predict(X * 2.0**-900), fitted.predict(X))
    X[3, 1] = -1e200
    with pytest.raises(ValueError, match=r"question 3 has 1e\+200 in it, more than float32 holds"):
        fitted.partial_fit(X, y)
    assert fitted.router_.training.questions == 60


def test_in_a_pipeline(data, rng):
    X, y = data
    answers = rng.standard_normal((3, 5))
    pipeline = make_pipeline(StandardScaler(), MultiHeadRouting())
    pipeline.fit(X, y, multiheadrouting__answers=answers)
    scaled = StandardScaler().fit_transform(X)
    alone = MultiHeadRouting().fit(scaled, y, answers)
    np.testing.assert_array_equal(pipeline.transform(X), alone.transform(scaled))
    np.testing.assert_array_equal(pipeline.predict(X), alone.predict(scaled))
    assert pipeline.get_feature_names_out().tolist() == alone.get_feature_names_out().tolist()


def test_under_a_grid_search(data):
    X, y = data
    search = GridSearchCV(
        make_pipeline(StandardScaler(), MultiHeadRouting()),
        {
            "multiheadrouting__temperature": ["auto", 0.05],
            "multiheadrouting__method": ["centroid", "learned"],
            "multiheadrouting__heads_per_group": [1, 2],
        },
        cv=3,
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == 8
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.9
    assert search.transform(X).shape == (60, 12)


def test_parameters_are_kept_as_they_are():
    state = np.random.RandomState(1)
    estimator = MultiHeadRouting(temperature=0.2, heads_per_group="auto", random_state=state)
    assert estimator.get_params() == {
        "temperature": 0.2,
        "method": "learned",
        "heads_per_group": "auto",
        "learn_answers": False,
        "random_state": state,
    }
    assert clone(estimator).temperature == 0.2


def test_without_scikit_learn_one_line_says_what_to_install():
    script = "import sys; sys.modules['sklearn'] = None; import headroute.sklearn"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: headroute.sklearn needs scikit-learn: pip install 'headroute[learn]'"
    )


def test_group_weights_are_sums(backend, rng):
    """Heads of a group need not be neighbours."""
    groups = np.array([2, 0, 1, 0, 2])
    router = Router(
        rng.standard_normal((5, 6)), np.eye(5), groups=groups, temperature=0.3, backend=backend
    )
    queries = rng.standard_normal((7, 6))
    weights = router.route(queries)
    expected = np.stack([weights[:, groups == g].sum(axis=1) for g in range(3)], axis=1)
    # At most two float32 additions in one order or the other.
    np.testing.assert_allclose(router.route_groups(queries), expected, rtol=2**-23)
    np.testing.assert_array_equal(router.route_groups(queries[0]), router.route_groups(queries)[0])
    np.testing.assert_array_equal(
        router.predict(queries).group, router.route_groups(queries).argmax(axis=1)
    )
