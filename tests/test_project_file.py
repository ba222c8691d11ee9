"""`headroute project`: .npy to .npy, whole or not at all, in constant memory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headroute import Router
from headroute.batch import project_files
from headroute.batch.job import BLOCK_BYTES
from headroute.cli import main

D, E = 24, 16


@pytest.fixture
def heads(rng) -> Router:
    return Router(rng.standard_normal((7, D)), rng.standard_normal((7, E)), temperature=0.2)


@pytest.fixture
def queries(rng) -> np.ndarray:
    # More rows than one block of float32 results or queries holds, and no multiple of it.
    return rng.standard_normal((BLOCK_BYTES // (4 * D) + 1001, D), dtype=np.float32)


def save(path: Path, array: np.ndarray) -> Path:
    with open(path, "wb") as file:
        np.save(file, array)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4", np.float16])
def test_the_rows_of_the_router(tmp_path, heads, queries, dtype) -> None:
    source = queries.astype(dtype)
    report = project_files(heads, [save(tmp_path / "q.npy", source)], tmp_path / "p.npy")
    projected = np.load(tmp_path / "p.npy")
    assert projected.dtype == np.float32
    assert projected.flags.c_contiguous
    np.testing.assert_array_equal(projected, heads.project(source))
    assert (report.rows, report.query_dim, report.answer_dim) == (len(queries), D, E)
    assert report.rows_per_second == report.rows / report.seconds


def test_float16_output(tmp_path, heads, queries) -> None:
    heads.save(tmp_path / "heads")
    save(tmp_path / "q.npy", queries.astype(np.float16))
    arguments = ["project", str(tmp_path / "q.npy"), "--router", str(tmp_path / "heads")]
    assert main([*arguments, "-o", str(tmp_path / "p.npy"), "--dtype", "float16"]) == 0
    projected = np.load(tmp_path / "p.npy")
    assert projected.dtype == np.float16
    expected = heads.project(queries.astype(np.float16)).astype(np.float16)
    np.testing.assert_array_equal(projected, expected)


def test_fortran_order(tmp_path, heads, queries) -> None:
    project_files(heads, [save(tmp_path / "q.npy", np.asfortranarray(queries))], tmp_path / "p.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), heads.project(queries))


def test_no_rows(tmp_path, heads) -> None:
    report = project_files(heads, [save(tmp_path / "q.npy", np.ones((0, D)))], tmp_path / "p.npy")
    assert report.rows == 0
    assert np.load(tmp_path / "p.npy").shape == (0, E)


def test_zero_queries_are_counted(tmp_path, heads, queries) -> None:
    queries[:, 0] = 0  # every row begins like a zero query
    queries[[0, 5, -1]] = 0
    report = project_files(heads, [save(tmp_path / "q.npy", queries)], tmp_path / "p.npy")
    assert report.zero_queries == 3


@pytest.mark.parametrize("row", [0, 777, BLOCK_BYTES // (4 * D) + 500])
def test_a_bad_row_is_named_and_leaves_no_output(tmp_path, heads, queries, row) -> None:
    queries[row, 3] = np.nan
    queries[row + 1] = np.inf
    path = save(tmp_path / "q.npy", queries)
    with pytest.raises(ValueError, match=f"q.npy: query {row} has a NaN or infinity in it"):
        project_files(heads, [path], tmp_path / "p.npy")
    assert names(tmp_path) == {"q.npy"}


def test_a_failed_run_leaves_the_old_output(tmp_path, heads, queries) -> None:
    queries[9] = np.inf
    path = save(tmp_path / "q.npy", queries)
    old = save(tmp_path / "p.npy", np.arange(3))
    with pytest.raises(ValueError, match="query 9"):
        project_files(heads, [path], old)
    np.testing.assert_array_equal(np.load(old), np.arange(3))
    assert names(tmp_path) == {"q.npy", "p.npy"}


def test_the_output_has_the_permissions_of_any_new_file(tmp_path, heads, queries) -> None:
    project_files(heads, [save(tmp_path / "q.npy", queries[:5])], tmp_path / "p.npy")
    assert (tmp_path / "p.npy").stat().st_mode == (tmp_path / "q.npy").stat().st_mode


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_input_is_never_overwritten(tmp_path, heads, queries, link) -> None:
    path = save(tmp_path / "q.npy", queries[:5])
    link(path, tmp_path / "p.npy")
    for output in (path, tmp_path / "p.npy"):
        with pytest.raises(ValueError, match="is an input: choose another output"):
            project_files(heads, [path], output)
    np.testing.assert_array_equal(np.load(path), queries[:5])


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"hello", ValueError, "is not a .npy file of numbers"),
        (np.ones(D), ValueError, rf"has shape \({D},\), expected two dimensions"),
        (np.ones((3, D + 1)), ValueError, f"queries have {D + 1} columns, the heads expect {D}"),
        (np.ones((3, D), bool), TypeError, "queries must be real numbers, got dtype bool"),
        (np.ones((3, D), complex), TypeError, "queries must be real numbers, got dtype complex"),
        (np.full((3, D), "x"), TypeError, "queries must be real numbers, got dtype <U1"),
    ],
)
def test_what_is_no_array_of_queries(tmp_path, heads, content, error, message) -> None:
    path = tmp_path / "q.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, content)
    with pytest.raises(error, match=message):
        project_files(heads, [path], tmp_path / "p.npy")
    assert names(tmp_path) == {"q.npy"}


def test_a_truncated_file(tmp_path, heads, queries) -> None:
    path = save(tmp_path / "q.npy", queries)
    os.truncate(path, 1000)
    with pytest.raises(ValueError, match=r"q\.npy is not a \.npy file of numbers"):
        project_files(heads, [path], tmp_path / "p.npy")


def test_outputs_that_cannot_be(tmp_path, heads, queries) -> None:
    path = save(tmp_path / "q.npy", queries[:5])
    with pytest.raises(ValueError, match="there is no folder"):
        project_files(heads, [path], tmp_path / "nowhere" / "p.npy")
    with pytest.raises(ValueError, match="is an input in the output's folder"):
        project_files(heads, [path], tmp_path)
    (tmp_path / "f").mkdir()
    save(tmp_path / "f" / "other", queries[:1])
    with pytest.raises(ValueError, match="the folder is not empty, and not of a run"):
        project_files(heads, [path], tmp_path / "f")
    (tmp_path / "d.npy").mkdir()
    with pytest.raises(ValueError, match="it is a folder"):
        project_files(heads, [path], tmp_path / "d.npy")
    with pytest.raises(ValueError, match=r"a name that ends in \.npy, or to a folder"):
        project_files(heads, [path], save(tmp_path / "other", queries[:1]))
    for suffix in (".parquet", ".Arrow", ".npz", ".jsonl"):
        with pytest.raises(ValueError, match=r"or as Parquet parts to a folder, such as .*/x$"):
            project_files(heads, [path], tmp_path / f"x{suffix}")
    assert not list(tmp_path.glob("x*"))


def test_a_suffix_in_capitals(tmp_path, heads, queries) -> None:
    path = save(tmp_path / "q.npy", queries[:5])
    project_files(heads, [path], tmp_path / "p.NPY")
    np.testing.assert_array_equal(np.load(tmp_path / "p.NPY"), heads.project(queries[:5]))
    assert names(tmp_path) == {"q.npy", "p.NPY"}


def test_the_command(tmp_path, heads, queries, capsys) -> None:
    save(tmp_path / "q.npy", queries)
    heads.save(tmp_path / "r.safetensors")
    arguments = ["project", f"{tmp_path}/q.npy", "--router", f"{tmp_path}/r.safetensors"]
    arguments += ["-o", f"{tmp_path}/p.npy", "--temperature", "0.05", "--threads", "1"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert f"{len(queries):,} queries, {D} to {E} dimensions" in out
    assert "queries/s" in out
    assert err == ""
    expected = heads.project(queries, temperature=0.05)
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), expected)


# ru_maxrss would have what the parent had before exec.
PEAK = """
import sys
from headroute.cli import main
assert main(sys.argv[1:]) == 0
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, rng, kind) -> None:
    d, rows = 384, 200_000  # 293 MiB in, as much out
    router = Router(rng.standard_normal((16, d)), rng.standard_normal((16, d)))
    router.save(tmp_path / "r.safetensors")
    for name, n in (("large", rows), ("small", 60_000)):
        vectors = rng.standard_normal((1000, d), dtype=np.float32).repeat(n // 1000, axis=0)
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", vectors)
        else:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), d)
            path = tmp_path / f"{name}.parquet"
            pq.write_table(pa.table({"embedding": lists}), path, row_group_size=5000)
    del vectors

    def peak_mib(name: str) -> float:
        arguments = [
            "project",
            f"{tmp_path}/{name}.{kind}",
            "--router",
            f"{tmp_path}/r.safetensors",
        ]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments, "-o", f"{tmp_path}/{name}_out"],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stderr) / 1024

    # The small one fills the pipeline too: blocks two ahead, two behind, and those at work.
    assert peak_mib("large") - peak_mib("small") < 8 * BLOCK_BYTES / 2**20


