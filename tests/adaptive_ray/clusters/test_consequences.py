"""Settings and warnings derived from clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptive_ray.clusters.consequences import images_per_update, reduced_features, remarks
from adaptive_ray.clusters.counting import count_clusters
from adaptive_ray.config.loading import load_config
from adaptive_ray.errors import UserError
from schedulers import Candidate
from tests.adaptive_ray.clusters.mixtures import mixture
from trainables.batches import SampleStream
from trainables.batches.scores import HistogramScore

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"
FEATURES = mixture(5)[0]
FOUND = count_clusters(FEATURES, m=5)


def test_images_per_update_are_measured_in_epoch_order() -> None:
    informed = "accumulation={until: information, alpha: 1.8}"
    config = load_config(QUICKSTART, [informed, "candidates=[32, 64]", "budget.epochs=2"])
    images = images_per_update(config, FOUND, lambda: None)
    assert images is not None
    stream, score = SampleStream(len(FEATURES), config.seed), HistogramScore(FOUND.labels)
    for size in (32, 64):
        counts, position = [0], 0
        while position < len(FEATURES):
            total = 0.0
            while total < 0.95 * 1.8:
                total += score(stream.take(position, size))
                position += size
                counts[-1] += 1
            counts.append(0)
        assert images[Candidate(size)] == round(size * float(np.mean(counts[:-2])))


def test_images_per_update_are_none_without_features() -> None:
    assert images_per_update(load_config(QUICKSTART), FOUND, lambda: None) is None
    config = load_config(QUICKSTART, ["accumulation={until: information, alpha: 2, score: mmd}"])
    assert images_per_update(config, FOUND, lambda: None) is None
    assert images_per_update(config, FOUND, lambda: FEATURES.astype(np.float32)) is not None


def test_unreachable_alpha_is_an_error(tmp_path: Path) -> None:
    settings = ["accumulation={until: information, alpha: 64}", "candidates=[16]", "budget.epochs=90"]
    with pytest.raises(
        UserError, match="accumulation: alpha = 64 is never reached: the scores of 64 micro-batches of 16"
    ):
        images_per_update(load_config(QUICKSTART, settings), FOUND, lambda: None)


def test_reduced_features_keep_the_variance(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    wide = generator.normal(size=(300, 40)) * np.r_[np.full(3, 9.0), np.full(37, 0.1)]
    np.save(tmp_path / "features.npy", wide.astype(np.float16))
    reduced = reduced_features(tmp_path, 0)
    assert (reduced.shape, reduced.dtype) == ((300, 16), np.float32)
    assert reduced.var(0)[:3].sum() > 0.99 * reduced.var(0).sum()
    np.testing.assert_array_equal(reduced, reduced_features(tmp_path, 0))


@pytest.mark.parametrize(
    ("settings", "sizes", "said"),
    [
        (["sampling=balanced"], [90, 10], ["repeat images of small clusters, up to 5.0 times"]),
        (["sampling=balanced"], [50, 50], []),
        (["accumulation={until: information, alpha: 2}"], [100], ["every micro-batch scores 1"]),
        (["accumulation={until: information, alpha: 2}"], [60, 40], []),
        (["sample_weights={mode: batch, centres: strata}"], [10] * 30, ["batches of 64 have fewer than 3 images"]),
        (["sample_weights={mode: batch, centres: strata}"], [10] * 20, []),
        (["sample_weights={mode: batch}"], [10] * 30, []),
    ],
)
def test_remarks(settings: list[str], sizes: list[int], said: list[str]) -> None:
    lines = remarks(load_config(QUICKSTART, settings), sizes)
    assert len(lines) == len(said)
    for one, part in zip(lines, said, strict=True):
        assert part in one
