"""Everything that a configuration can name, as `package.module:Class`.

To add a backbone, a loss, a metric, a data source or an LLM backend, write one file in its package and add one line
here. A component of your own package needs no line here: declare an entry point in the group, or put its import path
into the setting. Nothing is imported until it is used.
"""

from eimf.core.registry import Registry

BACKBONES = Registry(
    "backbone.name",
    "eimf.backbones",
    {
        "comirec_sa": "eimf.backbones.comirec_sa:ComiRecSA",
        "comirec_dr": "eimf.backbones.comirec_dr:ComiRecDR",
        "mind": "eimf.backbones.mind:MIND",
        "remi": "eimf.backbones.remi:REMI",
        "youtube_dnn": "eimf.backbones.youtube_dnn:YouTubeDNN",
        "gru4rec": "eimf.backbones.gru4rec:GRU4Rec",
        "sasrec": "eimf.backbones.sasrec:SASRec",
        "popularity": "eimf.backbones.popularity:Popularity",
        "item_knn": "eimf.backbones.item_to_item:ItemKNN",
        "ease": "eimf.backbones.item_to_item:EASE",
    },
)

LOSSES = Registry(
    "loss.name",
    "eimf.losses",
    {
        "full_softmax": "eimf.losses.full_softmax:FullSoftmax",
        "sampled_softmax": "eimf.losses.sampled_softmax:SampledSoftmax",
        "in_batch": "eimf.losses.in_batch:InBatchSoftmax",
        "gbce": "eimf.losses.gbce:GBCE",
        "ihn": "eimf.losses.ihn:InterestHardNegatives",
    },
)

METRICS = Registry(
    "metric",
    "eimf.metrics",
    {
        "recall": "eimf.evaluation.metrics:recall",
        "hr": "eimf.evaluation.metrics:hit_rate",
        "ndcg": "eimf.evaluation.metrics:ndcg",
        "ndcg_comirec": "eimf.evaluation.metrics:ndcg_comirec",
        "mrr": "eimf.evaluation.metrics:mrr",
    },
)
"""Ranking metrics: functions of hits, of the numbers of targets, and of the cut-off."""

SOURCES = Registry(
    "dataset.source",
    "eimf.sources",
    {
        "demo": "eimf.data.sources.demo:SOURCE",
        "table": "eimf.data.sources.table:SOURCE",
        "amazon": "eimf.data.sources.amazon:SOURCE",
        "movielens": "eimf.data.sources.movielens:SOURCE",
    },
)

BACKENDS = Registry(
    "llm.backend",
    "eimf.llm_backends",
    {
        "openai": "eimf.labels.backends.openai:OpenAIBackend",
        "gguf": "eimf.labels.backends.gguf:GGUFBackend",
    },
)

TASKS = Registry(
    "eimf.tasks",
    "eimf.tasks",
    {},
)
