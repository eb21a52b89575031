"""Records the settings and images that a run was started with, and refuses to resume it with others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_ray.config.experiment import ExperimentConfig, parse_config
from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.batches import ImageFiles

#: In the run's directory.
INPUTS_FILE = "inputs.json"
#: Settings that say where something is, or how much is done at once. They may change: no loss depends on them.
_PLACES = (
    "name",
    "runs_dir",
    "tracking",
    "dataset.root",
    "dataset.download",
    "dataset.decoder_threads",
    "clusters.cache_dir",
    "clusters.actors",
    "race.max_concurrent",
)


def check_settings(directory: RunDirectory) -> ExperimentConfig:
    """The settings of a run that is to be resumed.

    Raises:
        UserError: They are not those that it was started with, or are wrong.
    """
    config = directory.config()
    if not (directory.path / INPUTS_FILE).exists():
        return config  # it was stopped before it had loaded its data
    started = parse_config(directory.read_json(INPUTS_FILE)["settings"], source=str(directory.path / INPUTS_FILE))
    then, now = dict(_settings(started)), dict(_settings(config))
    changed = [
        f"{name} is {json.dumps(now.get(name))} and was {json.dumps(then.get(name))}"
        for name in then | now
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{directory.path / 'config.yaml'} was changed since the run was started: {'; '.join(changed)}. "
            f"Change it back, or {_start_again(directory)}"
        )
    return config


def check_data(directory: RunDirectory, data: Dataset) -> None:
    """Writes down what a run is started with; when it is resumed, compares its images with those.

    Raises:
        UserError: They are other images.
    """
    root = directory.config().dataset.root
    now = {
        "training images": _images(data.training.images, data.labels, root),
        "reference images": _images(data.training.reference, None, root),
        "test images": _images(data.test_images, data.test_labels, root),
    }
    if not (directory.path / INPUTS_FILE).exists():
        settings = directory.config().model_dump(mode="json")
        told = {"summary": list(data.summary), "unreadable": dict(data.unreadable)}
        directory.write_json(INPUTS_FILE, {"settings": settings, "data": now, **told})
        return
    then = directory.read_json(INPUTS_FILE)["data"]
    changed = [difference for name in now if (difference := _difference(name, then[name], now[name]))]
    if changed:
        raise UserError(
            f"dataset {data.name} has changed since {directory.path} was started: {'; '.join(changed)}. "
            f"Restore the images, or {_start_again(directory)}"
        )


def _difference(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    if then["count"] != now["count"]:
        return f"{now['count']:,} {name}, {then['count']:,} then"
    # Images may be in memory this time and on disk the other: what memory there is decides.
    if then["of"] == now["of"] and then["digest"] != now["digest"]:
        return f"other {name} ({now['of']} with digest {now['digest'][:8]}, {then['digest'][:8]} then)"
    return None


def _images(images: NDArray[np.uint8] | ImageFiles, labels: NDArray[np.int64] | None, root: Path) -> dict[str, Any]:
    """Number and digest of images in their order."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(images, ImageFiles):
        for line in images.listing(root):
            digest.update(line)
    else:
        digest.update(repr(images.shape).encode())
        digest.update(np.ascontiguousarray(images).data)
        if labels is not None:
            digest.update(labels.astype("<i8").tobytes())
    kind = "names and sizes of files" if isinstance(images, ImageFiles) else "pixels and labels"
    return {"count": len(images), "of": kind, "digest": digest.hexdigest()}


def _settings(config: ExperimentConfig) -> Iterator[tuple[str, Any]]:
    return _flat(config.model_dump(mode="json"), "")


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if prefix + key in _PLACES:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _start_again(directory: RunDirectory) -> str:
    return f"start a new run: adaptive-ray run {directory.path / 'config.yaml'} --name OTHER"
