"""An open database file: opening, transactions, errors. What is in it is database.py's.

A transaction is BEGIN IMMEDIATE … COMMIT, together with the .npy files that it writes and leaves
behind.

Vectors have absolute paths (see _vector_files). In a database that was moved or copied, those of
headroute_vectors still start in the folder where it was. They are keys, and so everything is read
as before, without a look into that folder; the first transaction that writes brings them home.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute._schema import REQUIRED_TABLES, create_own_tables, create_tables, table_names
from headroute._vector_files import DatabaseError, VectorFiles

Float32 = npt.NDArray[np.float32]

# A reader waits this long for a commit, a writer for readers and for another writer.
_BUSY_SECONDS = 30.0


class Store:
    """A connection to one database file, for one thread.

    mode: "ro" (works on read-only media), "rw", or "rwc", which makes a database where there is
    none: in the transaction that first writes, or at close(). Raises DatabaseError for a file that
    is missing or empty (unless "rwc"), is not SQLite or lacks tables, and, unless "ro", for one in
    a folder whose name is not Unicode.
    """

    def __init__(self, path: Path, mode: str, allow_outside: bool = False):
        self.path = path
        self.files = VectorFiles(path, allow_outside)
        self._in_transaction = False
        if path.is_dir():
            raise DatabaseError(f"{path}: a folder, not a database")
        if mode != "rwc" and not path.exists():
            raise DatabaseError(f"{path}: there is no such database")
        if mode != "ro" and not _is_unicode(self.files.home):
            raise DatabaseError(
                f"{path}: the name of its folder is not Unicode: no path into it can be stored"
            )
        with self._clear_errors():
            self._connection = _connect(path, mode)
            try:
                if mode == "rwc" and not table_names(self._connection):
                    self._connection.execute("BEGIN IMMEDIATE")
                    if not table_names(self._connection):  # else another process was quicker
                        create_tables(self._connection)
                        create_own_tables(self._connection)
                names = table_names(self._connection)
                if not names:
                    raise DatabaseError(f"{path}: the database is empty, nothing was imported yet")
                if missing := ", ".join(sorted(REQUIRED_TABLES - names)):
                    raise DatabaseError(
                        f"{path}: not a database of questions and answers, it has no {missing}"
                    )
            except BaseException:
                self._connection.close()
                raise

    def close(self, *, commit: bool = True) -> None:
        with self._clear_errors():
            try:
                if (
                    commit and self._connection.in_transaction
                ):  # a new database, and nothing written to it yet
                    self._connection.execute("COMMIT")
            finally:
                self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; part of the transaction around it, if there is one."""
        if self._in_transaction:
            yield
            return
        with self._clear_errors():
            try:
                if (
                    not self._connection.in_transaction
                ):  # else it is the one that makes a new database
                    self._begin()
                self._in_transaction = True
                self.files.sweep(self.ours)  # what a killed run left
                yield
                self._connection.execute("COMMIT")
            finally:
                self._in_transaction = False
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._sweep_after()

    def _begin(self) -> None:
        """BEGIN IMMEDIATE, once the paths are at home.

        They get there in a transaction of their own: if the one to come is rolled back, the files
        of this folder still are those that rows refer to.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        while self._is_away():  # also when another process sees the folder under another name
            self._bring_home()
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")

    def _is_away(self) -> bool:
        if not self.has_table("headroute_vectors"):
            return False
        # Looked up in the index. What is between two paths of a folder is in that folder too.
        ends = self.one(
            "SELECT (SELECT min(path) FROM headroute_vectors),"
            " (SELECT max(path) FROM headroute_vectors)"
        )
        return any(path is not None and not self.files.is_own(path) for path in ends)

    def _bring_home(self) -> None:
        """Change the paths of our vectors to this folder, and write the files that it lacks."""
        with_files = self._connection.execute(
            "SELECT path, vector FROM headroute_vectors WHERE path IN ("
            " SELECT vector_path FROM embeddings WHERE entity_type = 'answer'"
            " UNION ALL SELECT centroid_path FROM cluster_heads"
            " UNION ALL SELECT answer_emb_path FROM cluster_heads)"
        )
        adopted = self.files.adopt(with_files)
        self._connection.create_function(
            "home", 1, lambda path: adopted.get(path) or self.files.own_path(path)
        )
        for table, column in (
            ("embeddings", "vector_path"),
            ("cluster_heads", "centroid_path"),
            ("cluster_heads", "answer_emb_path"),
            ("headroute_vectors", "path"),
        ):
            self.all(
                f"UPDATE {table} SET {column} = home({column})"
                f" WHERE {column} IN (SELECT path FROM headroute_vectors)"
            )

    def _sweep_after(self) -> None:
        """Remove the files that the transaction left behind; an error may not hide its outcome."""
        try:
            if self.files.pending():
                self._connection.execute(
                    "BEGIN IMMEDIATE"
                )  # another writer's new files are not to be swept away
                self.files.sweep(self.ours)
        except (sqlite3.Error, OSError):
            pass  # the next writer does it
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All queries inside see one state of the database."""
        with self._clear_errors():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from None

    # ---- queries, inside transaction() or reading()

    def all(
        self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()
    ) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, parameters).fetchall()

    def one(self, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        (row,) = self.all(query, parameters)
        return row

    def many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(query, rows)

    def has_table(self, name: str) -> bool:
        return name in table_names(self._connection)

    def create_own_tables(self) -> None:
        create_own_tables(self._connection)

    # ---- vectors: a row names a path, headroute_vectors has what it stands for

    def vectors_table(self) -> str:
        """headroute_vectors, for a FROM clause: an empty one in a database that has none yet."""
        if self.has_table("headroute_vectors"):
            return "headroute_vectors"
        return "(SELECT NULL AS path, NULL AS text_hash, NULL AS vector WHERE false)"

    def ours(self, paths: Sequence[str]) -> set[str]:
        """Those of the paths that headroute_vectors has."""
        found = self.all(
            f"SELECT path FROM {self.vectors_table()}"
            " WHERE path IN (SELECT value FROM json_each(?))",
            (json.dumps(paths),),
        )
        return {path for (path,) in found}

    def checked_vectors(self, vectors: npt.ArrayLike, count: int, what: str) -> Float32:
        """As little-endian float32 (count, d), C-contiguous and finite, or a DatabaseError."""
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        if rows.ndim != 2 or len(rows) != count or rows.shape[1] == 0:
            raise DatabaseError(f"{self.path}: {what} of shape {rows.shape} for {count} ids")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise DatabaseError(f"{self.path}: row {bad[0]} of the {what} is not finite")
        return rows

    def put_vectors(
        self, paths: Sequence[str], vectors: Float32, text_hashes: Iterable[bytes | None]
    ) -> None:
        """Store checked vectors (n, d) under n paths, in place of what was there."""
        self.many(
            "INSERT OR REPLACE INTO headroute_vectors (path, text_hash, vector) VALUES (?, ?, ?)",
            zip(paths, text_hashes, vectors, strict=True),
        )

    def load_vectors(
        self, rows: Sequence[tuple[str, bytes | None]], dimension: int | None = None
    ) -> Float32:
        """The vectors of n rows (path, BLOB or None), from the files where there is no BLOB.

        Returns (n, dimension) float32; without a dimension given, the first vector's. Raises
        DatabaseError for a file that is gone or not allowed, and for another dimension.
        """
        blobs = [self.files.load(path).tobytes() if blob is None else blob for path, blob in rows]
        if dimension is None:
            dimension = len(blobs[0]) // 4 if blobs else 0
        if wrong := {len(blob) for blob in blobs} - {4 * dimension}:
            index = next(i for i, blob in enumerate(blobs) if len(blob) in wrong)
            raise DatabaseError(
                f"{self.path}: the vector {rows[index][0]} has {len(blobs[index]) // 4} dimensions,"
                f" not {dimension}: another model?"
            )
        # A bytearray, and not bytes, so that the array is writable without another copy.
        joined = np.frombuffer(bytearray().join(blobs), dtype="<f4")
        return joined.reshape(len(blobs), dimension).astype(np.float32, copy=False)

    def forget_vectors(self, paths_query: str, parameters: Sequence[Any]) -> None:
        """Delete the vectors that a query names by path, and their files after the commit.

        Only those of headroute_vectors: UnifyWeaver's own files stay.
        """
        paths = self.ours([path for (path,) in self.all(paths_query, parameters)])
        self.files.note(paths)
        self.many("DELETE FROM headroute_vectors WHERE path = ?", ((path,) for path in paths))


def _is_unicode(folder: Path) -> bool:
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return False
    return True


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(
        f"{uri}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
    )
    try:
        table_names(connection)
    except sqlite3.OperationalError as error:
        connection.close()
        if mode != "ro" or error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
        # A writer was killed in the middle of its commit. The journal it left must be played back,
        # which a connection for reading alone may not do.
        _connect(path, "rw").close()
        return _connect(path, mode)
    except sqlite3.Error:
        connection.close()
        raise
    # The journal mode stays as the file has it: DELETE, unless someone chose another. WAL would let
    # readers go on during a commit, but it needs two more files beside the database, and read-only
    # media do not give it those. A commit is short as long as it alone writes to the file: without
    # cache_spill=OFF a transaction that outgrows the page cache writes earlier, and readers are
    # locked out from there to its end.
    connection.execute("PRAGMA cache_spill=OFF")
    return connection
