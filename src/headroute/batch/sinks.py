"""What every kind of output is for a run: a place where blocks of results go, in order.

Parts come in order, and blocks of a part in order. The output looks finished only after `finish`.
The kinds themselves are in `npy_sink` and `parquet_sink`; `outputs` chooses one.
"""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from headroute.batch.manifest import Progress
from headroute.batch.task import Results

MANIFEST = "_headroute.json"  # readers of folders pass over names with an underscore


class Solved(NamedTuple):
    """A block that is ready to be written."""

    results: Results
    others: Any  # pyarrow.RecordBatch of what stood beside the queries, or None


class Sink(Protocol):
    path: Path
    manifest: Path  # where that of the run is
    keeps_manifest: bool  # when the run is complete

    def begun(self) -> bool:
        """Whether there is what a manifest could speak of."""

    def lost(self, done: Progress) -> Path | None:
        """A file of what is done that is not there any more, or not whole."""

    def lock(self) -> None:
        """Make sure that nobody else writes there, until `close` or the end of the process.

        Raises ValueError when somebody does, or has, OSError when nobody can.
        """

    def begin(self, done: Progress) -> None:
        """Go on after what is done, and remove all that came after; or begin anew.

        Raises OSError.
        """

    def write(self, block: Solved) -> None:
        """Add to the part that is being written."""

    def end_part(self) -> None:
        """The next block begins the next part."""

    def keep_part(self) -> None:
        """Bring the first part that has ended to the disk, if it is not there."""

    def finish(self) -> None:
        """Make the output what the user asked for."""

    def close(self) -> None:
        """Whatever happened. `finish` came before, or the run is going on another time."""

    def discard(self) -> None:
        """Remove all that this run has left there."""


def lock(file: int, path: Path) -> None:
    """Hold an open file or folder for this process alone. ValueError when another one does."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run is writing to {path}") from None
