"""A run that was ended, however: the same command goes on, and the result is the same bits."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headroute import Router, __version__
from headroute.batch import job, manifest, parts, project_files, task
from headroute.batch.npy_sink import NpySink
from headroute.batch.parquet_sink import ParquetSink
from headroute.cli import main

D, E, K, N = 48, 32, 9, 60_000
PART_BYTES = 512 << 10  # 44 parts of the .npy file
KILLS = 30


@pytest.fixture
def heads(rng) -> Router:
    return Router(rng.standard_normal((K, D)), rng.standard_normal((K, E)), temperature=0.2)


@pytest.fixture
def queries(rng) -> np.ndarray:
    return rng.standard_normal((N, D), dtype=np.float32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(job, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(job, "BLOCK_BYTES", PART_BYTES // 4)


# What a user's command does, in parts as small as those of this process; and with a disk that takes
# its time, so that a kill finds every stage at work.
COMMAND = f"""
import os, sys, time
from headroute.batch import job
from headroute.cli import main
job.PART_BYTES, job.BLOCK_BYTES = {PART_BYTES}, {PART_BYTES // 4}
for name in ("fsync", "fdatasync"):
    def slow(file, real=getattr(os, name)):
        time.sleep(0.02)
        real(file)
    setattr(os, name, slow)
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", COMMAND, "project", *map(str, arguments)]


def write_parquet(path: Path, queries: np.ndarray) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), D)
    table = pa.table({"id": range(len(queries)), "embedding": vectors})
    pq.write_table(table, path, row_group_size=1500)


