"""Operators with an exact forward pass and a backward pass from what was kept.

A new operator begins here, as a function of tensors, a sketch and a key, with the closed form of
its gradient's variance beside it; its module lies in `rad.nn`.
"""

from rad.functional.attention import attention_nbytes, scaled_dot_product_attention
from rad.functional.batch_normalization import batch_norm
from rad.functional.conv import conv, conv_transpose, keep_for_conv
from rad.functional.conv_noise import conv_weight_grad_variance
from rad.functional.cross_entropy import cross_entropy
from rad.functional.dropout import dropout
from rad.functional.elementwise import elementwise, elementwise_grad_variance
from rad.functional.embedding import embedding
from rad.functional.gru import gru
from rad.functional.linear import keep_for_linear, linear
from rad.functional.linear_cross_entropy import linear_cross_entropy
from rad.functional.linear_noise import linear_weight_grad_variance
from rad.functional.linear_relu import linear_relu
from rad.functional.lstm import lstm
from rad.functional.matmul import matmul
from rad.functional.multiply import multiply, multiply_grad_variances, multiply_nbytes
from rad.functional.normalization import group_norm, instance_norm, layer_norm, rms_norm
from rad.functional.normalization_noise import batch_norm_grad_variance, norm_grad_variance
from rad.functional.pooling import adaptive_avg_pool2d, avg_pool, max_pool
from rad.functional.recurrent import rnn, rnn_weight_grad_variance
from rad.functional.relu import relu
from rad.functional.relu_pool import relu_avg_pool2d
from rad.functional.slices import in_slices
from rad.functional.softmax import softmax, softmax_grad_variance, softmax_nbytes

__all__ = [
    "adaptive_avg_pool2d",
    "attention_nbytes",
    "avg_pool",
    "batch_norm",
    "batch_norm_grad_variance",
    "conv",
    "conv_transpose",
    "conv_weight_grad_variance",
    "cross_entropy",
    "dropout",
    "elementwise",
    "elementwise_grad_variance",
    "embedding",
    "group_norm",
    "gru",
    "in_slices",
    "instance_norm",
    "keep_for_conv",
    "keep_for_linear",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_relu",
    "linear_weight_grad_variance",
    "lstm",
    "matmul",
    "max_pool",
    "multiply",
    "multiply_grad_variances",
    "multiply_nbytes",
    "norm_grad_variance",
    "relu",
    "relu_avg_pool2d",
    "rms_norm",
    "rnn",
    "rnn_weight_grad_variance",
    "scaled_dot_product_attention",
    "softmax",
    "softmax_grad_variance",
    "softmax_nbytes",
]
