"""A router's file: one safetensors file, the rest in its header.

    centroids (K, d), answers (K, e)   float32
    groups (K,)                        int64, unless head k is group k
    calibration (m,), typical (K,)     float32, where the router can abstain

Never pickle: nothing in a file can run. The file appears whole or not at all.
"""

import dataclasses
import json
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute._validate import Float32
from headroute.files import MappedFile, replace_file
from headroute.prediction import Calibration
from headroute.training_record import TrainingRecord

_FORMAT = "headroute-router"
_VERSION = 1


@dataclass(frozen=True)
class StoredRouter:
    centroids: Float32  # (K, d)
    answers: Float32  # (K, e)
    temperature: float
    names: Sequence[str]
    groups: npt.NDArray[np.int64] | None = None  # (K,)
    calibration: Calibration | None = None
    training: TrainingRecord | None = None


def encode(router: StoredRouter) -> bytes:
    """The content of a router's file."""
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[Any]] = {
        "centroids": router.centroids,
        "answers": router.answers,
    }
    facts: dict[str, Any] = {
        "version": _VERSION,
        "temperature": router.temperature,
        "names": list(router.names),
    }
    if router.groups is not None and (router.groups != np.arange(len(router.groups))).any():
        tensors["groups"] = router.groups
    if router.calibration is not None:
        tensors["calibration"] = router.calibration.scores
        if router.calibration.typical is not None:
            tensors["typical"] = router.calibration.typical
        facts["score"] = router.calibration.score
        facts["calibrated"] = router.calibration.source
    if router.training is not None:
        facts["training"] = dataclasses.asdict(router.training)
    # One entry: several would come out in another order every time.
    return save(tensors, {_FORMAT: json.dumps(facts)})


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write what `encode` returned; the file appears whole or not at all. Raises OSError."""
    with replace_file(path) as file:
        file.write(content)


def read(path: str | os.PathLike[str]) -> StoredRouter:
    """Read what `write` wrote, `encode` encoded; what is in it is not checked.

    Raises OSError for a file that cannot be opened, and ValueError for one that is something else.
    """
    with open(path, "rb") as file:
        return decode(file.read())


def decode(content: bytes) -> StoredRouter:
    """What `encode` was given; ValueError for something else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return _stored(load(content), _header(content)[0])
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def views(file: MappedFile) -> StoredRouter:
    """What `decode` returns, with arrays that are views of the file; those that are not aligned
    there, or not of this machine's byte order, are copies. ValueError for something else."""
    content = file.content
    header, start = _header(content)
    try:
        tensors = {
            name: _view(content, start, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"no safetensors file: {error!r}") from error
    return _stored(tensors, header)


def _header(content: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begin. Raises ValueError."""
    start = 8 + int.from_bytes(content[:8], "little")
    if not 8 < start <= len(content):
        raise ValueError("no safetensors file: it has no header")
    try:
        header = json.loads(content[8:start])
    except RecursionError as error:
        raise ValueError("no safetensors file: its header is too deep") from error
    if not isinstance(header, dict):
        raise ValueError("no safetensors file: its header is no object")
    return header, start


def _view(content: mmap.mmap, start: int, entry: dict[str, Any]) -> npt.NDArray[Any]:
    """The tensor of a header's entry. Raises ValueError, KeyError or TypeError."""
    name, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if name[0] not in "FIU":
        raise ValueError(f"dtype {name} is not read")
    dtype = np.dtype(f"<{name[0].lower()}{int(name[1:]) // 8}")
    if not 0 <= begin <= end <= len(content) - start:
        raise ValueError(f"data at {begin} to {end} are beyond the file's end")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for shape {shape} of {name}")
    stored = np.frombuffer(content, dtype, math.prod(shape), start + begin).reshape(shape)
    return np.require(stored, dtype.newbyteorder("="), ["A"])


def _stored(tensors: dict[str, npt.NDArray[Any]], header: dict[str, Any]) -> StoredRouter:
    try:
        facts = json.loads(header.get("__metadata__", {}).get(_FORMAT, "{}"))
        if facts.get("version") != _VERSION:
            raise ValueError(f"its header does not say {_FORMAT}, version {_VERSION}")
        calibration = training = None
        if "calibration" in tensors:
            calibration = Calibration(
                facts["score"],
                facts["calibrated"],
                tensors["calibration"],
                tensors.get("typical"),
            )
        if "training" in facts:
            training = TrainingRecord.from_dict(facts["training"])
        return StoredRouter(
            tensors["centroids"],
            tensors["answers"],
            facts["temperature"],
            facts["names"],
            tensors.get("groups"),
            calibration,
            training,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
