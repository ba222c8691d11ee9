"""Packed heads in a file, which any number of processes map: they then share one copy.

    [0, 16)     magic
    [16, 48)    SHA-256 of everything after it
    [48, 4096)  JSON, padded with spaces: what the heads were packed from and how (the key), and the
                answers' scale
    [4096, …)   the packed bytes, on a page of their own

A file that is not whole, not undamaged or of another key is as good as none. It is replaced, never
changed: who has mapped it keeps what it was. The hash finds damage; it is no protection from
somebody who may write to the folder, and could change the router's file as well.

Which facts make a key is the backend's to say.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from headroute.files import MappedFile, one_at_a_time, replace_file

_MAGIC = b"headroute packed"
_HASHED = len(_MAGIC) + 32  # where the hashed part begins
_DATA = 4096


class Packed(NamedTuple):
    data: memoryview  # bytes, read-only, 64-byte aligned; it keeps the memory
    answer_scale: float


def share(
    path: str,
    key: Mapping[str, object],
    size: int,
    pack: Callable[[], Packed],
) -> Packed:
    """The `size` packed bytes of a key, mapped; written first, unless they are there.

    Of several processes that come at once one packs, and the others wait for it: if each mapped
    what it wrote itself, nothing would be shared. Raises OSError when the bytes are not there and
    cannot be written.
    """
    found = _read(path, key, size)
    if found is None:
        with one_at_a_time(f"{path}.lock"):
            found = _read(path, key, size) or _write(path, key, pack())
    return found


def _read(path: str, key: Mapping[str, object], size: int) -> Packed | None:
    """Map what `_write` wrote with the same key; None if there is no such file."""
    try:
        content = memoryview(MappedFile.open(path).content)
        if len(content) != _DATA + size or content[: len(_MAGIC)] != _MAGIC:
            return None
        if content[len(_MAGIC) : _HASHED] != _hash(content[_HASHED:]):
            return None
        facts = json.loads(bytes(content[_HASHED:_DATA]))
        return Packed(content[_DATA:], facts["answer_scale"]) if facts["key"] == key else None
    except (OSError, ValueError):  # no file, or an empty one
        return None


def _write(path: str, key: Mapping[str, object], packed: Packed) -> Packed:
    """Write packed bytes, and map what was written. Raises OSError."""
    facts = json.dumps({"key": key, "answer_scale": packed.answer_scale}).encode()
    header = facts.ljust(_DATA - _HASHED)
    with replace_file(path) as file:
        file.write(_MAGIC + _hash(header, packed.data) + header)
        file.write(packed.data)
        file.flush()
        # Mapped before it has its name: another process may be about to put its own in that place.
        content = memoryview(MappedFile.open(file.name).content)
    return Packed(content[_DATA:], packed.answer_scale)


def _hash(*parts: memoryview | bytes) -> bytes:
    result = hashlib.sha256()
    for part in parts:
        result.update(part)
    return result.digest()
