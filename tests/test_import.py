"""`import headroute` costs little and brings nothing but NumPy."""

import json
import statistics
import subprocess
import sys

SCRIPT = """
import json, sys, time
import numpy
start = time.perf_counter()
import headroute
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""


def measure():
    command = [sys.executable, "-c", SCRIPT]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_import():
    runs = [measure() for _ in range(5)]
    assert statistics.median(run["seconds"] for run in runs) <= 0.150
    heavy = {
        "torch",
        "numba",
        "sqlite3",
        "sentence_transformers",
        "safetensors",
        "tqdm",
        "scipy",
        "sklearn",
    }
    assert heavy.isdisjoint(runs[0]["modules"])


def test_every_public_name_is_there():
    import headroute

    for name in headroute.__all__:
        assert getattr(headroute, name) is not None
