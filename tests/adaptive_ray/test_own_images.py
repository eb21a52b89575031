"""A folder that a person might have: no labels, no two files of a kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive_ray import load_encoder

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]


def mixture(folder: Path) -> Path:
    """12-bit TIFFs, a larger one in colour and transparent, and what is no image of theirs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(60):
        Image.fromarray(generator.integers(0, 4096, (20 + index, 30)).astype(np.uint16)).save(folder / f"{index}.tif")
    Image.fromarray(generator.integers(0, 256, (80, 90, 4), dtype=np.uint8)).save(folder / "drawn on top.PNG")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "0.tif").write_bytes((folder / "0.tif").read_bytes())
    (folder / "again.tif").symlink_to("0.tif")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").touch()
    return folder


def test_a_flat_folder_of_all_kinds_is_trained_on(tmp_path: Path) -> None:
    config = {
        "dataset": {"name": "image_folder", "root": str(mixture(tmp_path / "images")), "image_size": 16},
        "batch_size": 8,
        "explore": "none",
        "budget": {"epochs": 2},
        "simclr": {"encoder": {"width": 8, "depth": 1}},
        "tracking": {"enabled": False},
    }
    config["dataset"] |= {"reference": 16, "stream": True}  # type: ignore[operator]
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "adaptive_ray", "run", "config.yaml", "--name", "mixture"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "image_folder: 33 images to train on, 16 for the reference loss, 12 to test on",
        "unlabelled: there are no folders of classes",
        "kinds: 60 16-bit grey, 1 RGBA",
        "integers of more than 8 bits in 60 images: 0 becomes black, 4,095 white; 0 to 4,095 in 60 of them",
        "transparency in 1 images: laid on #ffffff (dataset.background)",
        "skipped: hidden files and folders: 1 (.ipynb_checkpoints)",
        "skipped: files of other kinds: 1 (notes.txt)",
        "skipped: images that cannot be read: 1 (empty.jpg: the file is empty)",
        "skipped: files that links reach again: 1 (again.tif)",
    ):
        assert line in done.stdout.splitlines()
    run = tmp_path / "runs" / "mixture"
    result = json.loads((run / "result.json").read_text())
    assert result["probe_accuracy"] is None
    assert np.isfinite(result["reference_loss"])
    assert (run / "neighbours.png").stat().st_size > 0
    inputs = json.loads((run / "inputs.json").read_text())
    assert inputs["unreadable"] == {str(tmp_path / "images" / "empty.jpg"): "the file is empty"}
    features = load_encoder(run).embed(np.random.default_rng(1).random((5, 16, 16, 3)))
    assert features.shape == (5, 32)
    assert features.std() > 0
