"""Checks of a configuration: names, secrets, and rules that concern several settings."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from eimf.config.components import BACKBONES, LOSSES, METRICS
from eimf.config.schema import Config
from eimf.core.errors import ConfigError
from eimf.core.options import OTHER_NAMES, is_variable, nearest

EVIDENCE = ("text", "interests", "cooccurrence")
"""What items can be compared by, for the start of the item table and for prototypes."""


def check(config: Config) -> None:
    """Check a whole configuration.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    _check_names(config)
    _check_secrets(config)
    _check_backbone(config)
    _check_evaluation(config)
    _check_rest(config)


def check_keys(
    values: Mapping[str, Any], known: Mapping[str, Any], path: str, settings: Callable[[], Sequence[str]] = tuple
) -> None:
    """Refuse keys that a section does not have.

    Args:
        settings: gives the paths of all settings, such as `optim.lr`, to suggest for a key of another section.
    """
    for key in values:
        if key not in known:
            where = f"{path}.{key}" if path else key
            raise ConfigError(
                f"{where}: no such key{_suggest(str(key), known, settings())}; "
                f"{path or 'the configuration'} has {', '.join(known)}."
            )


def _suggest(key: str, known: Mapping[str, Any], settings: Sequence[str]) -> str:
    """A hint at the setting that a wrong key may mean."""
    if key in OTHER_NAMES and OTHER_NAMES[key] in settings:
        return f" (did you mean {OTHER_NAMES[key]}?)"
    places = {setting.rpartition(".")[2]: setting for setting in reversed(settings)}  # the first place counts
    close = [key] if key in places else get_close_matches(key, list(places), n=1, cutoff=0.75)
    if close and not get_close_matches(key, list(known), n=1, cutoff=0.8):
        return f" (did you mean {places[close[0]]}?)"
    return nearest(key, list(known))


def check_component(name: str, subject: str) -> None:
    """Refuse a name that is not a single part of a path: it names a folder or a file.

    Raises:
        ConfigError: see above.
    """
    allowed = (
        name.isprintable() and not set(name) & set("/\\") and name not in (".", "..") and len(name.encode()) <= 150
    )
    if not allowed or name.startswith("-") or name != name.strip():
        raise ConfigError(
            f"{subject}: must be a plain name (no /, \\, line breaks, outer spaces or leading -; at most 150 bytes), "
            f"is {name[:60]!r}."
        )


