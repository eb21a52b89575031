"""The training loop, the only one. It knows torch and, if initialised, torch.distributed; it does not know Ray."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.batches import Feed, ImageFiles, SampleStream, share
from trainables.evaluation.reference import ReferenceSet
from trainables.memory import largest_micro_batch
from trainables.simclr.augment import Augment, AugmentSettings
from trainables.simclr.average import WeightAverage
from trainables.simclr.encoder import Encoder, EncoderSettings, SimCLR
from trainables.simclr.gradcache import cached_backward
from trainables.simclr.losses import chance_level, loss_named
from trainables.simclr.optim import OptimizerSettings, build_optimizer, correct_momentum, set_progress

#: The file in a checkpoint's directory.
CHECKPOINT_FILE = "checkpoint.pt"

#: Batches that are decoded while one trains, where images are read from disk.
_BATCHES_AHEAD = 2


class SimCLRSettings(BaseModel):
    """What all candidates of an experiment have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    encoder: EncoderSettings = Field(default_factory=EncoderSettings, description="the network")
    augment: Literal["natural", "digits"] | AugmentSettings = Field("natural", description="profile or settings")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="the update rule")
    loss: str = Field("nt_xent", description="nt_xent, dcl, or one's own as package.module:function")
    temperature: float = Field(0.5, gt=0, description="of the loss, and of the reference loss")
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=2)] = Field(
        "auto",
        description="images of a worker in the network at once; a larger share of a batch is cut up, and its gradient "
        "stays exact (gradient cache); auto: the largest that fits into memory",
    )
    average: float = Field(0.02, gt=0, le=1, description="horizon of the weights' moving average: share of the budget")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the network's forward and backward; auto is bfloat16 where the hardware computes in it"
    )

    @field_validator("loss")
    @classmethod
    def _known(cls, name: str) -> str:
        loss_named(name)
        return name


class TrainSettings(SimCLRSettings):
    """One candidate's run."""

    batch_size: int = Field(ge=2, description="images per optimizer step, over all workers")
    budget: int = Field(ge=1, description="the whole run, in samples; schedules end there")
    evaluate_every: int = Field(ge=1, description="samples between two reports")
    seed: int = Field(0, ge=0, description="of initialisation, order and augmentation")


@dataclass(frozen=True)
class TrainingData:
    """Images to train on (in memory or on disk), held-out ones for the reference loss: uint8 [n, C, H, W], square."""

    images: NDArray[np.uint8] | ImageFiles
    reference: NDArray[np.uint8]


class Report(Protocol):
    """Called after every evaluation by every worker; only the first worker's metrics and checkpoint are complete.

    ``checkpoint`` is a directory that is removed after the call. ``ray.train.report`` fits, once the directory is
    wrapped into a ``Checkpoint``.
    """

    def __call__(self, metrics: dict[str, Any], checkpoint: str | None = None) -> None: ...


def train(
    settings: TrainSettings | Mapping[str, Any],
    data: TrainingData,
    report: Report,
    resume_from: str | Path | None = None,
    *,
    device: torch.device | None = None,
) -> Encoder:
    """Trains one candidate to the end of its budget.

    If torch.distributed is initialised, its workers share every batch. The run is then the run of one worker but for
    rounding: order, augmentation, batch statistics and gradients do not depend on the number of workers.

    Args:
        settings: The run; a mapping is validated.
        data: Images.
        report: Takes metrics and checkpoints; see ``Report``. What it raises ends the run.
        resume_from: A checkpoint's directory. On the CPU the resumed run equals the uninterrupted one bit for bit.
        device: Where to train; None: the current GPU, or the CPU.

    Returns:
        The encoder with averaged weights, in evaluation mode.

    Raises:
        ValueError: The batch is larger than the data, or smaller than the number of workers; or a file on disk is no
            readable image.
        FileNotFoundError: There is no checkpoint at ``resume_from``.
        MemoryError: Not even the smallest micro-batch fits.
    """
    settings = settings if isinstance(settings, TrainSettings) else TrainSettings.model_validate(settings)
    worker, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if not workers <= settings.batch_size <= len(data.images):
        raise ValueError(
            f"a batch of {settings.batch_size} must hold at least one image a worker ({workers}) "
            f"and at most the data's {len(data.images)}"
        )
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run(settings, data, device, resumed=resume_from is not None)
    if resume_from is not None:
        run.load(Path(resume_from))
    with closing(run.feed):
        while run.samples < settings.budget:
            run.train_until(min(_next_evaluation(run.samples, settings.evaluate_every), settings.budget))
            if worker == 0:
                metrics = run.evaluate()
                with tempfile.TemporaryDirectory() as directory:
                    run.save(Path(directory))
                    report(metrics, checkpoint=directory)
            else:
                report({"samples_seen": run.samples}, checkpoint=None)
    return run.average.encoder


