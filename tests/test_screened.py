"""Leaving out light heads, on every instruction set: no error above its certificate, and no
certificate above the tolerance."""

import re
from pathlib import Path

import numpy as np
import pytest
from accuracy import check_bounds, exact

from headroute import Router, _arithmetic, _screening, precision


def clustered(rng, n_heads, d, e, spread=0.7):
    """Heads in groups of ten, neighbours in the array, as questions of one intent are."""
    centers = rng.standard_normal((-(-n_heads // 10), d))
    heads = np.repeat(centers, 10, axis=0)[:n_heads] + spread * rng.standard_normal((n_heads, d))
    return heads, rng.standard_normal((n_heads, e))


def near(rng, heads, n, spread=0.7):
    queries = heads[rng.integers(len(heads), size=n)] + spread * rng.standard_normal(
        (n, heads.shape[1])
    )
    return (queries * np.exp(rng.uniform(-9, 9, (n, 1)))).astype(np.float32)


def given_up(router, queries, temperature):
    """Rows that float32 had to do: its bound, and its bits."""
    dense = Router(router.centroids, router.answers)
    projected, bound = router.project(queries, temperature=temperature, return_bound=True)
    rows = bound == np.nextafter(np.float32(dense.plan(temperature).bound), np.float32(np.inf))
    exact_rows = dense.project(queries[rows], temperature=temperature)
    assert (projected[rows] == exact_rows).all()
    return rows


@pytest.mark.parametrize("tolerance", [1e-3, 1e-2])
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.05])
def test_certificates(isa, rng, temperature, tolerance):
    heads, answers = clustered(rng, 1500, 96, 40)
    router = Router(heads, answers, tolerance=tolerance, precision="screened")
    queries = near(rng, heads, 150)
    check_bounds(router, queries, temperature)
    if temperature == 0.01:
        assert given_up(router, queries, temperature).mean() < 0.2


def test_heads_are_left_out(isa, rng):
    """Through the extension itself: most heads are not even looked at."""
    from headroute import _core

    heads, answers = clustered(rng, 2000, 64, 30)
    unit = (heads / np.linalg.norm(heads, axis=1, keepdims=True)).astype(np.float32)
    engine = _core.Engine(unit, answers.astype(np.float32), isa, "screened")
    queries = near(rng, heads, 100)
    out, account = np.empty((100, 30), np.float32), np.empty((100, 2), np.float32)
    assert engine.project(queries, 0.02, out, 2, account, 1e-4) == -1
    dropped, kept = account.T
    weights, expected = exact(queries, unit, answers.astype(np.float32), 0.02)
    done = np.isfinite(dropped)
    assert done.mean() > 0.8
    assert (dropped[done] <= 1e-4).all()
    assert np.median(kept[done]) < 200
    # No set of that many heads leaves out less than the lightest do.
    lightest = np.sort(weights, axis=1)
    for row in np.flatnonzero(done):
        left_out = lightest[row, : 2000 - int(kept[row])].sum()
        assert left_out <= dropped[row] + 1e-6
    radius = np.linalg.norm(answers - answers.mean(axis=0), axis=1).max()
    error = np.linalg.norm(out - expected, axis=1)[done]
    assert (error <= 2 * radius * dropped[done] + 1e-4 * radius).all()


def project_weights(isa, unit, queries, temperature, may_drop):
    """Each row's own account, and what it truly dropped: every answer is a column of its own."""
    from headroute import _core

    answers = np.eye(len(unit), dtype=np.float32)
    engine = _core.Engine(unit, answers, isa, "screened")
    out = np.zeros((len(queries), len(unit)), np.float32)
    account = np.empty((len(queries), 2), np.float32)
    assert engine.project(queries, temperature, out, 1, account, may_drop) == -1
    said, kept = account.T
    done = np.isfinite(said)
    cosines = queries.astype(np.float64) @ unit.T
    logits = cosines / np.linalg.norm(queries, axis=1, keepdims=True) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    dropped = np.where(out == 0, weights, 0).sum(axis=1)
    # Exact cosines are float32, and the weights of heads that stay may be off by as much.
    assert (dropped <= said * np.exp(2e-5 / temperature) + 1e-9)[done].all()
    assert (said <= 1.002 * may_drop)[done].all()
    assert (np.count_nonzero(out, axis=1) <= kept)[done].all()
    return done, kept, dropped / said


@pytest.mark.parametrize("may_drop", [1e-6, 5e-4, 0.1])
@pytest.mark.parametrize("temperature", [0.002, 0.01, 0.03])
def test_no_more_is_dropped_than_is_said(isa, rng, temperature, may_drop):
    for spread in (0.1, 0.7, 1.5):
        heads, _ = clustered(rng, 900, 40, 1, spread)
        unit = (heads / np.linalg.norm(heads, axis=1, keepdims=True)).astype(np.float32)
        project_weights(isa, unit, near(rng, heads, 40, spread), temperature, may_drop)


def test_flat_rows_whose_lists_overflow(isa, rng):
    """More heads than a list holds are within reach of the heaviest, few beside all together."""
    n_heads, temperature, may_drop = 1600, 0.05, 5e-4
    heads, _ = clustered(rng, n_heads, 48, 1)
    unit = (heads / np.linalg.norm(heads, axis=1, keepdims=True)).astype(np.float32)
    queries = near(rng, heads, 200)
    cosines = queries @ unit.T / np.linalg.norm(queries, axis=1, keepdims=True)
    lightest = cosines.max(axis=1) + temperature * np.log(may_drop / 8 / n_heads)
    within_reach = (cosines >= lightest[:, None]).sum(axis=1)
    done, kept, _ = project_weights(isa, unit, queries, temperature, may_drop)
    overflowed = done & (within_reach > n_heads // 2)
    assert overflowed.sum() >= 10
    assert kept[overflowed].max() <= n_heads // 4


def test_queries_far_from_all_heads(isa, rng):
    """The largest of the cosines is far below zero: no exponent may begin there."""
    heads, _ = clustered(rng, 700, 32, 1, 0.1)
    heads += 2 * rng.standard_normal(32)
    unit = (heads / np.linalg.norm(heads, axis=1, keepdims=True)).astype(np.float32)
    queries = (-heads[:30] + 0.1 * rng.standard_normal((30, 32))).astype(np.float32)
    cosines = queries @ unit.T / np.linalg.norm(queries, axis=1, keepdims=True)
    assert cosines.max() < -0.5
    for temperature in (0.002, 0.005):
        done, _, _ = project_weights(isa, unit, queries, temperature, 1e-3)
        assert done.mean() > 0.5


def test_the_dropped_heads_look_light(isa, rng):
    """All heads that stay look heavier than they are, all that go lighter: what the search guesses
    is wrong by twice the margin, and the exact cosines say so."""
    d = 64
    along = np.tile([1.0, 1.0], d // 2)  # what all heads share
    error = np.tile([1.0, -1.0], d // 2)  # what is rounded away
    grid = np.vstack(
        [60 * along + rng.integers(-5, 6, (20, d))]
        + [height * along + rng.integers(-5, 6, (20, d)) for height in range(20, 58, 2)]
    )
    heads = grid + 0.49 * error * np.where(np.arange(len(grid)) < 20, -1, 1)[:, None]
    heads = np.vstack([heads, -heads])  # of mean 0
    heads[0, 0], heads[len(grid), 0] = 127, -127  # a grid of 1
    heads = (heads / np.linalg.norm(60 * along)).astype(np.float32)
    queries = (along + np.linspace(0, 2, 30)[:, None] * error).astype(np.float32)
    worst = 0.0
    for temperature in np.geomspace(0.001, 0.02, 12):
        done, _, share = project_weights(isa, heads, queries, temperature, 1e-3)
        worst = max(worst, share[done].max(initial=0))
    assert worst > 0.02  # a margin of nothing would be seen


@pytest.mark.parametrize("temperature", [0.001, 0.02, 1.0])
def test_edge_sizes(isa, rng, temperature):
    for n_heads, d, e in [
        (1, 1, 1), (2, 3, 5), (3, 4, 1), (15, 5, 17), (16, 16, 16), (17, 63, 2), (63, 64, 64),
        (65, 65, 33), (255, 7, 3), (256, 128, 15), (257, 129, 16), (511, 33, 31), (512, 20, 20),
        (513, 130, 9), (700, 385, 384),
    ]:  # fmt: skip
        heads, answers = clustered(rng, n_heads, d, e)
        router = Router(heads, answers, tolerance=2e-3, precision="screened")
        for n in (1, 4, 15, 29):
            check_bounds(router, near(rng, heads, n), temperature)


def test_same_bits_in_any_batch(isa, rng):
    heads, answers = clustered(rng, 1700, 100, 33)
    router = Router(heads, answers, temperature=0.02, tolerance=1e-3, precision="screened")
    queries = near(rng, heads, 211)
    queries[[5, 90]] = rng.standard_normal((2, 100))  # flatter than the others
    whole, bound = router.project(queries, num_threads=1, return_bound=True)
    for threads in (2, 3, 7):
        again, same = router.project(queries, num_threads=threads, return_bound=True)
        assert (again == whole).all()
        assert (same == bound).all()
    for size in (1, 2, 3, 5, 13, 14, 15, 100):
        parts = [router.project(queries[i : i + size]) for i in range(0, len(queries), size)]
        assert (np.concatenate(parts) == whole).all(), size
    assert (np.stack([router.project(query) for query in queries]) == whole).all()
    order = rng.permutation(len(queries))
    assert (router.project(queries[order]) == whole[order]).all()


@pytest.mark.parametrize("temperature", [0.002, 0.02, 0.3])
def test_adversarial_heads(isa, rng, temperature):
    d, e, k = 70, 50, 600
    base = rng.standard_normal(d)
    random = rng.standard_normal((k, d))
    answers = rng.standard_normal((k, e))
    cases = {
        "all equal": (np.tile(base, (k, 1)), answers),
        "duplicates": (np.repeat(random[: k // 2], 2, axis=0), answers),
        "near ties": (base + 1e-4 * random, answers),
        "ties within the margin": (base + 0.05 * random, answers),
        "one huge answer": (random, answers * np.r_[np.ones(k - 1), 1e9][:, None]),
        "outliers": (random * np.where(rng.random((k, d)) < 0.01, 50, 1), answers),
        "no answers": (random, np.zeros((k, e))),
        "opposite": (np.outer([1, -1] * (k // 2), base) + 0.01 * random, answers),
    }
    for name, (centroids, values) in cases.items():
        router = Router(centroids, values, tolerance=3e-3, precision="screened")
        queries = near(rng, np.asarray(router.centroids), 40)
        queries[0] = 0
        try:
            check_bounds(router, queries, temperature)
        except AssertionError as error:
            raise AssertionError(name) from error


def test_queries_that_nobody_sane_would_send(isa, rng):
    heads, answers = clustered(rng, 600, 70, 20)
    router = Router(heads, answers, temperature=0.02, tolerance=2e-3, precision="screened")
    queries = near(rng, heads, 30)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    for length in (1e-44, 1e-38, 1e-20, 1e19, 3e38):
        check_bounds(router, (unit * np.float64(length)).astype(np.float32), 0.02)
    for bad in (np.nan, np.inf):
        broken = queries.copy()
        broken[[17, 23], 9] = bad
        with pytest.raises(ValueError, match="query 17 has a NaN or infinity"):
            router.project(broken)


def test_flat_rows_are_done_in_float32(isa, rng):
    """At a high temperature every head counts: all rows are given up, and exact."""
    heads, answers = clustered(rng, 601, 40, 20)
    router = Router(heads, answers, temperature=1.0, tolerance=1e-3, precision="screened")
    for temperature in (1.0, 1e6, 1e20, 1e34, 1e38):
        assert given_up(router, near(rng, heads, 50), temperature).all()
    router.project(np.zeros((3, 40)))


def test_plans(isa, rng):
    heads, answers = clustered(rng, 3000, 128, 128)
    router = Router(heads, answers, temperature=0.01, tolerance=2e-3)
    plan = router.plan()
    assert (plan.precision, plan.bound, plan.checks_rows) == ("screened", 2e-3, True)
    assert router.plan(1.0).precision == "int16"
    assert "screened_packed_bytes" in router.backend_info
    flat = Router(heads, answers, temperature=0.2, tolerance=1e-3)
    assert flat.plan().precision == "float32"
    info = router.backend_info
    packed = [v for name, v in info.items() if name.endswith("packed_bytes")]
    assert len(packed) == 3
    # Without int8 instructions the search takes twice the memory.
    assert sum(packed) <= (2.2 if isa == "avx512vnni" else 2.26) * 4 * 3000 * (128 + 128)


def test_the_planner_knows_the_kernel():
    """Constants of csrc that bounds and predictions are made with."""
    csrc = Path(__file__).parents[1] / "csrc"
    text = "".join(path.read_text() for path in csrc.iterdir())

    def constant(name):
        (value,) = re.findall(rf"constexpr [\w:]+ {name} = ([\d.]+)f?;", text)
        return float(value)

    assert constant("kSearched") == _screening._SEARCHED
    assert constant("kMostScreenedColumns") == _arithmetic._MOST_SCREENED_COLUMNS
    assert constant("kChain") == precision._DOT_CHAIN
    assert constant("kLargestInt16") == precision._LARGEST_INT16
    limit = "limit < 64 ? 64 : limit > 4096 ? 4096 : limit"
    assert f"limit = n_heads / 4;\n    return {limit};" in text  # min(max(64, n_heads // 4), 4096)


def test_nothing_but_out_is_written(isa, rng):
    heads, answers = clustered(rng, 600, 33, 9)
    router = Router(heads, answers, temperature=0.01, tolerance=3e-3, precision="screened")
    queries = near(rng, heads, 29)
    memory = np.full(29 * 9 + 64, 7.0, np.float32)
    router.project(queries, out=memory[32:-32].reshape(29, 9))
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()
    assert (memory[32:-32].reshape(29, 9) == router.project(queries)).all()


def test_the_heaviest_head_looks_light(isa, rng):
    """Queries along the rounding error of a head: it wins, and its int8 cosine says it loses."""
    from headroute import _core

    n_heads, d = 600, 128
    unit = rng.standard_normal((n_heads, d))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    centered = unit.astype(np.float64) - unit.mean(axis=0, dtype=np.float64)
    scale = 127 / np.abs(centered).max()
    errors = centered - np.round(centered * scale) / scale
    answers = rng.standard_normal((n_heads, 16)).astype(np.float32)
    temperature = 5e-4  # much lower, and no row could be searched in int8
    queries = []
    for head in range(40):
        along = errors[head] / np.linalg.norm(errors[head])
        others = np.delete(unit, head, axis=0)
        for step in np.linspace(0, 1, 2000):  # until the head leads by a little
            query = along + step * unit[head]
            query /= np.linalg.norm(query)
            if query @ unit[head] > (others @ query).max() + 0.0005:
                break
        queries.append(query)
    queries = np.array(queries, np.float32)
    engine = _core.Engine(unit, answers, isa, "screened")
    out, account = np.empty((40, 16), np.float32), np.empty((40, 2), np.float32)
    assert engine.project(queries, temperature, out, 1, account, 0.01) == -1
    weights, expected = exact(queries, unit, answers, temperature)
    assert (weights.argmax(axis=1) == np.arange(40)).all()
    done = np.isfinite(account[:, 0])
    assert done.mean() > 0.8
    unit_error = np.linalg.norm(out - expected, axis=1) / np.linalg.norm(answers, axis=1).max()
    assert unit_error[done].max() < 0.05  # what was dropped, and float32 cosines over τ


@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e19, 1e36])
def test_a_plan_depends_on_directions_alone(rng, scale):
    heads, answers = clustered(rng, 600, 16, 16)
    heads = (heads * 0.1).astype(np.float32).astype(np.float64)
    expected = Router(heads, answers, temperature=0.02, tolerance=0.05).plan()
    # A power of 2, so that directions stay the same to the last bit.
    power = 2.0 ** np.round(np.log2(scale))
    plan = Router(heads * power, answers, temperature=0.02, tolerance=0.05).plan()
    assert plan == expected


@pytest.mark.parametrize("precision", ["float32", "int16", "screened"])
@pytest.mark.parametrize("size", [1e-44, 1e-42, 1e-40])
def test_bounds_of_answers_near_nothing(isa, rng, precision, size):
    """Products that float32 rounds to its smallest numbers, or to zero."""
    answers = rng.standard_normal((600, 16)) * size
    router = Router(rng.standard_normal((600, 16)), answers, tolerance=0.01, precision=precision)
    for temperature in (0.1, 1.0, 40.0):
        check_bounds(router, near(rng, np.asarray(router.centroids), 50), temperature)


def test_answers_near_the_end_of_float32(isa, rng):
    """Their sum, weighted by numbers of which the largest is 1, would be infinite."""
    half = np.eye(64)
    router = Router(
        np.vstack([half, half]), np.full((128, 3), 3e38), temperature=0.02, precision="screened"
    )
    projected, bound = router.project(half[:5], return_bound=True)
    np.testing.assert_allclose(projected, 3e38, rtol=1e-5)
    assert (bound < 1).all()
