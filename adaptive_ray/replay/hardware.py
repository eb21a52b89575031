"""Throughput of each batch size on named hardware, for recordings whose runs shared a device.

An update takes a fixed time (launches, and with several GPUs communication) and a time for the images of one GPU:

    seconds(B) = communication + accumulation x step(ceil(B / GPUs)),   throughput = images per update / seconds

``step`` was measured on one device, is interpolated linearly between the measured batch sizes and extrapolated from the
nearest two. Communication is assumed, not measured: 1 ms in a node of 8 GPUs (all-reduce of 45 MB of gradients over
NVLink: 0.2 ms; about 40 small all-reduces of batch-norm statistics and the gathering of embeddings: 20 us each), and
4 ms in 8 nodes (2 ms over a network of 50 GB/s, and 50 us each).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedulers import Candidate


@dataclass(frozen=True)
class Hardware:
    """A device type and a number of devices.

    Args:
        throughput: Measured images per second of one device, by batch size; at least two.
        gpus: Number of devices; each has an equal part of a batch.
        communication: Seconds per update.
    """

    throughput: dict[int, float]
    gpus: int = 1
    communication: float = 0.0

    def images_per_second(self, candidate: Candidate) -> float:
        """Returns the throughput of a candidate."""
        local = -(-candidate.batch_size // self.gpus)
        seconds = self.communication + candidate.accumulation * self._step(local)
        return candidate.batch_size * candidate.accumulation / seconds

    def _step(self, batch_size: int) -> float:
        sizes = np.array(sorted(self.throughput), dtype=float)
        seconds = sizes / [self.throughput[int(size)] for size in sizes]
        left = min(max(int(np.searchsorted(sizes, batch_size)) - 1, 0), len(sizes) - 2)
        slope = (seconds[left + 1] - seconds[left]) / (sizes[left + 1] - sizes[left])
        return float(seconds[left] + slope * (batch_size - sizes[left]))


#: ResNet-18 on CIFAR-10, bfloat16, CUDA graphs; 2026-11-27.
_H200 = {64: 16_450.0, 128: 21_670.0, 256: 25_890.0, 512: 29_480.0, 1024: 31_310.0, 2048: 32_100.0}

HARDWARE = {
    "h200": Hardware(_H200),
    "cpu": Hardware({64: 1_290.0, 256: 1_537.0}),  # two cores, the network of configs/quickstart.yaml
    "8-gpus": Hardware(_H200, 8, 0.001),
    "64-gpus": Hardware(_H200, 64, 0.004),
}
#: Used if the seconds of a recording are not usable and no hardware is named.
DEFAULT_HARDWARE = "h200"
#: The seconds of the recordings themselves.
RECORDED = "recorded"
