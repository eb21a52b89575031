"""Checkpoints of a run: which are deleted and which one a candidate resumes from."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adaptive_ray.config.loading import load_config
from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.checkpoints import Checkpoints
from adaptive_ray.run_directory.directory import RunDirectory
from trainables.report import TrainingReport
from trainables.training.checkpoint import CHECKPOINT_FILE, UNFINISHED, checkpoint_problem, save_checkpoint

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


def reported(samples: int, path: Path | None) -> TrainingReport:
    place = None if path is None else str(path)
    return TrainingReport(samples_seen=samples, batch_size=64, reference_loss=4.0, checkpoint_path=place)


class Training:
    """Imitates what Ray Train's workers and Tune write to the directory of a run."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.checkpoints = Checkpoints(directory)

    def save(self, run: str, samples: int) -> Path:
        path = self.directory.path / "train" / run / f"checkpoint_{samples}"
        path.mkdir(parents=True)
        save_checkpoint({"samples": samples, "weights": torch.ones(10)}, path)
        return path

    def report(self, candidate: str, samples: int, path: Path) -> None:
        report = reported(samples, path)
        self.directory.append_report(candidate, report)
        trial = SimpleNamespace(config={"candidate": candidate})
        self.checkpoints.on_trial_result(0, [], trial, report.to_dict())

    def train(self, candidate: str, run: str, *samples: int) -> None:
        for each in samples:
            self.report(candidate, each, self.save(run, each))

    def resume(self, path: Path | None = None) -> Training:
        return Training(RunDirectory.open(path or self.directory.path))

    def there(self) -> list[str]:
        train = self.directory.path / "train"
        return sorted(str(path.relative_to(train)) for path in train.glob("*/checkpoint_*"))

    def cut(self, name: str, length: int = 100) -> Path:
        file = self.directory.path / "train" / name / CHECKPOINT_FILE
        os.truncate(file, length)
        return file


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(RunDirectory.create(load_config(QUICKSTART, [f"runs_dir={tmp_path / 'runs'}"]), "first"))


