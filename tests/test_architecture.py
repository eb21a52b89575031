"""Imports between packages go one way: schedulers < trainables < adaptive_ray. Heavy packages are imported late."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"adaptive_ray", "trainables", "schedulers"}
#: Our packages that each package may import.
ALLOWED = {
    "schedulers": {"schedulers"},
    "trainables": {"schedulers", "trainables"},
    "adaptive_ray": OURS,
}
#: The only subpackages of schedulers and trainables that may import Ray.
WITH_RAY = ("schedulers/tune/", "trainables/on_ray/")
FILES = [file for package in sorted(OURS) for file in sorted((ROOT / package).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, also within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names.add((node.module or "").partition(".")[0])
    return names


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def users_of(package: str, within: str) -> set[str]:
    return {name(file) for file in FILES if name(file).startswith(f"{within}/") and package in imported(file)}


def test_the_packages_are_found() -> None:
    assert {"schedulers/race.py", "schedulers/forecast/joint.py", "trainables/simclr/ntxent.py"} <= set(
        map(name, FILES)
    )
    assert imported(ROOT / "schedulers" / "tune" / "scheduler.py") >= {"ray", "schedulers"}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_imports_go_one_way(file: Path) -> None:
    package = name(file).partition("/")[0]
    assert imported(file) & OURS <= ALLOWED[package]


def test_ray_is_imported_in_one_subpackage_of_each_lower_package() -> None:
    users = users_of("ray", "schedulers") | users_of("ray", "trainables")
    assert users
    assert {file for file in users if not file.startswith(WITH_RAY)} == set()


def test_schedulers_need_only_numpy() -> None:
    for file in FILES:
        if name(file).startswith("schedulers/") and not name(file).startswith(WITH_RAY):
            foreign = imported(file) - set(sys.stdlib_module_names) - {"schedulers", "numpy"}
            assert foreign == set(), name(file)


@pytest.mark.parametrize(
    ("package", "within", "users"),
    [
        ("mlflow", "trainables", set()),
        ("matplotlib", "trainables", set()),
        ("sklearn", "trainables", set()),
        ("mlflow", "adaptive_ray", {f"adaptive_ray/experiment/mlflow_{n}.py" for n in ("tracking", "store")}),
        (
            "matplotlib",
            "adaptive_ray",
            {
                f"adaptive_ray/{n}.py"
                for n in ("report/curves", "report/swaps", "report/methods", "replay/plots", "clusters/pictures")
            },
        ),
    ],
)
def test_heavy_packages_are_each_in_one_place(package: str, within: str, users: set[str]) -> None:
    assert users_of(package, within) == users


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        {
            "schedulers": {"ray", "torch", "pydantic", "adaptive_ray", "trainables"},
            "schedulers.race": {"ray", "torch"},
            "trainables.training.loop": {"ray", "mlflow", "sklearn", "matplotlib", "adaptive_ray"},
        },
        {"trainables.on_ray.trial": {"torch", "mlflow", "sklearn", "matplotlib", "adaptive_ray"}},
        {
            "adaptive_ray": {"ray", "torch", "mlflow", "sklearn", "matplotlib", "numpy"},
            "adaptive_ray.errors": {"ray", "torch", "mlflow"},
            "adaptive_ray.cli": {"ray", "torch", "mlflow", "sklearn", "matplotlib"},
            "adaptive_ray.clusters": {"ray", "mlflow", "sklearn", "matplotlib"},
            "adaptive_ray.experiment.experiment": {"mlflow", "sklearn", "matplotlib"},
        },
    ],
    ids=", ".join,
)
def test_what_an_import_loads(imports: dict[str, set[str]]) -> None:
    """Imports run one after the other in a fresh interpreter; none may load the packages listed for it."""
    shown = "; print(*{name.partition('.')[0] for name in sys.modules})"
    code = "import sys; " + "; ".join(f"import {module}{shown}" for module in imports)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    for (module, unwanted), names in zip(imports.items(), done.stdout.splitlines(), strict=True):
        loaded = set(names.split())
        assert module.partition(".")[0] in loaded
        assert loaded & unwanted == set(), module
