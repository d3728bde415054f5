"""Settings that version 0.1 wrote are read as today's."""

import copy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from eimf.config.components import LOSSES
from eimf.config.earlier import FIXED, convert
from eimf.config.load import from_dict, load, to_dict
from eimf.core.errors import ConfigError

# What version 0.1 wrote for `eimf train` without arguments.
OLD: dict[str, Any] = {
    "dataset": {
        "name": "demo",
        "source": "demo",
        "format": "",
        "interactions": "",
        "items": "",
        "urls": {},
        "sha256": {},
        "user_column": "user_id",
        "item_column": "item_id",
        "timestamp_column": "timestamp",
        "title_column": "title",
        "categories_column": "categories",
        "brand_column": "brand",
        "separator": ",",
        "user_min": 5,
        "item_min": 5,
        "core": "iterative",
        "duplicates": "drop",
        "demo": {"n_users": 3200, "n_items": 1600, "mean_length": 14.0, "seed": 0},
    },
    "split": {"kind": "user", "seed": 0, "validation": 0.1, "test": 0.1, "context": 0.8},
    "data": {
        "root": "data",
        "max_len": 20,
        "batch_size": 512,
        "eval_batch_size": 1024,
        "sampling": "every_position",
        "min_history": 1,
    },
    "backbone": {
        "name": "comirec_sa",
        "embed_dim": 64,
        "normalize": False,
        "init_std": 0.05,
        "n_interests": 4,
        "hidden_ratio": 4,
        "dropout": 0.0,
    },
    "loss": {
        "name": "full_softmax",
        "readout_power": float("inf"),
        "temperature": 1.0,
        "n_negatives": 1280,
        "sampler": "uniform",
        "log_q": True,
        "gbce_t": 0.75,
        "ihn_beta": 10.0,
        "routing_weight": 0.0,
        "chunk_mb": 4,
    },
    "text": {"encoder": "sentence-transformers/all-MiniLM-L6-v2", "item_init": "random"},
    "typical": {
        "budget": 640,
        "budget_share": 0.0,
        "clusters": 640,
        "min_history": 5,
        "max_items": 20,
        "represent": "text",
        "run": "",
        "method": "cluster",
        "seed": 0,
    },
    "llm": {
        "model": "",
        "gguf": "",
        "base_url": "https://api.openai.com/v1",
        "key_variable": "OPENAI_API_KEY",
        "temperature": 0.0,
        "max_tokens": 512,
        "timeout": 60.0,
        "attempts": 6,
        "concurrency": 8,
        "per_minute": 0.0,
        "price_in": 0.0,
        "price_out": 0.0,
        "seconds_each": 3.0,
    },
    "eimf": {
        "enabled": False,
        "labels": "",
        "prediction": "next_item",
        "prediction_weight": 0.1,
        "only_after": False,
        "frozen_items": False,
        "alignment": "infonce",
        "alignment_weight": 0.1,
        "assignment_weight": 0.0,
        "propagate": False,
        "propagate_least": 0.0,
        "matching": "optimal",
        "temperature": 0.1,
        "samples_per_step": 32,
        "every": 4,
        "warmup_epochs": 0,
        "epochs": 0,
        "decay_epochs": 0,
        "clusters": 64,
        "served": 8,
        "served_temperature": 0.05,
        "shuffle": False,
        "mix_items": False,
        "share": 1.0,
    },
    "optim": {
        "name": "adam",
        "lr": 0.001,
        "schedule": "constant",
        "item_lr": 0.05,
        "dense_limit": 500000,
        "weight_decay": 0.0,
    },
    "trainer": {
        "max_epochs": 30,
        "min_epochs": 1,
        "patience": 5,
        "validate_every": 1,
        "accelerator": "auto",
        "devices": "auto",
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "32-true",
        "gradient_clip": 0.0,
        "progress": True,
    },
    "eval": {
        "cutoffs": [],
        "monitor": "",
        "filter_seen": False,
        "index": "flat",
        "hnsw_links": 32,
        "hnsw_search": 128,
        "ivf_lists": 0,
        "ivf_probes": 16,
        "pq_bytes": 16,
        "diversity_lambdas": [0.0, 0.05, 0.1, 0.25],
        "test": True,
        "rankings": True,
    },
    "logger": {"wandb": "auto", "checkpoint": False, "project": "eimf", "root": "lightning_logs"},
    "seed": 0,
    "experiment": "",
}
BACKBONE_OPTIONS = {
    "comirec_sa": {"n_interests": 4, "hidden_ratio": 4, "dropout": 0.0},
    "comirec_dr": {"n_interests": 4, "iterations": 3, "per_position": True, "dropout": 0.0},
    "mind": {
        "n_interests": 4,
        "iterations": 3,
        "logit_std": 1.0,
        "routing_seed": 0,
        "relu": True,
        "dropout": 0.0,
    },
    "remi": {"n_interests": 4, "hidden_ratio": 4, "dropout": 0.0},
    "youtube_dnn": {"layers": 1, "dropout": 0.0},
    "gru4rec": {"hidden_size": 64, "layers": 1, "dropout": 0.2},
    "sasrec": {"layers": 2, "heads": 1, "dropout": 0.5},
    "popularity": {"embed_dim": 1},
}
"""Options that each backbone had beside the common ones."""


