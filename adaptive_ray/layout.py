"""How a cluster's devices are shared between candidates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adaptive_ray.config import ExperimentConfig
from adaptive_ray.errors import UserError


@dataclass(frozen=True)
class Workers:
    """The workers of one Ray Train run."""

    count: int
    cpus: float  # of each
    gpus: float  # of each

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Layout:
    """Who trains on what: each candidate's workers in the race, and the winner's after it."""

    race: Workers
    stretch: Workers

    @classmethod
    def of(cls, config: ExperimentConfig, *, cpus: float, gpus: float) -> Layout:
        """Shares ``cpus`` and ``gpus`` out so that all candidates train at the same time.

        Workers share a core or a GPU when there are more of them than devices.

        Raises:
            UserError: A run needs more workers than the cluster has devices for.
        """
        on_gpu = gpus >= 1 if config.trial.gpu == "auto" else config.trial.gpu
        if on_gpu and gpus < 1:
            raise UserError("trial.gpu = true, but the cluster has no GPU; set trial.gpu=false or add one")
        device, available = ("GPUs", int(gpus)) if on_gpu else ("CPU cores", int(cpus / config.trial.cpus))
        per_trial, candidates = config.trial.workers, len(config.choices)
        smallest = min(candidate.batch_size for candidate in config.choices)
        stretch = available if config.stretch.workers == "auto" else config.stretch.workers
        for name, wanted in (("trial.workers", per_trial), ("stretch.workers", stretch)):
            if not 1 <= wanted <= available:
                raise UserError(
                    f"{name} = {wanted}: the cluster has {device} for {available} workers "
                    f"({cpus:g} CPU cores, {gpus:g} GPUs); lower it or join a larger cluster with --address"
                )
            if wanted > smallest and (name == "trial.workers" or config.stretch.workers != "auto"):
                raise UserError(
                    f"{name} = {wanted}: batch size {smallest} leaves workers without an image; "
                    f"lower it or race larger batches"
                )
        needed = per_trial * candidates
        if on_gpu and per_trial > 1 and needed > available:
            raise UserError(
                f"trial.workers = {per_trial}: {candidates} candidates need {needed} GPUs and the cluster has "
                f"{available}; workers of one run cannot share a GPU, so lower trial.workers or race fewer candidates"
            )
        sharing = math.ceil(needed / available)
        stretch = min(stretch, smallest)
        if on_gpu:
            cores = min(config.trial.cpus, cpus / max(needed, stretch))
            return cls(Workers(per_trial, cores, 1 / sharing), Workers(stretch, cores, 1))
        return cls(Workers(per_trial, config.trial.cpus / sharing, 0), Workers(stretch, config.trial.cpus, 0))
