"""Formats validation errors of settings as one line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

#: Keys that were renamed, and values of keys. Configurations that use them are refused with the new name.
RENAMED_KEYS = {
    "stretch": "winner",
    "probe_images": "evaluation.images",
    "race.drop_below": "race.prune_below",
    "race.predictor": "race.forecaster",
    "simclr.average": "simclr.ema_horizon",
    "simclr.optimizer.rule": "simclr.optimizer.lr_scaling",
    "simclr.optimizer.base_batch": "simclr.optimizer.base_batch_size",
    "dataset.reference": "dataset.reference_images",
    "dataset.test_share": "dataset.test_fraction",
    "dataset.decoders": "dataset.decoder_threads",
    "trial.gpu": "trial.use_gpu",
    "trial.cpus": "trial.cpus_per_worker",
    "clusters.m": "clusters.n_clusters",
    "clusters.cache": "clusters.cache_dir",
    "candidates.times": "candidates.multipliers",
}
RENAMED_VALUES = {"on_surprise": "on_deviation", "surprise": "deviation"}

#: pydantic's error types for an unknown key of a model and of a dataclass.
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def format_error(error: ValidationError, settings: type[BaseModel]) -> str:
    """Formats the first error in ``settings``: the key, the value given, the rule, and how to fix it."""
    first, path = _deepest(error, settings)
    name = ".".join(path)
    if first["type"] in _UNKNOWN:
        if name in RENAMED_KEYS:
            return f"setting {name!r} was renamed; use {RENAMED_KEYS[name]!r}"
        known = _known_keys(settings, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], *near])!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown setting {name!r}; {hint}"
    if first["type"] == "missing":
        return f"setting {name!r} is missing"
    # A setting that accepts several types has an error for each.
    rules = [
        f"a mapping with the keys {', '.join(_known_keys(settings, path))}"
        if e["type"] == "model_type"
        else e["msg"].removeprefix("Value error, ")
        for e in error.errors()
        if _path_of(e, settings) == path
    ]
    if isinstance(first["input"], str) and first["input"] in RENAMED_VALUES:
        rules = [f"the value was renamed; use {RENAMED_VALUES[first['input']]!r}"]
    rule = "; or ".join(rule[:1].lower() + rule[1:] for rule in dict.fromkeys(rules))
    if first["type"] == "password":
        return f"{name}: {rule}"
    return f"{name} = {first['input']!r}: {rule}" if name else rule


def _deepest(error: ValidationError, settings: type[BaseModel]) -> tuple[Any, list[str]]:
    """The error to report and its path: of those below the first wrong key, the one with the longest path.

    Where a setting is a name or a mapping, a mapping with a wrong key also fails as a name; the key is the cause.
    """
    errors = [(each, _path_of(each, settings)) for each in error.errors()]
    root = errors[0][1]
    same = [(each, path) for each, path in errors if path[: len(root)] == root]
    return min(same, key=lambda entry: (-len(entry[1]), entry[0]["type"] not in _UNKNOWN))


def _path_of(error: Any, settings: type[BaseModel]) -> list[str]:
    """An error's location without pydantic's names for the branches of a union, which are not keys."""
    path: list[str] = []
    for index, part in enumerate(error["loc"]):
        last = index == len(error["loc"]) - 1 and error["type"] in (*_UNKNOWN, "missing")
        if last or isinstance(part, int) or part in _known_keys(settings, path):
            path.append(str(part))
    return path


def _known_keys(settings: type[BaseModel], path: list[str]) -> list[str]:
    keys = _keys_of(settings)
    for part in path:
        if part.isdecimal():  # an index; the list's name gave the keys of its entries
            continue
        # A setting that accepts several types has the keys of all.
        keys = {key: inner for kind in _kinds(keys.get(part)) for key, inner in _keys_of(kind).items()}
    return list(keys)


def _kinds(annotation: Any) -> Iterator[Any]:
    """An annotation and, for a union or a list, those within it."""
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _keys_of(kind: Any) -> dict[str, Any]:
    """The keys of a settings type with their annotations; empty for other types."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    return {}
