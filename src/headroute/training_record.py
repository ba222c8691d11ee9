"""How heads were trained: what a router carries so that it can be shown later."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class TrainingRecord:
    """What `train_heads` did, in numbers that JSON holds."""

    method: str  # "centroid" or "learned"
    heads_per_group: int | Literal["auto"]
    questions: int
    lone_questions: int  # the only one of their group: no leave-one-out says anything of them
    shared_questions: int  # the same vector in more than one group
    # Where τ is from: "given", "leave-one-out", "cross-validation", or "default" when the questions
    # say nothing of it.
    temperature_source: str
    # (τ, mean log-likelihood in nats of a question's group when the question is left out of its
    # head), τ descending, also when τ was given; () when no question can be left out.
    temperature_curve: Curve
    # (freedom of the map from the mean centroids, mean log-likelihood in nats of held-out questions
    # at the best τ), and the freedom chosen: 0 for the mean centroids; (), None unless "learned".
    freedom_curve: Curve
    freedom: float | None
    # The same of learned answers; (), None unless they were asked for.
    answer_freedom_curve: Curve = ()
    answer_freedom: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, also after JSON made lists of tuples."""
        curves = {
            name: tuple((float(x), float(y)) for x, y in values[name])
            for name in ("temperature_curve", "freedom_curve", "answer_freedom_curve")
        }
        return cls(**{**values, **curves})
