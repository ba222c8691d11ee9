"""Heads that are kept up to date: groups come and go, questions arrive, answers change.

Nothing is embedded twice, and every router is what `train_heads` would make of all that is there.
"""

from collections.abc import Sequence
from typing import Self, Unpack

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._questions import questions_of
from headroute._validate import Float32
from headroute.router import Router
from headroute.training import TrainingOptions, checked_options, fit_heads


class HeadTrainer:
    """Questions and answers by the name of their group.

    Args: those of `train_heads` that say how to train.

    A trainer changes; the routers that it makes do not. They depend on what is there, not on the
    order in which it came: groups go by name, and the questions of a group by their bytes.
    """

    def __init__(self, **options: Unpack[TrainingOptions]) -> None:
        self._options = checked_options(options)
        self._answers: dict[str, Float32] = {}
        self._questions: dict[str, list[Float32]] = {}

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, sorted."""
        return tuple(sorted(self._answers))

    def add_group(
        self, name: str, answer: npt.ArrayLike, questions: npt.ArrayLike | None = None
    ) -> Self:
        """Add a group with its answer (e,), and questions (n, d) if there are any yet.

        Raises TypeError for a name that is no string, ValueError for one that is there, and for a
        wrong shape, NaN or infinity.
        """
        if not isinstance(name, str):
            raise TypeError(f"a group's name must be a str, got {name!r}")
        if name in self._answers:
            raise ValueError(f"there is a group {name!r} already")
        checked = None if questions is None else self._checked_questions(questions)
        self._answers[name] = self._checked_answer(answer)
        self._questions[name] = [] if checked is None or len(checked) == 0 else [checked]
        return self

    def partial_fit(self, questions: npt.ArrayLike, groups: Sequence[str]) -> Self:
        """Add questions (n, d) to groups, one name a question.

        Raises KeyError for an unknown name, ValueError for a wrong shape, NaN or infinity; nothing
        is added then.
        """
        rows = self._checked_questions(questions)
        if len(groups) != len(rows):
            raise ValueError(f"{len(rows)} questions and {len(groups)} groups")
        for name in groups:
            self._known(name)
        for name in dict.fromkeys(groups):
            self._questions[name].append(rows[[own == name for own in groups]])
        return self

    def remove_group(self, name: str) -> Self:
        """Forget a group; KeyError for an unknown one."""
        self._known(name)
        del self._answers[name], self._questions[name]
        return self

    def update_answer(self, name: str, answer: npt.ArrayLike) -> Self:
        """Give a group another answer (e,); its questions stay. KeyError for an unknown group."""
        self._known(name)
        self._answers[name] = self._checked_answer(answer)
        return self

    def router(self, *, backend: str = "auto", progress: bool = False) -> Router:
        """The router of all groups that have questions.

        Raises ValueError for fewer than two.
        """
        names = [name for name in self.groups if self._questions[name]]
        if len(names) < 2:
            raise ValueError(f"routing needs at least two groups with questions, got {len(names)}")
        parts = [_sorted(np.concatenate(self._questions[name])) for name in names]
        groups = np.repeat(np.arange(len(names)), [len(part) for part in parts])
        questions = questions_of(np.concatenate(parts), groups, len(names))
        answers = np.stack([self._answers[name] for name in names])
        heads = fit_heads(questions, self._options, answers, progress=progress)
        return heads.router(answers, names, backend)

    def _known(self, name: str) -> None:
        if name not in self._answers:
            raise KeyError(f"there is no group {name!r}")

    def _checked_questions(self, values: npt.ArrayLike) -> Float32:
        rows = _validate.real_array(values, "questions")
        d = next((rows[0].shape[1] for rows in self._questions.values() if rows), None)
        if rows.ndim != 2 or rows.shape[1] == 0 or d not in (None, rows.shape[1]):
            raise ValueError(
                f"questions must have shape (n, {'d' if d is None else d}), got {rows.shape}"
            )
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(f"question {finite.argmin()} has a NaN or infinity in it")
        return _validate.float32_training_rows(rows, "question")

    def _checked_answer(self, values: npt.ArrayLike) -> Float32:
        row = _validate.real_array(values, "answer")
        e = next((len(answer) for answer in self._answers.values()), None)
        if row.ndim != 1 or len(row) == 0 or e not in (None, len(row)):
            raise ValueError(
                f"answer must have shape ({'e' if e is None else e},), got {row.shape}"
            )
        if not np.isfinite(row).all():
            raise ValueError("the answer has a NaN or infinity in it")
        result: Float32 = _validate.float32_training_rows(row[np.newaxis], "answer")[0]
        return result


def _sorted(rows: Float32) -> Float32:
    """Rows (n, d) in the order of their bytes."""
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
    return rows[np.argsort(keys, kind="stable")]
