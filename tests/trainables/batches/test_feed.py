from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.trainables.images import noise_images, smooth_images
from trainables.batches import Feed, ImageFiles, SampleStream, shard_rows
from trainables.data import TrainingData
from trainables.training.checkpoint import CHECKPOINT_FILE
from trainables.training.loop import train

CPU = torch.device("cpu")


def test_returns_images_in_the_order_of_the_indices() -> None:
    images = noise_images(9, 5).numpy()
    feed = Feed(images, CPU)
    for indices in ([3], [8, 0, 4], [2, 2, 2], list(range(9))):
        batch = feed.batch(np.array(indices))
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, torch.stack([torch.tensor(images[index]) for index in indices]))


def test_arrays_may_be_read_only_and_are_not_aliased() -> None:
    images = noise_images(4, 5).numpy()
    images.flags.writeable = False
    feed = Feed(images, CPU)
    before = images.copy()
    feed.batch(np.array([0, 1])).zero_()
    feed.batch(np.arange(4)).zero_()
    np.testing.assert_array_equal(images, before)
    assert torch.equal(feed.batch(np.array([1]))[0], torch.tensor(before[1]))


def test_arrays_are_not_prefetched() -> None:
    feed = Feed(noise_images(4, 5).numpy(), CPU)
    asked = iter([np.array([0])])
    feed.prefetch(asked)
    assert len(list(asked)) == 1
    feed.batch(np.arange(4))
    assert feed.waited == 0
    feed.close()


# --- files ---


def png(image: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(content, "png")
    return content.getvalue()


class Folder:
    """Writes PNG files of known pixels. A pipe among them is decoded when the test writes to it, once."""

    def __init__(self, root: Path, images: int = 24, side: int = 12) -> None:
        self.images, self.side = smooth_images(images, side), side
        self.paths = [root / f"{index:03d}.png" for index in range(images)]
        for path, image in zip(self.paths, self.images, strict=True):
            path.write_bytes(png(image))

    def make_pipe(self, index: int) -> None:
        self.paths[index].unlink()
        os.mkfifo(self.paths[index])

    def write_pipe(self, index: int) -> None:
        """Waits until a decoder has opened the pipe."""
        self.paths[index].write_bytes(png(self.images[index]))

    def feed(self, decoders: int = 2, device: torch.device = CPU) -> Feed:
        return Feed(ImageFiles(self.paths, self.side, decoders=decoders), device)

    def expected(self, *indices: int) -> Tensor:
        return torch.from_numpy(self.images[list(indices)])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def decoders_alive() -> int:
    return sum(thread.name.startswith("decoder") for thread in threading.enumerate())


@pytest.mark.parametrize("prefetched", [[], [3, 8, 0], list(range(24))], ids=["nothing", "something", "all"])
def test_files_give_the_same_batches_as_arrays(folder: Folder, prefetched: list[int]) -> None:
    feed = folder.feed()
    feed.prefetch([np.array(prefetched, dtype=np.int64)])
    for indices in ([3], [8, 0, 4], [2, 2, 2], [], list(range(24))):
        batch = feed.batch(np.array(indices, dtype=np.int64))
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, folder.expected(*indices))
    feed.close()


def test_prefetched_images_are_decoded_ahead_and_once(folder: Folder) -> None:
    folder.make_pipe(5)
    feed = folder.feed()
    feed.prefetch([np.array([1, 2]), np.array([5, 6])])
    folder.write_pipe(5)
    feed.prefetch([np.array([5, 6]), np.array([7, 8])])
    for _ in range(2):  # GradCache loads every micro-batch twice
        assert torch.equal(feed.batch(np.array([6, 5])), folder.expected(6, 5))
    feed.close()


def test_images_no_longer_prefetched_are_discarded(folder: Folder) -> None:
    folder.make_pipe(0)
    feed = folder.feed(decoders=1)
    feed.prefetch([np.arange(12)])  # the only decoder waits for the pipe
    feed.prefetch([np.array([0, 7])])
    folder.paths[3].unlink()
    folder.write_pipe(0)
    assert torch.equal(feed.batch(np.array([7, 0])), folder.expected(7, 0))
    with pytest.raises(ValueError, match=r"003\.png"):
        feed.batch(np.array([3]))
    feed.close()


