"""The dashboard that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rad.errors import UsageError
from rad.training.loggers import Logger, RunInfo
from rad.training.tensorboard_logger import TensorBoardLogger
from rad.training.wandb_logger import WandbLogger

DASHBOARDS = ("wandb", "tensorboard")


def follow(options: Mapping[str, Any], info: RunInfo) -> Logger:
    """The logger that `options` describe (configs/train/logger), which follows the run of `info`.

    Raises:
        UsageError: an unknown one, or one that cannot start.
    """
    name = options.get("name", "wandb")
    if name == "tensorboard":
        return TensorBoardLogger(info, options["directory"])
    if name != "wandb":
        raise UsageError(f"unknown logger {name!r}; choose one of {', '.join(DASHBOARDS)}")
    return WandbLogger(
        options["project"],
        info.path,
        info.group,
        info.config,
        options["mode"],
        options["directory"],
        info.root,
        title=info.title,
        job=info.job,
        tags=info.tags,
        plan=info.plan,
        hidden=info.hidden,
    )
