"""Files that appear whole or not at all, and files in memory that processes share."""

import hashlib
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Self


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write beside `path`; flushed to disk and moved there at the end, removed after an
    error. Raises OSError.
    """
    path = os.fspath(path)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


@dataclass(frozen=True)
class MappedFile:
    """A file in memory, read-only: one copy for all processes that map it.

    It may be replaced or deleted meanwhile, but must not be changed in place.
    """

    path: str
    content: mmap.mmap

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Raises OSError, and ValueError for an empty file."""
        with open(path, "rb") as file:
            return cls(os.fsdecode(path), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()
