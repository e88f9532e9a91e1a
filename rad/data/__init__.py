"""Whole data sets as tensors on the training device."""

from rad.data.dataset import NAMES, Dataset, check_options, load

__all__ = ["NAMES", "Dataset", "check_options", "load"]
