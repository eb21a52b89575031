from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule

from adaptive_ray.config.settings import RaceSettings
from adaptive_ray.replay.playback import METRIC, TIME, Playback
from adaptive_ray.replay.policies import POLICIES, VARIANTS
from schedulers import Race
from schedulers.race import MIN_REPORTS
from tests.adaptive_ray.replay.sweeps import sweep

#: Policies that find the best of four clearly different candidates.
INFORMED = sorted(set(POLICIES) - {"random", "per_curve", "always_64", "always_256", "largest"})


@pytest.mark.parametrize("name", INFORMED)
def test_finds_the_best_per_sample(name: str) -> None:
    assert POLICIES[name](sweep(), "samples").chosen == "128"


@pytest.mark.parametrize("name", ["default", "discard", "joint", "sweep"])
def test_finds_the_best_per_second(name: str) -> None:
    assert POLICIES[name](sweep(), "seconds").chosen == "256"


@pytest.mark.parametrize("name", POLICIES)
def test_only_the_chosen_candidate_is_trained_to_the_end(name: str) -> None:
    made = sweep()
    outcome = POLICIES[name](made, "samples")
    assert outcome.reports[outcome.chosen] == 40
    assert set(outcome.reports) == set(made.by_key)
    assert all(0 <= count <= 40 for count in outcome.reports.values())


def test_exploration_cost() -> None:
    explored = {name: sum(policy(sweep(), "samples").reports.values()) - 40 for name, policy in POLICIES.items()}
    assert explored["random"] == 0
    assert explored["sweep"] == 3 * 40
    assert explored["joint"] == explored["last_value"] == explored["discard"] == 3 * 4  # a tenth each
    assert 0 < explored["default"] <= explored["joint"]
    assert 0 < explored["asha"] < explored["sweep"]


def test_choice_depends_only_on_observed_reports() -> None:
    early = sweep()
    bent = [
        run.model_copy(update={"reference_loss": [*run.reference_loss[:8], *([9.0] * 32)]}) if run.key == "128" else run
        for run in early.runs
    ]
    later = replace(early, runs=tuple(bent))
    for name in ("default", "joint", "discard"):
        assert POLICIES[name](later, "samples").chosen == "128"
    assert POLICIES["sweep"](later, "samples").chosen != "128"


def test_random_depends_only_on_the_seed() -> None:
    drawn = [POLICIES["random"](sweep(seed), "samples").chosen for seed in range(8)]
    assert len(set(drawn)) > 1
    assert drawn == [POLICIES["random"](sweep(seed), "samples").chosen for seed in range(8)]


@pytest.mark.parametrize("axis", ["samples", "seconds"])
@pytest.mark.parametrize(
    "scheduler",
    [
        FIFOScheduler(),
        ASHAScheduler(TIME, METRIC, "min", max_t=100),
        HyperBandScheduler(TIME, METRIC, "min", max_t=27),
        MedianStoppingRule(TIME, METRIC, "min", grace_period=10, min_samples_required=2),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_ray_schedulers_terminate(scheduler: FIFOScheduler, axis: str) -> None:
    playback = Playback(sweep(), axis, scheduler)
    playback.run()
    assert all(trial.status == "TERMINATED" for trial in playback.trials.values())
    assert playback.calls == sum(playback.reported.values()) > 0
    if axis == "samples":
        assert playback.reported["128"] == max(playback.reported.values())
    if type(scheduler) is FIFOScheduler:  # no trial is stopped
        made = sweep()
        ends = {run.key: int((run.time(axis) <= made.budget(axis)).sum()) for run in made.runs}
        assert playback.reported == ends
    else:
        assert sum(playback.reported.values()) < 4 * 40


def test_default_policy_matches_the_experiment() -> None:
    settings, defaults = RaceSettings(), inspect.signature(POLICIES["default"]).parameters
    for name in ("rule", "prune_below", "tolerance"):
        assert defaults[name].default == getattr(settings, name)
    assert inspect.signature(Race).parameters["min_reports"].default == MIN_REPORTS


def test_fixed_sizes_fall_back_to_the_nearest_recorded_one() -> None:
    chosen = {name: (POLICIES | VARIANTS)[name](sweep(), "samples").chosen for name in ("always_32", "always_128")}
    assert chosen == {"always_32": "64", "always_128": "128"}
    assert POLICIES["largest"](sweep(), "samples").chosen == VARIANTS["always_2048"](sweep(), "samples").chosen == "512"


def test_variants_spend_more_with_a_longer_window() -> None:
    explored = {
        name: sum(VARIANTS[name](sweep(), "samples").reports.values())
        for name in ("discard_2%", "discard_20%", "default_4%", "default_20%", "asha_1%_4", "asha_10%_2")
    }
    assert explored["discard_2%"] < explored["discard_20%"] == 40 + 3 * 8
    assert explored["default_4%"] < explored["default_20%"] < explored["discard_20%"]
    assert explored["asha_1%_4"] < explored["asha_10%_2"]
