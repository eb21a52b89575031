"""Writes a data set's clusters as JSON and as an HTML page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from adaptive_ray.clusters import pictures
from adaptive_ray.clusters.counting import Clustering
from adaptive_ray.config.clusters import AlphaM
from adaptive_ray.report.html import render

#: Images on a page are drawn from the first images.
_IMAGES = 20_000


def summary_of(found: Clustering, encoder: str, alpha: AlphaM) -> dict[str, Any]:
    """Returns the content of ``adaptive-ray cluster --json`` and of a run's ``clusters.json``."""
    return {
        "m": found.m,
        "sizes": found.sizes.tolist(),
        "method": found.method,
        "suggested_batch_size": alpha.batch_size(found.m),
        "alpha": alpha.alpha,
        "stability": found.stability if math.isfinite(found.stability) else None,
        "scores": {str(k): score for k, score in found.scores.items()},
        "notes": list(found.notes),
        "encoder": encoder,
        "images": len(found.labels),
    }


def write_page(
    file: Path, dataset: str, images: Any, features: NDArray[Any], found: Clustering, summary: dict[str, Any]
) -> None:
    """Writes ``clusters.html``: a map with thumbnails, sizes, the score curve, and examples of each cluster."""
    some = slice(0, min(len(found.labels), _IMAGES))
    labels, centrality = found.labels[some], found.centrality[some]
    page = render(
        "clusters.html.j2",
        s=summary,
        dataset=dataset,
        map=pictures.cluster_map(images, features[some], labels),
        sizes=pictures.cluster_sizes(found.sizes),
        scores=pictures.score_curve(found.scores, found.m, found.method) if found.scores else "",
        examples=pictures.examples(images, labels, centrality),
        shown=pictures.SHOWN,
    )
    file.write_text(page, encoding="utf-8")
