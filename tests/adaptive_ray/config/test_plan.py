"""Plans: number of samples, and invalid configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.config.loading import parse_config
from adaptive_ray.config.plan import Plan
from adaptive_ray.config.settings import EvaluationSettings
from adaptive_ray.errors import UserError
from schedulers import Candidate
from schedulers.race import MIN_REPORTS
from trainables.settings import InformationSettings
from trainables.settings.time_budget import TimeBudget


def configured(candidates: list[Any], budget: dict[str, Any], window: dict[str, Any], **race: Any) -> ExperimentConfig:
    return parse_config(
        {
            "dataset": {"name": "mnist5k"},
            "candidates": candidates,
            "budget": budget,
            "race": {"window": window, **race},
        }
    )


def complaint(config: ExperimentConfig, images: int) -> str:
    with pytest.raises(UserError) as caught:
        Plan.of(config, images)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestArithmetic:
    def test_epochs(self) -> None:
        config = configured([10, 20], {"epochs": 2.5}, {"epochs": 1}, evaluations=5)
        plan = Plan.of(config, 1000)
        both = (Candidate(10), Candidate(20))
        images = {Candidate(10): 10, Candidate(20): 20}
        assert plan == Plan(
            both, both, images, 1000, budget=2500, window=1000, evaluate_every=200, turn=400, rerace="never"
        )

    def test_turns_are_epochs_unless_the_run_is_short(self) -> None:
        def rotating(epochs: float) -> Plan:
            config = configured([10, 20], {"epochs": epochs}, {"epochs": 1}, evaluations=5)
            return Plan.of(config.model_copy(update={"explore": "rotate"}), 1000)

        assert rotating(100).turn == 1000
        assert rotating(12).turn == 600  # ten of each candidate
        assert rotating(12).trials == (Candidate(10),)
        assert rotating(12).explore_limit == 0

    def test_explore_limit_of_reraces(self) -> None:
        def limit(rerace: Any) -> int:
            config = configured([10, 20], {"epochs": 10}, {"epochs": 1}, evaluations=5, rerace=rerace)
            return Plan.of(config, 1000).explore_limit

        assert limit("never") == 1000
        assert limit({"at": [0.3, 0.6]}) == 3000
        assert limit("on_deviation") == 10_000

    def test_reports_are_at_multiples_of_every_batch_size(self) -> None:
        # 7,488 samples in 7 reports are 1,069 each; the nearest multiple of 256 (which 64 and 128 divide) is 1,024
        plan = Plan.of(configured([64, 128, 256], {"epochs": 7}, {"epochs": 2}, evaluations=7), 3744)
        assert plan.evaluate_every == 1024
        assert plan.window == 7 * 1024
        assert plan.budget == 7 * 3744

    def test_without_a_common_multiple_reports_are_as_configured(self) -> None:
        plan = Plan.of(configured([64, 100, 81], {"samples": 8000}, {"samples": 2000}, evaluations=10), 4000)
        assert plan.evaluate_every == 200
        assert plan.window == 2000

    def test_the_window_does_not_exceed_the_budget(self) -> None:
        # 1,000 samples in 4 reports are 250 each; on a grid of 64 they would come to 4 x 256
        plan = Plan.of(configured([64], {"samples": 1000}, {"samples": 1000}, evaluations=4), 4000)
        assert plan.evaluate_every % 64 == 0
        assert 900 <= plan.window <= plan.budget == 1000

    def test_steps(self) -> None:
        plan = Plan.of(configured([64, 100], {"samples": 1000}, {"samples": 800}), 4000)
        assert [plan.steps(candidate) for candidate in plan.candidates] == [16, 10]

    def test_an_update_takes_all_the_images_that_it_accumulates(self) -> None:
        accumulating = {"batch_size": 64, "accumulation": 4}
        plan = Plan.of(configured([128, accumulating], {"samples": 8000}, {"samples": 2100}, evaluations=8), 4000)
        assert plan.candidates == (Candidate(128), Candidate(64, 4))
        assert [plan.steps(candidate) for candidate in plan.candidates] == [63, 32]
        assert (plan.evaluate_every, plan.window) == (256, 2048)

    @pytest.mark.parametrize(("count", "cost"), [(1, 0), (2, 2048), (4, 6144)])
    def test_explore_limit_is_the_window_of_each_loser(self, count: int, cost: int) -> None:
        sizes = [8, 16, 32, 64][:count]
        plan = Plan.of(configured(sizes, {"samples": 9000}, {"samples": 2048}, evaluations=8), 4000)
        assert plan.window == 2048
        assert plan.explore_limit == cost

    @given(
        sizes=st.lists(st.sampled_from([2, 16, 32, 48, 64, 100, 128, 256, 512]), min_size=1, max_size=5, unique=True),
        window=st.integers(8, 20_000),
        extra=st.integers(0, 50_000),
        evaluations=st.integers(4, 60),
    )
    def test_accepted_settings_give_consistent_plans(
        self, sizes: list[int], window: int, extra: int, evaluations: int
    ) -> None:
        config = configured(sizes, {"samples": window + extra}, {"samples": window}, evaluations=evaluations)
        if len(sizes) > 1 and window < MIN_REPORTS * max(sizes):
            assert "race.window" in complaint(config, 10_000)
            return
        plan = Plan.of(config, 10_000)
        assert plan.budget == window + extra
        assert 1 <= plan.evaluate_every <= plan.window <= plan.budget
        assert abs(plan.window - window) <= max(plan.evaluate_every, window // 2)
        if math.lcm(*sizes) <= window // evaluations:
            assert all(plan.evaluate_every % size == 0 for size in sizes)

    @given(
        sizes=st.lists(st.sampled_from([16, 32, 64, 128, 256]), min_size=1, max_size=4, unique=True),
        window=st.integers(1024, 20_000),
        evaluations=st.integers(4, 60),
    )
    @example(sizes=[64, 256], window=1600, evaluations=4)
    def test_the_window_holds_enough_reports_to_prune(self, sizes: list[int], window: int, evaluations: int) -> None:
        plan = Plan.of(configured(sizes, {"samples": 30_000}, {"samples": window}, evaluations=evaluations), 10_000)
        seen = [step * max(sizes) for step in range(1, math.ceil(plan.window / max(sizes)) + 1)]
        reports = {samples // plan.evaluate_every for samples in seen} - {0}  # at the first step past a grid point
        assert len(reports) >= MIN_REPORTS


class TestRefused:
    def test_budget_below_the_window(self) -> None:
        text = complaint(configured([32, 64], {"epochs": 1}, {"samples": 4001}), 4000)
        assert "4,000 samples (1 epochs)" in text
        assert "race.window = 4,001 samples" in text

    def test_budget_equal_to_the_window(self) -> None:
        plan = Plan.of(configured([16, 32], {"epochs": 1}, {"epochs": 1}), 4000)
        assert (plan.budget, plan.window) == (4000, 12 * 320)  # 320: the multiple of 32 nearest to 4000 / 12

    @pytest.mark.parametrize("window", [{"samples": 100}, {"epochs": 10}], ids=["too short", "beyond the budget"])
    def test_the_window_is_not_checked_for_one_candidate(self, window: dict[str, Any]) -> None:
        plan = Plan.of(configured([512], {"epochs": 2}, window), 4000)
        assert plan.budget == 8000
        assert plan.explore_limit == 0
        assert 1 <= plan.evaluate_every <= plan.window <= plan.budget

    @pytest.mark.parametrize("size", [4001, 100_000])
    def test_batch_larger_than_the_data(self, size: int) -> None:
        text = complaint(configured([32, size], {"epochs": 200}, {"epochs": 100}), 4000)
        assert f"batch size {size:,}" in text
        assert "4,000 training images" in text

    def test_batch_as_large_as_the_data(self) -> None:
        assert Plan.of(configured([4000], {"epochs": 9}, {"epochs": 4}), 4000).evaluate_every >= 1

    def test_window_too_short_to_see_a_curve(self) -> None:
        text = complaint(configured([64, 512], {"epochs": 3}, {"samples": 1535}), 4000)
        assert "1,535 samples" in text
        assert "2 steps of batch size 512" in text
        assert "at least 3" in text

    def test_a_rerace_must_fit(self) -> None:
        again = {"at": [0.5, 0.95]}
        text = complaint(configured([32, 64], {"epochs": 10}, {"epochs": 1}, rerace=again), 4000)
        assert "race.rerace" in text
        assert "0.95" in text

    def test_accumulation_beyond_the_data_or_the_window(self) -> None:
        accumulating = {"batch_size": 1000, "accumulation": 5}
        text = complaint(configured([64, accumulating], {"epochs": 200}, {"epochs": 100}), 4000)
        assert "batch size 1000x5 (5,000 images per update) exceeds the 4,000 training images" in text
        text = complaint(configured([64, accumulating], {"epochs": 3}, {"samples": 14_999}), 20_000)
        assert "2 steps of batch size 1000x5" in text

    def test_budget_without_end(self) -> None:
        with pytest.raises(UserError, match="epochs"):
            Plan.of(configured([64], {"epochs": math.inf}, {"epochs": 1}), 4000)


def test_adaptive_accumulation_is_planned_with_minimum_updates() -> None:
    config = configured([10, 20], {"epochs": 2.5}, {"epochs": 1}, evaluations=5)
    informed = InformationSettings.model_validate({"until": "information", "alpha": 3.0})
    plan = Plan.of(config.model_copy(update={"accumulation": informed}), 1000)
    assert plan.updates == {Candidate(10): 30, Candidate(20): 60}
    assert [plan.steps(candidate) for candidate in plan.candidates] == [84, 42]
    many = InformationSettings.model_validate({"until": "information", "alpha": 20.0})
    with pytest.raises(UserError, match=r"allows 2 steps of batch size 20 \(380 images per update\)"):
        Plan.of(config.model_copy(update={"accumulation": many}), 1000)
    auto = InformationSettings.model_validate({"until": "information", "alpha": "auto", "images_per_update": 50})
    assert set(Plan.of(config.model_copy(update={"accumulation": auto}), 1000).updates.values()) == {50}


class TestMinutes:
    def plan(self, **more: Any) -> Plan:
        raw = {"dataset": {"name": "mnist5k"}, "candidates": [64, 256], "budget": {"minutes": 30}, **more}
        return Plan.of(parse_config(raw), 5_000)

    def test_the_window_is_a_tenth_by_default(self) -> None:
        assert self.plan().time == TimeBudget(1800, 180, 12)
        assert self.plan(race={"window": {"minutes": 2}, "evaluations": 6}).time == TimeBudget(1800, 120, 6)

    def test_a_candidate_alone_has_the_whole_time(self) -> None:
        assert self.plan(candidates=[64]).time == TimeBudget(1800, 1800, 12)

    def test_windows_of_others_on_the_same_device_are_subtracted(self) -> None:
        shared = self.plan().sharing(3.0)
        assert shared.time == TimeBudget(1800 - 2 * 180, 180, 12)
        assert self.plan().sharing(1.0) == self.plan()
        with pytest.raises(UserError, match=r"budget = 30 minutes is too short.*at least 50 minutes"):
            self.plan(race={"window": {"minutes": 10}}).sharing(4.0)

    def test_windows_of_further_races_are_subtracted_if_they_are_known(self) -> None:
        again = self.plan(race={"window": {"minutes": 3}, "rerace": {"at": [0.3, 0.6]}})
        assert again.rerace == {"at": [0.3, 0.6]}
        assert again.sharing(2.0).time == TimeBudget(1800 - 3 * 180, 180, 12)
        with pytest.raises(UserError, match=r"too short: .*3 races take 4 x 3 minutes; use at least 33 minutes"):
            again.sharing(4.0)
        with pytest.raises(UserError, match=r"race.rerace: rerace at 0.5 starts before the race at 0.3 ends"):
            self.plan(race={"window": {"minutes": 6}, "rerace": {"at": [0.3, 0.5]}}).sharing(1.2)
        watched = self.plan(race={"window": {"minutes": 3}, "rerace": "on_deviation"})
        assert watched.sharing(2.0).time == TimeBudget(1800 - 180, 180, 12)

    def test_a_window_as_long_as_the_budget_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"not more than race.window = 30 minutes"):
            self.plan(race={"window": {"minutes": 30}})


class TestOnlineKnn:
    def plan(self, epochs: float, every: Any, images: int = 50_000) -> Plan:
        budget, window = {"epochs": epochs}, {"epochs": epochs / 10}
        config = configured([64, 256], budget, window)
        settings = EvaluationSettings.model_validate({"every": every})
        return Plan.of(config.model_copy(update={"evaluation": settings}), images)

    def test_auto_takes_about_two_percent_of_the_time(self) -> None:
        assert self.plan(200, "auto").knn_every == 500_000  # 20 times
        plan = self.plan(10, "auto")
        assert plan.knn_every is not None
        measured = plan.budget // plan.knn_every
        assert 4 <= measured < 20
        assert measured * (2048 + 1024) * 0.25 <= 0.02 * plan.budget

    def test_auto_does_not_measure_in_short_runs(self) -> None:
        assert self.plan(2, "auto").knn_every is None
        assert self.plan(26, "auto", images=3744).knn_every is None  # the quickstart

    def test_as_configured(self) -> None:
        assert self.plan(2, None).knn_every is None
        assert self.plan(2, {"epochs": 0.5}).knn_every == 25_000
        assert self.plan(2, {"samples": 10}).knn_every == 10

    def test_an_interval_longer_than_the_run_is_refused(self) -> None:
        with pytest.raises(
            UserError, match=r"evaluation.every = 150,000 samples \(3 epochs\) exceeds the budget of 100,000"
        ):
            self.plan(2, {"epochs": 3})
