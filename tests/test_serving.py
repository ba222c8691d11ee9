"""`Router.load(path, mmap=True)`: the same bits from memory that processes share."""

import gc
import json
import mmap
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from headroute import Router, _packed_file, build_info

NATIVE = build_info()["native"] is not None
native = pytest.mark.skipif(not NATIVE, reason="needs the compiled kernel")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SERVING = Path(__file__).with_name("serving.py")


@pytest.fixture
def path(tmp_path, rng):
    """A router's file: 700 heads, d = 33, e = 17, several heads a group, and a calibration."""
    return saved(tmp_path / "router.safetensors", rng)


def saved(path, rng, n_heads=700, d=33, e=17):
    router = Router(
        rng.standard_normal((n_heads, d)),
        rng.standard_normal((n_heads, e)),
        groups=np.arange(n_heads) // 7,
        backend="reference",
    )
    router.calibrate(rng.standard_normal((50, d))).save(path)
    return path


def cache_of(path, isa):
    return Path(f"{path}.{isa}.packed")


def same_bits(one, other):
    queries = np.random.default_rng(5).standard_normal((40, one.query_dim))
    k = min(3, one.n_heads)
    for a, b in (
        (one.project(queries), other.project(queries)),
        (one.project(queries[0]), other.project(queries[0])),
        (one.route(queries), other.route(queries)),
        (one.centroids, other.centroids),
        (one.answers, other.answers),
        (one.groups, other.groups),
        *zip(one.top_heads(queries, k), other.top_heads(queries, k), strict=True),
        *zip(one.predict(queries, abstain=0.1), other.predict(queries, abstain=0.1), strict=True),
        *zip(
            one.score_answers(queries, one.answers, k),
            other.score_answers(queries, one.answers, k),
            strict=True,
        ),
    ):
        np.testing.assert_array_equal(a, b)
    assert (one.temperature, one.names) == (other.temperature, other.names)


@pytest.mark.parametrize(
    ("n_heads", "d", "e"), [(1, 1, 1), (31, 5, 3), (700, 33, 17), (1030, 200, 384)]
)
def test_same_bits(backend, tmp_path, rng, n_heads, d, e):
    path = saved(tmp_path / "router.safetensors", rng, n_heads, d, e)
    read = Router.load(path, backend=backend)
    same_bits(read, Router.load(path, backend=backend, mmap=True))
    again = Router.load(path, backend=backend, mmap=True)
    same_bits(read, again)
    same_bits(read, pickle.loads(pickle.dumps(again)))
    assert again.backend == backend
    names = {"router.safetensors"}
    if backend == "native":
        info = again.backend_info
        assert info["packed_file"] == str(cache_of(path, info["isa"]))
        assert info["packed_bytes"] == read.backend_info["packed_bytes"]
        names.add(cache_of(path, info["isa"]).name)
    assert set(os.listdir(tmp_path)) == names


def test_answers_that_are_packed_in_another_scale(isa, tmp_path, rng):
    path = tmp_path / "router.safetensors"
    Router(rng.standard_normal((40, 6)), 1e38 * rng.standard_normal((40, 5))).save(path)
    queries = rng.standard_normal((9, 6))
    expected = Router.load(path).project(queries)
    for _ in range(2):
        np.testing.assert_array_equal(Router.load(path, mmap=True).project(queries), expected)


@pytest.mark.parametrize("options", [{"tolerance": 1e-2}, {"precision": "int16"}])
def test_other_arithmetics(isa, path, rng, options):
    queries = rng.standard_normal((40, 33))
    mapped = Router.load(path, mmap=True, **options)
    read = Router.load(path, **options)
    assert mapped.plan() == read.plan()
    np.testing.assert_array_equal(mapped.project(queries), read.project(queries))


