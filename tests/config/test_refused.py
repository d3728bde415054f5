"""What a configuration may not hold: interpolations, names that leave their folder, settings without effect."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from eimf.cli.main import main
from eimf.config.load import from_dict, load, load_for, read_yaml, to_dict
from eimf.core.errors import ConfigError
from eimf.studies.suite import read_suite

SECRET = "sk-very-secret-0123"
LURE = "${oc.env:MY_KEY}"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)


def refused(read: Callable[[], object]) -> None:
    """It is, with a reason, without repeating or resolving it, and in one line."""
    with pytest.raises(ConfigError) as error:
        read()
    text = str(error.value)
    assert "${...}" in text or "not valid YAML" in text
    assert not any(part in text for part in (SECRET, "oc.env", "MY_KEY", "\n"))


@pytest.mark.parametrize(
    "override",
    [
        f"experiment={LURE}",
        f"experiment=x-{LURE}",
        f"dataset={LURE}",
        f"backbone={LURE}",
        f"presets={LURE}",
        f"presets=[{LURE}]",
        f"eimf.labels='{LURE}'",
        f"eimf={{labels: '{LURE}'}}",
        f"eval.cutoffs=['{LURE}']",
        f"{LURE}=3",
        f"optim.{LURE}=3",
        f"--experiment={LURE}",
        LURE,
    ],
)
def test_interpolation_in_an_override(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(lambda: load(None, [override]))
    if not override.startswith("--"):
        assert main(["config", override]) == 2
        said = capsys.readouterr()
        assert not any(part in said.out + said.err for part in (SECRET, "oc.env", "MY_KEY"))


@pytest.mark.parametrize(
    "text",
    [
        f"experiment: {LURE}",
        f"experiment: a {LURE} b",
        f"dataset: '{LURE}'",
        f"dataset: {{name: x, source: table, urls: {{a: '{LURE}'}}}}",
        f"eval: {{cutoffs: ['{LURE}']}}",
        f"presets: ['{LURE}']",
        f"'{LURE}': 3",
        f"optim: {{'{LURE}': 3}}",
        f"x: &x '{LURE}'\nexperiment: *x",
        "experiment: ${oc.env:MY_KEY",
        "experiment: ${seed}",
    ],
)
def test_interpolation_in_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    refused(lambda: load(path))
    refused(lambda: read_yaml(path))


@pytest.mark.parametrize(
    "settings",
    [
        {"experiment": LURE},
        {"dataset": LURE},
        {"eval": {"cutoffs": [LURE]}},
        {"eimf": {LURE: 3}},
        {LURE: 3},
        {"presets": [LURE]},
    ],
)
def test_interpolation_in_settings_and_in_those_of_a_suite(tmp_path: Path, settings: dict[str, object]) -> None:
    refused(lambda: load(None, [], settings))
    path = tmp_path / "suite.yaml"
    for where in ({"settings": settings, "variants": {"a": {}}}, {"variants": {"a": {}, "b": settings}}):
        path.write_text(yaml.safe_dump(where))
        refused(lambda: read_suite(path))
    path.write_text(yaml.safe_dump({"variants": {"a": {}}}))
    refused(lambda: read_suite(path, [f"experiment={LURE}"]))


BAD_NAMES = ["a/b", "/etc", "..", ".", "../up", "a\\b", "-x", " x", "x ", "x\ny", "x\x00", "a" * 151, "ä" * 76]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.slow
def test_names_are_single_parts_of_a_path(name: str) -> None:
    table = {"source": "table", "interactions": "rows.csv"}
    for settings in ({"dataset": {"name": name, **table}}, {"dataset": {"name": name}}):
        with pytest.raises(ConfigError, match=r"dataset\.name: must be a plain name") as error:
            load(None, [], settings)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"experiment: must be a plain name") as error:
        load(None, [], {"experiment": name})
    assert "\n" not in str(error.value)
    # Nor where no file is looked for, as with a configuration out of a checkpoint.
    plain = to_dict(load(None))
    with pytest.raises(ConfigError, match=r"experiment: must be a plain name"):
        from_dict(plain | {"experiment": name})
    with pytest.raises(ConfigError, match=r"dataset\.name: must be a plain name"):
        from_dict(plain | {"dataset": plain["dataset"] | {"name": name}})
    with pytest.raises(ConfigError, match="must be a plain name"):
        load_for(name, "mind")


@pytest.mark.parametrize("name", ["a", "a b", "a.b", "ä" * 75, "beauty, 5-core (2014)", "..x", "100"])
def test_other_names_are_fine(name: str) -> None:
    settings = {"dataset": {"name": name, "source": "table", "interactions": "rows.csv"}, "experiment": name}
    config = load(None, [], settings)
    assert config.dataset.name == config.experiment == name


def test_a_data_set_has_a_name() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.name: is empty"):
        load(None, ["dataset.name=", "dataset.source=demo"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["optim.name=rowwise", "loss=ihn", "optim.weight_decay=0.1"],
            r"optim\.weight_decay: is 0\.1, but optim\.name=rowwise has no weight decay; leave it at 0\.0",
        ),
        (["optim.item_lr=0.1"], r"optim\.item_lr: is 0\.1, but optim\.name=adam has one learning rate, optim\.lr"),
        (["optim.name=adamw", "optim.item_lr=0.1"], r"optim\.item_lr: is 0\.1, but optim\.name=adamw"),
        (["split.kind=loo", "split.context=0.5"], r"split\.context: is 0\.5, but split\.kind=loo does not use it"),
        (["split.kind=time", "split.context=0.5"], r"split\.context: is 0\.5, but split\.kind=time does not use it"),
        (["split.kind=loo", "split.validation=0.2"], r"split\.validation: is 0\.2, but split\.kind=loo"),
        (["split.kind=loo", "split.test=0.2"], r"split\.test: is 0\.2, but split\.kind=loo"),
        (["eval.search=9"], r"eval\.search: is 9, but eval\.index=flat searches everything"),
        (["eval.index=Flat", "eval.search=9"], r"eval\.search: is 9, but"),
        (["typical.run=runs/x"], r"typical\.run: is runs/x, but typical\.represent=text uses no run"),
    ],
)
def test_a_setting_without_effect(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load(None, given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        ["optim.weight_decay=0.1"],
        ["optim.name=adamw", "optim.weight_decay=0.1"],
        ["optim.name=rowwise", "loss=ihn", "optim.item_lr=0.1"],
        ["split.context=0.5"],
        ["split.kind=time", "split.validation=0.2", "split.test=0.2"],
        ["split.kind=loo", "split.context=0.8", "split.test=0.1"],  # the defaults say nothing
        ["eval.index=ivf", "eval.search=9"],
        ["typical.represent=both", "typical.run=runs/x"],
    ],
)
def test_the_same_setting_with_effect(given: list[str]) -> None:
    load(None, given)
