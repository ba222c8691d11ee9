"""Fit heads from embeddings and groups. Pure functions: arrays in, a router out, no files.

A head's centroid is the mean of its questions' embeddings, or is learned from there (learning.py);
its answer is that of its group. τ is the likeliest for questions that the heads do not know
(leave_one_out.py).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._questions import Questions, checked_questions, means, merge_twins, sums_of
from headroute._validate import Float32
from headroute.abstention import calibrate
from headroute.answer_learning import learn_answers, weigh
from headroute.learning import learn
from headroute.leave_one_out import (
    Cosines,
    HeadSums,
    Int64,
    LikelihoodCurve,
    best_temperature,
    left_out_cosines,
)
from headroute.prediction import Calibration
from headroute.progress import progress_bar
from headroute.router import Router
from headroute.splitting import split_groups
from headroute.training_record import Curve, TrainingRecord

METHODS = ("centroid", "learned")

DEFAULT_TEMPERATURE = 0.1  # the chapter's


class TrainingOptions(TypedDict, total=False):
    """The options of `train_heads` that say how to train."""

    temperature: float | Literal["auto"]
    method: str
    heads_per_group: int | Literal["auto"]
    learn_answers: bool
    random_state: int


@dataclass(frozen=True)
class Options:
    """TrainingOptions, checked."""

    temperature: float | Literal["auto"] = "auto"
    method: str = "learned"
    heads_per_group: int | Literal["auto"] = 1
    learn_answers: bool = False
    random_state: int = 0


def checked_options(options: TrainingOptions) -> Options:
    """Raises TypeError and ValueError, with the value."""
    result = Options(**options)
    if result.temperature != "auto":
        _validate.temperature(result.temperature)
    _validate.one_of(result.method, "method", METHODS)
    if result.heads_per_group != "auto":
        _validate.at_least_1(result.heads_per_group, "heads_per_group")
    return result


def train_heads(
    questions: npt.ArrayLike,
    groups: npt.ArrayLike,
    answers: npt.ArrayLike,
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
    progress: bool = False,
    **options: Unpack[TrainingOptions],
) -> Router:
    """Return a router with heads for every group of questions.

    Args:
        questions: (n, d) embeddings of the training questions.
        groups: (n,) integers, the group of each question: an index into the answers.
        answers: (G, e) one answer embedding a group, G >= 2.
        temperature: τ; "auto" takes the likeliest one for questions that are left out of their own
            heads, or held out of the learning.
        method: "centroid": a head is the mean of its questions. "learned", the default: the means
            are mapped by a matrix that was trained on the questions, when that helps questions held
            out; else they stay as they are.
        heads_per_group: a number, or "auto" for as many as make held-out questions likelier. Needs
            scikit-learn.
        learn_answers: train the groups' answers too, as unit vectors, to be found among the given
            ones, when that helps questions held out. Not where groups share all their questions.
        random_state: seed of what is random: k-means, and which questions are held out.
        names: one a group; backend: as for `Router`.
        progress: a bar on stderr, if that is a terminal.

    What was chosen, and how, is in `router.training`; `router.predict` can abstain.

    Raises TypeError for wrong dtypes; ValueError for wrong shapes, fewer than two groups, a group
    out of range or without questions, questions of a head that sum to zero, NaN and infinity, and
    unknown options. Warns when the same question is in two groups, and when "auto" has nothing to
    go by, because no group has two questions.
    """
    checked = checked_options(options)
    rows = _validate.real_array(answers, "answers")
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(
            f"answers must be a (G, e) array with a row a group, got shape {rows.shape}"
        )
    training = checked_questions(questions, groups, len(rows))
    heads = fit_heads(training, checked, rows, progress=progress)
    if heads.record.shared_questions:
        warnings.warn(
            f"{heads.record.shared_questions} questions are in more than one group: nothing was "
            "estimated from them",
            stacklevel=2,
        )
    if heads.record.temperature_source == "default":
        warnings.warn(
            "no group has two questions of its own: the temperature is the default, "
            f"{DEFAULT_TEMPERATURE:g}",
            stacklevel=2,
        )
    return heads.router(rows, names, backend)


class FittedHeads(NamedTuple):
    """Heads without their answers, unless these were learned."""

    centroids: Float32  # (K, d)
    groups: Int64  # (K,) ascending
    temperature: float
    record: TrainingRecord
    calibration: Calibration | None
    answers: Float32 | None = None  # (G, e)

    def router(
        self, answers: npt.ArrayLike, names: Sequence[str] | None, backend: str = "auto"
    ) -> Router:
        """With answers (G, e), or with the learned ones, and names of the groups."""
        values = np.asarray(answers) if self.answers is None else self.answers
        return Router(
            self.centroids,
            values[self.groups],
            temperature=self.temperature,
            names=names,
            groups=self.groups,
            backend=backend,
            calibration=self.calibration,
            training=self.record,
        )


def fit_heads(
    questions: Questions, options: Options, answers: npt.ArrayLike, *, progress: bool = False
) -> FittedHeads:
    """Fit heads to checked questions of groups with answers (G, e), which are looked at only to be
    learned; ValueError for fewer than two groups.
    """
    n_groups = len(questions.counts)
    if n_groups < 2:
        raise ValueError(f"routing needs at least two groups, got {n_groups}")
    rng = np.random.default_rng(options.random_state)
    given = questions
    questions, merged = merge_twins(given)
    heads, head_groups = questions.groups, np.arange(len(questions.counts))
    sums, curve = sums_and_curve(questions, heads, head_groups)
    likeliest = best_temperature(curve) if curve else DEFAULT_TEMPERATURE
    if options.heads_per_group != 1:
        heads, head_groups = split_groups(questions, options.heads_per_group, likeliest, rng)
        sums, curve = sums_and_curve(questions, heads, head_groups)
        likeliest = best_temperature(curve) if curve else DEFAULT_TEMPERATURE

    telling = questions.telling

    def left_out() -> Iterator[Cosines]:
        return left_out_cosines(questions.rows[telling], heads[telling], sums)

    centroids = means(sums.sums, sums.counts)
    cosines: Callable[[], Iterator[Cosines]] = left_out
    source = estimated = "leave-one-out"
    freedom: float | None = None
    freedoms: Curve = ()
    if options.method == "learned" and curve:
        with progress_bar(None, "Learning heads", "step", shown=progress) as bar:
            learned = learn(questions.rows, heads, telling, sums, likeliest, rng, bar)
        freedom, freedoms = learned.freedom, learned.freedom_curve
        if freedom:
            centroids, curve = learned.centroids, learned.temperature_curve
            likeliest = best_temperature(curve)
            cosines = learned.cosines
            source = estimated = "cross-validation"
    temperature = likeliest
    if options.temperature != "auto":
        temperature, source = float(options.temperature), "given"
    elif not curve:
        source = "default"
    calibration = calibrate(cosines, head_groups, temperature, estimated)
    values: Float32 | None = None
    values_freedom: float | None = None
    values_curve: Curve = ()
    if options.learn_answers and curve and len(questions.counts) == n_groups:
        weighted = weigh(cosines(), head_groups, temperature)
        found = learn_answers(_validate.float32_answers(np.asarray(answers)), weighted, rng)
        values_freedom, values_curve = found.freedom, found.freedom_curve
        values = found.answers if found.freedom else None
    record = TrainingRecord(
        method=options.method,
        heads_per_group=options.heads_per_group,
        questions=len(given.rows),
        lone_questions=int((given.counts == 1).sum()),
        shared_questions=int((~given.telling).sum()),
        temperature_source=source,
        temperature_curve=curve,
        freedom=freedom,
        freedom_curve=freedoms,
        answer_freedom=values_freedom,
        answer_freedom_curve=values_curve,
    )
    # Groups that were merged have the same heads.
    first, end = (np.searchsorted(head_groups, merged, side) for side in ("left", "right"))
    chosen = np.concatenate([np.arange(*ends) for ends in zip(first, end, strict=True)])
    centroids, groups = centroids[chosen], np.repeat(np.arange(n_groups), end - first)
    zero = ~centroids.any(axis=1)
    if zero.any():
        raise ValueError(
            f"questions of group {groups[zero.argmax()]} sum to zero: their head has no direction"
        )
    return FittedHeads(
        centroids,
        groups,
        temperature,
        record,
        calibration and calibration.of_heads(chosen),
        values,
    )


def sums_and_curve(
    questions: Questions, heads: Int64, head_groups: Int64
) -> tuple[HeadSums, Curve]:
    """The heads' sums, and the leave-one-out likelihood over τ."""
    rows, telling = questions.rows, questions.telling
    counts = np.bincount(heads, minlength=len(head_groups))
    sums = HeadSums(sums_of(rows, heads, len(head_groups)), counts, head_groups)
    curve = LikelihoodCurve(head_groups)
    if len(questions.counts) < 2:
        return sums, ()
    for block in left_out_cosines(rows[telling], heads[telling], sums):
        curve.add(block)
    return sums, curve.curve()
