"""Configurations are read from YAML, changed by overrides, and written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adaptive_ray.config.loading import dump_config, load_config, parse_config
from adaptive_ray.config.settings import Amount
from schedulers import Candidate
from tests.adaptive_ray.config.configurations import QUICKSTART, complaint


class TestOverrides:
    def test_values_are_yaml(self) -> None:
        config = load_config(
            QUICKSTART,
            [
                "seed=7",
                "candidates=[16, 32]",
                "trial.use_gpu=false",
                "race.prune_below=0.2",
                "name=my-run",
                "winner={}",
            ],
        )
        assert (config.seed, config.candidates, config.trial.use_gpu) == (7, [Candidate(16), Candidate(32)], False)
        assert (config.race.prune_below, config.name, config.winner.workers) == (0.2, "my-run", "auto")

    def test_nested_overrides_keep_other_settings(self) -> None:
        config = load_config(QUICKSTART, ["simclr.optimizer.learning_rate=0.5", "simclr.encoder.width=8"])
        assert config.simclr.optimizer.learning_rate == 0.5
        assert config.simclr.optimizer.name == "adamw"
        assert (config.simclr.encoder.width, config.simclr.encoder.depth) == (8, 1)

    def test_sections_absent_from_the_file_can_be_set(self) -> None:
        assert "tracking" not in yaml.safe_load(QUICKSTART.read_text())
        assert load_config(QUICKSTART, ["tracking.enabled=false"]).tracking.enabled is False

    def test_the_last_one_wins(self) -> None:
        assert load_config(QUICKSTART, ["seed=1", "seed=2"]).seed == 2

    def test_a_value_may_hold_an_equals_sign(self) -> None:
        assert load_config(QUICKSTART, ["tracking.uri=http://host/?a=b"]).tracking.uri == "http://host/?a=b"

    def test_samples_replace_epochs_and_back(self) -> None:
        assert load_config(QUICKSTART, ["budget.samples=5000"]).budget == Amount(samples=5000)
        assert load_config(QUICKSTART, ["race.window.samples=900"]).race.window == Amount(samples=900)
        both = load_config(QUICKSTART, ["budget.samples=5000", "budget.epochs=3"])
        assert both.budget == Amount(epochs=3)

    @pytest.mark.parametrize("override", ["seed", "", "=3", "trial.workers 3"])
    def test_without_name_or_value(self, override: str) -> None:
        text = complaint(override)
        assert repr(override) in text
        assert "name.of.setting=value" in text

    def test_invalid_yaml(self) -> None:
        assert "'[64, 128' is invalid YAML" in complaint("candidates=[64, 128")

    def test_a_key_below_a_value(self) -> None:
        text = complaint("dataset.name.first=1")
        assert "'name' is 'mnist5k'" in text

    def test_a_whole_section_is_not_replaced_by_accident(self) -> None:
        assert "one by one" in complaint("dataset={name: cifar10}")

    def test_impossible_date(self) -> None:
        # YAML parses it as a date, and there is no 13th month.
        assert "2024-13-45" in complaint("name=2024-13-45")


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        file = tmp_path / "none.yaml"
        assert complaint(file=file) == f"{file}: file not found"

    def test_directory(self, tmp_path: Path) -> None:
        assert str(tmp_path) in complaint(file=tmp_path)

    @pytest.mark.parametrize(
        "content", [b"dataset: [1\n", b"a: b: c\n", b"\ttab: 1\n", b"\x00\x01", b"\xff\xfe\x80", b"seed: 2024-13-45\n"]
    )
    def test_corrupt(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "corrupt.yaml"
        file.write_bytes(content)
        assert complaint(file=file).startswith(f"{file}: ")

    @pytest.mark.parametrize(("content", "kind"), [("- 1\n", "list"), ("", "NoneType"), ("7\n", "int"), ("a\n", "str")])
    def test_not_a_mapping(self, tmp_path: Path, content: str, kind: str) -> None:
        file = tmp_path / "experiment.yaml"
        file.write_text(content)
        text = complaint(file=file)
        assert "mapping" in text
        assert text.endswith(f"got {kind}")

    def test_keys_must_be_strings(self, tmp_path: Path) -> None:
        file = tmp_path / "experiment.yaml"
        file.write_text(QUICKSTART.read_text() + "\n1: 2\n")
        assert "keys should be strings" in complaint(file=file)


def test_dump_holds_every_setting_and_round_trips(tmp_path: Path) -> None:
    config = load_config(
        QUICKSTART,
        [
            f"runs_dir={tmp_path}",
            "name='007'",
            "seed=5",
            "budget.samples=9000",
            "trial.use_gpu=false",
            "winner.workers=2",
        ],
    )
    text = dump_config(config)
    assert parse_config(yaml.safe_load(text)) == config
    assert set(yaml.safe_load(text)) == set(type(config).model_fields)
    assert yaml.safe_load(text)["race"]["prune_below"] == 0.1  # a default, written out
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load_config(file) == config