class TestDeleting:
    def test_the_last_two_that_reports_name_are_kept(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2, 3, 4)
        training.train("128", "b-start", 1)
        assert training.there() == ["a-start/checkpoint_3", "a-start/checkpoint_4", "b-start/checkpoint_1"]

    @pytest.mark.parametrize("ahead", range(8))
    def test_reported_checkpoints_exist_even_if_workers_run_ahead(self, training: Training, ahead: int) -> None:
        saved = [training.save("a-start", samples) for samples in range(ahead)]
        for samples in range(ahead, 20):
            saved.append(training.save("a-start", samples))
            training.report("64", samples - ahead, saved[samples - ahead])
            last = training.directory.reports()["64"][-1]
            assert checkpoint_problem(Path(str(last.checkpoint_path))) is None
            for path in saved[samples - ahead :]:  # not reported yet
                assert path.is_dir()
        assert len(training.there()) == ahead + 2

    def test_a_checkpoint_and_its_report_are_on_disk_before_older_ones_are_deleted(
        self, training: Training, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        happened: list[str] = []
        fsync, rmtree = os.fsync, shutil.rmtree

        def synced(descriptor: int) -> None:
            happened.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
            fsync(descriptor)

        def removed(path: Path, **keywords: bool) -> None:
            happened.append(f"delete {path.name}")
            rmtree(path, **keywords)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(shutil, "rmtree", removed)
        training.train("64", "a-start", 1, 2, 3)
        written = ["reports.jsonl", CHECKPOINT_FILE]
        assert happened == [*written, *written, *written, "delete checkpoint_1"]

    def test_checkpoints_saved_ahead_are_deleted_once_a_restarted_candidate_reports(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2)
        training.train("128", "b-start", 1, 2)
        for samples in (3, 4, 5):
            training.save("a-start", samples)
            training.save("b-start", samples)
        training.report("64", 3, training.save("a-2", 3))
        of_a = [name for name in training.there() if name.startswith("a")]
        assert of_a == ["a-2/checkpoint_3", "a-start/checkpoint_2"]
        assert len([name for name in training.there() if name.startswith("b")]) == 5  # training continues

    def test_unreported_checkpoints_are_deleted_when_nothing_trains(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2, 3)
        for samples in (4, 5):
            training.save("a-start", samples)
        training.save("b-start", 1)
        (training.directory.path / "train" / "a-start" / "other").mkdir()
        unfinished = training.directory.path / "train" / "a-start" / f"{UNFINISHED}6"
        unfinished.mkdir()
        resumed = training.resume()
        assert len(resumed.there()) == 5
        resumed.checkpoints.delete_unnamed()
        assert resumed.there() == ["a-start/checkpoint_2", "a-start/checkpoint_3"]
        assert (training.directory.path / "train" / "a-start" / "other").is_dir()
        assert not unfinished.exists()

    def test_a_resumed_run_continues_to_delete(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2)
        training.resume().train("64", "c-start", 3, 4)
        assert training.there() == ["c-start/checkpoint_3", "c-start/checkpoint_4"]

    def test_a_missing_checkpoint_keeps_the_older_ones(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2)
        lost = training.save("a-start", 3)
        shutil.rmtree(lost)
        training.report("64", 3, lost)
        assert training.there() == ["a-start/checkpoint_1", "a-start/checkpoint_2"]
        training.train("64", "a-start", 4)
        assert training.there() == ["a-start/checkpoint_2", "a-start/checkpoint_4"]

    def test_tune_can_store_it(self, training: Training) -> None:
        assert pickle.dumps(training.checkpoints)


class TestResuming:
    def test_from_the_last_report(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2, 3)
        training.train("128", "b-start", 1)
        found = training.resume().checkpoints.newest("64")
        assert found is not None
        report, problem = found
        assert problem is None
        assert report.samples_seen == 3
        assert report.checkpoint_path == str(training.directory.path / "train/a-start/checkpoint_3")

    def test_without_a_report_training_starts_from_the_beginning(self, training: Training) -> None:
        training.train("64", "a-start", 1)
        training.directory.append_report("32", reported(1, None))
        assert training.checkpoints.newest("128") is None
        assert training.checkpoints.newest("32") is None

    @pytest.mark.parametrize("fault", ["cut", "file", "directory"])
    def test_a_corrupt_checkpoint_is_replaced_by_the_previous_one(self, training: Training, fault: str) -> None:
        training.train("64", "a-start", 1, 2, 3)
        last = training.directory.path / "train" / "a-start" / "checkpoint_3"
        if fault == "cut":
            training.cut("a-start/checkpoint_3")
        elif fault == "file":
            (last / CHECKPOINT_FILE).unlink()
        else:
            shutil.rmtree(last)
        resumed = training.resume()
        found = resumed.checkpoints.newest("64")
        assert found is not None
        report, problem = found
        assert report.samples_seen == 2
        assert problem is not None
        assert str(last / CHECKPOINT_FILE) in problem

        resumed.checkpoints.delete_unnamed()  # the corrupt checkpoint is kept, so that users can repair it
        assert last.is_dir() == (fault != "directory")
        assert checkpoint_problem(Path(str(report.checkpoint_path))) is None
        resumed.train("64", "c-start", 3)  # repeated: there are two valid ones again
        found = resumed.checkpoints.newest("64")
        assert found is not None
        assert found[1] is None
        assert found[0].checkpoint_path == str(training.directory.path / "train/c-start/checkpoint_3")
        assert "a-start/checkpoint_2" in training.there()
        resumed.resume().train("64", "d-start", 4)
        assert [name for name in training.there() if name[0] in "cd"] == [
            "c-start/checkpoint_3",
            "d-start/checkpoint_4",
        ]

    def test_without_a_valid_checkpoint_no_candidate_is_pruned(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2, 3)
        files = [training.cut(f"a-start/checkpoint_{samples}", length) for samples, length in ((2, 0), (3, 1000))]
        with pytest.raises(UserError) as caught:
            training.resume().checkpoints.newest("64")
        message = str(caught.value)
        assert message.startswith(f"{files[1]} is corrupt")
        assert "--name" in message
        assert "\n" not in message

    @pytest.mark.parametrize("copied", [True, False])
    def test_a_run_that_was_moved_or_copied(self, training: Training, tmp_path: Path, copied: bool) -> None:
        training.train("64", "a-start", 1, 2, 3)
        training.save("a-start", 4)
        place = tmp_path / "elsewhere" / "other"
        place.parent.mkdir()
        if copied:
            shutil.copytree(training.directory.path, place)
            shutil.rmtree(training.directory.path / "train")  # it must not be read
        else:
            training.directory.path.rename(place)
        moved = training.resume(place)
        found = moved.checkpoints.newest("64")
        assert found is not None
        assert found[1] is None
        assert found[0].checkpoint_path == str(place / "train/a-start/checkpoint_3")
        moved.checkpoints.delete_unnamed()
        assert moved.there() == ["a-start/checkpoint_2", "a-start/checkpoint_3"]
        moved.train("64", "c-start", 4, 5)
        assert moved.there() == ["c-start/checkpoint_4", "c-start/checkpoint_5"]
        assert str(tmp_path) not in (place / "reports.jsonl").read_text()


class TestStartingAgain:
    """A failed trial that Tune is about to restart."""

    @staticmethod
    def recover(training: Training, candidate: str, resume_from: Path | None) -> str | None:
        trial = SimpleNamespace(config={"candidate": candidate, "resume_from": resume_from and str(resume_from)})
        trial.set_config = lambda config: setattr(trial, "config", config)
        training.checkpoints.on_trial_recover(0, [], trial)
        training.checkpoints.on_step_end(0, [])
        started: str | None = trial.config["resume_from"]
        return started

    def test_restarts_from_a_valid_checkpoint_or_from_the_beginning(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2, 3)
        last = training.directory.path / "train/a-start/checkpoint_3"
        assert self.recover(training, "64", last) == str(last)
        assert self.recover(training, "128", None) is None

    @pytest.mark.parametrize("fault", ["cut", "gone"])
    def test_a_corrupt_checkpoint_is_replaced_by_the_previous_one(self, training: Training, fault: str) -> None:
        training.train("64", "a-start", 1, 2, 3)
        last = training.directory.path / "train/a-start/checkpoint_3"
        if fault == "cut":
            training.cut("a-start/checkpoint_3")
        else:
            shutil.rmtree(last)
        assert self.recover(training, "64", last) == str(last.with_name("checkpoint_2"))
        training.train("64", "a-4", 3, 4)
        assert checkpoint_problem(last.parent.parent / "a-4/checkpoint_3") is None

    def test_without_a_valid_checkpoint_the_file_is_reported(self, training: Training) -> None:
        training.train("64", "a-start", 1)
        file = training.cut("a-start/checkpoint_1")
        with pytest.raises(UserError, match=f"{file} is corrupt"):
            self.recover(training, "64", file.parent)

    def test_of_another_candidates_weights_the_run_is_to_be_resumed(self, training: Training) -> None:
        training.train("64", "a-start", 1, 2)
        training.train("128", "b-start", 1, 2)
        file = training.cut("b-start/checkpoint_2")
        with pytest.raises(UserError, match=f"{file} is corrupt.*--resume {training.directory.path}"):
            self.recover(training, "64", file.parent)


def test_whenever_the_process_dies_the_last_written_report_can_be_resumed(training: Training) -> None:
    """A run can be resumed after any prefix of its writes."""
    saved = [training.save("a-start", samples) for samples in range(3)]
    for samples in itertools.count():
        training.directory.append_report("64", reported(samples, saved[samples]))
        for dead in (True, False):  # before and after older ones are deleted
            if not dead:
                training.checkpoints.reported("64", saved[samples])
            resumed = training.resume().checkpoints
            found = resumed.newest("64")
            assert found == (training.directory.reports()["64"][-1], None)
        saved.append(training.save("a-start", samples + 3))
        if samples == 5:
            break
