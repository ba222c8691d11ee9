"""Bringing files' clusters into the database: compare with what is there, write the difference.

Questions and answers are treated alike. A text that some cluster loses and another one gets (a
renamed cluster, an edited answer in a CSV file without cluster_id) moves, with its id and its
embeddings, instead of being made anew.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headroute._heads import remove_heads
from headroute._store import Store
from headroute._vector_files import DatabaseError
from headroute.qa_files import ClusterRecord

Row = tuple[Any, ...]


@dataclass(frozen=True)
class ImportResult:
    """What an import changed."""

    clusters_added: int
    clusters_updated: int
    clusters_unchanged: int
    clusters_removed: int
    questions_added: int
    questions_removed: int
    answers_added: int
    answers_removed: int


@dataclass(frozen=True)
class Entity:
    """Questions or answers: where they are, and which tables of UnifyWeaver's may refer to them."""

    kind: str  # embeddings.entity_type
    table: str
    key: str
    links: str  # the table that puts them into clusters
    text_columns: tuple[str, ...]  # with another value it is another one, and not embedded yet
    other_columns: tuple[str, ...]
    removed_with: tuple[
        tuple[str, str], ...
    ]  # (table, column) of rows that mean nothing without it
    cleared_with: tuple[str, str]  # (table, column) that is NULL then


QUESTIONS = Entity(
    "question",
    "questions",
    "question_id",
    "cluster_questions",
    ("text",),
    ("length_type",),
    (("question_seed_levels", "question_id"),),
    ("question_seed_levels", "discovered_from_question_id"),
)
ANSWERS = Entity(
    "answer",
    "answers",
    "answer_id",
    "cluster_answers",
    ("text", "text_variant"),
    ("source_file", "record_id"),
    (
        ("answer_relations", "from_answer_id"),
        ("answer_relations", "to_answer_id"),
        ("answer_anchors", "answer_id"),
        ("answer_prerequisites_centroids", "answer_id"),
    ),
    ("answers", "parent_id"),
)
_CLUSTER_TABLES = ("projection_clusters", "interface_clusters", "headroute_sources", "qa_clusters")

_IN = "IN (SELECT value FROM json_each(?))"


def import_files(
    store: Store, files: Sequence[tuple[str | Path, Sequence[ClusterRecord]]]
) -> ImportResult:
    """Inside a transaction. See Database.import_files."""
    store.create_own_tables()
    sources = [_source_name(path, store.files.home) for path, _ in files]
    records: dict[str, ClusterRecord] = {}
    source_of: dict[str, str] = {}
    for source, (path, of_file) in zip(sources, files, strict=True):
        for record in of_file:
            if records.setdefault(record.name, record) != record:
                raise DatabaseError(
                    f"{path}: the cluster {record.name!r} is in another file of this import too,"
                    " with other contents"
                )
            source_of.setdefault(record.name, source)

    # UnifyWeaver allows several clusters of one name: they all become what the record says.
    ids: dict[str, list[int]] = defaultdict(list)
    for cluster_id, name in store.all(
        "SELECT cluster_id, name FROM qa_clusters ORDER BY cluster_id"
    ):
        ids[name].append(cluster_id)
    origin = dict(store.all("SELECT cluster_id, source_file FROM headroute_sources"))
    for name, record in records.items():
        for cluster_id in ids.get(name, ()):
            owner = origin.get(cluster_id)
            if owner not in (None, source_of[name]) and _unrelated(store, cluster_id, record):
                raise DatabaseError(
                    f"{source_of[name]}: the cluster {name!r} came from {owner}, and has no "
                    "question or answer in common with this one: give it another id"
                )
    gone = {
        cluster_id
        for name, of_name in ids.items()
        if name not in records
        for cluster_id in of_name
        if origin.get(cluster_id) in sources
    }
    new_names = [name for name in records if name not in ids]
    next_id = 1 + store.one("SELECT coalesce(max(cluster_id), 0) FROM qa_clusters")[0]
    for cluster_id, name in enumerate(new_names, next_id):
        ids[name].append(cluster_id)
    store.many(
        "INSERT INTO qa_clusters (cluster_id, name) VALUES (?, ?)",
        ((ids[name][0], name) for name in new_names),
    )

    targets = {cluster_id: records[name] for name in records for cluster_id in ids[name]}
    questions = {
        cluster_id: {(text,): (length,) for text, length in r.questions}
        for cluster_id, r in targets.items()
    }
    answers = {
        cluster_id: {(text, variant): (r.source, r.name) for variant, text in r.answers}
        for cluster_id, r in targets.items()
    }
    changed_questions, *question_counts = _synchronise(store, QUESTIONS, questions, gone)
    changed_answers, *answer_counts = _synchronise(store, ANSWERS, answers, gone)
    _remove_clusters(store, gone)

    store.many(
        "INSERT OR REPLACE INTO headroute_sources (cluster_id, source_file) VALUES (?, ?)",
        (
            (cluster_id, source_of[record.name])
            for cluster_id, record in targets.items()
            if origin.get(cluster_id) != source_of[record.name]
        ),
    )
    if store.has_table("training_batches"):
        for source, (path, of_file) in zip(sources, files, strict=True):
            _record_batch(store, source, Path(path), of_file)
    updated = (changed_questions | changed_answers) - gone - {ids[name][0] for name in new_names}
    return ImportResult(
        len(new_names),
        len(updated),
        len(targets) - len(new_names) - len(updated),
        len(gone),
        *question_counts,
        *answer_counts,
    )


