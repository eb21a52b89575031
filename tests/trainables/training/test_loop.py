from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from tests.trainables.images import smooth_images
from tests.trainables.runs import CPU, UNCHANGED, Reports, assert_equal, data, run, small, without_clocks
from tests.trainables.workers import Workers
from trainables.batches import SampleStream, shard_rows
from trainables.data import TrainingData
from trainables.evaluation.reference import ReferenceSet
from trainables.settings import EncoderSettings, TrainSettings
from trainables.simclr import Augment, SimCLR, nt_xent
from trainables.training.checkpoint import CHECKPOINT_FILE, CheckpointError
from trainables.training.data_parallel import data_parallel
from trainables.training.loop import initial_encoder, load_ema_encoder, train
from trainables.training.precision import supports_bfloat16
from trainables.training.run import Run

# --- learning ---


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "sgd"}, {"name": "lars", "learning_rate": 20.0}, {"name": "adamw", "learning_rate": 0.01}],
    ids=str,
)
def test_learns(optimizer: dict[str, Any]) -> None:
    pictures = TrainingData(smooth_images(256), smooth_images(64, seed=1))
    settings = TrainSettings.model_validate(
        small(
            encoder={"width": 8, "depth": 1},
            augment="digits",
            optimizer=optimizer,
            batch_size=32,
            budget=1600,
            evaluate_every=800,
            seed=0,
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = SimCLR(settings.encoder, 3)
    references = ReferenceSet(pictures.reference, Augment(16, "digits"), temperature=0.5, seed=0, device=CPU)
    before = references.measure(untrained)["reference_loss"]
    reports = Reports()
    train(settings, pictures, reports, device=CPU)
    middle, end = reports.column("reference_loss")
    assert middle < before - 0.15
    assert end < before - 0.2
    first_half, second_half = reports.column("train_loss_above_chance")
    assert second_half < first_half < -0.1


def test_bfloat16_trains_as_well_with_float32_weights(tmp_path: Path) -> None:
    exact = run(small())
    rounded = run(small(precision="bfloat16"), tmp_path)
    assert rounded.column("train_loss") != exact.column("train_loss")
    assert rounded.column("reference_loss") == pytest.approx(exact.column("reference_loss"), abs=0.05)
    weights = {**rounded.state()["model"], **rounded.state()["ema"]}
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("capability", "fast"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_gpus_compute_in_bfloat16_since_ampere(
    capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert supports_bfloat16(torch.device("cuda", 1)) == fast


def test_other_accelerators_compute_in_float32() -> None:
    assert not supports_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("channels", [1, 3])
def test_returns_the_ema_encoder_of_the_last_checkpoint(channels: int, tmp_path: Path) -> None:
    settings, pictures = TrainSettings.model_validate(small()), data(channels=channels)
    pictures.images.flags.writeable = pictures.reference.flags.writeable = False  # as in Ray's object store
    reports = Reports(tmp_path)
    encoder = train(settings, pictures, reports, device=CPU)
    loaded = load_ema_encoder(settings, channels, 12, reports.folder(-1))
    assert not any(module.training for module in [*encoder.modules(), *loaded.modules()])
    images = torch.tensor(smooth_images(6, 12, channels, seed=4))
    assert_equal(dict(encoder.state_dict()), dict(loaded.state_dict()))
    torch.testing.assert_close(encoder.embed(images), loaded.embed(images), rtol=0, atol=1e-5)  # memory formats differ
    last = SimCLR(settings.encoder, channels)
    last.load_state_dict(reports.state()["model"])
    assert float((encoder.embed(images) - last.encoder.eval().embed(images)).abs().max()) > 1e-3


def test_the_reference_loss_is_measured_with_ema_weights(tmp_path: Path) -> None:
    reports = run(small(), tmp_path)
    model = SimCLR(TrainSettings.model_validate(small()).encoder, 3)
    model.load_state_dict(reports.state()["ema"])
    references = ReferenceSet(data().reference, Augment(12), temperature=0.5, seed=3, device=CPU)
    again = references.measure(model)
    assert {name: reports.metrics[-1][name] for name in again} == again


def test_the_initial_encoder_equals_the_untrained_one(tmp_path: Path) -> None:
    """Compares with a run of one step whose learning rate is nearly 0."""
    settings = TrainSettings.model_validate(
        small(budget=16, evaluate_every=16, optimizer={"learning_rate": 1e-30, "weight_decay": 0})
    )
    untrained = initial_encoder(settings, data())
    encoder = train(settings, data(), Reports(), device=CPU)
    assert not any(module.training for module in untrained.modules())
    torch.testing.assert_close(dict(untrained.state_dict()), dict(encoder.state_dict()), rtol=0, atol=1e-12)


def test_the_random_encoder_does_not_depend_on_initial_weights(tmp_path: Path) -> None:
    settings = small()
    random = initial_encoder(TrainSettings.model_validate(settings), data(), pretrained=False)
    changed = {name: value.contiguous() for name, value in random.state_dict().items()}
    changed |= {name: torch.full(value.shape, 0.5) for name, value in random.named_parameters()}
    file = tmp_path / "weights.safetensors"
    save_file(changed, file)
    settings["encoder"] |= {"weights": str(file)}
    pretrained = TrainSettings.model_validate(settings)
    assert_equal(dict(initial_encoder(pretrained, data(), pretrained=False).state_dict()), dict(random.state_dict()))
    loaded = dict(initial_encoder(pretrained, data()).named_parameters())
    assert all((value == 0.5).all() for value in loaded.values())


# --- reports ---


@pytest.mark.parametrize(
    ("batch_size", "every", "budget", "expected"),
    [
        (16, 32, 96, [32, 64, 96]),
        (16, 40, 100, [48, 80, 112]),  # 40, 80 and the end, each at the first step that reaches it
        (7, 20, 50, [21, 42, 56]),
        (30, 10, 100, [30, 60, 90, 120]),  # the step is longer than the grid
        (15, 10, 50, [15, 30, 45, 60]),
        (16, 1000, 40, [48]),
        (40, 8, 8, [40]),
    ],
)
def test_reports_at_multiples_of_evaluate_every(batch_size: int, every: int, budget: int, expected: list[int]) -> None:
    reports = run(small(batch_size=batch_size, evaluate_every=every, budget=budget))
    assert reports.column("samples_seen") == expected
    assert reports.column("progress") == pytest.approx([min(samples / budget, 1) for samples in expected])
    assert reports.column("batch_size") == [batch_size] * len(expected)


def test_reports_the_documented_metrics() -> None:
    settings = TrainSettings.model_validate(small())
    reports = run(small())
    for metrics in reports.metrics:
        assert metrics["workers"] == 1
        assert metrics["train_loss_above_chance"] == pytest.approx(metrics["train_loss"] - math.log(31))
        middle_of_last_step = (metrics["samples_seen"] - 8) / 128
        assert metrics["learning_rate"] == settings.optimizer.learning_rate_at(middle_of_last_step, 16)
        assert metrics["images_per_second"] > 0
        assert all(math.isfinite(metrics[name]) for name in ("reference_loss", "alignment", "uniformity", "rankme"))
    seconds = reports.column("seconds")
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3]
    rates = [32 / (now - before) for before, now in zip([0, *seconds], seconds, strict=False)]
    assert reports.column("images_per_second") == pytest.approx(rates)


def test_evaluating_does_not_change_the_run(tmp_path: Path) -> None:
    often = run(small(evaluate_every=16), tmp_path / "often")
    seldom = run(small(evaluate_every=64), tmp_path / "seldom")
    assert_equal(without_clocks(often.state()), without_clocks(seldom.state()))
    assert often.metrics[-1]["reference_loss"] == seldom.metrics[-1]["reference_loss"]
    means = np.array(often.column("train_loss")).reshape(2, 4).mean(1)  # all losses since the last report
    assert seldom.column("train_loss") == pytest.approx(means.tolist(), abs=1e-5)


def test_the_loss_of_the_first_step_is_nt_xent_of_the_first_batch() -> None:
    """Uses one batch of all images without augmentation, whose order does not matter."""
    settings = TrainSettings.model_validate(
        small(batch_size=40, budget=40, evaluate_every=40, temperature=0.2, augment=UNCHANGED)
    )
    reports = run(settings.model_dump())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SimCLR(settings.encoder, 3)
    views = torch.tensor(data().images).float() / 255
    with torch.no_grad():
        z_a, z_b = model(views.repeat(2, 1, 1, 1)).chunk(2)
    assert reports.metrics[0]["train_loss"] == pytest.approx(float(nt_xent(z_a, z_b, 0.2)), abs=1e-4)


def test_exceptions_of_report_end_the_run() -> None:
    class StopRunError(Exception):
        pass

    calls = []

    def report(metrics: dict[str, Any], checkpoint: str | None = None) -> None:
        calls.append(metrics["samples_seen"])
        raise StopRunError

    with pytest.raises(StopRunError):
        train(small(), data(), report, device=CPU)
    assert calls == [32]


def test_a_checkpoint_exists_during_the_report_only() -> None:
    seen = []

    def report(metrics: dict[str, Any], checkpoint: str | None = None) -> None:
        assert checkpoint is not None
        assert (Path(checkpoint) / CHECKPOINT_FILE).is_file()
        seen.append(checkpoint)

    train(small(), data(), report, device=CPU)
    assert len(set(seen)) == 4
    assert not any(Path(checkpoint).exists() for checkpoint in seen)


def test_checkpoints_load_with_weights_only(tmp_path: Path) -> None:
    reports = run(small(), tmp_path)
    states = [reports.state(number) for number in range(4)]  # loads with weights_only
    assert [state["samples_seen"] for state in states] == [32, 64, 96, 128]
    weights = [state["model"]["encoder.stem.0.weight"] for state in states]
    assert not any(torch.equal(one, following) for one, following in pairwise(weights))


# --- what the network sees ---


def views_of(pictures: TrainingData, steps: int, **chosen: Any) -> list[Tensor]:
    """Returns the network's input of every step: first views, then second views [2 batch, C, H, W]."""
    settings = TrainSettings.model_validate(small(**chosen))
    training, seen = Run(settings, pictures, CPU), []
    training.state.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    training.train_until(steps * settings.batch_size)
    return seen


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("batch_size", [16, 15, 40])
def test_views_are_paired_and_ordered_by_the_seeds_stream(batch_size: int, seed: int) -> None:
    seen = views_of(data(), 5, batch_size=batch_size, seed=seed, augment=UNCHANGED)
    order = SampleStream(40, seed).take(0, 5 * batch_size)
    expected = torch.tensor(data().images[order]).float() / 255
    for views, images in zip(seen, expected.split(batch_size), strict=True):
        torch.testing.assert_close(views, torch.cat([images, images]), rtol=0, atol=1e-5)


def test_augmentation_differs_for_every_view_step_and_seed() -> None:
    same = TrainingData(smooth_images(1, 12).repeat(40, axis=0), data().reference)  # only the augmentation differs
    seen = [view for seed in (3, 4) for view in views_of(same, 4, seed=seed, augment="digits")]
    views = torch.cat(seen).flatten(1)
    assert len(views) == 8 * 2 * 16
    assert len(torch.unique(views, dim=0)) == len(views)


# --- determinism ---


@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": {"name": "sgd"}},
        {"optimizer": {"name": "lars", "learning_rate": 5.0}},
        {"optimizer": {"name": "adamw", "learning_rate": 0.01}},
        {
            "batch_size": 15,
            "budget": 150,
            "evaluate_every": 40,
        },  # ends of epochs, reports and the budget are within steps
        {"micro_batch": 5},
        {"loss": "dcl"},
    ],
    ids=str,
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(chosen: dict[str, Any], tmp_path: Path) -> None:
    settings = small(**chosen)
    whole = run(settings, tmp_path / "whole")
    assert len(whole.metrics) == 4
    for stopped in (0, 2):
        rest = run(settings, tmp_path / f"after-{stopped}", whole.folder(stopped))
        assert len(rest.metrics) == 3 - stopped
        for resumed, uninterrupted in zip(rest.metrics, whole.metrics[stopped + 1 :], strict=True):
            assert_equal(without_clocks(resumed), without_clocks(uninterrupted))
        assert_equal(without_clocks(rest.state()), without_clocks(whole.state()))
        assert rest.metrics[0]["seconds"] > whole.metrics[stopped]["seconds"]


def test_resuming_a_finished_run_returns_its_encoder(tmp_path: Path) -> None:
    whole = Reports(tmp_path)
    encoder = train(small(), data(), whole, device=CPU)
    rest = Reports()
    again = train(small(), data(), rest, whole.folder(-1), device=CPU)
    assert rest.metrics == []
    assert_equal(dict(again.state_dict()), dict(encoder.state_dict()))


def test_resumes_with_another_batch_size_on_the_same_grid(tmp_path: Path) -> None:
    first = run(small(), tmp_path)
    rest = run(small(batch_size=20), resume_from=first.folder(1))
    assert rest.column("samples_seen") == [104, 144]
    assert rest.column("batch_size") == [20, 20]
    settings = TrainSettings.model_validate(small(batch_size=20))
    assert rest.metrics[0]["learning_rate"] == settings.optimizer.learning_rate_at(94 / 128, 20)


def test_a_resume_with_more_memory_keeps_the_micro_batch_and_one_with_another_batch_size_does_not(
    tmp_path: Path,
) -> None:
    first = run(small(micro_batch=6), tmp_path)
    assert run(small(), resume_from=first.folder(1)).column("micro_batch") == [6, 6]
    assert run(small(batch_size=20), resume_from=first.folder(1)).column("micro_batch") == [20, 20]


def test_lars_rescales_its_momentum_to_another_batch_size(tmp_path: Path) -> None:
    optimizer = {"name": "lars", "learning_rate": 5.0, "lr_scaling": "linear"}
    first = run(small(optimizer=optimizer), tmp_path)
    training = Run(TrainSettings.model_validate(small(optimizer=optimizer, batch_size=24)), data(), CPU)
    training.load(first.folder(1))
    before = first.state(1)["optimizer"]["state"]
    after = training.state.optimizer.state_dict()["state"]
    assert len(before) > 0
    for key, state in before.items():
        torch.testing.assert_close(after[key]["momentum_buffer"], 1.5 * state["momentum_buffer"])


# --- losses and micro-batches ---


def test_losses_differ_and_have_their_own_chance_level() -> None:
    ours, other = run(small(loss="nt_xent")), run(small(loss="dcl"))
    for reports, negatives in ((ours, 31), (other, 30)):
        for loss, above in zip(reports.column("train_loss"), reports.column("train_loss_above_chance"), strict=True):
            assert above == pytest.approx(loss - math.log(negatives))
    assert other.column("train_loss")[0] < ours.column("train_loss")[0]
    assert other.column("reference_loss") != ours.column("reference_loss")


def test_a_batch_split_into_micro_batches_keeps_all_negatives() -> None:
    """The initial loss of the whole batch is near ln(2 * 16 - 1), not near ln(2 * 4 - 1)."""
    reports = run(small(micro_batch=4, temperature=5.0))
    assert reports.column("micro_batch") == [4] * 4
    assert reports.column("train_loss")[0] == pytest.approx(math.log(31), abs=0.2)


def test_a_micro_batch_of_the_whole_batch_equals_the_direct_step(tmp_path: Path) -> None:
    direct, cut = run(small(), tmp_path / "direct"), run(small(micro_batch=16), tmp_path / "cut")
    assert_equal(without_clocks(cut.state()) | {"micro_batch": 0}, without_clocks(direct.state()) | {"micro_batch": 0})


def indices_seen(stages: list[tuple[int, int, int, int]], number: int, folder: str) -> list[list[int]]:
    """Trains a stage from the last stage's checkpoint in a worker. Returns the images of every batch."""
    workers, batch_size, accumulation, steps = stages[number]
    values = np.arange(40, dtype=np.uint8)  # every image has its own colour
    images = np.broadcast_to(values[:, None, None, None], (40, 3, 12, 12)).copy()
    settings = TrainSettings.model_validate(
        small(batch_size=batch_size, accumulation=accumulation, augment=UNCHANGED, budget=1000)
    )
    training, seen = Run(settings, TrainingData(images, images[:16]), CPU), []
    assert training.step.loader.world_size == workers
    if number:
        training.load(Path(folder) / str(number - 1))
    training.state.model.register_forward_pre_hook(
        lambda _, arguments: seen.append((arguments[0].chunk(2)[0][:, 0, 0, 0] * 255).round().int().tolist())
    )
    training.train_until(training.state.samples + steps * batch_size * accumulation)
    if training.step.loader.rank == 0:
        (Path(folder) / str(number)).mkdir()
        training.save(Path(folder) / str(number))
    return seen


def test_every_image_is_seen_once_per_epoch_across_batch_sizes_and_workers(workers: Workers, tmp_path: Path) -> None:
    # workers, batch size, accumulation, steps
    stages = [(1, 16, 1, 2), (2, 15, 1, 1), (4, 13, 1, 2), (2, 5, 3, 2), (2, 40, 1, 1), (1, 7, 1, 1), (4, 6, 2, 1)]
    order: list[int] = []
    for number, (count, batch_size, accumulation, steps) in enumerate(stages):
        seen = workers.run(count, indices_seen, stages, number, str(tmp_path))
        assert all(len(batches_of_one) == steps * accumulation for batches_of_one in seen)
        for batch in zip(*seen, strict=True):
            assert sum(map(len, batch)) == batch_size
            order += [index for part in batch for index in part]
    epochs = [order[start : start + 40] for start in range(0, len(order), 40)]
    assert len(order) == 162
    for epoch in epochs[:-1]:
        assert sorted(epoch) == list(range(40))
    assert len(set(epochs[-1])) == len(epochs[-1])


def test_the_result_depends_on_the_seed(tmp_path: Path) -> None:
    one, same, other = (run(small(seed=seed), tmp_path / str(n)) for n, seed in enumerate((3, 3, 4)))
    assert_equal(without_clocks(one.state()), without_clocks(same.state()))
    assert not torch.equal(one.state()["model"]["head.0.weight"], other.state()["model"]["head.0.weight"])
    assert one.column("reference_loss") != other.column("reference_loss")


def test_global_randomness_is_neither_used_nor_changed(tmp_path: Path) -> None:
    states = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
            states.append(run(small(), tmp_path / str(seed)).state())
            assert torch.equal(torch.get_rng_state(), before)
            np.testing.assert_array_equal(np.random.get_state()[1], before_numpy)  # type: ignore[index] # noqa: NPY002
    assert_equal(*map(without_clocks, states))


# --- refusals ---


@pytest.mark.parametrize(("batch_size", "allowed"), [(40, True), (41, False)])
def test_a_batch_larger_than_the_data_is_refused(batch_size: int, allowed: bool) -> None:
    reports = Reports()
    if allowed:
        train(small(batch_size=batch_size), data(40), reports, device=CPU)
    else:
        with pytest.raises(ValueError, match=r"41.*40"):
            train(small(batch_size=batch_size), data(40), reports, device=CPU)
    assert bool(reports.metrics) is allowed


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    reports = Reports()
    with pytest.raises(CheckpointError, match=str(tmp_path / "nowhere")):
        train(small(), data(), reports, tmp_path / "nowhere", device=CPU)
    with pytest.raises(CheckpointError, match=CHECKPOINT_FILE):
        train(small(), data(), reports, str(tmp_path), device=CPU)
    assert reports.metrics == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"batchsize": 16}, "batchsize"),
        ({"optimizer": {"lr": 0.1}}, "lr"),
        ({"encoder": {"widht": 4}}, "widht"),
        ({"augment": "naturall"}, "augment"),
        ({"batch_size": 1}, "batch_size"),
        ({"budget": 0}, "budget"),
        ({"temperature": 0.0}, "temperature"),
        ({"precision": "float16"}, "precision"),
    ],
    ids=str,
)
def test_refuses_invalid_settings(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        train(small(**wrong), data(), Reports(), device=CPU)


# --- several workers ---


def simclr_steps(views_a: Tensor, views_b: Tensor) -> dict[str, Any]:
    """Returns losses, gradients and statistics of three steps in float64, of all rows or of a worker's shard."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = EncoderSettings(width=8, depth=1, projection_hidden=16, projection_features=8)
        model = SimCLR(settings, views_a.shape[2]).double()
    parallel = data_parallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rows = shard_rows(views_a.shape[1], rank, world)
    losses, gradients = [], []
    for a, b in zip(views_a, views_b, strict=True):
        z_a, z_b = parallel(torch.cat([a[rows], b[rows]])).chunk(2)
        loss = nt_xent(z_a, z_b, 0.5)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    statistics = dict(model.named_buffers())
    return {"losses": losses, "gradients": gradients, "statistics": statistics}


@pytest.mark.parametrize(("world", "batch"), [(1, 12), (2, 12), (4, 12), (2, 13), (4, 13), (4, 4)])
def test_losses_and_gradients_are_exact_over_workers(workers: Workers, world: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(2, 3, batch, 3, 8, 8, generator=generator, dtype=torch.float64)
    expected = simclr_steps(*views)
    assert len(expected["gradients"][0]) == len(list(SimCLR(EncoderSettings(depth=1), 3).parameters()))
    for part in workers.run(world, simclr_steps, *views):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-10)


def reports_of_a_worker(settings: dict[str, Any], pictures: TrainingData) -> tuple[list[dict[str, Any]], list[Any]]:
    """Returns the reports and checkpoints of a worker."""
    metrics, states = [], []

    def report(values: dict[str, Any], checkpoint: str | None = None) -> None:
        metrics.append(values)
        states.append(checkpoint and torch.load(Path(checkpoint) / CHECKPOINT_FILE, weights_only=True))

    train(settings, pictures, report, device=CPU)
    return metrics, states


@pytest.mark.parametrize(("world", "batch_size"), [(2, 16), (2, 15), (4, 15)])
def test_a_run_does_not_depend_on_the_number_of_workers(
    workers: Workers, tmp_path: Path, world: int, batch_size: int
) -> None:
    # Rounding errors are near 1e-6, unless one changes the sign of a ReLU's input (seed 3, batch 15: 1e-3 afterwards).
    settings = small(batch_size=batch_size, budget=6 * batch_size, evaluate_every=2 * batch_size, seed=5)
    alone = run(settings, tmp_path)
    (metrics, states), *others = workers.run(world, reports_of_a_worker, settings, data())
    assert [values["workers"] for values in metrics] == [world] * 3
    for together, by_one in zip(metrics, alone.metrics, strict=True):
        for name in ("samples_seen", "progress", "learning_rate", "batch_size"):
            assert together[name] == by_one[name]
        for name in ("train_loss", "train_loss_above_chance", "reference_loss", "alignment", "uniformity"):
            assert together[name] == pytest.approx(by_one[name], abs=1e-4), name
    for number, state in enumerate(states):
        expected = alone.state(number)
        for part in ("model", "ema"):
            torch.testing.assert_close(state[part], expected[part], rtol=0, atol=2e-4)
    for reported, checkpoints in others:
        assert [values["samples_seen"] for values in reported] == alone.column("samples_seen")
        assert checkpoints == [None] * 3


def refusal_of_a_worker(settings: dict[str, Any], pictures: TrainingData) -> str:
    """Returns the error of a worker. All workers must raise, or others would wait for them."""
    try:
        train(settings, pictures, Reports(), device=CPU)
    except ValueError as error:
        return str(error)
    return "none"


def test_every_worker_needs_an_image_per_batch(workers: Workers) -> None:
    errors = workers.run(4, refusal_of_a_worker, small(batch_size=3), data())
    assert all("3" in error and "(4)" in error for error in errors), errors
