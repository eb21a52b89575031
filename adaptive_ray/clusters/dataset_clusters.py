"""The clusters of a data set, loaded from disk or computed from its images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_ray.clusters.clustering_store import clustering_file, clustering_of, stored_clustering
from adaptive_ray.clusters.consequences import reduced_features
from adaptive_ray.clusters.counting import Clustering
from adaptive_ray.clusters.embedding import Report, embed, sample_of
from adaptive_ray.clusters.encoders import open_encoder
from adaptive_ray.clusters.feature_store import FeatureFile
from adaptive_ray.clusters.service import start_service
from adaptive_ray.clusters.vectors import Points
from adaptive_ray.config.clusters import AlphaM, ClusterSettings
from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError
from trainables.batches import ImageFiles


class DatasetClusters:
    """The clusters of a set of images. The constructor loads the encoder, so that errors are raised early.

    ``cache`` is a directory of features and clusters, with a folder for each set of images and encoder.

    Raises:
        UserError: The encoder is not available, or ``m`` exceeds the number of images.
    """

    def __init__(
        self, images: NDArray[np.uint8] | ImageFiles, settings: ClusterSettings, cache: Path, seed: int
    ) -> None:
        self.settings, self.seed, self._images = settings, seed, images
        if settings.n_clusters is not None and settings.n_clusters > len(images):
            raise UserError(
                f"clusters.n_clusters = {settings.n_clusters}: there are only {len(images):,} training images; lower it"
            )
        sample, cpu = sample_of(images), torch.device("cpu")
        encoder = open_encoder(settings.encoder, input_size=settings.input_size, sample=sample, device=cpu)
        self._input_size = encoder.input_size
        self.folder = cache / f"{_digest(images)}-{encoder.fingerprint[:12]}-{encoder.input_size}"
        self._file = FeatureFile(self.folder, len(images))
        self.known: Clustering | None = stored_clustering(self.folder, settings, seed)

    @classmethod
    def of(cls, config: ExperimentConfig, images: NDArray[np.uint8] | ImageFiles) -> DatasetClusters:
        """Returns the clusters of an experiment's training images."""
        cache = (config.clusters.cache_dir or config.runs_dir / "features").absolute()
        return cls(images, config.clusters, cache, config.seed)

    @property
    def complete(self) -> bool:
        """Whether all features are on disk and intact."""
        return not self._file.missing()

    def embed(self, report: Report) -> None:
        """Computes the features that are not on disk with Ray actors. Ray must be initialised.

        Raises:
            UserError: An image file is corrupt, or the encoder is not available on another node.
        """
        count = None if self.settings.actors == "auto" else self.settings.actors
        embed(self._images, self._file, self.settings.encoder, self._input_size, count, report)

    def reduced(self) -> Points | None:
        """Returns the result of ``reduced_features``; None while features are missing."""
        return reduced_features(self.folder, self.seed) if self.complete else None

    def clustering(self) -> Clustering:
        """Loads or computes the clustering of the complete features.

        Raises:
            UserError: The features cannot be clustered with these settings.
        """
        try:
            self.known = clustering_of(self.folder, self.settings, self.seed)
        except ValueError as error:
            raise UserError(f"clusters: {error}") from None
        return self.known

    def present(self, page: Path, name: str, alpha: AlphaM) -> dict[str, Any]:
        """Writes the HTML page about the clusters of the data set ``name`` and returns ``summary_of`` them."""
        from adaptive_ray.clusters.page import summary_of, write_page  # imports matplotlib

        assert self.known is not None, "call clustering() first"
        summary = summary_of(self.known, self.settings.encoder, alpha)
        write_page(page, name, self._images, self._file.read(), self.known, summary)
        return summary

    def service(self, order: str) -> Any:
        """Starts the actor that serves the clusters; see ``ClusterService``. Ray must be initialised."""
        name = f"{clustering_file(self.folder, self.settings, self.seed).stem}-{order}-{self.folder.name}"
        return start_service(name, self.folder, self.settings, self.seed, order)


def _digest(images: NDArray[np.uint8] | ImageFiles) -> str:
    """Returns a digest of the images or, for files, of their names, sizes and modification times."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(images, ImageFiles):
        for line in images.stamps():
            digest.update(line)
    else:
        digest.update(repr(images.shape).encode())
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()
