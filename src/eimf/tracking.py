"""Weights & Biases: mirrors a run's curves and results. Offline unless a key or the user says otherwise."""

import os
from pathlib import Path
from typing import Literal

from pytorch_lightning.loggers import WandbLogger

from eimf.config import Config, to_dict

CONNECT_TIMEOUT_S = 15


def wandb_logger(config: Config, folder: Path) -> WandbLogger | None:
    """A logger for the run, or None where W&B is disabled. Never blocks for long: without network it goes offline."""
    mode = config.logger.wandb
    if mode == "disabled":
        return None
    import wandb  # takes a second: not for those who disable it
    from wandb.errors import CommError, UsageError

    online = mode == "online" or (mode == "auto" and bool(os.environ.get("WANDB_API_KEY")))

    def start(kind: Literal["online", "offline"]) -> WandbLogger:
        run = wandb.init(
            project=config.logger.project,
            name=f"{config.run_name}/{folder.name}",
            group=config.run_name,
            dir=folder,
            config=to_dict(config),  # holds no secrets: keys come from the environment only
            mode=kind,
            settings=wandb.Settings(init_timeout=CONNECT_TIMEOUT_S, silent=True),
        )
        return WandbLogger(experiment=run)

    if online:
        try:
            return start("online")
        except (CommError, UsageError, OSError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            print(
                f"wandb: cannot go online ({reason[0]}); logging offline, upload later with: wandb sync {folder}/wandb"
            )
    return start("offline")
