"""The SQLite store: clusters of questions and answers, their embeddings, and trained heads.

UnifyWeaver's own schema, so that its databases open here and ours open there. Vectors are BLOBs in
a table of ours, written in the transaction of the rows that refer to them; those of answers and
heads are .npy files too (see _vector_files). A database that has only such files opens as well.

The paths of these files are absolute. A database can be moved or copied all the same, with or
without the files: it never needs, nor touches, what it left behind, and names its own files again
once it is written to.

Every method is one transaction, or a part of the one that `with db.transaction():` holds: killed
at any point, the database is as it was before it or as it is after it. Others read while one
writes, and wait while it commits.

Nothing here embeds, trains or prints. Every problem is a DatabaseError: one line, with the path.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from headroute._heads import StoredProjection, cluster_name, newest_heads, store_heads
from headroute._import import ANSWERS, QUESTIONS, Entity, ImportResult, import_files
from headroute._store import Float32, Store
from headroute._vector_files import DatabaseError
from headroute.qa_files import ClusterRecord

__all__ = [
    "Database",
    "DatabaseError",
    "ImportResult",
    "SearchedAnswer",
    "StoredCluster",
    "StoredProjection",
]

_ENTITIES = {"question": QUESTIONS, "answer": ANSWERS}


@dataclass(frozen=True)
class StoredCluster:
    """A cluster; its answers are those of all variants. Ids are sorted."""

    cluster_id: int
    name: str
    question_ids: list[int]
    answer_ids: list[int]


class SearchedAnswer(NamedTuple):
    """An answer that a model searches. One that is in two clusters is there once for each."""

    answer_id: int
    cluster_id: int
    text: str
    variant: str


class Database:
    """An open database. A context manager; use it in the thread that opened it."""

    def __init__(self, store: Store):
        """Not for users: create() and open() make one."""
        self._store = store
        self.path = store.path

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Open a database for writing, a new one if there is none.

        A new one is made in the transaction that first writes to it, or when it is closed.
        """
        return cls(Store(Path(path), "rwc"))

    @classmethod
    def open(
        cls, path: str | Path, *, read_only: bool = False, allow_outside: bool = False
    ) -> Self:
        """Open a database that exists.

        read_only: works on read-only media too. allow_outside: use .npy files wherever they are,
        if neither the database nor its folder has them.
        """
        return cls(Store(Path(path), "ro" if read_only else "rw", allow_outside))

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.close(commit=error is None)

    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside happens, or nothing.

        Nobody else can write meanwhile: compute before, store inside.
        """
        return self._store.transaction()

    # ---- clusters

    def import_files(
        self, files: Sequence[tuple[str | Path, Sequence[ClusterRecord]]]
    ) -> ImportResult:
        """Bring the clusters of all files in: for each its path, and what read_qa_file read.

        A cluster has the questions and answers of its record afterwards. Texts that are in the
        database keep their ids and embeddings, into whatever cluster they moved. A cluster that
        came from one of these files and is no longer in it is removed, with its head. The same
        files again change nothing.

        Raises DatabaseError when two files have different clusters of one name, also when one of
        them was imported earlier and they have no text in common.
        """
        with self._store.transaction():
            return import_files(self._store, files)

    def import_clusters(
        self, records: Sequence[ClusterRecord], source_name: str | Path
    ) -> ImportResult:
        """import_files with one file, which need not exist."""
        return self.import_files([(source_name, records)])

    def clusters(self) -> list[StoredCluster]:
        """All clusters, by id."""
        with self._store.reading():
            clusters = {
                cluster_id: StoredCluster(cluster_id, cluster_name(cluster_id, name), [], [])
                for cluster_id, name in self._store.all(
                    "SELECT cluster_id, name FROM qa_clusters ORDER BY cluster_id"
                )
            }
            for entity in (QUESTIONS, ANSWERS):
                for cluster_id, entity_id in self._store.all(
                    f"SELECT cluster_id, {entity.key} FROM {entity.links}"
                    f" JOIN {entity.table} USING ({entity.key})"
                    f" JOIN qa_clusters USING (cluster_id) ORDER BY {entity.key}"
                ):
                    cluster = clusters[cluster_id]
                    ids = cluster.question_ids if entity is QUESTIONS else cluster.answer_ids
                    ids.append(entity_id)
        return list(clusters.values())

    def searched_answers(self, model: str) -> list[SearchedAnswer]:
        """The answers of the variants `default` and `model`, embedded or not, by id and cluster.

        A model is also known by the last part of its name: "org/name" uses the variant "name".
        """
        with self._store.reading():
            rows = self._store.all(
                "SELECT answer_id, cluster_id, text, coalesce(text_variant, 'default') AS variant"
                " FROM answers JOIN cluster_answers USING (answer_id)"
                " JOIN qa_clusters USING (cluster_id)"
                " WHERE variant IN (?, ?, ?) ORDER BY answer_id, cluster_id",
                _variants(model),
            )
        for answer_id, _, text, _ in rows:
            if not isinstance(text, str):
                raise DatabaseError(f"{self.path}: the text of answer {answer_id} is not text")
        return [SearchedAnswer(*row) for row in rows]

    def question_texts(self) -> dict[int, str]:
        """The texts of all questions, by id."""
        with self._store.reading():
            return dict(self._store.all("SELECT question_id, text FROM questions"))

    # ---- embeddings

    def model_id(self, name: str, dimension: int | None = None, *, create: bool = False) -> int:
        """The id of a model, which is added if `create` says so and a dimension is given.

        Raises DatabaseError for an unknown model, and for one of another dimension than given.
        """
        with self._store.transaction() if create else self._store.reading():
            if (found := self._model(name)) is not None:
                model_id, stored = found
                if dimension not in (None, stored):
                    raise DatabaseError(
                        f"{self.path}: the model {name!r} has {stored} dimensions in it,"
                        f" not {dimension}: another model of that name?"
                    )
                return model_id
            if create and dimension is not None:
                self._store.all(
                    "INSERT INTO embedding_models (name, dimension, backend)"
                    " VALUES (?, ?, 'sentence-transformers')",
                    (name, dimension),
                )
                return self.model_id(name)
            names = [row[0] for row in self._store.all("SELECT name FROM embedding_models")]
            raise DatabaseError(
                f"{self.path}: there is no model {name!r} in it, only: {', '.join(names) or 'none'}"
            )

    def texts_without_embedding(self, model: str, kind: str) -> list[tuple[int, str]]:
        """(id, text) of what has no embedding by `model`, or one of another text than it has now.

        kind is "question" or "answer". Only what is in a cluster; of the answers those that
        searched_answers lists. By id.
        """
        entity = _ENTITIES[kind]
        used, variants = _used(entity, model)
        with self._store.reading():
            model_id = found[0] if (found := self._model(model)) else None
            rows = self._store.all(
                f"SELECT x.{entity.key}, x.text, e.vector_path, v.path IS NOT NULL, v.text_hash"
                f" FROM {entity.table} x LEFT JOIN embeddings e"
                f" ON e.model_id = ? AND e.entity_type = ? AND e.entity_id = x.{entity.key}"
                f" LEFT JOIN {self._store.vectors_table()} v ON v.path = e.vector_path"
                f" WHERE {used} ORDER BY x.{entity.key}",
                (model_id, kind, *variants),
            )
        for entity_id, text, *_ in rows:
            if not isinstance(text, str):
                raise DatabaseError(f"{self.path}: the text of {kind} {entity_id} is not text")
        return [
            (entity_id, text)
            for entity_id, text, path, stored, text_hash in rows
            if path is None
            or (text_hash != _hash(text) if stored else self._store.files.find(path) is None)
        ]

    def store_embeddings(
        self, model: str, kind: str, ids: Sequence[int], vectors: npt.ArrayLike
    ) -> None:
        """Store embeddings: vectors[i] of (n, d) is that of the text with ids[i].

        Read the ids and store the vectors in one transaction, or another text may have the id by
        then. The model is added if it is new. What is embedded already is replaced; ids that have
        left the database are skipped. Raises DatabaseError for another shape, for vectors
        that are not finite, and for a model of another dimension.
        """
        entity = _ENTITIES[kind]
        rows = self._store.checked_vectors(vectors, len(ids), f"{kind} embeddings")
        with self._store.transaction():
            self._store.create_own_tables()
            model_id = self.model_id(model, rows.shape[1], create=True)
            texts = dict(
                self._store.all(
                    f"SELECT {entity.key}, text FROM {entity.table}"
                    f" WHERE {entity.key} IN (SELECT value FROM json_each(?))",
                    (json.dumps([int(entity_id) for entity_id in ids]),),
                )
            )
            here = [index for index, entity_id in enumerate(ids) if entity_id in texts]
            kept = [int(ids[index]) for index in here]
            rows = rows[here]
            files = self._store.files
            paths = [files.embedding_path(kind, entity_id, model_id) for entity_id in kept]
            if entity is ANSWERS:
                paths = files.free_paths(paths, self._store.ours)
                files.write(paths, rows)
            # The path of a question is a key into our table alone: routing and searching load no
            # questions, only UnifyWeaver's training does.
            self._store.put_vectors(paths, rows, (_hash(texts[entity_id]) for entity_id in kept))
            self._store.many(
                "INSERT INTO embeddings (model_id, entity_type, entity_id, vector_path)"
                f" VALUES ({model_id}, '{kind}', ?, ?)"
                " ON CONFLICT (model_id, entity_type, entity_id)"
                " DO UPDATE SET vector_path = excluded.vector_path",
                zip(kept, paths, strict=True),
            )

    def embeddings(self, model: str, kind: str) -> tuple[npt.NDArray[np.int64], Float32]:
        """The embeddings of a kind by `model`: ids (n,), sorted, and vectors (n, d) float32.

        Of the texts that texts_without_embedding looks at. Raises DatabaseError for an unknown
        model, and for a vector that is gone, not allowed or of another dimension.
        """
        entity = _ENTITIES[kind]
        used, variants = _used(entity, model)
        with self._store.reading():
            model_id = self.model_id(model)
            (dimension,) = self._store.one(
                "SELECT dimension FROM embedding_models WHERE model_id = ?", (model_id,)
            )
            rows = self._store.all(
                f"SELECT e.entity_id, e.vector_path, v.vector FROM embeddings e"
                f" JOIN {entity.table} x ON x.{entity.key} = e.entity_id"
                f" LEFT JOIN {self._store.vectors_table()} v ON v.path = e.vector_path"
                f" WHERE e.model_id = ? AND e.entity_type = ? AND {used} ORDER BY e.entity_id",
                (model_id, kind, *variants),
            )
        ids = np.array([row[0] for row in rows], dtype=np.int64)
        return ids, self._store.load_vectors([row[1:] for row in rows], dimension)

    def _model(self, name: str) -> tuple[int, int] | None:
        """(id, dimension)"""
        rows = self._store.all(
            "SELECT model_id, dimension FROM embedding_models WHERE name = ?", (name,)
        )
        return (rows[0][0], rows[0][1]) if rows else None

    # ---- heads

    def store_projection(
        self,
        model: str,
        name: str,
        temperature: float,
        cluster_ids: Sequence[int],
        centroids: npt.ArrayLike,
        answers: npt.ArrayLike,
        num_questions: Sequence[int],
        recall_at_1: float | None = None,
        mrr: float | None = None,
        router: bytes | None = None,
    ) -> int:
        """Store heads, centroids (K, d) and answers (K, e), in place of those of model and name.

        One head a cluster, as UnifyWeaver has them; `router` is the content of a router's file,
        whose groups are these clusters, and comes back as it is.

        Returns the id of the projection, a new one each time. Raises DatabaseError as
        store_embeddings does.
        """
        heads = len(cluster_ids)
        checked = (
            self._store.checked_vectors(centroids, heads, "centroids"),
            self._store.checked_vectors(answers, heads, "answers"),
        )
        with self._store.transaction():
            self._store.create_own_tables()
            return store_heads(
                self._store,
                self.model_id(model, checked[0].shape[1], create=True),
                name,
                temperature,
                [int(cluster_id) for cluster_id in cluster_ids],
                *checked,
                [int(count) for count in num_questions],
                recall_at_1,
                mrr,
                router,
            )

    def projection(self, model: str | None = None, name: str | None = None) -> StoredProjection:
        """The heads stored last, of a model and of a name if given.

        Raises DatabaseError when there are none, and for vectors as embeddings() does.
        """
        with self._store.reading():
            return newest_heads(self._store, model, name)

    # ---- the whole

    def summary(self) -> dict[str, Any]:
        """What is in the database, in numbers and names, fit for JSON."""
        with self._store.reading():
            counts = {
                table: self._store.one(f"SELECT count(*) FROM {table}")[0]
                for table in ("qa_clusters", "questions", "answers")
            }
            variants = self._store.all(
                "SELECT coalesce(text_variant, 'default') AS variant, count(*) FROM answers"
                " GROUP BY variant ORDER BY variant"
            )
            models = self._store.all(
                "SELECT m.name, dimension, coalesce(sum(entity_type = 'question'), 0),"
                " coalesce(sum(entity_type = 'answer'), 0)"
                " FROM embedding_models m LEFT JOIN embeddings USING (model_id)"
                " GROUP BY model_id ORDER BY model_id"
            )
            projections = self._store.all(
                "SELECT mh_projection_id, p.name, m.name, temperature, num_heads, recall_at_1,"
                " mrr, p.created_at"
                " FROM multi_head_projections p LEFT JOIN embedding_models m USING (model_id)"
                " ORDER BY mh_projection_id"
            )
        model_keys = ("name", "dimension", "embedded_questions", "embedded_answers")
        projection_keys = ("id", "name", "model", "temperature", "heads", "recall_at_1", "mrr")
        return {
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
            "clusters": counts["qa_clusters"],
            "questions": counts["questions"],
            "answers": counts["answers"],
            "variants": dict(variants),
            "models": [dict(zip(model_keys, row, strict=True)) for row in models],
            "projections": [
                dict(zip((*projection_keys, "created_at"), row, strict=True)) for row in projections
            ],
        }


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _used(entity: Entity, model: str) -> tuple[str, tuple[str, ...]]:
    """Which rows x of its table a model embeds: a condition and its parameters."""
    condition = f"x.{entity.key} IN (SELECT {entity.key} FROM {entity.links})"
    if entity is ANSWERS:
        return f"{condition} AND coalesce(x.text_variant, 'default') IN (?, ?, ?)", _variants(model)
    return condition, ()


def _variants(model: str) -> tuple[str, str, str]:
    return "default", model, model.rstrip("/").rsplit("/")[-1]