def old(**changes: Any) -> dict[str, Any]:
    """An old configuration with other settings, as `section__key=value`."""
    values = copy.deepcopy(OLD)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    return values


# Version 0.1 left nothing out of the lists by default.
UNFILTERED = "eval.filter_seen=false"


def test_the_old_defaults_are_todays() -> None:
    before = copy.deepcopy(OLD)
    assert from_dict(OLD) == load(None, [UNFILTERED])
    assert before == OLD  # what was given is left as it was


def test_todays_settings_are_left_alone() -> None:
    for given in ([], ["backbone=remi"], ["dataset=beauty"], ["eimf.enabled=true", "eimf.control=both"]):
        values = to_dict(load(None, given))
        assert convert(values) == values
    assert convert({"loss": "ihn"}) == {"loss": "ihn"}
    assert convert({}) == {}


@pytest.mark.parametrize("name", BACKBONE_OPTIONS)
def test_every_backbone(name: str) -> None:
    common = {"name": name, "embed_dim": 64, "normalize": False, "init_std": 0.05}
    found = from_dict(old(backbone=common | BACKBONE_OPTIONS[name]))
    published = ["presets=mind_published"] if name == "mind" else []  # the default of then
    assert found.backbone == load(None, [f"backbone={name}", *published]).backbone


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("full_softmax", {}),
        ("sampled_softmax", {"n_negatives": 7, "sampler": "frequency", "log_q": False}),
        ("in_batch", {"log_q": False}),
        ("gbce", {"n_negatives": 7, "sampler": "frequency", "gbce_t": 0.5}),
        ("ihn", {"n_negatives": 7, "sampler": "frequency", "log_q": False, "ihn_beta": 2.0}),
    ],
)
def test_a_loss_keeps_its_own_options(loss: str, options: dict[str, Any]) -> None:
    every = {"n_negatives": 7, "sampler": "frequency", "log_q": False, "gbce_t": 0.5, "ihn_beta": 2.0}
    found = from_dict(old(loss=OLD["loss"] | every | {"name": loss, "temperature": 0.5})).loss
    assert found == LOSSES[loss].Config(name=loss, temperature=0.5, **options)


