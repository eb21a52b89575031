from schedulers.events import Report
from schedulers.race_series import RaceSeries
from schedulers.tune.metrics import ResultReader
from schedulers.tune.ray_compat import detached_trial


def test_learning_rate_is_read_where_it_is_reported() -> None:
    reader = ResultReader("loss", "min", "samples_seen", "time_total_s", "throughput_alone", "lr", "samples")
    series, trial = RaceSeries(budget=100.0, window=50.0), detached_trial("a", {})
    series.enter("a")
    for samples, extra in ((10, {"lr": 0.5}), (20, {}), (30, {"lr": "none"})):
        result = {"loss": 1.0, "samples_seen": samples, "time_total_s": 1.0, "training_iteration": 1, **extra}
        reader.take(series, "a", trial, result)
    rates = [event.learning_rate for event in series.events if isinstance(event, Report)]
    assert str(rates) == "[0.5, nan, nan]"


def test_missing_metric_names_numbers_but_no_trial_id() -> None:
    reader = ResultReader("accuracy", "max", "samples_seen", "time_total_s", "throughput_alone", "lr", "samples")
    message = reader.missing({"loss": 1.0, "samples_seen": 10, "trial_id": "12345678", "config/size": 3})
    assert "Reported were: loss, samples_seen. Set" in message
