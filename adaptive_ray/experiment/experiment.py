"""One run from its configuration to its results: race, winner's training, evaluation, files."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from rich.console import Console

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.plan import Plan
from adaptive_ray.datasets.dataset import Dataset, load_dataset
from adaptive_ray.errors import (
    AdaptiveRayError,
    InterruptedRunError,
    PlacementError,
    StorageError,
    UserError,
    storage_problem,
)
from adaptive_ray.experiment.background_tracker import BackgroundTracker
from adaptive_ray.experiment.evaluation_task import EvaluationTask
from adaptive_ray.experiment.prepared import Prepared
from adaptive_ray.experiment.results import Winner, judge
from adaptive_ray.experiment.trials import Trials
from adaptive_ray.experiment.tune_callback import RunCallback
from adaptive_ray.ray_cluster.address import cluster_address
from adaptive_ray.ray_cluster.cluster import cluster
from adaptive_ray.ray_cluster.layout import Layout, laid_out
from adaptive_ray.ray_cluster.nodes import Node, free_nodes, this_machine
from adaptive_ray.ray_cluster.signals import exit_code, listening
from adaptive_ray.report.terminal import Progress
from adaptive_ray.run_directory.directory import RunDirectory
from adaptive_ray.run_directory.history import History
from adaptive_ray.run_directory.inputs import check_data, check_settings
from adaptive_ray.run_directory.lock import locked
from trainables.simclr import build_encoder
from trainables.simclr.losses import loss_named
from trainables.training.micro_batch import training_bytes

if TYPE_CHECKING:
    from adaptive_ray.clusters.counting import Clustering
    from adaptive_ray.clusters.dataset_clusters import DatasetClusters

#: Minimum micro-batch for which memory is counted if micro_batch is auto.
_FEW_IMAGES = 32


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
        """Plans the run with the batch sizes and images per update that follow from the clusters.

        Raises:
            UserError: The plan does not fit the data or this machine.
        """
        config, updates = self.config, None
        if found is not None and self.dataset_clusters is not None:
            from adaptive_ray.clusters.consequences import images_per_update

            config = config.with_clusters(found.m)
            updates = images_per_update(config, found, self.dataset_clusters.reduced)
        plan = Plan.of(config, len(self.data.training.images), updates)
        alone = cluster_address(self.address) is None
        layout = Layout.of(config, [this_machine()], self._training_bytes(config)) if alone else None
        return Prepared(config, plan, layout)

    @property
    def plan(self) -> Plan:
        """Samples, steps and reports of the run.

        Raises:
            UserError: Batch sizes follow from clusters that have not been counted yet.
        """
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

    def _training_bytes(self, config: ExperimentConfig) -> int:
        """Returns the minimum memory of a worker's training."""
        micro_batch = config.simclr.micro_batch
        images = _FEW_IMAGES if micro_batch == "auto" else micro_batch
        share = max(candidate.batch_size for candidate in config.choices) // config.trial.workers
        return training_bytes(self._encoder, self.data.shape, min(images, max(share, 1)))

    def _layout(self, config: ExperimentConfig, directory: RunDirectory, nodes: list[Node]) -> Layout:
        """Returns the workers and their resources; a resumed run keeps its layout if the resources are free."""
        before = directory.path / "layout.json"
        written = Layout.read(directory.read_json(before.name)) if before.exists() else None
        again = free_nodes if cluster_address(self.address) else None
        layout = laid_out(config, nodes, self._training_bytes(config), before=written, again=again)
        directory.write_json(before.name, dataclasses.asdict(layout))
        return layout

    def check_loss(self) -> None:
        """Imports a custom loss before Ray starts.

        Raises:
            UserError: The loss cannot be imported.
        """
        try:
            loss_named(self.config.simclr.loss)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"simclr.loss: {reason}; install its package, or add its folder to PYTHONPATH") from None

    def run(self, directory: RunDirectory, console: Console, *, retry_failed: bool = False) -> dict[str, Any]:
        """Starts the run, or resumes it from ``directory``, and writes the results there.

        Args:
            directory: Directory of the run.
            console: Shows the progress.
            retry_failed: Whether to retry candidates that failed in an earlier session.

        Returns:
            The content of ``result.json``.

        Raises:
            UserError: The cluster or MLflow cannot be used as configured, another process writes to ``directory``, or
                the run was started on other images.
            PlacementError: The cluster has no free resources for the workers.
            NoSurvivorError: Every candidate failed.
            WinnerFailedError: The winner failed after the race.
            StorageError: The disk is full, or a folder cannot be written to.
            InterruptedRunError: The run was interrupted by a signal.
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
                    progress.phase(warning)
                _check_unfinished(directory)  # since another process may have held the lock until now
                check_data(directory, self.data)
                history = History(directory.path / "events.jsonl")
                tracking = BackgroundTracker(pool, partial(self._open_tracker, directory))
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
            tracking.open()
        # MLflow's runs are closed before Ray is shut down: a stopped job has three seconds.
        with cluster(self.address), tracking.ended():
            nodes = free_nodes() if cluster_address(self.address) else [this_machine()]
            prepared, clusters = self._clusters(directory, progress)
            config, plan = prepared.config, prepared.plan
            tracking.open()
            progress.plan = plan
            layout = self._layout(config, directory, nodes)
            tracker = tracking.tracker()
            settings = {candidate.key: prepared.settings(candidate) for candidate in plan.candidates}
            trials = Trials(config, plan, settings, layout, directory, history, clusters)
            scheduler = trials.scheduler
            progress.phase(_phase(config, plan))
            callback = RunCallback(scheduler, directory, progress, tracker)
            if retry_failed:
                trials.retry_failed()
                callback.write_decisions()
            try:
                images = ray.put(self.data.training)
                trials.run(images, callback, progress.phase)
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
                budget=plan.budget,
                explored=round(scheduler.series.explored),
            )
        if self.dataset_clusters is not None and self.dataset_clusters.known is not None:
            result["clusters"] = self.dataset_clusters.known.m
        result["restarts"] = [dataclasses.asdict(restart) for restart in scheduler.series.restarts]
        result["seconds"] = round(history.seconds, 1)
        self._write(trained.key, result, directory, tracker)
        return result

    def _clusters(self, directory: RunDirectory, progress: Progress) -> tuple[Prepared, dict[str, Any] | None]:
        """Counts the clusters if the run needs them, plans with them, and starts the actor that serves them.

        Returns:
            The plan, and what workers need; see ``train_worker``.
        """
        if self.dataset_clusters is None:
            assert self.prepared is not None
            return self.prepared, None
        from adaptive_ray.clusters.consequences import remarks

        self.dataset_clusters.embed(progress.embedded)
        if self.dataset_clusters.known is None:
            progress.phase(f"counting the clusters of {len(self.data.training.images):,} images")
        found = self.dataset_clusters.clustering()
        prepared = self.prepare(found)
        config = prepared.config
        sizes = ", ".join(candidate.key for candidate in config.choices)
        progress.phase(f"{found.m} clusters ({found.method}); batch sizes: {sizes}")
        for remark in remarks(config, found.sizes):
            progress.phase(remark)
        wanted = config.known_of_images
        known = {"service": self.dataset_clusters.service(config.sampling), "wanted": wanted} if wanted else None
        page = directory.path / "clusters.html"
        if not page.exists():
            summary = self.dataset_clusters.present(page, self.data.name, self.config.alpha_m)
            directory.write_json("clusters.json", summary)
        return prepared, known

    def _open_tracker(self, directory: RunDirectory) -> Any:
        if not self.config.tracking.enabled:
            return None
        from adaptive_ray.experiment.mlflow_tracking import (
            Tracker,  # mlflow takes seconds to import, and no worker needs it
        )

        return Tracker(self.config, directory)

    def _write(self, winner: str, result: dict[str, Any], directory: RunDirectory, tracker: Any) -> None:
        from adaptive_ray.experiment.evaluate import reason
        from adaptive_ray.report.page import write_report

        directory.write_json("curves.json", directory.curves())
        directory.write_json("result.json", result)
        try:
            write_report(directory)
        except Exception as error:  # the results are written; `adaptive-ray report` can retry
            result["unavailable"]["report.html"] = reason(error)
            directory.write_json("result.json", result)
        if tracker is not None:
            tracker.finished(winner, result, directory.reports_of(winner))
            tracker.artifacts(directory, [name for name in ARTIFACTS if (directory.path / name).exists()])


def _phase(config: ExperimentConfig, plan: Plan) -> str:
    sizes = ", ".join(candidate.key for candidate in plan.candidates)
    return {
        "race": f"race: batch sizes {sizes} in parallel",
        "rotate": f"one run: batch sizes {sizes} in turns",
        "none": f"one run: batch size {sizes}",
    }[config.explore if len(plan.candidates) > 1 else "none"]


#: Files that are logged to MLflow as artifacts, if they exist.
ARTIFACTS = (
    "result.json",
    "config.yaml",
    "events.jsonl",
    "decisions.jsonl",
    "swaps.jsonl",
    "curves.json",
    "report.html",
    "encoder.safetensors",
    "encoder.json",
    "clusters.json",
    "clusters.html",
)


def open_run(path: Path) -> tuple[RunDirectory, ExperimentConfig]:
    """Opens an unfinished run to resume it.

    Raises:
        UserError: There is no run at ``path``, it is finished, or its settings were changed.
    """
    directory = RunDirectory.open(path)
    _check_unfinished(directory)
    # The run may have been moved; features are stored beside it.
    return directory, check_settings(directory).model_copy(update={"runs_dir": directory.path.parent})


def _check_unfinished(directory: RunDirectory) -> None:
    if (directory.path / "result.json").exists():
        raise UserError(f"{directory.path} is already finished; nothing to resume")
