"""Features of a whole data set, computed by a pool of Ray actors and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adaptive_ray.clusters.encoders import ImageEncoder, open_encoder
from adaptive_ray.clusters.feature_store import FeatureFile
from adaptive_ray.errors import AdaptiveRayError, PlacementError, UserError
from adaptive_ray.ray_cluster.nodes import described, free_devices, no_place
from trainables.batches import ImageFiles

#: Shards that an actor has at hand: one in work, one waiting. More would only fill the object store.
_AT_HAND = 2
#: Images that ``pixels`` learns its components from.
_SAMPLE = 2_000
#: Times that an actor is started again, and that a shard is tried again.
_RETRIES = 4
#: Seconds that actors may wait for their place.
_PATIENCE = 45

Images = NDArray[np.uint8]
#: Told how many images are done, of how many, by how many actors.
Report = Callable[[int, int, int], None]


class Embedder:
    """An actor: it holds an encoder and embeds shards.

    What it is made with is small, so that it can be made again; the images come with each shard.

    Args:
        name: Of the encoder; see ``open_encoder``.
        input_size: Side in pixels of what it sees.
    """

    def __init__(self, name: str, input_size: int) -> None:
        torch.set_num_threads(1)  # there is an actor for each core
        self._name, self._input_size = name, input_size
        self._encoder: ImageEncoder | None = None

    def embed(self, shared: list[Any], start: int, stop: int) -> NDArray[np.float16]:
        """Features of the images from ``start`` to ``stop``: float16 [m, d].

        Args:
            shared: A reference to all images, in a list, so that Ray passes the reference on.
            start: Of the shard.
            stop: Where it ends.
        """
        images = ray.get(shared[0])
        if self._encoder is None:
            self._encoder = open_encoder(self._name, input_size=self._input_size, sample=sample_of(images))
        return self._encoder(channels_last(images[start:stop])).astype(np.float16)


def embed(
    images: Images | ImageFiles, file: FeatureFile, name: str, input_size: int, count: int | None, report: Report
) -> None:
    """Fills a file of features: what is there and whole stays, the rest is computed. Ray must be initialised.

    A lost actor is started again and repeats the shards it was at; what is finished stays.

    Args:
        images: uint8 [n, C, H, W], or files that all nodes reach.
        file: Of the features.
        name: Of the encoder; see ``open_encoder``.
        input_size: Side in pixels of what it sees.
        count: Of actors; None: one for each GPU, without any one for each CPU core.
        report: Takes the progress.

    Raises:
        UserError: The encoder or an image file cannot be had.
        AdaptiveRayError: Actors died again and again.
    """
    missing = file.missing()
    if not missing:
        return
    done = len(images) - sum(rows.stop - rows.start for rows in missing)
    with _pool(name, input_size, count) as actors, _failures():
        shared = [ray.put(images)]
        waiting = iter(missing)
        running: dict[Any, tuple[slice, Any]] = {}

        def give(actor: Any) -> None:
            if (rows := next(waiting, None)) is not None:
                running[actor.embed.remote(shared, rows.start, rows.stop)] = rows, actor

        report(done, len(images), len(actors))
        for actor in _AT_HAND * actors:
            give(actor)
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            rows, actor = running.pop(ready)
            file.write(rows, ray.get(ready))
            give(actor)
            done += rows.stop - rows.start
            report(done, len(images), len(actors))


def sample_of(images: Images | ImageFiles) -> Images:
    """What ``pixels`` learns its components from: the first images, [m, H, W, C]."""
    return channels_last(images[: min(_SAMPLE, len(images))])


def channels_last(images: Images) -> Images:
    """uint8 [n, C, H, W] -> [n, H, W, C]."""
    return images.transpose(0, 2, 3, 1)


@contextmanager
def _pool(name: str, input_size: int, count: int | None) -> Iterator[list[Any]]:
    """As many actors as devices are free, or as are wanted.

    Raises:
        UserError: Fewer devices are free.
        PlacementError: Others have taken them meanwhile.
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
        if not group.wait(_PATIENCE):
            raise PlacementError(no_place(group.bundle_specs, _PATIENCE))
        actor = ray.remote(
            num_cpus=each.get("CPU", 0), num_gpus=each.get("GPU", 0), max_restarts=_RETRIES, max_task_retries=_RETRIES
        )(Embedder)
        yield [
            actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote(name, input_size)
            for index in range(group.bundle_count)
        ]
    finally:
        remove_placement_group(group)  # and with it the actors


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except RayTaskError as error:
        raise UserError(str(error.cause).splitlines()[0]) from None
    except RayActorError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise AdaptiveRayError(f"an embedding process died {_RETRIES + 1} times: {reason}") from None
