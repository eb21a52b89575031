"""The plan of a run whose batch sizes are known."""

from __future__ import annotations

from dataclasses import dataclass

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.plan import Plan
from adaptive_ray.ray_cluster.layout import Layout
from schedulers import Candidate
from trainables.settings import TrainSettings


@dataclass(frozen=True)
class Prepared:
    """A run whose batch sizes are known.

    Args:
        config: With the batch sizes and images per update that follow from the clusters.
        plan: Samples, steps and reports of the run.
        layout: Workers and their resources on this machine; None: the run joins a cluster.
    """

    config: ExperimentConfig
    plan: Plan
    layout: Layout | None

    def settings(self, candidate: Candidate) -> TrainSettings:
        """Returns the settings that a candidate trains with; its policy within the run is set when it trains alone."""
        return TrainSettings(
            **dict(self.config.simclr),
            batch_size=candidate.batch_size,
            accumulation=candidate.accumulation,
            budget=self.plan.budget,
            evaluate_every=self.plan.evaluate_every,
            seed=self.config.seed,
            information=self.config.accumulation,
            sample_weights=self.config.sample_weights,
        )
