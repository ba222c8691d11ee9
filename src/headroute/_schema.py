"""The tables: UnifyWeaver's as it makes them, and some of our own.

UnifyWeaver adds its remaining tables itself when it opens a database of ours.
"""

import sqlite3

# Those that are read or written here.
UNIFYWEAVER_TABLES = {
    "answers": """
        answer_id INTEGER PRIMARY KEY,
        parent_id INTEGER REFERENCES answers(answer_id),
        source_file TEXT NOT NULL,
        record_id TEXT,
        text TEXT NOT NULL,
        text_variant TEXT DEFAULT 'default',
        chunk_index INTEGER,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP""",
    "questions": """
        question_id INTEGER PRIMARY KEY,
        text TEXT NOT NULL,
        length_type TEXT CHECK(length_type IN ('short', 'medium', 'long')),
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP""",
    "qa_clusters": """
        cluster_id INTEGER PRIMARY KEY,
        name TEXT,
        description TEXT,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP""",
    "cluster_answers": """
        cluster_id INTEGER REFERENCES qa_clusters(cluster_id),
        answer_id INTEGER REFERENCES answers(answer_id),
        PRIMARY KEY (cluster_id, answer_id)""",
    "cluster_questions": """
        cluster_id INTEGER REFERENCES qa_clusters(cluster_id),
        question_id INTEGER REFERENCES questions(question_id),
        PRIMARY KEY (cluster_id, question_id)""",
    "embedding_models": """
        model_id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        dimension INTEGER NOT NULL,
        backend TEXT,
        max_tokens INTEGER,
        notes TEXT""",
    "embeddings": """
        embedding_id INTEGER PRIMARY KEY,
        model_id INTEGER REFERENCES embedding_models(model_id),
        entity_type TEXT CHECK(entity_type IN ('answer', 'question')),
        entity_id INTEGER,
        vector_path TEXT NOT NULL,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
        UNIQUE(model_id, entity_type, entity_id)""",
    "multi_head_projections": """
        mh_projection_id INTEGER PRIMARY KEY,
        model_id INTEGER REFERENCES embedding_models(model_id),
        name TEXT,
        temperature REAL DEFAULT 1.0,
        num_heads INTEGER,
        recall_at_1 REAL,
        mrr REAL,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP""",
    "cluster_heads": """
        head_id INTEGER PRIMARY KEY,
        mh_projection_id INTEGER REFERENCES multi_head_projections(mh_projection_id),
        cluster_id INTEGER REFERENCES qa_clusters(cluster_id),
        centroid_path TEXT NOT NULL,
        answer_emb_path TEXT NOT NULL,
        W_path TEXT,
        num_questions INTEGER,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
        UNIQUE(mh_projection_id, cluster_id)""",
    "training_batches": """
        batch_id INTEGER PRIMARY KEY,
        source_file TEXT NOT NULL,
        file_hash TEXT NOT NULL,
        status TEXT CHECK(status IN ('pending', 'importing', 'embedding', 'training',
                                     'completed', 'failed')),
        model_name TEXT,
        num_clusters INTEGER,
        num_questions INTEGER,
        projection_id INTEGER,
        started_at TIMESTAMP,
        completed_at TIMESTAMP,
        error_message TEXT,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
        UNIQUE(source_file, file_hash)""",
}

REQUIRED_TABLES = UNIFYWEAVER_TABLES.keys() - {"training_batches"}

# Made when first written to, so that a database of UnifyWeaver's is opened, and searched, as it is.
_OWN_TABLES = {
    # The vector that a path in embeddings or cluster_heads stands for. Keyed by the path and not by
    # the row's id: whoever replaces such a row by one with a file of its own thereby stops using
    # our vector. A key need not be the path of a file: questions have none, and a database that was
    # moved keeps its keys until it is written to.
    "headroute_vectors": """
        path TEXT PRIMARY KEY,
        text_hash BLOB,       -- of the text that was embedded, to see a change; NULL for heads
        vector BLOB NOT NULL  -- little-endian float32""",
    # What cluster_heads cannot hold: several heads a cluster, how they were trained, and the scores
    # to abstain by.
    "headroute_routers": """
        mh_projection_id INTEGER PRIMARY KEY,
        cluster_ids TEXT NOT NULL,  -- JSON, of the router's groups in order
        router BLOB NOT NULL        -- the content of a router's file""",
    # The file that a cluster was last imported from: what is no longer in the file goes.
    "headroute_sources": """
        cluster_id INTEGER PRIMARY KEY,
        source_file TEXT NOT NULL""",
}


def table_names(connection: sqlite3.Connection) -> set[str]:
    return {
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
        )
    }


def create_tables(connection: sqlite3.Connection) -> None:
    """UnifyWeaver's tables, inside the transaction that is open."""
    for name, columns in UNIFYWEAVER_TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({columns}\n)")


def create_own_tables(connection: sqlite3.Connection) -> None:
    """Ours, where they are missing, inside the transaction that is open."""
    for name, columns in _OWN_TABLES.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns}\n)")
