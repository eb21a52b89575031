"""The SimCLR training steps that throughput.py compares: this project's and lightly's, and their phases."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stopwatch import Split, Stopwatch


class Images:
    """CIFAR-10's training images as a torchvision data set, or random ones of the same shape."""

    def __init__(self, root: Path, length: int = 50_000) -> None:
        self.real = (root / "cifar-10-batches-py").is_dir()
        if self.real:
            import torchvision.datasets

            self.data = torchvision.datasets.CIFAR10(str(root), train=True).data
        else:
            self.data = np.random.default_rng(0).integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)

        self.transform: Callable[[Any], Any] | None = None  # set by Lightly

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        image = Image.fromarray(self.data[index])
        return self.transform(image) if self.transform else image, 0


class Ours:
    """Steps of ``trainables.training.run``; compiled if ``options.accelerate`` is auto, as in a long run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.size, self._options = pick_device(), options.batch_size, options
        self.run = self._make_run()

    def _make_run(self) -> Any:
        from trainables.data import TrainingData
        from trainables.settings import TrainSettings
        from trainables.training.run import Run

        options = self._options
        images = np.ascontiguousarray(Images(options.data).data.transpose(0, 3, 1, 2))
        settings = TrainSettings.model_validate(
            {
                "encoder": _encoder(options.backbone),
                "batch_size": options.batch_size,
                "budget": 10**9,
                "evaluate_every": 10**9,
                "precision": options.precision,
                "accelerate": options.accelerate,
            }
        )
        run = Run(settings, TrainingData(images[:-512], images[-512:]), self.device)
        run.step.compile()
        return run

    def measure(self, steps: int) -> float:
        """Returns the seconds of one step, without measuring phases."""
        if self.device.type == "cuda":
            steps *= 5  # steps are short, so the launch of the first one would dominate
        _steps(self.run, 1)
        return _steps(self.run, steps) / steps

    def split(self, steps: int, passes: int) -> Split:
        """Returns the seconds of a step by phase, of the median pass; ``other`` is the rest of the step."""
        found = []
        run = self._make_run()
        with _timed(run, self.device) as watch:
            _steps(run, 1)
            for _ in range(passes):
                watch.reset()
                whole = _steps(run, steps) / steps
                parts = watch.seconds(steps)
                found.append({**parts, "other": whole - sum(parts.values())})
        return _median(found)

    def peak(self) -> float:
        """Returns the FLOP/s of a large matrix product, best of three; on a GPU in the network's dtype."""
        import torch

        on_gpu = self.device.type == "cuda"
        dtype = self.run.step.autocast.fast_dtype if on_gpu and self.run.step.autocast._enabled else torch.float32
        a = torch.rand(*(8192, 8192) if on_gpu else (2048, 2048), device=self.device).to(dtype)
        seconds = []
        for _ in range(3):
            wait(self.device)
            started = time.perf_counter()
            torch.mm(a, a)
            wait(self.device)
            seconds.append(time.perf_counter() - started)
        return 2 * len(a) ** 3 / min(seconds)

    def profile(self) -> str:
        """Returns a table of the slowest operators."""
        from torch.profiler import ProfilerActivity, profile

        _steps(self.run, 1)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        with profile(activities=activities) as profiler:
            _steps(self.run, 2)
        by = f"self_{self.device.type}_time_total"
        return str(profiler.key_averages().table(sort_by=by, row_limit=14, max_name_column_width=50))

    def facts(self) -> dict[str, Any]:
        """Returns properties of the machine and the FLOPs of a step per image."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from trainables.training.precision import supports_bfloat16

        on_gpu = self.device.type == "cuda"
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.run.state.ema.model(torch.rand(2, 3, 32, 32, device=self.device))
        return {
            "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "bf16": supports_bfloat16(self.device),
            "autocast": str(self.run.step.autocast.fast_dtype) if self.run.step.autocast._enabled else "off: float32",
            "flops": 3 * counter.get_total_flops(),  # two views per image; backward is twice forward
        }


def _steps(run: Any, steps: int) -> float:
    """Times steps including the final read from the device, without capturing graphs."""
    before = run.state.seconds
    run.train_until(run.state.samples + steps * run.state.candidate.batch_size)
    return float(run.state.seconds - before)


@contextmanager
def _timed(run: Any, device: Any) -> Iterator[Stopwatch]:
    """Wraps the functions of a run's step to time them, before the step is captured."""
    import torch

    watch = Stopwatch(device)
    # A second graph, for batches across the end of an epoch, would add its events to the same step.
    run.step.loader.stream.may_repeat = run.step.loader.stream.repeats = lambda position, count: False
    places: list[tuple[Any, str, str]] = [
        (run.step.loader.stream, "take", "data"),
        (run.step.loader.feed, "batch", "data"),
        (run.step.gradients, "forward", "forward"),
        (run.step.gradients, "loss", "loss"),
        (run.state.optimizer, "step", "update"),
        (run.state.ema, "update", "update"),
    ]
    augment = ["views"] if device.type == "cuda" else ["draw", "apply"]  # a GPU does not wait for draw
    places += [(run.step.loader.augment, name, "augment") for name in augment]
    for owner, name, phase in places:
        setattr(owner, name, watch(phase, getattr(owner, name)))
    backward = torch.Tensor.backward
    torch.Tensor.backward = watch("backward", backward)  # type: ignore[method-assign]
    try:
        yield watch
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def _median(passes: list[Split]) -> Split:
    return {phase: statistics.median(found[phase] for found in passes) for phase in passes[0]}


