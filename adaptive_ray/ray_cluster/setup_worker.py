"""Starts a worker process with the environment variables of its runtime environment, like Ray's script of this name.

Ray's script imports Ray first, which takes 0.3 s of CPU time per worker; the worker then imports it again.
Ray identifies the script by its file name.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys


def main(arguments: list[str]) -> None:
    """Replaces this process by the worker, or by Ray's script if the environment holds more than variables."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", type=json.loads, default={})
    parser.add_argument("--language")
    own, worker = parser.parse_known_args(arguments)
    context = {name: value for name, value in own.serialized_runtime_env_context.items() if value}
    variables, python = context.pop("env_vars", {}), context.pop("py_executable", sys.executable)
    if context or own.language != "PYTHON":
        from ray._private.workers import setup_worker

        os.execv(sys.executable, [sys.executable, setup_worker.__file__, *arguments])  # noqa: S606
    for name, value in variables.items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))  # as Ray's update_envs
    os.execv(python, [python, *worker])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