def test_the_router_and_what_is_no_plain_file_are_not_overwritten(
    tmp_path, heads, queries, capsys
) -> None:
    source = save(tmp_path / "q.npy", queries[:3])
    router = tmp_path / "r.safetensors"
    heads.save(router)
    (tmp_path / "link").symlink_to(router)
    os.mkfifo(tmp_path / "fifo")
    before = router.read_bytes()
    for output in ("r.safetensors", "link", "fifo"):
        arguments = ["project", str(source), "--router", str(router), "-o", f"{tmp_path}/{output}"]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "is an input" in error or "a name that ends in .npy, or to a folder" in error
    assert router.read_bytes() == before
    assert names(tmp_path) == {"q.npy", "r.safetensors", "link", "fifo"}


def test_output_through_a_link_goes_where_the_link_leads(tmp_path, heads, queries) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "p.npy").symlink_to(tmp_path / "there/real.npy")
    project_files(heads, [save(tmp_path / "q.npy", queries[:3])], tmp_path / "p.npy")
    assert (tmp_path / "p.npy").is_symlink()
    np.testing.assert_array_equal(np.load(tmp_path / "there/real.npy"), heads.project(queries[:3]))


def test_terminated_before_anything_is_done_leaves_nothing_behind(tmp_path, heads) -> None:
    rows = 4_000_000  # one part, half a second at least, of which it gets a moment
    source = np.lib.format.open_memmap(tmp_path / "q.npy", "w+", np.float32, (rows, D))
    source[:] = 1
    heads.save(tmp_path / "r.safetensors")
    command = [sys.executable, "-m", "headroute", "project", "q.npy", "-o", "p.npy"]
    process = subprocess.Popen(
        [*command, "--router", "r.safetensors", "--threads", "1", "--batch-rows", f"{rows}"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / ".p.npy.manifest").exists():
        time.sleep(0.001)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    assert names(tmp_path) == {"q.npy", "r.safetensors"}
