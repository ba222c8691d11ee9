"""The SQLite store: what goes in comes out, all or nothing."""

import os
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from databases import MODEL, D, cluster, embed_all, files, make_trained, sql, store_heads, vectors

from headroute.database import Database, DatabaseError, ImportResult
from headroute.qa_files import ClusterRecord


def fail_after(db, write):
    with db.transaction():
        write()
        raise ZeroDivisionError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lda.db"


@pytest.fixture
def trained(path):
    return make_trained(path)


def test_what_goes_in_comes_out(path):
    record = ClusterRecord(
        "a", "docs/a.md", [("default", "long"), ("model", "short")], [("q1", "short"), ("q2", None)]
    )
    with Database.create(path) as db:
        assert db.import_clusters([record, cluster("b", ["q1"], [])], "qa") == ImportResult(
            clusters_added=2,
            clusters_updated=0,
            clusters_unchanged=0,
            clusters_removed=0,
            questions_added=3,
            questions_removed=0,
            answers_added=2,
            answers_removed=0,
        )
    with Database.open(path, read_only=True) as db:
        a, b = db.clusters()
        assert (a.name, a.question_ids, a.answer_ids) == ("a", [1, 2], [1, 2])
        assert (b.name, b.question_ids, b.answer_ids) == ("b", [3], [])  # "q1" is in both
        assert db.texts_without_embedding(MODEL, "question") == [(1, "q1"), (2, "q2"), (3, "q1")]
    assert sql(path, "SELECT text, length_type FROM questions") == [
        ("q1", "short"),
        ("q2", None),
        ("q1", None),
    ]
    assert sql(path, "SELECT text_variant, source_file, record_id FROM answers") == [
        ("default", "docs/a.md", "a"),
        ("model", "docs/a.md", "a"),
    ]


def test_answers_of_the_default_and_of_the_models_own_variant(path):
    answers = [("default", "d"), ("model", "m"), ("org/model", "o"), ("other", "x"), ("org", "y")]
    with Database.create(path) as db:
        db.import_clusters([cluster("a", answers=answers)], "qa")
        assert [a.text for a in db.searched_answers("org/model")] == ["d", "m", "o"]
        assert [a.text for a in db.searched_answers("model")] == ["d", "m"]
        assert [a.text for a in db.searched_answers("/folder/other/")] == ["d", "x"]
        texts = db.texts_without_embedding("org/model", "answer")
        assert [text for _, text in texts] == ["d", "m", "o"]
        assert db.searched_answers("other")[1] == (4, 1, "x", "other")


# ---- embeddings


def test_vectors_are_blobs_and_answers_files_too(trained):
    with Database.open(trained, read_only=True) as db:
        for kind, n in (("question", 4), ("answer", 2)):
            ids, stored = db.embeddings(MODEL, kind)
            assert ids.tolist() == list(range(1, n + 1))
            assert ids.dtype == np.int64
            assert stored.dtype == np.float32
            assert stored.flags.writeable
            np.testing.assert_array_equal(stored, vectors(n))
    ((blob,),) = sql(
        trained, "SELECT vector FROM headroute_vectors WHERE path LIKE '%question_2_%'"
    )
    assert blob == vectors(4)[1].astype("<f4").tobytes()
    rows = sql(trained, "SELECT vector_path FROM embeddings WHERE entity_type = 'answer'")
    folder = trained.parent / "embeddings"
    assert rows == [(f"{folder / f'answer_{i}_model_1.npy'}",) for i in (1, 2)]
    file = np.load(rows[1][0], allow_pickle=False)
    assert file.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(file, vectors(2)[1])
    assert not [name for name in files(trained) if "question" in name or not name.endswith(".npy")]


@pytest.mark.parametrize(
    ("ids", "given", "problem"),
    [
        ([1, 2], vectors(1), r"question embeddings of shape \(1, 8\) for 2 ids"),
        ([1], vectors(1)[0], r"question embeddings of shape \(8,\) for 1 ids"),
        ([1], np.zeros((1, 0)), r"of shape \(1, 0\)"),
        ([1, 2], [[1.0] * D, [np.nan] * D], "row 1 of the question embeddings is not finite"),
        ([1], vectors(1, d=9), "the model 'org/model' has 8 dimensions in it, not 9"),
    ],
)
def test_bad_embeddings(trained, ids, given, problem):
    before = trained.read_bytes()
    with Database.open(trained) as db, pytest.raises(DatabaseError, match=problem):
        db.store_embeddings(MODEL, "question", ids, given)
    assert trained.read_bytes() == before


def test_embeddings_of_texts_that_are_gone_are_skipped(path):
    with Database.create(path) as db:
        db.import_clusters([cluster("a")], "qa")
        db.store_embeddings(MODEL, "question", [2, 77], vectors(2))
        ids, stored = db.embeddings(MODEL, "question")
        assert ids.tolist() == [2]
        np.testing.assert_array_equal(stored, vectors(2)[:1])


