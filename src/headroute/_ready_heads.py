"""What a router is: its heads and the facts about them, checked once and made ready; and how it is
copied, pickled, saved and loaded.

The calls on it are in `headroute.router`.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headroute import _backends, _validate, router_file
from headroute._arithmetic import Arithmetic, decline
from headroute._validate import Float32
from headroute.files import MappedFile
from headroute.precision import PRECISIONS
from headroute.prediction import Calibration, Groups
from headroute.training_record import TrainingRecord


class ReadyHeads:
    """Heads that never change; arguments and errors are those of `headroute.Router`."""

    __slots__ = (
        "_answers",
        "_arithmetic",
        "_backend",
        "_calibration",
        "_centroids",
        "_forced",
        "_group_of_head",
        "_groups",
        "_names",
        "_project_one",
        "_requested",
        "_route_one",
        "_temperature",
        "_tolerance",
        "_training",
    )

    def __init__(
        self,
        centroids: npt.ArrayLike,
        answers: npt.ArrayLike,
        *,
        temperature: float = 0.1,
        names: Sequence[str] | None = None,
        groups: npt.ArrayLike | None = None,
        backend: str = "auto",
        tolerance: float = 0.0,
        precision: str | None = None,
        calibration: Calibration | None = None,
        training: TrainingRecord | None = None,
        _source: MappedFile | None = None,  # of `load`: both arrays are views of it, used in place
    ) -> None:
        kept = _validate.heads(centroids, answers, copy=_source is None)
        self._centroids, self._answers = map(_read_only, kept)
        self._temperature = _validate.temperature(temperature)
        self._group_of_head = _validate.groups_of_heads(groups, self.n_heads)
        self._group_of_head.setflags(write=False)
        self._groups = Groups(self._group_of_head)
        self._names = _validate.group_names(names, int(self._group_of_head.max()) + 1)
        if calibration is not None and calibration.typical is not None:
            typical = calibration.typical
            if typical.shape != (self.n_heads,):
                raise ValueError(
                    f"{self.n_heads} heads but typical cosines of shape {typical.shape}"
                )
        self._calibration = calibration
        self._training = training
        chosen = _backends.find(backend)
        self._requested = backend
        self._backend = chosen.NAME
        self._tolerance = _validate.tolerance(tolerance)
        self._forced = _validate.precision(precision, PRECISIONS)
        self._arithmetic = Arithmetic(
            chosen, self._centroids, self._answers, self._tolerance, self._forced, _source
        )
        # A backend may have a short way for a single query that needs nothing done to it.
        self._route_one: _backends.ShortWay = getattr(
            self._arithmetic.float32, "route_one", decline
        )
        self._project_one = self._arithmetic.project_one(self._arithmetic.plan(self._temperature))

    @property
    def temperature(self) -> float:
        """The default temperature τ."""
        return self._temperature

    @property
    def tolerance(self) -> float:
        """The largest ‖projected - exact‖ / max_k ‖a_k‖ that `project` may be off by."""
        return self._tolerance

    @property
    def centroids(self) -> Float32:
        """(K, d) float32, read-only, as given: not normalised."""
        return self._centroids

    @property
    def answers(self) -> Float32:
        """(K, e) float32, read-only."""
        return self._answers

    @property
    def names(self) -> tuple[str, ...]:
        """One name a group: a head, unless several were given to one group."""
        return self._names

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """(K,) int64, read-only: the group of each head."""
        return self._group_of_head.view()

    @property
    def n_groups(self) -> int:
        """G."""
        return len(self._names)

    @property
    def calibration(self) -> Calibration | None:
        """What `predict` abstains by."""
        return self._calibration

    @property
    def training(self) -> TrainingRecord | None:
        """How the heads were trained, if `train_heads` made them."""
        return self._training

    @property
    def n_heads(self) -> int:
        """K."""
        return len(self._centroids)

    @property
    def query_dim(self) -> int:
        """d."""
        return int(self._centroids.shape[1])

    @property
    def answer_dim(self) -> int:
        """e."""
        return int(self._answers.shape[1])

    @property
    def backend(self) -> str:
        """The name of the backend in use."""
        return self._backend

    @property
    def backend_info(self) -> dict[str, str | int]:
        """What the backend chose for these heads, such as {"isa": "avx512"}."""
        return self._arithmetic.info()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the router to one safetensors file: tensors `centroids` and `answers`, the rest in
        its header.

        The file appears whole or not at all: it is written beside its place, flushed to disk and
        moved there.
        """
        router_file.write(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        return router_file.encode(
            router_file.StoredRouter(
                self._centroids,
                self._answers,
                self._temperature,
                self._names,
                self._group_of_head,
                self._calibration,
                self._training,
            )
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        tolerance: float = 0.0,
        precision: str | None = None,
        mmap: bool = False,
    ) -> Self:
        """Read a router that `save` wrote; tolerance and precision are not in the file.

        Args:
            mmap: map the file instead of reading it, so that processes which do the same share one
                copy of its heads in memory. The native backend keeps them packed in a file beside
                it, `<path>.<isa>.packed`, also mapped: the first to load a router writes it, and
                whoever finds one of another router, kernel or version, or a damaged one, replaces
                it. In a folder that cannot be written to, a RuntimeWarning says that this process
                packs heads in memory of its own; the other backends always do, and so do the
                arithmetics that a tolerance or a precision asks for. Both files may be replaced and
                deleted at any time, as `save` does; they must not be changed in place. Results are
                the same bits.

        Raises OSError when the file cannot be opened, and ValueError, with the path, when it is not
        a router's file.
        """
        _backends.find(backend)  # a backend that cannot run here is not the file's fault
        try:
            source = MappedFile.open(path) if mmap else None
            stored = router_file.read(path) if source is None else router_file.views(source)
            return cls(
                stored.centroids,
                stored.answers,
                temperature=stored.temperature,
                names=stored.names,
                groups=stored.groups,
                backend=backend,
                tolerance=tolerance,
                precision=precision,
                calibration=stored.calibration,
                training=stored.training,
                _source=source,
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)} is not a router's file: {error}") from error

    def _with_calibration(self, calibration: Calibration) -> Self:
        """The same packed heads, with another calibration."""
        result = object.__new__(type(self))
        for name in ReadyHeads.__slots__:
            setattr(result, name, getattr(self, name))
        result._calibration = calibration
        return result

    def __repr__(self) -> str:
        return (
            f"Router(n_heads={self.n_heads}, query_dim={self.query_dim}, "
            f"answer_dim={self.answer_dim}, temperature={self._temperature!r}, "
            f"backend={self._backend!r})"
        )

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        # The backend as it was asked for: "auto" may be another one where this is unpickled.
        options: dict[str, Any] = {
            "temperature": self._temperature,
            "names": self._names,
            "groups": self._group_of_head,
            "backend": self._requested,
            "tolerance": self._tolerance,
            "precision": self._forced,
            "calibration": self._calibration,
            "training": self._training,
        }
        return functools.partial(type(self), **options), (self._centroids, self._answers)


def _read_only(array: Float32) -> Float32:
    # A view: unlike the array itself, it cannot be made writeable again.
    array.setflags(write=False)
    return array.view()
