"""Writes a data set's clusters as JSON and as an HTML page."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from adaptive_ray import __version__
from adaptive_ray.clusters import pictures
from adaptive_ray.clusters.counting import Clustering
from adaptive_ray.config.clusters import AlphaM

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
    template = Environment(
        loader=PackageLoader("adaptive_ray"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("clusters.html.j2")
    page = template.render(
        s=summary,
        dataset=dataset,
        version=__version__,
        map=base64.b64encode(pictures.cluster_map(images, features[some], labels)).decode(),
        sizes=pictures.cluster_sizes(found.sizes),
        scores=pictures.score_curve(found.scores, found.m, found.method) if found.scores else "",
        examples=base64.b64encode(pictures.examples(images, labels, centrality)).decode(),
        shown=pictures.SHOWN,
    )
    file.write_text(page, encoding="utf-8")
