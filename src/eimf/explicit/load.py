"""TODO"""

from eimf.config.schema import Config
from eimf.core.say import Say
from eimf.data.text import encode_items, encode_texts
from eimf.explicit.controls import mixed_groups, shuffled, take_share
from eimf.explicit.propagation import propagate
from eimf.explicit.supervision import Supervision, build_supervision, match_labels, names_of
from eimf.labels.source import label_source, read_labels
from eimf.labels.typical import user_vectors
from eimf.training.datamodule import InteractionData


def load_supervision(config: Config, data: InteractionData, say: Say) -> Supervision:
    """The explicit interests of training users, as tensors beside the training data.

    Raises:
        LabelError: no label fits the training users.
        ConfigError: the text encoder cannot be loaded.
    """
    labels = take_share(read_labels(label_source(config), say), config.eimf.share, config.seed)
    matched = match_labels(labels, data.prepared, data.split.train)
    names = names_of([label for _, _, label, _ in matched.rows]).to_list()
    vectors = encode_texts(names, config.text.encoder, config.data.root).vectors
    flat, spans = data.prepared.sequences.items, data.split.train
    made = build_supervision(matched, dict(zip(names, vectors, strict=True)), flat)
    left_out = "".join(f"; left out: {count} {why}" for why, count in matched.dropped.items())
    say(f"explicit interests: {int(made.present.sum()):,}, of {len(made):,} training users{left_out}")
    if config.eimf.propagate:
        titles = encode_items(data.prepared.items, config.text.encoder, config.data.root).vectors
        told = len(made)
        users = user_vectors(data.prepared.sequences, spans, titles)
        made = propagate(made, spans, flat, titles, users, config.eimf.propagate_least)
        say(f"  lent to {len(made) - told:,} similar users")
    if config.eimf.mix_items:
        made = mixed_groups(made, config.seed)
    return shuffled(made, config.seed) if config.eimf.shuffle else made
