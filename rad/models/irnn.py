"""The paper's recurrent network (section 4, Figure 5c): an IRNN, after Le, Jaitly and Hinton."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rad.models.sizes import check_list, check_sizes, check_std

SEGMENT = 28
"""Steps that `IRNN.segmented` runs at a time: the square root of those of an MNIST image."""


class IRNN(nn.Module):
    """A ReLU RNN that reads one number a step; a linear layer on its last state.

    The recurrent matrix W_hh starts as the identity, the biases at 0, all other weights from
    N(0, std^2). Shapes: (B, ...) -> logits (B, classes), the entries of an example
    read in order.

    Raises:
        UsageError: a size that is not a whole number of at least 1, or no standard deviation.
    """

    def __init__(self, classes: int, hidden: int = 100, std: float = 0.001) -> None:
        super().__init__()
        check_sizes(classes=classes, hidden=hidden)
        check_std(std)
        self.rnn = nn.RNN(1, hidden, nonlinearity="relu")
        self.output = nn.Linear(hidden, classes)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name == "rnn.weight_hh_l0":
                    nn.init.eye_(parameter)
                elif "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, std=std)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.flatten(1).t().unsqueeze(2)
        logits: Tensor = self.output(self.rnn(steps)[1][-1])
        return logits

    def segmented(self, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """The same in `SEGMENT` steps at a time, each run as `run(function, *tensors)`."""
        steps = x.flatten(1).t().unsqueeze(2)
        state = steps.new_zeros(1, len(x), self.rnn.hidden_size)
        for segment in steps.split(SEGMENT):
            state = run(lambda part, before: self.rnn(part, before)[1], segment, state)
        logits: Tensor = self.output(state[-1])
        return logits


def irnn(input_shape: tuple[int, ...], classes: int, hidden: int = 100, std: float = 0.001) -> IRNN:
    """`IRNN` for inputs of any shape: one step per entry. Nothing else depends on `input_shape`.

    Raises:
        UsageError: a size that is not a whole number of at least 1, or no standard deviation.
    """
    check_list("input_shape", input_shape)
    return IRNN(classes, hidden, std)
