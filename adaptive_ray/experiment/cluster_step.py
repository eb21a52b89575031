"""Counts the dataset clusters of a run on its Ray cluster and serves them to its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.report.terminal import Progress
from adaptive_ray.run_directory.directory import RunDirectory

if TYPE_CHECKING:
    from adaptive_ray.clusters.counting import Clustering
    from adaptive_ray.clusters.dataset_clusters import DatasetClusters


def count_clusters(
    clusters: DatasetClusters, config: ExperimentConfig, data: Dataset, directory: RunDirectory, progress: Progress
) -> Clustering:
    """Counts the clusters of the training images; writes ``clusters.json`` and ``clusters.html``."""
    clusters.embed(progress.embedded)
    if clusters.known is None:
        progress.phase(f"counting the clusters of {len(data.training.images):,} images")
    found = clusters.clustering()
    page = directory.path / "clusters.html"
    if not page.exists():
        directory.write_json("clusters.json", clusters.present(page, data.name, config.alpha_m))
    return found


def serve_clusters(
    clusters: DatasetClusters, found: Clustering, config: ExperimentConfig, progress: Progress
) -> dict[str, Any] | None:
    """Starts the actor that serves the clusters, if training needs them, and shows what follows from them.

    ``config`` has the batch sizes that follow from the clusters. Returns what workers need; see ``train_worker``.
    """
    from adaptive_ray.clusters.consequences import remarks

    sizes = ", ".join(candidate.key for candidate in config.choices)
    progress.phase(f"{found.m} clusters ({found.method}); batch sizes: {sizes}")
    for remark in remarks(config, found.sizes):
        progress.note(remark)
    wanted = config.known_of_images
    return {"service": clusters.service(config.sampling), "wanted": wanted} if wanted else None
