"""Router: what goes in, what comes out, and that it keeps."""

import copy
import json
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from accuracy import assert_within, exact, projection_tolerance, weight_tolerance
from safetensors import safe_open
from safetensors.numpy import save_file

from headroute import Router, TopHeads, available_backends, build_info
from headroute._backends.reference import unit


def heads(rng, n_heads=10, d=6, e=4):
    return rng.standard_normal((n_heads, d)), rng.standard_normal((n_heads, e))


def assert_exact(router, queries, truth=None):
    """Both calls agree with the formula, of float32(queries) unless `truth` says otherwise."""
    true = np.asarray(queries, np.float32) if truth is None else truth
    tau, d = router.temperature, router.query_dim
    weights, projected = exact(true, router.centroids, router.answers, tau)
    assert_within(router.route(queries), weights, weight_tolerance(weights, d, tau))
    tolerance = projection_tolerance(weights, router.answers, d, tau)
    assert_within(router.project(queries), projected, tolerance)


def test_backends():
    assert available_backends()[-2:] == ["numba", "reference"]
    # Where the build must have succeeded, its tests must not be left out in silence.
    if os.environ.get("HEADROUTE_REQUIRE_NATIVE") == "1":
        assert available_backends()[0] == "native"


def test_build_info():
    info = build_info()
    assert info["backend"] == available_backends()[0]
    for name in ("native", "numba", "reference"):
        assert (
            (info[name] is None)
            == (name in info["unavailable"])
            == (name not in available_backends())
        )
    assert {"version", "python", "numpy", "threads"} <= info.keys()


def test_attributes(backend, rng):
    centroids, answers = heads(rng)
    router = Router(centroids, answers, temperature=0.2, names=list("abcdefghij"), backend=backend)
    assert (router.n_heads, router.query_dim, router.answer_dim) == (10, 6, 4)
    assert (router.temperature, router.names, router.backend) == (0.2, tuple("abcdefghij"), backend)
    assert isinstance(router.backend_info, dict)
    assert repr(router) == (
        f"Router(n_heads=10, query_dim=6, answer_dim=4, temperature=0.2, backend={backend!r})"
    )
    assert Router(centroids, answers, backend=backend).names == tuple("0123456789")


def test_immutable(router, rng):
    queries = rng.standard_normal((3, 6))
    before = router.project(queries)
    for name in ("temperature", "centroids", "answers", "names", "backend", "anything"):
        with pytest.raises(AttributeError):
            setattr(router, name, 1)
    for array in (router.centroids, router.answers):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)
    np.testing.assert_array_equal(router.project(queries), before)


def test_heads_are_copied(backend, rng):
    centroids, answers = (part.astype(np.float32) for part in heads(rng))
    router = Router(centroids, answers, backend=backend)
    queries = rng.standard_normal((3, 6))
    before = router.project(queries)
    centroids[:], answers[:] = 1, 1
    np.testing.assert_array_equal(router.project(queries), before)
    assert router.centroids[0, 0] != 1


def test_centroids_beyond_float32(backend, rng):
    """Only directions count, so float64 centroids of any length do."""
    centroids, answers = heads(rng)
    lengths = np.logspace(-300, 300, 10)[:, np.newaxis]
    queries = rng.standard_normal((7, 6), dtype=np.float32)
    router = Router(centroids * lengths, answers, backend=backend)
    weights, _ = exact(queries, centroids.astype(np.float32), answers, 0.1)
    assert_within(router.route(queries), weights, 2 * weight_tolerance(weights, 6, 0.1))


# ---- queries of every kind


@pytest.mark.parametrize("dtype", ["f4", ">f4", "f8", ">f8", "f2", "g", "i1", "i4", "u8", ">i2"])
def test_dtypes(router, rng, dtype):
    queries = np.round(50 * rng.standard_normal((40, 6))).clip(-100, 100)
    queries = (abs(queries) if dtype == "u8" else queries).astype(dtype)
    assert_exact(router, queries)
    assert_exact(router, queries.tolist())


