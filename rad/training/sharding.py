"""A model and its optimizer, of which each of several processes keeps a part (torch's FSDP2).

Checkpoints hold the whole, so what is read of them is whole first, and then cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rad.errors import UsageError, first_line


def shard(model: nn.Module, optimizer: Optimizer, blocks: Collection[str], count: int) -> None:
    """Cut the parameters, and the optimizer's state of them, among all `count` processes, in place.

    Each of the modules named in `blocks` gathers its parameters for its own passes alone, unless
    another module holds one of them, too; the rest is gathered for the whole pass.

    Raises:
        UsageError: parameters that torch cannot cut.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    before = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(before[0].device.type, (count,))
    try:
        for block in _with_parameters_of_their_own(model, blocks):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise UsageError(
            f"training.parallel=fsdp cannot shard this model ({first_line(error)}); set "
            "training.parallel=ddp"
        ) from error
    cut = dict(model.named_parameters())
    after = [cut[names[id(parameter)]] for parameter in before]
    for old, new in zip(before, after, strict=True):
        if old in optimizer.state:
            optimizer.state[new] = _cut(optimizer.state.pop(old), new)
    following = iter(after)
    for group in optimizer.param_groups:
        group["params"] = [next(following) for _ in group["params"]]


def _with_parameters_of_their_own(model: nn.Module, blocks: Collection[str]) -> list[nn.Module]:
    everywhere, found = _holders(model), []
    for block in map(model.get_submodule, blocks):
        inside = _holders(block)
        if inside and all(everywhere[key] == number for key, number in inside.items()):
            found.append(block)
    return found


def _holders(module: nn.Module) -> Counter[int]:
    """In how many places each parameter is, by its id."""
    everywhere = module.named_modules(remove_duplicate=False)
    held = (each._parameters.values() for _, each in everywhere)
    return Counter(id(parameter) for own in held for parameter in own if parameter is not None)


def _cut(state: dict[str, Any], parameter: Any) -> dict[str, Any]:
    """This process's part of what an optimizer keeps of a parameter."""
    from torch.distributed.tensor import distribute_tensor

    where = parameter.device_mesh, parameter.placements
    return {
        name: distribute_tensor(value, *where, src_data_rank=None)
        if isinstance(value, Tensor) and value.shape == parameter.shape
        else value
        for name, value in state.items()
    }


@torch.no_grad()
def gathered(tree: Any, keep: bool) -> Any:
    """The same mappings and lists with whole tensors on the CPU in the place of those that are cut.

    All processes call it with the same; those that do not `keep` have None there.
    """
    from torch.distributed.tensor import DTensor

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(each) for key, each in value.items()}
        if isinstance(value, list):
            return [whole(each) for each in value]
        if not isinstance(value, DTensor):
            return value
        found = value.full_tensor()
        return found.cpu() if keep else None

    return whole(tree)
