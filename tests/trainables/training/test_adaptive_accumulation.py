"""Tests adaptive accumulation and sample weights in real runs: exact, equal on all workers, and resumable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainables.runs import (
    CPU,
    assert_equal,
    count_synchronisations,
    data,
    double_simclr,
    run,
    small,
    without_clocks,
)
from tests.trainables.workers import Workers
from trainables.batches import SampleStream, stratified_order
from trainables.batches.scores import HistogramScore, batch_score
from trainables.data import TrainingData
from trainables.settings import TrainSettings
from trainables.simclr import Augment, nt_xent
from trainables.training.loader import Loader
from trainables.training.run import Run

IMAGES = 40
#: Imbalanced, so that batches have different scores.
STRATA = np.repeat([0, 1, 2], [20, 14, 6])


def pictures() -> TrainingData:
    generator = np.random.default_rng(0)
    return replace(
        data(IMAGES),
        strata=STRATA,
        features=(STRATA[:, None] + generator.normal(size=(IMAGES, 3))).astype(np.float32),
        centrality=generator.permutation(np.linspace(0, 1, IMAGES)).astype(np.float32),
    )


def informed(**chosen: Any) -> dict[str, Any]:
    return {"until": "information", "alpha": 2.2, **chosen}


def settings_of(information: dict[str, Any] | None, weights: dict[str, Any] | None, **chosen: Any) -> dict[str, Any]:
    settings = small(batch_size=9, budget=200, evaluate_every=40, information=information, **chosen)
    return settings | ({} if weights is None else {"sample_weights": weights})


def second_update(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's second update and its number of synchronisations, in float64."""
    with patch("trainables.training.state.SimCLR", double_simclr):
        training = Run(TrainSettings.model_validate(settings), pictures(), CPU)
    training.state.model.eval()  # otherwise batch norms would use the statistics of micro-batches
    training.train_until(1)
    start, synchronised = training.state.samples, count_synchronisations(training)
    before = {name: value.clone() for name, value in training.state.model.state_dict().items()}
    training.train_until(start + 1)
    gradients = {name: p.grad.clone() for name, p in training.state.model.named_parameters() if p.grad is not None}
    return {
        "start": start,
        "stop": training.state.samples,
        "before": before,
        "loss": training.evaluate().train_loss,
        "gradients": gradients,
        "synchronised": synchronised[0],
    }


def percentile_by_hand(z: Tensor, strata: Sequence[int]) -> Tensor:
    """Computes each image's rank by distance to the mean of its cluster in the batch."""
    ranks = torch.zeros(len(z), dtype=torch.float64)
    for cluster in set(strata):
        own = [i for i, stratum in enumerate(strata) if stratum == cluster]
        centre = F.normalize(z[own].mean(0), dim=0)
        for rank, i in enumerate(sorted(own, key=lambda i: -float(z[i] @ centre))):
            ranks[i] = rank / (len(own) - 1) if len(own) > 2 else 0.5
    return ranks


def weights_by_hand(settings: dict[str, Any], z: Tensor, indices: Any, progress: float) -> Tensor:
    chosen = settings.get("sample_weights", {"mode": "none"})
    if chosen["mode"] == "none":
        return torch.ones(len(indices), dtype=torch.float64)
    if chosen["mode"] == "static":
        q = torch.tensor(np.asarray(pictures().centrality)[indices])
    else:
        q = percentile_by_hand(z, STRATA[indices].tolist())
    weights = 1 + chosen["strength"] * (1 - 2 * progress) * (1 - 2 * q.double())
    return weights / weights.mean()


