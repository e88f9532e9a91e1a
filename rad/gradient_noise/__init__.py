"""How far estimated gradients lie from the full training-set gradient, and why (paper, appendix).

The mean squared deviation of an unbiased estimate of a weight's gradient is the sum of *minibatch
noise*, that of the exact gradient of a random minibatch, and *sketch noise*, the variance over keys
given the minibatch. Both are measured and predicted in closed form.
"""

from rad.gradient_noise.full import FullGradient, full_gradient
from rad.gradient_noise.layers import Trace, trace, weight_layers
from rad.gradient_noise.measure import Sampling, measure

__all__ = [
    "FullGradient",
    "Sampling",
    "Trace",
    "full_gradient",
    "measure",
    "trace",
    "weight_layers",
]
