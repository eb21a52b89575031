"""Tests the size of micro-batches against the real memory of a process, and under a real limit."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.trainables.workers import Workers
from trainables.data import TrainingData
from trainables.settings import EncoderSettings
from trainables.simclr import SimCLR
from trainables.training import micro_batch as memory
from trainables.training.host_memory import MemoryTakenError, total_memory
from trainables.training.loop import train
from trainables.training.memory_limits import allotted_memory
from trainables.training.micro_batch import kept_bytes, largest_micro_batch

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)


def network(width: int = 16, depth: int = 1) -> SimCLR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimCLR(EncoderSettings(width=width, depth=depth), 3)


def test_allotted_memory_is_proportional_to_the_threads() -> None:
    torch.set_num_threads(1)
    one = allotted_memory(CPU)
    torch.set_num_threads(2)
    both = allotted_memory(CPU)
    assert one <= both <= total_memory()
    assert allotted_memory(CPU, 2**30) == 2**30


def test_the_size_depends_on_allotted_memory_and_not_on_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(width=64)
    share = int(1.5 * kept_bytes(model, torch.empty(2 * 128, *SHAPE, device="meta"), nullcontext()))
    assert largest_micro_batch(model, SHAPE, 512, CPU, nullcontext(), share) == 128
    # More than the free memory of this machine raises an error; the size is not reduced.
    monkeypatch.setattr(memory, "_PATIENCE", 0.2)
    with pytest.raises(MemoryTakenError, match=r"stop other processes or lower simclr\.micro_batch"):
        largest_micro_batch(model, SHAPE, 1 << 24, CPU, nullcontext(), 1 << 50)
    assert all(p.grad is None for p in model.parameters())


def test_a_shard_that_fits_is_not_split_and_the_network_is_unchanged() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert largest_micro_batch(model, SHAPE, 96, CPU, nullcontext()) == 96
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_saved_bytes_are_proportional_to_the_images() -> None:
    model = network()
    sizes = [kept_bytes(model, torch.empty(2 * n, *SHAPE, device="meta"), nullcontext()) for n in (2, 4, 8)]
    assert (sizes[2] - sizes[1]) == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.01)
    wider = kept_bytes(network(width=32), torch.empty(16, *SHAPE, device="meta"), nullcontext())
    assert wider == pytest.approx(2 * sizes[2], rel=0.1)


MEASURE = """
import re, torch
from pathlib import Path
from contextlib import nullcontext
from trainables.training.micro_batch import kept_bytes
from trainables.simclr import SimCLR
from trainables.settings import EncoderSettings
torch.set_num_threads(1)
model = SimCLR(EncoderSettings(width=16, depth=1), 3).to(memory_format=torch.channels_last)
def step(n):
    views = torch.zeros(2 * n, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model(views).sum().backward()
def peak():  # getrusage starts with the parent's peak
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
step(2)
before = peak()
step(512)
taken = peak() - before
print(taken / kept_bytes(model, torch.empty(1024, 3, 32, 32, device="meta"), nullcontext()))
"""


@pytest.mark.slow
def test_a_real_step_uses_the_predicted_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.2  # 1.2 is the assumed factor


LIMITED = """
import resource, sys, numpy as np, torch
from pathlib import Path
torch.set_num_threads(1)
torch.arange(10).sum()
from trainables.training.loop import train
from trainables.data import TrainingData
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = pages + int(float(sys.argv[1]) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
images = np.random.default_rng(0).integers(0, 256, (1024, 3, 32, 32), dtype=np.uint8)
seen = []
settings = {"encoder": {"width": int(sys.argv[2]), "depth": 1}, "batch_size": 1024, "budget": 1024,
            "evaluate_every": 1024, "precision": "float32"}
try:
    train(settings, TrainingData(images, images[:32]), lambda m, checkpoint=None: seen.append(m))
except MemoryError as error:
    print(error)
else:
    print(seen[-1]["micro_batch"], seen[-1]["train_loss"])
"""


def limited(megabytes: int, width: int) -> str:
    command = [sys.executable, "-c", LIMITED, str(megabytes), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.slow
def test_under_a_real_limit_the_batch_is_split_and_trained_on() -> None:
    # The whole batch would need 1.3 GB, but this process may map 1.2 GB only.
    micro_batch, loss = limited(1200, 16).split()
    assert int(micro_batch) in (128, 256, 512)
    assert 4 < float(loss) < 10  # about ln(2047)


@pytest.mark.slow
def test_a_model_that_does_not_fit_raises_a_helpful_error() -> None:
    text = limited(200, 192)
    assert text.startswith("out of memory: not even 2 images of 32 x 32 pixels fit into")
    assert "smaller encoder" in text


def micro_batch_of_a_worker(shares: list[int]) -> int:
    """Returns the size that a worker finds. Each worker has another amount of memory."""
    return largest_micro_batch(network(), SHAPE, 1 << 12, CPU, nullcontext(), shares[dist.get_rank()])


def test_all_workers_use_the_smallest_size(workers: Workers) -> None:
    alone = workers.run(1, micro_batch_of_a_worker, [1 << 28])
    assert 2 <= alone[0] < 1 << 12
    assert workers.run(2, micro_batch_of_a_worker, [1 << 30, 1 << 28]) == alone * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sizes_are_tried_on_a_gpu_until_one_fits() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 1.2 * 2**30  # other tests leave workspaces of libraries
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        images = np.random.default_rng(0).integers(0, 256, (1024, 3, 32, 32), dtype=np.uint8)
        seen: list[dict[str, Any]] = []
        settings = {
            "encoder": {"width": 64, "depth": 1},
            "batch_size": 1024,
            "budget": 2048,
            "evaluate_every": 1024,
            "precision": "float32",
        }
        train(settings, TrainingData(images, images[:32]), lambda metrics, checkpoint=None: seen.append(metrics))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [metrics["micro_batch"] for metrics in seen] == [seen[0]["micro_batch"]] * 2
    assert seen[0]["micro_batch"] in (64, 128, 256, 512)
    assert 4 < seen[0]["train_loss"] < 10


HOLD = """
import sys, torch
held = torch.empty(torch.cuda.mem_get_info()[0] - int(float(sys.argv[1])), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_other_processes_on_a_gpu_do_not_change_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    model = network(width=64).to(device)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4 * 2**30) / total)
    monkeypatch.setattr(memory, "_PATIENCE", 1)
    try:
        alone = largest_micro_batch(model, SHAPE, 1 << 16, device, nullcontext())
        assert 2 <= alone < 1 << 16
        for left, works in ((6 * 2**30, True), (1.5 * 2**30, False)):
            with subprocess.Popen(
                [sys.executable, "-c", HOLD, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as other:
                assert other.stdout is not None
                assert other.stdout.readline() == "held\n"
                if works:
                    assert largest_micro_batch(model, SHAPE, 1 << 16, device, nullcontext()) == alone
                else:
                    with pytest.raises(MemoryTakenError, match=r"GiB of GPU 0 \(.*\) are reserved for this run, but"):
                        largest_micro_batch(model, SHAPE, 1 << 16, device, nullcontext())
                other.communicate("")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
