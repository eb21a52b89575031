"""Stores a clustering on disk next to its features, so that it is computed once."""

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
from adaptive_ray.config.clusters import ClusterSettings

#: Version of the clustering algorithm; results of older versions are computed again.
_VERSION = 1
_ARRAYS = ("labels", "sizes", "centrality")


def clustering_file(folder: Path, settings: ClusterSettings, seed: int) -> Path:
    """Returns the file of a clustering of the features in ``folder``."""
    return folder / f"clusters-{settings.n_clusters or settings.method}-{seed}.npz"


def stored_clustering(folder: Path, settings: ClusterSettings, seed: int) -> Clustering | None:
    """Loads a clustering; None if there is none, or the file is corrupt or of an older version."""
    try:
        with np.load(clustering_file(folder, settings, seed)) as file:  # verifies checksums
            arrays: dict[str, Any] = {name: file[name] for name in _ARRAYS}
            entries = json.loads(str(file["entries"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if entries.pop("version") != _VERSION:
        return None
    entries["scores"] = {int(k): score for k, score in entries["scores"].items()}
    entries["notes"] = tuple(entries["notes"])
    return Clustering(**entries, **arrays)


def clustering_of(folder: Path, settings: ClusterSettings, seed: int) -> Clustering:
    """Loads a clustering, or computes and stores it from the complete features in ``folder``.

    Raises:
        ValueError: See ``count_clusters``.
    """
    known = stored_clustering(folder, settings, seed)
    if known is not None:
        return known
    features = np.load(folder / "features.npy", mmap_mode="r")
    found = count_clusters(features, settings.method, seed, m=settings.n_clusters)
    entries = {k: value for k, value in dataclasses.asdict(found).items() if k not in _ARRAYS}
    arrays = {name: getattr(found, name) for name in _ARRAYS}
    buffer = io.BytesIO()
    np.savez(buffer, entries=np.array(json.dumps({**entries, "version": _VERSION})), **arrays)
    file = clustering_file(folder, settings, seed)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(buffer.getvalue())
    part.replace(file)
    return found
