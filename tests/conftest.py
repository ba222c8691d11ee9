"""Fixtures: a test that asks for `backend` runs on every backend and every instruction set of the
machine that its float32 has a kernel for, one that asks for `isa` on every instruction set of the
native backend.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from headroute import Router, available_backends, build_info

# `backend` is the same for every example of a test, so hypothesis has nothing to warn about. The
# first call of a backend may compile for seconds, so there is no deadline.
settings.register_profile(
    "headroute", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("headroute")


def _variants() -> Iterator[Any]:
    facts = build_info()
    for name in available_backends():
        for isa in facts[name].get("isas_available", [None]):
            if isa == "amx":  # float32 is avx512vnni's own
                continue
            yield pytest.param((name, isa), id=f"{name}-{isa}" if isa else name)


@pytest.fixture(params=list(_variants()))
def backend(request, monkeypatch):
    """The name of a backend, with HEADROUTE_ISA set for the one it is to use."""
    name, isa = request.param
    if isa is not None:
        monkeypatch.setenv("HEADROUTE_ISA", isa)
    return name


_NATIVE = build_info()["native"] or {"isas_available": []}
_ISAS = _NATIVE["isas_available"]


@pytest.fixture(params=_ISAS, ids=[f"native-{isa}" for isa in _ISAS])
def isa(request, monkeypatch):
    """An instruction set of the native backend, which HEADROUTE_ISA is set to.

    Tests that ask for it are about what that backend alone has or promises, and are skipped
    without it.
    """
    monkeypatch.setenv("HEADROUTE_ISA", request.param)
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20240511)


@pytest.fixture
def router(backend, rng):
    """10 heads, d = 6, e = 4."""
    return Router(rng.standard_normal((10, 6)), rng.standard_normal((10, 4)), backend=backend)