def by_hand(settings: dict[str, Any], recorded: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """Computes loss and gradient of that update in one process: sum(score * gradient) / sum(score)."""
    chosen = TrainSettings.model_validate(settings)
    size = chosen.batch_size
    loader = Loader(pictures(), Augment(12, chosen.augment), chosen.seed, CPU)
    assert chosen.information is not None
    score = batch_score(chosen.information.score, STRATA, pictures().features, chosen.seed)
    positions = range(recorded["start"], recorded["stop"], size)
    scores = np.array([score(loader.indices(position, size)) for position in positions])
    progress = (recorded["start"] + recorded["stop"]) / 2 / chosen.budget
    model = double_simclr(chosen.encoder, 3)
    model.load_state_dict(recorded["before"])
    model.eval()
    views = [model(loader.batch(position, size).views()).chunk(2) for position in positions]
    indices = [loader.indices(position, size) for position in positions]
    if chosen.information.negatives == "shared":
        views = [tuple(torch.cat(z) for z in zip(*views, strict=True))]
        indices = [np.concatenate(indices)]
    loss = torch.zeros((), dtype=torch.float64)
    for number, ((z_a, z_b), own) in enumerate(zip(views, indices, strict=True)):
        z = F.normalize(F.normalize(z_a) + F.normalize(z_b)).detach()
        weights = weights_by_hand(settings, z, own, progress)
        share = 1.0
        if len(views) == 1:
            weights = weights * torch.tensor(np.repeat(scores, size))
        else:
            share = scores[number] / scores.sum()
        images = torch.from_numpy(own)
        assert (
            len(set(own.tolist())) < len(own) or chosen.information.negatives == "plain"
        )  # it crosses the end of an epoch
        loss = loss + share * nt_xent(z_a, z_b, chosen.temperature, weights=weights, images=images)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


PLAIN, SHARED = informed(), informed(negatives="shared")
STATIC = {"mode": "static", "strength": 0.7}
BY_BATCH = {"mode": "batch", "strength": 0.7, "centres": "strata"}


EXACT = {
    "plain": settings_of(PLAIN, None),
    "static": settings_of(PLAIN, STATIC),
    "shared-batch": settings_of(SHARED, BY_BATCH),
    "cut": settings_of(PLAIN, None, micro_batch=2),
    "shared": settings_of(SHARED, None),
    "shared-static-cut": settings_of(SHARED, STATIC, micro_batch=3),
    "batch": settings_of(PLAIN, BY_BATCH),
    "frechet": settings_of(informed(score="frechet"), None),
    "mmd": settings_of(informed(score="mmd"), None),
}


@pytest.mark.parametrize(
    ("name", "world"),
    [(name, world) for name in ("plain", "static", "shared-batch") for world in (1, 2, 4)]
    + [(name, 4) for name in ("cut", "shared", "shared-static-cut", "batch", "frechet", "mmd")],
)
def test_the_gradient_is_the_score_weighted_mean(workers: Workers, name: str, world: int) -> None:
    settings = EXACT[name]
    parts = workers.run(world, second_update, settings) if world > 1 else [second_update(settings)]
    for part in parts:
        assert part["stop"] - part["start"] > 2 * settings["batch_size"]
        loss, gradients = by_hand(settings, part)
        tolerance = 1e-6 if "sample_weights" in settings else 1e-10  # these are float32
        assert part["loss"] == pytest.approx(loss, abs=tolerance)
        torch.testing.assert_close(part["gradients"], gradients, rtol=0, atol=tolerance)
        assert part["synchronised"] == (world > 1)


@pytest.mark.parametrize("information", [PLAIN, SHARED, None], ids=["plain", "shared", "none"])
@pytest.mark.parametrize(
    "weights", [None, {"mode": "batch", "strength": 1.0, "clusters": 3}], ids=["alike", "by k-means"]
)
def test_one_two_and_four_workers_make_the_same_update(
    workers: Workers, information: dict[str, Any] | None, weights: dict[str, Any] | None
) -> None:
    settings = settings_of(information, weights)
    alone = second_update(settings)
    for world in (2, 4):
        for part in workers.run(world, second_update, settings):
            assert (part["start"], part["stop"]) == (alone["start"], alone["stop"])
            torch.testing.assert_close(part["gradients"], alone["gradients"], rtol=0, atol=1e-9)


def test_shared_negatives_are_added() -> None:
    """At a high temperature the loss is near chance level: ln(2 * 9 - 1), and more with shared negatives."""
    for information, negatives in ((PLAIN, 9), (SHARED, 27)):
        reports = run(settings_of(information, None, temperature=5.0), data=pictures())
        assert reports.column("train_loss")[0] == pytest.approx(math.log(2 * negatives - 1), abs=0.2)
        assert abs(reports.column("train_loss_above_chance")[0]) < 0.2


def test_reports_contain_the_metrics_of_adaptive_accumulation() -> None:
    settings = settings_of(informed(alpha=2.5), None)
    reports = run(settings, data=pictures())
    score, stream, position = HistogramScore(STRATA), SampleStream(IMAGES, settings["seed"]), 0
    for report in reports.metrics:
        counts, scores = [], []
        while position < report["samples_seen"]:
            own: list[float] = []
            while sum(own) < 0.95 * 2.5 and position < settings["budget"]:
                own.append(score(stream.take(position, 9)))
                position += 9
            counts.append(len(own))
            scores += own
        assert report["batches_per_update"] == pytest.approx(np.mean(counts))
        assert report["images_per_update"] == pytest.approx(9 * np.mean(counts))
        assert report["information"] == pytest.approx(np.mean(scores))
        assert report["least_information"] == pytest.approx(min(scores))
        assert report["informed"] == (1.0 if report is not reports.metrics[-1] else pytest.approx(report["informed"]))
        assert report["alpha"] == 2.5
    assert "information" not in run(small()).metrics[0]
    assert run(small(accumulation=2)).column("images_per_update") == [32.0] * 4


def test_stratified_batches_have_higher_scores() -> None:
    shuffled = run(settings_of(PLAIN, None), data=pictures())
    order = partial(stratified_order, STRATA, 0)
    stratified = run(settings_of(PLAIN, None), data=replace(pictures(), epoch_order=order))
    assert np.mean(stratified.column("information")) > np.mean(shuffled.column("information")) + 0.03


@pytest.mark.parametrize("stopped", [0, 2])
@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": {"name": "lars", "learning_rate": 5.0}},
        {"information": informed(score="frechet", remainder="apply")},
        {"information": informed(score="mmd", negatives="shared"), "micro_batch": 3},
        {"information": informed(alpha="auto", images_per_update=20), "sample_weights": STATIC},
        {"sample_weights": {"mode": "batch", "schedule": "cosine"}},
    ],
    ids="-".join,
)
def test_resumes_bit_for_bit(tmp_path: Path, stopped: int, chosen: dict[str, Any]) -> None:
    settings = settings_of(PLAIN, None) | chosen
    whole = run(settings, tmp_path / "whole", data=pictures())
    rest = run(settings, tmp_path / "rest", resume_from=whole.folder(stopped), data=pictures())
    for here, there in zip(rest.metrics, whole.metrics[stopped + 1 :], strict=True):
        assert_equal(without_clocks(here), without_clocks(there))
    assert_equal(without_clocks(rest.state()), without_clocks(whole.state()))