class Lightly:
    """lightly's SimCLR example with its transform, data set, loss and projection head; NCHW, float32."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from lightly.data import LightlyDataset
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms.simclr_transform import SimCLRTransform
        from torch.utils.data import DataLoader, RandomSampler

        from trainables.settings import EncoderSettings
        from trainables.simclr import build_encoder

        self.device, self.size = pick_device(), options.batch_size
        transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
        dataset = LightlyDataset.from_torch_dataset(Images(options.data), transform=transform)
        # Workers are forked (the default on Linux) before a CUDA context exists.
        self._ahead = 2 * options.workers  # batches that workers prepare
        self._batches = iter(
            DataLoader(
                dataset,
                self.size,
                sampler=RandomSampler(dataset, replacement=True, num_samples=10**9),
                num_workers=options.workers,
                multiprocessing_context="fork" if options.workers else None,  # a spawned process spawns its workers
                pin_memory=self.device.type == "cuda",
            )
        )
        torch.manual_seed(0)
        settings = EncoderSettings.model_validate(_encoder(options.backbone))
        head = SimCLRProjectionHead(settings.features, settings.projection_hidden, settings.projection_features)
        self.model = torch.nn.Sequential(build_encoder(settings), head).to(self.device)
        self.criterion = NTXentLoss(temperature=0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06, momentum=0.9)

    def measure(self, steps: int) -> float:
        """Returns the seconds of one step after the batches that were prefetched before are used up."""
        return self._steps(steps, lambda phase, function: function)

    def split(self, steps: int, passes: int) -> Split:
        """Returns the seconds of a step by phase; workers compute the views, so ``augment`` is part of ``data``."""
        found = []
        for _ in range(passes):
            watch = Stopwatch(self.device)
            whole = self._steps(steps, watch)
            parts = watch.seconds(steps)
            found.append({**parts, "other": whole - sum(parts.values())})
        return _median(found)

    def _steps(self, steps: int, timed: Callable[..., Any]) -> float:
        for _ in range(1 + self._ahead):
            self._step(lambda phase, function: function)
        wait(self.device)
        started = time.perf_counter()
        for _ in range(steps):
            self._step(timed)
        wait(self.device)
        seconds = (time.perf_counter() - started) / steps
        time.sleep(self._ahead * seconds)  # until its workers are idle
        return seconds

    def _step(self, timed: Callable[..., Any]) -> None:
        (x0, x1), _, _ = timed("data", next)(self._batches)
        x0, x1 = x0.to(self.device, non_blocking=True), x1.to(self.device, non_blocking=True)
        z0, z1 = timed("forward", lambda: (self.model(x0), self.model(x1)))()
        loss = timed("loss", self.criterion)(z0, z1)
        timed("backward", loss.backward)()
        timed("update", self.optimizer.step)()
        self.optimizer.zero_grad()


def pick_device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _encoder(backbone: str) -> dict[str, Any]:
    """Returns the settings of an encoder; ``small`` is the default: 16-32-64 channels, 3 blocks per stage."""
    if backbone == "small":
        return {}
    return {"backbone": backbone, "stem": "cifar", "projection_hidden": 512, "projection_features": 128}
