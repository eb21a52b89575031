"""Plots of a data set's clusters, as SVG or PNG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from adaptive_ray.report.curves import STYLE, colours, pixels, png, svg

#: Points on the map, and how many of them are shown as thumbnails.
_DOTS, _THUMBNAILS = 1_500, 250
#: Number of clusters with examples, and of examples at the centre and at the edge.
SHOWN, _EXAMPLES = 24, 8


def cluster_map(images: Any, features: NDArray[Any], labels: NDArray[np.int64], seed: int = 0) -> bytes:
    """Plots thumbnails of a sample of images [n, C, H, W] in a t-SNE embedding, framed by cluster. PNG."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    generator = np.random.default_rng(seed)
    drawn = np.sort(generator.permutation(len(labels))[:_DOTS])
    points = features[drawn].astype(np.float32)
    if len(drawn) < 8 or np.ptp(points, axis=0).max() == 0:  # too few or identical points
        places = generator.normal(size=(len(drawn), 2))
    else:
        points = PCA(min(50, *points.shape), random_state=seed).fit_transform(points)
        near = min(30.0, (len(drawn) - 1) / 3)
        places = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(points)
    colour = colours(int(labels.max()) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 8), dpi=110)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.margins(0.03)
        dots = [colour[label] for label in labels[drawn]]
        axes.scatter(places[:, 0], places[:, 1], s=9, c=dots, alpha=0.7, linewidths=0)
        for row in _without_overlap(places, generator)[:_THUMBNAILS]:
            image, zoom = pixels(images[drawn[row : row + 1]][0]), 26 / images.shape[2]
            box = OffsetImage(image, zoom=zoom, cmap="gray", interpolation="nearest")
            frame = {"edgecolor": colour[labels[drawn[row]]], "linewidth": 2, "boxstyle": "square,pad=0"}
            axes.add_artist(AnnotationBbox(box, tuple(places[row]), pad=0, bboxprops=frame))
        for cluster in np.unique(labels[drawn]):
            middle = np.median(places[labels[drawn] == cluster], axis=0)
            axes.annotate(
                str(cluster + 1),
                tuple(middle),
                ha="center",
                va="center",
                fontsize=13,
                fontweight="bold",
                color="white",
                bbox={"boxstyle": "round,pad=0.25", "facecolor": colour[cluster], "edgecolor": "white"},
                zorder=5,
            )
        axes.set_axis_off()
        return png(figure)


def cluster_sizes(sizes: NDArray[np.int64]) -> str:
    """Plots the number of images in each cluster. SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.bar(np.arange(1, len(sizes) + 1), sizes, color=colours(len(sizes)))
        axes.set_xlabel("cluster, largest first")
        axes.set_ylabel("images")
        axes.set_title("Cluster sizes", loc="left", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        return svg(figure)


def score_curve(scores: Mapping[int, float], m: int, method: str) -> str:
    """Plots the score of each number of clusters, and marks the chosen one. SVG."""
    names = {
        "graph": "modularity",
        "silhouette": "mean silhouette",
        "bic": "- BIC",
        "hdbscan": "fraction of images that are not noise",
        "eigengap": "gap after the k-th eigenvalue",
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(list(scores), list(scores.values()), color=colours(1)[0], marker="o", markersize=3, linewidth=1.2)
        if m in scores:
            axes.scatter([m], [scores[m]], marker="*", s=170, color="#1e8449", zorder=3, label=f"M = {m}")
            axes.legend()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("clusters")
        axes.set_ylabel(names[method])
        axes.set_title("Choice of M", loc="left", fontsize=10)
        return svg(figure)


def examples(images: Any, labels: NDArray[np.int64], centrality: NDArray[np.float32]) -> bytes:
    """Plots images at the centre and at the edge of each cluster. PNG."""
    count, side = min(int(labels.max()) + 1, SHOWN), images.shape[2]
    pitch = side + max(side // 12, 1)
    edge = (_EXAMPLES + 0.5) * pitch  # pixels from the left to the second half
    canvas = np.full((count * pitch, int(edge) + _EXAMPLES * pitch, 3), 255, dtype=np.uint8)
    for cluster in range(count):
        members = np.flatnonzero(labels == cluster)
        members = members[np.argsort(centrality[members], kind="stable")]
        halves = members[:_EXAMPLES], members[max(len(members) - _EXAMPLES, _EXAMPLES) :]
        for start, half in zip((0, int(edge)), halves, strict=True):
            for place, index in enumerate(half):
                left = start + place * pitch
                image = images[index : index + 1][0].transpose(1, 2, 0)
                canvas[cluster * pitch : cluster * pitch + side, left : left + side] = image
    with matplotlib.rc_context(STYLE):
        height = 11 * canvas.shape[0] / canvas.shape[1]  # inches
        figure = Figure(figsize=(11.6, height + 0.4), dpi=110)
        axes = figure.add_axes((0.6 / 11.6, 0, 11 / 11.6, height / (height + 0.4)))
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for cluster in range(count):
            axes.text(-0.25 * pitch, (cluster + 0.5) * pitch, str(cluster + 1), ha="right", va="center", fontsize=11)
        axes.text(0, -0.1 * pitch, "centre", fontsize=10)
        axes.text(edge, -0.1 * pitch, "edge", fontsize=10)
        return png(figure)


def _without_overlap(places: NDArray[Any], generator: np.random.Generator) -> list[int]:
    """Returns points whose thumbnails do not overlap."""
    reach = np.ptp(places, axis=0).max() / 34
    kept: list[int] = []
    for row in generator.permutation(len(places)):
        if not kept or np.abs(places[kept] - places[row]).max(1).min() > reach:
            kept.append(int(row))
    return kept
