"""The command ``adaptive-ray cluster``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adaptive_ray.clusters.consequences import remarks
from adaptive_ray.clusters.dataset_clusters import DatasetClusters
from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.datasets.dataset import load_dataset
from adaptive_ray.ray_cluster.cluster import cluster
from adaptive_ray.report.terminal import Progress, print_lines

#: Maximum number of clusters in the printed table.
_LISTED = 20


def count(config: ExperimentConfig, address: str | None, console: Console, page: Path) -> dict[str, Any]:
    """Embeds the training images, counts their clusters, prints them, and writes an HTML page.

    Returns ``summary_of`` the clusters. For ``address`` see ``ray_cluster.cluster``.

    Raises:
        UserError: Data, encoder or settings are invalid.
    """
    data = load_dataset(config.dataset, config.seed)
    print_lines(console, data.summary)
    dataset_clusters = DatasetClusters.of(config, data.training.images)
    with Progress(console) as progress:
        if not dataset_clusters.complete:
            progress.phase("starting Ray")
            with cluster(address):
                dataset_clusters.embed(progress.embedded)
        progress.phase(f"counting the clusters of {len(data.training.images):,} images")
        dataset_clusters.clustering()
        progress.phase("drawing the page")
        summary = dataset_clusters.present(page, data.name, config.alpha_m)
    _show(console, config, summary, page)
    return summary


def _show(console: Console, config: ExperimentConfig, summary: dict[str, Any], page: Path) -> None:
    sizes, total = summary["sizes"], summary["images"]
    console.print(f"\n[bold]{config.dataset.name}[/]: {total:,} training images, embedded with {summary['encoder']}\n")
    table = Table(box=None, padding=(0, 3, 0, 0))
    for title in ("cluster", "images", "fraction"):
        table.add_column(title, justify="right")
    for number, size in enumerate(sizes[:_LISTED], 1):
        table.add_row(str(number), f"{size:,}", f"{100 * size / total:.1f} %")
    if len(sizes) > _LISTED:
        rest = sum(sizes[_LISTED:])
        table.add_row(f"{len(sizes) - _LISTED} more", f"{rest:,}", f"{100 * rest / total:.1f} %")
    console.print(table)
    stability = "-" if summary["stability"] is None else f"{summary['stability']:.2f}"
    console.print(f"\n[bold green]clusters: {summary['m']}[/] (method {summary['method']}, stability {stability})")
    console.print(
        f"[bold green]suggested batch size: {summary['suggested_batch_size']}[/] "
        f"({summary['alpha']:g} images per cluster in a batch)"
    )
    for note in [*summary["notes"], *remarks(config, sizes)]:
        console.print(f"note: {note}", style="yellow")
    console.print(f"page: {page}", soft_wrap=True, highlight=False, markup=False)
