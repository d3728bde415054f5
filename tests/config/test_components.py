"""Sections that are made for the component they name, and the registries that find it."""

import sys
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from eimf.backbones import Backbone
from eimf.backbones.gru4rec import GRU4RecConfig
from eimf.backbones.mind import MIND
from eimf.config.components import BACKBONES, BACKENDS, LOSSES, METRICS, SOURCES
from eimf.config.load import from_dict, load, to_dict
from eimf.config.schema import BackboneConfig, DatasetConfig, LLMConfig, LossConfig
from eimf.core.errors import ConfigError
from eimf.core.options import option
from eimf.core.registry import Registry
from eimf.data.sources.demo import DemoConfig
from eimf.data.sources.table import TableConfig


@dataclass(frozen=True)
class OwnConfig(BackboneConfig):
    """Options of a backbone from elsewhere."""

    name: str = "tests.config.test_components:Own"
    width: int = option(3, low=1)


class Own(Backbone):
    """A backbone from elsewhere."""

    Config = OwnConfig
    config: OwnConfig


class Bare:
    """Has no options."""


OWN = f"{__name__}:Own"


def provide(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Let installed packages declare entry points."""
    monkeypatch.setattr(
        "eimf.core.registry._declared",
        lambda group: {point.name: point.value for point in points if point.group == group},
    )


@pytest.mark.parametrize(
    ("registry", "section", "key", "base"),
    [
        (SOURCES, "dataset", "source", DatasetConfig),
        (BACKBONES, "backbone", "name", BackboneConfig),
        (LOSSES, "loss", "name", LossConfig),
        (BACKENDS, "llm", "backend", LLMConfig),
    ],
)
def test_a_section_has_the_options_of_its_component(registry: Registry, section: str, key: str, base: type) -> None:
    for name in registry:
        given = [f"{section}.{key}={name}"] + (["dataset.interactions=rows.csv"] if name == "table" else [])
        made = getattr(load(None, given), section)
        assert type(made) is registry[name].Config
        assert issubclass(registry[name].Config, base)
        assert getattr(made, key) == name
        if registry is not BACKBONES:  # by itself, too, the component has its own name
            assert next(one.default for one in fields(registry[name].Config) if one.name == key) == name


def test_metrics_can_be_called() -> None:
    assert set(METRICS) == {"recall", "hr", "ndcg", "ndcg_comirec", "mrr"}
    assert all(callable(METRICS[name]) for name in METRICS)


def test_another_component_drops_what_it_lacks(tmp_path: Path) -> None:
    # REMI's file sets the loss and its beta; another loss keeps the common options only.
    config = load(None, ["backbone=remi", "loss.name=gbce"])
    assert (config.loss.name, config.loss.routing_weight) == ("gbce", 3.1)
    assert "ihn_beta" not in to_dict(config)["loss"]
    path = tmp_path / "mine.yaml"
    path.write_text("backbone: {name: mind, n_interests: 6, iterations: 2, dropout: 0.3}\n")
    assert to_dict(load(path, ["backbone=comirec_dr"]))["backbone"] == {
        **to_dict(load(None, ["backbone=comirec_dr"]))["backbone"],
        **{"n_interests": 6, "iterations": 2, "dropout": 0.3},
    }
    changed = load(path, ["backbone=gru4rec"]).backbone
    assert isinstance(changed, GRU4RecConfig)
    assert changed.dropout == 0.3
    path.write_text("llm: {backend: openai, base_url: 'http://127.0.0.1:8000/v1', model: m, attempts: 2}\n")
    assert to_dict(load(path, ["llm.backend=gguf", "llm.gguf=m.gguf"]))["llm"] == {
        **to_dict(load(None, ["llm.backend=gguf"]))["llm"],
        **{"gguf": "m.gguf", "model": "m", "attempts": 2},
    }


def test_another_source_drops_what_it_lacks() -> None:
    table = load(None, ["dataset=ml-100k", "dataset.source=table", "dataset.interactions=rows.csv"])
    assert type(table.dataset) is TableConfig
    assert table.dataset.name == "ml-100k"
    demo = load(None, ["dataset.n_users=300", "dataset.mean_length=9"])
    assert type(demo.dataset) is DemoConfig
    assert (demo.dataset.n_users, demo.dataset.mean_length) == (300, 9.0)


def test_the_same_component_again_drops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("loss: {name: ihn, ihn_beta: 2}\n")
    assert to_dict(load(path, ["loss.name=ihn"]))["loss"]["ihn_beta"] == 2.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["loss.ihn_beta=3"], r"loss\.ihn_beta: no such key"),
        (["loss=sampled_softmax", "loss.ihn_beta=3"], r"loss\.ihn_beta: no such key.*; loss has .*n_negatives"),
        (["loss={name: sampled_softmax, ihn_beta: 3}"], r"loss\.ihn_beta: no such key"),
        (["backbone=popularity", "backbone.dropout=0.1"], r"backbone\.dropout: no such key"),
        (["backbone={name: sasrec, n_interests: 4}"], r"backbone\.n_interests: no such key"),
        (["dataset.separator=;"], r"dataset\.separator: no such key"),
        (["dataset.format=2014"], r"dataset\.format: no such key"),
        (["dataset.demo.n_users=300"], r"dataset\.demo: no such key"),
        (["dataset=beauty", "dataset.n_users=300"], r"dataset\.n_users: no such key"),
        (["llm.gguf=m.gguf"], r"llm\.gguf: no such key"),
        (["llm.backend=gguf", "llm.base_url=http://127.0.0.1/v1"], r"llm\.base_url: no such key"),
    ],
)
def test_an_option_of_another_component_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load(None, given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("backbone=midn", r"backbone\.name: 'midn' is unknown \(did you mean 'mind'\?\); choose one of comirec_sa, "),
        ("loss=ihm", r"loss\.name: 'ihm' is unknown \(did you mean 'ihn'\?\); choose one of full_softmax, "),
        (
            "dataset.source=amazn",
            r"dataset\.source: 'amazn' is unknown \(did you mean 'amazon'\?\); choose one of demo, ",
        ),
        (
            "llm.backend=openia",
            r"llm\.backend: 'openia' is unknown \(did you mean 'openai'\?\); choose one of openai, ",
        ),
        ("backbone=zzz", r"backbone\.name: 'zzz' is unknown; choose one of .* or give package\.module:Class"),
    ],
)
def test_an_unknown_name_is_told_from_those_that_are_known(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load(None, [given])
    assert "\n" not in str(error.value)


def test_a_component_of_another_package_by_its_import_path(tmp_path: Path) -> None:
    config = load(None, [f"backbone.name={OWN}", "backbone.width=5"])
    assert config.backbone == OwnConfig(name=OWN, width=5)
    assert config.run_name == "demo-Own"
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"backbone\.width: must be at least 1, is 0"):
        load(None, [f"backbone={OWN}", "backbone.width=0"])
    # What lies below has options that it lacks.
    path = tmp_path / "mine.yaml"
    path.write_text("backbone: {name: mind, n_interests: 6, embed_dim: 32}\n")
    assert load(path, [f"backbone={OWN}"]).backbone == OwnConfig(name=OWN, embed_dim=32)


def test_a_component_without_options_of_its_own_kind_is_refused() -> None:
    for name in (f"{__name__}:Bare", "eimf.losses.ihn:InterestHardNegatives"):
        with pytest.raises(ConfigError, match="needs a class attribute Config, a subclass of BackboneConfig"):
            load(None, [f"backbone={name}"])


def test_entry_points_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, EntryPoint("own", OWN, "eimf.backbones"), EntryPoint("lost", "no.such:Thing", "eimf.losses"))
    assert BACKBONES["own"] is Own
    assert load(None, ["backbone=own", "backbone.width=2"]).backbone == OwnConfig(name="own", width=2)
    assert "own" in BACKBONES
    assert "own" not in LOSSES
    assert list(BACKBONES)[-1] == "own"
    with pytest.raises(ConfigError, match=r"'own1' is unknown \(did you mean 'own'\?\)"):
        load(None, ["backbone=own1"])
    with pytest.raises(ConfigError, match=r"loss\.name: 'lost' cannot be imported \(No module named 'no'\)"):
        load(None, ["loss=lost"])


def test_our_own_names_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, EntryPoint("mind", OWN, "eimf.backbones"))
    assert BACKBONES["mind"] is MIND
    assert len(BACKBONES) == len(list(BACKBONES)) == len(BACKBONES.known)


def test_a_registry_maps_names_to_what_they_import(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, EntryPoint("more", "collections:OrderedDict", "some.group"))
    made = Registry(
        "a.key", "some.group", {"path": "pathlib:Path", "nested": "pathlib:Path.home", "none": "pathlib:Pat"}
    )
    assert made["path"] is Path
    assert made["nested"] == Path.home
    assert made["more"].__name__ == "OrderedDict"
    assert made["pathlib:PurePath"].__name__ == "PurePath"
    assert dict(made.paths()) == {**made.known, "more": "collections:OrderedDict"}
    assert (list(made), len(made)) == (["path", "nested", "none", "more"], 4)
    for name in ("none", "pathlib:Nothing", "no_such_package:X", ":X", "pathlib:"):
        with pytest.raises(ConfigError, match=r"a\.key: .* cannot be imported") as error:
            made[name]
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"a\.key: 'pth' is unknown \(did you mean 'path'\?\); choose one of path, "):
        made["pth"]


def test_nothing_is_imported_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch)
    made = Registry("a.key", "some.group", {"unused": "this:s"})
    assert "unused" in made
    assert list(made) == ["unused"]
    assert "this" not in sys.modules
