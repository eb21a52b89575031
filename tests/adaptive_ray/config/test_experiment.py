"""Configurations of experiments: shipped files, rules and their error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adaptive_ray.config.loading import dump_config, load_config, parse_config
from adaptive_ray.config.settings import Amount
from adaptive_ray.errors import UserError
from schedulers import Candidate
from tests.adaptive_ray.config.configurations import CONFIGS, QUICKSTART, changed, complaint


class TestShipped:
    def test_quickstart(self) -> None:
        config = load_config(QUICKSTART)
        assert config.dataset.name == "mnist5k"
        assert len(config.candidates) >= 3
        assert config.race.forecaster == "joint"
        assert config.simclr.augment == "digits"

    def test_cifar10(self) -> None:
        config = load_config(CONFIGS / "cifar10.yaml")
        assert config.dataset.name == "cifar10"
        assert config.candidates == [Candidate(size) for size in (128, 256, 512, 1024)]
        assert config.budget == Amount(epochs=200)
        assert config.simclr.encoder.backbone == "resnet18"

    @pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
    def test_every_file_round_trips(self, file: Path) -> None:
        config = load_config(file)
        assert parse_config(yaml.safe_load(dump_config(config))) == config

    @pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
    def test_a_budget_in_minutes_keeps_the_share_of_the_window(self, file: Path) -> None:
        before, said = load_config(file), list[str]()
        config = load_config(file, ["budget.minutes=20"], say=said.append)
        assert before.race.window is not None
        share = (before.race.window.epochs or 0) / (before.budget.epochs or 1)
        assert config.race.window is not None
        assert config.race.window.minutes == pytest.approx(20 * share)
        assert len(said) == 1
        assert f"becomes {20 * share:.3g} of 20 minutes" in said[0]
        assert "race.window.minutes" in said[0]
        minutes = file.read_text().replace("epochs:", "minutes:")
        assert parse_config(yaml.safe_load(minutes)).budget.minutes == before.budget.epochs

    def test_the_window_of_a_written_configuration_is_converted(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text(dump_config(load_config(QUICKSTART)))
        assert load_config(file, ["budget.minutes=13"]).race.window == Amount(minutes=1)

    def test_a_window_that_is_set_is_not_converted(self, tmp_path: Path) -> None:
        said = list[str]()
        both = ["budget.minutes=5", "race.window.minutes=1"]
        assert load_config(QUICKSTART, both, say=said.append).race.window == Amount(minutes=1)
        assert load_config(QUICKSTART, ["budget.samples=5000"], say=said.append).race.window == Amount(epochs=2)
        assert not said
        file = changed(tmp_path, race={"window": {"samples": 100}})
        assert load_config(file, ["budget.minutes=5"], say=said.append).race.window is None
        assert said == ["race.window = 100 samples is not used with a budget in minutes: the default is used"]
        file = changed(tmp_path, budget={"minutes": 10}, race={"window": {"minutes": 2.5}})
        assert load_config(file, ["budget.samples=1001"], say=said.append).race.window == Amount(samples=250)

    def test_the_hint_at_the_head_of_cifar10_works(self) -> None:
        hint = (CONFIGS / "cifar10.yaml").read_text().partition("\ndataset:")[0]
        settings = [word for word in hint.split() if "=" in word]
        assert len(settings) == 4
        assert load_config(CONFIGS / "cifar10.yaml", settings).budget == Amount(epochs=2)


class TestWrongSettings:
    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("candidates=[]", ["candidates = []", "at least one"]),
            ("candidates=[0, 64]", ["candidates.0 = 0", "0 is below 2"]),
            ("candidates=[1]", ["candidates.0 = 1", "1 is below 2"]),
            ("candidates=[-64]", ["-64 is below 2"]),
            ("candidates=[64, 32, 64]", ["candidates = [64, 32, 64]", "64 is listed twice", "remove one"]),
            ("candidates=64", ["candidates = 64: write a list: [64]; or use batch_size: 64"]),
            ("candidates=64,128", ["candidates = '64,128': write a list: [64, 128]"]),
            (
                "candidates=auto",
                ["candidates = 'auto': write a list of batch sizes, such as [64,", "from_clusters: {}"],
            ),
            ("candidates={batch_size: 64}", ["write a list of batch sizes", "{batch_size: 64, accumulation: 4}]"]),
            ("batch_size=auto", ["batch_size = 'auto': write one integer", "from_clusters: {}"]),
            ("batch_size=[64, 256]", ["batch_size = [64, 256]", "candidates: [64, 256]"]),
            ("candidates=[64, big]", ["candidates.1 = 'big'", "whole number"]),
            ("candidates=[64.5]", ["candidates.0 = 64.5", "whole number"]),
            ("candidates=[{batch_size: 64, accumulation: 0}]", ["candidates.0 = ", "accumulation 0 is below 1"]),
            ("candidates=[{batch_size: 64, accumulation: two}]", ["candidates.0.accumulation = 'two'", "integer"]),
            ("candidates=[{batch_size: 1, accumulation: 9}]", ["candidates.0 = ", "batch size 1 is below 2"]),
            ("candidates=[64, {batch_size: 64, accumulation: 1}]", ["64 is listed twice"]),
            (
                "candidates=[{batch_size: 64, accumulation: 2}, {batch_size: 64, accumulation: 2}]",
                ["64x2 is listed twice"],
            ),
            ("candidates=[{accumulation: 4}]", ["setting 'candidates.0.batch_size' is missing"]),
            (
                "candidates=[32, {batch_size: 64, acumulation: 4}]",
                ["unknown setting 'candidates.1.acumulation'", "did you mean 'candidates.1.accumulation'?"],
            ),
            ("explore=racing", ["explore = 'racing'", "'race'", "'rotate'", "'none'"]),
            (
                "race.rerace=sometimes",
                ["= 'sometimes'", "'never'", "'on_deviation'", "a mapping with the keys at"],
            ),
            ("race.rerace={at: []}", ["race.rerace.at = []", "at least 1 item"]),
            ("swap.patience=1", ["swap.patience = 1", "greater than or equal to 2"]),
            ("swap.threshold=-1", ["swap.threshold = -1", "greater than or equal to 0"]),
            ("seed=soon", ["seed = 'soon'", "integer"]),
            ("seed=-1", ["seed = -1", "greater than or equal to 0"]),
            ("budget.epochs=0", ["budget.epochs = 0", "greater than 0"]),
            ("budget.samples=0", ["budget.samples = 0", "greater than or equal to 1"]),
            ("budget.epochs=.nan", ["budget.epochs = nan"]),
            ("budget=7", ["budget = 7"]),
            ("race.window.epochs=many", ["race.window.epochs = 'many'", "number"]),
            ("race.evaluations=3", ["race.evaluations = 3", "greater than or equal to 4"]),
            ("race.prune_below=1", ["race.prune_below = 1", "less than 1"]),
            ("race.forecaster=oracle", ["race.forecaster = 'oracle'", "joint", "per_curve", "last_value"]),
            ("trial.workers=0", ["trial.workers = 0", "greater than or equal to 1"]),
            ("trial.use_gpu=maybe", ["trial.use_gpu = 'maybe'", "'auto'", "boolean"]),
            ("winner.workers=0", ["winner.workers = 0", "must be at least 1, or auto"]),
            ("race.max_concurrent=0", ["race.max_concurrent = 0", "must be at least 1, or auto"]),
            ("winner.workers=most", ["winner.workers = 'most'", "'auto'", "integer"]),
            ("dataset.name=imagenet", ["dataset.name = 'imagenet'", "mnist5k", "image_folder"]),
            ("dataset.limit=15", ["dataset.limit = 15", "greater than or equal to 16"]),
            ("dataset.test_fraction=1", ["dataset.test_fraction = 1", "less than 1"]),
            ("simclr.augment=letters", ["simclr.augment = 'letters'", "'natural'", "'digits'"]),
            ("simclr.optimizer.name=adagrad", ["simclr.optimizer.name = 'adagrad'", "lars"]),
            ("simclr.temperature=0", ["simclr.temperature = 0", "greater than 0"]),
            ("evaluation.images=15", ["evaluation.images = 15", "greater than or equal to 16"]),
            ("evaluation.every=5", ["evaluation.every = 5", "'auto'", "a mapping with the keys samples, epochs"]),
            ("evaluation.every.epochs=0", ["evaluation.every.epochs = 0", "greater than 0"]),
            ("evaluation.every={}", ["evaluation.every = {}", "give either samples, epochs or minutes"]),
            ("probe_images=5000", ["'probe_images' was renamed; use 'evaluation.images'"]),
            ("name=a/b", ["name = 'a/b'", "use letters"]),
            ("name=..", ["name = '..'", "use letters"]),
            ("tracking.experiment=''", ["tracking.experiment = ''"]),
        ],
    )
    def test_errors_show_value_and_rule(self, override: str, parts: list[str]) -> None:
        text = complaint(override)
        for part in [str(QUICKSTART), *parts]:
            assert part in text

    @pytest.mark.parametrize("override", ["budget.epochs=.inf", "race.window.epochs=.inf"])
    def test_infinite_budgets(self, override: str) -> None:
        assert override.partition("=")[0] in complaint(override)

    @pytest.mark.parametrize(
        ("settings", "parts"),
        [
            (["explore=none"], ["explore = 'none'", "not 64, 128", "remove the others or use race"]),
            (
                ["explore=rotate", "candidates=[64]"],
                ["explore = 'rotate'", "more candidates than 64", "add one or use none"],
            ),
            (["explore=rotate", "swap.enabled=true"], ["swap.enabled", "explore = 'rotate'", "remove one"]),
            (
                ["race.rerace=on_deviation", "swap.enabled=true"],
                ["swap.enabled cannot be used with race.rerace", "remove one"],
            ),
            (["race.window.minutes=5"], ["both be in minutes"]),
            (["budget.minutes=0"], ["budget.minutes = 0", "greater than 0"]),
            (["budget={minutes: 5}"], ["set the keys of budget one by one"]),
            (["budget.minutes=5", "explore=rotate"], ["rotate", "known in advance", "set budget.epochs"]),
            (["race.tolerance=-0.1"], ["race.tolerance = -0.1", "greater than or equal to 0"]),
            (["evaluation.every={minutes: 1}"], ["evaluation.every", "samples or epochs"]),
            (["race.rerace={at: [0.3]}", "candidates=[64]"], ["race.rerace", "two candidates", "remove it"]),
            (
                ["candidates=[64]", "swap.enabled=true"],
                ["swap.enabled", "more candidates than 64", "add one or disable it"],
            ),
        ],
    )
    def test_exploration_must_match_the_candidates(self, settings: list[str], parts: list[str]) -> None:
        text = complaint("candidates=[64, 128]", *settings)
        for part in parts:
            assert part in text

    def test_augmentation_in_detail(self, tmp_path: Path) -> None:
        file = changed(tmp_path, simclr={"augment": {"no_such_thing": 1}})
        assert "augment" in complaint(file=file)

    @pytest.mark.parametrize("missing", ["dataset", "budget"])
    def test_missing_section(self, tmp_path: Path, missing: str) -> None:
        settings = yaml.safe_load(QUICKSTART.read_text())
        del settings[missing]
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(settings))
        assert complaint(file=file) == f"{file}: setting '{missing}' is missing"

    def test_neither_or_both_of_candidates_and_batch_size(self, tmp_path: Path) -> None:
        assert "set either candidates" in complaint("candidates=null")
        assert "or batch_size" in complaint("batch_size=64")

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("clusters.metod=bic", ["unknown setting 'clusters.metod'", "did you mean 'clusters.method'?"]),
            ("clusters.method=kmeans", ["clusters.method = 'kmeans'", "silhouette"]),
            ("clusters={n_clusters: 5, method: hdbscan}", ["hdbscan estimates the number", "n_clusters = 5"]),
            ("clusters.n_clusters=0", ["clusters.n_clusters = 0", "greater than 0"]),
            ("sampling=balance", ["sampling = 'balance'", "'balanced'"]),
            (
                "candidates={from_clusters: {alfa: 3}}",
                ["'candidates.from_clusters.alfa'", "did you mean 'candidates.from_clusters.alpha'?"],
            ),
            ("candidates={from_clusters: {alpha: 0}}", ["candidates.from_clusters.alpha = 0"]),
            ("candidates={from_clusters: {min: 64, max: 32}}", ["min = 64 is greater than max = 32", "swap them"]),
        ],
    )
    def test_clusters(self, override: str, parts: list[str]) -> None:
        text = complaint(override)
        assert all(part in text for part in parts), text

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("accumulation=4", ["accumulation = 4", "a mapping with the keys until, alpha"]),
            ("accumulation={alpha: 2}", ["'accumulation.until' is missing"]),
            ("accumulation={until: information, alpha: 0}", ["alpha = 0 must be above 0"]),
            ("accumulation={until: information, alpha: 200}", ["alpha = 200 is never reached", "allow at least 190"]),
            (
                "accumulation={until: information, alpha: 2, scor: mmd}",
                ["accumulation.scor'", "mean 'accumulation.score'?"],
            ),
            ("accumulation={until: information, alpha: auto}", ["needs images_per_update"]),
            (
                "accumulation={until: information, alpha: auto, images_per_update: 128}",
                ["images_per_update = 128", "256 to 16384 images"],
            ),
            (
                "sample_weights={mode: static, strength: -1}",
                ["strength = -1", "greater than or equal to 0"],
            ),
            ("sample_weights={mode: static, strength: 2}", ["sample_weights.strength = 2", "less than or equal to 1"]),
            ("sample_weights={strength: 0.9}", ["'sample_weights.mode' is missing"]),
            ("sample_weights={mode: static, centres: strata}", ["centres = strata has no effect with mode static"]),
        ],
    )
    def test_methods(self, override: str, parts: list[str]) -> None:
        text = complaint(override)
        assert all(part in text for part in parts), text

    def test_fixed_and_adaptive_accumulation_are_exclusive(self, tmp_path: Path) -> None:
        file = changed(tmp_path, candidates=[64, {"batch_size": 64, "accumulation": 4}])
        text = complaint("accumulation={until: information, alpha: 2}", file=file)
        assert "64x4 accumulates 4 batches per update" in text

    def test_batch_sizes_from_clusters_that_accumulation_cannot_use(self) -> None:
        informed = "accumulation={until: information, alpha: auto, images_per_update: 64}"
        config = load_config(QUICKSTART, ["candidates={from_clusters: {alpha: 4}, multipliers: [1]}", informed])
        assert config.with_clusters(10).choices == [Candidate(40)]
        with pytest.raises(UserError, match="accumulation: with 40 clusters, images_per_update = 64"):
            config.with_clusters(40)

    @pytest.mark.parametrize("budget", [{}, {"samples": 5000, "epochs": 2}])
    def test_neither_or_both_of_samples_and_epochs(self, tmp_path: Path, budget: dict[str, int]) -> None:
        assert "either samples, epochs or minutes" in complaint(file=changed(tmp_path, budget=budget))

    def test_settings_are_frozen(self) -> None:
        config = load_config(QUICKSTART)
        with pytest.raises(ValueError, match="frozen"):
            config.seed = 3  # type: ignore[misc]


def test_candidates_are_batch_sizes_or_batch_sizes_with_accumulation() -> None:
    config = load_config(QUICKSTART, ["candidates=[64, {batch_size: 128}, {batch_size: 64, accumulation: 4}, 64x2]"])
    assert config.candidates == [Candidate(64), Candidate(128), Candidate(64, 4), Candidate(64, 2)]
    written = yaml.safe_load(dump_config(config))
    assert written["candidates"] == [64, 128, "64x4", "64x2"]
    assert parse_config(written) == config


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["explore=rotate"],
        ["explore=none", "candidates=[64]"],
        ["swap.enabled=true", "swap.patience=5"],
        ["race.rerace=on_deviation"],
        ["race.rerace={at: [0.6]}"],
    ],
)
def test_explore_modes(settings: list[str]) -> None:
    config = load_config(QUICKSTART, settings)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert config.swap.enabled is ("swap.enabled=true" in settings)


@pytest.mark.parametrize(
    ("amount", "samples"), [(Amount(samples=70), 70), (Amount(epochs=2), 200), (Amount(epochs=0.125), 13)]
)
def test_amounts(amount: Amount, samples: int) -> None:
    assert amount.of(100) == samples


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as caught:
        load_config(QUICKSTART, ["tracking.uri=http://me:s3cr3t@host.example:5000"])
    assert "s3cr3t" not in str(caught.value)


class TestFromClusters:
    def test_the_only_batch_size(self, tmp_path: Path) -> None:
        file = changed(tmp_path, candidates=None, batch_size={"from_clusters": {"alpha": 16}})
        config = load_config(file)
        assert config.sized_by_clusters
        assert config.with_clusters(10).choices == [Candidate(160)]
        assert config.with_clusters(1).choices == [Candidate(32)]  # the default's min
        assert config.with_clusters(1000).choices == [Candidate(4096)]

    def test_the_centre_of_the_candidates(self) -> None:
        config = load_config(
            QUICKSTART, ["candidates={from_clusters: {alpha: 12, multiple_of: 16}, multipliers: [0.5, 1, 2]}"]
        )
        assert config.uses_clusters
        assert [c.batch_size for c in config.with_clusters(10).choices] == [64, 128, 240]
        assert [c.batch_size for c in config.with_clusters(2).choices] == [32, 48]  # two are at the minimum
        assert config.alpha_m.alpha == 12
        assert parse_config(yaml.safe_load(dump_config(config))) == config

    def test_a_fixed_batch_size_is_one_candidate(self, tmp_path: Path) -> None:
        config = load_config(changed(tmp_path, candidates=None, batch_size=96))
        assert config.choices == [Candidate(96)]
        assert not config.uses_clusters
        assert config.with_clusters(5) is config
        assert load_config(QUICKSTART, ["sampling=stratified"]).uses_clusters

    def test_batch_size_one_is_refused(self, tmp_path: Path) -> None:
        assert "below 2" in complaint(file=changed(tmp_path, candidates=None, batch_size=1))


@pytest.mark.parametrize(
    ("overrides", "known"),
    [
        ([], set()),
        (["sampling=balanced"], {"epoch_order"}),
        (["accumulation={until: information, alpha: 2}"], {"strata"}),
        (["accumulation={until: information, alpha: 2, score: mmd}"], {"features"}),
        (["sample_weights={mode: static}"], {"centrality"}),
        (["sample_weights={mode: batch}"], set()),
        (["sample_weights={mode: batch, centres: strata}", "sampling=stratified"], {"strata", "epoch_order"}),
    ],
)
def test_fields_that_need_clusters(overrides: list[str], known: set[str]) -> None:
    config = load_config(QUICKSTART, overrides)
    assert set(config.known_of_images) == known
    assert config.uses_clusters is bool(known)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
