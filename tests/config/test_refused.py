"""What a configuration may not hold: interpolations, and names that leave their folder."""

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
