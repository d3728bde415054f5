"""Settings that have no effect together with others, such as `optim.item_lr` without `optim.name=rowwise`.

Such a setting is refused where a person wrote it (see `eimf.config.load`), and has its default everywhere else: so a
suite can set `optim.lr` for all its variants, popularity among them, and runs that compute the same share a key.
"""

from collections.abc import Callable, Iterator, Sequence
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


def _has_several_interests(config: Config) -> bool:
    """Whether the loss may see several vectors of a sample. Of backbones that are not ours, the number is unknown."""
    default = 1 if config.backbone.name in BACKBONES.known else 2
    return getattr(config.backbone, "n_interests", default) > 1 or bool(config.eimf.enabled and config.eimf.tasks)


def _predicts(config: Config, *kinds: str) -> bool:
    return config.eimf.prediction in kinds and config.eimf.prediction_weight > 0


def _aligns(config: Config) -> bool:
    return config.eimf.alignment != "none" and config.eimf.alignment_weight > 0


def _has_temperature(config: Config) -> bool:
    soft = config.eimf.matching == "soft" or config.eimf.alignment == "infonce"
    return (_aligns(config) and soft) or _predicts(config, "interest")


def _links(config: Config) -> bool:
    return _predicts(config, "next_interest") or "interests" in config.text.item_init.split("+")


def _uses_words(config: Config) -> bool:
    """Whether the interests of single users count: in a loss of labelled users, or in prototypes of their words."""
    return config.eimf.samples_labelled or "interests" in config.eimf.prototypes.split("+")


def _mixes(config: Config) -> bool:
    eimf = config.eimf
    return eimf.control != "mix" or eimf.assignment_weight > 0 or bool(eimf.tasks)


_CHOOSES = {"loss": "name"}
"""The option that names the component of a section, where a rule is about the whole section."""
_EXPLICIT = tuple(f"eimf.{item.name}" for item in fields(Config().eimf) if item.name != "enabled")

RULES = (
    Rule(("loss", "optim"), "a backbone that is trained", _trained),
    Rule(("trainer.max_epochs", "trainer.patience", "trainer.gradient_clip"), "a backbone that is trained", _trained),
    Rule(("data.sampling", "data.min_history", "data.batch_size"), "a backbone that is trained", _trained),
    Rule(("text.item_init", "text.spectrum", "backbone.init_std"), "a backbone that is trained", _trained),
    *(
        Rule((f"optim.{name}",), f"optim.name={' or '.join(names)}", _has_optimizer(names))
        for name, names in OPTIMIZERS.items()
    ),
    Rule(("split.seed", "split.context"), "split.kind=user", lambda config: config.split.kind == "user"),
    Rule(("split.validation", "split.test"), "split.kind=user or time", lambda config: config.split.kind != "loo"),
    Rule(("loss.readout_power", "loss.compete"), "several interests", _has_several_interests),
    Rule(("text.spectrum",), "another text.item_init than random", lambda config: config.text.item_init != "random"),
    Rule(_EXPLICIT, "eimf.enabled=true", lambda config: config.eimf.enabled),
    Rule(("eimf.share",), "a loss or a start that needs labels", lambda config: config.reads_labels),
    Rule(
        ("eimf.control",),
        "a loss or a start that needs labels, or prototypes",
        lambda config: config.reads_labels or config.eimf.prototypes != "none",
    ),
    Rule(("eimf.control",), "eimf.assignment_weight (where it is mix)", _mixes),
    Rule(
        ("eimf.prediction_weight",),
        "another eimf.prediction than none",
        lambda config: config.eimf.prediction != "none",
    ),
    Rule(("eimf.frozen_items",), "eimf.prediction=next_item", lambda config: _predicts(config, "next_item")),
    Rule(
        ("eimf.only_after",),
        "eimf.prediction=next_item, or eimf.tasks",
        lambda config: _predicts(config, "next_item") or bool(config.eimf.tasks),
    ),
    Rule(("eimf.clusters",), "eimf.prediction=interest", lambda config: _predicts(config, "interest")),
    Rule(
        ("eimf.alignment_weight",),
        "another eimf.alignment than none",
        lambda config: config.eimf.alignment != "none",
    ),
    Rule(
        ("eimf.matching",),
        "eimf.alignment, or eimf.prediction=interest",
        lambda config: _aligns(config) or _predicts(config, "interest"),
    ),
    Rule(
        ("eimf.temperature",),
        "eimf.alignment=infonce, eimf.matching=soft or eimf.prediction=interest",
        _has_temperature,
    ),
    Rule(
        ("eimf.prototype_weight", "eimf.n_prototypes"),
        "another eimf.prototypes than none",
        lambda config: config.eimf.prototypes != "none",
    ),
    Rule(("eimf.propagate",), "a loss of labelled users, or interests in eimf.prototypes", _uses_words),
    Rule(
        ("eimf.every",),
        "a loss of labelled users, or eimf.prediction=next_interest",
        lambda config: config.eimf.samples_labelled or _predicts(config, "next_interest"),
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
"""Of training and evaluation."""
LABELLING = (
    Rule(("typical.clusters",), "typical.method=cluster", lambda config: config.typical.method == "cluster"),
    Rule(("typical.run",), "typical.represent=behaviour or both", lambda config: config.typical.represent != "text"),
    Rule(("typical.seed",), "typical.method=cluster or random", lambda config: config.typical.method != "longest"),
    Rule(("typical.budget",), "typical.budget_share=0", lambda config: config.typical.budget_share == 0),
)
"""Of labelling."""


def needs_of(key: str) -> list[str]:
    """What a setting needs to have an effect, such as `optim.name=rowwise`."""
    section = key.partition(".")[0]
    rules = (*RULES, *LABELLING)
    return list(dict.fromkeys(rule.needs for rule in rules if key in rule.keys or section in rule.keys))


def idle_settings(config: Config, rules: Sequence[Rule] = RULES) -> Iterator[Idle]:
    """The settings that differ from their defaults and have no effect, each with the first rule that says so."""
    found = set()
    for rule in rules:
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


def without_idle(config: Config, rules: Sequence[Rule] = RULES) -> Config:
    """The configuration with the default of every setting that has no effect."""
    while idle := next(idle_settings(config, rules), None):  # each may decide about others
        section, _, name = idle.key.partition(".")
        options = getattr(config, section)
        whole = name == _CHOOSES.get(section)  # another component has other options
        changed = getattr(Config(), section) if whole else replace(options, **{name: idle.default})
        config = replace(config, **{section: changed})
    return config
