"""What becomes of second derivatives: a backward pass is differentiated, or says that it cannot be.

Gradients of inputs are exact and made of torch's operators, so that penalties on them (of
physics-informed losses, of Wasserstein GANs) work: the weight's part of such a penalty is exact,
and what flows on to the activations meets the sketches once more, linearly, so that it stays
unbiased. A *weight's* gradient depends on a sketch that a second derivative would meet twice: only
where the input is kept exactly can it be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def will_be_differentiated() -> bool:
    """Whether a backward pass runs under `create_graph=True`.

    Never within a compiled program, whose backward pass torch itself refuses to differentiate.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, token: Tensor, advice: str) -> Tensor:
        ctx.advice = advice
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        raise RuntimeError(f"no second derivative: {ctx.advice}")


def refuse(gradient: Tensor, advice: str) -> Tensor:
    """`gradient`, of which a derivative raises RuntimeError with that advice."""
    token = torch.zeros((), requires_grad=True)
    refused: Tensor = _Refused.apply(gradient.detach(), token, advice)
    return refused


Gradients = tuple[Tensor | None, ...]


def refused(advice: str) -> Callable[[Callable[..., Gradients]], Callable[..., Gradients]]:
    """Decorates a backward pass, none of whose gradients can be differentiated again."""

    def decorate(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
        @wraps(backward)
        def run(ctx: Any, *grad_outputs: Tensor | None) -> Gradients:
            with torch.no_grad():
                found = backward(ctx, *grad_outputs)
            if not will_be_differentiated():
                return found
            return tuple(None if grad is None else refuse(grad, advice) for grad in found)

        return run

    return decorate


OF_WEIGHT = (
    "the gradient of this weight was read from a sketch of the layer's input, and a derivative of "
    "it would be biased. Give the layer rad.Identity(), differentiate gradients of inputs only, or "
    "take this step under model.eval(), where the layer is torch's"
)

OF_RNN = (
    "a recurrent layer's backward pass runs over its kept bits and sketches as a whole. Take this "
    "step under model.eval(), where the layer is torch's, or leave the layer out of the conversion"
)

OF_ACTIVATION = (
    "this activation function keeps its rounded derivative, which does not tell its second one. "
    "Leave the layer out of the sketches that round (rad.convert with a mapping), or take this "
    "step under model.eval(), where the layer is torch's"
)

OF_NORM = (
    "this normalisation keeps its normalised input in a few bits, in which the derivative of its "
    "gradient would be biased. Leave norms exact (rad.convert without path=), or take this step "
    "under model.eval(), where the layer is torch's"
)

OF_CROSS_ENTROPY = (
    "this cross entropy keeps its probabilities in a few bits, in which its second derivative "
    "would be biased. Call torch.nn.functional.cross_entropy, or convert without path="
)

OF_SOFTMAX = (
    "this softmax keeps its result in a few bits, in which the derivative of its gradient would be "
    "biased. Convert without path= (rad.Identity() in rad.functional), or take this step under "
    "model.eval(), where it is torch's"
)

OF_ATTENTION = (
    "this attention keeps sketches of what it multiplies, in which the derivative of its gradient "
    "would be biased. Give it rad.Identity(), or take this step with torch's own"
)

OF_PRODUCT = (
    "this product of activations keeps sketches of its factors, in which the derivative of its "
    "gradient would be biased. Convert without path= (rad.Identity() in rad.functional), or take "
    "this step under model.eval(), where it is torch's"
)

OF_SLICES = (
    "a block that works through its batch in slices has no second derivative. Take this step on "
    "the whole batch: rad.slice_batches(model, None)"
)

OF_SIMULATION = "the adjoint of a simulation runs back once, as a whole"
