"""TODO"""

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

from eimf.backbones import BACKBONES
from eimf.config.schema import RANKED_BY, Config, LLMConfig
from eimf.core.errors import ConfigError
from eimf.core.options import is_variable


def nearest(word: str, choices: list[str]) -> str:
    """A hint at the choice that looks most like a word, or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check_keys(values: Mapping[str, Any], known: Mapping[str, Any], path: str) -> None:
    for key in values:
        if key not in known:
            where = f"{path}.{key}" if path else key
            raise ConfigError(
                f"{where}: no such key{nearest(str(key), list(known))}; "
                f"{path or 'the configuration'} has {', '.join(known)}."
            )


def _check_ranges(node: Any, path: str) -> None:
    for item in fields(node):
        value, where = getattr(node, item.name), f"{path}.{item.name}" if path else item.name
        if is_dataclass(value):
            _check_ranges(value, where)
            continue
        low, high = item.metadata.get("low"), item.metadata.get("high")
        if isinstance(value, int | float) and (value != value):
            raise ConfigError(f"{where}: must be a number, is {value}.")
        if low is not None and value < low:
            raise ConfigError(f"{where}: must be at least {low}, is {value}.")
        if high is not None and value > high:
            raise ConfigError(f"{where}: must be at most {high}, is {value}.")


def _check_secrets(llm: LLMConfig) -> None:
    """Refuse keys and passwords where they would be kept with the configuration; the messages do not repeat them."""
    if not is_variable(llm.key_variable):
        raise ConfigError(
            "llm.key_variable: must name an environment variable, such as OPENAI_API_KEY, in capitals; what it is set "
            "to is not shown, as it may be a key. Keys come from the environment only."
        )
    if "@" in urlsplit(llm.base_url).netloc:
        raise ConfigError(
            "llm.base_url: must not hold a user or password; put the key into the environment (llm.key_variable)."
        )


def _check_across(config: Config) -> None:
    """Rules that concern several keys at once, or more than a range."""
    _check_secrets(config.llm)
    backbone = BACKBONES[config.backbone.name]
    if config.data.sampling == "sequence" and not backbone.causal:
        causal = ", ".join(name for name, cls in BACKBONES.items() if cls.causal)
        raise ConfigError(
            f"data.sampling: 'sequence' needs a causal backbone ({causal}), backbone.name is "
            f"{config.backbone.name!r}; use every_position or random_cut."
        )
    if config.loss.routing_weight > 0 and not backbone.routes:
        raise ConfigError(
            f"loss.routing_weight: is {config.loss.routing_weight}, but backbone {config.backbone.name!r} has no "
            "item-to-interest routing to regularise; set it to 0."
        )
    if getattr(config.backbone, "iterations", 2) < 2:
        for key, weight in {
            "loss.routing_weight": config.loss.routing_weight,
            "eimf.assignment_weight": config.eimf.assignment_weight if config.eimf.enabled else 0.0,
        }.items():
            if weight > 0:
                raise ConfigError(
                    f"{key}: is {weight}, but with backbone.iterations=1 the routing is not learnt; set it to 0, or "
                    "backbone.iterations to 2 or more."
                )
    if config.split.validation + config.split.test >= 1:
        raise ConfigError("split.validation + split.test: must leave a share for training (sum below 1).")
    if any(k < 1 for k in config.eval.cutoffs):
        raise ConfigError(f"eval.cutoffs: each must be at least 1, are {list(config.eval.cutoffs)}.")
    if config.monitor.removeprefix("val/") not in config.metric_keys:
        raise ConfigError(
            f"eval.monitor: {config.monitor.removeprefix('val/')!r} is not computed; it is one of "
            f"{', '.join(RANKED_BY)}, @, and one of eval.cutoffs ({', '.join(map(str, config.cutoffs))})."
        )
    if config.eval.index == "ivfpq" and config.backbone.embed_dim % config.eval.pq_bytes:
        raise ConfigError(
            f"eval.pq_bytes: must divide backbone.embed_dim ({config.backbone.embed_dim}), is {config.eval.pq_bytes}."
        )
    if config.optim.name == "rowwise" and config.loss.name in ("full_softmax",):
        raise ConfigError(
            "optim.name: 'rowwise' wants sparse gradients, but loss.name=full_softmax touches every item; "
            "use loss.name=sampled_softmax, in_batch, gbce or ihn, or optim.name=adam."
        )
    if config.eimf.enabled and config.eimf.assignment_weight > 0 and not backbone.routes:
        raise ConfigError(
            f"eimf.assignment_weight: is {config.eimf.assignment_weight}, but backbone {config.backbone.name!r} has no "
            "item-to-interest routing to assign; set it to 0."
        )
    if config.typical.represent != "text" and not config.typical.run:
        raise ConfigError(
            f"typical.run: is empty, but typical.represent={config.typical.represent} needs the folder of a trained "
            "run of the same data and split."
        )
    if config.trainer.strategy == "fsdp" and config.optim.name == "rowwise":
        raise ConfigError("trainer.strategy: fsdp has no sparse gradients; use ddp, or optim.name=adam.")
    if config.text.item_init == "interests" and not config.eimf.enabled:
        raise ConfigError("text.item_init: 'interests' needs labels; set eimf.enabled=true (its weights may be 0).")
    if config.eimf.frozen_items and config.eimf.prediction != "next_item":
        raise ConfigError(
            f"eimf.frozen_items: is about prediction=next_item, which is {config.eimf.prediction!r} here; set it to "
            "false."
        )
    if config.eimf.enabled and not BACKBONES[config.backbone.name].trainable:
        raise ConfigError(
            f"eimf.enabled: backbone {config.backbone.name!r} is not trained; there is nothing to improve."
        )
    if config.dataset.source == "table" and not config.dataset.interactions:
        raise ConfigError("dataset.interactions: source 'table' needs a file of interactions.")
