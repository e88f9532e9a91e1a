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
from rad.nn.layer_io import Capture
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

    def is_all_of(self, gradient: Tensor | None) -> bool:
        """Whether the weight's gradient comes from this call, within the precision of float16."""
        if gradient is None:
            return False
        own = self._weight_gradient(self.x, self.grad_output)
        return bool((own - gradient).norm() <= 1e-2 * gradient.norm())

    def _weight_gradient(self, x: Tensor, grad_output: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return grad_output.flatten(0, -2).t() @ x.flatten(0, -2)
        weight = self.layer.weight.detach()
        found = _geometry_of(self.layer).backward(grad_output, x, weight, (False, True, False))[1]
        assert found is not None
        return found

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
        pairs = zip(x.split(1), grad_output.split(1), strict=True)
        return torch.stack([self._weight_gradient(x, g).square().sum() for x, g in pairs])


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


def has_closed_forms(model: nn.Module) -> bool:
    """Whether all parameters belong to layers whose noise is known in closed form."""
    try:
        weight_layers(model)
    except UsageError:
        return False
    return True


def trace(model: nn.Module, task: Task, batch: Batch) -> tuple[dict[str, Trace], float]:
    """Backward pass of the loss of a batch; gives each weight's trace, and the loss.

    Gradients start afresh and are left in `.grad`. The model is a plain one: each layer is
    called once, and nothing in it is random or mixes examples.

    Raises:
        UsageError: a layer that is not called once, or whose weight is also used elsewhere.
    """
    layers = weight_layers(model)
    with Capture(layers) as seen:
        loss = loss_and_gradient(model, task, batch)
    traces = {}
    for name, layer in layers.items():
        if seen.calls[name] != 1 or len(seen.pairs[name]) != 1:
            raise UsageError(
                f"{name} takes part in {seen.calls[name]} calls of its layer, of which "
                f"{len(seen.pairs[name])} meet a gradient: choose a model that calls it once"
            )
        traces[name] = Trace(layer, *seen.pairs[name][0])
        if not traces[name].is_all_of(layer.weight.grad):
            raise UsageError(
                f"{name} is also used past the call of its layer, which gradient noise does not "
                "see: call the layer there, too"
            )
    return traces, loss


def exact_gradient(model: nn.Module, task: Task, batch: Batch) -> tuple[dict[str, Trace], float]:
    """As `trace`; of a model without closed forms no traces."""
    if has_closed_forms(model):
        return trace(model, task, batch)
    return {}, loss_and_gradient(model, task, batch)


def loss_and_gradient(model: nn.Module, task: Task, batch: Batch) -> float:
    """The loss of a batch; its gradient alone is left in `.grad`."""
    model.zero_grad(set_to_none=True)
    loss = task.loss(model(*batch.inputs), batch.targets)
    loss.backward()
    return loss.item()


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name the parameters of two or more axes: of the rest nothing is sketched."""
    return {name: each for name, each in model.named_parameters() if each.dim() > 1}


def weight_gradients(model: nn.Module) -> dict[str, Tensor]:
    """What `.grad` holds for each weight."""
    return {name: each.grad for name, each in weights(model).items() if each.grad is not None}
