"""Which files a run reads: found by paths, folders and patterns, and opened by their names.

.npy, .npz         an array (N, d) of real numbers
.parquet           a column of lists of numbers
.arrow, .feather   Arrow's file format, the same
.jsonl             a column of texts
"""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from headroute._optional import arrow_library
from headroute.batch.array_files import NpySource, NpzSource
from headroute.batch.sources import Opening, Source

SUFFIXES = (".npy", ".npz", ".parquet", ".arrow", ".feather", ".jsonl")


def find_files(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that paths, folders and glob patterns stand for; those of a folder or pattern in
    the order of their names.

    Raises TypeError for a single path, FileNotFoundError for nothing there, ValueError for no
    inputs at all, for a folder or pattern without a file that can be read, and for a file that is
    named twice.
    """
    if isinstance(inputs, (str, os.PathLike)):  # a str would be taken letter by letter
        raise TypeError(f"inputs must be a sequence of paths, got a single one: {inputs}")
    found: list[Path] = []
    for given in [os.fspath(item) for item in inputs]:
        path = Path(given)
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES
                and file.is_file()
                and not passed_over(file.relative_to(path))
            )
        elif path.exists():
            files = [path]
        elif glob.has_magic(given):
            files = sorted(map(Path, glob.glob(given, recursive=True)))
        else:
            raise FileNotFoundError(2, os.strerror(2), given)
        if not files:
            raise ValueError(f"{given}: no file there ends in {', '.join(SUFFIXES)}")
        found += files
    if not found:
        raise ValueError("there are no inputs: name a file, a folder or a pattern")
    seen: set[str] = set()
    for file in found:
        real = os.path.realpath(file)
        if real in seen:
            raise ValueError(f"{file} is among the inputs twice")
        seen.add(real)
    return found


def passed_over(path: Path) -> bool:
    """Whether a path below a folder of inputs is none of them, by a name on the way."""
    return any(part[0] in "._" for part in path.parts)


def open_source(path: Path, opening: Opening) -> Source:
    """Raises ValueError, TypeError or OSError for a file that cannot hold queries of this task."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: the name of an input ends in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a plain file")
    try:
        return kind_of(path.suffix.lower())(path, opening)
    except (ValueError, TypeError, OSError) as error:  # a damaged file; libraries do not name it
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from None


def kind_of(suffix: str) -> Callable[[Path, Opening], Source]:
    """What opens files of such names; ValueError when that needs Arrow, which is not there."""
    if suffix == ".npy":
        return NpySource
    if suffix == ".npz":
        return NpzSource
    arrow_library("pyarrow.parquet")
    from headroute.batch.arrow_files import ArrowSource, ParquetSource
    from headroute.batch.json_lines import JsonlSource

    if suffix == ".jsonl":
        return JsonlSource
    return ParquetSource if suffix == ".parquet" else ArrowSource
