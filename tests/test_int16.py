"""16-bit arithmetic on every instruction set: no error above its bound, no sum that overflows, the
same bits in any batch."""

import itertools
import pickle

import numpy as np
import pytest
from accuracy import check_bounds, row_errors

from headroute import Router, available_backends

TEMPERATURES = (0.001, 0.02, 0.1, 1.0, 100.0)


def near_heads(rng, centroids, n):
    """Half of the queries near a head, lengths over ten orders of magnitude."""
    queries = rng.standard_normal((n, centroids.shape[1]))
    some = centroids[rng.integers(len(centroids), size=(n + 1) // 2)]
    queries[::2] += 2 * np.sqrt(queries.shape[1]) * some / np.linalg.norm(some, axis=1)[:, None]
    return (queries * np.exp(rng.uniform(-11, 11, (n, 1)))).astype(np.float32)


DIMS = (1, 2, 3, 15, 16, 31, 32, 33, 127, 128, 129, 384, 385)
HEADS = (1, 2, 3, 15, 16, 17, 33, 127, 128, 129, 256, 257, 300, 700)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_edge_sizes_stay_within_their_bounds(isa, rng, temperature):
    dims = itertools.cycle(DIMS)
    for n_heads in HEADS * 2:
        d, e = next(dims), next(dims)
        router = Router(
            rng.standard_normal((n_heads, d)),
            rng.standard_normal((n_heads, e)),
            precision="int16",
        )
        for n in (1, 4, 15, 29):
            check_bounds(router, near_heads(rng, router.centroids, n), temperature)


def test_expected_error_is_what_it_says(isa, rng):
    """Of ordinary queries, within a factor: it is for choosing, the bound is for trusting."""
    for n_heads, temperature in ((64, 0.1), (300, 0.02), (1500, 0.05)):
        centroids = rng.standard_normal((n_heads, 384))
        router = Router(centroids, rng.standard_normal((n_heads, 384)), precision="int16")
        error, _ = check_bounds(router, near_heads(rng, router.centroids, 200), temperature)
        ratio = np.sqrt((error**2).mean()) / router.plan(temperature).expected_error
        assert 0.05 < ratio < 1.5


@pytest.mark.parametrize(("n_heads", "d", "e"), [(16, 384, 384), (300, 33, 385), (1100, 130, 31)])
def test_same_bits_in_any_batch(isa, rng, n_heads, d, e):
    router = Router(
        rng.standard_normal((n_heads, d)), rng.standard_normal((n_heads, e)), precision="int16"
    )
    queries = near_heads(rng, router.centroids, 211)
    whole, bound = router.project(queries, num_threads=1, return_bound=True)
    for threads in (2, 3, 7):
        again, same = router.project(queries, num_threads=threads, return_bound=True)
        assert (again == whole).all()
        assert (same == bound).all()
    for size in (1, 2, 3, 5, 13, 14, 15, 100):
        parts = [router.project(queries[i : i + size]) for i in range(0, len(queries), size)]
        assert (np.concatenate(parts) == whole).all(), size
    assert (np.stack([router.project(query) for query in queries]) == whole).all()
    assert (router.project(queries.astype(np.float64)) == whole).all()


def test_sums_that_try_to_overflow(isa, rng):
    """Heads and queries with all of their length in one chain of 128 columns, or in one column, and
    answers all at the largest value with weights all in one head, or spread over a chain."""
    for d in (128, 256, 384):
        for columns in (1, 2, 127, 128):
            centroids = np.zeros((200, d))
            centroids[:, :columns] = 1
            centroids[100:] *= -1
            centroids[:, -1] += 1e-3 * rng.standard_normal(200)
            answers = np.where(np.arange(200)[:, None] < 100, 1.0, -1.0) * np.ones((200, 40))
            router = Router(centroids, answers, precision="int16")
            for temperature in TEMPERATURES:
                queries = np.concatenate([centroids, np.eye(d)[:5], -np.eye(d)[:5]])
                check_bounds(router, queries.astype(np.float32), temperature)


def test_rows_longer_than_a_chain_of_bytes(isa, rng):
    """More than 32,768 columns, all of one sign and as large as they can be."""
    d = 32_768 + 100
    centroids = np.ones((64, d)) + 0.1 * rng.standard_normal((64, d))
    centroids[:32] *= -1
    router = Router(centroids, rng.standard_normal((64, 3)), precision="int16")
    queries = np.concatenate([centroids[::9], np.ones((1, d)), -np.ones((1, d))])
    for temperature in (0.001, 0.1, 1.0):
        check_bounds(router, queries.astype(np.float32), temperature)


def test_roundings_at_their_worst(isa, rng):
    """Queries whose every element is half way between two integers, once scaled."""
    d = 100
    router = Router(rng.standard_normal((50, d)), rng.standard_normal((50, d)), precision="int16")
    queries = rng.integers(-3, 3, (60, d)) + 0.5
    queries[:, 0] = 32766 / 0.999999  # the largest element decides the scale
    for temperature in TEMPERATURES:
        check_bounds(router, queries.astype(np.float32), temperature)


@pytest.mark.parametrize("n_heads", [20, 300])
@pytest.mark.parametrize("exponent", [-60, -80, -90, -105])
def test_tiny_answers_are_as_good_as_any(isa, rng, n_heads, exponent):
    """What results are multiplied by is never so small that float32 holds less of it."""
    centroids, answers = rng.standard_normal((2, n_heads, 40)).astype(np.float32)
    queries = rng.standard_normal((33, 40))
    tiny = Router(centroids, answers * np.float32(2.0**exponent), precision="int16")
    plain = Router(centroids, answers, precision="int16").project(queries)
    np.testing.assert_allclose(
        tiny.project(queries).astype(np.float64) * 2.0**-exponent, plain, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_adversarial_heads(isa, rng, temperature):
    d = e = 70
    base = rng.standard_normal(d)
    cases = {
        "all equal": (np.tile(base, (150, 1)), rng.standard_normal((150, e))),
        "duplicates": (
            np.repeat(rng.standard_normal((75, d)), 2, 0),
            rng.standard_normal((150, e)),
        ),
        "near ties": (base + 1e-5 * rng.standard_normal((150, d)), rng.standard_normal((150, e))),
        "opposite": (np.outer([1, -1] * 75, base), np.outer([1, -1] * 75, np.ones(e))),
        "one huge answer": (
            rng.standard_normal((150, d)),
            rng.standard_normal((150, e)) * np.r_[1e9, np.ones(149)][:, None],
        ),
        "no answers": (rng.standard_normal((150, d)), np.zeros((150, e))),
        "tiny answers": (rng.standard_normal((150, d)), 1e-42 * rng.standard_normal((150, e))),
        "huge answers": (rng.standard_normal((150, d)), np.full((150, e), 3e38)),
        "one head": (base[None], rng.standard_normal((1, e))),
    }
    for name, (centroids, answers) in cases.items():
        router = Router(centroids, answers, precision="int16")
        queries = near_heads(rng, router.centroids, 40)
        queries[0] = 0
        try:
            check_bounds(router, queries, temperature)
        except AssertionError as error:
            raise AssertionError(name) from error


def test_queries_that_nobody_sane_would_send(isa, rng):
    router = Router(
        rng.standard_normal((90, 130)), rng.standard_normal((90, 70)), precision="int16"
    )
    queries = near_heads(rng, router.centroids, 30)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    for length in (1e-44, 1e-38, 1e-20, 1e19, 3e38):
        rows = (unit * np.float64(length)).astype(np.float32)
        check_bounds(router, rows, 0.1)
    mixed = np.concatenate([unit[:3], np.zeros((1, 130), np.float32), unit[3:6] * 3e38])
    check_bounds(router, mixed.astype(np.float32), 0.1)
    for bad in (np.nan, np.inf, -np.inf):
        broken = queries.copy()
        broken[[17, 23], 99] = bad
        with pytest.raises(ValueError, match="query 17 has a NaN or infinity"):
            router.project(broken)


def test_nothing_but_out_is_written(isa, rng):
    router = Router(rng.standard_normal((33, 17)), rng.standard_normal((33, 9)), precision="int16")
    queries = near_heads(rng, router.centroids, 29)
    memory = np.full(29 * 9 + 64, 7.0, np.float32)
    router.project(queries, out=memory[32:-32].reshape(29, 9))
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()
    assert (memory[32:-32].reshape(29, 9) == router.project(queries)).all()


def test_a_tolerance_is_kept_row_by_row(isa, rng):
    """Queries whose own bound is too large are done again in float32, bit for bit."""
    d = 384
    centroids, answers = rng.standard_normal((64, d)), rng.standard_normal((64, 40))
    forced = Router(centroids, answers, precision="int16")
    queries = near_heads(rng, forced.centroids, 400)
    halves = rng.integers(-3, 3, d) + 0.5  # once scaled, every element is half way between integers
    halves[0] = 32766 / 0.999999
    queries[7] = halves
    queries[300] = -halves * 2.0**-120
    _, bound = forced.project(queries, return_bound=True)
    ordinary = np.delete(bound, [7, 300]).max()
    assert bound[7] > 1.6 * ordinary
    assert bound[300] > 1.6 * ordinary
    tolerance = float(1.5 * ordinary)
    router = Router(centroids, answers, tolerance=tolerance)
    plan = router.plan()
    assert (plan.precision, plan.checks_rows, plan.bound) == ("int16", True, tolerance)
    projected, bound = router.project(queries, return_bound=True)
    assert (bound <= tolerance).all()
    exact_rows = Router(centroids, answers).project(queries)
    assert (projected[[7, 300]] == exact_rows[[7, 300]]).all()
    assert (projected[:7] != exact_rows[:7]).any()
    assert (router.project(queries) == projected).all()
    assert (router.project(queries[7]) == projected[7]).all()
    assert (row_errors(projected, queries, router, 0.1) <= bound).all()


@pytest.mark.parametrize("backend", available_backends())
def test_the_bound_of_float32(backend, rng):
    for n_heads, d in ((5, 7), (70, 384), (1500, 40)):
        router = Router(
            rng.standard_normal((n_heads, d)), rng.standard_normal((n_heads, 9)), backend=backend
        )
        queries = near_heads(rng, router.centroids, 60)
        for temperature in TEMPERATURES:
            check_bounds(router, queries, temperature)


def test_plans(isa, rng):
    centroids, answers = rng.standard_normal((300, 384)), rng.standard_normal((300, 384))
    plans = {
        tolerance: Router(centroids, answers, tolerance=tolerance).plan()
        for tolerance in (0.0, 1e-6, 1e-3, 0.0045, 0.02)
    }
    assert [p.precision for p in plans.values()] == ["float32"] * 3 + ["int16"] * 2
    assert [p.checks_rows for p in plans.values()] == [False, False, False, True, False]
    assert all(p.bound <= max(t, plans[0.0].bound) for t, p in plans.items())
    router = Router(centroids, answers, tolerance=0.02)
    assert router.plan(1e-5).precision == "float32"
    assert "is below what float32 itself promises" in router.plan(1e-5).reason
    assert Router(centroids[:15], answers[:15], tolerance=0.02).plan().precision == "float32"
    forced = Router(centroids, answers, tolerance=0.02, precision="float32")
    assert forced.plan().precision == "float32"


def test_int16_heads_are_packed_when_needed(isa, rng):
    router = Router(rng.standard_normal((128, 64)), rng.standard_normal((128, 64)))
    assert "int16_packed_bytes" not in router.backend_info
    loose = Router(router.centroids, router.answers, tolerance=0.05)
    assert loose.plan().precision == "int16"
    info = loose.backend_info
    assert info["int16_packed_bytes"] <= 0.55 * info["packed_bytes"]


def test_a_router_keeps_its_tolerance(rng, tmp_path):
    router = Router(rng.standard_normal((70, 64)), rng.standard_normal((70, 64)), tolerance=0.05)
    queries = near_heads(rng, router.centroids, 20)
    copy = pickle.loads(pickle.dumps(router))
    assert (copy.tolerance, copy.plan()) == (0.05, router.plan())
    assert (copy.project(queries) == router.project(queries)).all()
    router.save(tmp_path / "router.safetensors")
    loaded = Router.load(tmp_path / "router.safetensors", precision="int16")
    assert loaded.plan().precision == "int16"


def test_bounds_of_one_query_and_of_none(rng):
    router = Router(rng.standard_normal((70, 64)), rng.standard_normal((70, 3)), precision="int16")
    query = rng.standard_normal(64).astype(np.float32)
    projected, bound = router.project(query, return_bound=True)
    assert (projected.shape, bound.shape, bound.dtype) == ((3,), (), np.float32)
    projected, bound = router.project(np.empty((0, 64), np.float32), return_bound=True)
    assert (projected.shape, bound.shape) == ((0, 3), (0,))


def test_options_that_make_no_sense(rng):
    heads = rng.standard_normal((3, 4))
    for tolerance in (-1, np.nan, np.inf, 10**400):
        with pytest.raises(ValueError, match=r"tolerance must be a finite number of at least 0"):
            Router(heads, heads, tolerance=tolerance)
    with pytest.raises(TypeError, match="tolerance must be a number, got '1'"):
        Router(heads, heads, tolerance="1")
    with pytest.raises(
        ValueError, match="precision must be None or one of float32, int16, screened"
    ):
        Router(heads, heads, precision="int8")
    for backend in {"numba", "reference"} & set(available_backends()):
        with pytest.raises(ValueError, match=f"the {backend} backend has no int16 arithmetic"):
            Router(heads, heads, precision="int16", backend=backend)
        plan = Router(heads, heads, tolerance=0.5, backend=backend).plan()
        assert plan.reason == "this backend has float32 arithmetic alone"


def test_every_rounding_a_half(isa, rng):
    """48 equal weights are each half way between two integers: the bound is the plan's own."""
    router = Router(np.ones((48, 256)), rng.standard_normal((48, 16)) + 100, precision="int16")
    check_bounds(router, rng.standard_normal((30, 256)).astype(np.float32), 6.6)
