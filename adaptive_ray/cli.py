"""The command line."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

# Set before Ray and MLflow are imported: a tool that is run on private data does not report home.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import typer
from rich.console import Console
from rich.table import Table

from adaptive_ray import __version__
from adaptive_ray.errors import AdaptiveRayError, InterruptedRunError, UserError
from adaptive_ray.experiment.endings import storage_problem
from adaptive_ray.ray_cluster import signals as interruption

app = typer.Typer(
    help="Pretrains SimCLR encoders on Ray without anyone choosing the batch size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="a YAML file, such as configs/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="changes a setting, e.g. trial.workers=2")
]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a running Ray cluster; default: RAY_ADDRESS, else one is started here")
]


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="a YAML file, such as configs/quickstart.yaml")] = None,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="of the run; default: time and data set")] = None,
    runs_dir: Annotated[
        Path | None, typer.Option(help="where results are written; default: the configuration's")
    ] = None,
    address: Address = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="continues a run that was interrupted")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="with --resume: retries candidates that failed")
    ] = False,
) -> None:
    """Races the candidates, trains the winner, and shows why it won."""
    if (config is None) == (resume is None):
        raise UserError("give either a configuration file or --resume RUN")
    if retry_failed and resume is None:
        raise UserError("--retry-failed retries the failed candidates of a run: name the run with --resume RUN")
    if resume is not None and (overrides or name or runs_dir):
        raise UserError("--resume continues a run with its own settings; leave out --set, --name and --runs-dir")
    console = _console()
    with console.status("loading"):
        from adaptive_ray.config.experiment import load_config
        from adaptive_ray.experiment.experiment import Experiment, open_run
        from adaptive_ray.ray_cluster.address import check_address
        from adaptive_ray.report.terminal import print_lines
        from adaptive_ray.run_directory.directory import RunDirectory

        check_address(address)  # before data are loaded and there is a directory
        if resume is not None:
            directory, settings = open_run(resume)
            experiment = Experiment(settings, address=address)
        else:
            assert config is not None
            settings = load_config(config, overrides or [], name=name, runs_dir=runs_dir)
            experiment = Experiment(settings, address=address)
            experiment.check_loss()  # before there is a directory
            default = f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.dataset.name}"
            directory = RunDirectory.create(settings, settings.name or default)
        print_lines(console, experiment.data.summary)
    result = experiment.run(directory, console, retry_failed=retry_failed)
    _show(console, directory, result, settings)


@app.command()
def plan(config: ConfigFile, overrides: Overrides = None, address: Address = None) -> None:
    """Prints what would run and what it would cost, without running it."""
    console = _console()
    from adaptive_ray.config.experiment import load_config
    from adaptive_ray.experiment.experiment import Experiment
    from adaptive_ray.report.terminal import print_lines

    settings = load_config(config, overrides or [])
    experiment = Experiment(settings, address=address)
    print_lines(console, experiment.data.summary)
    p = experiment.plan
    channels, height, width = experiment.data.shape
    table = Table(title=f"{settings.dataset.name}: {p.epoch:,} training images, {channels} x {height} x {width}")
    races = len(p.trials) > 1
    titles = ("batch size", "steps in the race", "steps if it wins", "learning rate")
    for title in titles if races else ("batch size", "steps", "learning rate"):
        table.add_column(title, justify="right")
    about = ""
    if settings.accumulation is not None:  # measured on the images' clusters, if these are known
        about = (
            "about " if experiment.dataset_clusters is not None and experiment.dataset_clusters.known else "at most "
        )
    for candidate in p.candidates:
        images = p.updates[candidate]
        rate = settings.simclr.optimizer.learning_rate_at(settings.simclr.optimizer.warmup, images)
        counts = (-(-p.window // images), p.steps(candidate)) if races else (p.steps(candidate),)
        steps = [f"{about}{count:,}" for count in counts]
        table.add_row(candidate.key, *steps, f"{rate:.2g}")
    console.print(table)
    sweep = len(p.candidates)
    explored = f"race: {p.window:,} samples each" if races else "one run"
    if settings.explore == "rotate":
        explored = f"one run: candidates take turns of {p.turn:,} samples"
    console.print(
        f"{explored}, a report every {p.evaluate_every:,}\n"
        f"budget: {p.budget:,} samples ({p.budget / p.epoch:.3g} epochs)\n"
        f"cost: at most {1 + p.explore_limit / p.budget:.2f} times one full run (a sweep over the candidates: {sweep})"
    )
    layout = experiment.prepared.layout if experiment.prepared else None
    if layout:
        race, winner, at_once = layout.race, layout.winner, layout.concurrent
        device = f"{race.gpus:.3g} GPU" if race.gpus else f"{race.cpus:.3g} CPU core{'' if race.cpus == 1 else 's'}"
        waves = f", {at_once} at once in {-(-sweep // at_once)} waves" if at_once < sweep else ""
        racing = f"{sweep} x {race.count} in the race ({device} each{waves}), {winner.count} for the winner"
        console.print(f"workers: {racing if races else winner.count}")


@app.command()
def cluster(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.json", help="also writes the result as JSON")
    ] = None,
    page: Annotated[Path, typer.Option("--html", metavar="PAGE.html", help="where the picture is written")] = Path(
        "clusters.html"
    ),
) -> None:
    """Counts the clusters of the training images, and says which batch size follows from them."""
    for option, file in (("--json", json_file), ("--html", page)):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{option} {file}: {file.parent} is not a directory; create it first")
    console = _console()
    with console.status("loading"):
        from adaptive_ray.clusters.command import count
        from adaptive_ray.config.experiment import load_config

        settings = load_config(config, overrides or [])
    summary = count(settings, address, console, page)
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


@app.command()
def report(run_directory: Annotated[Path, typer.Argument(help="runs/NAME of a finished run")]) -> None:
    """Rebuilds report.html from a run's directory."""
    from adaptive_ray.report.page import write_report
    from adaptive_ray.run_directory.directory import RunDirectory

    _console().print(str(write_report(RunDirectory.open(run_directory))), soft_wrap=True, highlight=False)


