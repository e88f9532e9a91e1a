"""Modules over `rad.functional`, under torch.nn's names.

Each is a subclass of torch's module of its name, with the same parameters and the same
`state_dict`. In training mode with gradients enabled it sketches, or keeps less than torch;
under `eval()` or `torch.no_grad()` it is torch's module (`Dropout` draws its own masks whenever it
is in training mode). Norms and a softmax sketch only where they are asked to:
`rad.convert(..., path=)`. Beside them stand `Slices`, a sequence that cuts its batch,
`ReLUAvgPool2d`, and `Sketching`, the mixin of layers that sketch.

A new layer is a file here, and a row in `rad.nn.registry`.
"""

from rad.nn.activation import ReLU
from rad.nn.base import Sketching
from rad.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from rad.nn.dropout import Dropout
from rad.nn.elementwise import (
    CELU,
    ELU,
    GELU,
    SELU,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    Mish,
    ReLU6,
    Sigmoid,
    SiLU,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
)
from rad.nn.embedding import Embedding
from rad.nn.gated import GRU, LSTM
from rad.nn.linear import Linear
from rad.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)
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
from rad.nn.registry import LAYERS, NORMS, RAD_LAYERS
from rad.nn.sequential import Sequential
from rad.nn.slices import Slices
from rad.nn.softmax import Softmax
from rad.nn.transposed_linear import TransposedLinear

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GRU",
    "LAYERS",
    "LSTM",
    "NORMS",
    "RAD_LAYERS",
    "RNN",
    "SELU",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dropout",
    "Embedding",
    "GroupNorm",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSigmoid",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Mish",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "ReLUAvgPool2d",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Sketching",
    "Slices",
    "Softmax",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "TransposedLinear",
]