def layouts(queries):
    n, d = queries.shape
    wide = np.zeros((2 * n, 3 * d), np.float32)
    wide[::2, ::3] = queries
    records = np.zeros(n, np.dtype([("flag", "u1"), ("vector", "f4", d)]))
    records["vector"] = queries
    frozen = queries.copy()
    frozen.setflags(write=False)
    return {
        "fortran": np.asfortranarray(queries),
        "rows backwards": queries[::-1].copy()[::-1],
        "columns backwards": queries[:, ::-1].copy()[:, ::-1],
        "both strided": wide[::2, ::3],
        "columns of a wider array": np.hstack([queries, queries])[:, :d],
        "misaligned": records["vector"],
        "read-only": frozen,
    }


@pytest.mark.parametrize("n", [1, 40])
def test_layouts(router, rng, n):
    queries = rng.standard_normal((n, 6), dtype=np.float32)
    for name, variant in layouts(queries).items():
        np.testing.assert_array_equal(variant, queries, err_msg=name)
        assert_exact(router, variant)


def test_one_row_for_all(router, rng):
    queries = np.broadcast_to(rng.standard_normal(6).astype(np.float32), (40, 6))
    assert_exact(router, queries)


def test_memory_mapped(router, rng, tmp_path):
    queries = rng.standard_normal((40, 6), dtype=np.float32)
    np.save(tmp_path / "q.npy", queries)
    mapped = np.load(tmp_path / "q.npy", mmap_mode="r")
    shape = (40, 4)
    out = np.lib.format.open_memmap(tmp_path / "p.npy", "w+", np.float32, shape)
    assert router.project(mapped, out=out) is out
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), router.project(queries))


def test_one_query(router, rng):
    query = rng.standard_normal(6)
    out = np.empty(4, np.float32)
    assert router.project(query, out=out) is out
    np.testing.assert_array_equal(out, router.project(query[np.newaxis])[0])
    assert router.route(query).shape == (10,)


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e-19, 1e19, 1e30, 3e38])
def test_float32_rows_whose_squares_over_or_underflow(router, rng, size):
    queries = (rng.uniform(-1, 1, (40, 6)) * size).astype(np.float32)
    queries[:, 0] = size  # no zero row among the smallest
    queries[20:] = rng.standard_normal((20, 6))
    assert_exact(router, queries)


@pytest.mark.parametrize("dtype", ["f8", "g"])
@pytest.mark.parametrize("exponent", [-1070, -400, -150, 150, 400, 1020])
def test_wide_rows_beyond_float32(router, rng, dtype, exponent):
    queries = rng.uniform(0.5, 1, (40, 6)).astype(np.float32) * rng.choice([-1, 1], (40, 6))
    scaled = np.ldexp(queries.astype(dtype), exponent)
    scaled[::2] = queries[::2]  # awkward rows among easy ones
    # The smallest float64 have few digits: what they are is what counts.
    truth = np.ldexp(scaled, np.where(np.arange(40) % 2, -exponent, 0)[:, np.newaxis])
    assert_exact(router, scaled, truth.astype(np.float64))


def test_long_input_in_converted_blocks(backend, rng):
    centroids, answers = heads(rng, 3, 1500, 2)
    queries = rng.standard_normal((1700, 1500))  # 2.4 blocks of 4 MiB
    assert_exact(Router(centroids, answers, backend=backend), queries)


def test_temperature_of_a_call(backend, rng):
    centroids, answers = heads(rng)
    queries = rng.standard_normal((5, 6))
    one = Router(centroids, answers, temperature=0.3, backend=backend)
    other = Router(centroids, answers, temperature=0.1, backend=backend)
    np.testing.assert_array_equal(one.route(queries), other.route(queries, temperature=0.3))
    np.testing.assert_array_equal(
        one.route(queries), other.route(queries, temperature=np.float64(0.3))
    )


