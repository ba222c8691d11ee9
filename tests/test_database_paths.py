"""Where vectors are: paths in foreign databases, and in ours when they are moved or copied."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from databases import MODEL, D, cluster, embed_all, files, make_trained, sql, store_heads, vectors

from headroute.database import Database, DatabaseError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lda.db"


@pytest.fixture
def trained(path):
    return make_trained(path)


# ---- databases that have files alone


@pytest.fixture
def files_only(trained):
    """As UnifyWeaver makes them."""
    sql(trained, "DROP TABLE headroute_vectors")
    sql(trained, "DELETE FROM embeddings WHERE entity_type = 'question'")
    return trained


def answer_vectors(path, **options):
    with Database.open(path, read_only=True, **options) as db:
        return db.embeddings(MODEL, "answer")[1]


def set_path(path, stored):
    sql(path, "UPDATE embeddings SET vector_path = ? WHERE entity_id = 2", (str(stored),))


def test_files_alone_suffice(files_only):
    np.testing.assert_array_equal(answer_vectors(files_only), vectors(2))
    with Database.open(files_only) as db:
        np.testing.assert_array_equal(db.projection().answers, vectors(2, seed=1))
        assert db.texts_without_embedding(MODEL, "answer") == []
        assert len(db.texts_without_embedding(MODEL, "question")) == 4
        embed_all(db)
        store_heads(db)
    assert "mh_1_cluster_1_centroid.npy" in files(files_only)  # not ours to remove


@pytest.mark.parametrize(
    "stored",
    [
        "/gone/embeddings/answer_2_model_1.npy",
        "playbooks/data/embeddings/answer_2_model_1.npy",
        r"C:\data\embeddings\answer_2_model_1.npy",
        "../embeddings/answer_2_model_1.npy",
    ],
)
def test_paths_that_are_gone_are_found_by_name(files_only, stored):
    set_path(files_only, stored)
    np.testing.assert_array_equal(answer_vectors(files_only), vectors(2))


def test_absolute_paths(files_only):
    named = files_only.parent / "named.npy"
    shutil.move(files_only.parent / "embeddings/answer_2_model_1.npy", named)
    set_path(files_only, named)
    np.testing.assert_array_equal(answer_vectors(files_only), vectors(2))


def test_a_database_that_was_moved(files_only, tmp_path_factory):
    new = tmp_path_factory.mktemp("new") / "folder"
    shutil.move(files_only.parent, new)
    np.testing.assert_array_equal(answer_vectors(new / "lda.db"), vectors(2))


@pytest.mark.parametrize("how", ["absolute", "relative", "symlink"])
def test_paths_to_outside_are_refused(files_only, tmp_path_factory, how):
    outside = tmp_path_factory.mktemp("outside") / "secret.npy"
    inside = files_only.parent / "embeddings/answer_2_model_1.npy"
    shutil.move(inside, outside)
    if how == "symlink":
        inside.symlink_to(outside)
    else:
        relative = os.path.relpath(outside, files_only.parent)
        set_path(files_only, outside if how == "absolute" else relative)
    with pytest.raises(DatabaseError, match=r"is outside the database's folder: not allowed$"):
        answer_vectors(files_only)
    with Database.open(files_only) as db, pytest.raises(DatabaseError, match="not allowed"):
        db.texts_without_embedding(MODEL, "answer")
    np.testing.assert_array_equal(answer_vectors(files_only, allow_outside=True), vectors(2))


@pytest.mark.parametrize("allow_outside", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_copies_use_their_own_files(files_only, tmp_path_factory, allow_outside, relative):
    """The path still leads to the original, whose file may be another one by now."""
    copy = tmp_path_factory.mktemp("copies") / "copy"
    original = files_only.parent / "embeddings/answer_2_model_1.npy"
    if relative:
        set_path(files_only, os.path.relpath(original, copy))
    shutil.copytree(files_only.parent, copy)
    np.save(original, np.zeros(D, np.float32))
    stored = answer_vectors(copy / "lda.db", allow_outside=allow_outside)
    np.testing.assert_array_equal(stored, vectors(2))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_the_old_folder_may_be_closed(files_only, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(files_only.parent, copy)
    files_only.parent.chmod(0)
    try:
        np.testing.assert_array_equal(answer_vectors(copy / "lda.db"), vectors(2))
    finally:
        files_only.parent.chmod(0o700)


def test_what_is_gone_is_embedded_again(files_only):
    (files_only.parent / "embeddings/answer_2_model_1.npy").unlink()
    with pytest.raises(DatabaseError, match=r"the vector \S+/answer_2_\S+ is gone, also"):
        answer_vectors(files_only)
    with Database.open(files_only) as db:
        assert db.texts_without_embedding(MODEL, "answer") == [(2, "another")]
        embed_all(db)
        assert db.texts_without_embedding(MODEL, "answer") == []
    np.testing.assert_array_equal(answer_vectors(files_only)[1], vectors(1)[0])


def test_files_that_are_no_vectors(files_only):
    file = files_only.parent / "embeddings/answer_2_model_1.npy"
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DatabaseError, match=r"answer_2_model_1\.npy: not a vector: Object arrays"):
        answer_vectors(files_only)
    file.write_bytes(b"")
    with pytest.raises(DatabaseError, match=r"answer_2_model_1\.npy: not a vector: "):
        answer_vectors(files_only)
    for array in (np.zeros((1, D)), np.zeros(D, np.complex64)):
        np.save(file, array)
        with pytest.raises(DatabaseError, match="not a vector of real numbers"):
            answer_vectors(files_only)
    np.save(file, np.zeros(5))
    with pytest.raises(DatabaseError, match="has 5 dimensions, not 8: another model"):
        answer_vectors(files_only)
    np.save(file, np.ones(D))  # float64 is what NumPy makes
    np.testing.assert_array_equal(answer_vectors(files_only)[1], np.ones(D))


def test_two_databases_in_a_folder(trained):
    other = trained.with_name("other.db")
    with Database.create(other) as db:
        db.import_clusters([cluster("x")], "qa")
        embed_all(db, seed=9)
        store_heads(db, seed=9)
        store_heads(db, seed=10)
    for path, n, seed in ((trained, 2, 0), (other, 1, 9)):
        sql(path, "DROP TABLE headroute_vectors")
        np.testing.assert_array_equal(answer_vectors(path), vectors(n, seed=seed))
    assert "other_answer_1_model_1.npy" in files(trained)


def test_a_database_made_anew_takes_the_names_of_the_old_one(trained):
    trained.unlink()
    with Database.create(trained) as db:
        db.import_clusters([cluster("x")], "qa")
        embed_all(db, seed=9)
    file = np.load(trained.parent / "embeddings/answer_1_model_1.npy")
    np.testing.assert_array_equal(file, vectors(1, seed=9)[0])


# ---- our own databases, moved and copied


PATHS = (
    "SELECT vector_path FROM embeddings WHERE entity_type = 'answer'"
    " UNION ALL SELECT centroid_path FROM cluster_heads"
    " UNION ALL SELECT answer_emb_path FROM cluster_heads"
)


def check_home(path):
    """Rows, keys and files agree: what UnifyWeaver loads is what we hold, in the own folder."""
    folder = path.parent.resolve() / "embeddings"
    stored = dict(sql(path, "SELECT path, vector FROM headroute_vectors"))
    assert {str(Path(key).parent) for key in stored} == {str(folder)}
    assert {key for (key,) in sql(path, "SELECT vector_path FROM embeddings")} <= stored.keys()
    named = [key for (key,) in sql(path, PATHS)]
    for key in named:
        assert np.load(key).tobytes() == stored[key]
    return {Path(key).name for key in named}


def check_content(path, seed=0):
    """What make_trained stored is there, and nothing is to be embedded."""
    with Database.open(path, read_only=True) as db:
        for kind, n in (("question", 4), ("answer", 2)):
            assert db.texts_without_embedding(MODEL, kind) == []
            np.testing.assert_array_equal(db.embeddings(MODEL, kind)[1], vectors(n))
        np.testing.assert_array_equal(db.projection().centroids, vectors(2, seed=seed))


def snapshot(folder):
    """Contents and times of a folder's files."""
    return {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def copy(trained, tmp_path_factory):
    """A copy of the trained database's folder; the original's is still there."""
    folder = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(trained.parent, folder)
    return folder / trained.name


@pytest.mark.parametrize("way", ["relative", "link to the folder", "link to the file"])
def test_paths_are_those_of_the_real_folder(tmp_path, monkeypatch, way):
    real, other = tmp_path / "real", tmp_path / "other"
    real.mkdir()
    other.mkdir()
    if way == "relative":
        monkeypatch.chdir(other)
        path = Path("../real/lda.db")
    elif way == "link to the folder":
        (tmp_path / "link").symlink_to(real)
        path = tmp_path / "link" / "lda.db"
    else:
        path = other / "lda.db"
        path.symlink_to(real / "lda.db")
    make_trained(path)
    monkeypatch.chdir("/")
    assert check_home(real / "lda.db") == set(files(real / "lda.db"))
    assert not (other / "embeddings").exists()
    before = (real / "lda.db").read_bytes()
    with Database.open(real / "lda.db") as db:  # the same place, on another way
        db.model_id(MODEL, D, create=True)
    assert (real / "lda.db").read_bytes() == before


def test_a_relative_path_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Database.create("lda.db") as db:
        monkeypatch.chdir("/")
        db.import_clusters([cluster("a")], "qa")
        embed_all(db)
    check_home(tmp_path / "lda.db")


def test_a_copy_is_read_as_it_is(copy, trained):
    before = snapshot(copy.parent)
    for file in (trained.parent / "embeddings").iterdir():
        file.write_bytes(b"of the original, which goes its own way")
    check_content(copy)
    assert snapshot(copy.parent) == before


def test_a_copy_goes_its_own_way(copy, trained):
    """The original stays as it is, and the copy comes to name its own files alone."""
    original = snapshot(trained.parent)
    with Database.open(copy) as db:
        store_heads(db, seed=5)
    check_content(copy, seed=5)
    assert check_home(copy) == set(files(copy))
    with Database.open(copy) as db:
        db.import_clusters([cluster("a", ["q2"], ["edited"])], "qa")
        embed_all(db, seed=6)
        store_heads(db, seed=7)
    assert check_home(copy) == set(files(copy))
    assert snapshot(trained.parent) == original


def test_a_moved_database_is_not_embedded_again(copy, trained):
    shutil.rmtree(trained.parent)
    check_content(copy)
    with Database.open(copy) as db:
        assert db.import_clusters([cluster("new", ["q"], ["x"])], "other").clusters_added == 1
        assert db.texts_without_embedding(MODEL, "question") == [(5, "q")]
        assert db.texts_without_embedding(MODEL, "answer") == [(3, "x")]
    assert check_home(copy) == set(files(copy))


def test_a_database_that_was_moved_without_its_files(copy, trained):
    shutil.rmtree(trained.parent)
    shutil.rmtree(copy.parent / "embeddings")
    check_content(copy)
    with Database.open(copy) as db:
        store_heads(db, seed=5)
    check_content(copy, seed=5)
    assert check_home(copy) == set(files(copy))


def test_a_failed_command_in_a_copy(copy, trained):
    """It keeps the files of the heads that it was about to replace."""
    original, names = snapshot(trained.parent), files(copy)

    def replace(db):
        with db.transaction():
            store_heads(db, seed=5)
            db.import_clusters([], "qa")
            raise ZeroDivisionError

    with Database.open(copy) as db, pytest.raises(ZeroDivisionError):
        replace(db)
    check_content(copy)
    assert check_home(copy) == set(files(copy)) == set(names)
    assert snapshot(trained.parent) == original


@pytest.mark.parametrize("with_files", [True, False])
def test_a_copy_beside_another_database(trained, tmp_path_factory, with_files):
    """Names that the other one uses already are left to it."""
    folder = tmp_path_factory.mktemp("shared")
    with Database.create(folder / "other.db") as db:
        db.import_clusters([cluster("x")], "qa")
        embed_all(db, seed=9)
        store_heads(db, seed=9)
    there = snapshot(folder)
    shutil.copy(trained, folder)
    if with_files:
        for name in set(files(trained)) - set(files(folder / "other.db")):
            shutil.copy(trained.parent / "embeddings" / name, folder / "embeddings")
    with Database.open(folder / "lda.db") as db:
        store_heads(db, seed=5)
        db.import_clusters([cluster("b", ["q1", "q3"], ["another"])], "qa")  # the first answer goes
    names = check_home(folder / "lda.db")
    assert names == {"answer_2_model_1.npy"} | {
        f"mh_2_cluster_2_{part}.npy" for part in ("centroid", "answer")
    }
    assert {file: content for file, content in snapshot(folder).items() if file in there} == there
    assert set(files(folder / "lda.db")) == names | set(files_of(there))


def files_of(folder_snapshot):
    return [file.name for file in folder_snapshot if file.suffix == ".npy"]


def test_databases_with_relative_paths(trained):
    """As an earlier version wrote them."""
    for table, column in (
        ("embeddings", "vector_path"),
        ("cluster_heads", "centroid_path"),
        ("cluster_heads", "answer_emb_path"),
        ("headroute_vectors", "path"),
    ):
        sql(trained, f"UPDATE {table} SET {column} = replace({column}, '{trained.parent}/', '')")
    assert sql(trained, PATHS)[0] == ("embeddings/answer_1_model_1.npy",)
    before = trained.read_bytes()
    check_content(trained)
    assert trained.read_bytes() == before
    with Database.open(trained) as db:
        store_heads(db, seed=5)
    check_content(trained, seed=5)
    assert check_home(trained) == set(files(trained))


def test_vectors_that_others_have_replaced(copy):
    """A row with a path that is not our key has a file: it stays, wherever the database goes."""
    named = copy.parent / "embeddings" / "theirs.npy"
    np.save(named, np.ones(D, np.float32))
    set_path(copy, "/where/it/was/theirs.npy")
    np.testing.assert_array_equal(answer_vectors(copy)[1], np.ones(D))
    with Database.open(copy) as db:
        store_heads(db)
    assert sql(copy, PATHS)[1] == ("/where/it/was/theirs.npy",)
    np.testing.assert_array_equal(answer_vectors(copy)[1], np.ones(D))


def test_a_folder_whose_name_is_not_unicode(tmp_path, trained):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("not possible on this file system")
    with pytest.raises(DatabaseError, match="the name of its folder is not Unicode"):
        Database.create(folder / "lda.db")
    shutil.copy(trained, folder)
    check_content(folder / "lda.db")
