"""Tiny trainables that report a synthetic curve, and a function that runs them."""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune import ResultGrid
from ray.tune.schedulers import TrialScheduler

from schedulers import LossExtrapolationScheduler
from schedulers.tune.trials import NoRetryError
from tests.schedulers.curves import shared_curve

BUDGET, WINDOW, STEP = 40_000, 10_000, 1_000

pause = time.sleep


def gather(folder: str, name: str, size: int) -> None:
    """Waits until ``size`` processes have started, so that all trials start together on slow machines, too."""
    Path(folder, name).touch()
    while len(list(Path(folder).iterdir())) < size:
        time.sleep(0.01)


def advance(config: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Trains for STEP samples. ``state`` is what a checkpoint contains.

    From ``turn`` on the rate is ``later`` instead of ``rate``. ``raises_at``, ``gives_up_at``, ``nan_at`` and
    ``silent_until`` are samples. With the file ``flaky`` the error is raised once. At each of ``dies_at`` the process
    is killed once, as by an out-of-memory killer.
    """
    pause(config.get("seconds") or 0.02)
    name = str(config.get("candidate"))
    if not state["lineage"] or state["lineage"][-1][0] != name:
        state["lineage"].append((name, state["samples"]))
    state["samples"] += STEP
    late = state["samples"] > (config.get("turn") or math.inf)
    state["progress"] += STEP * (config["later"] if late else config["rate"])
    if config.get("raises_at") == state["samples"] and not (config.get("flaky") and Path(config["flaky"]).exists()):
        if config.get("flaky"):
            Path(config["flaky"]).touch()
        raise RuntimeError("broken")
    if config.get("gives_up_at") == state["samples"]:
        raise NoRetryError("ValueError: there is no such loss")
    if state["samples"] in (config.get("dies_at") or ()):
        died = Path(config["storage"]) / f"died-{name}-{state['samples']}"
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    loss = math.nan if config.get("nan_at") == state["samples"] else float(shared_curve(np.array(state["progress"])))
    result = {"loss": loss, "score": -loss, "samples_seen": state["samples"], "starts": state["starts"]}
    if state["samples"] <= (config.get("silent_until") or 0):
        del result["loss"], result["score"]
    return {**result, "lineage": " ".join(f"{key}@{at}" for key, at in state["lineage"])}


def fresh() -> dict[str, Any]:
    return {"samples": 0, "progress": 0.0, "starts": 1, "lineage": []}


class Walker(tune.Trainable):
    """A class with checkpoints."""

    def setup(self, config: dict[str, Any]) -> None:
        self.state = fresh()
        if crowd := config.get("crowd"):
            gather(crowd[0], config["candidate"], crowd[1])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config, self.state = new_config, fresh()
        return True

    def step(self) -> dict[str, Any]:
        result = advance(self.config, self.state)
        return {**result, "done": self.state["samples"] >= (self.config.get("ends_at") or math.inf)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "state.json").write_text(json.dumps(self.state))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.state = json.loads((Path(checkpoint_dir) / "state.json").read_text())
        self.state["starts"] += 1


class Forgetful(tune.Trainable):
    """A class without checkpoints."""

    def setup(self, config: dict[str, Any]) -> None:
        self.state = fresh()

    def step(self) -> dict[str, Any]:
        return advance(self.config, self.state)


def walk(config: dict[str, Any]) -> None:
    """A function without checkpoints."""
    state = fresh()
    while state["samples"] < (config.get("ends_at") or BUDGET):
        tune.report(advance(config, state))


def walk_with_checkpoints(config: dict[str, Any]) -> None:
    """A function with Tune's checkpoints."""
    state = fresh()
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = json.loads((Path(folder) / "state.json").read_text())
        state["starts"] += 1
    while state["samples"] < BUDGET:
        result = advance(config, state)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps(state))
            tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


def walk_like_train(config: dict[str, Any]) -> None:
    """A function with the checkpoints of Ray Train; see trainables/on_ray/trial.py.

    With ``decided``, a file, it waits for that file after the window, and with ``dies`` it is killed there once.
    """
    state = fresh()
    if crowd := config.get("crowd"):
        gather(crowd[0], config["candidate"], crowd[1])
    if path := config.get("resume_from"):
        state = json.loads(Path(path).read_text())
        state["starts"] += 1
    run = Path(config["storage"]) / f"{tune.get_context().get_trial_id()}-{config['run_tag']}"
    run.mkdir()
    while state["samples"] < BUDGET:
        result = advance(config, state)
        path = run / str(state["samples"])
        path.write_text(json.dumps(state))
        tune.report({**result, "checkpoint_path": str(path), "workers": config.get("workers", 1)})
        while state["samples"] == WINDOW and config.get("decided") and not Path(config["decided"]).exists():
            time.sleep(0.05)
            if config.get("dies") and state["starts"] == 1:
                time.sleep(0.5)  # until Tune has the report
                os.kill(os.getpid(), signal.SIGKILL)


def run(
    trainable: Any,
    rates: Mapping[str, float],
    storage: Path,
    *,
    scheduler: TrialScheduler | None = None,
    extra: Mapping[str, Any] | None = None,
    cpus: float = 0.5,
    tune_config: Mapping[str, Any] | None = None,
    run_config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[ResultGrid, Any]:
    """Runs a trial for each rate. ``settings`` are the scheduler's; values of ``extra`` may be given by candidate."""
    defaults: dict[str, Any] = {"metric": "loss", "mode": "min", "budget": BUDGET, "window": WINDOW}
    scheduler = scheduler or LossExtrapolationScheduler(**{**defaults, **settings})
    space: dict[str, Any] = {"candidate": tune.grid_search(list(rates)), "rate": _by_candidate(rates)}
    for name, value in (extra or {}).items():
        space[name] = _by_candidate(value) if isinstance(value, Mapping) else value
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": cpus}),
        param_space=space,
        tune_config=tune.TuneConfig(scheduler=scheduler, **(tune_config or {})),
        run_config=tune.RunConfig(name="race", storage_path=str(storage), verbose=0, **(run_config or {})),
    )
    return tuner.fit(), scheduler


def _by_candidate(values: Mapping[str, Any]) -> Any:
    return tune.sample_from(lambda spec: values.get(spec.config.candidate))


def last(results: ResultGrid) -> dict[str, dict[str, Any]]:
    """Returns every candidate's last result."""
    return {result.config["candidate"]: result.metrics or {} for result in results if result.config}


def seen(results: ResultGrid) -> dict[str, int]:
    """Returns the samples that every candidate has seen."""
    return {key: metrics.get("samples_seen", 0) for key, metrics in last(results).items()}
