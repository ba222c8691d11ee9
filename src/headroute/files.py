"""Files that appear whole or not at all, and files in memory that processes share."""

import hashlib
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Self

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write beside `path`; flushed to disk and moved there at the end, removed after an
    error. Raises OSError.
    """
    path = os.fsdecode(path)
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


@contextmanager
def one_at_a_time(path: str) -> Iterator[None]:
    """Processes and threads that name the same file wait for each other here.

    The file is only there to be locked, and is removed afterwards. Who is killed gives the lock
    up and leaves the file, which is in nobody's way. Where the system has no such locks nobody
    waits, and two may come to be here at once when one arrives as another leaves: what is done
    here must be right even so. Raises OSError when the file cannot be made.
    """
    with open(path, "ab") as file:
        try:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):
                os.unlink(path)
            if fcntl is not None:
                # By name: closing would not do it while a process forked meanwhile has the file.
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


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
