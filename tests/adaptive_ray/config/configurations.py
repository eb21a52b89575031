"""Shipped configurations, changed ones, and their error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adaptive_ray.config.loading import load_config
from adaptive_ray.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


def complaint(*overrides: str, file: Path = QUICKSTART) -> str:
    """The error message of an invalid configuration."""
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert text
    return text


def changed(tmp_path: Path, **entries: object) -> Path:
    """The quickstart configuration with some entries replaced."""
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(QUICKSTART.read_text()) | entries))
    return file
