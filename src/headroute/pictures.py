"""The pictures of a database's heads, and the page that shows them beside a validation."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from headroute import plots
from headroute.database import Database
from headroute.evaluation import Task, cosine_scores, rank
from headroute.files import replace_file
from headroute.loading import router_of, stored_heads
from headroute.router import Router
from headroute.validation import (
    Answers,
    Questions,
    ValidationReport,
    all_answers,
    embed_test_set,
    groups_of,
    numbers,
    read_test_set,
    training_questions,
    unseen,
    validate,
)
from headroute.validation_text import comparison_text, verdict_text, worst_text

TEMPERATURES = tuple(float(f"{tau:.2g}") for tau in np.geomspace(0.005, 1, 24))
FORMATS = (".png", ".svg")


@dataclass(frozen=True)
class Subject:
    """What is drawn: heads, and questions that they were trained on or not."""

    router: Router
    questions: Questions
    answers: Answers

    @property
    def kind(self) -> str:
        n = f"{len(self.questions.texts):,}"
        return f"{n} held-out questions" if self.questions.test_set else f"{n} training questions"


@dataclass(frozen=True)
class PictureReport:
    """What `headroute plot` or `headroute report` wrote."""

    output: str
    pictures: list[str]
    questions: int
    heads: int


def read_subject(path: Path, model: str | None, name: str | None, test_set: Path | None) -> Subject:
    """Raises what `validate` raises."""
    with Database.open(path, read_only=True) as db:
        heads = stored_heads(db, model, name)
        questions = training_questions(db, heads.model, heads.cluster_ids)
        if test_set:
            pairs = read_test_set(db, heads.model, test_set)
            questions = unseen(embed_test_set(heads.model, pairs, test_set), questions)
        return Subject(router_of(heads), questions, all_answers(db, heads.model))


def draw_temperature(subject: Subject) -> Any:
    """Recall@1 and likelihood over τ."""
    router, questions, answers = subject.router, subject.questions, subject.answers
    groups = groups_of(questions, answers)
    task = Task(questions.vectors, groups, answers.vectors, answers.groups)

    def recall(tau: float) -> float:
        projected = router.project(questions.vectors, temperature=tau)
        return float((rank(cosine_scores(projected, answers.vectors), task).first == 1).mean())

    return plots.temperature_figure(
        router.temperature,
        router.training.temperature_curve if router.training else (),
        [(tau, recall(tau)) for tau in TEMPERATURES],
        subject.kind,
    )


def draw_weights(subject: Subject) -> Any:
    """Questions by heads."""
    router, questions = subject.router, subject.questions
    known = np.isin(questions.cluster_names, router.names)
    rows = questions.vectors[known]
    names = [name for name, there in zip(questions.cluster_names, known, strict=True) if there]
    groups = numbers(names, router.names)
    return plots.weights_figure(router.route_groups(rows), groups, router.names, router.temperature)


def draw_map(subject: Subject) -> Any:
    """Questions and heads in the plane."""
    router, questions = subject.router, subject.questions
    number_of = {name: number for number, name in enumerate(router.names)}
    groups = np.array([number_of.get(name, -1) for name in questions.cluster_names])
    return plots.map_figure(
        questions.vectors, groups, router.centroids, router.groups, router.names
    )


PICTURES: dict[str, Callable[[Subject], Any]] = {
    "temperature": draw_temperature,
    "weights": draw_weights,
    "map": draw_map,
}

_CAPTIONS = {
    "temperature": "Recall@1 and likelihood over the temperature. The dotted line is the router's.",
    "weights": "Routing weights: each row is a question, each column a group of heads. What is off "
    "the diagonal is taken for something else.",
    "map": "Questions and heads in the plane; what lies together here may be further apart.",
}


def plot(subject: Subject, kind: str, output: Path) -> PictureReport:
    """Write one picture, PNG or SVG by the name of the file; ValueError for another."""
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"{output}: a picture's name ends in .png or .svg")
    figure = PICTURES[kind](subject)
    with replace_file(output) as file:
        figure.savefig(file, format=output.suffix[1:].lower())
    return PictureReport(str(output), [kind], len(subject.questions.texts), subject.router.n_heads)


def write_page(
    path: Path,
    output: Path,
    *,
    model: str | None = None,
    name: str | None = None,
    test_set: Path | None = None,
    folds: int | None = None,
) -> PictureReport:
    """Validate, and write one self-contained page: verdict, table, worst questions, pictures."""
    report = validate(path, model=model, name=name, test_set=test_set, folds=folds)
    subject = read_subject(path, model, name, test_set)
    images = {kind: _png(draw(subject)) for kind, draw in PICTURES.items()}
    with replace_file(output) as file:
        file.write(page(str(path), report, images).encode())
    return PictureReport(
        str(output), list(images), len(subject.questions.texts), subject.router.n_heads
    )


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def page(database: str, report: ValidationReport, images: dict[str, bytes]) -> str:
    """HTML of a validation and its pictures, PNG by kind."""
    verdict = verdict_text(report)
    worst = f"<pre>{escape(worst_text(report))}</pre>" if report.worst_questions else ""
    figures = "\n".join(
        f'<figure><img alt="{escape(_CAPTIONS[kind])}" '
        f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{escape(_CAPTIONS[kind])}</figcaption></figure>"
        for kind, image in images.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>headroute: {escape(database)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
pre {{ font-size: 14px; overflow-x: auto; background: #f4f4f4; padding: 1rem }}
figure {{ margin: 2rem 0 }}
img {{ max-width: 100% }}
figcaption {{ color: #555 }}
.verdict {{ font-size: 1.25rem; border-left: 0.4rem solid #0072B2; padding-left: 1rem }}
</style>
<h1>Does routing help?</h1>
<p>{escape(database)}, heads of {escape(report.model)}</p>
<p class="verdict">{escape(verdict)}</p>
<pre>{escape(comparison_text(report))}</pre>
{worst}
{figures}
</html>
"""
