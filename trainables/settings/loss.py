"""Names of contrastive losses."""

from __future__ import annotations

#: Those of ``trainables.simclr.losses``.
NAMES = ("nt_xent", "dcl")


def check_name(name: str) -> str:
    """The name itself, if it is one of ``NAMES`` or has the form ``package.module:function``; imports nothing.

    Raises:
        ValueError: It is neither.
    """
    module, separator, function = name.partition(":")
    identifiers = (*module.split("."), function)
    if name not in NAMES and not (separator and all(part.isidentifier() for part in identifiers)):
        raise ValueError(f"loss {name!r} is unknown: use one of {', '.join(NAMES)}, or package.module:function")
    return name
