"""Two processes that train one model: run as `python distributed_checks.py RANK FILE`.

Prints as JSON, on rank 0, what the test asserts.
"""

import copy
import json
import os
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import rad
from rad.nn.serving import is_served
from rad.sketches import DitheredRounding, SameSample, fold_in

STEPS = 250
SKETCH = SameSample(0.25)
"""One column of four."""


def all_ranks(value: Tensor) -> list[Tensor]:
    values = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
    distributed.all_gather(values, value)
    return values


def averaged_gradients(model: nn.Module, layer: rad.nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each step: the gradient, and what the keys of both ranks say that it should be."""
    gradients, expected = [], []
    grad_output = torch.ones(len(x), 2, dtype=x.dtype)
    for step in range(STEPS):
        model.zero_grad()
        model(x).backward(grad_output)
        parts = []
        for rank in range(2):
            key = fold_in(fold_in(layer.key, rank), step)
            x_hat = SKETCH.decompress(SKETCH.compress(x, key), x.shape, x.dtype, key)
            parts.append(grad_output.t() @ x_hat)
        expected.append((parts[0] + parts[1]) / 2)
        gradients.append(layer.weight.grad.clone())
    return torch.stack(gradients), torch.stack(expected)


def data_parallel(seed: int, inplace: bool) -> dict[str, float | bool]:
    """One layer on the same input in both processes: the error of the averaged gradient."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    layer = nn.Linear(4, 2, dtype=torch.float64)
    if inplace:
        model: nn.Module = DistributedDataParallel(layer)
        assert rad.convert(model, SKETCH, seed, inplace=True) is model
        converted = model.module
    else:
        converted = rad.convert(layer, SKETCH, seed)
        model = DistributedDataParallel(converted)
    assert isinstance(converted, rad.nn.Linear)
    got, expected = averaged_gradients(model, converted, x)
    truth = torch.ones(2, 3, dtype=x.dtype) @ x
    squares = (got - truth).flatten(1).square().sum(1)
    alone = converted.weight_grad_variance(x, torch.ones(3, 2, dtype=x.dtype), SKETCH)
    return {
        "as the keys say": torch.allclose(got, expected),
        "mean square": squares.mean().item(),
        "standard error": squares.std().item() / STEPS**0.5,
        "variance alone": alone.item(),
    }


def keys_of_ranks(replica: int | None) -> int:
    """How many different keys two processes draw with."""
    layer = rad.nn.Linear(4, 4, sketch=SKETCH)
    layer.replica = replica
    return len({int(key) for key in all_ranks(layer.next_key())})


def fully_sharded() -> bool:
    """Whether layers that are sharded already are converted and get averaged gradients."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plain.load_state_dict(model.state_dict())
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    rad.convert(model, rad.Identity(), inplace=True)
    assert isinstance(model[0], rad.nn.Linear)
    x = torch.randn(3, 4)
    model(x).sum().backward()
    plain(x).sum().backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    return all(torch.allclose(p.grad.full_tensor(), q.grad) for p, q in pairs)


class Served(nn.Module):
    """A gated block, whose norm, product and activation function are functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(F.layer_norm(x, (8,))).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


def served(sharded: bool, inplace: bool) -> dict[str, bool]:
    """Whether gradients of a served module are the mean of the ranks', each with its own draws.

    What a rank's should be is that of a copy by itself, which has the same place and passes.
    """
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    block, x = Served(), torch.randn(4, 8)
    rounding = DitheredRounding(3)
    alone = rad.convert(copy.deepcopy(block), rounding, path=rounding)

    def wrapped(model: nn.Module) -> nn.Module:
        return fully_shard(model) if sharded else DistributedDataParallel(model)

    if inplace:
        model = wrapped(block)
        assert rad.convert(model, rounding, path=rounding, inplace=True) is model
    else:
        model = wrapped(rad.convert(block, rounding, path=rounding))
    inner = model if sharded else model.module
    assert isinstance(inner, nn.Module)
    found = {"served": is_served(inner), "mean": True, "own draws": True}
    for _ in range(2):
        model.zero_grad()
        alone.zero_grad()
        model(x).square().sum().backward()
        alone(x).square().sum().backward()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            grads = all_ranks(q.grad)
            got = p.grad.full_tensor() if sharded else p.grad
            found["mean"] &= torch.allclose(got, torch.stack(grads).mean(0), atol=1e-5)
            if p.dim() > 1:
                found["own draws"] &= not torch.equal(*grads)
    return found


def main() -> None:
    rank, file = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    results = {
        "before": data_parallel(seed=rank, inplace=False),
        "inplace": data_parallel(seed=0, inplace=True),
        "keys": keys_of_ranks(None),
        "keys of one replica": keys_of_ranks(1),
        "sharded": fully_sharded(),
        "served": [
            served(sharded, inplace) for sharded in (False, True) for inplace in (False, True)
        ],
    }
    if rank == 0:
        print(json.dumps(results), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group, and abort a process that ends beside them


if __name__ == "__main__":
    main()