def _unrelated(store: Store, cluster_id: int, record: ClusterRecord) -> bool:
    """Whether the cluster has texts, and none of them is in the record."""
    texts = {
        text
        for entity in (QUESTIONS, ANSWERS)
        for (text,) in store.all(
            f"SELECT text FROM {entity.table} JOIN {entity.links} USING ({entity.key})"
            " WHERE cluster_id = ?",
            (cluster_id,),
        )
    }
    own = {text for text, _ in record.questions} | {text for _, text in record.answers}
    return bool(texts) and not texts & own


def _source_name(path: str | Path, home: Path) -> str:
    """A file's path from the database's folder on, wherever the command runs; else the name."""
    if not Path(path).is_file():
        return str(path)
    # The links on the way to the file, which another command may not take, but not the file itself:
    # as a link it stays the same source when it leads to a new edition.
    absolute = Path(os.path.realpath(Path(path).parent), Path(path).name)
    try:
        return Path(os.path.relpath(absolute, home)).as_posix()
    except ValueError:  # on another drive
        return absolute.as_posix()


def _synchronise(
    store: Store, entity: Entity, wanted: dict[int, dict[Row, Row]], gone: Collection[int]
) -> tuple[set[int], int, int]:
    """Make the clusters hold what is wanted, {cluster id: {text columns: other columns}}.

    Those that are gone shall hold nothing.
    Returns the ids of the changed clusters, and how many texts were added and removed.
    """
    table, key, links, width = entity.table, entity.key, entity.links, len(entity.text_columns)
    # text is never NULL, and a variant that is NULL means the default one
    columns = [f"coalesce(x.{c}, 'default')" for c in entity.text_columns] + [
        f"x.{c}" for c in entity.other_columns
    ]
    stored: dict[int, dict[Row, list[tuple[int, Row]]]] = defaultdict(lambda: defaultdict(list))
    uses: Counter[int] = (
        Counter()
    )  # in how many clusters a text is: UnifyWeaver allows more than one
    for cluster_id, entity_id, *values in store.all(
        f"SELECT cluster_id, {key}, {', '.join(columns)} FROM {links} JOIN {table} x USING ({key})"
    ):
        uses[entity_id] += 1
        if cluster_id in wanted or cluster_id in gone:
            stored[cluster_id][tuple(values[:width])].append((entity_id, tuple(values[width:])))

    changed: set[int] = set()
    unlinked: list[Row] = []
    surplus: dict[Row, list[int]] = defaultdict(list)  # in no cluster any more
    altered: dict[int, Row] = {}  # other columns only
    for cluster_id, texts in stored.items():
        needs = wanted.get(cluster_id, {})
        for text, rows in texts.items():
            for entity_id, others in rows:
                if text not in needs:
                    changed.add(cluster_id)
                    unlinked.append((cluster_id, entity_id))
                    uses[entity_id] -= 1
                    if not uses[entity_id]:
                        surplus[text].append(entity_id)
                elif others != needs[text]:
                    changed.add(cluster_id)
                    altered[entity_id] = needs[text]

    next_id = _free_id(store, entity)
    added: list[Row] = []
    linked: list[Row] = []
    for cluster_id, needs in wanted.items():
        has = stored.get(cluster_id, {})
        for text, others in needs.items():
            if text in has:
                continue
            changed.add(cluster_id)
            if surplus.get(text):
                entity_id = surplus[text].pop()
                altered[entity_id] = others
            else:
                entity_id = next_id + len(added)
                added.append((entity_id, *text, *others))
            linked.append((cluster_id, entity_id))

    removed = [entity_id for of_text in surplus.values() for entity_id in of_text]
    store.many(f"DELETE FROM {links} WHERE cluster_id = ? AND {key} = ?", unlinked)
    _remove(store, entity, removed)
    names = [key, *entity.text_columns, *entity.other_columns]
    store.many(
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", added
    )
    store.many(f"INSERT INTO {links} (cluster_id, {key}) VALUES (?, ?)", linked)
    assignments = ", ".join(f"{column} = ?" for column in entity.other_columns)
    store.many(
        f"UPDATE {table} SET {assignments} WHERE {key} = ?",
        ((*row, i) for i, row in altered.items()),
    )
    return changed, len(added), len(removed)


