import re
import tomllib
from pathlib import Path

import pytest
import yaml

from eimf.config.load import Layer, from_dict, load, origins, read_layers, resolve, to_dict, to_yaml
from eimf.core.errors import ConfigError
from eimf.data.sources.movielens import MovieLensConfig
from eimf.losses.ihn import InterestHardNegativesConfig


def test_layers_later_ones_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: ml-100k\nbackbone: {name: remi, n_interests: 6}\nloss: {ihn_beta: 2}\n")
    config = load(path, ["loss.ihn_beta=3", "optim.lr=0.01"])
    assert isinstance(config.dataset, MovieLensConfig)
    assert config.dataset.format == "100k"
    assert config.data.max_len == 50  # from the data set's YAML
    assert isinstance(config.loss, InterestHardNegativesConfig)
    assert (config.loss.name, config.loss.ihn_beta) == ("ihn", 3.0)  # from the backbone's YAML; overridden
    assert to_dict(config)["backbone"]["n_interests"] == 6
    assert config.optim.lr == 0.01


def test_resolved_yaml_gives_the_same_configuration(tmp_path: Path) -> None:
    config = load(None, ["dataset=beauty", "backbone=mind", "backbone.n_interests=3", "split.kind=loo", "seed=7"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config
    assert from_dict(to_dict(config)) == config


def test_defaults_follow_the_protocol() -> None:
    user, loo = load(None, []), load(None, ["split.kind=loo"])
    assert (user.cutoffs, user.monitor) == ((20, 50), "val/recall@50")
    assert (loo.cutoffs, loo.monitor) == ((10, 20), "val/recall@20")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"optim\.lrr: no such key \(did you mean 'lr'\?\)"),
        ("optimm.lr=1", r"optimm: no such key \(did you mean 'optim'\?\)"),
        ("backbone.n_interests=0", r"backbone\.n_interests: must be at least 1, is 0"),
        ("backbone.n_interests=four", r"backbone\.n_interests: must be a whole number, is 'four'"),
        ("backbone.n_interest=4", r"backbone\.n_interest: no such key \(did you mean 'n_interests'\?\)"),
        (
            "backbone=comirec",
            r"backbone\.name: 'comirec' is unknown \(did you mean 'comirec_\w+'\?\); choose one of .*mind",
        ),
        ("dataset=beuty", r"dataset\.name: .*beuty.yaml \(did you mean 'beauty'\?\)"),
        ("loss.name=softmax", r"loss\.name: .*'softmax'.*full_softmax"),
        ("optim.lr=-1", r"optim\.lr: must be at least"),
        ("optim.lr=nan", r"optim\.lr: must be a number"),
        ("optim=3", r"optim: must be a group"),
        ("optim.lr", r"'optim\.lr': an override is key=value"),
        ("seed=x", r"seed: must be of type int, is 'x'"),
        ("seed=1.5", r"seed: must be of type int, is 1\.5"),
        ("data.sampling=sequence", r"data\.sampling: 'sequence' needs a causal backbone"),
        ("eval.monitor=recall@7", r"eval\.monitor: 'recall@7' is not computed"),
        ("eval.cutoffs=[0]", r"eval\.cutoffs: each must be at least 1"),
        ("optim.name=rowwise", r"optim\.name: 'rowwise' needs sparse gradients"),
        ("text.item_init=interests", r"text\.item_init: 'interests' needs labels; set eimf\.enabled=true"),
        (
            "eimf={enabled: true, frozen_items: true, prediction: interest}",
            r"eimf\.frozen_items: is True.*needs eimf\.prediction=next_item",
        ),
        ("split.test=0.5", None),
    ],
)
def test_bad_input_names_path_value_and_fix(override: str, message: str | None) -> None:
    if message is None:
        load(None, [override])
        return
    with pytest.raises(ConfigError, match=message) as error:
        load(None, [override])
    assert "\n" not in str(error.value)


