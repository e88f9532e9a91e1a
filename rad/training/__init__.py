"""A plain training loop for any `torch.nn.Module`, which knows nothing of RAD."""

from rad.training.loggers import Logger, NullLogger, WandbLogger
from rad.training.loop import Strides, TrainResult, strides, train
from rad.training.settings import Settings
from rad.training.side_by_side import side_by_side

__all__ = [
    "Logger",
    "NullLogger",
    "Settings",
    "Strides",
    "TrainResult",
    "WandbLogger",
    "side_by_side",
    "strides",
    "train",
]
