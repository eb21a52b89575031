"""Requirements of any Tune scheduler that stops trials early, checked for this scheduler and two of Ray's.

Trials run in this process, and their results arrive in several orders. One test starts processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from ray import tune
from ray.tune import ResultGrid
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from schedulers import LossExtrapolationScheduler
from tests.schedulers.tune.in_process import trials_in_this_process
from tests.schedulers.tune.walkers import Walker, last, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(240)]

#: The last iteration of any trial.
END = 12
GOAL = {"metric": "loss", "mode": "min"}

SCHEDULERS: dict[str, Callable[[], TrialScheduler]] = {
    "ours": lambda: LossExtrapolationScheduler(
        **GOAL, time_attr="training_iteration", budget=END, window=5, min_reports=3
    ),
    "asha": lambda: ASHAScheduler(**GOAL, max_t=END, grace_period=3),
    "median": lambda: MedianStoppingRule(
        **GOAL, time_attr="training_iteration", grace_period=3, min_samples_required=2
    ),
}


class Witness(tune.Callback):
    """Counts iterations, and checks that the scheduler can be pickled and described at any time."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self.scheduler = scheduler
        self.beyond: list[int] = []
        self.asked = 0

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if result["training_iteration"] > END:
            self.beyond.append(result["training_iteration"])
        assert isinstance(self.scheduler.debug_string(), str)
        if self.asked < 5:
            self.asked += 1
            again = cloudpickle.loads(cloudpickle.dumps(self.scheduler))
            assert type(again) is type(self.scheduler)
            assert isinstance(again.debug_string(), str)


ORDERS = [(name, seed) for seed in (None, 1, 2) for name in SCHEDULERS]


@pytest.fixture(params=ORDERS, ids=lambda order: "{}, order {}".format(*order))
def compete(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., ResultGrid]]:
    """Runs an experiment in this process with trials of these efficiencies."""
    chosen, seed = request.param
    with trials_in_this_process(seed=seed):
        yield partial(experiment, chosen, tmp_path)


def experiment(
    chosen: str, storage: Path, rates: dict[str, float], *, cpus: float = 0.5, max_failures: int = 0, **extra: Any
) -> ResultGrid:
    """Runs an experiment and checks that no trial trains beyond the end."""
    scheduler = SCHEDULERS[chosen]()
    witness = Witness(scheduler)
    results, _ = run(
        Walker,
        rates,
        storage,
        scheduler=scheduler,
        extra=extra,
        cpus=cpus,
        tune_config={"reuse_actors": True},  # starting a process takes seconds
        run_config={
            "stop": {"training_iteration": END} if chosen == "median" else None,
            "callbacks": [witness],
            "failure_config": tune.FailureConfig(max_failures=max_failures),
        },
    )
    assert witness.asked > 0
    assert witness.beyond == []
    assert len(results) == len(rates)
    return results


def iterations(results: ResultGrid) -> dict[str, int]:
    return {key: metrics.get("training_iteration", 0) for key, metrics in last(results).items()}


def test_best_trial_reaches_the_end(compete: Callable[..., ResultGrid]) -> None:
    results = compete({"a": 0.5, "b": 2.0, "c": 0.4, "d": 0.3})
    assert not results.errors
    assert iterations(results)["b"] == END
    assert results.get_best_result("loss", "min").config["candidate"] == "b"  # type: ignore[index]


def test_more_trials_than_slots_take_turns(compete: Callable[..., ResultGrid]) -> None:
    results = compete({"a": 0.5, "b": 0.6, "c": 2.0, "d": 0.4, "e": 0.3}, cpus=2.0)
    assert not results.errors
    assert iterations(results)["c"] == END
    assert min(iterations(results).values()) >= 1


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # from ASHA, for a rung of nan
def test_failed_trials_do_not_block_the_others(compete: Callable[..., ResultGrid]) -> None:
    rates = {"raises": 3.0, "nan": 0.4, "sound": 2.0, "slow": 0.3}
    results = compete(rates, cpus=2.0, raises_at={"raises": 2_000}, nan_at={"nan": 3_000})
    assert len(results.errors) == 1
    assert "broken" in str(results.errors[0])
    assert iterations(results)["sound"] == END


def test_retried_trial_continues(compete: Callable[..., ResultGrid], tmp_path: Path) -> None:
    rates = {"a": 0.5, "b": 2.0, "c": 0.4}
    results = compete(rates, max_failures=1, raises_at={"b": 2_000}, flaky=str(tmp_path / "failed"))
    assert (tmp_path / "failed").exists()
    assert not results.errors
    assert iterations(results)["b"] == END


def test_single_trial_reaches_the_end(compete: Callable[..., ResultGrid]) -> None:
    assert iterations(compete({"only": 1.0})) == {"only": END}


def test_one_of_equal_trials_reaches_the_end(compete: Callable[..., ResultGrid]) -> None:
    assert max(iterations(compete(dict.fromkeys("abc", 1.0))).values()) == END


def test_trials_may_finish_early(compete: Callable[..., ResultGrid]) -> None:
    results = compete({"a": 0.5, "b": 2.0, "c": 0.4}, ends_at=7_000)
    assert not results.errors
    assert max(iterations(results).values()) == 7


@pytest.mark.parametrize("chosen", ["ours", "asha"])
def test_same_with_one_process_per_trial(chosen: str, tmp_path: Path) -> None:
    rates = {"raises": 3.0, "b": 0.6, "c": 2.0, "d": 0.4}
    results = experiment(chosen, tmp_path, rates, cpus=2.0, raises_at={"raises": 2_000})
    assert len(results.errors) == 1
    assert "broken" in str(results.errors[0])
    assert iterations(results)["c"] == END
    assert min(iterations(results).values()) >= 1
