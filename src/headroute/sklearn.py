"""Multi-head routing as a scikit-learn estimator: a classifier, and a transformer to answers.

Needs scikit-learn (extra `learn`); nothing else in headroute imports this module.
"""

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
        "headroute.sklearn needs scikit-learn: pip install 'headroute[learn]'", name=error.name
    ) from None

from headroute import _validate
from headroute._backends.reference import unit
from headroute._questions import sums_of, vector_numbers
from headroute._validate import Float32
from headroute.router import Router
from headroute.training import train_heads

Float64 = npt.NDArray[np.float64]


def _joined(before: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels of both; ValueError where numbers would become strings."""
    result = np.concatenate([before, labels])
    if result.dtype.kind in "SU" and before.dtype.kind != labels.dtype.kind:
        raise ValueError(f"y has labels of dtype {labels.dtype}, those so far are {before.dtype}")
    return result


class MultiHeadRouting(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator
):
    """Heads for the classes of embedded questions.

    Args: temperature, method, heads_per_group, learn_answers and random_state as for
        `headroute.train_heads`; random_state may be anything that scikit-learn takes.

    Attributes after `fit`:
        classes_: (G,) the labels, sorted.
        router_: the `headroute.Router`, whose groups are the classes.
        temperature_: its τ.
        n_features_in_, feature_names_in_: of X.

    The questions are kept as float32 for `partial_fit`, and pickled with the estimator; `router_`
    is all that routing needs. What is trained depends on the questions, not on their order. A row
    of zeros has no direction and gets the same probability for every head.
    """

    router_: Router
    classes_: npt.NDArray[Any]
    temperature_: float
    _rows: Float32  # (n, d)
    _labels: npt.NDArray[Any]  # (n,)
    _answers: npt.NDArray[Any] | None  # (G, e)

    def __init__(
        self,
        *,
        temperature: float | Literal["auto"] = "auto",
        method: str = "learned",
        heads_per_group: int | Literal["auto"] = 1,
        learn_answers: bool = False,
        random_state: Any = 0,
    ) -> None:
        self.temperature = temperature
        self.method = method
        self.heads_per_group = heads_per_group
        self.learn_answers = learn_answers
        self.random_state = random_state

    def fit(self, X: Any, y: Any, answers: npt.ArrayLike | None = None) -> Self:
        """Train heads for the classes of y.

        Args:
            X: (n, d) embedded questions.
            y: (n,) labels of at least two classes.
            answers: (G, e) an answer for each class, in the order of the sorted labels; by default
                the unit mean question.

        Raises ValueError and warns as `train_heads` does.
        """
        rows, labels = self._questions(X, y, reset=True)
        self._train(rows, labels, answers)
        return self

    def partial_fit(self, X: Any, y: Any, classes: npt.ArrayLike | None = None) -> Self:
        """Train on these questions and all that came before, as `fit` would on all of them.

        Args:
            classes: all labels that may be seen; those without questions are left out of classes_
                until they have some. Not needed.

        Until there are two classes with questions, there is nothing to predict. Questions that
        raise are not kept. After a `fit` with answers, a class without one is a ValueError.
        """
        first = not hasattr(self, "_rows")
        rows, labels = self._questions(X, y, reset=first)
        strange = [] if classes is None else np.setdiff1d(labels, classes).tolist()
        if strange:
            raise ValueError(f"y has labels that are not in classes: {strange}")
        answers = None
        if not first:
            rows = np.concatenate([self._rows, rows])
            labels = _joined(self._labels, labels)
            answers = self._answers
        if len(np.unique(labels)) > 1:
            self._train(rows, labels, answers)
        else:
            self._rows, self._labels, self._answers = rows, labels, answers
        return self

    def _questions(self, X: Any, y: Any, *, reset: bool) -> tuple[Float32, npt.NDArray[Any]]:
        """Copies of X as float32 (n, d), and of y, (n,), checked."""
        X, y = validate_data(self, X, y, reset=reset, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        return _validate.float32_training_rows(X, "question"), np.array(y)

    def _train(
        self, rows: Float32, labels: npt.NDArray[Any], answers: npt.ArrayLike | None
    ) -> None:
        classes, groups = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"Classifier can't train when only one class is present: {classes.tolist()}"
            )
        if answers is not None and len(np.atleast_1d(answers)) != len(classes):
            raise ValueError(
                f"answers must have a row for each of {len(classes)} classes, "
                f"got shape {np.shape(answers)}"
            )
        # Sums are rounded, and questions held out, by their place: give every set one order.
        order = np.lexsort((vector_numbers(rows), groups))
        questions, groups = rows[order], groups[order]
        self.router_ = train_heads(
            questions,
            groups,
            unit(sums_of(questions, groups, len(classes))) if answers is None else answers,
            temperature=self.temperature,
            method=self.method,
            heads_per_group=self.heads_per_group,
            learn_answers=self.learn_answers,
            random_state=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        self.classes_ = classes
        self.temperature_ = self.router_.temperature
        self._n_features_out = self.router_.answer_dim
        self._rows, self._labels = rows, labels
        self._answers = None if answers is None else np.array(answers)

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
        """The logarithm of the weights, (n, G), finite also where a weight is too small for
        float32; for two classes that of the second less that of the first, (n,).
        """
        rows = self._checked(X)
        # At τ = 1 no weight underflows: its logarithm is the cosine, up to what all heads share.
        weights = self.router_.route(rows, temperature=1)
        logits = np.log(weights, dtype=np.float64) / self.temperature_
        first_heads = np.searchsorted(self.router_.groups, np.arange(len(self.classes_)))
        logits = np.logaddexp.reduceat(logits, first_heads, axis=1)
        if len(self.classes_) == 2:
            difference: Float64 = logits[:, 1] - logits[:, 0]
            return difference
        result: Float64 = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
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
