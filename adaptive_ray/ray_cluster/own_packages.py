"""Imports this project's packages instead of directories of the same name in the working directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

#: Directory that contains the packages.
ROOT = Path(__file__).resolve().parents[2]


def imports_from(root: Path) -> Callable[[], None]:
    """Returns a function that makes a process import the packages from ``root``.

    On a node without this directory, the installed packages are used. The function is nested so that it is pickled by
    value: it must run before any of our packages is imported.
    """

    def install() -> None:
        packages, folder = ("adaptive_ray", "schedulers", "trainables"), root
        if not all((folder / name / "__init__.py").is_file() for name in packages):
            found = find_spec("adaptive_ray")
            if found is None or found.origin is None:
                return  # the next import fails with a clear error
            folder = Path(found.origin).parents[1]

        class OwnPackages:
            @staticmethod
            def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
                return PathFinder.find_spec(name, [str(folder)]) if name in packages else None

        sys.meta_path.insert(0, OwnPackages)

    return install
