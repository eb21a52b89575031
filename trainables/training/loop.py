"""Runs the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from trainables.data import TrainingData
from trainables.evaluation.reference import ReferenceSet
from trainables.settings import TrainSettings
from trainables.simclr.augment import Augment
from trainables.simclr.encoder import Encoder, SimCLR
from trainables.training.checkpoint import load_checkpoint, new_directory
from trainables.training.run import Run
from trainables.training.state import initial_model

#: The public interface for training without Ray.
__all__ = ["ReportFunction", "TrainSettings", "TrainingData", "initial_encoder", "load_ema_encoder", "train"]


class ReportFunction(Protocol):
    """Called by every worker after every evaluation. Only rank 0 passes all metrics and a checkpoint.

    ``metrics`` are the entries of a ``TrainingReport``; other ranks pass ``samples_seen`` only.
    ``checkpoint`` is a directory that is removed after the call, unless the call moves it. ``ray.train.report`` can be
    used if the directory is wrapped into a ``Checkpoint``.
    """

    def __call__(self, metrics: dict[str, Any], checkpoint: str | None = None) -> None: ...


def train(
    settings: TrainSettings | Mapping[str, Any],
    data: TrainingData,
    report: ReportFunction,
    resume_from: str | Path | None = None,
    *,
    device: torch.device | None = None,
    memory: int | None = None,
    checkpoints: Path | None = None,
    on_ready: Callable[[Run], TrainSettings | None] | None = None,
) -> Encoder:
    """Trains one candidate, or with ``settings.swap`` several in turn, until the budget is used.

    If torch.distributed is initialised, every batch is split into one shard per worker. Apart from rounding, the result
    does not depend on the number of workers: order, augmentation, batch statistics and gradients are the same.

    Args:
        settings: Settings of the run; a mapping is validated.
        data: Training and reference images.
        report: Receives metrics and checkpoints; see ``ReportFunction``. Exceptions that it raises end the run.
        resume_from: Checkpoint directory to resume from. On the CPU, a resumed run equals an uninterrupted one bit for
            bit.
        device: Device to train on; None: the current GPU, or the CPU without one.
        memory: Bytes that the run may use on the CPU; None: a fraction of the total memory, by this process's threads.
        checkpoints: Directory in which checkpoints are written; None: the system's temporary directory.
        on_ready: Called by every worker when its run can start, for example with ``measure_throughput``. May return
            other settings, with which the run is then built again.

    Returns:
        The encoder with EMA weights, in evaluation mode.

    Raises:
        ValueError: A batch is larger than the data or smaller than the number of workers, or an image file cannot be
            decoded.
        CheckpointError: The checkpoint at ``resume_from`` is missing or corrupt.
        MemoryError: Not even the smallest micro-batch fits, or other processes use the memory of this run.
    """
    settings = settings if isinstance(settings, TrainSettings) else TrainSettings.model_validate(settings)
    workers = dist.get_world_size() if dist.is_initialized() else 1
    for candidate in settings.candidates:
        if not workers <= candidate.batch_size <= len(data.images):
            raise ValueError(
                f"a batch of {candidate.batch_size} must hold at least one image per worker ({workers}) "
                f"and at most the data's {len(data.images)} images"
            )
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def started(settings: TrainSettings) -> Run:
        run = Run(settings, data, device, resumed=resume_from is not None, memory=memory)
        if resume_from is not None:
            run.load(Path(resume_from))
        return run

    run = started(settings)
    with ExitStack() as stack:
        stack.enter_context(closing(run.step.loader))
        chosen = on_ready(run) if on_ready is not None else None
        if chosen is not None:
            stack.close()
            settings, run = chosen, started(chosen)
            stack.enter_context(closing(run.step.loader))
        while run.state.samples < settings.budget:
            evaluations = run.state.samples // settings.evaluate_every
            run.train_until(min((evaluations + 1) * settings.evaluate_every, settings.budget))
            evaluated = run.choose(run.evaluate() if run.step.loader.rank == 0 else None)
            if evaluated is None:
                report({"samples_seen": run.state.samples})
                continue
            with new_directory(checkpoints) as directory:
                run.save(directory)
                report(evaluated.to_dict(), checkpoint=str(directory))
    return run.state.ema.encoder


def initial_encoder(settings: TrainSettings, data: TrainingData, *, pretrained: bool = True) -> Encoder:
    """Returns the encoder that ``train`` starts from, with the batch statistics of the reference views.

    Without ``pretrained``, its weights are random, even if the settings name pretrained ones.
    """
    cpu = torch.device("cpu")
    model = initial_model(settings, data, cpu, pretrained=pretrained)
    augment = Augment(data.images.shape[2], settings.augment)
    reference = ReferenceSet(data.reference, augment, temperature=settings.temperature, seed=settings.seed, device=cpu)
    reference.measure(model)
    return model.encoder


def load_ema_encoder(settings: TrainSettings, channels: int, image_size: int, checkpoint: str | Path) -> Encoder:
    """Returns the EMA encoder of a checkpoint directory in evaluation mode, on the CPU; see ``load_checkpoint``."""
    model = SimCLR(settings.encoder, channels, image_size=image_size, pretrained=False)
    state = load_checkpoint(Path(checkpoint), torch.device("cpu"))
    model.load_state_dict(state["ema"])
    return model.encoder.eval()