def test_the_learning_rate_scales_with_the_images_of_each_update() -> None:
    settings = TrainSettings.model_validate(
        settings_of(PLAIN, None, optimizer={"name": "lars", "lr_scaling": "linear", "learning_rate": 1.0})
    )
    training = Run(settings, pictures(), CPU)
    before = 0
    for _ in range(6):
        assert training.step.accumulation is not None
        images = 9 * len(training.step.accumulation.at(training.state.samples, 9).weights)
        progress = (training.state.samples + images / 2) / 200
        if before not in (0, images):
            momentum = [s["momentum_buffer"].clone() for s in training.state.optimizer.state.values()]
            training.state.rescale_momentum(images)
            for buffer, state in zip(momentum, training.state.optimizer.state.values(), strict=True):
                torch.testing.assert_close(state["momentum_buffer"], buffer * images / before)
        training.train_until(training.state.samples + 1)
        assert training.step.learning_rate == settings.optimizer.learning_rate_at(min(progress, 1), images)
        before = images


def test_weights_shift_from_centre_to_edge_across_batch_sizes(tmp_path: Path) -> None:
    """The extremes in reports follow from centrality and progress."""
    centrality = np.asarray(pictures().centrality)
    first = run(small(batch_size=10, sample_weights={"mode": "static", "strength": 1.0}), tmp_path, data=pictures())
    settings = small(batch_size=16, sample_weights={"mode": "static", "strength": 1.0})
    second = run(settings, resume_from=first.folder(0), data=pictures())
    for report, batch_size in [(first.metrics[0], 10), *((later, 16) for later in second.metrics)]:
        tilt = 1 - 2 * (report["samples_seen"] - batch_size / 2) / 128
        most, least = report["weighted"]["most"], report["weighted"]["least"]
        assert len(most) == len(least) == min(6, batch_size // 2)
        assert not {index for index, _ in most} & {index for index, _ in least}
        if tilt == 0:
            assert {weight for _, weight in most + least} == {1.0}
        else:
            gap = float(centrality[least[0][0]] - centrality[most[0][0]])
            assert gap * tilt > 0
            assert most[0][1] - least[0][1] == pytest.approx(2 * tilt * gap, rel=1e-5)
    assert "weighted" not in run(small()).metrics[0]


def test_zero_strength_equals_a_run_without_weights(tmp_path: Path) -> None:
    plain = run(small(), tmp_path / "plain", data=pictures())
    weighted = run(small(sample_weights={"mode": "batch", "strength": 0.0}), tmp_path / "weighted", data=pictures())
    assert_equal(plain.state()["model"], weighted.state()["model"])


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({"information": informed()}, "score histogram needs the data's strata"),
        ({"information": informed(score="mmd")}, "score mmd needs the data's features"),
        ({"sample_weights": STATIC}, "mode = static needs the data's centrality"),
        ({"sample_weights": BY_BATCH}, "centres = strata needs the data's strata"),
        ({"information": informed(), "accumulation": 2}, "16x2 accumulates 2 batches per update"),
        ({"information": informed(alpha="auto", images_per_update=8)}, "images_per_update = 8: up to 64"),
        ({"information": informed(alpha=60.0), "budget": 10_000}, "alpha = 60 is never reached"),
    ],
)
def test_invalid_settings_are_refused_before_training(chosen: dict[str, Any], complaint: str) -> None:
    known = pictures() if "never" in complaint else data()
    with pytest.raises(ValueError, match=complaint):
        run(small(**chosen), data=known)


@pytest.mark.parametrize(
    ("known", "complaint"),
    [
        ({"strata": STRATA[1:]}, "strata has 39 entries, but there are 40 images"),
        ({"features": np.full((40, 2), np.nan, np.float32)}, "features must be finite"),
        ({"centrality": np.linspace(0, 2, 40)}, "centrality from 0 to 2 must be within 0 to 1"),
    ],
)
def test_strata_features_and_centrality_must_match_the_images(known: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(data(IMAGES), **known)


def test_small_batches_have_fewer_clusters_so_that_weights_differ() -> None:
    weights = {"mode": "batch", "strength": 1.0}  # eight clusters of a batch of ten would hold one image or two
    for report in run(small(batch_size=10, sample_weights=weights)).metrics[:1]:
        assert report["weighted"]["most"][0][1] > 1.3
        assert report["weighted"]["least"][0][1] < 0.7
