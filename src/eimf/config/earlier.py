"""Converts settings of version 0.1 to today's, so that its runs can still be loaded, compared and resumed."""

from collections.abc import Mapping
from typing import Any

from eimf.core.errors import ConfigError

FIXED: dict[str, Any] = {
    "loss.chunk_mb": 4,
    "trainer.min_epochs": 1,
    "trainer.validate_every": 1,
    "backbone.hidden_ratio": 4,
    "backbone.routing_seed": 0,
    "eimf.samples_per_step": 32,
    "eimf.propagate_least": 0.0,
    "eimf.decay_epochs": 0,
    "eval.hnsw_links": 32,
    "eval.hnsw_search": 128,
    "eval.ivf_lists": 0,
    "eval.ivf_probes": 16,
    "eval.pq_bytes": 16,
}
"""Settings that are constants now, with their values."""
RENAMED = {"eimf.served": "eimf.linked", "eimf.served_temperature": "eimf.link_temperature"}
OF_LOSS = {
    "full_softmax": (),
    "sampled_softmax": ("n_negatives", "sampler", "log_q"),
    "in_batch": ("log_q",),
    "gbce": ("n_negatives", "sampler", "gbce_t"),
    "ihn": ("n_negatives", "sampler", "log_q", "ihn_beta"),
}
LOSS_OPTIONS = ("n_negatives", "sampler", "log_q", "gbce_t", "ihn_beta")
OF_TABLE = (
    "user_column",
    "item_column",
    "timestamp_column",
    "title_column",
    "categories_column",
    "brand_column",
    "separator",
)


def convert(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a whole configuration of version 0.1 to today's settings; any other is returned unchanged.

    Raises:
        ConfigError: a setting that is a constant now has another value.
    """
    loss = values.get("loss")
    if not isinstance(loss, Mapping) or "chunk_mb" not in loss or "llm" not in values:
        return dict(values)
    new = {section: dict(value) if isinstance(value, Mapping) else value for section, value in values.items()}
    for key, value in FIXED.items():
        section, name = key.split(".")
        given = new[section].pop(name, value)
        if given != value:
            raise ConfigError(f"{key}: is {given}, but is always {value} since version 0.2; train again.")
    for old, renamed in RENAMED.items():
        (section, before), (_, after) = old.split("."), renamed.split(".")
        if before in new[section]:
            new[section][after] = new[section].pop(before)
    eimf, dataset, llm = new["eimf"], new["dataset"], new["llm"]
    shuffle, mix = eimf.pop("shuffle", False), eimf.pop("mix_items", False)
    eimf["control"] = {(True, True): "both", (True, False): "shuffle", (False, True): "mix"}.get((shuffle, mix), "none")
    for name in LOSS_OPTIONS:
        if name not in OF_LOSS[new["loss"]["name"]]:
            new["loss"].pop(name, None)
    demo = dataset.pop("demo", {})
    if dataset["source"] == "demo":
        dataset |= demo
    if dataset["source"] != "table":
        for name in OF_TABLE:
            dataset.pop(name, None)
    if dataset["source"] not in ("amazon", "movielens"):
        dataset.pop("format", None)
    new["llm"] = {name: llm[name] for name in ("model", "temperature", "max_tokens")}  # no run depends on the rest
    new["eval"]["filter_seen"] = str(new["eval"].get("filter_seen", False)).lower()
    return new