def test_routing_weight_needs_routing() -> None:
    with pytest.raises(ConfigError, match="backbone 'sasrec' has no routing weights"):
        load(None, ["backbone=sasrec", "loss.routing_weight=1"])
    for weight in ("loss.routing_weight=1", "eimf.assignment_weight=0.3"):
        with pytest.raises(ConfigError, match=r"with backbone\.iterations=1 the routing is not learnt"):
            load(None, ["backbone=mind", "backbone.iterations=1", "eimf.enabled=true", weight])
    load(None, ["backbone=mind", "loss.routing_weight=1"])


def test_sharded_tables_have_no_sparse_gradients() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy: fsdp has no sparse gradients; use ddp"):
        load(None, ["trainer.strategy=fsdp", "optim.name=rowwise", "loss.name=sampled_softmax"])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\xff\xfe"])
def test_broken_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=re.escape(str(path))) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_missing_experiment() -> None:
    with pytest.raises(ConfigError, match=r"no such experiment file \(did you mean 'experiments/toys/mind.yaml'\?\)"):
        load("experiments/toys/mindd.yaml")


@pytest.mark.parametrize("path", sorted(Path("experiments").glob("[bdt]*/*.yaml")), ids=str)
def test_shipped_experiments_load(path: Path) -> None:
    if path.parts[1] in ("datasets", "backbones"):
        load(None, [f"{path.parts[1][:-1]}={path.stem}"])
    else:
        assert load(path).run_name == f"{path.parts[1]}-{path.stem}"


def test_conda_environment_agrees_with_pyproject() -> None:
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    conda = yaml.safe_load(Path("environment.yml").read_text())["dependencies"]
    assert sorted(conda[-1]["pip"]) == sorted(pyproject["dependencies"])
    assert conda[0] == f"python {pyproject['requires-python']}"


def test_lock_names_every_direct_dependency_within_its_bounds() -> None:
    from packaging.requirements import Requirement

    locked = dict(
        line.split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
    )
    locked = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = [
        text for extra in project["optional-dependencies"].values() for text in extra if not text.startswith("eimf")
    ]
    for text in project["dependencies"] + extras:
        need = Requirement(text)
        assert need.specifier.contains(locked[need.name.lower()]), text


def test_every_setting_names_the_layer_that_set_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("backbone: remi\npresets: slow_start\noptim: {lr: 0.1}\ntrainer: {patience: 7}\n")
    layers = read_layers(
        path, ["optim.lr=0.01", "loss={routing_weight: 1}"], [Layer("settings", {"eval": {"test": False}})]
    )
    config = resolve(layers)
    found = {key: (value, origin) for key, value, origin in origins(layers, config)}
    assert found["optim.lr"] == (0.01, "optim.lr=0.01")
    assert found["loss.routing_weight"] == (1.0, "loss={routing_weight: 1}")
    assert found["loss.ihn_beta"] == (10.0, "experiments/backbones/remi.yaml")
    assert found["trainer.max_epochs"] == (100, "experiments/presets/slow_start.yaml")
    assert found["trainer.patience"] == (7, str(path))
    assert found["backbone.name"] == ("remi", str(path))
    assert found["eval.test"] == (False, "settings")
    assert found["loss.n_negatives"] == (1280, "default")
    assert found["seed"] == (0, "default")
    # Every setting, once.
    plain = to_dict(config)
    settings = [f"{key}.{name}" for key, one in plain.items() if isinstance(one, dict) for name in one]
    assert list(found) == settings + [key for key, one in plain.items() if not isinstance(one, dict)]


def test_a_dropped_value_is_no_origin() -> None:
    layers = read_layers(None, ["loss=ihn", "loss.n_negatives=5", "loss=full_softmax", "loss=sampled_softmax"])
    found = {key: (value, origin) for key, value, origin in origins(layers, resolve(layers))}
    assert found["loss.n_negatives"] == (1280, "default")


@pytest.mark.parametrize("setting", ["llm.key_variable=sk-secret-1", "llm.base_url=https://me:secret@host/v1"])
def test_secrets_have_no_place_in_the_configuration(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"environment") as error:
        load(None, [setting])
    assert "secret" not in str(error.value)