@pytest.mark.parametrize("decoders", [1, 3])
def test_batch_size_and_workers_may_change_at_any_step(folder: Folder, decoders: int) -> None:
    feed, stream = folder.feed(decoders), SampleStream(24, seed=2)
    position = 0
    for size, worker, workers in [(4, 0, 1), (4, 0, 1), (9, 1, 2), (24, 1, 2), (2, 0, 1), (2, 0, 2), (17, 2, 3)] * 2:
        rows = shard_rows(size, worker, workers)
        coming = [stream.take(position + step * size, size)[rows] for step in range(3)]
        feed.prefetch(coming)
        assert torch.equal(feed.batch(coming[0]), folder.expected(*coming[0]))
        position += size
    feed.close()


def test_waiting_for_a_decoder_is_measured(folder: Folder) -> None:
    folder.make_pipe(5)
    feed = folder.feed()
    assert feed.waited == 0
    feed.prefetch([np.array([5])])
    assert feed.waited == 0
    writer = threading.Timer(0.3, folder.write_pipe, [5])
    started = time.perf_counter()
    writer.start()
    feed.batch(np.array([5]))
    assert 0.29 < feed.waited <= time.perf_counter() - started
    before = feed.waited
    feed.batch(np.array([5]))
    assert before <= feed.waited < before + 0.2
    writer.join()
    feed.close()


def test_an_unreadable_file_raises_in_its_batches(folder: Folder) -> None:
    folder.paths[4].write_text("no image")
    feed = folder.feed()
    feed.prefetch([np.arange(8)])
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be decoded") as caught:
            feed.batch(np.array([3, 4]))
        assert str(folder.paths[4]) in str(caught.value)
    assert torch.equal(feed.batch(np.array([3, 5])), folder.expected(3, 5))
    feed.close()


def test_no_decoder_outlives_the_feed(folder: Folder) -> None:
    before = decoders_alive()
    for ending in ("closed", "forgotten"):
        feed = folder.feed()
        assert decoders_alive() == before  # threads start with the first image
        feed.prefetch([np.arange(24)])
        assert decoders_alive() > before
        if ending == "closed":
            feed.close()
        del feed
        deadline = time.monotonic() + 60
        while decoders_alive() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert decoders_alive() == before, ending


@pytest.mark.slow
def test_a_process_may_exit_while_decoding(folder: Folder) -> None:
    code = (
        "import sys, numpy, torch; from trainables.batches import Feed, ImageFiles\n"
        "feed = Feed(ImageFiles(sys.argv[1:], 12, decoders=2), torch.device('cpu'))\n"
        "feed.prefetch([numpy.arange(24)])"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", code, *map(str, folder.paths)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_files_are_loaded_onto_a_gpu(folder: Folder) -> None:
    feed = folder.feed(device=torch.device("cuda"))
    for start in range(0, 24, 4):  # pinned buffers are reused during copies
        indices = np.arange(start, start + 4)
        batch = feed.batch(indices)
        assert batch.device.type == "cuda"
        assert torch.equal(batch.cpu(), folder.expected(*indices))
    feed.close()


def test_a_streamed_run_equals_the_run_in_memory_bit_for_bit(folder: Folder, tmp_path: Path) -> None:
    settings = {
        "encoder": {"width": 8, "depth": 1, "projection_hidden": 8, "projection_features": 6},
        "precision": "float32",
        "batch_size": 10,
        "budget": 60,  # two and a half epochs
        "evaluate_every": 30,
    }
    reference = smooth_images(24, 12, seed=1)
    files = ImageFiles(folder.paths, 12, decoders=2)
    losses: list[list[float]] = []
    states: list[dict[str, Tensor]] = []
    for images in (folder.images, files):
        data: Any = TrainingData(images, reference)  # type: ignore[arg-type, unused-ignore]
        seen: list[float] = []

        def report(metrics: dict[str, Any], checkpoint: str | None = None, seen: list[float] = seen) -> None:
            seen.extend((metrics["train_loss"], metrics["reference_loss"]))
            assert checkpoint is not None
            state = torch.load(Path(checkpoint) / CHECKPOINT_FILE, weights_only=True)
            states.append(state["model"] | {f"ema.{name}": value for name, value in state["ema"].items()})

        train(settings, data, report, device=CPU)
        losses.append(seen)
    assert losses[0] == losses[1]
    assert len(states) == 4
    for memory, streamed in zip(states[:2], states[2:], strict=True):
        assert memory.keys() == streamed.keys()
        assert all(torch.equal(memory[name], streamed[name]) for name in memory)
