"""Presets: named values that lie directly below the layer that names them."""

from pathlib import Path

import pytest
import yaml

from eimf.config.load import load, names_in, read_layers, read_yaml, to_dict
from eimf.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with presets of its own."""
    presets = tmp_path / "experiments" / "presets"
    presets.mkdir(parents=True)
    (presets / "fast.yaml").write_text("optim: {lr: 0.1}\ntrainer: {max_epochs: 3, patience: 2}\n")
    (presets / "slow.yaml").write_text("optim: {lr: 0.0001}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", names_in("presets"))
def test_a_preset_sets_what_its_file_says(name: str) -> None:
    assert names_in("presets")
    of_model = [f"backbone={model}"] if (model := name.partition("_published")[0]) != name else []
    found, default = (to_dict(load(None, [*of_model, *more])) for more in ([f"presets={name}"], []))
    for section, values in read_yaml(f"experiments/presets/{name}.yaml").items():
        for key, value in values.items():
            assert found[section].pop(key) == value
            default[section].pop(key)
    assert found == default


def test_a_layer_wins_over_its_presets_and_they_over_what_lies_below(folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_text("presets: [slow, fast]\ntrainer: {patience: 9}\n")
    config = load(path)
    assert (config.optim.lr, config.trainer.max_epochs, config.trainer.patience) == (0.1, 3, 9)  # the later preset wins
    path.write_text("presets: [fast, slow]\n")
    assert load(path).optim.lr == 0.0001
    # A preset of a higher layer wins over the values of a lower one.
    path.write_text("optim: {lr: 0.5}\ntrainer: {patience: 9}\n")
    config = load(path, ["presets=fast"])
    assert (config.optim.lr, config.trainer.patience) == (0.1, 2)
    assert load(path, ["presets=fast", "optim.lr=0.2"]).optim.lr == 0.2
    assert load(path, ["presets=[fast,slow]"]).optim.lr == 0.0001
    config = load(path, [], {"presets": ["fast"], "trainer": {"patience": 4}})
    assert (config.optim.lr, config.trainer.patience) == (0.1, 4)


def test_presets_are_layers_and_leave_no_trace_in_the_result(folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_text("presets: fast\nseed: 3\n")
    origins = [layer.origin for layer in read_layers(path)]
    assert origins[-2:] == ["experiments/presets/fast.yaml", str(path)]
    assert all("presets" not in layer.values for layer in read_layers(path))
    assert "presets" not in to_dict(load(path))


def test_a_dataset_or_a_backbone_may_name_presets(folder: Path) -> None:
    for kind, name in (("datasets", "mine"), ("backbones", "mind")):
        (folder / "experiments" / kind).mkdir()
        values = {"presets": ["fast"]} | ({"dataset": {"source": "demo", "name": "mine"}} if kind == "datasets" else {})
        (folder / "experiments" / kind / f"{name}.yaml").write_text(yaml.safe_dump(values))
    assert load(None, ["dataset=mine"]).optim.lr == 0.1
    assert load(None, ["backbone=mind"]).optim.lr == 0.1


@pytest.mark.parametrize(
    ("presets", "message"),
    [
        ("smal_shop", r"presets: no experiments/presets/smal_shop\.yaml \(did you mean 'small_shop'\?\); there are "),
        ("[small_shop,none]", r"presets: no experiments/presets/none\.yaml"),
        ("../toys/mind", r"presets: must be a plain name"),
        ("..", r"presets: must be a plain name"),
    ],
)
def test_what_is_no_preset(presets: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load(None, [f"presets={presets}"])
    assert "\n" not in str(error.value)
