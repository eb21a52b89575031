"""Synthetic runs under a policy, with known efficiencies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from schedulers import Candidate
from schedulers.in_run.policy import LoaderPolicy, SwapDecision
from tests.schedulers.curves import shared_curve

SMALL, MIDDLE, LARGE = Candidate(32), Candidate(128), Candidate(512)
CANDIDATES = (SMALL, MIDDLE, LARGE)
BUDGET, EVERY = 42_000, 350

Rates = Callable[[float], dict[str, float]]


def constant(small: float, middle: float, large: float) -> Rates:
    """Returns constant efficiencies by fraction of the budget."""
    return lambda fraction: {"32": small, "128": middle, "512": large}


def run(
    policy: LoaderPolicy,
    rates: Rates,
    *,
    noise: float = 0.003,
    seed: int = 0,
    throughputs: dict[str, float] | None = None,
    samples: tuple[int, int] = (0, BUDGET),
) -> tuple[Counter[str], list[SwapDecision], float]:
    """Returns the reports by candidate, the decisions, and the final progress relative to the budget."""
    rng, progress, seconds = np.random.default_rng(seed), 0.0, 0.0
    reports, decisions = Counter[str](), []
    for at in range(EVERY, samples[1] + 1, EVERY):
        key, draw = policy.current.key, noise * rng.standard_normal()
        progress += EVERY * rates(at / BUDGET)[key]
        seconds += EVERY / (throughputs or {}).get(key, 1000.0)
        if at <= samples[0]:
            continue
        reports[key] += 1
        decision = policy.report(at, float(shared_curve(np.array(progress))) + draw, seconds)
        decisions += [decision] if decision is not None else []
    return reports, decisions, progress / BUDGET
