"""Weights & Biases: mirrors a run's curves and results. Offline unless a key or the user says otherwise."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger

from eimf.config.load import to_dict
from eimf.config.schema import Config
from eimf.core.errors import ConfigError

CONNECT_TIMEOUT_S = 15


KEPT = ("key", "data_digest", "label_digest", "code", "commit", "package_version", "machine")
"""What a W&B run has of `run.json`."""


def wandb_logger(config: Config, folder: Path, origin: Mapping[str, Any]) -> WandbLogger | None:
    """A logger for the run, or None where W&B is disabled. Never blocks for long: without network it goes offline.

    A run that `wandb agent` started joins the agent's run (W&B reads WANDB_RUN_ID and WANDB_SWEEP_ID by itself).

    Args:
        origin: the run's `run.json`.

    Raises:
        ConfigError: a sweep's run cannot reach W&B; logged offline, its sweep would wait for it in vain.
    """
    mode = wandb_mode(config)
    if mode == "disabled":
        return None
    import wandb  # takes a second: not for those who disable it
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
        trade_off: accuracy and diversity by the weight of the controllable aggregation; drawn, if there is a curve.
    """
    import wandb

    logger.log_metrics({f"final/{part}/{key}": value for part, one in results.items() for key, value in one.items()})
    keys = list(dict.fromkeys(key for one in results.values() for key in one))
    rows = [[key, *(one.get(key) for one in results.values())] for key in keys]
    logger.experiment.log({"final/table": wandb.Table(columns=["metric", *results], data=rows)})
    if len(trade_off) > 1:
        curve = wandb.Table(columns=list(trade_off[0]), data=[list(one.values()) for one in trade_off])
        wider, recall = (next(key for key in trade_off[0] if key.startswith(name)) for name in ("diversity", "recall"))
        title = "accuracy against diversity"
        logger.experiment.log({"final/trade_off": wandb.plot.line(curve, wider, recall, title=title)})
    if checkpoint is not None:
        artifact = wandb.Artifact(f"best-{logger.experiment.id}", type="model")
        artifact.add_file(str(checkpoint), name="best.ckpt")
        logger.experiment.log_artifact(artifact)