def test_models(path):
    with Database.create(path) as db:
        with pytest.raises(DatabaseError, match=r"no model 'm' in it, only: none$"):
            db.model_id("m", 8)
        assert db.model_id("m", 8, create=True) == db.model_id("m") == db.model_id("m", 8)
        with pytest.raises(DatabaseError, match=r"no model 'x' in it, only: m$"):
            db.embeddings("x", "question")
        with pytest.raises(DatabaseError, match="'m' has 8 dimensions in it, not 9"):
            db.model_id("m", 9, create=True)
        ids, none = db.embeddings("m", "question")
        assert ids.shape == (0,)
        assert none.shape == (0, 8)


# ---- heads


def test_heads(path):
    with Database.create(path) as db:
        db.import_clusters([cluster(name) for name in "abc"], "qa")
        with pytest.raises(
            DatabaseError, match=r"no trained heads of the model 'org/model' in it$"
        ):
            db.projection(MODEL)
        centroids, answers = vectors(3), vectors(3, d=5)
        number = db.store_projection(MODEL, "h", 0.25, [3, 1, 2], centroids, answers, [1, 2, 3])
    with Database.open(path, read_only=True) as db:
        heads = db.projection(MODEL, "h")
        assert (heads.projection_id, heads.model, heads.name) == (number, MODEL, "h")
        assert (heads.temperature, heads.recall_at_1, heads.mrr) == (0.25, None, None)
        assert (heads.cluster_ids, heads.cluster_names) == ([3, 1, 2], ["c", "a", "b"])
        assert heads.num_questions == [1, 2, 3]
        np.testing.assert_array_equal(heads.centroids, centroids)
        np.testing.assert_array_equal(heads.answers, answers)
    (row,) = sql(
        path, "SELECT centroid_path, answer_emb_path, W_path FROM cluster_heads WHERE cluster_id=3"
    )
    head = str(path.parent / "embeddings" / "mh_1_cluster_3")
    assert row == (f"{head}_centroid.npy", f"{head}_answer.npy", None)
    np.testing.assert_array_equal(np.load(row[0]), centroids[0])
    np.testing.assert_array_equal(np.load(row[1]), answers[0])


def test_heads_of_one_name_and_model_are_replaced(trained):
    with Database.open(trained) as db:
        store_heads(db, "other", seed=3)
        assert store_heads(db, seed=5) == 3
        assert [p["id"] for p in db.summary()["projections"]] == [2, 3]
        assert db.projection().projection_id == 3
        assert db.projection(name="other").projection_id == 2
        np.testing.assert_array_equal(db.projection().answers, vectors(2, seed=6))
        with pytest.raises(DatabaseError, match=r"no trained heads named 'x' in it$"):
            db.projection(name="x")
    assert sql(trained, "SELECT DISTINCT mh_projection_id FROM cluster_heads") == [(2,), (3,)]
    assert {name[:4] for name in files(trained)} == {"answ", "mh_2", "mh_3"}
    assert sql(trained, "SELECT count(*) FROM headroute_vectors") == [(4 + 2 + 2 * 4,)]


def test_bad_heads(trained):
    with Database.open(trained) as db:
        with pytest.raises(DatabaseError, match=r"centroids of shape \(3, 8\) for 2 ids"):
            db.store_projection(MODEL, "h", 0.1, [1, 2], vectors(3), vectors(2), [1, 1])
        with pytest.raises(DatabaseError, match="row 0 of the answers is not finite"):
            db.store_projection(MODEL, "h", 0.1, [1], vectors(1), [[np.inf] * D], [1])
        with pytest.raises(DatabaseError, match="UNIQUE constraint failed"):
            db.store_projection(MODEL, "h", 0.1, [1, 1], vectors(2), vectors(2), [1, 1])
        assert [p["name"] for p in db.summary()["projections"]] == ["heads"]
    assert not [name for name in files(trained) if name.startswith("mh_2")]


def test_heads_with_matrices_are_refused(trained):
    sql(trained, "UPDATE cluster_heads SET W_path = 'W.npy' WHERE cluster_id = 2")
    with Database.open(trained) as db, pytest.raises(DatabaseError, match="'heads' have matrices"):
        db.projection()


# ---- opening


@pytest.mark.parametrize("read_only", [True, False])
def test_what_cannot_be_opened(path, read_only):
    def check(problem):
        with pytest.raises(DatabaseError) as caught:
            Database.open(path, read_only=read_only)
        assert str(caught.value) == f"{path}: {problem}"

    check("there is no such database")
    assert not path.exists()
    path.write_bytes(b"")
    check("the database is empty, nothing was imported yet")
    path.write_bytes(b"%PDF-1.7 " * 500)
    check("file is not a database")
    path.unlink()
    sql(path, "CREATE TABLE answers (answer_id)")
    check(
        "not a database of questions and answers, it has no cluster_answers, cluster_heads,"
        " cluster_questions, embedding_models, embeddings, multi_head_projections, qa_clusters,"
        " questions"
    )
    path.unlink()
    path.mkdir()
    check("a folder, not a database")


