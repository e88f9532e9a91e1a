"""Modules over `rad.functional`, under torch.nn's names.

Each is a subclass of torch's module with the same parameters and the same
`state_dict`. In training mode with gradients enabled it sketches; under `eval()`
or `torch.no_grad()` it is torch's module.
"""

from torch import nn

from rad.nn.activation import ReLU
from rad.nn.base import Sketching
from rad.nn.conv import Conv1d, Conv2d, Conv3d
from rad.nn.dropout import Dropout
from rad.nn.elementwise import ELU, GELU, LeakyReLU, Mish, Sigmoid, SiLU, Softplus, Tanh
from rad.nn.linear import Linear
from rad.nn.pooling import (
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    ReLUAvgPool2d,
)
from rad.nn.recurrent import RNN

LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ReLU: ReLU,
    nn.AvgPool1d: AvgPool1d,
    nn.AvgPool2d: AvgPool2d,
    nn.AvgPool3d: AvgPool3d,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
    nn.MaxPool1d: MaxPool1d,
    nn.MaxPool2d: MaxPool2d,
    nn.MaxPool3d: MaxPool3d,
    nn.Dropout: Dropout,
    nn.RNN: RNN,
    nn.GELU: GELU,
    nn.SiLU: SiLU,
    nn.Mish: Mish,
    nn.Tanh: Tanh,
    nn.Sigmoid: Sigmoid,
    nn.Softplus: Softplus,
    nn.ELU: ELU,
    nn.LeakyReLU: LeakyReLU,
}
"""torch's layer type -> the RAD layer that takes its place."""

RAD_LAYERS = frozenset({*LAYERS.values(), ReLUAvgPool2d})
"""All of them."""

__all__ = [
    "ELU",
    "GELU",
    "LAYERS",
    "RAD_LAYERS",
    "RNN",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Dropout",
    "LeakyReLU",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Mish",
    "ReLU",
    "ReLUAvgPool2d",
    "SiLU",
    "Sigmoid",
    "Sketching",
    "Softplus",
    "Tanh",
]
