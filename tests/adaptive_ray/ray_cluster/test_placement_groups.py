"""Placement groups of dead processes are removed, and no others."""

from __future__ import annotations

import time

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from adaptive_ray.ray_cluster.placement_groups import places, release_orphans

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(120)]


class Controller:
    """Reserves a core, like Ray Train's controller before it starts workers."""

    def reserve(self) -> str:
        self.group = placement_group([{"CPU": 1}])
        ray.get(self.group.ready())
        return str(self.group.id.hex())


def test_placement_groups_of_dead_creators_are_removed_and_others_are_not() -> None:
    own = placement_group([{"CPU": 1}])
    ray.get(own.ready())
    living, dead = (ray.remote(num_cpus=0)(Controller).remote() for _ in range(2))
    kept, orphan = ray.get([living.reserve.remote(), dead.reserve.remote()])
    release_orphans()
    assert {own.id.hex(), kept, orphan} <= places().keys()
    ray.kill(dead)
    deadline = time.monotonic() + 60
    while orphan in places() and time.monotonic() < deadline:
        time.sleep(0.1)  # Ray detects a death with a delay
        release_orphans()
    assert {own.id.hex(), kept} <= places().keys()
    assert orphan not in places()
    ray.kill(living)
    remove_placement_group(own)
    while kept in places() and time.monotonic() < deadline:
        time.sleep(0.1)
        release_orphans()
    assert kept not in places()
