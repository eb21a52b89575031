"""The training loop, the only one. It knows torch and, if initialised, torch.distributed; it does not know Ray."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
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

#: What training without the rest of this project needs.
__all__ = ["Report", "TrainSettings", "TrainingData", "initial_encoder", "load_ema_encoder", "train"]


class Report(Protocol):
    """Called after every evaluation by every worker; only the first worker's metrics and checkpoint are complete.

    ``checkpoint`` is a directory that is removed after the call, unless that has moved it. ``ray.train.report`` fits,
    once the directory is wrapped into a ``Checkpoint``.
    """

    def __call__(self, metrics: dict[str, Any], checkpoint: str | None = None) -> None: ...


def train(
    settings: TrainSettings | Mapping[str, Any],
    data: TrainingData,
    report: Report,
    resume_from: str | Path | None = None,
    *,
    device: torch.device | None = None,
    memory: int | None = None,
    checkpoints: Path | None = None,
) -> Encoder:
    """Trains one candidate, or with ``settings.swap`` several in turn, to the end of the budget.

    If torch.distributed is initialised, its workers share every batch. The run is then the run of one worker but for
    rounding: order, augmentation, batch statistics and gradients do not depend on the number of workers.

    Args:
        settings: The run; a mapping is validated.
        data: Images.
        report: Takes metrics and checkpoints; see ``Report``. What it raises ends the run.
        resume_from: A checkpoint's directory. On the CPU the resumed run equals the uninterrupted one bit for bit.
        device: Where to train; None: the current GPU, or the CPU.
        memory: Bytes that the run may take on the CPU; None: this process's part, by its threads, of all there are.
        checkpoints: Where checkpoints are written before they are reported; None: among temporary files.

    Returns:
        The encoder with averaged weights, in evaluation mode.

    Raises:
        ValueError: A batch is larger than the data, or smaller than the number of workers; or a file on disk is no
            readable image.
        CheckpointError: There is no checkpoint at ``resume_from``, or it is damaged.
        MemoryError: Not even the smallest micro-batch fits, or other processes hold this run's share of the memory.
    """
    settings = settings if isinstance(settings, TrainSettings) else TrainSettings.model_validate(settings)
    workers = dist.get_world_size() if dist.is_initialized() else 1
    for candidate in settings.candidates:
        if not workers <= candidate.batch_size <= len(data.images):
            raise ValueError(
                f"a batch of {candidate.batch_size} must hold at least one image a worker ({workers}) "
                f"and at most the data's {len(data.images)}"
            )
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(settings, data, device, resumed=resume_from is not None, memory=memory)
    if resume_from is not None:
        run.load(Path(resume_from))
    with closing(run.step.loader):
        while run.state.samples < settings.budget:
            run.train_until(min(_next_evaluation(run.state.samples, settings.evaluate_every), settings.budget))
            first = run.step.loader.rank == 0
            metrics = run.evaluate() if first else {"samples_seen": run.state.samples}
            run.choose(metrics)
            if first:
                with new_directory(checkpoints) as directory:
                    run.save(directory)
                    report(metrics, checkpoint=str(directory))
            else:
                report(metrics, checkpoint=None)
    return run.state.ema.encoder


def initial_encoder(settings: TrainSettings, data: TrainingData) -> Encoder:
    """The encoder that ``train`` starts from, with the reference views' batch statistics: the untrained baseline."""
    cpu = torch.device("cpu")
    model = initial_model(settings, data, cpu)
    augment = Augment(data.images.shape[2], settings.augment)
    reference = ReferenceSet(data.reference, augment, temperature=settings.temperature, seed=settings.seed, device=cpu)
    reference.measure(model)
    return model.encoder


def load_ema_encoder(settings: TrainSettings, channels: int, image_size: int, checkpoint: str | Path) -> Encoder:
    """The encoder of a checkpoint's directory with averaged weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
    """
    model = SimCLR(settings.encoder, channels, image_size=image_size, pretrained=False)
    state = load_checkpoint(Path(checkpoint), torch.device("cpu"))
    model.load_state_dict(state["ema"])
    return model.encoder.eval()


def _next_evaluation(samples: int, every: int) -> int:
    return (samples // every + 1) * every
