"""Makes processes import this project's packages, and not folders of the same names in the working directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

#: The folder that the packages lie in.
ROOT = Path(__file__).resolve().parents[2]


def imports_from(root: Path) -> Callable[[], None]:
    """Returns a function after whose call a process imports the packages from ``root``.

    On a node that has no such folder it takes those beside the ``adaptive_ray`` that this node has. The function can
    be pickled and travels whole (it is nested, and refers to nothing of ours): it precedes all imports of ours.
    """

    def install() -> None:
        packages, folder = ("adaptive_ray", "schedulers", "trainables"), root
        if not all((folder / name / "__init__.py").is_file() for name in packages):
            found = find_spec("adaptive_ray")
            if found is None or found.origin is None:
                return  # the import that follows says so
            folder = Path(found.origin).parents[1]

        class OwnPackages:
            @staticmethod
            def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
                return PathFinder.find_spec(name, [str(folder)]) if name in packages else None

        sys.meta_path.insert(0, OwnPackages)

    return install
