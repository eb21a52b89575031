"""Command-line interface of adaptive_ray."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

# Disables telemetry. Must be set before Ray and MLflow are imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import typer
from rich.console import Console

from adaptive_ray import __version__
from adaptive_ray.errors import AdaptiveRayError, FinishedRunError, InterruptedRunError, UserError, storage_problem
from adaptive_ray.ray_cluster import signals as interruption

app = typer.Typer(
    help="Pretrain SimCLR encoders on Ray with automatic choice of the batch size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_CONFIG = typer.Argument(help="Configuration file (YAML), for example configs/quickstart.yaml.")
ConfigFile = Annotated[Path, _CONFIG]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a setting, for example trial.workers=2."),
]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a running Ray cluster. Default: RAY_ADDRESS, or start a local cluster.")
]


@app.command()
def run(
    config: Annotated[Path | None, _CONFIG] = None,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: time and data set.")] = None,
    runs_dir: Annotated[
        Path | None, typer.Option(help="Directory for results. Default: runs_dir of the configuration.")
    ] = None,
    address: Address = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|auto",
            help="Resume an interrupted run. auto: resume the run --name, or start it if there is none.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: retry candidates that failed.")
    ] = False,
) -> None:
    """Race the candidates, train the winner and report why it won."""
    auto = resume == "auto"  # a directory of this name is ./auto
    if auto and config is None:
        raise UserError("--resume auto needs a configuration file and --name NAME")
    if not auto and (config is None) == (resume is None):
        raise UserError("give either a configuration file or --resume RUN; only --resume auto takes both")
    if retry_failed and resume is None:
        raise UserError("--retry-failed needs --resume RUN or --resume auto")
    if not auto and resume is not None and (overrides or name or runs_dir):
        raise UserError("--resume uses the settings of the run; remove --set, --name and --runs-dir")
    console = _console()
    try:
        with console.status("loading"):
            from adaptive_ray.config.loading import load_config
            from adaptive_ray.experiment.experiment import Experiment
            from adaptive_ray.ray_cluster.address import check_address
            from adaptive_ray.report.result import print_result
            from adaptive_ray.report.terminal import print_lines
            from adaptive_ray.run_directory.directory import RunDirectory
            from adaptive_ray.run_directory.inputs import check_settings, check_unfinished, open_run

            if config is None:
                assert resume is not None
                directory, settings = open_run(Path(resume))
            else:
                notes: list[str] = []
                settings = load_config(config, overrides or [], name=name, runs_dir=runs_dir, say=notes.append)
                if auto and settings.name is None:
                    raise UserError("--resume auto needs --name NAME")
                default = f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.dataset.name}"
                directory = RunDirectory(settings.runs_dir / (settings.name or default))
                if auto:
                    check_settings(directory, settings)
                    check_unfinished(directory)
                print_lines(console, notes)
            check_address(address)  # before loading data and creating the directory
            experiment = Experiment(settings, address=address)
            experiment.check_loss()
            if config is not None:
                directory = RunDirectory.create(settings, directory.name, resume=auto)
            print_lines(console, experiment.data.summary)
        result = experiment.run(directory, console, retry_failed=retry_failed)
    except FinishedRunError as error:  # possibly while the data were loaded
        if not auto:
            raise
        print_lines(console, [str(error)])
        return
    print_result(console, directory, result, settings)


@app.command()
def plan(config: ConfigFile, overrides: Overrides = None, address: Address = None) -> None:
    """Print what would run and what it would cost."""
    console = _console()
    from adaptive_ray.config.loading import load_config
    from adaptive_ray.experiment.experiment import Experiment
    from adaptive_ray.experiment.plan_command import print_plan
    from adaptive_ray.report.terminal import print_lines

    notes: list[str] = []
    settings = load_config(config, overrides or [], say=notes.append)
    print_lines(console, notes)
    print_plan(console, Experiment(settings, address=address))


@app.command()
def cluster(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.json", help="Also write the result as JSON.")
    ] = None,
    page: Annotated[Path, typer.Option("--html", metavar="PAGE.html", help="Path of the HTML report.")] = Path(
        "clusters.html"
    ),
) -> None:
    """Count the clusters of the training images and suggest a batch size."""
    _check_parent("--json", json_file)
    _check_parent("--html", page)
    console = _console()
    with console.status("loading"):
        from adaptive_ray.clusters.command import count
        from adaptive_ray.config.loading import load_config

        settings = load_config(config, overrides or [])
    summary = count(settings, address, console, page)
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


@app.command()
def report(run_directory: Annotated[Path, typer.Argument(help="Directory of a finished run.")]) -> None:
    """Write report.html of a finished run again."""
    from adaptive_ray.report.page import write_report
    from adaptive_ray.run_directory.directory import RunDirectory

    _console().print(str(write_report(RunDirectory.open(run_directory))), soft_wrap=True, highlight=False)


@app.command()
def replay(
    curves: Annotated[Path, typer.Argument(metavar="CURVES_DIR", help="Directory of recorded runs (JSON, JSONL).")],
    policy: Annotated[list[str] | None, typer.Option(help="Policy to replay; repeatable. all: with variants.")] = None,
    axis: Annotated[str, typer.Option("--unit", "--axis", help="Unit of the budget: samples or seconds.")] = "samples",
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Hardware of the seconds: h200, cpu, 8-gpus, 64-gpus, or recorded (those of the recordings)."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.json", help="Also write one row per policy and sweep as JSON.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write plots (PNG) to this directory.")] = None,
) -> None:
    """Replay policies on recorded runs and compare their choices and costs."""
    if axis not in ("samples", "seconds"):
        raise UserError(f"--unit {axis}: use samples or seconds")
    _check_parent("--json", json_file)
    console = _console()
    with console.status("replaying"):
        from adaptive_ray.replay import loading, replay

        policies = replay.known_policies(policy or [])
        sweeps = loading.load_sweeps(curves, hardware)
        rows = replay.replay(sweeps, policies, axis)
        forecasts = replay.forecast_rows(sweeps)
    console.print(replay.policy_table(rows, sweeps, axis))
    console.print(replay.forecast_table(forecasts))
    if unknown := replay.unknown_accuracies(sweeps, axis):
        console.print(unknown, soft_wrap=True, highlight=False)
    try:
        if json_file is not None:
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        if plots is not None:
            from adaptive_ray.replay.plots import write_plots

            for file in write_plots(plots, rows, forecasts, sweeps, axis):
                console.print(str(file), soft_wrap=True, highlight=False)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from None


@app.command()
def version() -> None:
    """Print the version."""
    _console().print(__version__, highlight=False)


def _check_parent(option: str, file: Path | None) -> None:
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError(f"{option} {file}: {file.parent} does not exist; create it first")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


def main() -> None:
    """Entry point. User errors are printed as one line on stderr, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print ? for characters that the console cannot encode
    interruption.listen()
    code = _code()
    if code == interruption.exit_code():
        interruption.ignore()
    try:
        sys.stdout.flush()
    except OSError as error:  # else Python flushes again at exit and prints a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or _print_error(storage_problem(error) or str(error), 1)
    sys.exit(code)


def _code() -> int:
    try:
        code = app(standalone_mode=False)
    except AdaptiveRayError as error:
        return _print_error(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _print_error("interrupted", interruption.exit_code())
    except Exception as error:  # usage errors of click, which typer may vendor under another name
        if hasattr(error, "format_message"):
            return _print_error(error.format_message(), 2)
        if (problem := storage_problem(error)) is not None:
            return _print_error(problem, 1)
        raise
    if code == InterruptedRunError("").exit_code:  # typer returns the code of an interruption
        return _print_error("interrupted", interruption.exit_code())
    return code if isinstance(code, int) else 0


def _print_error(text: str, code: int) -> int:
    with suppress(OSError):
        print(f"adaptive-ray: {text}", file=sys.stderr, flush=True)
    return code
