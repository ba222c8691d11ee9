"""Where the results of a run go: one .npy file, or a folder of Parquet parts.

That must be nowhere that holds something else, nor the run's own inputs.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from headroute._optional import arrow_library
from headroute.batch.inputs import SUFFIXES, passed_over
from headroute.batch.npy_sink import NpySink
from headroute.batch.sinks import MANIFEST, Sink
from headroute.batch.task import Field


def is_npy(place: Path) -> bool:
    """Whether results go to one .npy file, and without what stood beside the queries."""
    return place.suffix.lower() == ".npy"


def make_sink(place: Path, fields: tuple[Field, ...], rows: int) -> Sink:
    """For a place that `check_output` has found right. ValueError when it needs Arrow, which is not
    there.
    """
    if is_npy(place):
        return NpySink(place, fields, rows)
    arrow_library("pyarrow.parquet")
    from headroute.batch.parquet_sink import ParquetSink

    return ParquetSink(place, fields)


def check_output(place: Path, inputs: Sequence[Path]) -> None:
    """ValueError when the output cannot be written there, or is an input (through links too)."""
    if not place.parent.is_dir():
        raise ValueError(f"cannot write {place}: there is no folder {place.parent}")
    for path in inputs:
        if place.exists() and os.path.samefile(path, place):
            raise ValueError(f"{place} is an input: choose another output")
        if place.resolve() in path.resolve().parents:
            raise ValueError(f"{path} is an input in the output's folder: choose another output")
    if is_npy(place):
        if place.is_dir():
            raise ValueError(f"cannot write {place}: it is a folder")
        if place.exists() and not place.is_file():
            raise ValueError(f"cannot write {place}: it is not a plain file")
        return
    if place.suffix.lower() in SUFFIXES:  # no folder, in anybody's eyes
        raise ValueError(
            f"cannot write {place}: results go to a name that ends in .npy, or as Parquet parts to "
            f"a folder, such as {place.with_suffix('')}"
        )
    if place.exists():
        if not place.is_dir():
            raise ValueError(
                f"cannot write {place}: results go to a name that ends in .npy, or to a folder"
            )
        # A process may have been killed before its manifest had its name.
        if (
            any(not path.name.startswith(MANIFEST) for path in place.iterdir())
            and not (place / MANIFEST).exists()
        ):
            raise ValueError(f"cannot write to {place}: the folder is not empty, and not of a run")


def check_outside(place: Path, inputs: Sequence[str | os.PathLike[str]]) -> None:
    """ValueError when the next run would find the parts of this one among its inputs."""
    below = place.resolve()
    for folder in map(Path, inputs):
        if is_npy(place) or not folder.is_dir() or folder.resolve() not in below.parents:
            continue
        if not passed_over(below.relative_to(folder.resolve())):
            raise ValueError(f"{place} is in {folder}, an input: choose another output")