def test_a_cache_is_used_again(isa, path):
    Router.load(path, mmap=True)
    cache = cache_of(path, isa)
    before = cache.stat()
    os.utime(cache, ns=(1, 1))
    Router.load(path, mmap=True)
    assert (cache.stat().st_ino, cache.stat().st_mtime_ns) == (before.st_ino, 1)


@native
def test_every_instruction_set_has_its_own_cache(path, monkeypatch):
    isas = build_info()["native"]["isas_available"]
    for isa in isas:
        monkeypatch.setenv("HEADROUTE_ISA", isa)
        Router.load(path, mmap=True)
    assert set(os.listdir(path.parent)) == {path.name, *(cache_of(path, isa).name for isa in isas)}


def flip(at):
    def change(content):
        content[at] ^= 1
        return content

    return change


@pytest.mark.parametrize(
    "change",
    [
        flip(0),
        flip(20),
        flip(60),
        flip(4095),
        flip(4096),
        flip(-1),
        lambda content: content[:-1],
        lambda content: content[:4096],
        lambda content: content[:40],
        lambda content: content[:0],
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        lambda content: b"[" * len(content),
    ],
)
def test_a_damaged_cache_is_replaced(isa, path, change):
    read = Router.load(path)
    Router.load(path, mmap=True)
    cache = cache_of(path, isa)
    whole = cache.read_bytes()
    cache.write_bytes(change(bytearray(whole)))
    same_bits(read, Router.load(path, mmap=True))
    assert cache.read_bytes() == whole
    assert len(os.listdir(path.parent)) == 2


def test_the_cache_of_another_router_is_replaced(isa, path, rng):
    old = Router.load(path, mmap=True)
    old_projected = old.project(np.ones(33))
    cache = cache_of(path, isa)
    before = cache.read_bytes()
    saved(path, rng)
    new = Router.load(path, mmap=True)
    same_bits(Router.load(path), new)
    assert len(cache.read_bytes()) == len(before)
    assert cache.read_bytes() != before
    # What is mapped stays what it was.
    np.testing.assert_array_equal(old.project(np.ones(33)), old_projected)
    assert not np.array_equal(new.project(np.ones(33)), old_projected)


def test_the_cache_of_another_kernel_is_replaced(isa, path):
    Router.load(path, mmap=True)
    cache = cache_of(path, isa)
    whole = cache.read_bytes()
    size = len(whole) - 4096
    key = json.loads(whole[48:4096])["key"]
    assert _packed_file._read(str(cache), key, size) is not None
    for name, other in (
        ("version", -1),
        ("isa", "mmx"),
        ("lanes", 3),
        ("block_heads", 1),
        ("sizes", [700, 17, 33]),
        ("byteorder", "middle"),
        ("of", "0" * 64),
    ):
        assert name in key
        packed = _packed_file.Packed(memoryview(bytes(size)), 1.0)
        _packed_file._write(str(cache), key | {name: other}, packed)
        Router.load(path, mmap=True)
        assert cache.read_bytes() == whole


@native
@pytest.mark.parametrize("obstacle", ["folder", "disk full", "read-only"])
def test_a_cache_that_cannot_be_written(path, monkeypatch, obstacle):
    isa = Router.load(path).backend_info["isa"]
    cache = cache_of(path, isa)
    if obstacle == "folder":
        cache.mkdir()
    else:

        def fail(*_):
            raise OSError(28, obstacle)

        monkeypatch.setattr(os, "fsync" if obstacle == "disk full" else "replace", fail)
    with pytest.warns(RuntimeWarning, match=f"{cache} .*copy of its own") as caught:
        router = Router.load(path, mmap=True)
    assert [warning.filename for warning in caught] == [__file__]
    same_bits(Router.load(path), router)
    assert "packed_file" not in router.backend_info
    assert set(os.listdir(path.parent)) <= {path.name, cache.name}


@native
@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(path):
    path.parent.chmod(0o500)
    try:
        with pytest.warns(RuntimeWarning, match="copy of its own"):
            Router.load(path, mmap=True)
    finally:
        path.parent.chmod(0o700)


