"""Settings that have no effect: refused where a person wrote them, ignored elsewhere."""

from pathlib import Path

import pytest
import yaml

from eimf.config import effect
from eimf.config.effect import RULES, idle_settings, needs_of, without_idle
from eimf.config.load import STORED, Layer, from_dict, load, names_in, origins, read_layers, resolve, to_dict
from eimf.core.errors import ConfigError
from eimf.studies.suite import read_suite

IDLE = [
    (["optim.name=rowwise", "loss=ihn", "optim.weight_decay=0.1"], "optim.weight_decay: is 0.1", "optim.name=adam or"),
    (["optim.item_lr=0.1"], "optim.item_lr: is 0.1", "optim.name=rowwise; leave it at 0.05"),
    (["optim.name=adamw", "optim.item_lr=0.1"], "optim.item_lr: is 0.1", "optim.name=rowwise"),
    (["split.kind=loo", "split.context=0.5"], "split.context: is 0.5", "split.kind=user"),
    (["split.kind=time", "split.context=0.5"], "split.context: is 0.5", "split.kind=user"),
    (["split.kind=time", "split.seed=1"], "split.seed: is 1", "split.kind=user"),
    (["split.kind=loo", "split.validation=0.2"], "split.validation: is 0.2", "split.kind=user or time"),
    (["split.kind=loo", "split.test=0.2"], "split.test: is 0.2", "split.kind=user or time"),
    (["eval.search=9"], "eval.search: is 9", "another eval.index than flat"),
    (["eval.index=Flat", "eval.search=9"], "eval.search: is 9", "another eval.index than flat"),
    (["eimf.labels=labels.jsonl"], "eimf.labels: is 'labels.jsonl'", "eimf.enabled=true"),
    (["eimf.prototypes=text"], "eimf.prototypes: is 'text'", "eimf.enabled=true"),
    (["eimf.enabled=true", "eimf.n_prototypes=2"], "eimf.n_prototypes: is 2", "another eimf.prototypes than none"),
    (["eimf.enabled=true", "eimf.linked=9"], "eimf.linked: is 9", "eimf.prediction=next_interest, or"),
    (["eimf={enabled: true, alignment: none, matching: soft}"], "eimf.matching: is 'soft'", "eimf.alignment, or"),
    (["eimf={enabled: true, alignment: none, alignment_weight: 0.2}"], "eimf.alignment_weight", "eimf.alignment than"),
    (["eimf={enabled: true, prediction: none, clusters: 9}"], "eimf.clusters: is 9", "eimf.prediction=interest"),
    (["backbone=popularity", "optim.lr=0.1"], "optim.lr: is 0.1", "a backbone that is trained"),
    (["backbone=item_knn", "loss=gbce"], "loss.name: is 'gbce'", "a backbone that is trained"),
    (["backbone=ease", "trainer.max_epochs=9"], "trainer.max_epochs: is 9", "a backbone that is trained"),
    (["backbone.n_interests=1", "loss.compete=best"], "loss.compete: is 'best'", "several interests"),
    (["backbone=gru4rec", "eval.labels=labels.jsonl"], "eval.labels: is", "a backbone with routing weights"),
    (["logger.wandb=disabled", "logger.project=mine"], "logger.project: is 'mine'", "logger.wandb than disabled"),
    (["text.spectrum=0"], "text.spectrum: is 0.0", "another text.item_init than random"),
    (["backbone=item_knn", "text.item_init=text"], "text.item_init: is 'text'", "a backbone that is trained"),
    (["backbone=gru4rec", "loss.compete=best"], "loss.compete: is 'best'", "several interests"),
    (["eimf={enabled: true, alignment_weight: 0, matching: soft}"], "eimf.matching: is 'soft'", "eimf.alignment, or"),
    (["eimf={enabled: true, alignment: cosine, temperature: 0.5}"], "eimf.temperature: is 0.5", "infonce"),
    (["eimf={enabled: true, prediction: none, only_after: true}"], "eimf.only_after: is True", "next_item"),
    (["eimf={enabled: true, control: mix}"], "eimf.control: is 'mix'", "eimf.assignment_weight (where it is mix)"),
    (["presets=prototypes", "eimf.every=2"], "eimf.every: is 2", "a loss of labelled users"),
]
LABELLING = [
    (["typical.run=runs/x"], "typical.run: is 'runs/x'", "typical.represent=behaviour or both"),
    (["typical.method=random", "typical.clusters=9"], "typical.clusters: is 9", "typical.method=cluster"),
    (["typical.budget_share=0.1", "typical.budget=9"], "typical.budget: is 9", "typical.budget_share=0"),
]


@pytest.mark.parametrize(("given", "setting", "needs"), IDLE)
def test_a_setting_without_effect(given: list[str], setting: str, needs: str) -> None:
    for arguments in (given, given[::-1]):  # in any order
        with pytest.raises(ConfigError) as error:
            load(None, arguments)
        assert str(error.value).startswith(setting)
        assert needs in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "setting", "needs"), LABELLING)
