"""Multi-head routing as a scikit-learn estimator: a classifier, and a transformer to answers.

Needs scikit-learn (extra `learn`); nothing else in headroute imports this module.
"""

import warnings
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"headroute.sklearn needs {error.name}: pip install 'headroute[learn]'", name=error.name
    ) from None

from headroute._validate import Float32
from headroute.router import Router
from headroute.training import train_heads

Float64 = npt.NDArray[np.float64]


class MultiHeadRouting(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator
):
    """Heads for the classes of embedded questions.

    Args: temperature, method, heads_per_group and random_state as for `headroute.train_heads`;
        random_state may be anything that scikit-learn takes.

    Attributes after `fit`:
        classes_: (G,) the labels, sorted.
        router_: the `headroute.Router`, whose groups are the classes.
        temperature_: its τ.
        n_features_in_, feature_names_in_: of X.

    A row of zeros has no direction and gets the same probability for every head.
    """

    def __init__(
        self,
        *,
        temperature: float | Literal["auto"] = "auto",
        method: str = "learned",
        heads_per_group: int | Literal["auto"] = 1,
        random_state: Any = 0,
    ) -> None:
        self.temperature = temperature
        self.method = method
        self.heads_per_group = heads_per_group
        self.random_state = random_state

    def fit(self, X: Any, y: Any, answers: npt.ArrayLike | None = None) -> Self:
        """Train heads for the classes of y.

        Args:
            X: (n, d) embedded questions.
            y: (n,) labels of at least two classes.
            answers: (G, e) an answer for each class, in the order of the sorted labels; by default
                the unit mean question.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self._rows, self._labels, self._answers = X, np.asarray(y), answers
        return self._fit(np.unique(self._labels))

    def partial_fit(self, X: Any, y: Any, classes: npt.ArrayLike | None = None) -> Self:
        """Train on these questions and all that came before, as `fit` would on all of them.

        Args:
            classes: labels that may come later; those without questions are left out of the router
                until they do. Not needed.

        Until there are two classes with questions, there is nothing to predict.
        """
        first = not hasattr(self, "_rows")
        X, y = validate_data(self, X, y, reset=first, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        if first:
            self._rows, self._labels, self._answers = X, np.asarray(y), None
        else:
            self._rows = np.concatenate([self._rows, X])
            self._labels = np.concatenate([self._labels, y])
        seen = np.unique(self._labels)
        if classes is not None and not np.isin(seen, classes).all():
            strange = seen[~np.isin(seen, classes)]
            raise ValueError(f"y has labels that are not in classes: {strange}")
        return self._fit(seen) if len(seen) > 1 else self

    def _fit(self, classes: npt.NDArray[Any]) -> Self:
        if len(classes) < 2:
            raise ValueError(
                f"Classifier can't train when only one class is present: {classes.tolist()}"
            )
        groups = np.searchsorted(classes, self._labels)
        answers = self._answers
        if answers is None:
            sums = np.zeros((len(classes), self._rows.shape[1]))
            np.add.at(sums, groups, self._rows)
            lengths = np.linalg.norm(sums, axis=1, keepdims=True)
            answers = sums / np.where(lengths > 0, lengths, 1)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with warnings.catch_warnings():
            # Of lone and shared questions, which router_.training counts.
            warnings.simplefilter("ignore", UserWarning)
            self.router_: Router = train_heads(
                self._rows,
                groups,
                answers,
                temperature=self.temperature,
                method=self.method,
                heads_per_group=self.heads_per_group,
                random_state=seed,
            )
        self.classes_ = classes
        self.temperature_ = self.router_.temperature
        self._n_features_out = self.router_.answer_dim
        return self

    def transform(self, X: Any) -> Float32:
        """The projected questions, (n, e) float32."""
        rows = self._checked(X)
        return self.router_.project(rows)

    def predict_proba(self, X: Any) -> Float64:
        """The weight of each class's heads, (n, G), columns as in classes_."""
        rows = self._checked(X)
        weights = self.router_.route_groups(rows).astype(np.float64)
        result: Float64 = weights / weights.sum(axis=1, keepdims=True)
        return result

    def decision_function(self, X: Any) -> Float64:
        """The logarithm of the weights, (n, G); for two classes that of the second less that of the
        first, (n,).
        """
        # The least float32 in place of a weight of 0.
        logs = np.log(np.maximum(self.predict_proba(X), np.finfo(np.float32).tiny))
        result: Float64 = logs[:, 1] - logs[:, 0] if len(self.classes_) == 2 else logs
        return result

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The class of most weight, (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        result: npt.NDArray[Any] = self.classes_[best]
        return result

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]  # of a router, whatever comes in
        return tags

    def _checked(self, X: Any) -> npt.NDArray[Any]:
        check_is_fitted(self, "router_")
        rows: npt.NDArray[Any] = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return rows
