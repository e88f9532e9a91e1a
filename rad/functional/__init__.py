"""Operators with an exact forward pass and a backward pass from what was kept."""

from rad.functional.linear import linear, linear_weight_grad_variance
from rad.functional.relu import relu

__all__ = ["linear", "linear_weight_grad_variance", "relu"]