def test_a_source_keeps_its_own_options() -> None:
    demo = from_dict(old(dataset__demo={"n_users": 300, "n_items": 120, "mean_length": 9.0, "seed": 4})).dataset
    given = ["dataset.n_users=300", "dataset.n_items=120", "dataset.mean_length=9", "dataset.seed=4"]
    assert demo == load(None, given).dataset
    own = {"name": "shop", "source": "table", "interactions": "rows.csv", "separator": ";", "user_column": "who"}
    table = from_dict(old(dataset=OLD["dataset"] | own)).dataset
    assert table == load(None, [f"dataset.{key}={value}" for key, value in own.items()]).dataset
    amazon = {"name": "shop", "source": "amazon", "interactions": "rows.json", "format": "2014"}
    found = from_dict(old(dataset=OLD["dataset"] | amazon)).dataset
    assert found == load(None, [f"dataset.{key}={value}" for key, value in amazon.items()]).dataset


@pytest.mark.parametrize(
    ("shuffle", "mix", "control"),
    [(False, False, "none"), (True, False, "shuffle"), (False, True, "mix"), (True, True, "both")],
)
def test_controls(shuffle: bool, mix: bool, control: str) -> None:
    found = from_dict(
        old(eimf=OLD["eimf"] | {"enabled": True, "assignment_weight": 0.1, "shuffle": shuffle, "mix_items": mix})
    )
    assert found.eimf.control == control


def test_what_has_another_name_now() -> None:
    found = from_dict(
        old(
            eimf=OLD["eimf"]
            | {"enabled": True, "prediction": "next_interest", "served": 100, "served_temperature": 0.1, "share": 0.5}
        )
    )
    assert (found.eimf.linked, found.eimf.link_temperature, found.eimf.share) == (100, 0.1, 0.5)


def test_whether_lists_leave_out_what_was_seen() -> None:
    assert [from_dict(old(eval__filter_seen=one)).eval.filter_seen for one in (True, False)] == ["true", "false"]


def test_the_llm_of_a_run_does_not_matter() -> None:
    found = from_dict(old(llm=OLD["llm"] | {"model": "m", "gguf": "m.gguf", "price_in": 0.0, "timeout": 5.0})).llm
    assert (found.backend, found.model) == ("openai", "m")


@pytest.mark.parametrize("key", [key for key in FIXED if not key.startswith("llm.")])
def test_a_constant_of_another_value_is_refused(key: str) -> None:
    section, name = key.split(".")
    values = old()
    if section == "backbone" and name != "hidden_ratio":
        values["backbone"] = {"name": "mind", "embed_dim": 64} | BACKBONE_OPTIONS["mind"]
    assert values[section][name] == FIXED[key]
    from_dict(values)
    values[section][name] = FIXED[key] + 1
    with pytest.raises(
        ConfigError, match=rf"{key}: is {values[section][name]}, but is always {FIXED[key]} since"
    ) as error:
        from_dict(values)
    assert "\n" not in str(error.value)


def test_a_file_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(old(experiment="mine", seed=3, optim__lr=0.01))))
    assert load(path) == load(None, [UNFILTERED, "experiment=mine", "seed=3", "optim.lr=0.01"])
    assert load(path, ["eval.index=hnsw", "eval.search=64", "eval.filter_seen=true"]).eval.search == 64


def test_arguments_win_over_a_file_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(OLD)))
    linked = ["eimf.enabled=true", "eimf.prediction=next_interest", "eimf.linked=100", "eimf.control=shuffle"]
    assert load(path, linked).eimf.linked == 100
    assert load(path, linked).eimf.control == "shuffle"
    assert to_dict(load(path, ["dataset.n_users=300"]))["dataset"]["n_users"] == 300
    assert load(path, ["loss=sampled_softmax"]).loss.name == "sampled_softmax"
    with pytest.raises(ConfigError, match=r"eimf\.linked: is 100, which has no effect here"):
        load(path, ["eimf.linked=100"])


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__item_lr": 0.1},
        {"split__kind": "loo", "split__context": 0.5},
        {"typical__run": "runs/x"},
        {"llm__price_in": 0.25, "llm__price_out": 2.0, "llm__seconds_each": 1.5},
    ],
)
def test_what_had_no_effect_then_is_no_obstacle_now(changes: dict[str, Any]) -> None:
    """Version 0.1 took such settings, and its runs can still be read."""
    from_dict(old(**changes))
