"""Embedding and the cluster service on a real cluster of several nodes."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from adaptive_ray.clusters.dataset_clusters import DatasetClusters
from adaptive_ray.clusters.embedding import channels_last, embed
from adaptive_ray.clusters.encoders import open_encoder
from adaptive_ray.clusters.feature_store import SHARD, FeatureFile
from adaptive_ray.clusters.service import ClusterService, start_service
from adaptive_ray.config.clusters import ClusterSettings
from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.cluster import joined
from tests.adaptive_ray.clusters.mixtures import mixture
from trainables.batches import CLUSTER_ORDERS, ImageFiles, SampleStream, stratified_order
from trainables.on_ray.worker import orders_of, told_by

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}  # the default ports may be in use
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": True, **ports})
    with joined(cluster.address):
        yield cluster
    cluster.shutdown()


def digits(n: int) -> np.ndarray:
    """Returns noise with a stripe in one of four places: uint8 [n, 1, 16, 16]."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 80, (n, 1, 16, 16), dtype=np.uint8)
    for index, place in enumerate(generator.integers(0, 4, n)):
        images[index, :, 4 * place : 4 * place + 4] += 160
    return images


def test_killed_actor_keeps_finished_shards(cluster: Cluster, tmp_path: Path) -> None:
    images = digits(7 * SHARD + 5)
    file, reported, killed = FeatureFile(tmp_path, len(images)), [], []

    def report(done: int, total: int, actors: int) -> None:
        reported.append((done, total, actors))
        if done >= 2 * SHARD and not killed:
            alive = list_actors(
                ray.get_runtime_context().gcs_address,
                filters=[("class_name", "=", "Embedder"), ("state", "=", "ALIVE")],
                detail=True,
            )
            killed.append(alive[0].pid)
            os.kill(alive[0].pid, signal.SIGKILL)

    embed(images, file, "pixels", 16, None, report)
    assert killed
    assert reported[0] == (0, len(images), 2)
    assert reported[-1][0] == len(images)
    sample = channels_last(images[:2000])
    expected = open_encoder("pixels", sample=sample, input_size=16)(channels_last(images))
    np.testing.assert_allclose(FeatureFile(tmp_path, len(images)).read(), expected, atol=1e-3)
    assert len((tmp_path / "shards.jsonl").read_text().splitlines()) == 8  # each shard once


def test_complete_features_start_no_actor(cluster: Cluster, tmp_path: Path) -> None:
    images = digits(60)
    settings = ClusterSettings(encoder="pixels", n_clusters=4)
    first = DatasetClusters(images, settings, tmp_path, seed=0)
    assert not first.complete
    first.embed(lambda *_: None)
    assert first.complete
    assert first.clustering().m == 4

    def reported(*_: int) -> None:
        raise AssertionError("embedded again")

    again = DatasetClusters(images, settings, tmp_path, seed=0)
    again.embed(reported)
    assert again.known is not None
    assert again.known.m == 4
    other = DatasetClusters(255 - images, settings, tmp_path, seed=0)
    assert not other.complete
    assert other.folder != again.folder


def test_corrupt_image_file_is_named(cluster: Cluster, tmp_path: Path) -> None:
    for number in range(2_010):  # more than the sample of the components
        Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(tmp_path / f"{number:04}.bmp")
    (tmp_path / "2005.bmp").write_bytes(b"no image")
    files = ImageFiles(sorted(tmp_path.glob("*.bmp")), 8)
    with pytest.raises(UserError, match=r"2005\.bmp cannot be decoded"):
        embed(files, FeatureFile(tmp_path / "features", len(files)), "pixels", 16, 1, lambda *_: None)


def test_service_is_the_same_after_its_node_died(cluster: Cluster, tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", mixture(5)[0])
    node = cluster.add_node(num_cpus=1, resources={"cluster_node": 1})
    cluster.wait_for_nodes()
    arguments = (tmp_path, ClusterSettings(encoder="pixels"), 3, "stratified")
    service, where = None, ""
    for number in range(30):  # actors without resources are placed on any node
        service = start_service(f"service-{number}", *arguments)
        assert len(np.unique(ray.get(service.strata.remote()))) == 5
        where = next(
            a.node_id
            for a in list_actors(ray.get_runtime_context().gcs_address, filters=[("name", "=", f"service-{number}")])
        )
        if where == node.node_id:
            break
    assert where == node.node_id
    same = start_service(f"service-{number}", *arguments)
    assert same._actor_id == service._actor_id

    strata = ray.get(service.strata.remote())
    orders = orders_of(service)
    before = {
        "reported": told_by(service, ["strata", "centrality", "features"]),
        "orders": [np.array(orders(epoch)) for epoch in range(3)],
    }
    for epoch, order in enumerate(before["orders"]):
        np.testing.assert_array_equal(order, stratified_order(strata, 3, epoch))

    cluster.remove_node(node)
    np.testing.assert_array_equal(ray.get(service.strata.remote()), strata)  # restarted
    assert (
        next(
            a.node_id
            for a in list_actors(ray.get_runtime_context().gcs_address, filters=[("name", "=", f"service-{number}")])
        )
        != where
    )
    for name, array in told_by(service, ["strata", "centrality", "features"]).items():
        np.testing.assert_array_equal(array, before["reported"][name])
        np.testing.assert_array_equal(array, ray.get(getattr(service, name).remote()))
        assert not array.flags.writeable  # in the object store
    for epoch, order in enumerate(before["orders"]):
        np.testing.assert_array_equal(orders(epoch), order)


class Counted:
    """Counts the calls to a service."""

    def __init__(self, service: Any) -> None:
        self.calls: list[int] = []
        self.epoch_order = self
        self._service = service

    def remote(self, epoch: int) -> Any:
        self.calls.append(epoch)
        return self._service.epoch_order.remote(epoch)


def test_worker_calls_once_per_epoch(cluster: Cluster, tmp_path: Path) -> None:
    n = 200_000
    rng = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", (rng.integers(0, 4, (n, 1)) * 9 + rng.normal(size=(n, 2))).astype(np.float16))
    service = start_service("large", tmp_path, ClusterSettings(method="silhouette", n_clusters=4), 0, "balanced")
    counted = Counted(service)
    stream = SampleStream(n, 0, orders_of(counted))
    for position in range(0, 2 * n, n // 8):
        stream.take(position, n // 8)
    assert counted.calls == [0, 1]
    first, second = (ray.get(ray.get(service.epoch_order.remote(0))[0]) for _ in range(2))
    assert not first.flags.writeable  # in the object store
    assert first.__array_interface__["data"] == second.__array_interface__["data"]  # shared memory


def test_next_order_is_computed_in_the_background(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "features.npy", mixture(3, n=100)[0])
    made: queue.Queue[int] = queue.Queue()

    def recorded(strata: Any, seed: int, epoch: int) -> Any:
        made.put(epoch)
        return stratified_order(strata, seed, epoch)

    monkeypatch.setitem(CLUSTER_ORDERS, "stratified", recorded)
    service = ClusterService(tmp_path, ClusterSettings(), 0, "stratified")
    service.epoch_order(0)
    assert [made.get(timeout=60) for _ in range(2)] == [0, 1]
    service.epoch_order(1)
    assert made.get(timeout=60) == 2
    service.epoch_order(40)
    assert [made.get(timeout=60) for _ in range(2)] == [40, 41]
    service.epoch_order(41)
    assert made.get(timeout=60) == 42
