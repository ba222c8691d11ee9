"""Training on a database: embed what is missing, fit heads, store them.

    a head's questions = those of its cluster
    a head's answer    = mean of its answers' embeddings, normalised

A cluster without questions or without answers gets no head. The encoder is loaded only when there
is a text to embed. Results are returned, not printed.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import numpy.typing as npt

from headroute._questions import checked_questions, group_means
from headroute.database import Database, DatabaseError, StoredCluster, StoredProjection
from headroute.embedding import resolve_model
from headroute.loading import NoHeadsError, embed, router_of
from headroute.router import Router
from headroute.training import FittedHeads, Options, TrainingOptions, checked_options, fit_heads
from headroute.training_record import TrainingRecord
from headroute.validation import (
    ValidationReport,
    embed_test_set,
    measure,
    read_test_set,
    training_questions,
    unseen,
)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


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
    clusters: int
    heads: int
    skipped: list[str]  # names of clusters without questions or without answers
    questions: int
    answers: int
    embedded_questions: int
    embedded_answers: int
    embedding_seconds: float  # with loading the encoder
    training_seconds: float
    training: TrainingRecord
    validation: ValidationReport | None


class TrainingSet(NamedTuple):
    """What heads are fitted to: everything that has an embedding, stored or new."""

    cluster_ids: list[int]
    names: list[str]
    skipped: list[str]
    questions: Float32  # (n, d)
    question_groups: Int64  # (n,) indices into cluster_ids
    answers: Float32  # (m, e)
    answer_groups: Int64  # (m,)

    def same_as(self, other: "TrainingSet") -> bool:
        return (
            self[:3] == other[:3]
            and np.array_equal(self.questions, other.questions)
            and np.array_equal(self.question_groups, other.question_groups)
            and np.array_equal(self.answers, other.answers)
            and np.array_equal(self.answer_groups, other.answer_groups)
        )


def train(
    path: Path,
    model: str,
    *,
    name: str | None = None,
    validate: bool = False,
    test_set: Path | None = None,
    **options: Unpack[TrainingOptions],
) -> TrainReport:
    """Embed what has no embedding yet, fit heads to the clusters, store both in one transaction.

    The heads replace those of the same model and name. `validate` also measures them: on the
    held-out questions of `test_set`, or without it on the training questions. The options are
    `train_heads`'.

    Raises DatabaseError, QAFileError, EncoderError, ValueError for bad options, for a single
    cluster and for a test set of training questions, and, when no cluster has both questions and
    answers, NoHeadsError; the database is unchanged then.
    """
    name = name or f"multi_head_{model}"
    checked = checked_options(options)
    with Database.open(path) as db:
        test_pairs = read_test_set(db, model, test_set) if test_set else []
        trainable_clusters(db, model)  # before the slow part
        new = NewEmbeddings(db, model)
        start = time.perf_counter()
        new.embed()
        seconds = time.perf_counter() - start
        held_out = embed_test_set(model, test_pairs, test_set) if test_set else None
        fitting = Fitting(db, model, new, checked)
        fitting.fit()
        with new.complete_transaction():
            heads = fitting.of_this_moment()
            embedded = new.store()
            validation = None
            if held_out or validate:
                questions = training_questions(db, model, heads.data.cluster_ids)
                if held_out:
                    questions = unseen(held_out, questions)
                validation = measure(db, model, heads.router, questions)
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
        clusters=heads.router.n_groups,
        heads=heads.router.n_heads,
        skipped=heads.data.skipped,
        questions=len(heads.data.questions),
        answers=len(heads.data.answers),
        embedded_questions=embedded["question"],
        embedded_answers=embedded["answer"],
        embedding_seconds=seconds,
        training_seconds=fitting.seconds,
        training=heads.fitted.record,
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

    def vectors(self, kind: str) -> dict[int, Float32]:
        """The vector of every text that has one, stored or computed, by id."""
        found: dict[int, Float32] = {}
        if any(model["name"] == self._model for model in self._db.summary()["models"]):
            ids, rows = self._db.embeddings(self._model, kind)
            found = dict(zip(ids.tolist(), rows, strict=True))
        known = self._vectors[kind]
        for entity_id, text in self._db.texts_without_embedding(self._model, kind):
            if text in known:
                found[entity_id] = known[text]
        return found

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


def training_set(db: Database, model: str, new: NewEmbeddings) -> TrainingSet:
    """Everything of the database that has an embedding, stored or new; NoHeadsError for nothing.

    What came since the last `new.embed()` is not in it.
    """
    clusters, answer_ids, skipped = trainable_clusters(db, model)
    vectors = {kind: new.vectors(kind) for kind in ("question", "answer")}
    known = [
        cluster
        for cluster in clusters
        if not vectors["question"].keys().isdisjoint(cluster.question_ids)
        and not vectors["answer"].keys().isdisjoint(answer_ids[cluster.cluster_id])
    ]
    return TrainingSet(
        [cluster.cluster_id for cluster in known],
        [cluster.name for cluster in known],
        skipped,
        *gather(vectors["question"], enumerate(cluster.question_ids for cluster in known)),
        *gather(vectors["answer"], enumerate(answer_ids[c.cluster_id] for c in known)),
    )


def gather(
    vectors: dict[int, Float32], members: Iterable[tuple[int, Sequence[int]]]
) -> tuple[Float32, Int64]:
    """Vectors (n, d) and groups (n,) of the ids in (group, ids) pairs that have a vector."""
    pairs = [(key, group) for group, keys in members for key in keys if key in vectors]
    rows = np.stack([vectors[key] for key, _ in pairs])
    return rows, np.array([group for _, group in pairs], dtype=np.int64)


@dataclass(frozen=True)
class DatabaseHeads:
    """Heads, and what they were fitted to."""

    data: TrainingSet
    fitted: FittedHeads
    router: Router

    def one_a_cluster(self) -> tuple[Float32, Float32]:
        """Centroids (G, d) and answers (G, e) for those who know one head a cluster: of several
        the mean direction.
        """
        groups, router = self.router.groups, self.router
        firsts = np.flatnonzero(np.diff(groups, prepend=-1))
        if router.n_heads == router.n_groups:
            return router.centroids, router.answers
        lengths = np.linalg.norm(router.centroids, axis=1, keepdims=True)
        means = group_means(router.centroids / lengths, groups, router.n_groups)
        return means, router.answers[firsts]


class Fitting:
    """Fits outside a transaction, as it may take long; inside again if others wrote meanwhile."""

    def __init__(self, db: Database, model: str, new: NewEmbeddings, options: Options):
        self._db = db
        self._model = model
        self._new = new
        self._options = options
        self._heads: DatabaseHeads | None = None
        self.seconds = 0.0

    def fit(self) -> None:
        """Raises ValueError for a single cluster."""
        self._fit(training_set(self._db, self._model, self._new))

    def of_this_moment(self) -> DatabaseHeads:
        """The heads of what is in the database now."""
        data = training_set(self._db, self._model, self._new)
        if self._heads is None or not self._heads.data.same_as(data):
            return self._fit(data)
        return self._heads

    def _fit(self, data: TrainingSet) -> DatabaseHeads:
        start = time.perf_counter()
        n_clusters = len(data.cluster_ids)
        means = group_means(data.answers, data.answer_groups, n_clusters)
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        answers = means / np.where(norms > 0, norms, 1)
        fitted = fit_heads(
            checked_questions(data.questions, data.question_groups, n_clusters),
            self._options,
            answers,
            progress=True,
        )
        router = fitted.router(answers, data.names)
        self.seconds += time.perf_counter() - start
        self._heads = DatabaseHeads(data, fitted, router)
        return self._heads


def store(
    db: Database, model: str, name: str, heads: DatabaseHeads, validation: ValidationReport | None
) -> tuple[int, bool]:
    """Return (projection id, stored?): heads that are there already are left alone.

    Only figures of held-out questions are stored: the table has no column to say what they are of.
    """
    measured: tuple[float, float] | tuple[None, None] = (None, None)
    if validation and validation.test_set:
        figures = next(iter(validation.figures.values()))
        measured = figures["cosine_accuracy@1"], figures["cosine_mrr@10"]
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
        heads.data.cluster_ids,
        *heads.one_a_cluster(),
        np.bincount(heads.data.question_groups).tolist(),
        recall_at_1=measured[0],
        mrr=measured[1],
        router=heads.router.to_bytes(),
    )
    return projection_id, True


def same_heads(old: StoredProjection, new: DatabaseHeads) -> bool:
    if old.router is None or old.cluster_ids != new.data.cluster_ids:
        return False
    ours, theirs = new.router, router_of(old)
    return (
        ours.temperature == theirs.temperature
        and ours.names == theirs.names
        and ours.training == theirs.training
        and np.array_equal(ours.centroids, theirs.centroids)
        and np.array_equal(ours.answers, theirs.answers)
        and np.array_equal(ours.groups, theirs.groups)
    )
