"""One run from its configuration to its results: race, winner's training, evaluation, files."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ray
import torch
from rich.console import Console

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.plan import Plan
from adaptive_ray.datasets.dataset import Dataset, load_dataset
from adaptive_ray.datasets.labelled_images import labelled_images
from adaptive_ray.errors import (
    AdaptiveRayError,
    InterruptedRunError,
    PlacementError,
    StorageError,
    UserError,
    first_line,
    storage_problem,
)
from adaptive_ray.experiment.artifacts import write_results
from adaptive_ray.experiment.background_tracker import BackgroundTracker
from adaptive_ray.experiment.cluster_step import count_clusters, serve_clusters
from adaptive_ray.experiment.evaluation_task import EvaluationTask
from adaptive_ray.experiment.prepared import Prepared
from adaptive_ray.experiment.results import Winner, judge
from adaptive_ray.experiment.trials import Trials
from adaptive_ray.experiment.tune_callback import RunCallback
from adaptive_ray.ray_cluster.address import cluster_address
from adaptive_ray.ray_cluster.cluster import cluster
from adaptive_ray.ray_cluster.nodes import free_nodes, this_machine
from adaptive_ray.ray_cluster.signals import exit_code, listening
from adaptive_ray.report.terminal import Progress
from adaptive_ray.run_directory.directory import RunDirectory
from adaptive_ray.run_directory.history import History
from adaptive_ray.run_directory.inputs import check_inputs, check_unfinished
from adaptive_ray.run_directory.lock import locked
from trainables.simclr import build_encoder
from trainables.simclr.losses import loss_named

if TYPE_CHECKING:
    from adaptive_ray.clusters.counting import Clustering
    from adaptive_ray.clusters.dataset_clusters import DatasetClusters


class Experiment:
    """A validated run. The constructor loads the data and checks all that can be checked without a cluster.

    Args:
        config: Configuration of the run.
        address: Address of a running Ray cluster; None: ``RAY_ADDRESS``, or a cluster started on this machine.

    Raises:
        UserError: The configuration does not fit the data or this machine.
    """

    def __init__(self, config: ExperimentConfig, *, address: str | None = None) -> None:
        self.config, self.address = config, address
        self.data: Dataset = load_dataset(config.dataset, config.seed)
        self._try_encoder()
        self.dataset_clusters: DatasetClusters | None = None
        if config.uses_clusters:
            from adaptive_ray.clusters.dataset_clusters import DatasetClusters

            self.dataset_clusters = DatasetClusters.of(config, self.data.training.images)
        known = self.dataset_clusters.known if self.dataset_clusters is not None else None
        #: None: the batch sizes follow from clusters that have not been counted yet.
        self.prepared = self.prepare(known) if known is not None or not config.sized_by_clusters else None

    def prepare(self, found: Clustering | None) -> Prepared:
        """Plans the run with the batch sizes and images per update that follow from the clusters."""
        config, updates = self.config, None
        if found is not None and self.dataset_clusters is not None:
            from adaptive_ray.clusters.consequences import images_per_update

            config = config.with_clusters(found.m)
            updates = images_per_update(config, found, self.dataset_clusters.reduced)
        plan = Plan.of(config, len(self.data.training.images), updates)
        local = cluster_address(self.address) is None
        return Prepared.of(config, plan, self._encoder, self.data.shape, local=local)

    @property
    def plan(self) -> Plan:
        """Samples, steps and reports of the run. Raises ``UserError`` if the batch sizes are not known yet."""
        if self.prepared is None:
            raise UserError(
                "the batch size follows from clusters that have not been counted yet; "
                "count them with: adaptive-ray cluster CONFIG"
            )
        return self.prepared.plan

    def _try_encoder(self) -> None:
        """Checks that the encoder accepts the images and that its initial weights exist."""
        channels, size, _ = self.data.shape
        try:
            with torch.random.fork_rng(devices=[]):
                self._encoder = build_encoder(self.config.simclr.encoder, channels, image_size=size)
        except ValueError as error:
            raise UserError(f"simclr.encoder: {error}") from None

    def check_loss(self) -> None:
        """Imports a custom loss before Ray starts. Raises ``UserError`` if it cannot be imported."""
        try:
            loss_named(self.config.simclr.loss)
        except ValueError as error:
            advice = "install its package, or add its folder to PYTHONPATH"
            raise UserError(f"simclr.loss: {first_line(error)}; {advice}") from None

    def run(self, directory: RunDirectory, console: Console, *, retry_failed: bool = False) -> dict[str, Any]:
        """Starts the run, or resumes it from ``directory``, writes the results there and returns ``result.json``.

        With ``retry_failed``, candidates that failed in an earlier session are retried.

        Raises:
            AdaptiveRayError: Its subclasses say why the run failed or was interrupted.
        """
        self.check_loss()
        resume = f"adaptive-ray run --resume {directory.path}"
        try:
            with (
                listening(),
                locked(directory.path) as warning,
                Progress(console) as progress,
                ThreadPoolExecutor(1) as pool,
            ):
                if warning:
                    progress.note(warning)
                check_unfinished(directory)  # since another process may have held the lock until now
                check_inputs(directory, self.config, self.data)
                history = History(directory.path / "events.jsonl")
                tracking = BackgroundTracker(pool, directory)
                with tracking.ended():
                    return self._run(directory, history, progress, tracking, resume, retry_failed=retry_failed)
        except KeyboardInterrupt:
            raise InterruptedRunError(f"interrupted; continue with: {resume}", exit_code()) from None
        except AdaptiveRayError:
            raise
        except Exception as error:
            if (problem := storage_problem(error)) is not None:
                kept = "All that was written so far is kept"
                raise StorageError(f"{problem}. {kept}. Fix this; then continue with: {resume}") from error
            raise

    def _run(
        self,
        directory: RunDirectory,
        history: History,
        progress: Progress,
        tracking: BackgroundTracker,
        resume: str,
        *,
        retry_failed: bool,
    ) -> dict[str, Any]:
        progress.phase("starting Ray and MLflow")
        if self.prepared is not None:
            tracking.open(self.prepared.config)
        # MLflow's runs are closed before Ray is shut down: a stopped job has three seconds.
        with cluster(self.address) as dashboard, tracking.ended():
            if dashboard is not None:
                progress.note(f"Ray dashboard: {dashboard}")
            nodes = free_nodes() if cluster_address(self.address) else [this_machine()]
            prepared, clusters = self.prepared, None
            if self.dataset_clusters is not None:
                found = count_clusters(self.dataset_clusters, self.config, self.data, directory, progress)
                prepared = self.prepare(found)
                clusters = serve_clusters(self.dataset_clusters, found, prepared.config, progress)
            assert prepared is not None
            config, plan, settings = prepared.config, prepared.plan, prepared.settings()
            tracking.open(config)
            layout = prepared.place(directory, nodes)
            progress.plan = plan = plan.sharing(layout.slowdown)
            tracker = tracking.tracker()
            joined = prepared.layout is None
            trials = Trials(config, plan, settings, layout, directory, history, clusters, joined=joined)
            scheduler = trials.scheduler
            progress.phase(_phase(config, plan))
            callback = RunCallback(scheduler, directory, progress, tracker)
            if retry_failed:
                trials.retry_failed()
                callback.write_decisions()
            try:
                labelled = labelled_images(self.data) if plan.knn_every is not None else None
                images = ray.put(dataclasses.replace(self.data.training, labelled=labelled))
                trials.run(images, callback, progress.note)
            except PlacementError as error:
                raise PlacementError(f"{error}. Make room; then resume with: {resume}") from None
            winner = trials.winner()
            trained = Winner.saved(winner, directory, self.data, settings[winner.key])
            progress.phase("evaluating the encoder on held-out images")
            task = EvaluationTask.like(layout.winner, nodes, trained.reports[-1].seconds)
            result = judge(
                trained,
                directory,
                self.data,
                lambda held_out: task.run(
                    trained.encoder, trained.settings, images, held_out, config.evaluation.images
                ),
                budget=plan.budget if plan.time is None else trained.reports[-1].samples_seen,
                explored=round(scheduler.series.explored),
            )
        if self.dataset_clusters is not None and self.dataset_clusters.known is not None:
            result["clusters"] = self.dataset_clusters.known.m
        result["restarts"] = [dataclasses.asdict(restart) for restart in scheduler.series.restarts]
        result["seconds"] = round(history.seconds, 1)
        write_results(directory, result, tracker)
        return result


def _phase(config: ExperimentConfig, plan: Plan) -> str:
    sizes = ", ".join(candidate.key for candidate in plan.candidates)
    return {
        "race": f"race: batch sizes {sizes} in parallel",
        "rotate": f"one run: batch sizes {sizes} in turns",
        "none": f"one run: batch size {sizes}",
    }[config.explore if len(plan.candidates) > 1 else "none"]
