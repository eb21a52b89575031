"""Runs the trials of Ray Tune in this process. Only the actors are replaced; Tune and its controller are Ray's."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple

import pytest
import ray
from ray.air.execution._internal import actor_manager
from ray.air.execution.resources.fixed import FixedAcquiredResources, FixedResourceManager
from ray.exceptions import RayTaskError
from ray.train._internal import session
from ray.tune import ResultGrid
from ray.tune.execution import tune_controller

from tests.schedulers.tune import walkers


class Actor:
    """An actor and its handle: methods run when they are called."""

    def __init__(self, cls: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self._session: Any = None
        self._instance = self._run(cls, **arguments)

    def _run(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Swaps the global session, in which functions report: a process has one."""
        session._session, others = self._session, session._session
        try:
            return method(*args, **kwargs)
        finally:
            self._session, session._session = session._session, others

    def __getattr__(self, name: str) -> Method:
        return Method(partial(self._run, getattr(self._instance, name)), name)


class Method(NamedTuple):
    call: Callable[..., Any]
    name: str

    def remote(self, *args: Any, **kwargs: Any) -> ray.ObjectRef:
        try:
            return ray.put(self.call(*args, **kwargs))
        except Exception as error:  # all errors are passed to the caller
            return ray.put(RayTaskError(self.name, traceback.format_exc(), error))


class ActorClass(NamedTuple):
    cls: Callable[..., Any]

    def remote(self, **arguments: Any) -> Actor:
        return Actor(self.cls, arguments)


@dataclass
class AcquiredHere(FixedAcquiredResources):  # type: ignore[misc]
    def _annotate_remote_entity(self, entity: Any, bundle: Any, bundle_index: int) -> Any:
        return ActorClass(entity.__ray_metadata__.modified_class)


class ResourcesHere(FixedResourceManager):  # type: ignore[misc]
    _resource_cls = AcquiredHere


class Order:
    """The order in which results arrive: random with a seed, else that of the calls."""

    def __init__(self, seed: int | None) -> None:
        self.rng = None if seed is None else random.Random(seed)

    def shuffle(self, futures: list[ray.ObjectRef]) -> None:
        futures.sort(key=lambda future: int.from_bytes(future.binary()[-4:], "little"))
        if self.rng is not None:
            self.rng.shuffle(futures)


@contextmanager
def trials_in_this_process(*, cpus: float = 4, seed: int | None = None) -> Iterator[None]:
    """Makes Tune run trials in this process, as on a machine with this number of CPUs.

    Starting a process takes a second per trial; the calls of the scheduler are the same.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_controller, "PlacementGroupResourceManager", lambda: ResourcesHere({"CPU": cpus}))
        patch.setattr(actor_manager, "random", Order(seed))
        patch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
        patch.setattr(walkers, "pause", lambda *_: None)
        patch.setattr(walkers, "gather", lambda *_: None)  # all start together anyway
        yield


@wraps(walkers.run)
def run_here(*arguments: Any, **settings: Any) -> tuple[ResultGrid, Any]:
    """Like ``walkers.run``, with trials in this process."""
    with trials_in_this_process():
        return walkers.run(*arguments, **settings)