@app.command()
def replay(
    curves: Annotated[Path, typer.Argument(metavar="CURVES_DIR", help="recorded whole runs, one JSON file each")],
    policy: Annotated[list[str] | None, typer.Option(help="only these; default: all there are")] = None,
    axis: Annotated[str, typer.Option(help="what is scarce: samples or seconds")] = "samples",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.json", help="a row per policy and sweep")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="also writes PNG charts")] = None,
) -> None:
    """Replays policies on recorded runs: what each would have chosen, and what that would have cost."""
    if axis not in ("samples", "seconds"):
        raise UserError(f"--axis {axis}: use samples or seconds")
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: {json_file.parent} is not a directory; create it first")
    console = _console()
    with console.status("replaying"):
        from adaptive_ray.replay import recordings, replay

        names = replay.known_policies(policy or [])
        sweeps = recordings.load_sweeps(curves)
        rows = replay.replay(sweeps, names, axis)
        forecasts = replay.forecast_rows(sweeps)
    console.print(replay.policy_table(rows, sweeps, axis))
    console.print(replay.forecast_table(forecasts))
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
    """Prints the version."""
    _console().print(__version__, highlight=False)


def _show(console: Console, directory: Any, result: dict[str, Any], settings: Any) -> None:
    from adaptive_ray.report.accuracies import REPRESENTATIONS, accuracy_rows, missing, reference_loss
    from adaptive_ray.report.page import last_decisions
    from adaptive_ray.report.terminal import restart_line, results_table
    from schedulers import Candidate

    console.print()
    console.print(results_table(last_decisions(directory.decisions())))
    chosen = Candidate(result["chosen_batch_size"], result["chosen_accumulation"])
    console.print(f"\n[bold green]chosen batch size: {chosen.key}[/]\n", highlight=False)
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("held-out accuracy")
    for title in REPRESENTATIONS.values():
        table.add_column(title, justify="right")
    for row in accuracy_rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(f"\n{reference_loss(result)}", highlight=False)
    for line in missing(result):
        console.print(f"- {line}", soft_wrap=True, highlight=False, markup=False, style="yellow")
    console.print(
        f"spent on exploring: {100 * result['explore_fraction']:.0f} % of the run "
        f"({result['samples_explored']:,} of {result['budget']:,} samples) · {result['seconds']:.0f} s in all",
        highlight=False,
    )
    for restart in result.get("restarts", []):
        console.print(f"batch size {restart_line(**restart)}", highlight=False, markup=False, soft_wrap=True)
    lines = {"results": directory.path, "picture": directory.path / "report.html"}
    if settings.tracking.enabled and settings.tracking.uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        lines["MLflow"] = f"mlflow ui --backend-store-uri sqlite:///{directory.path.parent / 'mlflow.db'}"
    for title, text in lines.items():
        console.print(f"{title}: {text}", soft_wrap=True, highlight=False, markup=False)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


def main() -> None:
    """Entry point: what a person can fix becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what the console cannot encode becomes a question mark
    interruption.listen()
    code = _code()
    if code == interruption.exit_code():
        interruption.ignore()
    try:
        sys.stdout.flush()
    except OSError as error:  # Python would try again, and complain, when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or _complain(storage_problem(error) or str(error), 1)
    sys.exit(code)


def _code() -> int:
    try:
        code = app(standalone_mode=False)
    except AdaptiveRayError as error:
        return _complain(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", interruption.exit_code())
    except Exception as error:  # typer's own usage errors; its click may be vendored, hence by their method
        if hasattr(error, "format_message"):
            return _complain(error.format_message(), 2)
        if (problem := storage_problem(error)) is not None:
            return _complain(problem, 1)
        raise
    if code == InterruptedRunError("").exit_code:  # typer turns an interruption into a number
        return _complain("interrupted", interruption.exit_code())
    return code if isinstance(code, int) else 0


def _complain(text: str, code: int) -> int:
    with suppress(OSError):
        print(f"adaptive-ray: {text}", file=sys.stderr, flush=True)
    return code
