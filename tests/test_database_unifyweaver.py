"""UnifyWeaver's own database opens here, and has the tables that ours have."""

import os
import shutil
from pathlib import Path

import pytest
from databases import cluster, sql, vectors

from headroute.database import Database, DatabaseError

UNIFIED = Path(__file__).parents[2] / "shared/data/unifyweaver/unified.db"
needs_unified = pytest.mark.skipif(
    not UNIFIED.exists() and os.environ.get("CI") != "true", reason=f"no {UNIFIED}"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lda.db"


@pytest.fixture
def unified(tmp_path):
    return Path(shutil.copyfile(UNIFIED, tmp_path / "unified.db"))


@needs_unified
def test_our_tables_are_unifyweavers(unified, path):
    Database.create(path).close()

    def columns(of, table):
        return sql(
            of, f"SELECT name, type, [notnull], dflt_value, pk FROM pragma_table_info('{table}')"
        )

    for (table,) in sql(path, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        if not table.startswith("headroute_"):
            assert columns(path, table) == columns(unified, table), table


@needs_unified
def test_unifyweavers_database_as_it_is(unified):
    before = unified.read_bytes()
    with Database.open(unified, read_only=True) as db:
        assert len(db.clusters()) == len(db.searched_answers("all-MiniLM-L6-v2")) == 96
        assert len(db.texts_without_embedding("all-MiniLM-L6-v2", "question")) == 384
        with pytest.raises(DatabaseError, match="no trained heads"):
            db.projection()
    assert unified.read_bytes() == before
    with Database.open(unified) as db:
        for kind in ("question", "answer"):
            ids = [i for i, _ in db.texts_without_embedding("all-MiniLM-L6-v2", kind)]
            db.store_embeddings("all-MiniLM-L6-v2", kind, ids, vectors(len(ids), d=384))
        assert db.embeddings("all-MiniLM-L6-v2", "question")[1].shape == (384, 384)
        assert [m["name"] for m in db.summary()["models"]] == ["all-MiniLM-L6-v2"]


@needs_unified
def test_importing_into_unifyweavers_database(unified):
    """It has this cluster three times: each becomes what the file says."""
    references = (
        "INSERT INTO question_seed_levels (question_id) SELECT question_id FROM questions",
        "INSERT INTO answer_relations (from_answer_id, to_answer_id, relation_type)"
        " SELECT answer_id, answer_id, 'self' FROM answers",
        "UPDATE answers SET parent_id = 10 WHERE answer_id = 1",
    )
    for statement in references:
        sql(unified, statement)
    with Database.open(unified) as db:
        result = db.import_clusters([cluster("bash-target-design")], "qa")
        assert (result.clusters_updated, result.questions_removed, result.answers_removed) == (
            3,
            12,
            3,
        )
        assert [len(c.question_ids) for c in db.clusters() if c.name == "bash-target-design"] == [
            2,
            2,
            2,
        ]
        assert db.import_clusters([cluster("bash-target-design")], "qa").clusters_unchanged == 3
        db.import_clusters([cluster("new")], "qa")  # and so the three go
        assert len(db.clusters()) == 96 - 3 + 1
    tables = [name for (name,) in sql(unified, "SELECT name FROM sqlite_master WHERE type='table'")]
    tables.remove("interface_clusters")  # refers to a table that does not exist
    for table in tables:
        assert sql(unified, f"PRAGMA foreign_key_check({table})") == [], table
