"""The arithmetic of benchmarks/scale_model.py, on numbers that can be checked by hand."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: tests/conftest.py is first

from scale_model import (
    Parts,
    Rate,
    Storage,
    Work,
    break_even,
    line,
    rate,
    seconds,
    seconds_on_nodes,
)

NETWORK = Storage.duplex("network", 2.0)
DISK = Storage("disk", read=2.0, write=1.0, read_beside=1.0, write_beside=0.5)


def test_a_duplex_storage_reads_and_writes_independently():
    assert NETWORK.ns(1000, 500) == pytest.approx((500, 250))


def test_a_shared_disk_goes_on_alone_when_one_direction_is_done():
    """1000 B in and out: reading takes 1000 ns beside writing, in which 500 B are written; the
    other 500 B take 500 ns alone."""
    assert DISK.ns(1000, 1000) == pytest.approx((1000, 1500))
    assert DISK.ns(1000, 0) == pytest.approx((500, 0))
    assert DISK.ns(0, 1000) == pytest.approx((0, 1000))


@pytest.mark.parametrize(
    ("compute", "limit", "ns"), [(400, "read", 500), (600, "compute", 600), (500, "read", 500)]
)
def test_the_slowest_of_three_sets_the_rate(compute, limit, ns):
    found = rate(Work(1000, 500, compute), NETWORK)
    assert (found.limit, found.ns) == (limit, pytest.approx(ns))


def test_seconds_of_one_node():
    assert seconds(1e9, Rate(500, 600, 250), start=2.0) == pytest.approx(602.0)


PARTS = Parts(seconds=6.0, least_each=5, least_seconds=0.6, overhead_seconds=1.0)


def test_nodes_share_the_parts_and_wait_for_one():
    """10⁹ queries of 600 ns on 10 nodes in 100 parts of 10⁷, 6 s and 1 s of overhead each."""
    assert PARTS.queries(1e9, 10, 600) == pytest.approx(1e7)
    found = seconds_on_nodes(1e9, 10, Rate(500, 600, 250), 2.0, PARTS)
    assert found == pytest.approx(2.0 + 10 * 7.0 + 7.0)


def test_few_queries_are_cut_so_that_every_node_has_some():
    assert PARTS.queries(1e8, 10, 600) == pytest.approx(2e6)  # five parts a node, 1.2 s each
    assert PARTS.queries(2e7, 10, 600) == pytest.approx(1e6)  # no shorter than 0.6 s
    assert PARTS.queries(1e6, 10, 600) == pytest.approx(1e5)  # but none idle
    assert PARTS.queries(1, 10, 600) == 1.0
    alone = seconds_on_nodes(1e6, 10, Rate(500, 600, 250), 2.0, PARTS)
    assert alone == pytest.approx(2.0 + 1.06)  # no tail


def test_break_even_is_where_the_line_crosses():
    a, b = line((64, 1024), (740.0, 10_340.0))
    assert (a, b) == pytest.approx((100.0, 10.0))
    # 2000 B at 2 GB/s are 1000 ns = 100 + 10 · 90
    assert break_even(2000, 0, NETWORK, a, b) == 90
    assert break_even(2, 0, NETWORK, a, b) == 1
