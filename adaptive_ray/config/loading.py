"""Reads the configuration of an experiment from YAML and writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adaptive_ray.config.errors import format_error
from adaptive_ray.config.experiment import ExperimentConfig
from adaptive_ray.errors import UserError

#: Number and unit; None: not given.
_Amount = tuple[float, str] | None
#: Units of a budget and of the window of a race. They are exclusive.
_UNITS = ("samples", "epochs", "minutes")


def load_config(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    name: str | None = None,
    runs_dir: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ExperimentConfig:
    """Reads a configuration from YAML, applies overrides and validates it.

    If overrides change the budget to minutes or back, but not the window, the window keeps its share of the budget.

    Args:
        path: YAML file.
        overrides: ``a.b=value``, where the value is YAML.
        name: Replaces the setting ``name``.
        runs_dir: Replaces the setting ``runs_dir``.
        say: Receives a line about a window that was converted.

    Raises:
        UserError: The file cannot be read or is not a YAML mapping, or an override or a setting is invalid.
    """
    raw = _read_yaml(path)
    of_file = _amounts(raw)
    for override in overrides:
        _override(raw, override)
    if line := _convert_window(raw, *of_file):
        say(line)
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
    if last in _UNITS:  # setting one replaces the others
        for unit in _UNITS:
            node.pop(unit, None)
    node[last] = value


def _amounts(raw: Mapping[str, Any]) -> tuple[_Amount, _Amount]:
    """Returns number and unit of the budget and of the window; None where they are missing or invalid."""
    race = raw.get("race")
    return _amount(raw.get("budget")), _amount(race.get("window") if isinstance(race, Mapping) else None)


def _amount(written: Any) -> _Amount:
    given = (
        {unit: number for unit, number in written.items() if number is not None} if isinstance(written, Mapping) else {}
    )
    if len(given) != 1:
        return None
    ((unit, number),) = given.items()
    valid = unit in _UNITS and isinstance(number, int | float) and not isinstance(number, bool) and number > 0
    return (number, unit) if valid else None


def _convert_window(raw: dict[str, Any], budget_before: _Amount, window_before: _Amount) -> str | None:
    """Converts the window of the file to minutes or back, if the overrides did so with the budget only."""
    budget, window = _amounts(raw)
    if budget is None or window is None or budget_before is None or window != window_before:
        return None
    (number, unit), (whole, unit_before), (part, own_unit) = budget, budget_before, window
    if (unit == "minutes") == (own_unit == "minutes"):
        return None
    if own_unit != unit_before:  # such as a window in samples in a budget in epochs
        raw["race"]["window"] = None
        return f"race.window = {part:g} {own_unit} is not used with a budget in {unit}: the default is used"
    share = number * part / whole
    raw["race"]["window"] = {unit: max(round(share), 1) if unit == "samples" else share}
    return (
        f"race.window = {part:g} of {whole:g} {own_unit} becomes {share:.3g} of {number:g} {unit}, the same share of "
        f"the budget; race.window.{unit} sets another one"
    )
