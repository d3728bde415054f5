"""Settings that have no effect together with others, such as `optim.item_lr` without `optim.name=rowwise`.

Such a setting is refused where a person wrote it (see `eimf.config.load`), and has its default everywhere else: so a
suite can set `optim.lr` for all its variants, popularity among them, and runs that compute the same share a key.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

from eimf.config.components import BACKBONES
from eimf.config.schema import Config


class Rule(NamedTuple):
    """When settings have an effect."""

    keys: tuple[str, ...]
    """Paths of settings, or of a whole section, such as `loss`."""
    needs: str
    """What they need, for messages and for the reference of settings."""
    holds: Callable[[Config], bool]
    """Whether a configuration has it."""


class Idle(NamedTuple):
    """A setting that has no effect."""

    key: str
    value: Any
    default: Any
    needs: str


TRIAL = "EIMF_TRIAL"
"""Environment variable that is set in the runs of a local sweep: its settings are combined freely, so that some have no
effect in some runs, and are ignored there."""
OPTIMIZERS = {"weight_decay": ("adam", "adamw"), "item_lr": ("rowwise",)}
"""Options of an optimiser, and the optimisers that have them."""


def _trained(config: Config) -> bool:
    return BACKBONES[config.backbone.name].trainable


def _routes(config: Config) -> bool:
    return BACKBONES[config.backbone.name].routes


def _has_optimizer(names: tuple[str, ...]) -> Callable[[Config], bool]:
    return lambda config: config.optim.name in names


def _matches(config: Config) -> bool:
    """Whether behavioural interests are matched with explicit ones, or compared by a contrastive loss."""
    eimf = config.eimf
    return eimf.samples_labelled and (eimf.alignment != "none" or eimf.prediction == "interest")


def _links(config: Config) -> bool:
    return config.eimf.prediction == "next_interest" or "interests" in config.text.item_init.split("+")


_CHOOSES = {"loss": "name"}
"""The option that names the component of a section, where a rule is about the whole section."""
_EXPLICIT = tuple(f"eimf.{item.name}" for item in fields(Config().eimf) if item.name != "enabled")

RULES = (
    Rule(("loss", "optim"), "a backbone that is trained", _trained),
    Rule(("trainer.max_epochs", "trainer.patience", "trainer.gradient_clip"), "a backbone that is trained", _trained),
    Rule(("data.sampling", "data.min_history", "data.batch_size"), "a backbone that is trained", _trained),
    *(
        Rule((f"optim.{name}",), f"optim.name={' or '.join(names)}", _has_optimizer(names))
        for name, names in OPTIMIZERS.items()
    ),
    Rule(("split.seed", "split.context"), "split.kind=user", lambda config: config.split.kind == "user"),
    Rule(("split.validation", "split.test"), "split.kind=user or time", lambda config: config.split.kind != "loo"),
    Rule(
        ("loss.readout_power", "loss.compete"),
        "several interests",
        lambda config: getattr(config.backbone, "n_interests", 2) > 1,
    ),
    Rule(("text.spectrum",), "another text.item_init than random", lambda config: config.text.item_init != "random"),
    Rule(
        ("typical.clusters", "typical.represent", "typical.run"),
        "typical.method=cluster",
        lambda config: config.typical.method == "cluster",
    ),
    Rule(("typical.run",), "typical.represent=behaviour or both", lambda config: config.typical.represent != "text"),
    Rule(("typical.seed",), "typical.method=cluster or random", lambda config: config.typical.method != "longest"),
    Rule(("typical.budget",), "typical.budget_share=0", lambda config: config.typical.budget_share == 0),
    Rule(_EXPLICIT, "eimf.enabled=true", lambda config: config.eimf.enabled),
    Rule(("eimf.share",), "a loss or a start that needs labels", lambda config: config.reads_labels),
    Rule(
        ("eimf.control",),
        "a loss or a start that needs labels, or prototypes",
        lambda config: config.reads_labels or config.eimf.prototypes != "none",
    ),
    Rule(
        ("eimf.prediction_weight",),
        "another eimf.prediction than none",
        lambda config: config.eimf.prediction != "none",
    ),
    Rule(
        ("eimf.frozen_items",),
        "eimf.prediction=next_item",
        lambda config: config.eimf.prediction == "next_item",
    ),
    Rule(("eimf.clusters",), "eimf.prediction=interest", lambda config: config.eimf.prediction == "interest"),
    Rule(
        ("eimf.alignment_weight",), "another eimf.alignment than none", lambda config: config.eimf.alignment != "none"
    ),
    Rule(("eimf.matching", "eimf.temperature"), "eimf.alignment, or eimf.prediction=interest", _matches),
    Rule(
        ("eimf.prototype_weight", "eimf.n_prototypes"),
        "another eimf.prototypes than none",
        lambda config: config.eimf.prototypes != "none",
    ),
    Rule(
        ("eimf.propagate", "eimf.only_after"),
        "a loss of labelled users",
        lambda config: config.eimf.samples_labelled,
    ),
    Rule(
        ("eimf.linked", "eimf.link_temperature"),
        "eimf.prediction=next_interest, or interests in text.item_init",
        _links,
    ),
    Rule(("eval.labels",), "a backbone with routing weights", _routes),
    Rule(("eval.search",), "another eval.index than flat", lambda config: config.eval.index.lower() != "flat"),
    Rule(
        ("logger.project", "logger.checkpoint"),
        "another logger.wandb than disabled",
        lambda config: config.logger.wandb != "disabled",
    ),
)


def needs_of(key: str) -> list[str]:
    """What a setting needs to have an effect, such as `optim.name=rowwise`."""
    section = key.partition(".")[0]
    return list(dict.fromkeys(rule.needs for rule in RULES if key in rule.keys or section in rule.keys))


def idle_settings(config: Config) -> Iterator[Idle]:
    """The settings that differ from their defaults and have no effect, each with the first rule that says so."""
    found = set()
    for rule in RULES:
        if rule.holds(config):
            continue
        for key in rule.keys:
            section, _, name = key.partition(".")
            options, plain = getattr(config, section), getattr(Config(), section)
            for item in fields(options):
                value, path = getattr(options, item.name), f"{section}.{item.name}"
                default = getattr(plain, item.name) if hasattr(plain, item.name) else item.default
                if name in ("", item.name) and value != default and path not in found:
                    found.add(path)
                    yield Idle(path, value, default, rule.needs)


def without_idle(config: Config) -> Config:
    """The configuration with the default of every setting that has no effect."""
    while idle := next(idle_settings(config), None):  # each may decide about others
        section, _, name = idle.key.partition(".")
        options = getattr(config, section)
        whole = name == _CHOOSES.get(section)  # another component has other options
        changed = getattr(Config(), section) if whole else replace(options, **{name: idle.default})
        config = replace(config, **{section: changed})
    return config
