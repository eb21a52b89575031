"""Tests real Ray Train runs with the scheduler: two workers each in the race, then all of the cluster."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.util.state import list_actors

from adaptive_ray.ray_cluster.placement import PlacementWatch
from schedulers import Candidate, LossExtrapolationScheduler, State
from trainables.data import TrainingData
from trainables.on_ray.trial import run_trial
from trainables.settings import SwapSettings, TrainSettings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

BUDGET, WINDOW, EVERY = 1_536, 768, 128


class Record(tune.Callback):
    """Records reports and the number of free CPUs."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        free = ray.available_resources().get("CPU", 0.0)
        self.results.append({**result, "candidate": trial.config["candidate"], "free": free})


def race(
    candidates: list[Candidate],
    images: Any,
    storage: Path,
    scheduler: LossExtrapolationScheduler,
    own: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[tune.ResultGrid, Record]:
    record = Record()
    data = ray.put(TrainingData(images=images[:-44], reference=images[-44:]))
    of_each = {
        each.key: TrainSettings(batch_size=each.batch_size, accumulation=each.accumulation, **settings)
        for each in candidates
    }
    trainable = tune.with_parameters(run_trial, settings=of_each, data=[data], storage=str(storage / "train"))
    results = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0, "memory": 1 << 20}),
        param_space={
            "candidate": tune.grid_search(list(of_each)),
            "resume_from": None,
            "run_tag": "start",
            "workers": 2,
            "cpus": 1,
            "gpus": 0,
            "threads": 1,
            **(own or {}),
        },
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(
            name="race", storage_path=str(storage), verbose=0, callbacks=[record, PlacementWatch()]
        ),
    ).fit()
    return results, record


def test_the_winner_of_a_race_continues_with_all_workers(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
    scheduler = LossExtrapolationScheduler(
        "reference_loss", "min", budget=BUDGET, window=WINDOW, prune_below=0, winner_config={"workers": 3}
    )
    results, record = race(
        [Candidate(16), Candidate(64)],
        noise.repeat(4, axis=2).repeat(4, axis=3),
        tmp_path,
        scheduler,
        budget=BUDGET,
        evaluate_every=EVERY,
        augment="digits",
        encoder={"width": 8, "depth": 1},
        optimizer={"name": "adamw", "learning_rate": 0.003},
    )
    assert not results.errors
    winner = scheduler.race.winner
    (loser,) = {"16", "64"} - {winner}
    assert scheduler.race.state(loser) is State.PRUNED

    early = [r for r in record.results if r["samples_seen"] <= WINDOW]
    late = [r for r in record.results if r["samples_seen"] > WINDOW]
    assert {r["workers"] for r in early} == {2}
    # Two runs of two workers used all four CPUs: a third worker needs CPUs that the loser freed.
    assert {(r["candidate"], r["workers"]) for r in late} == {(winner, 3)}

    runs = {(r["candidate"], Path(r["checkpoint_path"]).parent.name) for r in record.results}
    assert all(name.startswith(f"batch-{candidate}-") for candidate, name in runs)

    mine = [r for r in record.results if r["candidate"] == winner]
    assert [r["samples_seen"] for r in mine] == list(range(EVERY, BUDGET + EVERY, EVERY))
    losses = [r["reference_loss"] for r in mine]
    last = [r["samples_seen"] for r in mine].index(WINDOW)
    usual = max(abs(a - b) for a, b in itertools.pairwise(losses))
    assert abs(losses[last + 1] - losses[last]) <= usual  # no jump
    assert losses[last + 1] < losses[0]

    here = ray.get_runtime_context().gcs_address  # not another Ray cluster on this machine
    actors = {actor.class_name for actor in list_actors(here, limit=1_000)}
    assert "RayTrainWorker" in actors
    assert "DatasetManager" not in actors  # not needed, and every process takes a second of CPU time to start


def test_a_trial_accumulates_swaps_and_reports_decisions(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (140, 1, 16, 16), dtype=np.uint8)
    first, second = Candidate(16, 2), Candidate(64)
    swap = SwapSettings(mode="rotate", turn=128, candidates=(first, second))
    results, record = race(
        [first],
        images,
        tmp_path,
        LossExtrapolationScheduler("reference_loss", "min", budget=512, window=384),
        own={"swap": swap},
        budget=512,
        evaluate_every=128,
        encoder={"width": 8, "depth": 1},
    )
    assert not results.errors
    assert [r["samples_seen"] for r in record.results] == [128, 256, 384, 512]
    assert [(r["batch_size"], r["accumulation"]) for r in record.results] == [(16, 2), (64, 1), (16, 2), (64, 1)]
    decisions = [r["decision"] for r in record.results]
    assert [decision["chosen"] for decision in decisions[:3]] == ["64", "16x2", "64"]
    assert json.loads(json.dumps(decisions)) == decisions


def test_a_worker_that_raises_names_its_error_as_the_reason(tmp_path: Path) -> None:
    scheduler = LossExtrapolationScheduler("reference_loss", "min", budget=512, window=256)
    race([Candidate(4096)], np.zeros((108, 1, 16, 16), np.uint8), tmp_path, scheduler, budget=512, evaluate_every=64)
    assert scheduler.race.winner is None
    assert "ValueError: a batch of 4096" in scheduler.race.failures()["4096"]
