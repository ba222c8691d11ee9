"""The estimator keeps scikit-learn's own rules, and is train_heads underneath."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from headroute import Router, train_heads
from headroute.sklearn import MultiHeadRouting


@parametrize_with_checks([MultiHeadRouting(), MultiHeadRouting(method="centroid", temperature=0.1)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def data(rng):
    """Three classes of 20 questions with string labels; class "b" lies in two places."""
    centres = np.repeat(np.eye(4, 12), [20, 10, 10, 20], axis=0)
    labels = np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 20)
    return centres + 0.2 * rng.standard_normal((60, 12)), labels


def test_it_is_train_heads(data, rng):
    X, y = data
    answers = rng.standard_normal((3, 5))
    fitted = MultiHeadRouting(random_state=3).fit(X, y, answers)
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    router = train_heads(X, np.searchsorted(["a", "b", "c"], y), answers, random_state=seed)
    np.testing.assert_array_equal(fitted.router_.centroids, router.centroids)
    assert fitted.temperature_ == router.temperature
    np.testing.assert_array_equal(fitted.transform(X), router.project(X))
    np.testing.assert_array_equal(fitted.predict(X), y)
    # float32 sums of two or three weights, divided by their sum once more.
    np.testing.assert_allclose(fitted.predict_proba(X), router.route_groups(X), rtol=2**-21)
    assert fitted.get_feature_names_out().tolist() == [f"multiheadrouting{i}" for i in range(5)]
    assert fitted.score(X, y) == 1


def test_decision_function_orders_as_the_probabilities(data):
    X, y = data
    fitted = MultiHeadRouting().fit(X, y)
    scores, probabilities = fitted.decision_function(X), fitted.predict_proba(X)
    np.testing.assert_array_equal(np.argsort(scores, axis=1), np.argsort(probabilities, axis=1))
    two = MultiHeadRouting().fit(X[y != "b"], y[y != "b"])
    np.testing.assert_array_equal(two.decision_function(X) > 0, two.predict(X) == "c")


def test_partial_fit_is_fit_on_everything(data):
    X, y = data
    whole = MultiHeadRouting().fit(X, y)
    parts = MultiHeadRouting()
    parts.partial_fit(X[:20], y[:20])  # one class: nothing to predict yet
    assert not hasattr(parts, "router_")
    for start in range(20, 60, 10):
        parts.partial_fit(X[start : start + 10], y[start : start + 10], classes=["a", "b", "c"])
    np.testing.assert_array_equal(whole.predict_proba(X), parts.predict_proba(X))
    with pytest.raises(ValueError, match="labels that are not in classes"):
        parts.partial_fit(X[:1], ["z"], classes=["a", "b", "c"])


def test_in_a_pipeline_under_a_grid_search(data):
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
    assert search.best_score_ > 0.9
    assert search.transform(X).shape == (60, 12)


def test_parameters_are_kept_as_they_are():
    state = np.random.RandomState(1)
    estimator = MultiHeadRouting(temperature=0.2, heads_per_group="auto", random_state=state)
    assert estimator.get_params() == {
        "temperature": 0.2,
        "method": "learned",
        "heads_per_group": "auto",
        "random_state": state,
    }
    assert clone(estimator).temperature == 0.2


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
