"""What routing has to beat: other ways to score the same candidates, each at its best.

    nearest centroid      cosine to the mean question of the candidate's group
    nearest question      cosine to the closest question of the candidate's group
    linear adapter        q ↦ q B, cosine to the candidate; B by ridge regression to the unit mean
                          answer of each training question's group, its strength by leave-one-out
    logistic regression   probability of the candidate's group, C by cross-validation
    BM25                  of the texts

A candidate whose group has no training question comes last. The libraries are imported when used.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute._backends.reference import unit
from headroute._optional import library
from headroute._questions import sums_of
from headroute.evaluation import (
    BLOCK_BYTES,
    Float64,
    Int64,
    Method,
    Scores,
    Task,
    checked_task,
    cosine_scores,
)

# The scores (b, G) of groups 0..G-1 for unit queries (b, d).
GroupScores = Callable[[Float64], Float64]

_STRENGTHS = np.logspace(-3, 3, 13)  # of the ridge regression
_CS = (1.0, 10.0, 100.0)
_FOLDS = 3
# C is chosen on so many questions at most: more change it little and take minutes.
_QUESTIONS_FOR_C = 3_000


def trained(task: Task, questions: npt.ArrayLike, groups: npt.ArrayLike) -> dict[str, Method]:
    """The methods that learn from questions (t, d) and groups (t,), by name."""
    training = checked_task(
        questions, groups, task.candidates, task.candidate_groups, "training questions"
    )
    width, expected = training.queries.shape[1], task.queries.shape[1]
    if len(training.groups) == 0 or width != expected:
        raise ValueError(
            f"there must be training questions of {expected} columns like the queries, got shape "
            f"{training.queries.shape}"
        )
    present, numbers = np.unique(training.groups, return_inverse=True)
    column = np.searchsorted(present, task.candidate_groups)
    column[~np.isin(task.candidate_groups, present)] = len(present)
    queries = unit(task.queries.astype(np.float64))
    rows = unit(training.queries.astype(np.float64))

    def of_groups(fit: Callable[[], GroupScores]) -> Method:
        """A candidate's score is its group's."""

        def method() -> Scores:
            scores = fit()

            def all_candidates(part: slice) -> Float64:
                by_group = scores(queries[part])
                last = np.full((len(by_group), 1), -np.inf)
                result: Float64 = np.hstack([by_group, last])[:, column]
                return result

            return all_candidates

        return method

    methods: dict[str, Method] = {
        "nearest centroid": of_groups(partial(nearest_centroid, training.queries, numbers)),
        "nearest question": of_groups(partial(nearest_question, rows, numbers)),
        "linear adapter": lambda: cosine_scores(
            linear_adapter(rows, training.groups, task)(queries), task.candidates
        ),
    }
    if len(present) > 1:
        methods["logistic regression"] = of_groups(partial(logistic_regression, rows, numbers))
    return methods


def nearest_centroid(questions: npt.NDArray[Any], groups: Int64) -> GroupScores:
    centroids = unit(sums_of(questions, groups, groups.max() + 1)).T
    return lambda queries: queries @ centroids


def nearest_question(rows: Float64, groups: Int64) -> GroupScores:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    by_group = rows[order].T
    step = max(1, BLOCK_BYTES // (8 * len(rows)))

    def scores(queries: Float64) -> Float64:
        blocks = (queries[start : start + step] for start in range(0, len(queries), step))
        return np.concatenate(
            [np.maximum.reduceat(block @ by_group, starts, axis=1) for block in blocks]
        )

    return scores


def linear_adapter(rows: Float64, groups: Int64, task: Task) -> Any:
    """Maps unit queries (n, d) to (n, e)."""
    linear_model = library("sklearn.linear_model", "this comparison", "learn")
    owners, numbers = np.unique(task.candidate_groups, return_inverse=True)
    answers = unit(sums_of(unit(task.candidates.astype(np.float64)), numbers, len(owners)))
    targets = answers[np.searchsorted(owners, groups)]
    model = linear_model.RidgeCV(alphas=_STRENGTHS, fit_intercept=False).fit(rows, targets)
    return model.predict


def logistic_regression(rows: Float64, groups: Int64) -> Any:
    """The scores are log-probabilities."""
    linear_model = library("sklearn.linear_model", "this comparison", "learn")
    selection = library("sklearn.model_selection", "this comparison", "learn")
    model = linear_model.LogisticRegression(C=10.0, max_iter=1000)
    part = np.random.default_rng(0).permutation(len(rows))[:_QUESTIONS_FOR_C]
    # C is chosen on the groups that have a question for every fold.
    enough = np.bincount(groups[part])[groups[part]] >= _FOLDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are many groups
        if len(np.unique(groups[part][enough])) > 1:
            folds = selection.StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
            search = selection.GridSearchCV(model, {"C": _CS}, cv=folds, refit=False)
            model.set_params(**search.fit(rows[part][enough], groups[part][enough]).best_params_)
        return model.fit(rows, groups).predict_log_proba


def bm25(task: Task, queries: Sequence[str], candidates: Sequence[str]) -> Scores:
    """BM25 scores of candidates' texts for queries' texts, stemmed by nobody."""
    n, m = len(task.groups), len(task.candidate_groups)
    if (len(queries), len(candidates)) != (n, m):
        raise ValueError(
            f"every row needs one text: {n} queries and {len(queries)} texts, "
            f"{m} candidates and {len(candidates)} texts"
        )
    bm25s = library("bm25s", "this comparison", "learn")
    tokens = [
        bm25s.tokenize(texts, show_progress=False, return_ids=False)
        for texts in (list(queries), list(candidates))
    ]
    known = {word for words in tokens[1] for word in words}
    index = bm25s.BM25()
    if known:
        index.index(tokens[1], show_progress=False)

    def scores(part: slice) -> Float64:
        rows = [
            index.get_scores(words) if known.intersection(words) else np.zeros(m)
            for words in tokens[0][part]
        ]
        return np.array(rows, dtype=np.float64)

    return scores
