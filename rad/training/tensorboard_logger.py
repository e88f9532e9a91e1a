"""TensorBoard, on this machine alone: `tensorboard --logdir <directory>` shows the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rad.errors import UsageError, first_line
from rad.training.loggers import RunInfo

CURVES = ("train", "test", "batch", "bootstrap")
"""What a metric is of, as columns' names begin."""


class TensorBoardLogger:
    """Records lie in `<directory>/<the run's path>`, once more each time that the run resumes.

    Rows that are given again take the place of what was there. Configuration and plan stand
    under Text.

    Raises:
        UsageError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, info: RunInfo, directory: str | Path) -> None:
        self._info = info
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "TensorBoard is not installed: pip install tensorboard, or choose logger=wandb"
            ) from error
        folder = Path(directory) / info.path
        try:
            self._writer: Any = SummaryWriter(str(folder), purge_step=0)
        except OSError as error:
            raise UsageError(
                f"cannot write {folder} ({first_line(error)}); choose logger.directory="
            ) from error
        for name, fields in (("plan", info.plan), ("configuration", info.config)):
            self._writer.add_text(name, _code(fields))

    def log(self, row: Mapping[str, Any]) -> None:
        """Record what was evaluated, at step `iteration`."""
        for name, value in row.items():
            if value is not None and name not in self._info.hidden:
                self._writer.add_scalar(_panel(name), value, row["iteration"])

    def figure(self, name: str, file: Path) -> None:
        """Show the picture in that file (PNG)."""
        import numpy as np
        from PIL import Image

        with Image.open(file) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), dataformats="HWC")

    def finish(self) -> None:
        """Write what is left. A second call does nothing."""
        self._writer.close()


def _panel(name: str) -> str:
    """The curves of one metric side by side, whatever the task: loss/train, loss/test."""
    split, _, metric = name.partition("_")
    return f"{metric}/{split}" if split in CURVES else name


def _code(fields: Mapping[str, Any]) -> str:
    """As TensorBoard's Markdown shows it unchanged."""
    lines = json.dumps(fields, indent=2, default=str).splitlines()
    return "\n".join(f"    {line}" for line in lines)
