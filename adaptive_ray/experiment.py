"""One run from its configuration to its results: race, stretch, probes, files."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from rich.console import Console

from adaptive_ray.cluster import Layout, Workers, cluster, cluster_address, local_resources
from adaptive_ray.config import ExperimentConfig
from adaptive_ray.datasets import Dataset, load_dataset
from adaptive_ray.errors import InterruptedRunError, NoSurvivorError, UserError
from adaptive_ray.observer import METRIC, Observer
from adaptive_ray.plan import MIN_REPORTS, Plan
from adaptive_ray.progress import Progress
from adaptive_ray.run_directory import RunDirectory
from schedulers import LossExtrapolationScheduler, Race
from trainables.simclr import build_encoder
from trainables.trial import run_trial

#: A trial itself only waits for its Ray Train workers, which bring their own resources. Ray refuses an empty request.
_DRIVER = {"CPU": 0, "memory": 1 << 20}


class Experiment:
    """A validated run. Making one loads the data and checks everything that can be checked without a cluster.

    Args:
        config: The run.
        address: Of a running Ray cluster; None: the one that ``RAY_ADDRESS`` names, else one started here.

    Raises:
        UserError: Something about the configuration, the data or this machine does not fit.
    """

    def __init__(self, config: ExperimentConfig, *, address: str | None = None) -> None:
        self.config, self.address = config, address
        self.data: Dataset = load_dataset(config.dataset, config.seed)
        self.plan = Plan.of(config, len(self.data.training.images))
        self._try_encoder()
        self.layout: Layout | None = None
        if cluster_address(address) is None:
            cpus, gpus = local_resources()
            self.layout = Layout.of(config, cpus=cpus, gpus=gpus)

    def _try_encoder(self) -> None:
        """Whether it takes the images, and whether the weights that it starts from are there."""
        channels, size, _ = self.data.shape
        try:
            with torch.random.fork_rng():
                build_encoder(self.config.simclr.encoder, channels, image_size=size)
        except ValueError as error:
            raise UserError(f"simclr.encoder: {error}") from None

    @property
    def settings(self) -> dict[str, Any]:
        """Of ``TrainSettings``, without the candidate's own."""
        return {
            **self.config.simclr.model_dump(mode="json"),
            "budget": self.plan.budget,
            "evaluate_every": self.plan.evaluate_every,
            "seed": self.config.seed,
        }

    def run(self, directory: RunDirectory, console: Console) -> dict[str, Any]:
        """Runs, or goes on with what ``directory`` already holds, and writes the results there.

        Returns:
            The content of ``result.json``.

        Raises:
            UserError: The cluster or MLflow cannot be used as configured.
            NoSurvivorError: Every candidate failed, or the winner did after the race.
            InterruptedRunError: Ctrl-C, or the job was stopped.
        """
        started = time.monotonic()
        resume = f"adaptive-ray run --resume {directory.path}"
        tracker = None
        try:
            with Progress(console, self.plan) as progress, ThreadPoolExecutor(1) as pool:
                progress.phase("starting Ray and MLflow")
                opening = pool.submit(self._open_tracker, directory)  # its database takes seconds; Ray does too
                with cluster(self.address) as (cpus, gpus):
                    layout = Layout.of(self.config, cpus=cpus, gpus=gpus)
                    tracker = opening.result()
                    scheduler = self._scheduler(layout, directory)
                    observer = Observer(scheduler, directory, progress, tracker)
                    progress.phase(self._phase())
                    self._train(scheduler, layout, directory, observer)
                winner = scheduler.race.winner
                if winner is None:
                    reasons = "; ".join(f"batch size {key} {why}" for key, why in scheduler.race.failures().items())
                    raise NoSurvivorError(f"no candidate survived: {reasons}. Mend the cause; then, to go on: {resume}")
                progress.phase("probing the encoder on held-out images")
                from adaptive_ray.results import judge  # matplotlib and scikit-learn: not before they are needed

                by_key = {candidate.key: candidate for candidate in self.plan.candidates}
                result = judge(
                    by_key[str(winner)],
                    directory,
                    self.data,
                    self.config,
                    self.settings,
                    budget=self.plan.budget,
                    explored=round(scheduler.contest.explored),
                )
                result["seconds"] = round(time.monotonic() - started, 1)
                self._write(str(winner), result, directory, tracker)
                return result
        except KeyboardInterrupt:
            raise InterruptedRunError(f"interrupted; go on with: {resume}") from None
        except BaseException:
            if tracker is not None:
                tracker.failed()
            raise

    def _open_tracker(self, directory: RunDirectory) -> Any:
        if not self.config.tracking.enabled:
            return None
        from adaptive_ray.tracking import Tracker  # mlflow takes seconds to import, and no worker needs it

        return Tracker(self.config, directory)

    # --- race and stretch ---------------------------------------------------------------------------------------

    def _scheduler(self, layout: Layout, directory: RunDirectory) -> LossExtrapolationScheduler:
        scheduler = LossExtrapolationScheduler(
            METRIC,
            "min",
            seconds_attr="seconds",
            budget=self.plan.budget,
            window=self.plan.window,
            drop_below=self.config.race.drop_below,
            predictor=self.config.race.predictor,
            min_reports=MIN_REPORTS,
            rerace=self.plan.rerace,
            patience=self.config.swap.patience,
            threshold=self.config.swap.threshold,
            winner_config={**_resources(layout.stretch), "swap": self._swap()},
        )
        for candidate in self.plan.trials:
            scheduler.contest.enter(candidate.key)
        scheduler.replay(
            (report["candidate"], report["samples_seen"], report[METRIC], report["seconds"])
            for report in directory.reports()
        )
        return scheduler

    def _phase(self) -> str:
        sizes = ", ".join(candidate.key for candidate in self.plan.candidates)
        return {
            "race": f"race: batch sizes {sizes} side by side",
            "rotate": f"one run: batch sizes {sizes} in turns",
            "none": f"one run: batch size {sizes}",
        }[self.config.explore]

    def _swap(self) -> Any:
        """The winner's setting of this name; it depends on the race."""
        config = self.config
        if config.explore == "rotate":
            return swap_settings(config, self.plan)
        return partial(swap_settings, config, self.plan) if config.swap.enabled else None

    def _train(
        self, scheduler: LossExtrapolationScheduler, layout: Layout, directory: RunDirectory, observer: Observer
    ) -> None:
        """Runs the trials that are still in the race, to the end of the winner's budget."""
        race, contest = scheduler.race, scheduler.contest
        starts = {report["candidate"]: report for report in directory.reports()}
        if race.winner is not None and starts[str(race.winner)]["samples_seen"] >= self.plan.budget:
            return
        keys = [c.key for c in self.plan.trials if c.key in race.alive or contest.comes_back(c.key)]
        candidates = {candidate.key: candidate for candidate in self.plan.candidates}
        paths = {key: report["checkpoint_path"] for key, report in starts.items()}
        alone = len(self.plan.trials) == 1
        storage = directory.path / "train"
        attempt = len(list(storage.glob("tune-*")))
        trainable = tune.with_parameters(
            run_trial, settings=self.settings, data=[ray.put(self.data.training)], storage=str(storage)
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, _DRIVER),
            param_space={
                "candidate": tune.grid_search(keys),
                "batch_size": tune.sample_from(lambda spec: candidates[spec.config.candidate].batch_size),
                "accumulation": tune.sample_from(lambda spec: candidates[spec.config.candidate].accumulation),
                "resume_from": tune.sample_from(lambda spec: paths.get(spec.config.candidate)),
                "run_tag": "start",
                "swap": self._swap() if alone else None,
                **_resources(layout.stretch if alone else layout.race),
            },
            tune_config=tune.TuneConfig(scheduler=scheduler),
            run_config=tune.RunConfig(
                name=f"tune-{attempt}", storage_path=str(storage), callbacks=[observer], verbose=0
            ),
        )
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the run here, not after Tune's own goodbye
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        tuner.fit()

    # --- results ------------------------------------------------------------------------------------------------

    def _write(self, winner: str, result: dict[str, Any], directory: RunDirectory, tracker: Any) -> None:
        from adaptive_ray.report import write_report

        directory.write_json("curves.json", directory.curves())
        directory.write_json("result.json", result)
        write_report(directory)
        if tracker is not None:
            tracker.finished(winner, result, [r for r in directory.reports() if r["candidate"] == winner])
            tracker.artifacts(directory, ARTIFACTS)


