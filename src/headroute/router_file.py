"""A router's file: one safetensors file, tensors `centroids` and `answers`, the rest in its header.

Never pickle: nothing in a file can run. The file appears whole or not at all.
"""

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from headroute._validate import Float32

_FORMAT = "headroute-router"
_VERSION = "1"


@dataclass(frozen=True)
class StoredRouter:
    centroids: Float32  # (K, d)
    answers: Float32  # (K, e)
    temperature: float
    names: Sequence[str]


def write(path: str | os.PathLike[str], router: StoredRouter) -> None:
    """Write beside the file's place, flush to disk, and move there. Raises OSError."""
    from safetensors.numpy import save

    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "temperature": repr(router.temperature),
        "names": json.dumps(router.names),
    }
    content = save({"centroids": router.centroids, "answers": router.answers}, metadata)
    path = os.fspath(path)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read(path: str | os.PathLike[str]) -> StoredRouter:
    """Read what `write` wrote; what is in it is not checked.

    Raises OSError for a file that cannot be opened, and ValueError for one that is something else.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # safe_open reports a missing file as if it were a wrong one
        pass
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
                raise ValueError(f"its header does not say {_FORMAT}, version {_VERSION}")
            return StoredRouter(
                file.get_tensor("centroids"),
                file.get_tensor("answers"),
                float(metadata["temperature"]),
                json.loads(metadata["names"]),
            )
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
