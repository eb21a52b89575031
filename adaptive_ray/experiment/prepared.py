"""The plan of a run whose batch sizes are known."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.plan import Plan
from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster.layout import Layout
from adaptive_ray.ray_cluster.nodes import Node, free_nodes, this_machine
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.settings import TrainSettings
from trainables.simclr import Encoder
from trainables.training.micro_batch import training_bytes

#: Minimum micro-batch for which memory is counted if micro_batch is auto.
_FEW_IMAGES = 32
#: Timeout in seconds for resources that other jobs are releasing.
_TIMEOUT = 30


@dataclass(frozen=True)
class Prepared:
    """A run whose batch sizes are known."""

    config: ExperimentConfig  # with the batch sizes and images per update that follow from the clusters
    plan: Plan  # samples, steps and reports of the run
    memory: int  # minimum bytes of a worker's training
    layout: Layout | None  # workers and their resources on this machine; None: the run joins a cluster

    @classmethod
    def of(
        cls, config: ExperimentConfig, plan: Plan, encoder: Encoder, shape: tuple[int, int, int], *, local: bool
    ) -> Prepared:
        """Computes the memory for images of ``shape`` (C, H, W) and, if the run is local, the layout."""
        micro_batch = config.simclr.micro_batch
        images = _FEW_IMAGES if micro_batch == "auto" else micro_batch
        shard = max(candidate.batch_size for candidate in config.choices) // config.trial.workers
        memory = training_bytes(encoder, shape, min(images, max(shard, 1)))
        return cls(config, plan, memory, Layout.of(config, [this_machine()], memory) if local else None)

    def place(self, directory: RunDirectory, nodes: Sequence[Node]) -> Layout:
        """Divides the free resources and writes the layout. A started run keeps its layout if they suffice.

        In a cluster, it retries for up to 30 seconds while other jobs release resources.
        """
        file = directory.path / "layout.json"
        before = Layout.read(directory.read_json(file.name)) if directory.started and file.exists() else None
        deadline = time.monotonic() + (0 if self.layout is not None else _TIMEOUT)
        while True:
            last = time.monotonic() >= deadline
            try:
                layout = Layout.of(self.config, nodes, self.memory, before=before)
                if last or before is None or (layout.race, layout.winner) == (before.race, before.winner):
                    break
            except UserError:
                if last:
                    raise
            time.sleep(1)
            nodes = free_nodes()
        directory.write_json(file.name, dataclasses.asdict(layout))
        return layout

    def settings(self) -> dict[str, TrainSettings]:
        """Returns the settings of each candidate by its key; a policy is added when a candidate trains alone."""
        common = {
            **dict(self.config.simclr),
            "budget": self.plan.budget,
            "evaluate_every": self.plan.evaluate_every,
            "knn_every": self.plan.knn_every,
            "seed": self.config.seed,
            "information": self.config.accumulation,
            "sample_weights": self.config.sample_weights,
        }
        return {
            c.key: TrainSettings(batch_size=c.batch_size, accumulation=c.accumulation, **common)
            for c in self.plan.candidates
        }
