"""What throughput.py compares: whole SimCLR training steps, ours and lightly's, and their split into phases."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PHASES = ("data", "augment", "forward", "loss", "backward", "update")
Split = dict[str, float]


class Images:
    """CIFAR-10's training images as torchvision serves them, or random ones of the same shape."""

    def __init__(self, root: Path, length: int = 50_000) -> None:
        self.real = (root / "cifar-10-batches-py").is_dir()
        if self.real:
            import torchvision.datasets

            self.data = torchvision.datasets.CIFAR10(str(root), train=True).data
        else:
            self.data = np.random.default_rng(0).integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)

        self.transform: Callable[[Any], Any] | None = None  # lightly sets it

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        image = Image.fromarray(self.data[index])
        return self.transform(image) if self.transform else image, 0


class Stopwatch:
    """Adds up the seconds of functions by phase; the device is idle at both ends of each."""

    def __init__(self, device: Any) -> None:
        self.seconds, self._device = dict.fromkeys(PHASES, 0.0), device

    def __call__(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wait(self._device)
            started = time.perf_counter()
            result = function(*args, **kwargs)
            wait(self._device)
            self.seconds[phase] += time.perf_counter() - started
            return result

        return timed


class Ours:
    """The steps of ``trainables.run``."""

    def __init__(self, options: argparse.Namespace) -> None:
        from trainables.run import Run
        from trainables.settings import TrainingData, TrainSettings

        self.device = pick_device()
        images = np.ascontiguousarray(Images(options.data).data.transpose(0, 3, 1, 2))
        settings = TrainSettings.model_validate(
            {
                "encoder": _encoder(options.backbone),
                "batch_size": options.batch_size,
                "budget": 10**9,
                "evaluate_every": 10**9,
                "precision": options.precision,
            }
        )
        self.size = options.batch_size
        self.run = Run(settings, TrainingData(images[:-512], images[-512:]), self.device)

    def measure(self, steps: int) -> float:
        """Seconds of one step, undisturbed."""
        self._steps(1)
        return self._steps(steps) / steps

    def split(self, steps: int) -> Split:
        """Seconds of a step by phase; ``other`` is what no phase covers."""
        with self._timed() as watch:
            self._steps(1)
            watch.seconds = dict.fromkeys(PHASES, 0.0)
            whole = self._steps(steps)
        return {
            **{k: v / steps for k, v in watch.seconds.items()},
            "other": (whole - sum(watch.seconds.values())) / steps,
        }

    def peak(self) -> float:
        """Floating-point operations per second of a large float32 matrix product: the best of three."""
        import torch

        a = torch.rand(2048, 2048, device=self.device)
        seconds = []
        for _ in range(3):
            wait(self.device)
            started = time.perf_counter()
            torch.mm(a, a)
            wait(self.device)
            seconds.append(time.perf_counter() - started)
        return 2 * len(a) ** 3 / min(seconds)

    def profile(self) -> str:
        """The operators that take longest."""
        from torch.profiler import ProfilerActivity, profile

        self._steps(1)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        with profile(activities=activities) as profiler:
            self._steps(2)
        by = f"self_{self.device.type}_time_total"
        return str(profiler.key_averages().table(sort_by=by, row_limit=14, max_name_column_width=50))

    def facts(self) -> dict[str, Any]:
        """The machine, and how many floating-point operations a step's images need."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from trainables.devices import computes_in_bfloat16

        on_gpu = self.device.type == "cuda"
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.run.average.model(torch.rand(2, 3, 32, 32, device=self.device))
        return {
            "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "bf16": computes_in_bfloat16(self.device),
            "autocast": str(self.run.autocast.fast_dtype) if self.run.autocast._enabled else "off: float32",
            "flops": 3 * counter.get_total_flops(),  # of an image in two views: forward, and backward twice as much
        }

    def _steps(self, steps: int) -> float:
        started = time.perf_counter()
        self.run.train_until(self.run.samples + steps * self.size)  # ends with a read from the device
        return time.perf_counter() - started

    @contextmanager
    def _timed(self) -> Iterator[Stopwatch]:
        """Wraps the parts of a step, whatever the step does with them."""
        import torch

        run, watch = self.run, Stopwatch(self.device)
        places: list[tuple[Any, str, str]] = [
            (run.loader.stream, "take", "data"),
            (run.loader.feed, "batch", "data"),
            (run.loader.augment, "draw", "augment"),
            (run.loader.augment, "apply", "augment"),
            (run.model, "forward", "forward"),
            (run.gradients, "loss", "loss"),
            (torch.Tensor, "backward", "backward"),
            (run.optimizer, "step", "update"),
            (run.average, "update", "update"),
        ]
        before = [(owner, name, name in vars(owner), getattr(owner, name)) for owner, name, _ in places]
        for owner, name, phase in places:
            setattr(owner, name, watch(phase, getattr(owner, name)))
        try:
            yield watch
        finally:
            for owner, name, own, function in before:
                setattr(owner, name, function) if own else delattr(owner, name)


class Lightly:
    """lightly's SimCLR example: its transform, data set, loss and projection head, NCHW in float32."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from lightly.data import LightlyDataset
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms.simclr_transform import SimCLRTransform

        from trainables.simclr import EncoderSettings, build_encoder

        self.device, self.size, self.workers = pick_device(), options.batch_size, options.workers
        transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
        self.dataset = LightlyDataset.from_torch_dataset(Images(options.data), transform=transform)
        torch.manual_seed(0)
        settings = EncoderSettings.model_validate(_encoder(options.backbone))
        head = SimCLRProjectionHead(settings.features, settings.projection_hidden, settings.projection_features)
        self.model = torch.nn.Sequential(build_encoder(settings), head).to(self.device)
        self.criterion = NTXentLoss(temperature=0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06, momentum=0.9)

    def measure(self, steps: int) -> float:
        """Seconds of one step. Loaders start empty and are in step with the training when the clock starts."""
        return self._steps(steps, lambda phase, function: function)

    def split(self, steps: int) -> Split:
        """Seconds of a step by phase; views are made by the loader's workers, so ``augment`` is part of ``data``."""
        watch = Stopwatch(self.device)
        whole = self._steps(steps, watch)
        return {
            **{k: v / steps for k, v in watch.seconds.items()},
            "other": whole - sum(watch.seconds.values()) / steps,
        }

    def _steps(self, steps: int, timed: Callable[..., Any]) -> float:
        from torch.utils.data import DataLoader, RandomSampler

        ahead = 2 * self.workers  # batches that the loader's workers prepare
        count = (1 + ahead + steps + ahead) * self.size  # the last ones keep the workers busy until the clock stops
        sampler = RandomSampler(self.dataset, replacement=True, num_samples=count)
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            self.dataset, self.size, sampler=sampler, num_workers=self.workers, drop_last=True, pin_memory=pinned
        )
        batches = iter(loader)
        for _ in range(1 + ahead):
            self._step(batches, lambda phase, function: function)
        wait(self.device)
        started = time.perf_counter()
        for _ in range(steps):
            self._step(batches, timed)
        wait(self.device)
        seconds = time.perf_counter() - started
        for _ in batches:
            pass
        return seconds / steps

    def _step(self, batches: Iterator[Any], timed: Callable[..., Any]) -> None:
        (x0, x1), _, _ = timed("data", next)(batches)
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
    """Settings of an encoder. The small one's are the defaults: 16-32-64 channels, 3 blocks a stage."""
    if backbone == "small":
        return {}
    return {"backbone": backbone, "stem": "cifar", "projection_hidden": 512, "projection_features": 128}
