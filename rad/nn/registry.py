"""The operators that have RAD layers: one row each, which conversion,
planning, reports and audits read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from rad.nn.activation import ReLU
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
from rad.nn.kinds import kind_of
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
from rad.nn.plain import PlainTransposedLinear
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
from rad.nn.softmax import Softmax
from rad.nn.transposed_linear import TransposedLinear

Question = Literal["output_kept", "sequence_read"]
"""What a layer may want to know of those who read its output: whether one of them keeps it exactly
after every call; whether, of a pair of outputs, any reads the first."""


@dataclass(frozen=True)
class Operator:
    """What torch calls an operator, and the RAD layer for it.

    `function` is its name in torch.nn.functional or torch, for calls without a module; `nodes` are
    the names in the autograd graph of what then keeps more than the layer does. `fused` are further
    RAD layers that do more than this operator, for models written with them: conversion leaves
    them as they are. `asks` is what decides what the layer keeps: conversion sets the layer's
    attribute of that name. A `stepwise` layer forms its
    weights' gradients step by step inside one call, which hooks around the call do not see.
    A `norm` makes the gradient by its input random, and is replaced only where that is asked for; a
    softmax counts as one.
    """

    torch: type[nn.Module]
    layer: type[nn.Module]
    function: str
    nodes: tuple[str, ...] = ()
    fused: tuple[type[nn.Module], ...] = ()
    asks: Question | None = None
    stepwise: bool = False
    norm: bool = False


OPERATORS = (
    Operator(nn.Linear, Linear, "linear", ("addmm", "mm", "linear")),
    Operator(PlainTransposedLinear, TransposedLinear, "addmm"),
    Operator(nn.Conv1d, Conv1d, "conv1d"),
    Operator(nn.Conv2d, Conv2d, "conv2d", ("convolution",)),
    Operator(nn.Conv3d, Conv3d, "conv3d"),
    Operator(nn.ConvTranspose1d, ConvTranspose1d, "conv_transpose1d"),
    Operator(nn.ConvTranspose2d, ConvTranspose2d, "conv_transpose2d"),
    Operator(nn.ConvTranspose3d, ConvTranspose3d, "conv_transpose3d"),
    Operator(nn.ReLU, ReLU, "relu", ("relu",), asks="output_kept"),
    Operator(nn.AvgPool1d, AvgPool1d, "avg_pool1d"),
    Operator(nn.AvgPool2d, AvgPool2d, "avg_pool2d", ("avg_pool2d",), fused=(ReLUAvgPool2d,)),
    Operator(nn.AvgPool3d, AvgPool3d, "avg_pool3d"),
    Operator(nn.AdaptiveAvgPool2d, AdaptiveAvgPool2d, "adaptive_avg_pool2d", ("mean",)),
    Operator(nn.MaxPool1d, MaxPool1d, "max_pool1d"),
    Operator(nn.MaxPool2d, MaxPool2d, "max_pool2d", ("max_pool2d_with_indices",)),
    Operator(nn.MaxPool3d, MaxPool3d, "max_pool3d"),
    Operator(nn.Dropout, Dropout, "dropout", ("native_dropout",)),
    Operator(nn.Embedding, Embedding, "embedding", ("embedding",)),
    Operator(nn.RNN, RNN, "rnn", asks="sequence_read", stepwise=True),
    Operator(nn.LSTM, LSTM, "lstm", asks="sequence_read", stepwise=True),
    Operator(nn.GRU, GRU, "gru", asks="sequence_read", stepwise=True),
    Operator(nn.GELU, GELU, "gelu"),
    Operator(nn.SiLU, SiLU, "silu"),
    Operator(nn.Mish, Mish, "mish"),
    Operator(nn.Tanh, Tanh, "tanh"),
    Operator(nn.Sigmoid, Sigmoid, "sigmoid"),
    Operator(nn.Softplus, Softplus, "softplus"),
    Operator(nn.ELU, ELU, "elu"),
    Operator(nn.LeakyReLU, LeakyReLU, "leaky_relu"),
    Operator(nn.SELU, SELU, "selu"),
    Operator(nn.CELU, CELU, "celu"),
    Operator(nn.Hardswish, Hardswish, "hardswish"),
    Operator(nn.LogSigmoid, LogSigmoid, "logsigmoid"),
    Operator(nn.Softsign, Softsign, "softsign"),
    Operator(nn.Tanhshrink, Tanhshrink, "tanhshrink"),
    Operator(nn.Hardsigmoid, Hardsigmoid, "hardsigmoid"),
    Operator(nn.Hardtanh, Hardtanh, "hardtanh"),
    Operator(nn.ReLU6, ReLU6, "relu6"),
    Operator(nn.Softshrink, Softshrink, "softshrink"),
    Operator(nn.Hardshrink, Hardshrink, "hardshrink"),
    Operator(nn.LayerNorm, LayerNorm, "layer_norm", norm=True),
    Operator(nn.RMSNorm, RMSNorm, "rms_norm", norm=True),
    Operator(nn.GroupNorm, GroupNorm, "group_norm", norm=True),
    Operator(nn.BatchNorm1d, BatchNorm1d, "batch_norm", norm=True),
    Operator(nn.BatchNorm2d, BatchNorm2d, "batch_norm", norm=True),
    Operator(nn.BatchNorm3d, BatchNorm3d, "batch_norm", norm=True),
    Operator(nn.InstanceNorm1d, InstanceNorm1d, "instance_norm", norm=True),
    Operator(nn.InstanceNorm2d, InstanceNorm2d, "instance_norm", norm=True),
    Operator(nn.InstanceNorm3d, InstanceNorm3d, "instance_norm", norm=True),
    Operator(nn.Softmax, Softmax, "softmax", norm=True),
)

Kinds = dict[type[nn.Module], type[nn.Module]]

LAYERS: Kinds = {row.torch: row.layer for row in OPERATORS if not row.norm}
"""torch's layer type -> the RAD layer that takes its place."""

NORMS: Kinds = {row.torch: row.layer for row in OPERATORS if row.norm}
"""The same of normalisations, which are replaced where `rad.convert` is given `path`."""

RAD_LAYERS = frozenset(layer for row in OPERATORS for layer in (row.layer, *row.fused))
"""All RAD layers, fused ones included."""

_ROWS = {kind: row for row in OPERATORS for kind in (row.torch, row.layer)}

MODULE_OF_FUNCTION = {
    row.function: row.torch.__name__
    for row in OPERATORS
    if not row.norm and hasattr(nn, row.torch.__name__)
}
"""Functions -> the module under torch.nn that does the same and that `convert` replaces."""

MODULE_OF_NODE = {node: row.torch.__name__ for row in OPERATORS for node in row.nodes}
"""Operators of the autograd graph that a RAD layer keeps less for -> that layer under torch.nn."""


def operator_of(module: nn.Module) -> Operator | None:
    """The row of a layer, torch's or RAD's; None where there is none."""
    return _ROWS.get(kind_of(module))
