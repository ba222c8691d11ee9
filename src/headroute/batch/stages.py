"""Threads that work ahead of the one that computes, or behind it.

What goes wrong in one of them is raised in the thread that computes.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

Piece = TypeVar("Piece")

# Blocks that are read ahead, and blocks and parts that are still being written.
AHEAD = 2


def ahead(executor: ThreadPoolExecutor, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, made by the executor's thread while earlier ones are in use."""
    coming = deque(executor.submit(next, pieces, None) for _ in range(AHEAD))
    try:
        while (piece := coming.popleft().result()) is not None:
            coming.append(executor.submit(next, pieces, None))
            yield piece
    finally:
        for future in coming:
            future.cancel()


class Stage:
    """Calls that a thread of its own makes, in order, and none after one that failed.

    At the end of the block all have been made; what went wrong in one is raised there, or before.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._path = path  # what errors are said of
        self._thread = ThreadPoolExecutor(1, name)
        self._calls: deque[Future[None]] = deque()
        self._failure: BaseException | None = None

    def submit(self, call: Callable[..., None], *arguments: object) -> None:
        """Wait until few calls are left; raises what went wrong in one of them."""
        self._wait(AHEAD)
        self._calls.append(self._thread.submit(self._make, call, arguments))

    def _make(self, call: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            with said_of(self._path):
                call(*arguments)
        except BaseException as failure:
            self._failure = failure
            raise

    def _wait(self, left: int) -> None:
        while len(self._calls) > left:
            self._calls.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait(0)


@contextlib.contextmanager
def said_of(path: Path) -> Iterator[None]:
    """An OSError here is of this path, in the user's words, not of our temporary names."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, reason, str(path)) from error