def check_no_interpolation(value: Any, where: str) -> None:
    """Refuse `${...}` in values and keys: OmegaConf would resolve it, and it could read secrets.

    Raises:
        ConfigError: does not repeat the text.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_no_interpolation(str(key), where)
            check_no_interpolation(inner, f"{where}.{key}" if "${" not in str(key) else where)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_no_interpolation(inner, where)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(
            f"{where}: holds ${{...}}, which is not allowed, as it could read secrets; write the value itself."
        )


def _check_names(config: Config) -> None:
    if not config.dataset.name:
        raise ConfigError("dataset.name: is empty; give the data set a name.")
    check_component(config.dataset.name, "dataset.name")
    if config.experiment:
        check_component(config.experiment, "experiment")


def _check_secrets(config: Config) -> None:
    """Refuse keys and passwords where they would be kept with the configuration; the messages do not repeat them."""
    if not is_variable(getattr(config.llm, "key_variable", "NONE")):
        raise ConfigError(
            "llm.key_variable: must name an environment variable, such as OPENAI_API_KEY, in capitals; what it is set "
            "to is not shown, as it may be a key. Keys come from the environment only."
        )
    try:
        address = urlsplit(getattr(config.llm, "base_url", "")).netloc
    except ValueError:
        raise ConfigError("llm.base_url: must look like http://127.0.0.1:8000/v1.") from None
    if "@" in address:
        raise ConfigError(
            "llm.base_url: must not hold a user or password; put the key into the environment (llm.key_variable)."
        )


def _check_backbone(config: Config) -> None:
    backbone = BACKBONES[config.backbone.name]
    if config.data.sampling == "sequence" and not backbone.causal:
        causal = ", ".join(name for name, kind in BACKBONES.items() if kind.causal)
        raise ConfigError(
            f"data.sampling: 'sequence' needs a causal backbone ({causal}), backbone.name is "
            f"{config.backbone.name!r}; use every_position or random_cut."
        )
    weights = {
        "loss.routing_weight": config.loss.routing_weight,
        "eimf.assignment_weight": config.eimf.assignment_weight if config.eimf.enabled else 0.0,
        "eimf.prototype_weight": config.eimf.prototype_weight if _has_prototypes(config) else 0.0,
    }
    for key, weight in weights.items():
        if weight > 0 and not backbone.routes:
            raise ConfigError(
                f"{key}: is {weight}, but backbone {config.backbone.name!r} has no routing weights; set it to 0."
            )
        if weight > 0 and getattr(config.backbone, "iterations", 2) < 2:
            raise ConfigError(
                f"{key}: is {weight}, but with backbone.iterations=1 the routing is not learnt; set it to 0, or "
                "backbone.iterations to 2 or more."
            )
    if config.eimf.enabled and not backbone.trainable:
        raise ConfigError(
            f"eimf.enabled: backbone {config.backbone.name!r} is not trained; there is nothing to improve."
        )


def _check_evaluation(config: Config) -> None:
    if any(k < 1 for k in config.eval.cutoffs):
        raise ConfigError(f"eval.cutoffs: each must be at least 1, are {list(config.eval.cutoffs)}.")
    if config.monitor.removeprefix("val/") not in config.metric_keys:
        raise ConfigError(
            f"eval.monitor: {config.monitor.removeprefix('val/')!r} is not computed; it is one of "
            f"{', '.join(METRICS)}, @, and one of eval.cutoffs ({', '.join(map(str, config.cutoffs))})."
        )


def _check_rest(config: Config) -> None:
    if config.split.validation + config.split.test >= 1:
        raise ConfigError("split.validation + split.test: must leave a share for training (sum below 1).")
    if config.optim.name == "rowwise" and LOSSES[config.loss.name].dense:
        sampled = ", ".join(name for name, kind in LOSSES.items() if not kind.dense)
        raise ConfigError(
            f"optim.name: 'rowwise' needs sparse gradients, but loss.name={config.loss.name} touches every item; use "
            f"loss.name={sampled}, or optim.name=adam."
        )
    if config.typical.represent != "text" and not config.typical.run:
        raise ConfigError(
            f"typical.run: is empty, but typical.represent={config.typical.represent} needs the folder of a trained "
            "run of the same data and split."
        )
    if config.optim.name == "rowwise" and config.trainer.gradient_clip > 0:
        raise ConfigError(
            f"trainer.gradient_clip: is {config.trainer.gradient_clip}, but optim.name=rowwise has sparse gradients, "
            "which cannot be clipped; leave it at 0.0."
        )
    if config.trainer.strategy == "fsdp" and config.optim.name == "rowwise":
        raise ConfigError("trainer.strategy: fsdp has no sparse gradients; use ddp, or optim.name=adam.")
    for key, value, none in (
        ("text.item_init", config.text.item_init, "random"),
        ("eimf.prototypes", config.eimf.prototypes, "none"),
    ):
        sources = value.split("+")
        if value != none and (set(sources) - set(EVIDENCE) or len(set(sources)) < len(sources)):
            raise ConfigError(
                f"{key}: must be {none}, or of {', '.join(EVIDENCE)}, joined by + without repeats; is {value!r}."
            )
    if "interests" in config.text.item_init.split("+") and not config.eimf.enabled:
        raise ConfigError("text.item_init: 'interests' needs labels; set eimf.enabled=true (its weights may be 0).")
    if config.eimf.prototypes != "none":
        _check_prototypes(config)
    if config.dataset.source == "table" and not config.dataset.interactions:
        raise ConfigError("dataset.interactions: source 'table' needs a file of interactions.")


def _has_prototypes(config: Config) -> bool:
    return config.eimf.enabled and config.eimf.prototypes != "none"


def _check_prototypes(config: Config) -> None:
    if not config.eimf.enabled:
        raise ConfigError(f"eimf.prototypes: is {config.eimf.prototypes!r}, but eimf.enabled is false; set it to true.")
    count, interests = config.eimf.n_prototypes, getattr(config.backbone, "n_interests", 0)
    if count > interests > 0:
        raise ConfigError(
            f"eimf.n_prototypes: is {count}, but backbone.n_interests is {interests}; there is one interest for each."
        )
    if interests == 1:
        raise ConfigError("eimf.prototypes: needs several interests; raise backbone.n_interests.")
