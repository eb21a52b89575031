"""The command ``adaptive-ray cluster``, in a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).resolve().parents[3]


def cluster(folder: Path, name: str, *settings: str) -> tuple[dict[str, object], str]:
    given = ["clusters.encoder=pixels", "dataset.limit=600", f"runs_dir={folder}", *settings]
    overrides = [part for setting in given for part in ("--set", setting)]
    files = ["--json", str(folder / f"{name}.json"), "--html", str(folder / f"{name}.html")]
    command = [sys.executable, "-m", "adaptive_ray", "cluster", "configs/quickstart.yaml", *files, *overrides]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads((folder / f"{name}.json").read_text()), done.stdout


def test_clusters_are_counted_once(tmp_path: Path) -> None:
    found, said = cluster(tmp_path, "first")
    assert {"m", "sizes", "method", "suggested_batch_size"} <= found.keys()
    assert isinstance(found["sizes"], list)
    assert (sum(found["sizes"]), len(found["sizes"])) == (600, found["m"])
    assert 4 <= found["m"] <= 16
    assert found["suggested_batch_size"] == max(16 * found["m"], 32)
    assert "embedding with" in said
    assert f"clusters: {found['m']} (method graph, stability 0." in said
    assert f"suggested batch size: {found['suggested_batch_size']} (16 images per cluster in a batch)" in said
    assert "clusters in mnist5k" in (tmp_path / "first.html").read_text()

    again, said = cluster(tmp_path, "again")
    assert again == found
    assert "starting Ray" not in said

    alpha, said = cluster(
        tmp_path, "alpha", "candidates={from_clusters: {alpha: 5, multiple_of: 1}}", "sampling=balanced"
    )
    assert alpha["suggested_batch_size"] == max(5 * found["m"], 32)
    assert "balanced batches repeat images of small clusters, up to" in said
