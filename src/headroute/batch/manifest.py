"""How far a run came, on disk: so that the same command can go on, and another one cannot.

A manifest says what the run is (the router's hash, the options, the inputs) and how many of its
parts are done. Parts are done in order. It is written beside the results, as JSON, whole or not at
all, and only after what it speaks of is on the disk.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headroute.files import replace_file

_VERSION = 1


@dataclass
class Progress:
    parts: int = 0  # done
    rows: int = 0
    zero_queries: int = 0
    null_rows: int = 0


@dataclass
class Manifest:
    path: Path
    identity: dict[str, Any]  # JSON: what the results depend on
    done: Progress = field(default_factory=Progress)
    complete: bool = False

    def save(self) -> None:
        """Raises OSError."""
        content = {
            "headroute": _VERSION,
            "complete": self.complete,
            "done": asdict(self.done),
            "identity": self.identity,
        }
        with replace_file(self.path) as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())


def load(path: Path) -> Manifest | None:
    """The manifest at a path; None when there is none, ValueError when it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["headroute"] != _VERSION:
            raise ValueError(f"its version is {content['headroute']}")
        return Manifest(
            path, dict(content["identity"]), Progress(**content["done"]), content["complete"]
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the manifest of a run ({error}): --restart begins anew"
        ) from None


def differences(before: Any, now: Any, of: str = "") -> list[str]:
    """What differs between two identities, in words: "temperature was 0.1, is 0.05"."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in [*now, *(key for key in before if key not in now)]
            for line in differences(before.get(key), now.get(key), f"{of} {key}".strip())
        ]
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return [f"{of} were {len(before)}, are {len(now)}"]
        return [
            line for old, new in zip(before, now, strict=True) for line in differences(old, new, of)
        ]
    return [] if before == now else [f"{of} was {shown(before)}, is {shown(now)}"]


def shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