def test_a_setting_without_effect_on_labelling(given: list[str], setting: str, needs: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(read_layers(None, given), trains=False)
    assert str(error.value).startswith(setting)
    assert needs in str(error.value)
    load(None, given)  # training uses none of them
    assert resolve(read_layers(None, ["eimf.labels=x"]), trains=False).eimf.labels == "x"


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
        ["presets=prototypes", "eimf.propagate=true"],
        ["eimf={enabled: true, assignment_weight: 0.1, control: mix}"],
        ["eimf={enabled: true, alignment: cosine, matching: soft, temperature: 0.5}"],
        ["presets=[prototypes,start_from_interests]"],
        ["backbone=popularity", "presets=slow_start"],
        ["eimf.labels=labels.jsonl", "eimf.enabled=true"],
        ["presets=prototypes", "eimf.labels=labels.jsonl"],
        ["eimf={enabled: true, prediction: none, alignment: none, prototypes: text, control: shuffle}"],
    ],
)
def test_the_same_setting_with_effect(given: list[str]) -> None:
    assert not list(idle_settings(load(None, given)))


def test_what_a_later_layer_turns_off_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("presets: prototypes\neimf: {labels: labels.jsonl}\nloss: gbce\n")
    assert load(path).eimf.labels == "labels.jsonl"
    assert load(path, ["eimf.enabled=false"]) == load(None, ["loss=gbce"])
    assert load(path, ["eimf.enabled=false", "backbone=popularity"]) == load(None, ["backbone=popularity"])
    layers = read_layers(path, ["eimf.enabled=false"])
    found = {key: (value, origin) for key, value, origin in origins(layers, resolve(layers))}
    assert found["eimf.labels"] == ("", f"default ({path} has no effect here)")


def test_lower_layers_need_not_be_whole_without_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("backbone: {relu: true}\noptim: {name: rowwise, item_lr: 0.1}\nloss: ihn\n")
    assert load(path, ["backbone=mind", "optim.name=adam"]).optim.item_lr == 0.05


def test_files_of_data_sets_are_for_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "datasets"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("dataset: {name: mine, source: demo}\neimf: {labels: mine.db}\nloss: gbce\n")
    assert load(None, ["dataset=mine"]).eimf.labels == ""
    assert load(None, ["dataset=mine", "eimf.enabled=true"]).eimf.labels == "mine.db"
    assert load(None, ["dataset=mine", "backbone=popularity"]).loss.name == "full_softmax"


def test_stored_values_are_ignored_and_arguments_are_not(tmp_path: Path) -> None:
    values = to_dict(load(None))
    values["optim"]["item_lr"] = 0.1
    values["eimf"]["labels"] = "labels.jsonl"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"optim\.item_lr: is 0\.1"):
        load(path)
    (tmp_path / STORED).touch()  # a run folder
    assert load(path) == from_dict(values) == load(None)
    with pytest.raises(ConfigError, match=r"eval\.search: is 9"):
        load(path, ["eval.search=9"])


SUITE = """
settings: {loss: gbce, optim: {lr: 0.01}, eimf: {share: 0.5}}
variants:
  popularity: {backbone: popularity}
  plain: {}
  words: {presets: prototypes}
"""


def test_settings_of_a_suite_need_an_effect_in_one_variant(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE)
    suite = read_suite(path, ["eimf.labels=labels.jsonl"])
    popularity, plain, words = (configs[0] for configs in suite.variants.values())
    assert (popularity.optim.lr, plain.optim.lr) == (0.001, 0.01)
    assert (popularity.loss.name, plain.loss.name) == ("full_softmax", "gbce")
    assert (plain.eimf.labels, words.eimf.labels, words.eimf.share) == ("", "labels.jsonl", 0.5)
    for given in (["optim.item_lr=0.2"], ["eval.search=9"]):
        with pytest.raises(ConfigError, match="no effect in any variant"):
            read_suite(path, given)
    assert read_suite(path, ["presets=slow_start"]).variants["plain"][0].trainer.max_epochs == 100
    assert read_suite(path, ["eimf.enabled=false"])  # takes the effect of the file's settings away
    path.write_text(SUITE.replace("item_lr", "lr").replace("{}", "{text: {spectrum: 0}}"))
    with pytest.raises(ConfigError, match=r"variants\.plain: text\.spectrum: is 0\.0, which has no effect here"):
        read_suite(path)


def test_every_rule_names_settings() -> None:
    settings = {f"{key}.{name}" for key, one in to_dict(load(None)).items() if isinstance(one, dict) for name in one}
    sections = {key.partition(".")[0] for key in settings}
    for rule in (*RULES, *effect.LABELLING):
        assert set(rule.keys) <= settings | sections
    assert needs_of("optim.item_lr") == ["a backbone that is trained", "optim.name=rowwise"]


def test_no_file_of_ours_holds_a_setting_without_effect() -> None:
    for path in sorted(Path("experiments").glob("*/*.yaml")):
        if path.parent.name not in ("suites", "sweeps", "presets", "datasets", "backbones", "labels"):
            load(path)
    for name in names_in("suites"):
        read_suite(name, ["dataset=demo"])


def test_resetting_reaches_what_depends_on_what_is_reset() -> None:
    layers = [Layer("values", {"eimf": {"prototypes": "text", "n_prototypes": 2}}, strict=False)]
    assert resolve(layers) == load(None) == without_idle(load(None))
