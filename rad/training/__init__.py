"""A plain training loop for any `torch.nn.Module`, which knows nothing of RAD."""

from rad.training.loggers import Logger, NullLogger, WandbLogger
from rad.training.loop import TrainResult, train
from rad.training.settings import Settings

__all__ = ["Logger", "NullLogger", "Settings", "TrainResult", "WandbLogger", "train"]
