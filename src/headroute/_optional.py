"""Libraries that not everybody installs."""

import importlib
from types import ModuleType
from typing import Any


def library(module: str, need: str, extra: str, error: type[ValueError] = ValueError) -> ModuleType:
    """Import a module of an extra; without it an `error` of one line, which begins with `need`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise error(
            f"{need} needs {missing.name}, which is not installed: pip install 'headroute[{extra}]'"
        ) from None


def arrow_library(module: str) -> Any:
    """A module of pyarrow, where files need it."""
    return library(module, "reading or writing Parquet, Arrow or JSON lines", "arrow")
