"""Features on disk after interruptions and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptive_ray.clusters.clustering_store import clustering_file, clustering_of, stored_clustering
from adaptive_ray.clusters.counting import count_clusters
from adaptive_ray.clusters.feature_store import SHARD, FeatureFile
from adaptive_ray.config.clusters import ClusterSettings
from tests.adaptive_ray.clusters.mixtures import mixture

ROWS = 3 * SHARD + 10


def features(dimensions: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, dimensions)).astype(np.float16)


def filled(folder: Path, upto: int | None = None) -> FeatureFile:
    file = FeatureFile(folder, ROWS)
    for rows in file.shards[:upto]:
        file.write(rows, features()[rows])
    return file


def test_new_file_is_created_by_the_first_write(tmp_path: Path) -> None:
    file = FeatureFile(tmp_path / "new", ROWS)
    assert [rows.stop - rows.start for rows in file.missing()] == [SHARD] * 3 + [10]
    assert not (tmp_path / "new").exists()


def test_round_trip(tmp_path: Path) -> None:
    file = filled(tmp_path)
    assert file.missing() == []
    read = FeatureFile(tmp_path, ROWS).read()
    assert isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, features())


def test_interruption_keeps_finished_shards(tmp_path: Path) -> None:
    filled(tmp_path, upto=2)
    again = FeatureFile(tmp_path, ROWS)
    assert again.missing() == again.shards[2:]
    for rows in again.missing():
        again.write(rows, features()[rows])
    assert FeatureFile(tmp_path, ROWS).missing() == []


def test_damage_affects_one_shard(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / "features.npy").open("r+b") as file:
        file.seek(-20 * 16, 2)  # a row of the last full shard
        file.write(b"\xff" * 16)
    corrupt = FeatureFile(tmp_path, ROWS)
    assert corrupt.missing() == [corrupt.shards[2]]


def test_partial_checksum_line_affects_one_shard(tmp_path: Path) -> None:
    filled(tmp_path)
    log = tmp_path / "shards.jsonl"
    log.write_text(log.read_text()[:-9])
    torn = FeatureFile(tmp_path, ROWS)
    assert torn.missing() == torn.shards[3:]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY nonsense", b"x" * 1000])
def test_invalid_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path)
    (tmp_path / "features.npy").write_bytes(content)
    assert FeatureFile(tmp_path, ROWS).missing() == FeatureFile(tmp_path, ROWS).shards
    assert filled(tmp_path).missing() == []


def test_file_of_another_shape_is_replaced(tmp_path: Path) -> None:
    filled(tmp_path)
    other = FeatureFile(tmp_path, 20)
    assert len(other.missing()) == 1
    other.write(slice(0, 20), features(4)[:20])
    assert FeatureFile(tmp_path, 20).read().shape == (20, 4)


class TestClustering:
    def test_is_computed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.save(tmp_path / "features.npy", mixture(4)[0].astype(np.float16))
        found = clustering_of(tmp_path, ClusterSettings(), 0)

        def counted(*_: object, **__: object) -> None:
            raise AssertionError("counted again")

        monkeypatch.setattr("adaptive_ray.clusters.clustering_store.count_clusters", counted)
        again = clustering_of(tmp_path, ClusterSettings(), 0)
        assert again.m == found.m == 4
        for name in ("labels", "sizes", "centrality"):
            np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
        assert (again.scores, again.method, again.notes) == (found.scores, found.method, found.notes)
        assert again.stability == found.stability
        with pytest.raises(AssertionError, match="counted again"):
            clustering_of(tmp_path, ClusterSettings(), 1)

    @pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "older"])
    def test_corrupt_file_is_computed_again(self, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        np.save(tmp_path / "features.npy", mixture(3, n=200)[0])
        if damage == "older":
            monkeypatch.setattr("adaptive_ray.clusters.clustering_store._VERSION", 0)
        found = clustering_of(tmp_path, ClusterSettings(n_clusters=3), 0)
        monkeypatch.setattr("adaptive_ray.clusters.clustering_store._VERSION", 1)
        file = clustering_file(tmp_path, ClusterSettings(n_clusters=3), 0)
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        file.write_bytes({"empty": b"", "cut": content[:-300], "flipped": flipped, "older": content}[damage])
        assert stored_clustering(tmp_path, ClusterSettings(n_clusters=3), 0) is None
        np.testing.assert_array_equal(clustering_of(tmp_path, ClusterSettings(n_clusters=3), 0).labels, found.labels)
        assert stored_clustering(tmp_path, ClusterSettings(n_clusters=3), 0) is not None

    def test_equals_count_clusters(self, tmp_path: Path) -> None:
        np.save(tmp_path / "features.npy", mixture(3, n=200)[0])
        found, expected = (
            clustering_of(tmp_path, ClusterSettings(method="bic", n_clusters=5), 7),
            count_clusters(mixture(3, n=200)[0], "bic", 7, m=5),
        )
        np.testing.assert_array_equal(found.labels, expected.labels)
