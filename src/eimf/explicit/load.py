"""From labels to supervision: finds the labels that fit the training users, and encodes their words."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eimf.config.schema import EIMFConfig, TextConfig
from eimf.data.prepared import Prepared
from eimf.data.splits import Spans
from eimf.data.text import encode_items, encode_texts, item_vectors
from eimf.explicit.controls import mixed_groups, shuffled, shuffled_links, take_share
from eimf.explicit.item_interests import ItemInterests, link_items
from eimf.explicit.propagation import propagate
from eimf.explicit.supervision import Supervision, build_supervision, match_labels, names_of
from eimf.labels.label import Label
from eimf.labels.typical import user_vectors

log = logging.getLogger(__name__)


def load_supervision(
    labels: Sequence[Label],
    prepared: Prepared,
    spans: Spans,
    config: EIMFConfig,
    *,
    encoder: str,
    root: str | Path,
    vectors: str = "",
    seed: int = 0,
) -> Supervision:
    """Turn the explicit interests of training users into tensors.

    Args:
        labels: oldest first.
        spans: training slices. Labels of other users, and labels made from other items, are left out.
        encoder: text encoder, see `eimf.data.text.encode_texts`.
        root: the data folder, where text vectors are stored.
        vectors: file of item vectors that users are compared by, see `text.vectors`; empty: those of the encoder.
        seed: seed of the share of labels and of the controls.

    Raises:
        LabelError: no label fits the training users.
        ConfigError: the text encoder cannot be loaded.
    """
    matched = match_labels(take_share(list(labels), config.share, seed), prepared, spans)
    names = names_of([label for _, _, label, _ in matched.rows]).to_list()
    words = encode_texts(names, encoder, root).vectors
    flat = prepared.sequences.items
    supervision = build_supervision(matched, dict(zip(names, words, strict=True)), flat)
    left_out = "".join(f"; left out: {count} {why}" for why, count in matched.dropped.items())
    log.info(
        f"explicit interests: {int(supervision.present.sum()):,}, of {len(supervision):,} training users{left_out}"
    )
    models = sorted({label.model for _, _, label, _ in matched.rows})
    if len(models) > 1:
        log.info(f"  labels of {len(models)} models are mixed: {', '.join(models)}")
    if config.propagate:
        titles = item_vectors(prepared.items, TextConfig(encoder, vectors), root).vectors
        labelled = len(supervision)
        supervision = propagate(supervision, spans, flat, titles, user_vectors(prepared.sequences, spans, titles))
        log.info(f"  shared with {len(supervision) - labelled:,} similar users")
    if config.control in ("mix", "both"):
        supervision = mixed_groups(supervision, seed)
    return shuffled(supervision, seed) if config.control in ("shuffle", "both") else supervision


def load_links(
    supervision: Supervision, prepared: Prepared, config: EIMFConfig, *, encoder: str, root: str | Path, seed: int = 0
) -> ItemInterests:
    """The explicit interests that each item is linked to. Arguments as in `load_supervision`."""
    titles = encode_items(prepared.items, encoder, root).vectors
    names = np.unique(supervision.vectors[supervision.present].numpy(), axis=0)
    links = link_items(titles, names, config.linked, config.link_temperature)
    return shuffled_links(links, seed) if config.control in ("shuffle", "both") else links
