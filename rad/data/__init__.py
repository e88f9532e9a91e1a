"""Data sets as tensors on the training device: labelled images, sequences of pixels, texts.

What is done with them, loss and metrics, is a `rad.training.Task`.
"""

from rad.data.dataset import Dataset
from rad.data.loading import NAMES, check_options, load, load_images, model_arguments
from rad.data.text import Text, characters

__all__ = [
    "NAMES",
    "Dataset",
    "Text",
    "characters",
    "check_options",
    "load",
    "load_images",
    "model_arguments",
]
