"""Does routing help on this database? Held-out or training questions against all its answers.

An answer counts as right for a question when its cluster has the name of the question's cluster:
databases exist in which one cluster was imported twice. The measuring itself is evaluation.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headroute.database import Database
from headroute.evaluation import Metrics, compare
from headroute.loading import embed, gather, router_of, stored_heads
from headroute.qa_files import read_test_file
from headroute.router import Router


@dataclass(frozen=True)
class RoutingMetrics:
    """Metrics of routing at one temperature."""

    temperature: float
    metrics: Metrics


@dataclass(frozen=True)
class ValidationReport:
    """Routing, at one or more temperatures, beside direct similarity on the same questions."""

    test_set: str | None  # the file of held-out questions; None: these are the training questions
    questions: int
    answers: int
    model: str
    routing: list[RoutingMetrics]
    direct: Metrics | None  # None when queries and answers have different dimensions
    # At some temperature, in Recall@1 or, where that is equal, in MRR@10.
    routing_beats_direct: bool


@dataclass(frozen=True)
class Questions:
    """Embedded questions and where they belong."""

    vectors: npt.NDArray[np.float32]  # (n, d)
    cluster_names: list[str]  # n
    test_set: str | None  # the file they came from; None: the training questions


def validate(
    path: Path,
    *,
    model: str | None = None,
    name: str | None = None,
    temperatures: Sequence[float] = (),
    test_set: Path | None = None,
) -> ValidationReport:
    """Measure the newest heads, of a model and of a name if given, by default at their own τ.

    Raises DatabaseError, QAFileError, EncoderError and, without heads, NoHeadsError.
    """
    with Database.open(path, read_only=True) as db:
        heads = stored_heads(db, model, name)
        if test_set:
            pairs = read_test_set(db, heads.model, test_set)
            questions = embed_test_set(heads.model, pairs, test_set)
        else:
            questions = training_questions(db, heads.model, heads.cluster_ids)
        temperatures = temperatures or [heads.temperature]
        return measure(db, heads.model, router_of(heads), questions, temperatures)


def read_test_set(db: Database, model: str, path: Path) -> list[tuple[str, str]]:
    """Return the (question, cluster name) pairs of a file of held-out questions.

    Raises QAFileError, and ValueError for a cluster without an answer in the database.
    """
    pairs = read_test_file(path)
    answered = {answer.cluster_id for answer in db.searched_answers(model)}
    names = {cluster.name for cluster in db.clusters() if cluster.cluster_id in answered}
    for _, name in pairs:
        if name not in names:
            raise ValueError(f"{path}: the cluster {name!r} has no answers in {db.path}")
    return pairs


def embed_test_set(model: str, pairs: Sequence[tuple[str, str]], path: Path) -> Questions:
    vectors = embed(model, "question", [text for text, _ in pairs])
    return Questions(vectors, [name for _, name in pairs], str(path))


def training_questions(db: Database, model: str, cluster_ids: Sequence[int]) -> Questions:
    """Return the embedded questions of the clusters; one that is gone has none."""
    clusters = {cluster.cluster_id: cluster for cluster in db.clusters()}
    present = [clusters[cluster_id] for cluster_id in cluster_ids if cluster_id in clusters]
    members = enumerate(cluster.question_ids for cluster in present)
    vectors, groups = gather(db, model, "question", members)
    return Questions(vectors, [present[group].name for group in groups], None)


def measure(
    db: Database, model: str, router: Router, questions: Questions, temperatures: Sequence[float]
) -> ValidationReport:
    """Rank all embedded answers of the database for every question."""
    name_of = {cluster.cluster_id: cluster.name for cluster in db.clusters()}
    number_of = {name: number for number, name in enumerate(sorted(set(name_of.values())))}
    answers, answer_groups = gather(
        db,
        model,
        "answer",
        ((number_of[name_of[a.cluster_id]], [a.answer_id]) for a in db.searched_answers(model)),
    )
    groups = [number_of[name] for name in questions.cluster_names]
    compared = [
        compare(router, questions.vectors, groups, answers, answer_groups, temperature=temperature)
        for temperature in temperatures
    ]
    direct = compared[0].direct
    return ValidationReport(
        test_set=questions.test_set,
        questions=len(groups),
        answers=len(answers),
        model=model,
        routing=[
            RoutingMetrics(temperature, comparison.routing)
            for temperature, comparison in zip(temperatures, compared, strict=True)
        ],
        direct=direct,
        routing_beats_direct=direct is not None
        and any(merit(comparison.routing) > merit(direct) for comparison in compared),
    )


def merit(metrics: Metrics) -> tuple[float, float]:
    return metrics.recall_at_1, metrics.mrr_at_10
