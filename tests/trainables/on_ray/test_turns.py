"""The threads of a worker are a function of its samples, so that a resume equals the uninterrupted run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.trainables.runs import CPU, Reports, assert_equal, data, small, without_clocks
from trainables.on_ray.coordinator import Measurement, TrialCoordinator
from trainables.on_ray.race_terms import RaceTerms
from trainables.on_ray.turns import Turns
from trainables.settings import TrainSettings
from trainables.settings.time_budget import TimeBudget
from trainables.training.loop import train

ALONE, SHARED, WINDOW = 2, 1, 32


class Handle:
    """An actor in this process."""

    def __init__(self, actor: TrialCoordinator) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("trainables.on_ray.turns.ray.get", lambda answer: answer)
    monkeypatch.setattr("trainables.on_ray.turns._name", str)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(
    folder: Path,
    resume_from: Path | None = None,
    configured: int = SHARED,
    *,
    in_place_threads: int = ALONE,
    time: TimeBudget | None = None,
    **known: Any,
) -> tuple[Reports, list[int]]:
    """Trains a candidate as a worker does. Returns its reports, and its threads at each of them."""
    coordinator = TrialCoordinator(0, **known)
    coordinator.end_race()
    terms = RaceTerms(Handle(coordinator), WINDOW, SHARED, in_place_threads, ALONE, 1, False, False, time)
    turns, reports, threads = Turns(terms, "16", CPU, configured), Reports(folder), list[int]()

    def report(metrics: dict[str, Any], checkpoint: str | None = None) -> None:
        threads.append(torch.get_num_threads())
        reports(metrics, checkpoint)
        turns.after_report(metrics["samples_seen"])

    own = small(budget=96, batch_size=16)
    settings = turns.settings(TrainSettings.model_validate(own))
    train(settings, data(), report, resume_from, device=CPU, on_ready=turns.begin)
    return reports, threads


def test_a_winner_that_takes_more_threads_in_place_resumes_bit_for_bit(tmp_path: Path) -> None:
    measured = {"16": Measurement(1_000.0, in_place=True)}
    whole, threads = trained(tmp_path / "whole", measured=measured)
    assert threads == [SHARED] + [ALONE] * 2
    for number, configured in enumerate((SHARED, ALONE)):  # at the decision, and after it
        rest, again = trained(tmp_path / f"{number}", whole.folder(number), configured, measured=measured)
        assert again == threads[number + 1 :]
        for one, other in zip(rest.metrics, whole.metrics[number + 1 :], strict=True):
            assert_equal(without_clocks(one), without_clocks(other))
        assert_equal(without_clocks(rest.state()), without_clocks(whole.state()))


def test_candidates_of_a_further_race_share_the_cores_until_one_wins(tmp_path: Path) -> None:
    measured, origins = {"16": Measurement(1_000.0, in_place=True)}, {"16": (64.0, 0.15)}
    first, _ = trained(tmp_path / "first", measured=measured, in_place_threads=SHARED)
    time, fork = TimeBudget(0.2, 0.05, 4), first.folder(1)
    for configured in (SHARED, ALONE):  # Tune restarts the winner with other threads
        rest, threads = trained(
            tmp_path / f"{configured}", fork, configured, measured=measured, origins=origins, time=time
        )
        assert set(threads) == {configured}
        assert rest.metrics[-1]["samples_seen"] == 64 + 4 * 16  # 0.05 s at 1,000 images/s, in whole updates


@pytest.mark.parametrize("left", [0.1, 1e6])
def test_a_winner_gets_cores_that_it_has_not_reserved_if_a_restart_pays(left: float, tmp_path: Path) -> None:
    """In a cluster of others it continues in place with its own cores, or is restarted with all of them."""
    coordinator, made = TrialCoordinator(0), list[Measurement]()
    terms = RaceTerms(Handle(coordinator), 0, SHARED, SHARED, ALONE, 1, False, False, TimeBudget(left, left, 4))
    turns = Turns(terms, "16", CPU, SHARED)

    def measure(run: Any) -> None:
        asked = list[int]()

        def measured(*_: Any, **__: Any) -> float:
            asked.append(torch.get_num_threads())
            return 100.0 * asked[-1]

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("trainables.on_ray.turns.measure_throughput", measured)
            made.append(turns._measure(run, startup=5.0))
        assert asked == [SHARED, ALONE]

    train(small(budget=16), data(), Reports(), device=CPU, on_ready=measure)
    assert made == [Measurement(100.0, in_place=True) if left < 1 else Measurement(200.0, in_place=False)]
