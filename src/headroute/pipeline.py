"""Training on a database, as the chapter has it: embed what is missing, fit heads, store them.

    a head's centroid = mean of its questions' embeddings
    a head's answer   = mean of its answers' embeddings, normalised

A cluster without questions or without answers gets no head. The encoder is loaded only when there
is a text to embed. Results are returned, not printed.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headroute._questions import group_means
from headroute.database import Database, DatabaseError, StoredCluster, StoredProjection
from headroute.embedding import resolve_model
from headroute.loading import NoHeadsError, embed, gather
from headroute.router import Router
from headroute.training import train_heads
from headroute.validation import (
    ValidationReport,
    embed_test_set,
    measure,
    read_test_set,
    training_questions,
)


@dataclass(frozen=True)
class TrainReport:
    """What `train` did."""

    database: str
    model: str
    encoder: str | None  # where the encoder came from; None when it was not needed
    dimension: int
    temperature: float
    projection_id: int
    name: str
    stored: bool  # False: the database has exactly these heads already
    heads: int
    skipped: list[str]  # names of clusters without questions or without answers
    questions: int
    answers: int
    embedded_questions: int
    embedded_answers: int
    embedding_seconds: float  # with loading the encoder
    validation: ValidationReport | None


@dataclass(frozen=True)
class FittedHeads:
    router: Router
    cluster_ids: list[int]  # one a head
    question_counts: list[int]  # one a head
    answers: int
    skipped: list[str]


def train(
    path: Path,
    model: str,
    temperature: float,
    *,
    name: str | None = None,
    validate: bool = False,
    test_set: Path | None = None,
) -> TrainReport:
    """Embed what has no embedding yet, fit one head a cluster, store both in one transaction.

    The heads replace those of the same model and name. `validate` also measures them: on the
    held-out questions of `test_set`, or without it on the training questions.

    Raises DatabaseError, QAFileError, EncoderError and, when no cluster has both questions and
    answers, NoHeadsError; the database is unchanged then.
    """
    name = name or f"multi_head_{model}"
    with Database.open(path) as db:
        test_pairs = read_test_set(db, model, test_set) if test_set else []
        trainable_clusters(db, model)  # before the slow part
        new = NewEmbeddings(db, model)
        start = time.perf_counter()
        new.embed()
        seconds = time.perf_counter() - start
        held_out = embed_test_set(model, test_pairs, test_set) if test_set else None
        with new.complete_transaction():
            embedded = new.store()
            heads = fit(db, model, temperature)
            validation = None
            if held_out or validate:
                questions = held_out or training_questions(db, model, heads.cluster_ids)
                validation = measure(db, model, heads.router, questions, [temperature])
            projection_id, stored = store(db, model, name, heads, validation)
    return TrainReport(
        database=str(path),
        model=model,
        encoder=resolve_model(model)[1] if any(embedded.values()) or held_out else None,
        dimension=heads.router.query_dim,
        temperature=heads.router.temperature,
        projection_id=projection_id,
        name=name,
        stored=stored,
        heads=heads.router.n_heads,
        skipped=heads.skipped,
        questions=sum(heads.question_counts),
        answers=heads.answers,
        embedded_questions=embedded["question"],
        embedded_answers=embedded["answer"],
        embedding_seconds=seconds,
        validation=validation,
    )


class NewEmbeddings:
    """Embeddings of the texts that have none, computed outside a transaction, stored inside one.

    Others may import meanwhile. So vectors are kept by text, never by id: a text that another one
    replaced cannot pass its vector on, and one that was added is embedded before anything is
    stored.
    """

    def __init__(self, db: Database, model: str):
        self._db = db
        self._model = model
        self._vectors: dict[str, dict[str, npt.NDArray[np.float32]]] = {
            "question": {},
            "answer": {},
        }

    def embed(self) -> None:
        """Compute what is missing, and not computed yet."""
        for kind, known in self._vectors.items():
            missing = self._db.texts_without_embedding(self._model, kind)
            texts = list(dict.fromkeys(text for _, text in missing if text not in known))
            if texts:
                known.update(zip(texts, embed(self._model, kind, texts), strict=True))

    @contextlib.contextmanager
    def complete_transaction(self) -> Iterator[None]:
        """A transaction in which nothing is missing that is not computed."""
        while True:
            with self._db.transaction():
                if all(
                    text in known
                    for kind, known in self._vectors.items()
                    for _, text in self._db.texts_without_embedding(self._model, kind)
                ):
                    yield
                    return
            self.embed()

    def store(self) -> dict[str, int]:
        """Store what is missing; return how many texts of each kind."""
        stored = {}
        for kind, known in self._vectors.items():
            missing = self._db.texts_without_embedding(self._model, kind)
            if missing:
                vectors = np.stack([known[text] for _, text in missing])
                self._db.store_embeddings(self._model, kind, [key for key, _ in missing], vectors)
            stored[kind] = len(missing)
        return stored


def trainable_clusters(
    db: Database, model: str
) -> tuple[list[StoredCluster], dict[int, list[int]], list[str]]:
    """Return the clusters that get a head, the answers to embed by cluster, and the other names.

    Raises NoHeadsError when no cluster gets one.
    """
    answers: dict[int, list[int]] = defaultdict(list)
    for answer in db.searched_answers(model):
        answers[answer.cluster_id].append(answer.answer_id)
    chosen, skipped = [], []
    for cluster in db.clusters():
        if cluster.question_ids and answers[cluster.cluster_id]:
            chosen.append(cluster)
        else:
            skipped.append(cluster.name)
    if not chosen:
        message = (
            f"{db.path}: nothing to train, none of {len(skipped)} clusters has both questions "
            "and answers"
        )
        if variants := db.summary()["variants"]:
            message += (
                f" of a variant that is used with this model, default or {model}; there are "
                f"answers of: {', '.join(variants)}"
            )
        raise NoHeadsError(message)
    return chosen, answers, skipped


def fit(db: Database, model: str, temperature: float) -> FittedHeads:
    """Fit heads to embeddings that are all in the database."""
    clusters, answer_ids, skipped = trainable_clusters(db, model)
    questions, question_groups = gather(
        db, model, "question", enumerate(cluster.question_ids for cluster in clusters)
    )
    answers, answer_groups = gather(
        db, model, "answer", enumerate(answer_ids[cluster.cluster_id] for cluster in clusters)
    )
    means = group_means(answers, answer_groups, len(clusters))
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    router = train_heads(
        questions,
        question_groups,
        means / np.where(norms > 0, norms, 1),
        temperature=temperature,
        names=[cluster.name for cluster in clusters],
    )
    return FittedHeads(
        router=router,
        cluster_ids=[cluster.cluster_id for cluster in clusters],
        question_counts=np.bincount(question_groups).tolist(),
        answers=len(answers),
        skipped=skipped,
    )


def store(
    db: Database, model: str, name: str, heads: FittedHeads, validation: ValidationReport | None
) -> tuple[int, bool]:
    """Return (projection id, stored?): heads that are there already are left alone.

    Only figures of held-out questions are stored: the table has no column to say what they are of.
    """
    measured: tuple[float, float] | tuple[None, None] = (None, None)
    if validation and validation.test_set:
        metrics = validation.routing[0].metrics
        measured = metrics.recall_at_1, metrics.mrr_at_10
    if any((p["model"], p["name"]) == (model, name) for p in db.summary()["projections"]):
        with contextlib.suppress(DatabaseError):  # heads that cannot be read are replaced
            old = db.projection(model, name)
            known = measured in ((None, None), (old.recall_at_1, old.mrr))
            if known and same_heads(old, heads):
                return old.projection_id, False
    projection_id = db.store_projection(
        model,
        name,
        heads.router.temperature,
        heads.cluster_ids,
        heads.router.centroids,
        heads.router.answers,
        heads.question_counts,
        *measured,
    )
    return projection_id, True


def same_heads(old: StoredProjection, new: FittedHeads) -> bool:
    return (
        old.temperature == new.router.temperature
        and old.cluster_ids == new.cluster_ids
        and np.array_equal(old.centroids, new.router.centroids)
        and np.array_equal(old.answers, new.router.answers)
    )