@pytest.mark.parametrize(("n", "n_heads"), [(300_000, 16), (1200, 20_000)])
def test_extra_memory_is_bounded(backend, rng, n, n_heads):
    """At most 8 MiB a thread beyond the result, whatever N and K (Python's and NumPy's share)."""
    centroids, answers = heads(rng, n_heads, 8, 8)
    router = Router(centroids, answers, backend=backend)
    queries = rng.standard_normal((n, 8)).astype(np.float16)
    out = np.empty((n, 8), np.float32)
    router.project(queries[:2], out=out[:2])
    tracemalloc.start()
    try:
        router.project(queries, out=out, num_threads=1)
        router.top_heads(queries[: n // 10], 3, num_threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    result = (n // 10) * 3 * (8 + 4)
    assert peak - result <= 8 << 20


# ---- top heads


def test_top_heads_are_the_best_of_all_weights(router, rng):
    queries = rng.standard_normal((40, 6))
    weights = router.route(queries)
    order = np.argsort(-weights, axis=1, kind="stable")
    for k in (1, 3, 9, 10):
        top = router.top_heads(queries, k)
        assert isinstance(top, TopHeads)
        assert (top.indices.dtype, top.weights.dtype) == (np.int64, np.float32)
        np.testing.assert_array_equal(top.indices, order[:, :k])
        np.testing.assert_array_equal(top.weights, np.take_along_axis(weights, order[:, :k], 1))
    one = router.top_heads(queries[7], 3)
    np.testing.assert_array_equal(one.indices, order[7, :3])


def test_top_heads_ties_go_by_index(router):
    indices, weights = router.top_heads(np.zeros((2, 6)), 4)
    np.testing.assert_array_equal(indices, [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(weights, np.full((2, 4), 0.1, np.float32))


def test_top_heads_over_many_blocks(backend, rng):
    centroids, answers = heads(rng, 3000, 6, 4)
    router = Router(centroids, answers, backend=backend)
    queries = rng.standard_normal((400, 6))
    indices, _ = router.top_heads(queries, 2)
    # In float64, to tell which heads are close enough to change places in float32.
    weights, _ = exact(queries.astype(np.float32), centroids.astype(np.float32), answers, 0.1)
    best = np.sort(weights, axis=1)[:, ::-1][:, :2]
    chosen = np.take_along_axis(weights, indices, axis=1)
    assert (abs(chosen - best) <= 2 * weight_tolerance(best, 6, 0.1)).all()
    queries[333, 2] = np.nan
    with pytest.raises(ValueError, match="query 333 has"):
        router.top_heads(queries, 2)


def test_top_heads_of_all_heads_are_all_heads(backend, rng):
    """k = K over several blocks, half of the heads twice: a heap of thousands, with ties."""
    half, _ = heads(rng, 1500, 6, 4)
    router = Router(np.concatenate([half, half]), np.ones((3000, 1)), backend=backend)
    queries = rng.standard_normal((15, 6)).astype(np.float32)
    indices, weights = router.top_heads(queries, 3000)
    np.testing.assert_array_equal(np.sort(indices, axis=1), [np.arange(3000)] * 15)
    assert (np.diff(weights, axis=1) <= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    cosines = unit(queries.astype(np.float64)) @ unit(router.centroids.astype(np.float64)).T
    ordered = np.take_along_axis(cosines, indices, axis=1)
    assert (np.diff(ordered, axis=1) <= 1e-6).all()
    first, second = indices[:, 0::2], indices[:, 1::2]  # twins, the lower index first
    assert (second - first == 1500).mean() > 0.99
    fewer = router.top_heads(queries, 37)
    np.testing.assert_array_equal(fewer.indices, indices[:, :37])


def test_weights_of_top_heads_never_rise(isa):
    """exp2 is not monotone to the last bit where its pieces meet."""
    rng = np.random.default_rng(1)
    router = Router(rng.standard_normal((4097, 13)), np.ones((4097, 1)))
    for temperature in rng.uniform(0.5, 5, 20):
        queries = rng.standard_normal((10, 13))
        weights = router.top_heads(queries, 4097, temperature=temperature).weights
        assert (np.diff(weights, axis=1) <= 0).all()


def test_the_extension_checks_where_it_writes_heads(isa):
    from headroute import _core

    engine = _core.Engine(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), isa)
    queries, weights = np.ones((2, 3), np.float32), np.empty((2, 2), np.float32)
    misaligned = np.zeros(33, np.uint8)[1:].view(np.int64).reshape(2, 2)
    for indices in (None, np.empty((2, 2), np.int32), np.empty((2, 3), np.int64), misaligned):
        with pytest.raises(ValueError, match="heads must be"):
            engine.top_heads(queries, 0.1, indices, weights, 1)
    for k in (0, 4):
        arrays = np.empty((2, k), np.int64), np.empty((2, k), np.float32)
        with pytest.raises(ValueError, match="k must be between 1 and K"):
            engine.top_heads(queries, 0.1, *arrays, 1)


# ---- files, copies


def same(one, other):
    np.testing.assert_array_equal(one.centroids, other.centroids)
    np.testing.assert_array_equal(one.answers, other.answers)
    assert (one.temperature, one.names) == (other.temperature, other.names)
    query = np.arange(1, 7)
    np.testing.assert_array_equal(one.project(query), other.project(query))


def test_save_and_load(backend, rng, tmp_path):
    router = Router(*heads(rng), temperature=1 / 3, names=["ü", '"', *"abcdefgh"], backend=backend)
    path = tmp_path / "router.safetensors"
    router.save(path)
    router.save(str(path))  # over itself
    assert os.listdir(tmp_path) == ["router.safetensors"]
    loaded = Router.load(path, backend=backend)
    assert loaded.backend == backend
    same(router, loaded)
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == {"centroids", "answers"}
        assert json.loads(file.metadata()["headroute-router"])["names"][0] == "ü"


def test_a_failed_save_leaves_the_old_file(router, tmp_path, monkeypatch):
    path = tmp_path / "router.safetensors"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        router.save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["router.safetensors"]


HEADER = {"version": 1, "temperature": 0.1, "names": ["a"]}
ONE = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("tensors", "changes"),
    [
        ({"centroids": ONE}, {}),
        ({"centroids": ONE, "answers": np.ones((2, 2), np.float32)}, {}),
        ({"centroids": 0 * ONE, "answers": ONE}, {}),
        ({"centroids": ONE, "answers": ONE}, {"version": None}),
        ({"centroids": ONE, "answers": ONE}, {"version": 2}),
        ({"centroids": ONE, "answers": ONE}, {"temperature": "warm"}),
        ({"centroids": ONE, "answers": ONE}, {"temperature": -1}),
        ({"centroids": ONE, "answers": ONE}, {"names": "a"}),
        ({"centroids": ONE, "answers": ONE}, {"names": 7}),
        ({"centroids": ONE, "answers": ONE}, {"names": ["a", "b"]}),
    ],
)
def test_loading_a_bad_file(tmp_path, tensors, changes):
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, {"headroute-router": json.dumps(HEADER | changes)})
    with pytest.raises(ValueError, match=f"^{path} is not a router's file: "):
        Router.load(path)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 1000, b"PK\x03\x04"])
def test_loading_something_else(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is not a router's file: "):
        Router.load(path)


def test_loading_a_truncated_file(router, tmp_path):
    path = tmp_path / "router.safetensors"
    router.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a router's file"):
        Router.load(path)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Router.load(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError):
        Router.load(tmp_path)


def test_pickle_and_copy(router):
    same(router, pickle.loads(pickle.dumps(router)))
    same(router, copy.copy(router))
    same(router, copy.deepcopy({"router": router})["router"])