#: The files of a run's directory that go to MLflow.
ARTIFACTS = (
    "result.json",
    "config.yaml",
    "decisions.jsonl",
    "curves.json",
    "report.html",
    "encoder.safetensors",
    "encoder.json",
)


def _resources(workers: Workers) -> dict[str, Any]:
    """The entries of a trial's configuration that say what it runs on."""
    return {"workers": workers.count, "cpus": workers.cpus, "gpus": workers.gpus, "threads": workers.threads}


def swap_settings(config: ExperimentConfig, plan: Plan, race: Race | None = None) -> dict[str, Any]:
    """A trial's setting ``swap``; of a ``race`` it takes the rates and throughputs that were measured there."""
    standings = race.standings() if race is not None else []
    return {
        "mode": "rotate" if config.explore == "rotate" else "surprise",
        "candidates": [dataclasses.asdict(candidate) for candidate in plan.candidates],
        "patience": config.swap.patience,
        "threshold": config.swap.threshold,
        "rates": {str(s.key): s.log_rate for s in standings if s.log_rate is not None},
        "throughputs": {str(s.key): s.throughput for s in standings if math.isfinite(s.throughput)},
        "turn": plan.turn,
    }


def open_run(path: Path) -> tuple[RunDirectory, ExperimentConfig]:
    """An unfinished run, to go on with.

    Raises:
        UserError: There is none at ``path``, or it has come to its end.
    """
    directory = RunDirectory.open(path)
    if (directory.path / "result.json").exists():
        raise UserError(f"{directory.path} has come to its end; there is nothing to go on with")
    return directory, directory.config()
