"""Compares the methods that count clusters on real images, and measures the default on synthetic features.

    python benchmarks/clusters.py real --root DATA    # CIFAR-10 and Fashion-MNIST in torchvision's layout
    python benchmarks/clusters.py scale               # 1,000,000 x 256, M = 5, 10, 50, 200

Labels are only used to compute NMI and ARI.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torchvision.datasets import CIFAR10

from adaptive_ray.clusters import count_clusters, encode
from adaptive_ray.clusters.methods import METHODS


def cifar10(root: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first training images, NHWC."""
    data = CIFAR10(str(root), train=True, download=False)
    return data.data[:count], np.array(data.targets[:count])


def fashion_mnist(root: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the test images, NHWC, from torchvision's folder or Debian's package."""
    folder = next(
        (f for f in (root / "FashionMNIST/raw", Path("/usr/share/datasets/fashion-mnist")) if f.is_dir()), None
    )
    if folder is None:
        raise SystemExit(f"no Fashion-MNIST under {root}, and the package dataset-fashion-mnist is not installed")

    def read(name: str, header: int) -> np.ndarray:
        file = folder / f"{name}.gz"
        content = gzip.decompress(file.read_bytes()) if file.exists() else (folder / name).read_bytes()
        return np.frombuffer(content, dtype=np.uint8)[header:]

    images = read("t10k-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)
    return images[:count], read("t10k-labels-idx1-ubyte", 8)[:count]


def real(root: Path, count: int, encoder: str) -> Table:
    """Returns M, agreement with the classes, stability and seconds of every method."""
    table = Table(title=f"{count:,} images, {encoder}, classes: 10")
    for title in ("data", "method", "M", "NMI", "ARI", "stability", "seconds", "largest, smallest"):
        table.add_column(title, justify="left" if title in ("data", "method") else "right")
    for name, load in (("CIFAR-10, training", cifar10), ("Fashion-MNIST, test", fashion_mnist)):
        images, labels = load(root, count)
        started = time.perf_counter()
        features = encode(images, encoder)
        print(f"{name}: embedded in {time.perf_counter() - started:.0f} s", flush=True)
        for method in METHODS:
            started = time.perf_counter()
            found = count_clusters(features, method)
            seconds = time.perf_counter() - started
            nmi, ari = normalized_mutual_info_score(labels, found.labels), adjusted_rand_score(labels, found.labels)
            sizes = f"{found.sizes[0]:,}, {found.sizes[-1]:,}"
            row = (f"{found.m}", f"{nmi:.3f}", f"{ari:.3f}", f"{found.stability:.2f}", f"{seconds:.0f}", sizes)
            table.add_row(name, method, *row)
            print(name, method, *row, flush=True)
    return table


def scale(rows: int, dimensions: int, modes: list[int], separation: float) -> Table:
    """Measures the default method on mixtures of Gaussians N(means, 1) with means from N(0, separation^2)."""
    table = Table(title=f"{rows:,} x {dimensions} float16, means {separation:g} x N(0, 1), noise N(0, 1)")
    for title in ("true M", "found", "NMI", "minutes", "peak GB"):
        table.add_column(title, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for m in modes:
            own = [__file__, "one", folder, str(rows), str(dimensions), str(m), str(separation)]
            done = subprocess.run([sys.executable, *own], check=True, capture_output=True, text=True)  # noqa: S603
            table.add_row(str(m), *done.stdout.split())
            print(m, *done.stdout.split(), flush=True)
    return table


def one(folder: Path, rows: int, dimensions: int, m: int, separation: float) -> None:
    """Writes a mixture to disk, counts its clusters, and prints M, NMI, minutes and peak memory."""
    generator = np.random.default_rng(m)
    means = separation * generator.normal(size=(m, dimensions))
    truth = generator.choice(m, rows, p=generator.dirichlet(np.full(m, 5.0)))
    features = np.lib.format.open_memmap(folder / "mixture.npy", "w+", np.float16, (rows, dimensions))
    for start in range(0, rows, 50_000):
        own = truth[start : start + 50_000]
        features[start : start + 50_000] = means[own] + generator.normal(size=(len(own), dimensions))
    features.flush()
    started = time.perf_counter()
    found = count_clusters(np.load(folder / "mixture.npy", mmap_mode="r"))
    minutes = (time.perf_counter() - started) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # includes mapped pages of the file
    nmi = normalized_mutual_info_score(truth, found.labels)
    print(found.m, f"{nmi:.3f}", f"{minutes:.1f}", f"{peak:.2f}")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_real = commands.add_parser("real")
    of_real.add_argument("--root", type=Path, required=True)
    of_real.add_argument("--images", type=int, default=10_000)
    of_real.add_argument("--encoder", default="efficientnet_lite0")
    of_scale = commands.add_parser("scale")
    of_scale.add_argument("--rows", type=int, default=1_000_000)
    of_scale.add_argument("--dimensions", type=int, default=256)
    of_scale.add_argument("--modes", type=int, nargs="+", default=[5, 10, 50, 200])
    of_scale.add_argument("--separation", type=float, default=1.0)
    of_one = commands.add_parser("one")
    of_one.add_argument("folder", type=Path)
    for name, kind in (("rows", int), ("dimensions", int), ("m", int), ("separation", float)):
        of_one.add_argument(name, type=kind)
    given = vars(parser.parse_args())
    command = given.pop("command")
    if command == "one":
        one(**given)
        return
    table = real(given["root"], given["images"], given["encoder"]) if command == "real" else scale(**given)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
