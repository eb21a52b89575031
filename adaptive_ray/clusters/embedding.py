"""Computes the features of a data set with a pool of Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adaptive_ray.clusters.encoders import ImageEncoder, open_encoder
from adaptive_ray.clusters.feature_store import FeatureFile
from adaptive_ray.errors import AdaptiveRayError, PlacementError, UserError, first_line
from adaptive_ray.ray_cluster.nodes import described, free_devices, no_place
from trainables.batches import ImageFiles

#: Shards per actor: one in progress, one queued. More would only fill the object store.
_QUEUED = 2
#: Images that ``pixels`` fits its components to.
_SAMPLE = 2_000
#: Maximum restarts of an actor, and retries of a shard.
_RETRIES = 4
#: Seconds to wait for the placement of actors.
_TIMEOUT = 45

Images = NDArray[np.uint8]
#: Called with the number of finished images, of all images, and of actors.
Report = Callable[[int, int, int], None]


class Embedder:
    """An actor that embeds shards with an encoder of ``open_encoder``."""

    def __init__(self, name: str, input_size: int) -> None:
        torch.set_num_threads(1)  # one actor per core
        self._name, self._input_size = name, input_size
        self._encoder: ImageEncoder | None = None

    def embed(self, shared: list[Any], rows: slice) -> tuple[slice, NDArray[np.float16]]:
        """Returns ``rows`` and the features of these images, float16 [m, d].

        ``shared`` holds a reference to all images (in a list, so that Ray keeps it).
        """
        images = ray.get(shared[0])
        if self._encoder is None:
            self._encoder = open_encoder(self._name, input_size=self._input_size, sample=sample_of(images))
        return rows, self._encoder(channels_last(images[rows])).astype(np.float16)


def embed(
    images: Images | ImageFiles, file: FeatureFile, name: str, input_size: int, count: int | None, report: Report
) -> None:
    """Computes the missing shards of a feature file with ``open_encoder(name, input_size)``. Ray must be initialised.

    An actor that dies is restarted and repeats its unfinished shards. There are ``count`` actors; None: one per GPU or,
    without GPUs, one per CPU core. Files must be accessible from all nodes.

    Raises:
        UserError: The encoder or an image file is not available.
        AdaptiveRayError: Actors died repeatedly.
    """
    missing = file.missing()
    if not missing:
        return
    done = len(images) - sum(rows.stop - rows.start for rows in missing)
    with _pool(name, input_size, count) as actors:
        shared = [ray.put(images)]
        report(done, len(images), len(actors))
        pool = ActorPool(_QUEUED * actors)
        try:
            for rows, features in pool.map_unordered(lambda actor, rows: actor.embed.remote(shared, rows), missing):
                file.write(rows, features)
                done += rows.stop - rows.start
                report(done, len(images), len(actors))
        except RayTaskError as error:
            raise UserError(first_line(error.cause)) from None
        except RayActorError as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
            raise AdaptiveRayError(f"an embedding process died {_RETRIES + 1} times: {reason}") from None


def sample_of(images: Images | ImageFiles) -> Images:
    """Returns the images that ``pixels`` fits its components to, [m, H, W, C]."""
    return channels_last(images[: min(_SAMPLE, len(images))])


def channels_last(images: Images) -> Images:
    """Transposes images from [n, C, H, W] to [n, H, W, C]."""
    return images.transpose(0, 2, 3, 1)


@contextmanager
def _pool(name: str, input_size: int, count: int | None) -> Iterator[list[Any]]:
    """Starts ``count`` actors, or one per free device.

    Raises:
        UserError: Fewer devices are free.
        PlacementError: The devices were taken meanwhile.
    """
    nodes = free_devices().values()
    gpus = sum(int(node.gpus) for node in nodes)
    free = gpus or sum(int(node.cpus) for node in nodes)
    if (count or 1) > free:
        device = "GPUs" if gpus else "CPU cores"
        raise UserError(
            f"clusters.actors = {count or 'auto'}: {free} {device} are free ({described(nodes)}); "
            f"lower it, wait, or join a larger cluster with --address"
        )
    each = {"GPU": 1} if gpus else {"CPU": 1}
    group = placement_group([each] * (count or free), strategy="SPREAD")
    try:
        if not group.wait(_TIMEOUT):
            raise PlacementError(no_place(group.bundle_specs, _TIMEOUT))
        actor = ray.remote(
            num_cpus=each.get("CPU", 0), num_gpus=each.get("GPU", 0), max_restarts=_RETRIES, max_task_retries=_RETRIES
        )(Embedder)
        places = [PlacementGroupSchedulingStrategy(group, index) for index in range(group.bundle_count)]
        yield [actor.options(scheduling_strategy=place).remote(name, input_size) for place in places]
    finally:
        remove_placement_group(group)  # also stops the actors
