"""Heads in the database: a row of multi_head_projections, and a row of cluster_heads for each."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from headroute._store import Float32, Store
from headroute._vector_files import DatabaseError


@dataclass(frozen=True)
class StoredProjection:
    """Trained heads, in the order in which they were stored."""

    projection_id: int
    model: str
    name: str
    temperature: float
    cluster_ids: list[int]
    cluster_names: list[str]
    centroids: Float32  # (K, d)
    answers: Float32  # (K, e)
    num_questions: list[int]
    recall_at_1: float | None
    mrr: float | None
    created_at: str  # UTC, "2025-12-19 22:19:22"
    # The router that they were stored with, of clusters of which some may be gone by now.
    router: bytes | None = None
    router_cluster_ids: list[int] | None = None


def cluster_name(cluster_id: int, name: str | None) -> str:
    return name if name is not None else f"cluster_{cluster_id}"


def store_heads(
    store: Store,
    model_id: int,
    name: str,
    temperature: float,
    cluster_ids: Sequence[int],
    centroids: Float32,
    answers: Float32,
    num_questions: Sequence[int],
    recall_at_1: float | None,
    mrr: float | None,
    router: bytes | None,
) -> int:
    """Store checked heads in place of those of the same model and name; returns their id."""
    replaced = store.all(
        "SELECT mh_projection_id FROM multi_head_projections WHERE model_id = ? AND name = ?",
        (model_id, name),
    )
    # A new id, so that the files of the replaced heads are whole until the commit.
    (highest,) = store.one(
        "SELECT max((SELECT coalesce(max(mh_projection_id), 0) FROM multi_head_projections),"
        " (SELECT coalesce(max(mh_projection_id), 0) FROM cluster_heads))"
    )
    projection_id = int(highest) + 1
    store.all(
        "INSERT INTO multi_head_projections"
        " (mh_projection_id, model_id, name, temperature, num_heads, recall_at_1, mrr)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (projection_id, model_id, name, temperature, len(cluster_ids), recall_at_1, mrr),
    )
    paths = {}
    for part, vectors in (("centroid", centroids), ("answer", answers)):
        paths[part] = store.files.free_paths(
            [store.files.head_path(projection_id, cluster, part) for cluster in cluster_ids],
            store.ours,
        )
        store.files.write(paths[part], vectors)
        store.put_vectors(paths[part], vectors, [None] * len(cluster_ids))
    columns = (cluster_ids, paths["centroid"], paths["answer"], num_questions)
    store.many(
        "INSERT INTO cluster_heads"
        " (mh_projection_id, cluster_id, centroid_path, answer_emb_path, num_questions)"
        f" VALUES ({projection_id}, ?, ?, ?, ?)",
        zip(*columns, strict=True),
    )
    if router is not None:
        store.all(
            "INSERT INTO headroute_routers (mh_projection_id, cluster_ids, router)"
            " VALUES (?, ?, ?)",
            (projection_id, json.dumps(list(cluster_ids)), router),
        )
    remove_heads(store, "mh_projection_id", [row[0] for row in replaced])
    store.many("DELETE FROM headroute_routers WHERE mh_projection_id = ?", replaced)
    store.many("DELETE FROM multi_head_projections WHERE mh_projection_id = ?", replaced)
    return projection_id


def newest_heads(store: Store, model: str | None, name: str | None) -> StoredProjection:
    """The heads stored last, of a model and of a name if given, or a DatabaseError."""
    found = store.all(
        "SELECT mh_projection_id, m.name, coalesce(p.name, ''), coalesce(temperature, 1.0),"
        " recall_at_1, mrr, p.created_at"
        " FROM multi_head_projections p JOIN embedding_models m USING (model_id)"
        " WHERE (m.name = :model OR :model IS NULL) AND (p.name = :name OR :name IS NULL)"
        " ORDER BY mh_projection_id DESC LIMIT 1",
        {"model": model, "name": name},
    )
    heads = []
    if found:
        projection_id, found_model, found_name, temperature, recall_at_1, mrr, created_at = found[0]
        heads = store.all(
            "SELECT h.cluster_id, c.name, coalesce(h.num_questions, 0), h.W_path,"
            " h.centroid_path, v.vector, h.answer_emb_path, w.vector"
            " FROM cluster_heads h LEFT JOIN qa_clusters c USING (cluster_id)"
            f" LEFT JOIN {store.vectors_table()} v ON v.path = h.centroid_path"
            f" LEFT JOIN {store.vectors_table()} w ON w.path = h.answer_emb_path"
            " WHERE h.mh_projection_id = ? ORDER BY h.head_id",
            (projection_id,),
        )
    if not heads:
        wanted = (("of the model", model), ("named", name))
        words = "".join(f" {word} {value!r}" for word, value in wanted if value is not None)
        raise DatabaseError(f"{store.path}: there are no trained heads{words} in it")
    if any(row[3] for row in heads):
        raise DatabaseError(
            f"{store.path}: the heads named {found_name!r} have matrices (W_path), which only"
            " UnifyWeaver applies"
        )
    routers = []
    if store.has_table("headroute_routers"):
        routers = store.all(
            "SELECT router, cluster_ids FROM headroute_routers WHERE mh_projection_id = ?",
            (projection_id,),
        )
    router, cluster_ids = routers[0] if routers else (None, "null")
    return StoredProjection(
        projection_id,
        found_model,
        found_name,
        temperature,
        [row[0] for row in heads],
        [cluster_name(row[0], row[1]) for row in heads],
        store.load_vectors([row[4:6] for row in heads]),
        store.load_vectors([row[6:8] for row in heads]),
        [row[2] for row in heads],
        recall_at_1,
        mrr,
        created_at,
        router,
        json.loads(cluster_ids),
    )


def remove_heads(store: Store, column: str, ids: Collection[int]) -> None:
    """Delete the heads of some clusters or projections, with their vectors and files."""
    condition = f"{column} IN (SELECT value FROM json_each(?))"
    listed = json.dumps(list(ids))
    store.forget_vectors(
        f"SELECT centroid_path FROM cluster_heads WHERE {condition}"
        f" UNION ALL SELECT answer_emb_path FROM cluster_heads WHERE {condition}",
        (listed, listed),
    )
    store.all(f"DELETE FROM cluster_heads WHERE {condition}", (listed,))
