"""Records the settings and data of a run, and checks that they are unchanged when it resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.loading import parse_config
from adaptive_ray.datasets.dataset import Dataset
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.batches import ImageFiles

#: File in the directory of a run.
INPUTS_FILE = "inputs.json"
#: Settings that may change before a run resumes, since no loss depends on them.
_CHANGEABLE = (
    "name.", "runs_dir.", "tracking.", "evaluation.", "dataset.root.", "dataset.download.", "dataset.decoder_threads.",
    "clusters.cache_dir.", "clusters.actors.", "race.max_concurrent.",
)  # fmt: skip


def open_run(path: Path) -> tuple[RunDirectory, ExperimentConfig]:
    """Opens an unfinished run to resume it.

    Raises:
        UserError: There is no run at ``path``, it is finished, or its settings were changed.
    """
    directory = RunDirectory.open(path)
    check_unfinished(directory)
    # The run may have been moved; features are stored beside it.
    return directory, check_settings(directory).model_copy(update={"runs_dir": directory.path.parent})


def check_unfinished(directory: RunDirectory) -> None:
    """Raises ``UserError`` if the run has results."""
    if (directory.path / "result.json").exists():
        raise UserError(f"{directory.path} is already finished; nothing to resume")


def check_settings(directory: RunDirectory) -> ExperimentConfig:
    """Reads the settings of a run to resume. Raises ``UserError`` if they were changed or are invalid."""
    config = directory.config()
    if not (directory.path / INPUTS_FILE).exists():
        return config  # interrupted before the data were loaded
    started = parse_config(directory.read_json(INPUTS_FILE)["settings"], source=str(directory.path / INPUTS_FILE))
    then, now = (dict(flat(each.model_dump(mode="json"))) for each in (started, config))
    changed = [
        f"{name} = {json.dumps(now.get(name))} (was {json.dumps(then.get(name))})"
        for name in then | now
        if then.get(name) != now.get(name) and not f"{name}.".startswith(_CHANGEABLE)
    ]
    if changed:
        raise UserError(
            f"{directory.path / 'config.yaml'} changed since the run started: {'; '.join(changed)}. "
            f"Revert it, or {_start_again(directory)}"
        )
    return config


def check_data(directory: RunDirectory, data: Dataset) -> None:
    """Records the settings and data of a new run. Raises ``UserError`` if the data of a resumed run changed."""
    root = directory.config().dataset.root
    now = {
        "training images": _images(data.training.images, data.labels, root),
        "reference images": _images(data.training.reference, None, root),
        "test images": _images(data.test_images, data.test_labels, root),
    }
    if not (directory.path / INPUTS_FILE).exists():
        settings = directory.config().model_dump(mode="json")
        details = {"summary": list(data.summary), "unreadable": dict(data.unreadable)}
        directory.write_json(INPUTS_FILE, {"settings": settings, "data": now, **details})
        return
    then = directory.read_json(INPUTS_FILE)["data"]
    changed = [difference for name in now if (difference := _difference(name, then[name], now[name]))]
    if changed:
        raise UserError(
            f"dataset {data.name} changed since {directory.path} started: {'; '.join(changed)}. "
            f"Restore the images, or {_start_again(directory)}"
        )


def _difference(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    if then["count"] != now["count"]:
        return f"{now['count']:,} {name} (was {then['count']:,})"
    # The free memory decides whether images are in memory or on disk; digests of the two are not comparable.
    if then["of"] == now["of"] and then["digest"] != now["digest"]:
        return f"{name} differ (digest of {now['of']}: {now['digest'][:8]}, was {then['digest'][:8]})"
    return None


def _images(images: NDArray[np.uint8] | ImageFiles, labels: NDArray[np.int64] | None, root: Path) -> dict[str, Any]:
    """Number and digest of images, in order."""
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


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested settings by their dotted names, for example ``dataset.root``."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _start_again(directory: RunDirectory) -> str:
    return f"start a new run: adaptive-ray run {directory.path / 'config.yaml'} --name OTHER"
