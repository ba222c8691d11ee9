"""Training while others write, and over heads that cannot be read. The encoder is a stand-in."""

import hashlib

import numpy as np
import pytest
from databases import cluster, files, sql

from headroute import pipeline
from headroute.database import Database
from headroute.loading import NoHeadsError

MODEL = "stand-in"


def vector_of(text):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(8).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "lda.db"
    with Database.create(path) as db:
        db.import_clusters([cluster("a"), cluster("b", ["q3", "last"], ["another"])], "qa")
    return path


@pytest.fixture
def encode(monkeypatch):
    """encode.meanwhile: what somebody else does during the first embedding."""

    def embed(model, kind, texts):
        encode.embedded += texts
        action, encode.meanwhile = encode.meanwhile, None
        if action:
            action()
        return np.stack([vector_of(text) for text in texts])

    encode = type("Encode", (), {"meanwhile": None, "embedded": []})
    monkeypatch.setattr(pipeline, "embed", embed)
    monkeypatch.setattr(pipeline, "resolve_model", lambda model: (model, "the test"))
    return encode


def imported(path, *clusters):
    with Database.open(path) as db:
        db.import_clusters(clusters, "qa")


def check_vectors(path):
    """Every text has the vector of just this text."""
    with Database.open(path) as db:
        for kind in ("question", "answer"):
            assert db.texts_without_embedding(MODEL, kind) == []
            ids, vectors = db.embeddings(MODEL, kind)
            texts = dict(sql(path, f"SELECT {kind}_id, text FROM {kind}s"))
            assert set(ids.tolist()) == set(texts)
            for entity_id, vector in zip(ids.tolist(), vectors, strict=True):
                np.testing.assert_array_equal(vector, vector_of(texts[entity_id]))


def test_a_text_that_takes_another_ones_id_meanwhile_gets_its_own_vector(path, encode):
    def replace_last():
        imported(path, cluster("a"), cluster("b", ["q3"], ["another"]))
        imported(path, cluster("a"), cluster("b", ["q3", "newcomer"], ["another"]))

    with Database.open(path) as db:
        (last,) = (i for i, text in db.texts_without_embedding(MODEL, "question") if text == "last")
    encode.meanwhile = replace_last
    assert pipeline.train(path, MODEL).embedded_questions == 4
    assert dict(sql(path, "SELECT text, question_id FROM questions"))["newcomer"] == last
    check_vectors(path)


def test_clusters_that_come_meanwhile_are_trained_too(path, encode):
    encode.meanwhile = lambda: imported(
        path, cluster("a"), cluster("b", ["q3", "last"], ["another"]), cluster("c", ["q9"], ["new"])
    )
    report = pipeline.train(path, MODEL)
    assert (report.heads, report.embedded_questions, report.embedded_answers) == (3, 5, 3)
    assert sorted(encode.embedded) == sorted(
        ["q1", "q2", "q3", "last", "an answer", "another", "q9", "new"]
    )  # nothing twice
    check_vectors(path)


def test_heads_that_cannot_be_read_are_replaced(path, encode):
    first = pipeline.train(path, MODEL)
    sql(path, "DELETE FROM headroute_vectors WHERE path LIKE '%centroid%'")
    for name in files(path):
        if "centroid" in name:
            (path.parent / "embeddings" / name).unlink()
    again = pipeline.train(path, MODEL)
    assert again.stored
    assert again.projection_id != first.projection_id
    with Database.open(path) as db:
        assert db.projection(MODEL).centroids.shape == (2, 8)


def test_answers_of_variants_that_no_model_uses(tmp_path, encode):
    path = tmp_path / "lda.db"
    with Database.create(path) as db:
        db.import_clusters([cluster("a", answers=[("long", "text")])], "qa")
    with pytest.raises(NoHeadsError, match="default or stand-in; there are answers of: long"):
        pipeline.train(path, MODEL)
