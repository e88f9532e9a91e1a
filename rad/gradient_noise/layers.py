"""Input and output gradient of each weight layer, and what follows from them in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rad.errors import UsageError
from rad.functional.conv_noise import ConvResponse
from rad.functional.geometry import Geometry, geometry_of
from rad.functional.linear_noise import LinearResponse
from rad.functional.noise_response import NoiseResponse
from rad.functional.scaling import normalised
from rad.training.task import Batch, Task


@dataclass(frozen=True)
class Trace:
    """A linear or convolution layer's input and output gradient, of a mean loss over B examples.

    Shapes: x (B, ..., in_features) or (B, C_in, *space); grad_output likewise.
    """

    layer: nn.Linear | _ConvNd
    x: Tensor
    grad_output: Tensor

    @property
    def width(self) -> int:
        """d, the size of the axis that a sketch acts on."""
        return self.x.shape[-1] if isinstance(self.layer, nn.Linear) else self.x[0, 0].numel()

    def noise_response(self) -> NoiseResponse:
        """How the weight's gradient, of the minibatch, answers noise in x."""
        if isinstance(self.layer, nn.Linear):
            return LinearResponse(self.x, self.grad_output)
        weight = self.layer.weight.detach()
        return ConvResponse(self.x, self.grad_output, weight, _geometry_of(self.layer))

    def example_squares(self) -> Tensor:
        """|g_n|^2 for the gradient g_n of each example's own loss: (B,), float64.

        For a linear layer |g_n|^2 = sum over its positions s, t of (x_s . x_t)(g_s . g_t).
        """
        (x, x_scale), (grad_output, grad_scale) = map(normalised, (self.x, self.grad_output))
        squares = self._example_squares(x, grad_output * len(x))
        return squares.double() * x_scale**2 * grad_scale**2

    def _example_squares(self, x: Tensor, grad_output: Tensor) -> Tensor:
        """That of an input, and of the output's gradient for a sum of losses."""
        batch = len(x)
        if isinstance(self.layer, nn.Linear):
            x = x.reshape(batch, -1, x.shape[-1])
            grad_output = grad_output.reshape(batch, -1, grad_output.shape[-1])
            return ((x @ x.mT) * (grad_output @ grad_output.mT)).sum((1, 2))
        geometry, weight = _geometry_of(self.layer), self.layer.weight.detach()
        mask = (False, True, False)
        pairs = zip(x.split(1), grad_output.split(1), strict=True)
        gradients = (geometry.backward(g, x, weight, mask)[1] for x, g in pairs)
        return torch.stack([g.square().sum() for g in gradients if g is not None])


def _geometry_of(layer: _ConvNd) -> Geometry:
    options = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return geometry_of(layer.weight, *options)


def weight_layers(model: nn.Module) -> dict[str, nn.Linear | _ConvNd]:
    """The layers whose weights are compared, by the name of the weight.

    Raises:
        UsageError: none, or parameters that belong to a layer of another kind.
    """
    layers: dict[str, nn.Linear | _ConvNd] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not module.transposed):
            layers[f"{name}.weight".lstrip(".")] = module
        elif any(True for _ in module.parameters(recurse=False)):
            raise UsageError(
                f"gradient noise is known for linear and convolution layers, not for "
                f"{type(module).__name__}; choose another model, such as feedforward or convnet"
            )
    if not layers:
        raise UsageError("the model has no weights; choose another, such as feedforward or convnet")
    return layers


def trace(model: nn.Module, task: Task, batch: Batch) -> tuple[dict[str, Trace], float]:
    """Backward pass of the loss of a batch; gives each weight's trace, and the loss.

    Gradients start afresh and are left in `.grad`. The model is a plain one: each layer is
    called once, and nothing in it is random or mixes examples.
    """
    inputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    layers = weight_layers(model)

    def keep(name: str, x: Tensor, output: Tensor) -> None:
        inputs[name] = x.detach()
        output.register_hook(lambda grad: grads.__setitem__(name, grad.detach()))

    hooks = [
        layer.register_forward_hook(lambda _, args, output, name=name: keep(name, args[0], output))
        for name, layer in layers.items()
    ]
    try:
        loss = loss_and_gradient(model, task, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Trace(layers[name], inputs[name], grads[name]) for name in layers}, loss


def loss_and_gradient(model: nn.Module, task: Task, batch: Batch) -> float:
    """The loss of a batch; its gradient alone is left in `.grad`."""
    model.zero_grad(set_to_none=True)
    loss = task.loss(model(*batch.inputs), batch.targets)
    loss.backward()
    return loss.item()


def weight_gradients(model: nn.Module) -> dict[str, Tensor]:
    """What `.grad` holds for each weight."""
    grads = {name: layer.weight.grad for name, layer in weight_layers(model).items()}
    return {name: grad for name, grad in grads.items() if grad is not None}