def content(path: Path) -> dict[str, bytes]:
    """Of a file, or of the files of a folder but the manifest, which has times in it."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files if file.name != "_headroute.json"}


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_killed_at_random_points(tmp_path, heads, queries, kind) -> None:
    """KILLS kills in all, in as many runs as it takes; each run ends as if there had been none."""
    heads.save(tmp_path / "r.safetensors")
    source = tmp_path / f"q.{kind}"
    if kind == "npy":
        np.save(source, queries)
    else:
        write_parquet(source, queries)
    suffix = ".npy" if kind == "npy" else ""
    project_files(heads, [source], tmp_path / f"whole{suffix}")
    expected = content(tmp_path / f"whole{suffix}")
    if kind == "npy":
        expected = {"p.npy": expected["whole.npy"]}
    out = tmp_path / f"p{suffix}"
    arguments = command(source, "--router", tmp_path / "r.safetensors", "-o", out)
    random = np.random.default_rng(5)
    kills = resumed = 0
    while kills < KILLS // 2:
        process = subprocess.Popen([*arguments, "--json"], stdout=subprocess.PIPE, text=True)
        # From the start of the process to beyond the end of a run without kills.
        try:
            text, _ = process.communicate(timeout=random.uniform(0.1, 1.6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0
        resumed += json.loads(text)["resumed_rows"] > 0
        assert content(out) == {**expected}
        for file in out.iterdir() if out.is_dir() else [out]:
            file.unlink()
    assert subprocess.run(arguments, check=False, capture_output=True).returncode == 0
    assert content(out) == expected
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {source.name, "r.safetensors", f"whole{suffix}", out.name}


def begin(tmp_path: Path, heads: Router, queries: np.ndarray, out: str) -> list[str]:
    """The command of a run that was ended by SIGTERM when a part was done."""
    heads.save(tmp_path / "r.safetensors")
    np.save(tmp_path / "q.npy", queries)
    place = tmp_path / out
    found = tmp_path / f".{out}.manifest" if out.endswith(".npy") else place / "_headroute.json"
    arguments = command(tmp_path / "q.npy", "--router", tmp_path / "r.safetensors", "-o", place)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        state = manifest.load(found)
        if state and state.done.parts > 2:
            break
        time.sleep(0.002)
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 143
    assert "headroute: terminated; the first " in err
    assert f" of {N:,} queries are done and kept: the same command goes on from there" in err
    assert not (tmp_path / "p.npy").exists()
    return arguments[3:]


@pytest.mark.parametrize("out", ["p.npy", "p"])
def test_goes_on_and_says_so(tmp_path, heads, queries, out, capsys) -> None:
    arguments = begin(tmp_path, heads, queries, out)
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["resumed_rows"] < report["rows"] == N
    project_files(heads, [tmp_path / "q.npy"], tmp_path / f"whole{Path(out).suffix}")
    whole = content(tmp_path / f"whole{Path(out).suffix}")
    assert list(content(tmp_path / out).values()) == list(whole.values())


@pytest.mark.parametrize("out", ["p.npy", "p"])
def test_another_run_is_refused(tmp_path, heads, queries, out, capsys, monkeypatch) -> None:
    arguments = begin(tmp_path, heads, queries, out)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def refused(*more: str, command: list[str] = arguments) -> str:
        assert main([*command, *more]) == 2
        return capsys.readouterr().err

    assert "temperature was 0.2, is 0.3; --restart begins anew" in refused("--temperature", "0.3")
    with monkeypatch.context() as patch:
        patch.setattr(task, "__version__", "99.0")
        assert f"headroute version was {__version__}, is 99.0; --restart begins anew" in refused()
    assert "dtype was float32, is float16" in refused("--dtype", "float16")
    assert "output was projected, is weights" in refused("--output", "weights")
    assert "tolerance was 0.0, is 0.01" in refused("--tolerance", "0.01")
    Router(heads.centroids, -heads.answers, temperature=0.2).save(tmp_path / "other")
    other = [str(tmp_path / "other") if "safetensors" in word else word for word in arguments]
    assert "router was " in refused(command=other)
    np.save(tmp_path / "more.npy", queries[:5])
    more = ["project", str(tmp_path / "more.npy"), *arguments[1:]]
    assert "inputs were 1, are 2" in refused(command=more)
    changed = queries.copy()
    changed[-1] += 1
    time.sleep(0.01)
    np.save(tmp_path / "q.npy", changed)
    assert "inputs q.npy: time of change was" in refused()
    before.pop(tmp_path / "q.npy")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert main([*arguments, "--restart", "--temperature", "0.3"]) == 0
    expected = heads.project(changed, temperature=0.3)
    if out == "p.npy":
        np.testing.assert_array_equal(np.load(tmp_path / out), expected)
    else:
        column = pq.read_table(tmp_path / out).column("projected").combine_chunks()
        np.testing.assert_array_equal(column.flatten().to_numpy().reshape(N, E), expected)


def test_restart_with_fewer_parts_leaves_none_of_the_old(tmp_path, heads, queries) -> None:
    np.save(tmp_path / "q.npy", queries)
    project_files(heads, [tmp_path / "q.npy"], tmp_path / "p")
    np.save(tmp_path / "few.npy", queries[:10])
    project_files(heads, [tmp_path / "few.npy"], tmp_path / "p", restart=True)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {
        "_headroute.json",
        "part-00000.parquet",
    }


def test_a_complete_run_is_not_done_again(tmp_path, heads, queries, capsys) -> None:
    heads.save(tmp_path / "r.safetensors")
    np.save(tmp_path / "q.npy", queries)
    arguments = ["project", f"{tmp_path}/q.npy", "--router", f"{tmp_path}/r.safetensors"]
    for out in ("p", "p.npy"):
        command = [*arguments, "-o", f"{tmp_path}/{out}"]
        assert main(command) == 0
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        capsys.readouterr()
        assert main(command) == 0
        text = " ".join(capsys.readouterr().out.split())
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        if out == "p":
            assert "60,000 of them by an earlier run" in text
            assert "time none: the run was complete" in text
            assert after == before
        else:  # a finished .npy file is a file like any other, and replaced
            assert "by an earlier run" not in text


def test_two_runs_at_once(tmp_path, heads, queries, capsys) -> None:
    heads.save(tmp_path / "r.safetensors")
    np.save(tmp_path / "q.npy", queries)
    for out in ("p.npy", "p"):
        arguments = command(
            tmp_path / "q.npy", "--router", tmp_path / "r.safetensors", "-o", tmp_path / out
        )
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        folder = tmp_path / out
        begun = folder if out == "p" else tmp_path / ".p.npy.manifest"
        while not begun.exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.05)
        assert main(arguments[3:]) == 2  # "project" is the first
        assert f"another run is writing to {folder}" in capsys.readouterr().err
        process.communicate()
        assert process.returncode == 0


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"headroute": 99}', b'{"headroute": 1}', b"\xff\x00"]
)
def test_what_is_no_manifest(tmp_path, heads, queries, text) -> None:
    np.save(tmp_path / "q.npy", queries[:9])
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "_headroute.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"_headroute.json is not the manifest of a run \("):
        project_files(heads, [tmp_path / "q.npy"], tmp_path / "p")
    assert project_files(heads, [tmp_path / "q.npy"], tmp_path / "p", restart=True).rows == 9


def stop_after(monkeypatch, n: int) -> None:
    """Have a run end there as if it were interrupted."""
    keep, kept = parts.keep_part, []

    def call(*arguments):
        if len(kept) == n:
            raise KeyboardInterrupt
        kept.append(arguments)
        keep(*arguments)

    monkeypatch.setattr(parts, "keep_part", call)


def test_an_old_manifest_beside_an_empty_file(tmp_path, heads, queries, monkeypatch) -> None:
    """Killed between the new name of the output and the end of its manifest, and the next run
    between the new file and its manifest.
    """
    np.save(tmp_path / "q.npy", queries)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            project_files(heads, [tmp_path / "q.npy"], tmp_path / "p.npy")
    (tmp_path / ".p.npy.partial").write_bytes(b"")
    assert project_files(heads, [tmp_path / "q.npy"], tmp_path / "p.npy").resumed_rows == 0
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), heads.project(queries))


@pytest.mark.parametrize(("out", "parts"), [("p.npy", 5), ("p", 5), ("p", 1000)])
def test_results_that_are_not_there_any_more(
    tmp_path, heads, queries, monkeypatch, out, parts
) -> None:
    np.save(tmp_path / "q.npy", queries)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        stop_after(patch, parts)
        project_files(heads, [tmp_path / "q.npy"], tmp_path / out)
    if out == "p":
        (tmp_path / "p" / "part-00002.parquet").unlink()
    else:
        os.truncate(tmp_path / ".p.npy.partial", 9000)
    name = "part-00002.parquet" if out == "p" else ".p.npy.partial"
    with pytest.raises(ValueError, match=f"cannot go on with .*: {name}, which was done, is not"):
        project_files(heads, [tmp_path / "q.npy"], tmp_path / out)
    assert project_files(heads, [tmp_path / "q.npy"], tmp_path / out, restart=True).rows == N


def test_another_process_that_ends_before_the_lock(tmp_path, heads, queries, monkeypatch) -> None:
    np.save(tmp_path / "q.npy", queries)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            project_files(heads, [tmp_path / "q.npy"], tmp_path / "p.npy")
    lock = NpySink.lock

    def late(sink) -> None:
        monkeypatch.setattr(NpySink, "lock", lock)
        project_files(heads, [tmp_path / "q.npy"], tmp_path / "p.npy")
        lock(sink)

    monkeypatch.setattr(NpySink, "lock", late)
    with pytest.raises(ValueError, match="cannot go on with"):
        project_files(heads, [tmp_path / "q.npy"], tmp_path / "p.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), heads.project(queries))


def test_results_of_a_cluster_are_not_mixed_with_others(tmp_path, heads, queries) -> None:
    np.save(tmp_path / "q.npy", queries[:9])
    project_files(heads, [tmp_path / "q.npy"], tmp_path / "p")
    (tmp_path / "p" / "part-00000.parquet").rename(tmp_path / "p" / "0_000000_000000.parquet")
    with pytest.raises(ValueError, match=r"0_000000_000000\.parquet is not of such a run"):
        project_files(heads, [tmp_path / "q.npy"], tmp_path / "p", restart=True)
    assert pq.read_table(tmp_path / "p").num_rows == 9


# ---- disks that are full, or break


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("out", ["p.npy", "p"])
def test_a_full_disk(small_disk, tmp_path, heads, queries, out, capsys) -> None:
    heads.save(tmp_path / "r.safetensors")
    np.save(tmp_path / "q.npy", queries)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1 << 20))
    arguments = ["project", f"{tmp_path}/q.npy", "--router", f"{tmp_path}/r.safetensors"]
    arguments += ["-o", f"{small_disk}/{out}"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{small_disk}/{out}: No space left on device" in error
    if out == "p.npy":  # known before anything is computed
        assert {path.name for path in small_disk.iterdir()} == {"filler"}
        return
    assert "queries are done and kept: the same command goes on from there" in error
    kept = content(small_disk / out)
    assert kept
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_rows"] > 0
    project_files(heads, [tmp_path / "q.npy"], tmp_path / "whole")
    assert content(small_disk / out) == content(tmp_path / "whole")
    assert kept.items() <= content(small_disk / out).items()


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))


def test_a_limit_on_files(tmp_path, heads, queries) -> None:
    heads.save(tmp_path / "r.safetensors")
    np.save(tmp_path / "q.npy", queries)
    done = subprocess.run(
        command(
            tmp_path / "q.npy", "--router", tmp_path / "r.safetensors", "-o", tmp_path / "p.npy"
        ),
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{tmp_path}/p.npy: File too large" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"q.npy", "r.safetensors"}


@pytest.mark.parametrize("out", ["p.npy", "p"])
@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_nothing_counts_as_done_behind_a_failure(
    tmp_path, heads, queries, monkeypatch, out, call
) -> None:
    """One call to the system fails, once, in the middle; what came after it is done again."""
    np.save(tmp_path / "q.npy", queries)
    whole = f"whole{Path(out).suffix}"
    project_files(heads, [tmp_path / "q.npy"], tmp_path / whole)
    owner, name = {
        "fsync": (os, "fdatasync" if out == "p.npy" else "fsync"),
        "replace": (os, "replace"),
        "write": (NpySink if out == "p.npy" else ParquetSink, "write"),
    }[call]
    real, calls = getattr(owner, name), []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(owner, name, fail_once)
    with pytest.raises(OSError, match="Input/output error") as caught:
        project_files(heads, [tmp_path / "q.npy"], tmp_path / out)
    assert caught.value.__notes__
    report = project_files(heads, [tmp_path / "q.npy"], tmp_path / out)
    assert 0 < report.resumed_rows < N
    assert list(content(tmp_path / out).values()) == list(content(tmp_path / whole).values())


def test_interrupted(tmp_path, heads, queries) -> None:
    heads.save(tmp_path / "r.safetensors")
    np.save(tmp_path / "q.npy", queries)
    arguments = command(
        tmp_path / "q.npy", "--router", tmp_path / "r.safetensors", "-o", tmp_path / "p"
    )
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "p" / "part-00003.parquet").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.startswith("headroute: interrupted; the first ")
    assert len(err.splitlines()) == 1
