"""Names of contrastive losses."""

from __future__ import annotations

#: Losses of ``trainables.simclr.losses``.
NAMES = ("nt_xent", "dcl")


def check_name(name: str) -> str:
    """Returns ``name`` if it is in ``NAMES`` or has the form ``package.module:function``. Does not import it.

    Raises:
        ValueError: The name is neither.
    """
    module, separator, function = name.partition(":")
    identifiers = (*module.split("."), function)
    if name not in NAMES and not (separator and all(part.isidentifier() for part in identifiers)):
        raise ValueError(f"loss {name!r} is unknown: use one of {', '.join(NAMES)}, or package.module:function")
    return name
