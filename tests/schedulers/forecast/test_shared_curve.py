from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from schedulers import JointForecaster
from schedulers.forecast.residuals import fit_walk
from schedulers.forecast.shared_curve import Tracks, _joint_problem, _reduced, _run_problem, fit_shared_curve
from tests.schedulers.curves import loss_curve

SCENARIOS = Path(__file__).parents[3] / "benchmarks" / "scenarios"


def test_sparse_equations_are_those_of_the_dense_matrix() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(4), [3, 5, 1, 4])
    n = np.zeros((len(owner), 4))
    n[np.arange(len(owner)), owner] = rng.uniform(0.1, 1.0, len(owner))
    z, weight, theta = rng.standard_normal(13), rng.uniform(0.5, 1.0, 13), rng.normal(0.0, 0.3, 7)
    results = []
    for linearise, normal in (_joint_problem(n, z), _run_problem(n, z)):
        residual, slope = linearise(theta)
        results.append((residual, *normal(residual, slope, weight)))
    for sparse, dense in zip(*results, strict=True):
        np.testing.assert_allclose(sparse, dense, atol=1e-12)


def test_reduced_form_has_the_value_of_the_whole_one() -> None:
    rng = np.random.default_rng(1)
    matrix, theta = rng.standard_normal((9, 9)), rng.standard_normal(8)
    whole = np.append(theta, -theta[4:].sum())
    assert theta @ _reduced(matrix) @ theta == pytest.approx(whole @ matrix @ whole)


def test_efficiencies_sum_to_zero_and_depend_on_their_priors() -> None:
    samples, losses = loss_curve(1.0, 10_000, noise=0.01)
    exposure = np.zeros((len(samples), 2))  # the second candidate was never used
    exposure[:, 0] = samples
    tracks = Tracks(exposure, losses, np.zeros(len(samples), dtype=np.intp))
    fit = fit_shared_curve(tracks, np.array([-0.3, 0.3]), np.array([0.1, 0.1]))
    assert fit.log_rates == pytest.approx([-0.3, 0.3], abs=0.05)
    assert np.allclose(fit.covariance[4:].sum(axis=0), 0.0)


def test_walk_follows_a_drift_and_averages_noise() -> None:
    rng = np.random.default_rng(0)
    x = np.tile(np.linspace(0.0, 3.0, 60), 2)
    track = np.repeat([0, 1], 60)
    noise = 0.01 * rng.standard_normal(120)
    still = fit_walk(noise, x, track)
    drift = fit_walk(noise + np.where(track == 0, 0.1 * x, -0.1 * x), x, track)
    assert np.abs(still.level).max() < 0.005
    assert still.step < 1e-4 < drift.step
    assert drift.level == pytest.approx([0.3, -0.3], abs=0.05)


def test_one_report_is_forecast_from_the_curves_of_others() -> None:
    curves = {key: loss_curve(rate, 20_000, noise=0.005) for key, rate in {"slow": 0.5, "fast": 1.5}.items()}
    samples, losses = loss_curve(1.0, 20_000)
    joint = JointForecaster()
    joint.fit({**curves, "new": (samples[3:4], losses[3:4])})
    slow, new, fast = (joint.forecast(key, 100_000.0) for key in ("slow", "new", "fast"))
    assert fast.mean < new.mean < slow.mean
    assert new.std < 0.2
    assert joint.probability_best(dict.fromkeys(("slow", "new", "fast"), 100_000.0))["fast"] > 0.9


def test_probabilities_and_intervals_are_right_about_recorded_scenarios() -> None:
    runs = [json.loads(line) for file in sorted(SCENARIOS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    sweeps = defaultdict(list)
    for run in runs:
        sweeps[run["scenario"], run["seed"]].append(run)
    unlikely, covered = [], []
    for members in sweeps.values():
        for fraction in (0.1, 0.3):
            count = max(3, int(fraction * len(members[0]["samples"])))
            end = {run["batch_size"]: run["samples"][-1] for run in members}
            joint, early = JointForecaster(), {run["batch_size"]: run["samples"][:count] for run in members}
            joint.fit(
                {run["batch_size"]: (early[run["batch_size"]], run["reference_loss"][:count]) for run in members},
                end,
                {run["batch_size"]: (early[run["batch_size"]], run["learning_rate"][:count]) for run in members},
            )
            final = {run["batch_size"]: run["reference_loss"][-1] for run in members}
            best = min(final, key=lambda key: final[key])
            for key, probability in joint.probability_best(end).items():
                low, high = joint.forecast(key, end[key]).interval()
                covered.append(low < final[key] < high)
                unlikely += [key == best] if probability < 0.1 else []
    assert len(unlikely) > 100
    assert np.mean(unlikely) < 0.05
    assert np.mean(covered) > 0.75
