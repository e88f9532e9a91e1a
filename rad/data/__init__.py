"""Whole data sets as tensors on the training device."""

from rad.data.dataset import NAMES, Dataset, check_options, load
from rad.data.text import Text, characters

__all__ = ["NAMES", "Dataset", "Text", "characters", "check_options", "load"]
