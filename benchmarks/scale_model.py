"""The cost model of docs/scale.md: how long so many queries take, and what they wait for.

    seconds = start + N / nodes · max(read, compute, write) + tail

of a node that reads, computes and writes at the same time, each as fast as it can. Pure functions
of constants that are measured (scale_constants.py) or assumed (scale.py). ns a query, GB/s and
seconds; a GB is 10⁹ bytes, so that bytes / (GB/s) are ns.
"""

import math
from typing import NamedTuple


class Storage(NamedTuple):
    """What one node reads from and writes to, GB/s."""

    name: str
    read: float
    write: float
    read_beside: float  # while writing
    write_beside: float  # while reading

    @classmethod
    def duplex(cls, name: str, rate: float) -> "Storage":
        """One whose directions do not disturb each other, as a network's."""
        return cls(name, rate, rate, rate, rate)

    def ns(self, read_bytes: float, write_bytes: float) -> tuple[float, float]:
        """When both directions, begun together, are done: what is left of the longer one when the
        shorter one ends goes on alone."""
        both = min(read_bytes / self.read_beside, write_bytes / self.write_beside)
        reading = both + (read_bytes - both * self.read_beside) / self.read
        writing = both + (write_bytes - both * self.write_beside) / self.write
        return reading, writing


class Work(NamedTuple):
    """What one query asks of a node."""

    read_bytes: float
    write_bytes: float
    compute_ns: float  # of all cores together


class Rate(NamedTuple):
    """ns a query of one node."""

    read: float
    compute: float
    write: float

    @property
    def ns(self) -> float:
        return max(self)

    @property
    def limit(self) -> str:
        """What the others wait for."""
        return self._fields[self.index(self.ns)]


class Parts(NamedTuple):
    """How a job is cut for several nodes."""

    seconds: float  # of a part, if there are enough queries
    least_each: int  # else so many parts for a node, so that none waits long for the last,
    least_seconds: float  # unless they would be shorter than that
    overhead_seconds: float  # of a part, beside its queries

    def queries(self, n: float, nodes: int, ns: float) -> float:
        """Of one part of n queries of so many ns."""
        longest, shortest = (1e9 * limit / ns for limit in (self.seconds, self.least_seconds))
        size = max(shortest, min(longest, n / (nodes * self.least_each)))
        return max(1.0, min(size, n / nodes))


def rate(work: Work, storage: Storage) -> Rate:
    reading, writing = storage.ns(work.read_bytes, work.write_bytes)
    return Rate(reading, work.compute_ns, writing)


class Assumed(NamedTuple):
    """What nobody measured."""

    rates: tuple[float, ...]  # GB/s of a node from and to an object store, each way
    usual_rate: float
    nodes: int
    parts: Parts
    overheads: tuple[float, float]  # the range of a part's overhead, s
    prices: tuple[float, float]  # of a node-hour, dollars
    job_queries: float  # of the simulated job
    job_heads: int
    part_seconds: tuple[float, ...]  # of parts to try

    @property
    def stores(self) -> list[Storage]:
        return [Storage.duplex(f"{each:g} GB/s", each) for each in self.rates]

    @property
    def usual_store(self) -> Storage:
        return Storage.duplex(f"{self.usual_rate:g} GB/s", self.usual_rate)


def seconds(n: float, each: Rate, start: float) -> float:
    """Of n queries on one node, in one stream."""
    return start + n * each.ns * 1e-9


def seconds_on_nodes(n: float, nodes: int, each: Rate, start: float, parts: Parts) -> float:
    """Of n queries on equal nodes that never fail. The tail is one part, if a node has several: the
    last one begins when the other nodes are nearly done."""
    size = parts.queries(n, nodes, each.ns)
    part = size * each.ns * 1e-9 + parts.overhead_seconds
    rounds = n / size / nodes
    return start + (rounds + (rounds > 1)) * part


def line(heads: tuple[int, int], ns: tuple[float, float]) -> tuple[float, float]:
    """(a, b) of ns = a + b K through two points."""
    slope = (ns[1] - ns[0]) / (heads[1] - heads[0])
    return ns[0] - slope * heads[0], slope


def break_even(read_bytes: float, write_bytes: float, storage: Storage, a: float, b: float) -> int:
    """The least K for which computing, a + b K ns, takes longer than the storage; at least 1."""
    waiting = max(storage.ns(read_bytes, write_bytes))
    return max(1, math.ceil((waiting - a) / b))
