"""What is refused of a pass that is to be planned for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rad.errors import UsageError


def check_recomputation(loss: Tensor) -> None:
    """Refuse reentrant checkpointing: layers run in its backward pass, which takes no `inputs=`."""
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise UsageError(
                "reentrant activation checkpointing cannot be planned for, since it shows its "
                "layers in the backward pass only: pass use_reentrant=False to "
                "torch.utils.checkpoint.checkpoint"
            )
        found.add(node)
        waiting += [before for before, _ in node.next_functions]


def check_gradients(gradients: Mapping[str, list[Tensor]]) -> None:
    """Refuse gradients that say nothing about which layer needs how much."""
    for name, of_layer in gradients.items():
        if not all(gradient.isfinite().all() for gradient in of_layer):
            raise UsageError(
                f"the example's gradient is not finite at layer {name!r}: give an example, a model "
                "and a loss in range, or a variant that needs no gradient, such as "
                "stochastic_rounding"
            )
    if any(gradients.values()) and not any(g.any() for each in gradients.values() for g in each):
        raise UsageError(
            "the example's gradient is zero in every layer, which tells nothing about their "
            "variances: give an example whose loss is not at its minimum (or a larger loss, where "
            "it vanishes), or a variant that needs no gradient, such as stochastic_rounding"
        )
