"""Pictures of a router: arrays in, a matplotlib Figure out. No files, no global state.

Colours are Okabe and Ito's, which colour-blind people tell apart, and viridis.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute._backends.reference import unit
from headroute._optional import library
from headroute.training_record import Curve
from headroute.visualize import shorten

Floats = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LIGHT = COLOURS[3:6]  # under black letters
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LABEL_WIDTH = 24
MOST_LABELS = 40
MOST_ROWS = 400


def temperature_figure(
    chosen: float, likelihood: Curve, recall: Sequence[tuple[float, float]], recall_of: str
) -> Any:
    """Recall@1 and the mean log-likelihood over τ, the chosen τ marked.

    Args:
        chosen: the router's τ.
        likelihood: (τ, nats) of questions that the heads do not know; may be empty.
        recall: (τ, share of questions answered right).
        recall_of: what questions these are.
    """
    figure, axes = _figure(7.0, 4.2)
    taus, shares = zip(*sorted(recall), strict=True)
    (line,) = axes.plot(
        taus, 100 * np.array(shares), color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.8
    )
    lines, labels = [line], [f"Recall@1 of {recall_of}"]
    axes.set_xscale("log")
    axes.set_xlabel("temperature τ")
    axes.set_ylabel("Recall@1 (%)", color=COLOURS[0])
    axes.grid(alpha=0.25)
    if likelihood:
        right = axes.twinx()
        taus, nats = zip(*sorted(likelihood), strict=True)
        (line,) = right.plot(taus, nats, color=COLOURS[1], linestyle="--", linewidth=1.8)
        lines.append(line)
        labels.append("log-likelihood of questions unknown to the heads")
        right.set_ylabel("nats a question", color=COLOURS[1])
        best = max(nats)
        right.set_ylim(max(min(nats), best - 4), best + 0.15 * min(4, best - min(nats)) + 0.01)
        right.spines["top"].set_visible(False)
    lines.append(axes.axvline(chosen, color=COLOURS[6], linewidth=1, linestyle=":"))
    labels.append(f"τ = {chosen:g}, the router's")
    figure.legend(lines, labels, loc="outside upper center", ncols=1, frameon=False, fontsize=9)
    return figure


def weights_figure(weights: Floats, groups: Int64, names: Sequence[str], temperature: float) -> Any:
    """A heat map of routing weights (n, G): queries, ordered by their right groups (n,), by groups.

    Of more than 400 queries an even selection. Right means on the diagonal.
    """
    order = np.argsort(groups, kind="stable")
    if len(order) > MOST_ROWS:
        order = order[np.linspace(0, len(order) - 1, MOST_ROWS).astype(int)]
    present = np.unique(groups[order])
    labelled = len(names) <= MOST_LABELS
    side = 3.2 + 0.16 * min(len(names), MOST_LABELS)
    figure, axes = _figure(side + 1.2, side)
    image = axes.imshow(
        weights[order], aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, label=f"weight at τ = {temperature:g}", fraction=0.04)
    starts = np.searchsorted(groups[order], present)
    ends = np.append(starts[1:], len(order))
    axes.set_ylabel("questions, by the group they belong to")
    axes.set_xlabel("groups of heads")
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="white", linewidth=0.3)
    if labelled:
        short = [shorten(name, LABEL_WIDTH) for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90, fontsize=7)
        axes.set_yticks((starts + ends - 1) / 2, [short[g] for g in present], fontsize=7)
    return figure


def map_figure(
    questions: Floats, groups: Int64, centroids: Floats, head_groups: Int64, names: Sequence[str]
) -> Any:
    """Questions (n, d) of groups (n,) and heads (K, d) of groups (K,) in the plane.

    By UMAP if it is installed, else by the two largest principal components of the directions. Up
    to 40 groups are numbered and named.
    """
    directions = unit(np.concatenate([questions, centroids]).astype(np.float64))
    places, how = _in_the_plane(directions)
    dots, heads = places[: len(questions)], places[len(questions) :]
    named = len(names) <= MOST_LABELS
    figure, axes = _figure(9.5 if named else 7.5, 6.2)
    for group, name in enumerate(names):
        colour = COLOURS[group % len(COLOURS)]
        marker = MARKERS[group // len(COLOURS) % len(MARKERS)]
        mine = dots[groups == group]
        axes.scatter(*mine.T, s=16, color=colour, marker=marker, alpha=0.5, linewidths=0)
        axes.scatter(
            *heads[head_groups == group].T,
            s=150 if named else 50,
            color=colour,
            marker=marker,
            edgecolors="black",
            linewidths=0.8,
            zorder=3,
            label=f"{group + 1}  {shorten(name, LABEL_WIDTH)}",
        )
        if named:
            for place in heads[head_groups == group]:
                axes.annotate(
                    str(group + 1),
                    place,
                    ha="center",
                    va="center_baseline",
                    fontsize=6.5,
                    color="black" if colour in _LIGHT else "white",
                    zorder=4,
                )
    if named:
        figure.legend(loc="outside right center", frameon=False, fontsize=7, markerscale=0.6)
    axes.set_title(
        f"{len(questions):,} questions (small), {len(heads):,} heads (outlined): {how}", fontsize=10
    )
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def _in_the_plane(directions: Floats) -> tuple[Floats, str]:
    if importlib.util.find_spec("umap"):
        umap = importlib.import_module("umap")
        return umap.UMAP(metric="cosine", random_state=0).fit_transform(directions), "UMAP"
    centred = directions - directions.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(centred), 2))
    places[:, : min(2, len(axes))] = centred @ axes[:2].T
    share = (values[:2] ** 2).sum() / max((values**2).sum(), np.finfo(float).tiny)
    return places, f"PCA, {share:.0%} of the variance"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = library("matplotlib.figure", "a picture", "plot").Figure(
        (width, height), layout="constrained", dpi=150
    )
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
