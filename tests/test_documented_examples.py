"""Runs the examples in docs/ unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

DOCS = Path(__file__).resolve().parents[1] / "docs"
SIZES, BUDGET = (8, 32, 128, 512), 20_000


def test_the_schedulers_example_compares_it_with_asha(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "example_scheduler.py")],
        # Results are written to HOME. RAY_ADDRESS=local starts a new cluster even if another one runs on this machine.
        env={**os.environ, "HOME": str(tmp_path), "RAY_ADDRESS": "local"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = re.findall(
        r"^([\w ]+): batch size (\d+), held-out loss ([\d.]+), ([\d,]+) images in total$", done.stdout, re.M
    )
    ours, asha = ((name, int(size), float(loss), int(spent.replace(",", ""))) for name, size, loss, spent in printed)
    assert (ours[0], asha[0]) == ("loss extrapolation", "ASHA")
    for _, size, loss, spent in (ours, asha):
        assert size in SIZES
        assert loss < 0.5
        assert spent >= BUDGET
    # ASHA compares a trial with those that reached the rung before it. Batches of 512 come first, so none is stopped.
    assert ours[3] < len(SIZES) * BUDGET / 2