def test_create_leaves_other_peoples_databases_alone(path):
    sql(path, "CREATE TABLE bookmarks (url)")
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="not a database of questions and answers"):
        Database.create(path)
    assert path.read_bytes() == before


def test_names_with_special_characters(tmp_path):
    path = tmp_path / "a?mode=ro#%20 ü.db"
    with Database.create(path) as db:
        db.import_clusters([cluster("a")], "qa")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with Database.open(path) as db:
        assert len(db.clusters()) == 1


def test_a_new_database_without_content(path):
    with Database.create(path) as db:
        assert db.clusters() == []
    with Database.open(path) as db:
        assert db.clusters() == []
        assert db.texts_without_embedding(MODEL, "question") == []
        assert db.summary()["projections"] == []


def test_a_new_database_appears_with_its_first_content(path):
    with Database.create(path) as db, pytest.raises(ZeroDivisionError):
        fail_after(db, lambda: db.import_clusters([cluster("a")], "qa"))
    assert path.stat().st_size == 0
    with Database.create(path) as db:  # an empty file is no obstacle
        db.import_clusters([cluster("a")], "qa")
        assert len(db.clusters()) == 1


def test_read_only(trained):
    before = trained.read_bytes()
    with Database.open(trained, read_only=True) as db:
        assert len(db.clusters()) == 2
        for write in (
            lambda: db.import_clusters([cluster("x")], "qa"),
            lambda: embed_all(db, "other"),
            lambda: store_heads(db),
        ):
            with pytest.raises(DatabaseError, match="attempt to write a readonly database"):
                write()
    assert trained.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_media(trained):
    trained.chmod(0o400)
    trained.parent.chmod(0o500)
    try:
        with Database.open(trained, read_only=True) as db:
            assert db.projection().cluster_names == ["a", "b"]
    finally:
        trained.parent.chmod(0o700)


# ---- transactions


def test_a_transaction_is_all_or_nothing(trained):
    before, names = trained.read_bytes(), files(trained)
    with Database.open(trained) as db:

        def everything():
            db.import_clusters([cluster("c", answers=["new"])], "qa")
            embed_all(db)
            store_heads(db)
            assert len(db.clusters()) == 1  # it sees itself

        with pytest.raises(ZeroDivisionError):
            fail_after(db, everything)
        assert len(db.clusters()) == 2
    assert trained.read_bytes() == before
    assert files(trained) == names


def test_others_read_while_one_writes(trained):
    """Also when the transaction is larger than SQLite's page cache of 2 MB."""
    with Database.open(trained) as writer:
        with writer.transaction():
            questions = [f"{i:05} {'x' * 1000}" for i in range(5000)]
            writer.import_clusters([cluster("large", questions)], "large")
            readers = [Database.open(trained, read_only=True) for _ in range(2)]
            for reader in readers:
                assert len(reader.clusters()) == 2
                assert reader.projection().cluster_names == ["a", "b"]
        for reader in readers:
            assert len(reader.clusters()) == 3
            reader.close()


def test_a_locked_database(trained, monkeypatch):
    monkeypatch.setattr("headroute._store._BUSY_SECONDS", 0.05)
    with (
        Database.open(trained) as one,
        Database.open(trained) as other,
        one.transaction(),
        pytest.raises(DatabaseError, match=r"lda\.db: database is locked$"),
    ):
        other.import_clusters([cluster("c")], "qa")


def test_a_journal_that_a_killed_writer_left(trained):
    """SQLite plays it back, which a connection for reading alone may not do."""
    content = trained.read_bytes()
    with closing(sqlite3.connect(trained, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE questions SET text = 'half'")
        connection.execute(f"UPDATE answers SET text = '{'x' * 100_000}'")
        journal = trained.with_name("lda.db-journal")
        kill = trained.read_bytes(), journal.read_bytes()
        connection.execute("ROLLBACK")
    assert kill[0] != content
    trained.write_bytes(kill[0])
    journal.write_bytes(kill[1])
    with Database.open(trained, read_only=True) as db:
        assert db.texts_without_embedding(MODEL, "question") == []
    assert trained.read_bytes() == content


# ---- the whole


def test_summary(trained):
    with Database.open(trained, read_only=True) as db:
        summary = db.summary()
    (heads,) = summary.pop("projections")
    assert heads.pop("created_at")[:2] == "20"
    assert heads == {
        "id": 1,
        "name": "heads",
        "model": MODEL,
        "temperature": 0.1,
        "heads": 2,
        "recall_at_1": 0.5,
        "mrr": 0.75,
    }
    assert summary == {
        "path": str(trained),
        "bytes": trained.stat().st_size,
        "clusters": 2,
        "questions": 4,
        "answers": 2,
        "variants": {"default": 2},
        "models": [{"name": MODEL, "dimension": D, "embedded_questions": 4, "embedded_answers": 2}],
    }
