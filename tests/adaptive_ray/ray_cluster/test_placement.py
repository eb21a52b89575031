"""Placement on real nodes that are partly in use, and errors if it fails."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from adaptive_ray.config.loading import parse_config
from adaptive_ray.errors import PlacementError, UserError
from adaptive_ray.experiment.experiment import Experiment
from adaptive_ray.ray_cluster import placement
from adaptive_ray.ray_cluster.cluster import joined
from adaptive_ray.ray_cluster.layout import Layout
from adaptive_ray.ray_cluster.nodes import free_nodes
from adaptive_ray.run_directory.directory import RunDirectory
from schedulers import LossExtrapolationScheduler
from trainables.training.host_memory import MemoryTakenError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster with 1 + 1 + 2 CPU cores."""
    ports = {"dashboard_agent_listen_port": 0, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, **ports})
    for cores in (1, 2):
        cluster.add_node(num_cpus=cores)
    yield cluster.address
    cluster.shutdown()


class Somebody:
    """An actor that uses one core."""

    def is_there(self) -> bool:
        return True


def take_a_core(node: str | None = None) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False) if node else None
    actor = ray.remote(num_cpus=1)(Somebody).options(scheduling_strategy=strategy).remote()
    assert ray.get(actor.is_there.remote())
    return actor


def configured(runs: Path, *, max_concurrent: Any = "auto", **settings: Any) -> Any:
    return parse_config(
        {
            "runs_dir": str(runs),
            "dataset": {"name": "mnist5k", "limit": 512},
            "candidates": [16, 32],
            "budget": {"samples": 2048},
            "race": {
                "window": {"samples": 512},
                "evaluations": 4,
                "prune_below": 0,
                "max_concurrent": max_concurrent,
            },
            "simclr": {"augment": "digits", "encoder": {"width": 8, "depth": 1}},
            "tracking": {"enabled": False},
            "trial": {"cpus_per_worker": 1},
            **settings,
        }
    )


def cores(nodes: list[Any]) -> list[float]:
    return sorted(node.cpus for node in nodes)


def test_resources_in_use_are_not_available(address: str, tmp_path: Path) -> None:
    with joined(address):
        assert cores(free_nodes()) == [1, 1, 2]
        large = next(node["NodeID"] for node in ray.nodes() if node["Resources"]["CPU"] == 2)
        take_a_core(large)
        deadline = time.monotonic() + 30
        while cores(nodes := free_nodes()) != [1, 1, 1] and time.monotonic() < deadline:
            time.sleep(0.2)  # nodes report their resources periodically
        assert cores(nodes) == [1, 1, 1]
        assert all(node.memory > 2**28 for node in nodes)
        assert Layout.of(configured(tmp_path, winner={"workers": 3}), nodes).winner.count == 3
        with pytest.raises(UserError, match=r"trial\.workers = 1: only 0 workers of 2 CPU cores can be placed"):
            Layout.of(configured(tmp_path, trial={"cpus_per_worker": 2}), nodes)  # three are free, but on three nodes


def test_run_that_finds_no_place_prunes_no_candidate_and_can_be_resumed(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, max_concurrent=1, trial={"cpus_per_worker": 2})  # a worker fits on one node only
    directory = RunDirectory.create(config, "run")
    monkeypatch.setattr(placement, "_TIMEOUT", 10)
    taken: list[Any] = []

    def take_a_core_during_the_race() -> None:
        while not directory.reports():
            time.sleep(0.1)
        large = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU") == 2)
        taken.append(take_a_core(large))  # as soon as the first candidate gives it back

    other = threading.Thread(target=take_a_core_during_the_race, daemon=True)
    other.start()
    with pytest.raises(PlacementError) as caught:
        Experiment(config, address=address).run(directory, Console(file=io.StringIO()))
    other.join()
    assert taken
    for part in ("cannot place 1 x (2 CPU) after 1", ": 1 CPU cores, 0 GPUs, ", f"run --resume {directory.path}"):
        assert part in str(caught.value)
    assert reached(directory) == [("16", samples) for samples in (128, 256, 384, 512)]
    assert not [entry for entry in directory.decisions() if entry["state"] == "pruned"]

    # What took the core has ended with the job; on the same cluster the run is resumed and finishes.
    result = Experiment(config, address=address).run(directory, Console(file=io.StringIO()))
    assert reached(directory)[:4] == [("16", samples) for samples in (128, 256, 384, 512)]
    assert sorted(entry["state"] for entry in directory.decisions() if entry["state"] in ("won", "pruned")) == [
        "pruned",
        "won",
    ]
    assert result["samples_seen"] == 2048


def held_by_others(_: dict[str, Any]) -> None:
    raise MemoryTakenError("out of memory: other processes hold the rest")


def test_lack_of_memory_stops_the_run_without_pruning(address: str, tmp_path: Path) -> None:
    with joined(address):
        scheduler = LossExtrapolationScheduler("loss", "min", budget=100, window=50)
        tuner = tune.Tuner(
            tune.with_resources(held_by_others, {"CPU": 0, "memory": 1 << 20}),
            param_space={"candidate": tune.grid_search(["16", "32"])},
            tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
            run_config=tune.RunConfig(
                name="taken",
                storage_path=str(tmp_path),
                callbacks=[placement.PlacementWatch()],
                failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
        with pytest.raises(PlacementError, match="batch size 16: out of memory: other processes hold the rest"):
            tuner.fit()
        assert not scheduler.race.failures()


def reached(directory: RunDirectory) -> list[tuple[str, int]]:
    return [(key, report.samples_seen) for key, reports in directory.reports().items() for report in reports]
