"""A training loop for any `torch.nn.Module` and task, which knows nothing of RAD.

A new kind of problem is a `Task` here or in a file of one's own. Of the library it imports
`rad.errors` only.
"""

from rad.training.dashboards import follow
from rad.training.interruption import Interruption
from rad.training.loggers import Logger, NullLogger, RunInfo
from rad.training.loop import Strides, strides, train
from rad.training.progress_bar import Shown
from rad.training.ranks import Ranks, joined
from rad.training.session import TrainResult
from rad.training.settings import Settings
from rad.training.side_by_side import side_by_side
from rad.training.task import Batch, Classification, NextToken, Task
from rad.training.tensorboard_logger import TensorBoardLogger
from rad.training.wandb_logger import WandbLogger

__all__ = [
    "Batch",
    "Classification",
    "Interruption",
    "Logger",
    "NextToken",
    "NullLogger",
    "Ranks",
    "RunInfo",
    "Settings",
    "Shown",
    "Strides",
    "Task",
    "TensorBoardLogger",
    "TrainResult",
    "WandbLogger",
    "follow",
    "joined",
    "side_by_side",
    "strides",
    "train",
]
