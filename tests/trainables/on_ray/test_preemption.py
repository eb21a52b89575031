"""Tests preemption: workers of a drained node are restarted on another one, which is not counted as a failure."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray import tune
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from adaptive_ray.ray_cluster.cluster import joined
from schedulers import LossExtrapolationScheduler
from trainables.on_ray.failures import Workers
from trainables.on_ray.process_group import ProcessGroupConfig
from trainables.on_ray.trial import Trainer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

STEPS = 40


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Starts a head without CPUs for training and two nodes for one worker each, with preemption handling."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, **ports})
    for _ in range(2):
        cluster.add_node(num_cpus=1, dashboard_agent_listen_port=0)
    with joined(cluster.address):
        yield cluster
    cluster.shutdown()


def steps_in_worker(config: dict[str, Any]) -> None:
    """Reports increasing numbers slowly, with a checkpoint each."""
    start = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            start = json.loads((Path(folder) / "state.json").read_text())
    for samples in range(start + 1, STEPS + 1):
        time.sleep(0.25)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps(samples))
            ray.train.report(
                {"loss": 5.0 / samples, "samples_seen": samples, "node": ray.get_runtime_context().get_node_id()},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
            )


def steps(config: dict[str, Any]) -> None:
    """Runs a trial without retries."""
    Trainer(
        steps_in_worker,
        train_loop_config={},
        backend_config=ProcessGroupConfig(gpus=False),
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=f"{tune.get_context().get_trial_id()}-{config['run_tag']}",
            storage_path=config["storage"],
            callbacks=[Workers()],
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    ).fit()


class Drainer(tune.Callback):
    """Drains the node that trains at its third report."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: list[tuple[int, str]] = []

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.seen.append((result["samples_seen"], result["node"]))
        if len(self.seen) == 3:
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            deadline = (time.time_ns() // 1_000_000) + 4_000
            accepted, why = GcsClient(address=self.address).drain_node(result["node"], reason, "spot", deadline)
            assert accepted, why


def test_a_preempted_node_is_drained_and_not_counted(cluster: Cluster, tmp_path: Path) -> None:
    scheduler = LossExtrapolationScheduler("loss", "min", budget=STEPS, window=STEPS / 2)
    drainer = Drainer(cluster.address)
    results = tune.Tuner(
        tune.with_resources(steps, {"CPU": 0, "memory": 1 << 20}),
        param_space={"candidate": "only", "run_tag": "start", "resume_from": None, "storage": str(tmp_path / "train")},
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(name="drained", storage_path=str(tmp_path), verbose=0, callbacks=[drainer]),
    ).fit()
    assert not results.errors
    assert [samples for samples, _ in drainer.seen] == list(range(1, STEPS + 1))  # nothing is repeated or skipped
    nodes = [node for _, node in drainer.seen]
    assert len(set(nodes)) == 2
    moved = nodes.index(nodes[-1])
    assert moved > 3  # training continued on the drained node
    (restart,) = scheduler.series.restarts
    assert restart.samples == moved
    assert "node" in restart.reason
