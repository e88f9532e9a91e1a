"""Blocks that work through their batch in slices: the gradients of the whole batch."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rad.functional import in_slices


def block() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def batch(rows: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, dtype=torch.float64, generator=generator).requires_grad_()


def gradients(block: nn.Module, x: Tensor, size: int | None) -> list[Tensor | None]:
    output = block(x) if size is None else in_slices(block, x, size)
    weights = torch.linspace(0, 1, output.numel(), dtype=output.dtype).view_as(output)
    wanted = [x, *block.parameters()]
    return list(torch.autograd.grad((output * weights).sum(), wanted, allow_unused=True))


@pytest.mark.parametrize("size", [1, 3, 5, 9, 10, 11])
def test_gradients_are_those_of_the_whole_batch(size: int) -> None:
    one, x = block(), batch()
    torch.testing.assert_close(in_slices(one, x, size), one(x))
    for of_slices, whole in zip(gradients(one, x, size), gradients(one, x, None), strict=True):
        torch.testing.assert_close(of_slices, whole)


def test_frozen_parameters_and_inputs_get_none() -> None:
    one, x = block(), batch().detach()
    one[0].weight.requires_grad_(False)
    in_slices(one, x, 3).square().sum().backward()
    assert one[0].weight.grad is None
    assert one[0].bias.grad is not None
    frozen = block().requires_grad_(False)
    assert not in_slices(frozen, x, 3).requires_grad
    given = batch()
    in_slices(frozen, given, 3).sum().backward()
    assert given.grad is not None


def test_parameters_that_the_block_does_not_use_have_no_gradient() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 2).double(), nn.Linear(6, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    _, *found = gradients(Half(), batch(), 4)
    assert [each is None for each in found] == [False, False, True, True]


def test_shared_parameters_sum_over_their_uses() -> None:
    layer = nn.Linear(6, 6).double()
    twice, x = nn.Sequential(layer, nn.Tanh(), layer), batch()
    for of_slices, whole in zip(gradients(twice, x, 4), gradients(twice, x, None), strict=True):
        torch.testing.assert_close(of_slices, whole)


def test_short_types_are_summed_in_float32() -> None:
    one = nn.Sequential(nn.Linear(4, 1, bias=False)).bfloat16()
    x = torch.ones(4096, 4, dtype=torch.bfloat16)
    in_slices(one, x, 1).sum().backward()
    # One by one in bfloat16 the sum would stop at 256, where adding one changes nothing.
    assert one[0].weight.grad.eq(4096).all()


def test_a_second_backward_pass_needs_the_graph_to_be_retained() -> None:
    one, x = block(), batch()
    loss = in_slices(one, x, 4).square().sum()
    loss.backward(retain_graph=True)
    first = one[0].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(one[0].weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_gradients_of_gradients_are_refused() -> None:
    one, x = block(), batch()
    (grad,) = torch.autograd.grad(in_slices(one, x, 4).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="slice_batches"):
        grad.sum().backward()


def test_hooks_of_parameters_see_the_gradient_of_the_batch_once() -> None:
    one, x = block(), batch()
    _, expected, *_ = gradients(one, x, None)
    seen: list[Tensor] = []
    one[0].weight.register_hook(seen.append)
    in_slices(one, x, 4).pow(1).backward(torch.linspace(0, 1, 30).view(10, 3).double())
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected)


def test_blocks_that_mix_examples_are_refused() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0, keepdim=True)

    with pytest.raises(RuntimeError, match="keep the examples apart"):
        in_slices(Mean(), batch(), 4)


def test_nothing_of_a_slice_is_held_between_forward_and_backward() -> None:
    """Neither the input of a first layer that does not need it, nor any output."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return 2 * grad

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Twice.apply(x)
            return out

    from rad.memory import saved_bytes

    x = batch(64)
    assert saved_bytes(lambda: in_slices(Module(), x, 8)) == 0
    assert saved_bytes(lambda: in_slices(nn.Tanh(), x, 8)) == 64 * 6 * 8


def test_under_activation_checkpointing() -> None:
    one, x = block(), batch()
    out = checkpoint(lambda x: in_slices(one, x, 4), x, use_reentrant=False)
    out.square().sum().backward()
    other = copy.deepcopy(one)
    other.zero_grad()
    other(x.detach()).square().sum().backward()
    for mine, whole in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, whole.grad)


def test_under_vmap_and_without_gradients_it_is_the_block() -> None:
    one, x = block(), batch()
    nested = torch.stack([x, 2 * x]).detach()
    expected = torch.stack([one(x), one(2 * x)])
    torch.testing.assert_close(torch.vmap(lambda x: in_slices(one, x, 4))(nested), expected)
    with torch.no_grad():
        torch.testing.assert_close(in_slices(one, x, 4), one(x))
