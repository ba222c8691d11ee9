"""Small databases for the tests of the store."""

import os
import sqlite3
from contextlib import closing

import numpy as np

from headroute.database import Database
from headroute.qa_files import ClusterRecord

MODEL = "org/model"
D = 8


def cluster(name, questions=("q1", "q2"), answers=("an answer",), source="s"):
    """A record; an answer is a text, or a (variant, text)."""
    return ClusterRecord(
        name,
        source,
        [a if isinstance(a, tuple) else ("default", a) for a in answers],
        [(q, None) for q in questions],
    )


def vectors(n, d=D, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def embed_all(db, model=MODEL, seed=0):
    for kind in ("question", "answer"):
        ids = [i for i, _ in db.texts_without_embedding(model, kind)]
        db.store_embeddings(model, kind, ids, vectors(len(ids), seed=seed))


def store_heads(db, name="heads", seed=0):
    ids = [c.cluster_id for c in db.clusters()]
    k = len(ids)
    return db.store_projection(
        MODEL, name, 0.1, ids, vectors(k, seed=seed), vectors(k, seed=seed + 1), [2] * k, 0.5, 0.75
    )


def sql(path, query, parameters=()):
    """One statement, past our code."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(query, parameters).fetchall()


def files(path):
    """The names in the folder of vectors."""
    return sorted(os.listdir(path.parent / "embeddings"))


def make_trained(path):
    """A database of two clusters, embedded, with heads. Returns its path."""
    with Database.create(path) as db:
        db.import_clusters([cluster("a"), cluster("b", ["q1", "q3"], ["another"])], "qa")
        embed_all(db)
        store_heads(db)
    return path
