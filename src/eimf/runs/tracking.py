"""Copies a run's curves and results to Weights & Biases (offline unless a key or a setting says otherwise) and
TensorBoard.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from eimf.config.load import to_dict
from eimf.config.schema import Config
from eimf.core.errors import ConfigError

CONNECT_TIMEOUT_S = 15


KEPT = ("key", "data_digest", "label_digest", "code", "commit", "package_version", "machine")
"""Keys of `run.json` that a W&B run keeps."""


def wandb_logger(config: Config, folder: Path, origin: Mapping[str, Any]) -> WandbLogger | None:
    """A logger for the run, or None if W&B is disabled. Without a network it goes offline after a short wait.

    A run that `wandb agent` started joins the agent's run (W&B reads WANDB_RUN_ID and WANDB_SWEEP_ID by itself).

    Args:
        origin: the run's `run.json`.

    Raises:
        ConfigError: W&B is unreachable during a sweep (an offline run would leave the sweep waiting).
    """
    mode = wandb_mode(config)
    if mode == "disabled":
        return None
    import wandb  # the import takes a second, so not if W&B is disabled
    from wandb.errors import CommError, UsageError

    def start(kind: Literal["online", "offline"]) -> WandbLogger:
        run = wandb.init(
            project=config.logger.project,
            name=f"{config.run_name}/{folder.name}",
            group=config.run_name,
            dir=folder,
            # Holds no secrets: keys come from the environment only.
            config={**to_dict(config), "origin": {key: origin[key] for key in KEPT if key in origin}},
            mode=kind,
            settings=wandb.Settings(init_timeout=CONNECT_TIMEOUT_S, silent=True),
        )
        return WandbLogger(experiment=run)

    if mode == "online":
        try:
            return start("online")
        except (CommError, UsageError, OSError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            if os.environ.get("WANDB_SWEEP_ID"):
                raise ConfigError(f"wandb: cannot join the sweep's run ({reason[0]}); is W&B reachable?") from None
            print(
                f"wandb: cannot go online ({reason[0]}); logging offline, upload later with: wandb sync {folder}/wandb"
            )
    return start("offline")


def tensorboard_logger(config: Config, folder: Path) -> TensorBoardLogger | None:
    """A logger that writes events for TensorBoard into the run folder, or None if none are wanted.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if not config.logger.tensorboard:
        return None
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError:
        raise ConfigError(
            "logger.tensorboard: TensorBoard is not installed; pip install 'eimf[tensorboard]', or set it to false."
        ) from None


def wandb_mode(config: Config) -> str:
    """`online`, `offline` or `disabled`."""
    if config.logger.wandb != "auto":
        return config.logger.wandb
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in ("online", "offline", "disabled"):
        return wanted
    return "online" if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_SWEEP_ID") else "offline"


def log_outcome(
    logger: WandbLogger,
    results: Mapping[str, Mapping[str, float]],
    checkpoint: Path | None = None,
    trade_off: Sequence[Mapping[str, float]] = (),
) -> None:
    """Log the final metrics, as values and as one table, and keep the best checkpoint if one is given.

    Args:
        results: part of the split -> metric -> value.
        trade_off: accuracy and diversity by the weight of the controllable aggregation; two points or more are plotted.
    """
    import wandb

    logger.log_metrics(
        {f"final/{part}/{key}": value for part, metrics in results.items() for key, value in metrics.items()}
    )
    keys = list(dict.fromkeys(key for metrics in results.values() for key in metrics))
    rows = [[key, *(metrics.get(key) for metrics in results.values())] for key in keys]
    logger.experiment.log({"final/table": wandb.Table(columns=["metric", *results], data=rows)})
    if len(trade_off) > 1:
        curve = wandb.Table(columns=list(trade_off[0]), data=[list(point.values()) for point in trade_off])
        wider, recall = (next(key for key in trade_off[0] if key.startswith(name)) for name in ("diversity", "recall"))
        title = "accuracy against diversity"
        logger.experiment.log({"final/trade_off": wandb.plot.line(curve, wider, recall, title=title)})
    if checkpoint is not None:
        artifact = wandb.Artifact(f"best-{logger.experiment.id}", type="model")
        artifact.add_file(str(checkpoint), name="best.ckpt")
        logger.experiment.log_artifact(artifact)