def initial_encoder(settings: TrainSettings, data: TrainingData) -> Encoder:
    """The encoder that ``train`` starts from, with the reference views' batch statistics: the untrained baseline."""
    run = _Run(settings, data, torch.device("cpu"))
    run.reference.measure(run.average.model)
    return run.average.encoder


def load_averaged_encoder(settings: TrainSettings, channels: int, image_size: int, checkpoint: str | Path) -> Encoder:
    """The encoder of a checkpoint's directory with averaged weights, in evaluation mode, on the CPU."""
    model = SimCLR(settings.encoder, channels, image_size=image_size, pretrained=False)
    state = torch.load(Path(checkpoint) / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    model.load_state_dict(state["average"])
    return model.encoder.eval()


def _next_evaluation(samples: int, every: int) -> int:
    return (samples // every + 1) * every


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is fast there. A CPU without instructions for it emulates it, several times slower."""
    if device.type != "cpu":
        return True
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def _data_parallel(model: nn.Module) -> DistributedDataParallel:
    """Averages gradients over workers. Buffers are equal on all of them already (``GlobalBatchNorm2d``)."""
    arguments = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"  # torch < 2.13
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)


class _Run:
    """Everything that changes while a candidate trains."""

    def __init__(
        self, settings: TrainSettings, data: TrainingData, device: torch.device, *, resumed: bool = False
    ) -> None:
        self.settings, self.device = settings, device
        channels, size = data.images.shape[1], data.images.shape[2]
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            model = SimCLR(settings.encoder, channels, image_size=size, pretrained=not resumed)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and computes_in_bfloat16(device))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)
        self.average = WeightAverage(model, settings.average * settings.budget)
        self.optimizer = build_optimizer(settings.optimizer, model)
        self.model = model
        self.parallel: nn.Module = model
        self.worker, self.workers = 0, 1
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.worker, self.workers = dist.get_rank(), dist.get_world_size()
        rows = [share(settings.batch_size, worker, self.workers) for worker in range(self.workers)]
        self.shares = [part.stop - part.start for part in rows]
        if settings.micro_batch == "auto":
            view_shape = (channels, size, size)
            self.micro_batch = largest_micro_batch(model, view_shape, max(self.shares), device, self.autocast)
        else:
            self.micro_batch = settings.micro_batch
        if self.workers > 1:
            self.parallel = _data_parallel(model)
        self.augment = Augment(size, settings.augment)
        self.feed = Feed(data.images, device)
        self.stream = SampleStream(len(data.images), settings.seed)
        self.reference = ReferenceSet(
            data.reference, self.augment, temperature=settings.temperature, seed=settings.seed, device=device
        )
        self.loss = partial(loss_named(settings.loss), temperature=settings.temperature, shares=self.shares)
        self.samples, self.seconds = 0, 0.0
        self._since_report = (0, 0.0)  # samples and seconds at the last report
        self._losses: list[Tensor] = []

    def train_until(self, samples: int) -> None:
        """Steps until ``samples`` have been seen; the last step may overshoot by less than a batch."""
        self._since_report = (self.samples, self.seconds)
        started, waited = time.perf_counter(), self.feed.waited
        self._losses = []
        while self.samples < samples:
            self._losses.append(self._step())
        self._mean_loss = float(torch.stack(self._losses).mean())  # the one read from the device
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self._data_wait = (self.feed.waited - waited) / seconds

    def _step(self) -> Tensor:
        s, size = self.settings, self.settings.batch_size
        rows = share(size, self.worker, self.workers)
        indices = self.stream.take(self.samples, size)[rows]
        self.feed.prefetch(
            self.stream.take(self.samples + step * size, size)[rows] for step in range(1 + _BATCHES_AHEAD)
        )
        # Drawn for the global batch, from nothing but the seed and the position: the same on any number of workers.
        seed = int(np.random.SeedSequence((s.seed, self.samples)).generate_state(1, np.uint64)[0] >> 1)
        shape = (self.augment.size, self.augment.size)
        draw = self.augment.draw(2 * size, shape, torch.Generator().manual_seed(seed))
        parts = -(-max(self.shares) // self.micro_batch)  # equally many on all workers

        def views(part: int) -> Tensor:
            own = share(len(indices), part, parts)
            first = torch.arange(rows.start + own.start, rows.start + own.stop)
            images = self.feed.batch(indices[own]).repeat(2, 1, 1, 1)
            both = self.augment.apply(images, draw[torch.cat([first, size + first])])
            return both.contiguous(memory_format=torch.channels_last)

        progress = min((self.samples + size / 2) / s.budget, 1.0)  # the middle of the step, for every batch size
        self.learning_rate = set_progress(self.optimizer, s.optimizer, progress, size)
        self.optimizer.zero_grad(set_to_none=True)
        if parts == 1:
            with self.autocast:
                z_a, z_b = self.parallel(views(0)).chunk(2)
            loss = self.loss(z_a, z_b)
            loss.backward()
        else:
            micro_batches = [partial(views, part) for part in range(parts)]
            loss = cached_backward(self.parallel, micro_batches, self.loss, self.autocast)
        self.optimizer.step()
        self.samples += size
        self.average.update(self.model, size, self.samples)
        return loss.detach()

    def evaluate(self) -> dict[str, Any]:
        """The metrics of a report. Losses are in nats, throughput in images (not views) over all workers."""
        s = self.settings
        samples, seconds = self._since_report
        return {
            "samples_seen": self.samples,
            "seconds": self.seconds,
            "batch_size": s.batch_size,
            "micro_batch": min(self.micro_batch, max(self.shares)),
            "workers": self.workers,
            "progress": min(self.samples / s.budget, 1.0),
            "learning_rate": self.learning_rate,
            "train_loss": self._mean_loss,
            "train_loss_above_chance": self._mean_loss - chance_level(s.loss, s.batch_size),
            "images_per_second": (self.samples - samples) / max(self.seconds - seconds, 1e-9),
            "data_wait": self._data_wait,  # share of this worker's time
            **self.reference.measure(self.average.model),
        }

    def save(self, directory: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_size": self.settings.batch_size,
            "workers": self.workers,
            "micro_batch": self.micro_batch,
            "samples_seen": self.samples,
            "seconds": self.seconds,
        }
        torch.save(state, directory / CHECKPOINT_FILE)

    def load(self, directory: Path) -> None:
        file = directory / CHECKPOINT_FILE
        if not file.exists():
            raise FileNotFoundError(f"no checkpoint at {file}: resume_from must name a checkpoint's directory")
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.samples, self.seconds = state["samples_seen"], state["seconds"]
        now, before = (self.settings.batch_size, self.workers), (state["batch_size"], state["workers"])
        if now == before:  # more memory than then changes nothing: batch statistics depend on the micro-batch
            self.micro_batch = min(self.micro_batch, state["micro_batch"])
        correct_momentum(self.optimizer, self.settings.optimizer, state["batch_size"], self.settings.batch_size)
