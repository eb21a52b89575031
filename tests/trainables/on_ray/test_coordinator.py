"""Trials on one device measure their throughput one after the other, and none trains meanwhile."""

from trainables.on_ray.coordinator import Measurement, Start, TrialCoordinator

FAST = Measurement(100.0, in_place=True)
GPU = ["node:gpu-0"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def coordinator(expected: int = 2, **more: object) -> tuple[TrialCoordinator, Clock]:
    clock = Clock()
    return TrialCoordinator(expected, clock=clock, **more), clock  # type: ignore[arg-type]


def test_trials_take_turns_when_all_have_started() -> None:
    trials, clock = coordinator()
    assert trials.request_turn("64", GPU) == ["1 that are starting"]
    clock.now += 1
    assert trials.request_turn("256", GPU) == ["64"]
    assert trials.request_turn("64", GPU) == []
    assert trials.request_turn("256", GPU) == ["64"]
    trials.end_turn("64", FAST)
    assert trials.request_training("64", GPU) == ["256"]
    assert trials.request_turn("256", GPU) == []
    assert trials.request_training("64", GPU) == ["256"]
    trials.end_turn("256", FAST)
    assert trials.request_training("64", GPU) == []
    assert trials.request_training("256", GPU) == []
    assert trials.start("64") == Start(FAST)
    assert trials.start("1024") == Start(None)


def test_trials_on_other_devices_measure_at_the_same_time() -> None:
    trials, clock = coordinator(3)
    trials.request_turn("64", GPU)
    clock.now += 1
    trials.request_turn("256", ["node:gpu-1"])
    assert trials.request_turn("512", ["node:gpu-2", *GPU]) == ["64"]
    assert trials.request_turn("64", GPU) == []
    assert trials.request_turn("256", ["node:gpu-1"]) == []
    assert trials.request_turn("512", ["node:gpu-2", *GPU]) == ["64"]


def test_turns_are_given_in_the_order_of_requests() -> None:
    trials, clock = coordinator(3)
    for number, key in enumerate(("64", "128", "256")):
        clock.now = number
        trials.request_turn(key, GPU)
    assert trials.request_turn("64", GPU) == []
    trials.end_turn("64", FAST)
    assert trials.request_turn("256", GPU) == ["128"]
    assert trials.request_turn("128", GPU) == []


def test_training_trials_pause_at_their_next_report_for_one_that_starts_late() -> None:
    trials, _ = coordinator(1)
    trials.request_turn("64", GPU)
    trials.end_turn("64", FAST)
    assert trials.request_training("64", GPU) == []
    assert trials.request_turn("256", GPU) == ["64"]
    assert trials.request_training("64", GPU) == ["256"]  # after its report
    assert trials.request_turn("256", GPU) == []
    trials.end_turn("256", FAST)
    assert trials.request_training("64", GPU) == []


def test_dead_trials_are_not_waited_for() -> None:
    trials, clock = coordinator(3)
    trials.request_turn("64", GPU)
    clock.now = 1
    assert trials.request_turn("256", GPU) == ["64", "1 that are starting"]
    trials.leave("64", for_good=False)  # the process died and starts again
    assert trials.request_turn("256", GPU) == ["2 that are starting"]
    trials.leave("64", for_good=True)
    trials.leave("128", for_good=True)  # before it has asked
    assert trials.request_turn("256", GPU) == []


def test_trials_that_stop_asking_are_not_waited_for() -> None:
    trials, clock = coordinator(3)
    trials.request_turn("64", GPU)
    clock.now = 1
    trials.request_turn("128", GPU)
    clock.now = 2
    assert trials.request_turn("256", GPU) == ["64", "128"]
    assert trials.request_turn("64", GPU) == []
    clock.now = 20
    assert trials.request_turn("256", GPU) == ["64"]
    clock.now = 400
    assert trials.request_turn("256", GPU) == []


def test_trials_that_do_not_start_are_waited_for_a_minute() -> None:
    trials, clock = coordinator(2)
    assert trials.request_turn("64", GPU) == ["1 that are starting"]
    clock.now = 61
    assert trials.request_turn("64", GPU) == []
    trials.end_turn("64", FAST)
    assert trials.request_training("64", GPU) == []


def test_restarted_trial_asks_again() -> None:
    """Its process was replaced while it had a turn, or while it trained."""
    trials, _ = coordinator(1)
    assert trials.request_turn("64", GPU) == []
    assert trials.request_turn("64", GPU) == []
    trials.end_turn("64", FAST)
    trials.leave("64", for_good=False)
    assert trials.start("64") == Start(FAST)


def test_knows_earlier_measurements_and_the_end_of_the_race() -> None:
    trials, _ = coordinator(0, measured={"64": FAST})
    assert trials.start("64") == Start(FAST)
    assert trials.request_training("64", GPU) == []
    assert not trials.is_over()
    trials.end_race()
    assert trials.is_over()
    assert coordinator(0, over=True)[0].is_over()


def test_knows_where_candidates_fork_in_a_further_race() -> None:
    trials, _ = coordinator(0, measured={"64": FAST})
    trials.race_again({"64": (0.0, 0.0), "256": (960.0, 12.5)})
    assert trials.is_over()
    assert trials.start("64") == Start(FAST, again=True)
    assert trials.start("256") == Start(None, again=True, origin=(960.0, 12.5))
    assert coordinator(0, origins={"256": (960.0, 12.5)})[0].start("256").again
