"""What is wrong with settings, in one line for a person."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

#: pydantic's names for an unknown key of a model, and of a dataclass.
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def explain(error: ValidationError, settings: type[BaseModel]) -> str:
    """The first complaint about ``settings`` in one line: where, the value given, the rule, and for an unknown key the
    nearest known.
    """
    first, place = _most_telling(error, settings)
    name = ".".join(place)
    if first["type"] in _UNKNOWN:
        known = _known_keys(settings, place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown setting {name!r}; {hint}"
    if first["type"] == "missing":
        return f"setting {name!r} is missing"
    # A setting that may be of several kinds has a complaint for each.
    rules = [
        f"settings of its own: {', '.join(_known_keys(settings, place))}"
        if e["type"] == "model_type"
        else e["msg"].removeprefix("Value error, ")
        for e in error.errors()
        if _place_of(e, settings) == place
    ]
    rule = "; or ".join(rule[:1].lower() + rule[1:] for rule in dict.fromkeys(rules))
    if first["type"] == "password":
        return f"{name}: {rule}"
    return f"{name} = {first['input']!r}: {rule}" if name else rule


def _most_telling(error: ValidationError, settings: type[BaseModel]) -> tuple[Any, list[str]]:
    """A complaint and its place: of those about the first wrong setting the one that goes deepest into it.

    Where a name or a mapping may stand, a mapping with a wrong key is no name either, but that is not what is wrong.
    """
    complaints = [(complaint, _place_of(complaint, settings)) for complaint in error.errors()]
    root = complaints[0][1]
    same = [(complaint, place) for complaint, place in complaints if place[: len(root)] == root]
    return min(same, key=lambda entry: (-len(entry[1]), entry[0]["type"] not in _UNKNOWN))


def _place_of(complaint: Any, settings: type[BaseModel]) -> list[str]:
    return _place(settings, complaint["loc"], unknown=complaint["type"] in (*_UNKNOWN, "missing"))


def _place(settings: type[BaseModel], location: tuple[int | str, ...], *, unknown: bool) -> list[str]:
    """A complaint's location without pydantic's names for the branches of a union, which are no keys."""
    place: list[str] = []
    for index, part in enumerate(location):
        is_key = isinstance(part, int) or part in _known_keys(settings, place)
        if is_key or (unknown and index == len(location) - 1):
            place.append(str(part))
    return place


def _known_keys(settings: type[BaseModel], place: list[str]) -> list[str]:
    keys = _keys_of(settings)
    for part in place:
        if part.isdecimal():  # an entry of a list, whose keys were found at the list's name
            continue
        # A setting that may be of several kinds knows the keys of all.
        keys = {key: inner for kind in _kinds(keys.get(part)) for key, inner in _keys_of(kind).items()}
    return list(keys)


def _kinds(annotation: Any) -> Iterator[Any]:
    """An annotation and, for a union or a list, those within it."""
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _keys_of(kind: Any) -> dict[str, Any]:
    """The keys of settings, with their annotations; none for what holds no settings."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    return {}
