"""A clustering on disk beside its features, so that it is computed once and answers the same ever after."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_ray.clusters.counting import Clustering, count_clusters

#: Of the way clusters are counted: what an older one has stored is counted again.
_VERSION = 1
_ARRAYS = ("labels", "sizes", "centrality")


def clustering_file(folder: Path, method: str, m: int | None, seed: int) -> Path:
    """Where a clustering of the features in ``folder`` stands."""
    return folder / f"clusters-{method if m is None else m}-{seed}.npz"


def stored_clustering(folder: Path, method: str, m: int | None, seed: int) -> Clustering | None:
    """What has been counted before; None if nothing was, or the file is damaged or of an older version."""
    try:
        with np.load(clustering_file(folder, method, m, seed)) as file:  # checks the sums of what it reads
            arrays: dict[str, Any] = {name: file[name] for name in _ARRAYS}
            told = json.loads(str(file["told"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if told.pop("version") != _VERSION:
        return None
    told["scores"] = {int(k): score for k, score in told["scores"].items()}
    told["notes"] = tuple(told["notes"])
    return Clustering(**told, **arrays)


def clustering_of(folder: Path, method: str, m: int | None, seed: int) -> Clustering:
    """What has been counted before, else counted now and stored, from the complete features in ``folder``.

    Raises:
        ValueError: See ``count_clusters``.
    """
    known = stored_clustering(folder, method, m, seed)
    if known is not None:
        return known
    features = np.load(folder / "features.npy", mmap_mode="r")
    found = count_clusters(features, method, seed, m=m)
    told = {k: value for k, value in dataclasses.asdict(found).items() if k not in _ARRAYS}
    arrays = {name: getattr(found, name) for name in _ARRAYS}
    buffer = io.BytesIO()
    np.savez(buffer, told=np.array(json.dumps({**told, "version": _VERSION})), **arrays)
    file = clustering_file(folder, method, m, seed)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(buffer.getvalue())
    part.replace(file)
    return found
