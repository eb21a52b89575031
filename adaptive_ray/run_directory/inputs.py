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
from adaptive_ray.errors import FinishedRunError, UserError
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.batches import ImageFiles

#: File in the directory of a run.
INPUTS_FILE = "inputs.json"
#: Settings that may change before a run resumes, since no loss depends on them.
_CHANGEABLE = (
    "name.", "runs_dir.", "tracking.", "evaluation.", "dataset.root.", "dataset.download.", "dataset.decoder_threads.",
    "clusters.cache_dir.", "clusters.actors.", "race.max_concurrent.",
)  # fmt: skip
#: Files that follow from the inputs. They are made before a run has started.
_DERIVED = ("layout.json", "mlflow.json", "clusters.json", "clusters.html")


def open_run(path: Path) -> tuple[RunDirectory, ExperimentConfig]:
    """Opens an unfinished run to resume it.

    Raises:
        UserError: There is no run at ``path``, it is finished, or its settings were changed.
    """
    directory = RunDirectory.open(path)
    check_unfinished(directory)
    config = directory.config()
    check_settings(directory, config)
    # The run may have been moved; features are stored beside it.
    return directory, config.model_copy(update={"runs_dir": directory.path.parent})


def check_unfinished(directory: RunDirectory) -> None:
    """Raises ``FinishedRunError`` if the run has results."""
    if (directory.path / "result.json").exists():
        raise FinishedRunError(f"{directory.path} is already finished; nothing to resume")


def check_settings(directory: RunDirectory, config: ExperimentConfig) -> None:
    """Raises ``UserError`` if the run has started with other settings than ``config``."""
    file = directory.path / INPUTS_FILE
    if not directory.started:
        return
    if file.exists():
        then = parse_config(directory.read_json(INPUTS_FILE)["settings"], source=str(file))
    else:
        then = directory.config()
    if changed := _changed(then.model_dump(mode="json"), config.model_dump(mode="json")):
        raise UserError(
            f"the settings of {directory.path} changed since it started: {'; '.join(changed)}. "
            "Revert them, or start a new run: adaptive-ray run CONFIG --name OTHER"
        )


def check_inputs(directory: RunDirectory, config: ExperimentConfig, data: Dataset) -> None:
    """Writes the settings to the directory, and records settings and data of a run that has not started.

    Raises:
        UserError: The run has started with other settings or data.
    """
    check_settings(directory, config)
    _check_data(directory, config, data)
    directory.write_config(config)


def _check_data(directory: RunDirectory, config: ExperimentConfig, data: Dataset) -> None:
    file, root = directory.path / INPUTS_FILE, config.dataset.root
    now = {
        "training images": _images(data.training.images, data.labels, root),
        "reference images": _images(data.training.reference, None, root),
        "test images": _images(data.test_images, data.test_labels, root),
    }
    then = directory.read_json(INPUTS_FILE) if file.exists() else None
    if then is None or not directory.started:
        settings = config.model_dump(mode="json")
        if then is not None and (then["data"] != now or _changed(then["settings"], settings)):
            for name in _DERIVED:
                (directory.path / name).unlink(missing_ok=True)
        details = {"summary": list(data.summary), "unreadable": dict(data.unreadable)}
        directory.write_json(INPUTS_FILE, {"settings": settings, "data": now, **details})
        return
    changed = [difference for name in now if (difference := _difference(name, then["data"][name], now[name]))]
    if changed:
        raise UserError(
            f"dataset {data.name} changed since {directory.path} started: {'; '.join(changed)}. "
            f"Restore the images, or start a new run: adaptive-ray run {directory.path / 'config.yaml'} --name OTHER"
        )


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that may not change before a run resumes and differ, with both values."""
    old, new = dict(flat(then)), dict(flat(now))
    return [
        f"{name} = {json.dumps(new.get(name))} (was {json.dumps(old.get(name))})"
        for name in old | new
        if old.get(name) != new.get(name) and not f"{name}.".startswith(_CHANGEABLE)
    ]


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
