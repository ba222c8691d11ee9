"""Millions of queries: from Arrow tables and files into tables and files.

`project_record_batch` and `project_batches` need the extra `arrow`; `project_files` needs it for
everything but .npy and .npz.
"""

from typing import Any

from headroute.batch.job import ProjectionReport, project_files
from headroute.batch.task import BadRowError, Task

__all__ = [
    "BadRowError",
    "ProjectionReport",
    "Task",
    "project_batches",
    "project_files",
    "project_record_batch",
]


def __getattr__(name: str) -> Any:
    if name in ("project_batches", "project_record_batch"):
        from headroute._optional import library

        library("pyarrow", "headroute.batch", "arrow")
        from headroute.batch import arrow

        return getattr(arrow, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
