"""What the commands share: heads, vectors and the encoder, as a database has or names them."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from headroute import router_file
from headroute.database import Database, DatabaseError, StoredProjection
from headroute.embedding import Encoder
from headroute.progress import progress_bar
from headroute.router import Router

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class NoHeadsError(Exception):
    """The command ran, and there is no answer: no heads are trained, or none can be."""


@functools.cache
def load_encoder(model: str) -> Encoder:
    """The encoder, loaded once a process: that takes seconds."""
    return Encoder(model)


def embed(model: str, kind: str, texts: Sequence[str]) -> Float32:
    """Embed n >= 1 texts of a kind, "question" or "answer": (n, d). Shows progress."""
    encoder = load_encoder(model)
    encode = encoder.encode_queries if kind == "question" else encoder.encode_documents
    with progress_bar(len(texts), f"Embedding {kind}s", "text") as bar:
        return encode(texts, bar.update)


def stored_heads(
    db: Database, model: str | None = None, name: str | None = None
) -> StoredProjection:
    """Return the newest heads, of a model and of a name if given.

    Raises NoHeadsError when the database has none at all, DatabaseError when it has others only.
    """
    if not db.summary()["projections"]:
        raise NoHeadsError(f"{db.path} has no heads yet: run `headroute train --db {db.path}`")
    return db.projection(model, name)


def router_of(projection: StoredProjection, tolerance: float = 0.0) -> Router:
    """The router as it was trained, without the heads of clusters that are gone since; or one head
    a cluster, where somebody else stored the heads.
    """
    if projection.router is None or projection.router_cluster_ids is None:
        return Router(
            projection.centroids,
            projection.answers,
            temperature=projection.temperature,
            names=projection.cluster_names,
            tolerance=tolerance,
        )
    try:
        stored = router_file.decode(projection.router)
    except ValueError as error:
        raise DatabaseError(
            f"the heads named {projection.name!r} cannot be read, train them again: {error}"
        ) from None
    trained = np.array(projection.router_cluster_ids)
    groups = np.arange(len(trained)) if stored.groups is None else stored.groups
    kept = np.isin(trained[groups], projection.cluster_ids)
    names = dict(zip(projection.cluster_ids, projection.cluster_names, strict=True))
    left, groups = np.unique(groups[kept], return_inverse=True)
    return Router(
        stored.centroids[kept],
        stored.answers[kept],
        temperature=stored.temperature,
        names=[names[cluster_id] for cluster_id in trained[left].tolist()],
        groups=groups,
        tolerance=tolerance,
        calibration=stored.calibration and stored.calibration.of_heads(kept),
        training=stored.training,
    )


def searched_answers(db: Database, model: str) -> tuple[list[int], Float32]:
    """Ids and vectors (D, e) of the answers that `headroute search` ranks.

    Raises DatabaseError when there are none.
    """
    ids, vectors = db.embeddings(model, "answer")
    wanted = np.isin(ids, [answer.answer_id for answer in db.searched_answers(model)])
    if not wanted.any():
        raise DatabaseError(f"{db.path}: no answer is embedded by {model!r}")
    return ids[wanted].tolist(), vectors[wanted]


def gather(
    db: Database, model: str, kind: str, members: Iterable[tuple[int, Sequence[int]]]
) -> tuple[Float32, Int64, list[int]]:
    """Return vectors (n, d), groups (n,) and ids of all entities in (group, entity ids) pairs.

    Entities without an embedding by `model` are left out.
    """
    ids, vectors = db.embeddings(model, kind)
    row_of = {entity_id: row for row, entity_id in enumerate(ids.tolist())}
    pairs = [
        (row_of[entity_id], group, entity_id)
        for group, entity_ids in members
        for entity_id in entity_ids
        if entity_id in row_of
    ]
    rows, groups, entities = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    return vectors[rows], groups, entities.tolist()
