"""The folder `embeddings/` beside a database: a .npy file a vector, for programs that load those.

    <entity>_<id>_model_<model>.npy                            an embedding
    mh_<projection>_cluster_<cluster>_{centroid,answer}.npy    a head

<model> is the model's id, as in UnifyWeaver: a name would have to be made fit for a file name.
Rows name them by absolute path, since UnifyWeaver's loaders take a path as it stands. What a moved
or copied database does about that is in _store; nothing here writes or removes a file outside the
folder.

Files follow the database: they are written before the commit that refers to them, and removed after
the commit that no longer does. Every name is first noted in a list; a killed run leaves its list,
and the next writer removes what no row refers to. All of this happens under the database's write
lock. Only the file of an answer that is embedded again is replaced before the commit.

Files are not fsynced (10,000 heads would wait for half a minute): after a power cut they may be
empty. The same vectors are in the database.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt


class DatabaseError(ValueError):
    """A database that cannot be used, or lacks what was asked for: one line, with its path."""


class VectorFiles:
    """The vector files of one database.

    home is the folder that the database is in, however it was opened: absolute, without symbolic
    links. All paths that are given out are of files in home/embeddings.
    """

    def __init__(self, database: Path, allow_outside: bool):
        self._shown = database  # as the user knows it
        self._database = Path(os.path.realpath(database))
        self.home = self._database.parent
        self._folder = self.home / "embeddings"
        self._list = self._folder / f".{self._database.name}.pending"
        self._allow_outside = allow_outside

    def embedding_path(self, kind: str, entity_id: int, model_id: int) -> str:
        return str(self._folder / f"{kind}_{entity_id}_model_{model_id}.npy")

    def head_path(self, projection_id: int, cluster_id: int, part: str) -> str:
        return str(self._folder / f"mh_{projection_id}_cluster_{cluster_id}_{part}.npy")

    def own_path(self, path: str) -> str:
        """The path of the same name in this database's folder."""
        return str(self._folder / _name(path))

    def is_own(self, path: str) -> bool:
        return path.startswith(f"{self._folder}{os.sep}")

    def free_paths(
        self, paths: Sequence[str], ours: Callable[[Sequence[str]], set[str]]
    ) -> list[str]:
        """`paths`, with other names for those that belong to another database in the same folder.

        `ours` tells which paths this database refers to. A file that it does not refer to is a
        leftover of a database that is gone, unless there is another database to which it can
        belong.
        """
        present = set(os.listdir(self._folder)) if self._folder.is_dir() else set()
        taken = {path for path in paths if _name(path) in present}
        taken -= ours(list(taken))
        if taken and self._has_neighbour():
            prefix = f"{self._database.stem}_"
            return [
                str(self._folder / f"{prefix}{_name(path)}") if path in taken else path
                for path in paths
            ]
        return list(paths)

    def _has_neighbour(self) -> bool:
        for path in self.home.iterdir():
            if path.is_file() and path.name != self._database.name:
                try:
                    with path.open("rb") as file:
                        if file.read(16) == b"SQLite format 3\0":
                            return True
                except OSError:  # not ours to read
                    return True
        return False

    def write(self, paths: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
        """Write row i of vectors (n, d), little-endian and C-contiguous, as paths[i]."""
        try:
            self._folder.mkdir(exist_ok=True)
            self.note(paths)
            for path, vector in zip(paths, vectors, strict=True):
                target = Path(path)
                temporary = _temporary(target)
                temporary.write_bytes(_npy(vector.tobytes()))
                os.replace(temporary, target)
        except OSError as error:
            raise DatabaseError(f"{self._folder}: cannot be written: {error.strerror}") from None

    def adopt(self, vectors: Iterable[tuple[str, bytes]]) -> dict[str, str]:
        """Give vectors of another folder, (path, little-endian float32), a file in this one.

        A file of the same name and content came along with the database. One of other content may
        belong to another database that lives here. Returns the new path of each old one.
        """
        adopted = {}
        missing = []
        for path, vector in vectors:
            own = Path(self.own_path(path))
            if _holds(own, _npy(vector)):
                adopted[path] = str(own)
            else:
                missing.append((path, vector))
        free = self.free_paths([self.own_path(path) for path, _ in missing], lambda _: set())
        for (path, vector), own_path in zip(missing, free, strict=True):
            self.write([own_path], np.frombuffer(vector, dtype="<f4")[np.newaxis])
            adopted[path] = own_path
        return adopted

    def note(self, paths: Iterable[str]) -> None:
        """Note what may be left behind: new files if the commit does not come, else old ones."""
        if self._folder.is_dir():
            with self._list.open("a", encoding="utf-8") as file:
                file.writelines(f"{_name(path)}\n" for path in paths)

    def pending(self) -> bool:
        return self._list.exists()

    def sweep(self, ours: Callable[[Sequence[str]], set[str]]) -> None:
        """Remove the noted files that no row refers to."""
        try:
            lines = self._list.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return
        # A run killed while it wrote the list leaves half a line at its end, and no file of that
        # name.
        names = [line for line in lines if re.fullmatch(r"[^/\\]+\.npy", line)]
        paths = [self.own_path(name) for name in names]
        kept = ours(paths)
        for path in paths:
            target = Path(path)
            _temporary(target).unlink(missing_ok=True)
            if path not in kept:
                target.unlink(missing_ok=True)
        self._list.unlink()

    def find(self, path: str) -> Path | None:
        """The file that a stored path means, or None when it is gone.

        A path is absolute or relative to the database's folder. When it leads nowhere, or out of
        that folder, `embeddings/` is looked into for the name: databases are copied, and the
        original's files may be others by now; and UnifyWeaver's paths start where it was run.
        Raises DatabaseError for a file outside the folder, unless that is allowed.
        """
        outside = None
        for file in (self.home / path, Path(self.own_path(path))):  # an absolute path stays one
            if os.path.isfile(file):  # False, not an error, for a folder that we may not enter
                if file.resolve().is_relative_to(self.home):
                    return file
                outside = file
        if outside is not None and not self._allow_outside:
            raise DatabaseError(
                f"{self._shown}: the vector {path} is outside the database's folder: not allowed"
            )
        return outside

    def load(self, path: str) -> npt.NDArray[np.float32]:
        """The vector (d,) of a stored path. Raises DatabaseError."""
        file = self.find(path)
        if file is None:
            raise DatabaseError(
                f"{self._shown}: the vector {path} is gone, also from {self._folder}"
            )
        try:
            vector = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise DatabaseError(f"{file}: not a vector: {error}") from None
        if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind != "f":
            raise DatabaseError(f"{file}: not a vector of real numbers")
        return vector.astype("<f4")


def _temporary(target: Path) -> Path:
    return target.with_name(f"{target.name}.tmp")


def _name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]  # a path may come from another system


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except OSError:
        return False


def _npy(vector: bytes) -> bytes:
    """What a .npy file of little-endian float32 holds."""
    return _npy_header(len(vector) // 4) + vector


@cache
def _npy_header(dimension: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (dimension,)}
    )
    return file.getvalue()
