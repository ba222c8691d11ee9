"""The simulated schedule of benchmarks/schedule.py: what must hold of it whatever the chances."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: tests/conftest.py is first

from schedule import Scenario, simulate, slowdowns

CALM = Scenario(parts=40, part_seconds=3.0, nodes=10)
ROUGH = Scenario(
    parts=300,
    part_seconds=20.0,
    nodes=10,
    overhead_seconds=0.5,
    start_seconds=2.0,
    spread=0.1,
    straggler_share=0.2,
    mtbf_seconds=400.0,
    repair_seconds=50.0,
)

scenarios = st.builds(
    Scenario,
    parts=st.integers(1, 60),
    part_seconds=st.floats(0.1, 100.0),
    nodes=st.integers(1, 12),
    overhead_seconds=st.floats(0.0, 5.0),
    start_seconds=st.floats(0.0, 30.0),
    spread=st.floats(0.0, 0.3),
    straggler_share=st.floats(0.0, 0.5),
    mtbf_seconds=st.one_of(st.just(math.inf), st.floats(5000.0, 50000.0)),
    repair_seconds=st.floats(0.0, 600.0),
    speculate=st.booleans(),
)
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize(("parts", "rounds"), [(10, 1), (40, 4), (41, 5), (3, 1)])
def test_equal_nodes_that_never_fail_take_whole_rounds(parts, rounds, speculate):
    scenario = replace(CALM, parts=parts, start_seconds=2.0, speculate=speculate)
    assert simulate(scenario, 0).makespan == pytest.approx(2.0 + rounds * 3.0)


def test_full_rounds_are_the_ideal():
    outcome = simulate(CALM, 0)
    assert outcome.makespan == pytest.approx(CALM.ideal) == pytest.approx(outcome.bound)
    assert (outcome.attempts, outcome.failures, outcome.wasted_seconds) == (40, 0, 0.0)


@settings(max_examples=200)
@given(scenarios, seeds)
def test_every_part_is_accepted_once_and_no_schedule_beats_the_bound(scenario, seed):
    outcome = simulate(scenario, seed)
    np.testing.assert_array_equal(outcome.accepted, 1)
    assert outcome.makespan >= outcome.bound * (1 - 1e-12)  # sums of the same numbers, other order


@settings(max_examples=50)
@given(scenarios, seeds)
def test_the_same_seed_gives_the_same_run(scenario, seed):
    first, second = simulate(scenario, seed), simulate(scenario, seed)
    np.testing.assert_array_equal(first.accepted, second.accepted)
    assert first._replace(accepted=None) == second._replace(accepted=None)


@settings(max_examples=100)
@given(scenarios, seeds)
def test_every_attempt_that_was_not_accepted_is_a_loss_or_a_copy(scenario, seed):
    outcome = simulate(scenario, seed)
    extra = outcome.attempts - scenario.parts
    assert extra >= 0
    if not scenario.speculate:
        assert extra <= outcome.failures
        assert (outcome.wasted_seconds > 0) <= (outcome.failures > 0)
    if scenario.speculate and scenario.mtbf_seconds == math.inf:
        assert extra <= scenario.parts  # one copy of a part


def test_nodes_fail_as_often_as_they_should():
    """By exponential up times, failures are Poisson: 4 of its standard deviations."""
    outcomes = [simulate(ROUGH, seed) for seed in range(50)]
    up_over_all = 400.0 / (400.0 + 52.0)
    expected = sum(10 * o.makespan * up_over_all / 400.0 for o in outcomes)
    assert abs(sum(o.failures for o in outcomes) - expected) < 4 * math.sqrt(expected)


def test_one_slow_node_holds_the_last_part_unless_it_is_copied():
    """2 nodes, one 10 times slower, 3 parts: alone it ends at 10, its copy at 3."""
    scenario = Scenario(parts=3, part_seconds=1.0, nodes=2, straggler_share=0.5)
    seed = next(s for s in range(1000) if slowdowns(scenario, np.random.default_rng(s)).max() > 10)
    slowest = slowdowns(scenario, np.random.default_rng(seed)).max()
    assert simulate(scenario, seed).makespan == pytest.approx(slowest)
    assert simulate(replace(scenario, speculate=True), seed).makespan == pytest.approx(3.0)


def test_a_part_that_is_lost_costs_its_time_again():
    """One node: every second it is up or down goes to the parts, to losses, or to repairs."""
    scenario = replace(ROUGH, nodes=1, parts=50, straggler_share=0.0, spread=0.0)
    for seed in range(20):
        outcome = simulate(scenario, seed)
        repairs = outcome.failures * (50.0 + 2.0)
        assert outcome.makespan == pytest.approx(2.0 + 50 * 20.5 + outcome.wasted_seconds + repairs)


def test_stragglers_are_as_many_as_asked_and_within_their_range():
    scenario = replace(CALM, nodes=100, straggler_share=0.1)
    slow = slowdowns(scenario, np.random.default_rng(1))
    assert np.count_nonzero(slow > 1) == 10
    assert slow[slow > 1].min() >= 2
    assert slow.max() <= 20