def _free_id(store: Store, entity: Entity) -> int:
    """Above every text's id and every embedding's: one whose text is gone must not be inherited."""
    (highest,) = store.one(
        f"SELECT max((SELECT coalesce(max({entity.key}), 0) FROM {entity.table}),"
        " (SELECT coalesce(max(entity_id), 0) FROM embeddings WHERE entity_type = ?))",
        (entity.kind,),
    )
    return int(highest) + 1


def _remove(store: Store, entity: Entity, ids: Collection[int]) -> None:
    """Delete texts that are in no cluster any more, their embeddings, and what refers to them."""
    if not ids:
        return
    listed = (json.dumps(list(ids)),)
    store.forget_vectors(
        "SELECT vector_path FROM embeddings"
        f" WHERE entity_type = '{entity.kind}' AND entity_id {_IN}",
        listed,
    )
    store.all(
        f"DELETE FROM embeddings WHERE entity_type = '{entity.kind}' AND entity_id {_IN}", listed
    )
    for table, column in entity.removed_with:
        if store.has_table(table):
            store.all(f"DELETE FROM {table} WHERE {column} {_IN}", listed)
    table, column = entity.cleared_with
    if store.has_table(table):
        store.all(f"UPDATE {table} SET {column} = NULL WHERE {column} {_IN}", listed)
    store.all(f"DELETE FROM {entity.table} WHERE {entity.key} {_IN}", listed)


def _remove_clusters(store: Store, ids: Collection[int]) -> None:
    """Delete clusters that hold nothing any more, their heads, and what refers to them."""
    if not ids:
        return
    remove_heads(store, "cluster_id", ids)
    store.all(
        "UPDATE multi_head_projections SET num_heads = (SELECT count(*) FROM cluster_heads h"
        " WHERE h.mh_projection_id = multi_head_projections.mh_projection_id)"
    )
    for table in _CLUSTER_TABLES:
        if store.has_table(table):
            store.all(f"DELETE FROM {table} WHERE cluster_id {_IN}", (json.dumps(list(ids)),))


def _record_batch(store: Store, source: str, path: Path, records: Sequence[ClusterRecord]) -> None:
    """Note the file and its hash where UnifyWeaver keeps track of what it has imported."""
    if path.is_file():
        store.all(
            "INSERT OR IGNORE INTO training_batches"
            " (source_file, file_hash, status, num_clusters, num_questions, completed_at)"
            " VALUES (?, ?, 'completed', ?, ?, CURRENT_TIMESTAMP)",
            (
                source,
                hashlib.sha256(path.read_bytes()).hexdigest(),
                len(records),
                sum(len(record.questions) for record in records),
            ),
        )
