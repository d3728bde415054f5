"""The LightningModule: a backbone, a loss, an optimiser, and evaluation by retrieval.

It works with any `pytorch_lightning.Trainer`, and with any data module whose batches are those of `eimf.data.batch`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from eimf.backbones import Backbone, Interests
from eimf.backbones.base import CausalBackbone
from eimf.config.components import BACKBONES, LOSSES
from eimf.config.effect import OPTIMIZERS
from eimf.core.errors import ConfigError, TrainingError
from eimf.core.options import option, take_options
from eimf.core.registry import Registry
from eimf.data.batch import Batch, EvalBatch, LabelledSamples, Ragged
from eimf.evaluation.evaluator import Evaluation, Evaluator
from eimf.explicit.tasks import ExplicitTasks
from eimf.losses import FullSoftmax, Loss
from eimf.runs.folder import ORIGIN
from eimf.training.optimizers import build_optimizer

RANDOM = "eimf_random_state"
DIVERGED = 1e6
"""A loss this large has diverged: the softmax over a billion items starts at 21 nats."""
ITEM_LR = 0.05
"""Learning rate of the item table under `rowwise`, unless another one is given."""
Spec = Mapping[str, Any]
"""A backbone or loss in plain values, as in a checkpoint."""


@dataclass(frozen=True)
class ModelOptions:
    """The plain arguments of `MultiInterestModel`."""

    lr: float = option(0.001, low=0.0)
    optimizer: Literal["adam", "adamw", "rowwise"] = "adam"
    item_lr: float = option(ITEM_LR, low=0.0)
    weight_decay: float = option(0.0, low=0.0)
    schedule: Literal["constant", "cosine"] = "constant"
    filter_seen: bool | Literal["auto"] = "auto"
    index: str = "flat"
    search: int = option(0, low=0)
    seed: int = option(0, low=0)


class MultiInterestModel(pl.LightningModule):
    """Trains a backbone with a loss, and evaluates it by retrieval over the whole catalogue.

    It logs `train/<term>` and `train/loss` once per epoch, and the ranking metrics `val/<metric>@<k>` after each
    validation of `trainer.fit`. `trainer.validate` and `trainer.test` log all metrics, and put the values of every user
    into `evaluations`.

    Args:
        backbone: any of `eimf.backbones`, or one of your own.
        loss: any of `eimf.losses`; by default the softmax over all items.
        lr: learning rate.
        optimizer: `adam`, `adamw`, or `rowwise`: sparse gradients for the item table with one Adagrad state per row.
        item_lr: learning rate of the item table under `rowwise`.
        weight_decay: L2 (adam) or decoupled (adamw).
        schedule: `cosine` lowers the rate to 0 over the trainer's `max_epochs`.
        k: cut-offs of the metrics.
        filter_seen: leave the items of a user's context out of the lists. `auto` does so unless held-out targets repeat
            such items (`observe`). Unfiltered values are reported beside, as `raw/...`.
        index, search: of `trainer.validate` and `trainer.test`, see `eimf.evaluation.ItemIndex`.
        diversity_lambdas: weights of ComiRec's controllable aggregation to report.
        seed: dropout and negatives of every epoch are sampled from (seed, epoch, process), so that a resumed run
            equals an uninterrupted one.
        tasks: EIMF's auxiliary tasks. They are not restored by `load_from_checkpoint`, which is for serving.

    Attributes:
        evaluations: results of the last `trainer.validate` (`val`) and `trainer.test` (`test`).

    Raises:
        ConfigError: arguments do not fit each other.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        backbone: Backbone | Spec,
        loss: Loss | Spec | None = None,
        lr: float = 0.001,
        *,
        optimizer: Literal["adam", "adamw", "rowwise"] = "adam",
        item_lr: float = ITEM_LR,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        k: int | Sequence[int] = (10, 20, 50),
        filter_seen: bool | Literal["auto"] = "auto",
        index: str = "flat",
        search: int = 0,
        diversity_lambdas: Sequence[float] = (0.0, 0.05, 0.1, 0.25),
        seed: int = 0,
        tasks: ExplicitTasks | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            "lr": lr,
            "optimizer": optimizer,
            "item_lr": item_lr,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "filter_seen": filter_seen,
            "index": index,
            "search": search,
            "seed": seed,
        }
        take_options(ModelOptions, None, given)
        self.origin: dict[str, Any] | None = None
        """Plain values to keep in every checkpoint, such as the configuration of `eimf train`."""
        self.tasks = tasks
        self.backbone: Backbone = _component(backbone, BACKBONES, Backbone)
        self.loss: Loss = FullSoftmax() if loss is None else _component(loss, LOSSES, Loss)
        cutoffs = sorted({k} if isinstance(k, int) else set(k))
        self.save_hyperparameters(
            {
                "backbone": _describe(self.backbone)
                | {"n_items": self.backbone.n_items, "max_len": self.backbone.max_len},
                "loss": _describe(self.loss),
                **given,
                "k": cutoffs,
                "diversity_lambdas": list(diversity_lambdas),
            }
        )
        if not cutoffs or cutoffs[0] < 1:
            raise ConfigError(f"k: cut-offs must be whole numbers from 1, are {cutoffs}.")
        self._check_fit()
        if optimizer == "rowwise" and self.backbone.trainable:
            self.backbone.item_embedding.sparse = True
        self.evaluations: dict[str, Evaluation] = {}
        self._item_counts: Tensor | None = None
        self._categories: Tensor | None = None
        self._repeats = 0.0
        self._pass: Evaluator | None = None
        self._random_state: Tensor | None = None
        self.fitted = False
        """Whether the backbone has its weights from a checkpoint, or from `histories`."""

    def _check_fit(self) -> None:
        """Refuse arguments that do not fit each other, or have no effect together."""
        backbone, loss, tasks, options = self.backbone, self.loss, self.tasks, self.hparams
        for name, default in (("weight_decay", 0.0), ("item_lr", ITEM_LR)):
            having = OPTIMIZERS[name]
            if options[name] != default and options["optimizer"] not in having:
                raise ConfigError(
                    f"{name}: is {options[name]}, which has no effect: it needs optimizer={' or '.join(having)}; leave "
                    "it out."
                )
        if options["optimizer"] == "rowwise" and loss.dense:
            raise ConfigError(
                f"optimizer: 'rowwise' needs sparse gradients; {type(loss).__name__} touches every item; use 'adam'."
            )
        if loss.config.routing_weight > 0 and not backbone.routes:
            raise ConfigError(
                f"routing_weight: is {loss.config.routing_weight}, but {type(backbone).__name__} has no routing "
                "weights; set it to 0."
            )
        if tasks is None:
            return
        if not isinstance(tasks, ExplicitTasks):
            raise ConfigError(f"tasks: must be ExplicitTasks, is {tasks!r}.")
        if not backbone.trainable:
            raise ConfigError(f"tasks: {type(backbone).__name__} is not trained; there is nothing to improve.")
        if tasks.embed_dim != backbone.embed_dim:
            raise ConfigError(
                f"tasks: were made for embed_dim={tasks.embed_dim}, the backbone has {backbone.embed_dim}; make both "
                "with the same one."
            )
        for name in ("interest_assignment", "prototype_alignment"):
            if name in tasks.tasks and not backbone.routes:
                raise ConfigError(f"tasks: {name} needs routing weights, which {type(backbone).__name__} has not.")

    @property
    def hparams_initial(self) -> Any:
        """What Lightning gives to its loggers. A run of `eimf train` logs its whole configuration instead."""
        return super().hparams_initial if self.origin is None else type(super().hparams_initial)()

    @property
    def filters_seen(self) -> bool:
        """Whether the lists leave out the items of a user's context."""
        setting = self.hparams["filter_seen"]
        return self._repeats == 0 if setting == "auto" else bool(setting)

    def observe(
        self,
        item_counts: Int[Tensor, " I_plus_1"],
        categories: Int[Tensor, " I_plus_1"] | None = None,
        repeats: float = 0.0,
        histories: Ragged | None = None,
    ) -> None:
        """Set statistics of the data. `setup` does this if the data module has attributes of these names.

        Args:
            item_counts: occurrences of each item in the training interactions: for losses and backbones that need
                frequencies, and for the metric novelty.
            categories: number of each item's category, 0 where unknown, for the metrics of diversity.
            repeats: share of the held-out targets that repeat an item of their user's context, for
                `filter_seen="auto"`.
            histories: the training items of all users, for backbones that are fitted without gradient descent.
        """
        self._item_counts, self._categories, self._repeats = item_counts.cpu(), categories, repeats
        if not self.fitted:
            self.backbone.observe(item_counts)
            if histories is not None:
                self.backbone.fit(histories.values, histories.offsets)
                self.fitted = True
        self.loss.observe(item_counts)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        counts = getattr(data, "item_counts", None)
        if counts is None:
            return
        if len(counts) != self.backbone.n_items + 1:
            raise ConfigError(
                f"n_items: the backbone has {self.backbone.n_items}, the data have {len(counts) - 1}; make the "
                "backbone with data.n_items."
            )
        longest = getattr(data, "max_len", 0)
        if longest > self.backbone.max_len:
            raise ConfigError(
                f"max_len: the data have up to {longest} items of a history, the backbone sees "
                f"{self.backbone.max_len}; make the backbone with max_len=data.max_len."
            )
        histories = None if self.fitted or self.backbone.trainable else getattr(data, "histories", None)
        self.observe(counts, getattr(data, "categories", None), getattr(data, "repeats", 0.0), histories)

    def configure_model(self) -> None:
        """With strategy FSDP: divide the parameters, their gradients and optimiser states among the processes."""
        if self.device_mesh is None or isinstance(self, FSDPModule):
            return
        fully_shard(self, mesh=self.device_mesh["data_parallel"])
        for name in ("training_step", "validation_step", "test_step", "predict_step"):
            register_fsdp_forward_method(self, name)

    def forward(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B K D"]:
        """Interest vectors of histories, left-padded with 0, the most recent item last."""
        return self.backbone(history).vectors

    def item_table(self) -> Float[np.ndarray, "I_plus_1 D"]:
        """The vectors of all items, whole, in float32 on the CPU; row 0 is padding."""
        vectors = self.backbone.item_vectors().detach()
        if isinstance(vectors, DTensor):
            vectors = vectors.full_tensor()
        return vectors.float().cpu().numpy()

    def on_train_epoch_start(self) -> None:
        entropy = np.random.SeedSequence([self.hparams["seed"], self.current_epoch, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weights = self.tasks.weights_at(self.current_epoch, batch_idx) if self.tasks is not None else {}
        samples = batch.labelled if weights else None
        if samples is None and self.tasks is not None and self.tasks.needs_samples(weights):
            raise ConfigError("tasks: need samples of labelled users; give the data module labels=....")
        interests, labelled, target = self._extract(batch, samples)
        history = batch.history if batch.target.ndim == 1 else None
        terms = self.loss(self.backbone, interests, history, target)
        if self.tasks is not None and weights:
            terms |= self.tasks(self.backbone, interests, history, target, labelled, samples, weights, self.loss)
        total = sum(terms.values(), start=target.new_zeros((), dtype=next(iter(terms.values())).dtype))
        logged = {f"train/{name}": value.detach() for name, value in terms.items()} | {"train/loss": total.detach()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(target))
        return total

    def _extract(
        self, batch: Batch, samples: LabelledSamples | None
    ) -> tuple[Interests, Interests | None, Int[Tensor, " B"]]:
        """Interests of the batch and of the labelled samples, and the targets of the batch."""
        if batch.target.ndim == 2:
            if not isinstance(self.backbone, CausalBackbone):
                raise ConfigError("sampling: 'sequence' needs a causal backbone, such as GRU4Rec or SASRec.")
            known = batch.target > 0
            interests = Interests(self.backbone.states(batch.history)[known][:, None])
            return interests, self.backbone(samples.history) if samples is not None else None, batch.target[known]
        if samples is None:
            return self.backbone(batch.history), None, batch.target
        # One pass for both, so that the labelled samples add little time.
        both = self.backbone(torch.cat([batch.history, samples.history]))
        interests, labelled = both.split([len(batch.history), len(samples.history)])
        return interests, labelled, batch.target

    def _start_pass(self, full: bool) -> None:
        names = ("index", "search", "diversity_lambdas")
        self._pass = Evaluator(
            self.item_table(),
            self.hparams["k"],
            filter_seen=self.filters_seen,
            **{name: self.hparams[name] for name in names},
            item_counts=self._item_counts,
            categories=self._categories,
            full=full,
            device=self.device,
        )

    def on_validation_epoch_start(self) -> None:
        self._start_pass(full=self.trainer.state.fn != "fit")

    def on_test_epoch_start(self) -> None:
        self._start_pass(full=True)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        assert self._pass is not None
        self._pass.add(batch.user_idx, self(batch.history), batch.targets, batch.seen, batch.tied)

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._end_pass("val")

    def on_test_epoch_end(self) -> None:
        self._end_pass("test")

    def _end_pass(self, part: str) -> None:
        assert self._pass is not None
        if self._pass.full:
            self.evaluations[part] = self._pass.evaluation()
            metrics = self.evaluations[part].summary
        else:
            metrics = self._pass.ranking()
        self._pass = None
        # Every process has the same totals: there is nothing to synchronise.
        self.log_dict({f"{part}/{key}": value for key, value in metrics.items()}, rank_zero_only=False, sync_dist=False)

    def predict_step(self, batch: EvalBatch | Int[Tensor, "B L"], batch_idx: int) -> Float[Tensor, "B K D"]:
        """Interest vectors of a batch of users, or of bare histories."""
        return self(batch if isinstance(batch, Tensor) else batch.history)

    def configure_optimizers(self) -> Any:
        options, trainer = self.hparams, self._trainer
        if not self.backbone.trainable:
            raise ConfigError(
                f"{type(self.backbone).__name__} has nothing to train; use trainer.validate or trainer.test."
            )
        if options["optimizer"] == "rowwise" and trainer is not None and trainer.gradient_clip_val:
            raise ConfigError("optimizer: 'rowwise' has sparse gradients, which cannot be clipped.")
        # A fused step unscales 16-bit gradients itself, after Lightning would have clipped them.
        fused = not (trainer is not None and trainer.gradient_clip_val)
        optimizer: Optimizer = build_optimizer(
            self,
            options["optimizer"],
            lr=options["lr"],
            item_lr=options["item_lr"],
            weight_decay=options["weight_decay"],
            fused=fused,
        )
        if options["schedule"] == "constant":
            return optimizer
        epochs = trainer.max_epochs if trainer is not None else None
        if not epochs or epochs < 0:
            raise ConfigError("schedule: 'cosine' needs to know the last epoch; give the Trainer max_epochs.")
        return {"optimizer": optimizer, "lr_scheduler": CosineAnnealingLR(optimizer, epochs)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RANDOM] = torch.get_rng_state()
        if self.origin is not None:
            checkpoint[ORIGIN] = self.origin

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.fitted = True
        self._random_state = checkpoint.get(RANDOM)
        if self.tasks is None:  # evaluation and serving do not use the auxiliary tasks
            state = checkpoint["state_dict"]
            for name in [name for name in state if not name.startswith(("backbone.", "loss."))]:
                del state[name]

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None and not float(loss) < DIVERGED:
            raise TrainingError(
                f"training: the loss is {float(loss):.3g} after epoch {self.current_epoch + 1}: it has diverged. "
                f"Lower the learning rate ({self.hparams['lr']:g} now), clip gradients to a norm of 1, or train with "
                "precision 32-true (optim.lr, trainer.gradient_clip, trainer.precision on the command line)."
            )

    def on_train_start(self) -> None:
        # For a run that continues in the middle of an epoch; every new epoch is seeded at its start.
        if self._random_state is not None:
            torch.set_rng_state(self._random_state.cpu())
            self._random_state = None


def _describe(component: Backbone | Loss) -> dict[str, Any]:
    """A backbone or loss in plain values."""
    kind = type(component)
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "options": asdict(component.config)}


def _component(given: Any, registry: Registry, base: type[Any]) -> Any:
    """A component as it is, or restored from what `_describe` said about it.

    Raises:
        ConfigError: it is neither, its class cannot be imported, or is not of the class `base`.
    """
    if isinstance(given, base):
        return given
    if not isinstance(given, Mapping) or not {"class", "options"} <= set(given):
        raise ConfigError(f"{base.__name__.lower()}: must be a {base.__name__}, is {given!r}.")
    values = dict(given)
    kind, options = registry[values.pop("class")], values.pop("options")
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ConfigError(f"{registry.key}: {given['class']!r} is no {base.__name__}.")
    return kind(**values, config=kind.Config(**options))
