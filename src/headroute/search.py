"""Route a text through a database's heads; rank its answers by cosine to the projection."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headroute._backends.reference import unit
from headroute.database import Database
from headroute.loading import load_encoder, router_of, stored_heads
from headroute.router import Router

Float32 = NDArray[np.float32]

TOP_HEADS = 5  # shown beside search results


@dataclass(frozen=True)
class HeadWeight:
    """A head's share of the routing, in [0, 1]."""

    name: str
    weight: float


@dataclass(frozen=True)
class SearchResult:
    """One answer; score is the cosine of the projected query and the answer's embedding."""

    rank: int
    answer_id: int
    cluster: str
    score: float
    variant: str
    text: str


@dataclass(frozen=True)
class Scope:
    """Whether a question is like those that the heads were trained on."""

    score: float  # higher for more so
    kind: str  # one of headroute.prediction.SCORES
    level: float  # so much of the known questions is refused
    threshold: float | None  # the score below which that is; None: too few are known to refuse any
    answer_known: bool


@dataclass(frozen=True)
class SearchReport:
    query: str
    model: str
    projection_id: int
    temperature: float
    scope: Scope | None  # None for heads that were stored without calibration
    results: list[SearchResult]  # best first
    heads: list[
        HeadWeight
    ]  # the TOP_HEADS heaviest, best first; weights of the softmax over all n_heads
    n_heads: int


@dataclass(frozen=True)
class Route:
    temperature: float
    heads: list[HeadWeight]  # all of them, heaviest first


@dataclass(frozen=True)
class RouteReport:
    query: str
    model: str
    projection_id: int
    routes: list[Route]  # one a temperature


def search(
    path: Path,
    query: str,
    *,
    top_k: int = 5,
    temperature: float | None = None,
    model: str | None = None,
    name: str | None = None,
    abstain: float = 0.05,
) -> SearchReport:
    """The top_k answers for a text, by the newest heads (of a model and of a name, if given).

    No answer is known to a text that is less like the training questions than all but a part of
    `abstain` of themselves; the closest answers are given all the same.

    Raises DatabaseError, EncoderError, ValueError for an empty query, top_k < 1 or a level outside
    (0, 1), and, without heads, NoHeadsError.
    """
    if top_k < 1:
        raise ValueError(f"top-k must be at least 1, got {top_k}")
    with Database.open(path, read_only=True) as db:
        projection = stored_heads(db, model, name)
        router = router_of(projection)
        embedding = embed_query(projection.model, query)
        temperature = router.temperature if temperature is None else temperature
        projected = router.project(embedding, temperature=temperature)
        ids, vectors = db.embeddings(projection.model, "answer")
        directions = unit(np.vstack([projected, vectors]).astype(np.float64))
        scores = dict(zip(ids.tolist(), (directions[1:] @ directions[0]).tolist(), strict=True))
        names = {cluster.cluster_id: cluster.name for cluster in db.clusters()}
        # By id, so that an answer that is in two clusters is found once.
        found = {
            a.answer_id: a
            for a in reversed(db.searched_answers(projection.model))
            if a.answer_id in scores
        }
    best = sorted(found, key=lambda answer_id: (-scores[answer_id], answer_id))[:top_k]
    return SearchReport(
        query=query,
        model=projection.model,
        projection_id=projection.projection_id,
        temperature=temperature,
        scope=scope_of(router, embedding, abstain),
        results=[
            SearchResult(
                rank=rank,
                answer_id=answer_id,
                cluster=names[found[answer_id].cluster_id],
                score=scores[answer_id],
                variant=found[answer_id].variant,
                text=found[answer_id].text,
            )
            for rank, answer_id in enumerate(best, 1)
        ],
        heads=route_embedding(router, embedding, temperature).heads[:TOP_HEADS],
        n_heads=router.n_heads,
    )


def scope_of(router: Router, embedding: Float32, level: float) -> Scope | None:
    """Of one query (d,); None when the router has no calibration."""
    if router.calibration is None:
        return None
    prediction = router.predict(embedding, abstain=level)
    threshold = router.calibration.threshold(level)
    return Scope(
        score=float(prediction.score),
        kind=router.calibration.score,
        level=level,
        threshold=threshold if math.isfinite(threshold) else None,
        answer_known=not prediction.abstained,
    )


def route(
    path: Path,
    query: str,
    *,
    temperatures: Sequence[float] = (),
    model: str | None = None,
    name: str | None = None,
) -> RouteReport:
    """The weights of all heads for a text at each temperature, by default that of the training.

    Raises what `search` raises.
    """
    with Database.open(path, read_only=True) as db:
        projection = stored_heads(db, model, name)
    router = router_of(projection)
    embedding = embed_query(projection.model, query)
    return RouteReport(
        query=query,
        model=projection.model,
        projection_id=projection.projection_id,
        routes=[
            route_embedding(router, embedding, t) for t in temperatures or [router.temperature]
        ],
    )


def route_embedding(router: Router, embedding: Float32, temperature: float) -> Route:
    """The weights of all groups of heads for one query (d,), best first."""
    weights = router.route_groups(embedding, temperature=temperature)
    order = np.argsort(-weights, kind="stable")
    heads = [HeadWeight(router.names[i], float(weights[i])) for i in order]
    return Route(temperature, heads)


def embed_query(model: str, query: str) -> Float32:
    """One text → (d,). ValueError when there is nothing in it."""
    if not query.strip():
        raise ValueError("the query is empty")
    embedding: Float32 = load_encoder(model).encode_queries([query])[0]
    return embedding