@native
def test_a_lock_that_a_killed_process_left_is_in_nobodys_way(path):
    cache = cache_of(path, Router.load(path).backend_info["isa"])
    Path(f"{cache}.lock").touch()
    Router.load(path, mmap=True)
    assert set(os.listdir(path.parent)) == {path.name, cache.name}


@native
@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
def test_who_waits_goes_on_when_the_one_that_packs_is_killed(path):
    cache = cache_of(path, Router.load(path).backend_info["isa"])
    code = (
        "import sys, time; from headroute.files import one_at_a_time\n"
        "with one_at_a_time(sys.argv[1]): print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, f"{cache}.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as packing:
        try:
            packing.stdout.readline()
            loading = threading.Thread(target=Router.load, args=(path,), kwargs={"mmap": True})
            loading.start()
            loading.join(0.5)
            assert loading.is_alive()
            assert not cache.exists()
        finally:
            packing.kill()
    loading.join(60)
    assert not loading.is_alive()
    assert set(os.listdir(path.parent)) == {path.name, cache.name}


def test_files_may_be_deleted(backend, path):
    read = Router.load(path, backend=backend)
    mapped = Router.load(path, backend=backend, mmap=True)
    folder = path.parent
    shutil.rmtree(folder)
    gc.collect()
    same_bits(read, mapped)
    assert mapped.calibrate(mapped.centroids).predict(mapped.centroids[:3], abstain=0.1) is not None


def test_arrays_cannot_be_written_to(backend, path):
    router = Router.load(path, backend=backend, mmap=True)
    for array in (router.centroids, router.answers, router.groups):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
            array.setflags(write=True)


def test_tensors_that_are_not_aligned(backend, path, tmp_path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(
        (size + 1).to_bytes(8, "little") + content[8 : 8 + size] + b" " + content[8 + size :]
    )
    same_bits(Router.load(odd, backend=backend), Router.load(odd, backend=backend, mmap=True))


HEADER = {"version": 1, "temperature": 0.1, "names": ["a"]}
ONE = np.ones((1, 2), np.float32)


@pytest.mark.parametrize("dtype", ["f2", "f8", "i4", "u1"])
def test_tensors_of_other_dtypes(backend, tmp_path, dtype):
    path = tmp_path / "other.safetensors"
    tensors = {"centroids": np.arange(1, 7).reshape(3, 2), "answers": np.eye(3)}
    tensors = {name: np.ascontiguousarray(array, dtype) for name, array in tensors.items()}
    facts = HEADER | {"names": list("abc")}
    save_file(tensors, path, {"headroute-router": json.dumps(facts)})
    read = Router.load(path, backend=backend)
    mapped = Router.load(path, backend=backend, mmap=True)
    np.testing.assert_array_equal(mapped.centroids, read.centroids)
    np.testing.assert_array_equal(mapped.project([1, 2]), read.project([1, 2]))


@pytest.mark.parametrize(
    ("tensors", "changes"),
    [
        ({"centroids": ONE}, {}),
        ({"centroids": ONE, "answers": np.ones((2, 2), np.float32)}, {}),
        ({"centroids": 0 * ONE, "answers": ONE}, {}),
        ({"centroids": np.nan * ONE, "answers": ONE}, {}),
        ({"centroids": ONE, "answers": np.inf * ONE}, {}),
        ({"centroids": ONE, "answers": ONE > 0}, {}),
        ({"centroids": ONE[:0], "answers": ONE[:0]}, {}),
        ({"centroids": ONE, "answers": ONE}, {"version": 2}),
        ({"centroids": ONE, "answers": ONE}, {"temperature": -1}),
        ({"centroids": ONE, "answers": ONE}, {"names": 7}),
    ],
)
def test_a_bad_file(tmp_path, tensors, changes):
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, {"headroute-router": json.dumps(HEADER | changes)})
    with pytest.raises(ValueError, match=f"^{path} is not a router's file: "):
        Router.load(path, mmap=True)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors",
        b"\xff" * 1000,
        (5).to_bytes(8, "little") + b"[[[[[",
        (2).to_bytes(8, "little") + b"[]",
        (9000).to_bytes(8, "little") + b"[" * 9000,
        (16).to_bytes(8, "little") + b'{"centroids": 1}',
        (18).to_bytes(8, "little") + b'{"centroids":"F32"}',
    ],
)
def test_something_else(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is not a router's file: "):
        Router.load(path, mmap=True)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Router.load(tmp_path / "none.safetensors", mmap=True)
    with pytest.raises(IsADirectoryError):
        Router.load(tmp_path, mmap=True)


def test_damage_to_the_router_file_is_an_error_or_another_router(tmp_path, rng):
    """No byte of a header leads beyond the file, however it is changed."""
    path = tmp_path / "router.safetensors"
    Router(rng.standard_normal((3, 2)), rng.standard_normal((3, 2)), backend="reference").save(path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for at in range(8 + header):
        for value in (whole[at] ^ 1, ord("9"), ord("-"), 0xFF):
            content = bytearray(whole)
            content[at] = value
            path.write_bytes(content)
            try:
                router = Router.load(path, backend="reference", mmap=True)
            except ValueError as error:
                assert str(error).startswith(f"{path} is not a router's file: ")  # noqa: PT017
            else:
                assert np.isfinite(router.project([1, 2])).all()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is not a router's file"):
        Router.load(path, mmap=True)


def mapped(folder, content):
    path = folder / "bytes"
    path.write_bytes(content)
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def test_an_engine_over_packed_bytes(isa, tmp_path, rng):
    from headroute import _core

    unit = np.eye(40, 8, dtype=np.float32) + np.eye(40, 8, k=-8, dtype=np.float32)
    unit[16:] = unit[0]
    answers = rng.standard_normal((40, 5)).astype(np.float32)
    engine = _core.Engine(unit, answers, isa)
    packed, answer_scale = engine.packed, engine.answer_scale
    assert packed.dtype == np.uint8
    assert not packed.flags.writeable
    assert packed.nbytes == engine.packed_bytes
    assert packed.nbytes == _core.packed_layout(40, 8, 5, isa)["packed_bytes"]
    queries = rng.standard_normal((9, 8)).astype(np.float32)
    expected, out = np.empty((9, 5), np.float32), np.empty((9, 5), np.float32)
    engine.project(queries, 0.1, expected, 1)
    del engine
    gc.collect()
    memory = mapped(tmp_path, packed.tobytes())
    other = _core.Engine.from_packed(memory, 40, 8, 5, answer_scale, isa)
    # The engine holds the mapping.
    with pytest.raises(BufferError):
        memory.close()
    del memory
    gc.collect()
    other.project(queries, 0.1, out, 1)
    np.testing.assert_array_equal(out, expected)
    assert other.isa == isa
    np.testing.assert_array_equal(other.packed, packed)
    with pytest.raises(ValueError, match="only float32"):
        _ = _core.Engine(unit, answers, isa, "int16").packed


def test_what_cannot_be_packed_bytes(isa, tmp_path):
    from headroute import _core

    size = _core.packed_layout(40, 8, 5, isa)["packed_bytes"]
    memory = mapped(tmp_path, bytes(size + 64))
    view = memoryview(memory)
    most = 2**64 - 1
    for data, sizes, scale, message in (
        (view, (40, 8, 5), 1.0, "not of this size"),
        (view[: size - 4], (40, 8, 5), 1.0, "not of this size"),
        (view[:0], (40, 8, 5), 1.0, "not of this size"),
        (view[:size], (0, 8, 5), 1.0, "not of this size"),
        (view[:size], (40, 0, 5), 1.0, "not of this size"),
        (view[:size], (40, 8, 0), 1.0, "not of this size"),
        (view[:size], (most, 8, 5), 1.0, "not of this size"),
        (view[:size], (40, most, most), 1.0, "not of this size"),
        (view[:size], (1, size // 4, 2**63), 1.0, "not of this size"),
        (view[4 : size + 4], (40, 8, 5), 1.0, "aligned"),
        (view[: 2 * size : 2], (40, 8, 5), 1.0, "contiguous"),
        (bytearray(size), (40, 8, 5), 1.0, "read-only"),
        (view[:size], (40, 8, 5), 1e-39, "answer_scale"),
        (view[:size], (40, 8, 5), 0.0, "answer_scale"),
        (view[:size], (40, 8, 5), np.nan, "answer_scale"),
        (view[:size], (40, 8, 5), np.inf, "answer_scale"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.Engine.from_packed(data, *sizes, scale, isa)
    with pytest.raises(ValueError, match="no kernel 'mmx'"):
        _core.Engine.from_packed(view[:size], 40, 8, 5, 1.0, "mmx")
    with pytest.raises(TypeError):
        _core.Engine.from_packed(None, 40, 8, 5, 1.0, isa)
    with pytest.raises(ValueError, match="must be heads"):
        _core.packed_layout(0, 8, 5, isa)


def test_threads_that_load_and_answer(backend, path):
    queries = np.random.default_rng(3).standard_normal((40, 33)).astype(np.float32)
    expected = Router.load(path, backend=backend).project(queries)
    together = threading.Barrier(8)
    results = [None] * 8

    def work(i):
        together.wait()
        router = Router.load(path, backend=backend, mmap=True)
        results[i] = [router.project(queries, num_threads=1 + i % 2) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # numba's sums may be cut otherwise with another number of threads, never the kernel's.
    check = np.testing.assert_array_equal if backend == "native" else np.testing.assert_allclose
    options = {} if backend == "native" else {"rtol": 0, "atol": 1e-5}
    for result in results:
        for projected in result:
            check(projected, expected, **options)
    assert len(os.listdir(path.parent)) == (2 if backend == "native" else 1)


def serving(*arguments):
    result = subprocess.run(
        [sys.executable, "-W", "error", SERVING, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_prefork_server_that_loses_a_worker(isa, path):
    assert serving("prefork", path) == {"kept": 3, "new": 1}


def test_spawned_processes_that_load_at_once(isa, path, rng):
    import serving as script

    projected = Router.load(path).project(script.queries(33))
    result = serving("spawned", path, 6)
    assert set(result["hashes"]) == {script.hashlib.sha256(projected).hexdigest()}
    assert {info["packed_file"] for info in result["infos"]} == {str(cache_of(path, isa))}
    assert len(os.listdir(path.parent)) == 2


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """16,384 heads of 384 columns: 48 MiB, and as much again when they are packed."""
    rng = np.random.default_rng(11)
    path = tmp_path_factory.mktemp("large") / "router.safetensors"
    heads = rng.standard_normal((2, 16384, 384), dtype=np.float32)
    Router(*heads, backend="reference").save(path)
    yield path
    shutil.rmtree(path.parent)


@native
@linux
def test_memory_of_8_processes(large):
    """What the heads of 8 processes need, against those of one: under 1.3 times as much."""
    measured = serving("spawned-memory", large, 8)
    heads = {name: after - before for name, (before, after) in measured.items()}
    print({name: round(size / 2**20, 1) for name, size in heads.items()})
    print({name: [round(x / 2**20, 1) for x in pair] for name, pair in measured.items()})
    assert heads["mapped 8"] < 1.3 * heads["mapped 1"]
    assert heads["mapped 1"] < 1.1 * heads["read 1"]
    assert heads["read 8"] > 7 * heads["read 1"]


@native
@linux
def test_memory_of_a_prefork_server(large):
    measured = serving("prefork-memory", large, 7)
    print({name: round(size / 2**20, 1) for name, size in measured.items()})
    assert measured["all"] < 1.3 * measured["one"]
