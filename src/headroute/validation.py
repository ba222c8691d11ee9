"""Does routing help on this database? Questions against all its answers, by every method.

An answer counts as right for a question when its cluster has the name of the question's cluster:
databases exist in which one cluster was imported twice. The measuring itself is evaluation.py's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headroute._backends.reference import unit
from headroute._questions import questions_of, vector_numbers
from headroute.database import Database
from headroute.evaluation import (
    ROUTING,
    Difference,
    Evaluation,
    Int64,
    Ranking,
    Task,
    concatenate,
    conclude,
    rank_by_all,
)
from headroute.loading import embed, gather, router_of, stored_heads
from headroute.progress import progress_bar
from headroute.qa_files import read_test_file
from headroute.router import Router
from headroute.training import Options, fit_heads

Float32 = npt.NDArray[np.float32]

_WORST = 5


@dataclass(frozen=True)
class WorstQuestion:
    """A question that routing answers badly."""

    question: str
    cluster: str
    rank: int  # of its cluster's first answer
    found: str  # the cluster of the answer at rank 1


@dataclass(frozen=True)
class WorstCluster:
    cluster: str
    questions: int
    right: float  # share of its questions whose first answer is its own


@dataclass(frozen=True)
class ValidationReport:
    """Routing, at one or more temperatures, beside everything else on the same questions."""

    test_set: str | None  # the file of held-out questions
    folds: int | None  # of a cross-validation; neither: these are the training questions
    questions: int
    # Questions without a fair test: of a test set those that the heads were trained on, of a
    # cross-validation those whose cluster had none left to train on.
    left_out: int
    repeated: int  # questions not counted, as they are in their cluster a second time: no evidence
    answers: int
    model: str
    temperatures: list[float]
    figures: dict[str, dict[str, float]]  # by method, by sentence-transformers' name
    accuracy_difference: Difference | None  # routing less direct similarity, cosine_accuracy@1
    mrr_difference: Difference | None
    verdict: str | None  # None where there can be none: on training questions, or d != e
    worst_questions: list[WorstQuestion]
    worst_clusters: list[WorstCluster]

    @property
    def held_out(self) -> bool:
        return self.test_set is not None or self.folds is not None


@dataclass(frozen=True)
class Questions:
    """Embedded questions and where they belong."""

    vectors: Float32  # (n, d)
    cluster_names: list[str]  # n
    texts: list[str]  # n
    test_set: str | None  # the file they came from; None: the training questions
    left_out: int = 0  # others, see ValidationReport
    repeated: int = 0


class Answers(NamedTuple):
    """The embedded answers of a database."""

    vectors: Float32  # (m, e)
    groups: Int64  # (m,) indices into names
    texts: list[str]
    names: list[str]  # of clusters, sorted


def validate(
    path: Path,
    *,
    model: str | None = None,
    name: str | None = None,
    temperatures: Sequence[float] = (),
    test_set: Path | None = None,
    folds: int | None = None,
) -> ValidationReport:
    """Measure the newest heads, of a model and of a name if given, by default at their own τ.

    On the questions of `test_set`; or by cross-validation, with heads trained anew in every fold;
    or on the training questions.

    Raises DatabaseError, QAFileError, EncoderError, and, without heads, NoHeadsError; ValueError
    for a number of folds that cannot be, for no question that can be held out, and for a cluster
    whose answers have no embeddings.
    """
    with Database.open(path, read_only=True) as db:
        heads = stored_heads(db, model, name)
        router = router_of(heads)
        training = training_questions(db, heads.model, heads.cluster_ids)
        if folds is not None:
            return cross_validate(db, heads.model, router, training, folds, temperatures)
        questions = training
        if test_set:
            pairs = read_test_set(db, heads.model, test_set)
            questions = unseen(embed_test_set(heads.model, pairs, test_set), training)
        return measure(db, heads.model, router, questions, temperatures, training)


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
    texts = [text for text, _ in pairs]
    return Questions(embed(model, "question", texts), [name for _, name in pairs], texts, str(path))


def unseen(questions: Questions, training: Questions) -> Questions:
    """Leave out the training questions, and repeats; ValueError when nothing is left."""
    known = len(training.texts)
    vectors = questions.vectors
    if known:
        vectors = np.concatenate([training.vectors, vectors])
    same = same_questions(training.texts + questions.texts, vectors)
    seen = np.isin(same[known:], same[:known])
    once = first_rows(same[known:], questions.cluster_names)
    kept = once[~seen[once]]
    if len(kept) == 0:
        raise ValueError(f"{questions.test_set}: the heads were trained on all of these questions")
    return some_of(questions, kept, len(seen) - len(once))


def first_rows(same: Int64, cluster_names: Sequence[str]) -> Int64:
    """Rows, ascending, without those that are the same question of the same cluster again."""
    clusters = np.unique(cluster_names, return_inverse=True)[1]
    rows: Int64 = np.unique(np.stack([same, clusters]), axis=1, return_index=True)[1]
    return np.sort(rows)


def some_of(questions: Questions, rows: Int64, repeated: int) -> Questions:
    """Only these; the others are left out, but for those that are repeated."""
    return Questions(
        questions.vectors[rows],
        [questions.cluster_names[row] for row in rows],
        [questions.texts[row] for row in rows],
        questions.test_set,
        len(questions.texts) - len(rows) - repeated,
        repeated,
    )


def training_questions(db: Database, model: str, cluster_ids: Sequence[int]) -> Questions:
    """Return the embedded questions of the clusters; one that is gone has none."""
    clusters = {cluster.cluster_id: cluster for cluster in db.clusters()}
    present = [clusters[cluster_id] for cluster_id in cluster_ids if cluster_id in clusters]
    vectors, places, ids = gather(
        db, model, "question", enumerate(cluster.question_ids for cluster in present)
    )
    texts = db.question_texts()
    names = [present[place].name for place in places]
    return Questions(vectors, names, [texts[question_id] for question_id in ids], None)


def all_answers(db: Database, model: str) -> Answers:
    name_of = {cluster.cluster_id: cluster.name for cluster in db.clusters()}
    names = sorted(set(name_of.values()))
    number_of = {name: number for number, name in enumerate(names)}
    searched = db.searched_answers(model)
    members = [(number_of[name_of[a.cluster_id]], [a.answer_id]) for a in searched]
    vectors, groups, ids = gather(db, model, "answer", members)
    text_of = {a.answer_id: a.text for a in searched}
    return Answers(vectors, groups, [text_of[answer_id] for answer_id in ids], names)


def measure(
    db: Database,
    model: str,
    router: Router,
    questions: Questions,
    temperatures: Sequence[float] = (),
    training: Questions | None = None,
) -> ValidationReport:
    """Rank all embedded answers of the database for every question.

    With the training questions and a test set, by every method there is; else by routing and
    direct similarity.
    """
    answers = all_answers(db, model)
    groups = groups_of(questions, answers)
    task = Task(questions.vectors, groups, answers.vectors, answers.groups)
    others = None
    if training is not None and training.texts and questions.test_set:
        others = training.vectors, groups_of(training, answers)
    texts = (questions.texts, answers.texts) if others else None
    rankings = rank_by_all(router, task, others, texts, temperatures, progress=True)
    evaluation = conclude(rankings, groups, len(answers.vectors))
    return report_of(evaluation, questions, answers, model, temperatures or [router.temperature])


def numbers(names: Sequence[str], known: Sequence[str]) -> Int64:
    number_of = {name: number for number, name in enumerate(known)}
    return np.array([number_of[name] for name in names], dtype=np.int64)


def groups_of(questions: Questions, answers: Answers) -> Int64:
    """Groups (n,) of questions; ValueError for a cluster of which no answer is embedded."""
    groups = numbers(questions.cluster_names, answers.names)
    missing = ~np.isin(groups, answers.groups)
    if missing.any():
        name = questions.cluster_names[missing.argmax()]
        raise ValueError(
            f"no answer of the cluster {name!r} has an embedding: train again, the database has "
            "changed since"
        )
    return groups


def cross_validate(
    db: Database,
    model: str,
    router: Router,
    questions: Questions,
    folds: int,
    temperatures: Sequence[float] = (),
) -> ValidationReport:
    """Hold out every question once, and train heads as the router's were trained on the others.

    Repeats are trained on as they were, and not counted.
    """
    answers = all_answers(db, model)
    groups = groups_of(questions, answers)
    directions = answer_directions(answers)
    training = router.training
    options = Options(method="centroid", temperature=router.temperature)
    if training is not None:
        options = Options(
            "auto" if training.temperature_source != "given" else router.temperature,
            training.method,
            training.heads_per_group,
            training.answer_freedom is not None,
        )
    same = same_questions(questions.texts, questions.vectors)
    once = first_rows(same, questions.cluster_names)
    parts, rows = [], []
    with progress_bar(folds, "Cross-validating", "fold") as bar:
        for train, test in split(same, groups, folds):
            present, own = np.unique(groups[train], return_inverse=True)
            kept = test[np.isin(groups[test], present) & np.isin(test, once)]
            task = Task(questions.vectors[kept], groups[kept], answers.vectors, answers.groups)
            if len(kept):
                fitted = fit_heads(
                    questions_of(questions.vectors[train], own, len(present)),
                    options,
                    directions[present],
                )
                parts.append(
                    rank_by_all(
                        fitted.router(directions[present], None),
                        task,
                        (questions.vectors[train], groups[train]),
                        ([questions.texts[row] for row in kept], answers.texts),
                        temperatures,
                    )
                )
                rows.append(kept)
            bar.update()
    if not rows:
        raise ValueError("no cluster has two different questions, one to train on and one to test")
    order = np.concatenate(rows)
    evaluation = conclude(concatenate(parts), groups[order], len(answers.vectors))
    tested = some_of(questions, order, len(groups) - len(once))
    return report_of(
        evaluation, tested, answers, model, temperatures or [router.temperature], folds
    )


def answer_directions(answers: Answers) -> Float32:
    """The unit mean answer (G, e) of each cluster, zero for one without answers."""
    sums = np.zeros((len(answers.names), answers.vectors.shape[1]))
    np.add.at(sums, answers.groups, answers.vectors)
    return unit(sums).astype(np.float32)


def split(same: Int64, groups: Int64, folds: int) -> Iterator[tuple[Int64, Int64]]:
    """Rows to train on and to test on, each group spread over the folds; rows of the same number
    are never on both sides.
    """
    firsts = np.unique(same, return_index=True)[1]
    if not 2 <= folds <= len(firsts):
        raise ValueError(
            f"there must be at least 2 folds and at most one a different question, "
            f"{len(firsts)}, got {folds}"
        )
    # Dealt like cards, group after group, so that a group of a few questions is spread too.
    shuffled = np.random.default_rng(0).permutation(len(firsts))
    by_group = shuffled[np.argsort(groups[firsts][shuffled], kind="stable")]
    fold_of = np.empty(len(firsts), np.int64)
    fold_of[by_group] = np.arange(len(firsts)) % folds
    for fold in range(folds):
        held_out = fold_of[same] == fold
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def same_questions(texts: Sequence[str], vectors: Float32) -> Int64:
    """(n,) the same number, from 0, for the same question: the same text but for case and spaces,
    or the same vector, or by way of others.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    plain = [" ".join(text.casefold().split()) for text in texts]
    by_text = np.unique(plain, return_inverse=True)[1]
    by_vector = vector_numbers(vectors)
    # A graph of texts and vectors, in which a question is an edge.
    n_texts = by_text.max() + 1
    n = n_texts + by_vector.max() + 1
    graph = csr_array((np.ones(len(plain)), (by_text, n_texts + by_vector)), shape=(n, n))
    labels = connected_components(graph, directed=False)[1][by_text]
    numbers: Int64 = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return numbers


def report_of(
    evaluation: Evaluation,
    questions: Questions,
    answers: Answers,
    model: str,
    temperatures: Sequence[float],
    folds: int | None = None,
) -> ValidationReport:
    routing: Ranking = next(
        ranking for name, ranking in evaluation.rankings.items() if name.startswith(ROUTING)
    )
    held_out = questions.test_set is not None or folds is not None
    return ValidationReport(
        test_set=questions.test_set,
        folds=folds,
        questions=evaluation.queries,
        left_out=questions.left_out,
        repeated=questions.repeated,
        answers=evaluation.candidates,
        model=model,
        temperatures=list(temperatures),
        figures=evaluation.figures,
        accuracy_difference=evaluation.accuracy_difference,
        mrr_difference=evaluation.mrr_difference,
        verdict=evaluation.verdict if held_out else None,
        worst_questions=[
            WorstQuestion(
                questions.texts[row],
                questions.cluster_names[row],
                int(routing.first[row]),
                answers.names[routing.found[row]],
            )
            for row in evaluation.worst_queries(_WORST)
        ],
        worst_clusters=[
            WorstCluster(answers.names[figures.group], figures.queries, figures.right)
            for figures in evaluation.worst_groups[:_WORST]
        ],
    )
