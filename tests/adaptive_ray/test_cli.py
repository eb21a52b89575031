"""Command line: errors are one line with exit code 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from PIL import Image

from adaptive_ray import __version__, cli
from adaptive_ray.experiment.experiment import Experiment
from adaptive_ray.ray_cluster import signals
from adaptive_ray.run_directory.lock import locked

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def _signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the signal handlers, which ``main`` installs, and forgets the signals that they received."""
    monkeypatch.setattr(signals, "_state", signals._State())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def command(
    _signals: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs a command in this process, in an empty directory; Ray must not start."""
    import ray

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["adaptive-ray", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


def one_line(answer: Answer) -> str:
    """The one-line error message of a command."""
    assert answer.code == 2, answer
    assert answer.err.startswith("adaptive-ray: "), answer.err
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err + answer.out
    return answer.err


def refused(command: Command, tmp_path: Path, *arguments: str | Path) -> str:
    """The error message; checks that no file was written."""
    before = sorted(tmp_path.rglob("*"))
    text = one_line(command(*arguments))
    assert sorted(tmp_path.rglob("*")) == before
    return text


def images(root: Path, count: int = 80) -> Path:
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for index in range(count // 2):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / name / f"{index:03d}.png")
    return root


def written(folder: Path, **settings: Any) -> Path:
    """A configuration for 48 images of an image folder."""
    content = {
        "dataset": {"name": "image_folder", "root": str(folder / "images"), "image_size": 8, "reference_images": 16},
        "candidates": [4, 8],
        "budget": {"epochs": 4},
        "race": {"window": {"epochs": 2}},
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(content | settings))
    return file


class TestRefused:
    @pytest.mark.parametrize("verb", ["run", "plan"])
    @pytest.mark.parametrize(
        ("setting", "parts"),
        [
            ("candidates=[]", ["candidates = []", "at least one"]),
            ("candidates=[0]", ["candidates.0 = 0", "below 2"]),
            ("candidates=[1, 64]", ["batch size 1 is below 2"]),
            ("candidates=[64, 64]", ["64 is listed twice"]),
            ("candidates=[64, 8192]", ["batch size 8,192", "training images"]),
            ("candidate=[64]", ["unknown setting 'candidate'", "'candidates'"]),
            ("seed=soon", ["seed = 'soon'", "integer"]),
            ("seed", ["name.of.setting=value"]),
            ("race.window.epochs=999", ["budget", "race.window"]),
            ("race.window.epochs=0.1", ["race.window", "at least 3"]),
            ("trial.workers=99999", ["trial.workers = 99999", "CPU cores", "--address"]),
            ("winner.workers=99999", ["winner.workers = 99999"]),
            ("dataset.reference_images=4000", ["dataset.reference_images"]),
            ("budget.epochs=.inf", ["budget.epochs"]),
            ("Seed=1", ["unknown setting 'Seed'"]),
            ("simclr.loss=infonce", ["simclr.loss = 'infonce'", "nt_xent, dcl"]),
            ("simclr.micro_batch=1", ["simclr.micro_batch = 1", "auto"]),
            ("simclr.encoder.backbone=resnet19", ["'resnet19'", "did you mean 'resnet"]),
            ("simclr.encoder.weights=/nowhere/at/all.pt", ["simclr.encoder", "/nowhere/at/all.pt"]),
        ],
    )
    def test_settings(self, command: Command, tmp_path: Path, verb: str, setting: str, parts: list[str]) -> None:
        text = refused(command, tmp_path, verb, QUICKSTART, "--set", setting)
        for part in parts:
            assert part in text

    @pytest.mark.parametrize("verb", ["run", "plan", "cluster"])
    @pytest.mark.parametrize(
        ("settings", "parts"),
        [
            (["clusters.encoder=resnet81"], ["encoder 'resnet81'", "did you mean 'resnet18'?"]),
            (["clusters.encoder=resnet18:none.pth"], ["none.pth", "cannot be read"]),
            (
                ["clusters.encoder=pixels", "clusters.n_clusters=99999"],
                ["clusters.n_clusters = 99999", "training images", "lower it"],
            ),
            (["clusters.metod=bic"], ["unknown setting 'clusters.metod'", "'clusters.method'"]),
        ],
    )
    def test_clusters(self, command: Command, tmp_path: Path, verb: str, settings: list[str], parts: list[str]) -> None:
        overrides = [part for setting in ["sampling=stratified", *settings] for part in ("--set", setting)]
        text = refused(command, tmp_path, verb, QUICKSTART, *overrides)
        for part in parts:
            assert part in text

    def test_a_plan_needs_counted_clusters(self, command: Command, tmp_path: Path) -> None:
        settings = ["--set", "candidates={from_clusters: {}}", "--set", "clusters.encoder=pixels"]
        text = refused(command, tmp_path, "plan", QUICKSTART, *settings)
        assert "count them with: adaptive-ray cluster CONFIG" in text

    @pytest.mark.parametrize("option", ["--json", "--html"])
    def test_a_file_in_a_missing_folder(self, command: Command, tmp_path: Path, option: str) -> None:
        assert "create it first" in refused(command, tmp_path, "cluster", QUICKSTART, option, "nowhere/out")

    def test_a_loss_that_cannot_be_imported(
        self,
        command: Command,
        tmp_path: Path,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails before a directory is created; `plan` does not import the user's code."""
        folder = tmp_path_factory.mktemp("code")
        (folder / "broken_loss.py").write_text("raise RuntimeError('half of it is missing')\n")
        monkeypatch.syspath_prepend(folder)
        loss = ["--set", "simclr.loss=broken_loss:mine"]
        assert command("plan", QUICKSTART, *loss).code == 0
        text = refused(command, tmp_path, "run", QUICKSTART, *loss)
        assert "simclr.loss: loss 'broken_loss:mine' cannot be imported: RuntimeError: half of it is missing" in text
        assert "PYTHONPATH" in text

    def test_a_missing_gpu(self, command: Command, tmp_path: Path) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        assert "trial.use_gpu = true" in refused(command, tmp_path, "run", QUICKSTART, "--set", "trial.use_gpu=true")

    @pytest.mark.parametrize("content", [None, "candidates: [1\n", "- 1\n", "", "\x00"])
    @pytest.mark.parametrize("verb", ["run", "plan"])
    def test_files(self, command: Command, tmp_path: Path, verb: str, content: str | None) -> None:
        file = tmp_path / "experiment.yaml"
        if content is not None:
            file.write_text(content)
        assert str(file) in refused(command, tmp_path, verb, file)

    def test_a_missing_folder(self, command: Command, tmp_path: Path) -> None:
        assert str(tmp_path / "images") in refused(command, tmp_path, "run", written(tmp_path))

    def test_missing_data(self, command: Command, tmp_path: Path) -> None:
        settings = ["--set", "dataset.name=cifar10", "--set", "dataset.download=false"]
        text = refused(command, tmp_path, "run", QUICKSTART, *settings)
        assert str(tmp_path / "data" / "cifar-10-batches-py") in text

    @pytest.mark.parametrize(
        "arguments",
        [
            ["run", QUICKSTART, "--frobnicate"],
            ["run", QUICKSTART, "--name"],
            ["run", QUICKSTART, "more"],
            ["run"],
            ["run", QUICKSTART, "--resume", "runs/x"],
            ["run", "--resume", "runs/x"],
            ["run", QUICKSTART, "--name", "x", "--resume"],
            ["run", QUICKSTART, "--name", "x", "--resume", "Auto"],
            ["run", QUICKSTART, "--name", "x", "--retry-failed"],
            ["plan"],
            ["cluster"],
            ["plan", QUICKSTART, "--resume", "runs/x"],
            ["report"],
            ["report", "runs/x"],
            ["reprot", "runs/x"],
            ["--frobnicate"],
        ],
        ids=lambda arguments: " ".join(getattr(part, "name", part) for part in arguments),
    )
    def test_usage(self, command: Command, tmp_path: Path, arguments: list[str | Path]) -> None:
        refused(command, tmp_path, *arguments)

    @pytest.mark.parametrize("more", [["--set", "seed=1"], ["--name", "y"], ["--runs-dir", "elsewhere"]])
    def test_resuming_with_other_settings(self, command: Command, tmp_path: Path, more: list[str]) -> None:
        assert "--resume uses the settings of the run" in refused(command, tmp_path, "run", "--resume", "runs/x", *more)

    @pytest.mark.parametrize("more", [[], ["--name", "x"], ["--retry-failed"]])
    def test_resume_auto_needs_a_configuration(self, command: Command, tmp_path: Path, more: list[str]) -> None:
        text = refused(command, tmp_path, "run", "--resume", "auto", *more)
        assert "--resume auto needs a configuration file and --name NAME" in text

    def test_resume_auto_needs_a_name(self, command: Command, tmp_path: Path) -> None:
        assert "--resume auto needs --name NAME" in refused(command, tmp_path, "run", QUICKSTART, "--resume", "auto")

    def test_unknown_options_are_reported(self, command: Command, tmp_path: Path) -> None:
        assert "--frobnicate" in refused(command, tmp_path, "run", QUICKSTART, "--frobnicate")


class TestNames:
    """An existing directory stops the command before Ray starts; the message shows its path."""

    def taken(self, path: Path) -> Path:
        path.mkdir(parents=True)
        (path / "precious").write_text("data")
        return path

    @pytest.mark.parametrize("name", ["taken", "2024", "1.5", "true", "null", "2024-01-31", "2024-13-45"])
    def test_an_existing_one_is_refused_and_left_untouched(self, command: Command, tmp_path: Path, name: str) -> None:
        path = self.taken(tmp_path / "runs" / name)
        text = refused(command, tmp_path, "run", QUICKSTART, "--name", name)
        assert f"{path} already exists" in text
        assert (path / "precious").read_text() == "data"

    @pytest.mark.parametrize("folder", ["results", "my results", "results: all", "results #1", "[results]"])
    def test_runs_dir(self, command: Command, tmp_path: Path, folder: str) -> None:
        path = self.taken(tmp_path / folder / "taken")
        text = refused(command, tmp_path, "run", QUICKSTART, "--name", "taken", "--runs-dir", tmp_path / folder)
        assert f"{path} already exists" in text

    def test_a_relative_runs_dir(self, command: Command, tmp_path: Path) -> None:
        path = self.taken(tmp_path / "results" / "taken")
        text = refused(command, tmp_path, "run", QUICKSTART, "--name", "taken", "--runs-dir", "results")
        assert f"{path} already exists" in text

    def test_the_configured_name(self, command: Command, tmp_path: Path) -> None:
        self.taken(tmp_path / "runs" / "mine")
        assert "already exists" in refused(command, tmp_path, "run", QUICKSTART, "--set", "name=mine")

    @pytest.mark.parametrize("name", ["a/b", "../up", "a b"])
    def test_invalid_names(self, command: Command, tmp_path: Path, name: str) -> None:
        assert repr(name) in refused(command, tmp_path, "run", QUICKSTART, "--name", name)


class TestResumeAuto:
    """The command is the same for each start, so that a job may be started again at any time."""

    @pytest.fixture
    def start(self, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
        """Starts the run `mine`; Ray refuses, since the path of its files is too long."""
        monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'too-long' * 20}")
        images(tmp_path / "images", 64)
        settings = written(tmp_path, tracking={"enabled": False})
        return lambda *more: command("run", settings, "--name", "mine", *more)

    def test_a_start_that_failed_does_not_block_the_name(self, start: Command, tmp_path: Path) -> None:
        run = tmp_path / "runs" / "mine"
        for seed, more in enumerate(([], [], ["--resume", "auto"])):  # the settings may still change
            assert "RAY_TMPDIR" in one_line(start("--set", f"seed={seed}", *more))
            assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == seed
            assert json.loads((run / "inputs.json").read_text())["settings"]["seed"] == seed
        with locked(run):
            assert f"{run} is in use by process {os.getpid()}" in one_line(start("--resume", "auto"))

    def test_a_started_run_is_resumed_until_it_is_finished(
        self, start: Command, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, auto = tmp_path / "runs" / "mine", ["--resume", "auto", "--retry-failed"]
        one_line(start(*auto))
        (run / "events.jsonl").touch()
        before = {file: file.read_bytes() for file in run.iterdir() if file.name != "config.yaml"}
        assert f"{run} already exists; choose another --name, or resume it" in one_line(start())
        other = [*auto, "--set", "seed=7"]
        assert f"the settings of {run} changed since it started: seed = 7 (was 0). Revert" in one_line(start(*other))
        assert "RAY_TMPDIR" in one_line(start(*auto))
        assert "RAY_TMPDIR" in one_line(command("run", "--resume", run))
        assert {file: file.read_bytes() for file in run.iterdir() if file.name != "config.yaml"} == before
        # Another process finishes it while the data are loaded.
        monkeypatch.setattr(Experiment, "check_loss", lambda _: (run / "result.json").write_text("{}"))
        finished = f"{run} is already finished; nothing to resume\n"
        assert start(*auto).out.endswith(finished)
        assert start(*auto) == Answer(0, finished, "")
        assert "seed = 7 (was 0)" in one_line(start(*other))

    def test_a_directory_of_something_else(self, start: Command, tmp_path: Path) -> None:
        file = tmp_path / "runs" / "mine" / "events.txt"
        file.parent.mkdir(parents=True)
        file.write_text("precious")
        assert "already exists and is not a run" in one_line(start("--resume", "auto"))
        assert [path.read_text() for path in file.parent.iterdir()] == ["precious"]


class TestPlan:
    def test_runs_and_costs(self, command: Command, tmp_path: Path) -> None:
        settings = ["dataset.reference_images=256", "budget.epochs=7", "race.window.epochs=2", "race.evaluations=7"]
        settings += ["candidates=[64, 128, 256]", "trial.workers=1", "race.max_concurrent=2"]
        answer = command("plan", QUICKSTART, *(part for setting in settings for part in ("--set", setting)))
        assert answer.code == 0
        assert answer.err == ""
        assert "mnist5k: 3,744 training images, 1 x 28 x 28" in answer.out
        # 7 reports every 1,024 samples; 7 epochs of 3,744 images
        assert "race: 7,168 samples per candidate, one report every 1,024 samples" in answer.out
        assert "budget: 26,208 samples (7 epochs)" in answer.out
        assert f"at most {1 + 2 * 7168 / 26208:.2f} x one full run (grid search: 3 x)" in answer.out
        rows = [line.replace("│", " ").split() for line in answer.out.splitlines()]
        for size, race, whole in (("64", "112", "410"), ("128", "56", "205"), ("256", "28", "103")):
            assert [size, race, whole] in [row[:3] for row in rows]
        assert "workers: 3 x 1 in the race (" in answer.out
        assert " per worker, 2 concurrent), " in answer.out
        assert list(tmp_path.iterdir()) == []

    def test_candidates_with_accumulation(self, command: Command, tmp_path: Path) -> None:
        images(tmp_path / "images")
        both = "candidates=[16, {batch_size: 4, accumulation: 4}, {batch_size: 4, accumulation: 2}]"
        answer = command("plan", written(tmp_path), "--set", both)
        assert answer.code == 0
        rows = [line.replace("│", " ").split() for line in answer.out.splitlines()]
        for key, race, whole in (("16", "6", "12"), ("4x4", "6", "12"), ("4x2", "12", "24")):
            assert [key, race, whole] in [row[:3] for row in rows]
        rates = {row[0]: row[3] for row in rows if row[:1] in (["16"], ["4x4"], ["4x2"])}
        assert rates["16"] == rates["4x4"] != rates["4x2"]

    def test_found_and_skipped_images_are_printed(self, command: Command, tmp_path: Path) -> None:
        root = images(tmp_path / "images")
        (root / "dogs" / "003.png").write_text("no image")
        (root / "dogs" / "[red]\n.png").write_text("no image")
        (root / "dogs" / "notes.txt").write_text("none by its name")
        answer = command("plan", written(tmp_path))
        assert answer.code == 0
        for line in (
            "image_folder: 47 training images, 16 reference images, 16 test images",
            "2 classes: cats 40, dogs 39",
            "size: 8 x 8 pixels; center-cropped and resized to 8 x 8 (dataset.image_size)",
            "skipped: other file types: 1 (dogs/notes.txt)",
        ):
            assert line in answer.out.splitlines()
        why = "not an image of a supported format"
        assert f"cannot be decoded: 2 (dogs/003.png: {why}, dogs/[red]\\n.png: {why})" in answer.out

    def test_settings_count(self, command: Command, tmp_path: Path) -> None:
        images(tmp_path / "images")
        answer = command("plan", written(tmp_path), "--set", "candidates=[4]", "--set", "budget.samples=500")
        assert answer.code == 0
        assert "image_folder: 48 training images" in answer.out
        assert "budget: 500 samples" in answer.out
        assert "at most 1.00 x" in answer.out
        assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.yaml", "images"]

    def test_devices_of_a_cluster_are_unknown(self, command: Command) -> None:
        answer = command("plan", QUICKSTART, "--address", "ray://nowhere:1", "--set", "trial.workers=64")
        assert answer.code == 0
        assert "workers:" not in answer.out


class TestRuns:
    @pytest.fixture
    def unfinished(self, tmp_path: Path) -> Path:
        path = tmp_path / "runs" / "half"
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(QUICKSTART.read_text())
        return path

    def test_report_of_an_unfinished_one(self, command: Command, tmp_path: Path, unfinished: Path) -> None:
        text = refused(command, tmp_path, "report", unfinished)
        assert "the run is not finished" in text
        assert f"--resume {unfinished}" in text

    def test_report_of_a_corrupt_one(self, command: Command, tmp_path: Path, unfinished: Path) -> None:
        (unfinished / "result.json").write_text('{"chosen')
        assert "result.json" in refused(command, tmp_path, "report", unfinished)

    @pytest.mark.parametrize("verb", [["report"], ["run", "--resume"]])
    def test_not_a_run_directory(self, command: Command, tmp_path: Path, verb: list[str]) -> None:
        assert "not a run directory" in refused(command, tmp_path, *verb, tmp_path)

    def test_resuming_a_finished_one(self, command: Command, tmp_path: Path, unfinished: Path) -> None:
        (unfinished / "result.json").write_text("{}")
        assert "nothing to resume" in refused(command, tmp_path, "run", "--resume", unfinished)

    @pytest.mark.parametrize("content", ["candidates: [1\n", "- 1\n", "candidates: [1]\n"])
    def test_resuming_one_with_a_corrupt_configuration(
        self, command: Command, tmp_path: Path, unfinished: Path, content: str
    ) -> None:
        (unfinished / "config.yaml").write_text(content)
        assert str(unfinished / "config.yaml") in refused(command, tmp_path, "run", "--resume", unfinished)


class TestMain:
    def test_version(self, command: Command) -> None:
        assert command("version") == Answer(0, f"{__version__}\n", "")

    @pytest.mark.parametrize("verb", [[], ["run"], ["plan"], ["report"]])
    def test_help(self, command: Command, verb: list[str]) -> None:
        answer = command(*verb, "--help")
        assert answer.code == 0
        assert "Usage" in answer.out

    def test_help_without_arguments(self, command: Command) -> None:
        answer = command()
        assert "Usage" in answer.out + answer.err
        assert "Traceback" not in answer.err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_as_an_interruption(
        self, command: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        from adaptive_ray.config import loading

        def uncaught(*_: Any) -> None:
            raise RuntimeError("main() does not listen to the signal")

        signal.signal(number, uncaught)
        monkeypatch.setattr(loading, "load_config", lambda *_, **__: signal.raise_signal(number))
        assert command("plan", QUICKSTART) == Answer(128 + number, "", "adaptive-ray: interrupted\n")


@pytest.mark.slow
class TestProcess:
    """Commands in a separate process."""

    def process(self, folder: Path, *arguments: str | Path) -> Answer:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-m", "adaptive_ray", *map(str, arguments)],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    def test_plan(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Output on an ASCII console."""
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        answer = self.process(tmp_path, "plan", QUICKSTART)
        assert answer.code == 0
        assert answer.err == ""
        assert " training images, 1 x 28 x 28" in answer.out
        assert list(tmp_path.iterdir()) == []

    def test_more_workers_than_this_machine_has(self, tmp_path: Path) -> None:
        answer = self.process(tmp_path, "run", QUICKSTART, "--set", "trial.workers=99999")
        assert "trial.workers = 99999" in one_line(answer)
        assert answer.out == ""
        assert list(tmp_path.iterdir()) == []

    def test_a_wrong_setting(self, tmp_path: Path) -> None:
        answer = self.process(tmp_path, "run", QUICKSTART, "--set", "candidates=[64, 64]")
        assert "64 is listed twice" in one_line(answer)
        assert answer.out == ""
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("broken", ["full", "closed"])
    def test_an_output_that_cannot_be_written(self, tmp_path: Path, broken: str) -> None:
        command = [sys.executable, "-m", "adaptive_ray", "version"]
        if broken == "full":
            if not Path("/dev/full").exists():
                pytest.skip("no /dev/full here")
            with Path("/dev/full").open("w") as output:
                done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
            assert done.stderr == "adaptive-ray: a file or the output cannot be written: No space left on device\n"
        else:
            reader, writer = os.pipe()
            os.close(reader)
            done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
            os.close(writer)
            assert "Traceback" not in done.stderr
        assert done.returncode == 1

    def test_the_installed_command(self, tmp_path: Path) -> None:
        script = Path(sys.executable).with_name("adaptive-ray")
        done = subprocess.run(
            [script, "version"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stdout == f"{__version__}\n"
