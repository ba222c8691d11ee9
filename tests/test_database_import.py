"""Importing again: little changes, what can keep its embeddings does."""

import numpy as np
import pytest
from databases import MODEL, cluster, embed_all, files, make_trained, sql, vectors

from headroute.database import Database, DatabaseError, ImportResult


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lda.db"


@pytest.fixture
def trained(path):
    return make_trained(path)


def test_the_same_again_changes_no_byte(trained):
    before = trained.read_bytes()
    with Database.open(trained) as db:
        result = db.import_clusters([cluster("a"), cluster("b", ["q1", "q3"], ["another"])], "qa")
    assert (result.clusters_unchanged, result.clusters_updated, result.clusters_added) == (2, 0, 0)
    assert trained.read_bytes() == before


def test_a_changed_cluster_keeps_what_did_not_change(trained):
    with Database.open(trained) as db:
        _, old = db.embeddings(MODEL, "question")
        result = db.import_clusters(
            [cluster("a", ["q2", "new"], ["edited"]), cluster("b", ["q1", "q3"], ["another"])], "qa"
        )
        assert result == ImportResult(0, 1, 1, 0, 1, 1, 1, 1)
        assert db.texts_without_embedding(MODEL, "question") == [(5, "new")]
        assert db.texts_without_embedding(MODEL, "answer") == [(3, "edited")]
        ids, left = db.embeddings(MODEL, "question")
        assert ids.tolist() == [2, 3, 4]
        np.testing.assert_array_equal(left, old[1:])
    assert sql(trained, "SELECT count(*) FROM questions") == [(4,)]
    assert sql(trained, "SELECT count(*) FROM embeddings") == [(3 + 1,)]
    assert sql(trained, "SELECT count(*) FROM headroute_vectors") == [(3 + 1 + 4,)]  # 2 heads
    assert "answer_1_model_1.npy" not in files(trained)
    assert "answer_2_model_1.npy" in files(trained)


def test_texts_that_move_keep_their_embeddings(trained):
    """A renamed cluster is another cluster, with the same texts."""
    with Database.open(trained) as db:
        result = db.import_clusters([cluster("c"), cluster("b", ["q1", "q3"], ["another"])], "qa")
        assert result == ImportResult(1, 0, 1, 1, 0, 0, 0, 0)
        assert db.texts_without_embedding(MODEL, "question") == []
        assert db.texts_without_embedding(MODEL, "answer") == []
        _, c = db.clusters()
        assert (c.name, c.question_ids, c.answer_ids) == ("c", [1, 2], [1])
        assert db.projection().cluster_names == ["b"]  # the head of a cluster goes with it
    assert sql(trained, "SELECT num_heads FROM multi_head_projections") == [(1,)]
    assert "mh_1_cluster_1_centroid.npy" not in files(trained)


def test_clusters_of_other_files_stay(path):
    with Database.create(path) as db:
        db.import_clusters([cluster("a"), cluster("b")], "one")
        db.import_clusters([cluster("c")], "two")
        db.import_clusters([cluster("b"), cluster("d")], "one")
        assert [c.name for c in db.clusters()] == ["b", "c", "d"]


def test_files_are_known_wherever_the_command_runs(path, tmp_path, monkeypatch):
    qa = tmp_path / "data" / "qa.json"
    qa.parent.mkdir()
    qa.write_text("content")
    with Database.create(path) as db:
        db.import_files([(qa, [cluster("a"), cluster("b")])])
    monkeypatch.chdir(qa.parent)
    with Database.open("../lda.db") as db:
        assert db.import_files([("qa.json", [cluster("a")])]).clusters_removed == 1
    batches = sql(path, "SELECT source_file, file_hash, status, num_clusters FROM training_batches")
    sha256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"  # of b"content"
    assert batches == [("data/qa.json", sha256, "completed", 2)]


def test_files_are_known_on_whatever_way_there(path, tmp_path):
    """A link to the folder is the folder; a link to a file is a source, whatever it leads to."""
    data = tmp_path / "deep" / "data"
    data.mkdir(parents=True)
    (data / "v1.json").write_text("1")
    (data / "v2.json").write_text("2")
    (data / "qa.json").symlink_to("v1.json")
    (tmp_path / "link").symlink_to(data)
    with Database.create(path) as db:
        db.import_files([(data / "qa.json", [cluster("a"), cluster("b")])])
    (data / "qa.json").unlink()
    (data / "qa.json").symlink_to("v2.json")
    (data / "lda.db").symlink_to(path)
    with Database.open(tmp_path / "link" / "lda.db") as db:
        result = db.import_files([(tmp_path / "link" / "qa.json", [cluster("a")])])
        assert result.clusters_removed == 1
    assert sql(path, "SELECT DISTINCT source_file FROM headroute_sources") == [
        ("deep/data/qa.json",)
    ]


def test_two_files_must_agree_on_a_cluster(path):
    with Database.create(path) as db:
        db.import_files([("one", [cluster("a")]), ("two", [cluster("a")])])
        with pytest.raises(DatabaseError, match=r"^two: the cluster 'a' is in another file"):
            db.import_files([("one", [cluster("b"), cluster("a")]), ("two", [cluster("a", ["x"])])])
        assert [c.name for c in db.clusters()] == ["a"]


def test_new_texts_do_not_inherit_embeddings(trained):
    """SQLite gives ids again; a foreign program may have left the embedding of a deleted text."""
    sql(trained, "DELETE FROM cluster_questions WHERE question_id = 4")
    sql(trained, "DELETE FROM questions WHERE question_id = 4")
    with Database.open(trained) as db:
        db.import_clusters([cluster("c", ["fresh"])], "other")
        assert db.texts_without_embedding(MODEL, "question") == [(5, "fresh")]


def test_a_text_changed_by_others_is_embedded_again(trained):
    sql(trained, "UPDATE questions SET text = 'edited' WHERE question_id = 2")
    sql(trained, "UPDATE answers SET text = 'edited' WHERE answer_id = 2")
    with Database.open(trained) as db:
        assert db.texts_without_embedding(MODEL, "question") == [(2, "edited")]
        assert db.texts_without_embedding(MODEL, "answer") == [(2, "edited")]
        embed_all(db, seed=7)
        assert db.texts_without_embedding(MODEL, "answer") == []
        np.testing.assert_array_equal(db.embeddings(MODEL, "answer")[1][1], vectors(1, seed=7)[0])


def test_another_source_does_not_take_a_cluster_that_has_nothing_to_do_with_it(trained):
    """Numbered clusters of two files: the second must not silently delete the first's texts."""
    before = trained.read_bytes()
    with (
        Database.open(trained) as db,
        pytest.raises(DatabaseError, match="manual: the cluster 'a' came from qa, and has no"),
    ):
        db.import_clusters([cluster("a", ["other"], ["thing"])], "manual")
    assert trained.read_bytes() == before


def test_a_source_that_was_renamed_keeps_its_clusters(trained):
    with Database.open(trained) as db:
        result = db.import_clusters([cluster("a", ["q1", "new"], ["edited"])], "renamed")
    assert (result.clusters_updated, result.questions_added, result.questions_removed) == (1, 1, 1)
