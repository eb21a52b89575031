"""Reads the configuration of an experiment from YAML and writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adaptive_ray.config.errors import format_error
from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError


def load_config(
    path: Path, overrides: Iterable[str] = (), *, name: str | None = None, runs_dir: Path | None = None
) -> ExperimentConfig:
    """Reads a configuration from YAML, applies overrides and validates it.

    Args:
        path: YAML file.
        overrides: ``a.b=value``, where the value is YAML.
        name: Replaces the setting ``name``.
        runs_dir: Replaces the setting ``runs_dir``.

    Raises:
        UserError: The file cannot be read or is not a YAML mapping, or an override or a setting is invalid.
    """
    raw = _read_yaml(path)
    for override in overrides:
        _override(raw, override)
    raw |= {key: str(value) for key, value in (("name", name), ("runs_dir", runs_dir)) if value is not None}
    return parse_config(raw, source=str(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UserError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    return raw


def parse_config(raw: Mapping[str, Any], source: str = "configuration") -> ExperimentConfig:
    """Validates a mapping of settings. Raises ``UserError`` like ``load_config``."""
    try:
        return ExperimentConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {format_error(error, ExperimentConfig)}") from None


def dump_config(config: ExperimentConfig) -> str:
    """Serializes a configuration to YAML, including defaults."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(raw: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UserError(f"--set {override!r}: expected name.of.setting=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {override!r}: {text!r} is invalid YAML") from None
    *parents, last = name.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent!r} is {child!r} and has no settings below it")
        node = child
    if isinstance(value, dict) and isinstance(node.get(last), dict):
        raise UserError(f"--set {override!r}: set the keys of {name} one by one")
    if last in (units := ("samples", "epochs", "minutes")):  # exclusive: setting one replaces the others
        for unit in units:
            node.pop(unit, None)
    node[last] = value
