"""Functional calls inside a module's forward pass are served as layers are."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.nn.calls import Calls
from rad.nn.serving import calls_of, is_served, serve
from rad.sketches import DitheredRounding, Identity, StochasticRounding, fold_in

ROUNDED = StochasticRounding(4)
PATH = DitheredRounding(4)


class Functional(nn.Module):
    """A module that computes what it is given."""

    def __init__(self, function: Callable[..., Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Block(nn.Module):
    """A gated feedforward block, all of whose operators but two products are functional calls."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        """Shapes: (rows, width) -> the same."""
        gate, value = self.up(F.layer_norm(x, x.shape[-1:])).chunk(2, -1)
        return x + scale * self.down(F.silu(gate) * value)


CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor]]] = {
    "relu": (lambda m, x: F.relu(x), {}),
    "relu method": (lambda m, x: x.relu(), {}),
    "relu in place": (lambda m, x: F.relu(x * 1.0, inplace=True), {}),
    "relu_": (lambda m, x: (x * 1.0).relu_(), {}),
    "gelu": (lambda m, x: F.gelu(x), {}),
    "gelu tanh": (lambda m, x: F.gelu(x, approximate="tanh"), {}),
    "silu": (lambda m, x: F.silu(x), {}),
    "silu in place": (lambda m, x: F.silu(x * 1.0, inplace=True), {}),
    "mish": (lambda m, x: F.mish(x), {}),
    "softplus": (lambda m, x: F.softplus(x, 2.0), {}),
    "elu": (lambda m, x: F.elu(x, 0.5), {}),
    "leaky relu": (lambda m, x: F.leaky_relu(x, 0.1), {}),
    "tanh": (lambda m, x: torch.tanh(x), {}),
    "tanh method": (lambda m, x: x.tanh(), {}),
    "sigmoid": (lambda m, x: torch.sigmoid(x), {}),
    "selu": (lambda m, x: F.selu(x), {}),
    "celu": (lambda m, x: F.celu(x, 0.5), {}),
    "hardswish": (lambda m, x: F.hardswish(x * 1.0, inplace=True), {}),
    "log-sigmoid": (lambda m, x: F.logsigmoid(x), {}),
    "softsign": (lambda m, x: F.softsign(x), {}),
    "tanhshrink": (lambda m, x: F.tanhshrink(x), {}),
    "hardsigmoid": (lambda m, x: F.hardsigmoid(x), {}),
    "hardtanh": (lambda m, x: F.hardtanh(x, -0.5, max_val=0.7), {}),
    "relu6": (lambda m, x: F.relu6(x * 4), {}),
    "softshrink": (lambda m, x: F.softshrink(x, 0.3), {}),
    "hardshrink": (lambda m, x: F.hardshrink(x), {}),
    "square": (lambda m, x: x**2, {}),
    "cube": (lambda m, x: torch.pow(x, 3.0), {}),
    "cross entropy": (
        lambda m, x: F.cross_entropy(x.view(-1, 6), torch.arange(48) % 6).view(1),
        {},
    ),
    "max pool 1d": (lambda m, x: F.max_pool1d(x[0], 2), {}),
    "max pool 2d": (lambda m, x: F.max_pool2d(x, 2, stride=1), {}),
    "max pool 3d": (lambda m, x: F.max_pool3d(x[None], (1, 2, 2)), {}),
    "avg pool 2d": (lambda m, x: F.avg_pool2d(x, 2, 1, 1), {}),
    "avg pool 2d by names": (
        lambda m, x: F.avg_pool2d(x, kernel_size=3, padding=1, count_include_pad=False),
        {},
    ),
    "adaptive pool": (lambda m, x: F.adaptive_avg_pool2d(x, 2), {}),
    "linear": (lambda m, x: F.linear(x, m.w), {"w": torch.randn(5, 6)}),
    "linear and bias": (
        lambda m, x: F.linear(x, m.w, m.b),
        {"w": torch.randn(5, 6), "b": torch.randn(5)},
    ),
    "matmul by a weight": (lambda m, x: x @ m.w, {"w": torch.randn(6, 5)}),
    "matmul by a view of a weight": (lambda m, x: x @ m.w.t(), {"w": torch.randn(5, 6)}),
    "addmm": (
        lambda m, x: torch.addmm(m.b, x.view(-1, 6), m.w),
        {"w": torch.randn(6, 5), "b": torch.randn(5)},
    ),
    "product of matrices": (lambda m, x: x @ x.mT, {}),
    "bmm": (lambda m, x: torch.bmm(x[0], x[0].mT), {}),
    "product": (lambda m, x: x * x.tanh(), {}),
    "product by a parameter": (lambda m, x: x * m.w, {"w": torch.rand(6)}),
    "torch.mul": (lambda m, x: torch.mul(x, x.exp()), {}),
    "softmax": (lambda m, x: F.softmax(x, -1), {}),
    "softmax method": (lambda m, x: x.softmax(dim=1), {}),
    "torch.softmax": (lambda m, x: torch.softmax(x, 2), {}),
    "softmax of a type": (lambda m, x: x.softmax(-1, torch.float64).to(x.dtype), {}),
    "attention": (lambda m, x: F.scaled_dot_product_attention(x, x.tanh(), x + 1), {}),
    "causal attention": (
        lambda m, x: F.scaled_dot_product_attention(x, 2 * x, x + 1, is_causal=True),
        {},
    ),
    "layer norm": (lambda m, x: F.layer_norm(x, (6,), m.w, m.w), {"w": torch.rand(6)}),
    "rms norm": (lambda m, x: F.rms_norm(x, (6,), m.w), {"w": torch.rand(6)}),
    "instance norm": (
        lambda m, x: F.instance_norm(x, weight=m.w, bias=m.w),
        {"w": torch.rand(4)},
    ),
    "group norm": (lambda m, x: F.group_norm(x, 2, m.w, m.w), {"w": torch.rand(4)}),
}

every_case = pytest.mark.parametrize("name", CASES)


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A module that makes the call, and an input (2, 4, 6, 6) that requires a gradient."""
    function, parameters = CASES[name]
    model = Functional(function, **parameters).to(dtype)
    torch.manual_seed(1)
    return model, torch.randn(2, 4, 6, 6, dtype=dtype).requires_grad_()


def gradients(model: nn.Module, x: Tensor, grad_output: Tensor | None = None) -> list[Tensor]:
    output = model(x)
    if grad_output is None:
        grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(x)
    return list(torch.autograd.grad(output, [x, *model.parameters()], grad_output))


@every_case
def test_the_forward_pass_is_torchs(name: str) -> None:
    model, x = case(name)
    got, want = rad.convert(model, ROUNDED, path=PATH)(x), model(x)
    if "attention" in name:  # torch's fused kernel sums in another order
        torch.testing.assert_close(got, want)
    else:
        assert torch.equal(got, want)


@every_case
def test_with_identity_and_no_path_gradients_are_torchs(name: str) -> None:
    model, x = case(name, torch.float64)
    for got, want in zip(
        gradients(rad.convert(model, Identity()), x), gradients(model, x), strict=True
    ):
        torch.testing.assert_close(got, want)


@every_case
def test_the_call_keeps_less(name: str) -> None:
    model, x = case(name)
    if name != "cross entropy":
        x = x.detach().repeat(1, 1, 8, 1).requires_grad_()
    if name == "bmm" or name == "product of matrices":
        x = x.detach()[..., :6, :].repeat(1, 1, 1, 12).requires_grad_()
    kept, before = saved_bytes(lambda: rad.convert(model, ROUNDED, path=PATH)(x * 1.0)), 0
    before = saved_bytes(lambda: model(x * 1.0))
    limit = 0.1 if name.startswith("relu") else 0.65
    assert kept <= limit * before


def test_a_call_draws_from_seed_place_pass_and_number() -> None:
    model = Functional(lambda m, x: F.gelu(F.gelu(x)))
    converted = rad.convert(nn.Sequential(nn.Linear(6, 6), model), ROUNDED, seed=5)[1]
    x = torch.randn(3, 6, requires_grad=True)
    converted(x)
    output = converted(x)
    kept = output.grad_fn.saved_tensors[0], output.grad_fn.next_functions[0][0].saved_tensors[0]
    key = fold_in(fold_in(rad.sketches.make_key(5), 1), 1)
    assert [int(k) for k in kept] == [int(fold_in(key, 2)), int(fold_in(key, 1))]
    assert dict(converted.named_buffers())["rad_count"] == 2
    assert not converted.state_dict()


def test_a_block_is_unbiased_and_a_path_is_what_makes_its_input_gradient_random() -> None:
    block = Block().double()
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    converted = rad.convert(block, DitheredRounding(3), seed=3, path=DitheredRounding(3))
    g = torch.randn(4, 8, dtype=torch.float64)

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([each.flatten() for each in gradients(model, x, g)])

    samples = torch.stack([flat(converted) for _ in range(600)])
    assert samples[:, : x.numel()].std(0).min() > 0
    check_unbiased(samples, flat(block))
    check_biased_is_caught(samples, flat(block))


def test_inner_modules_have_their_calls_for_themselves() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.frozen = Inner(), Inner()

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.frozen(self.inner(F.gelu(x))))

    model = rad.convert(Outer(), ROUNDED)
    model.frozen.eval()
    x = torch.randn(3, 64, requires_grad=True)
    saved = saved_bytes(lambda: model(x * 1.0))
    assert saved < 2 * x.nbytes  # three of four calls are rounded, and that in eval() is torch's
    assert saved > x.nbytes
    counts = {name: int(b) for name, b in model.named_buffers() if name.endswith("count")}
    assert counts == {"rad_count": 1, "inner.rad_count": 1, "frozen.rad_count": 0}


def test_layers_inside_keep_what_their_own_sketch_says() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gelu, self.b = nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6).eval()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(self.gelu(self.a(x))))

    model = rad.convert(Net(), {}).double()
    serve(model, Calls(ROUNDED, PATH))
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert is_served(model)
    plain = rad.convert(model, Identity(), functions=False)
    for got, want in zip(gradients(model, x), gradients(plain, x), strict=True):
        assert torch.equal(got, want)
    assert model.rad_count == 0


def test_a_weight_of_a_layer_below_is_used_as_that_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(64, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.a.weight, self.a.bias)

    model = rad.convert(Net(), {"a": rad.DifferentSample(0.1)})
    x = torch.randn(50, 64)
    assert saved_bytes(lambda: model(x * 1.0)) < 0.2 * x.nbytes
    assert model.a.calls == 1


def leaves_no_mode() -> bool:
    return not _get_current_function_mode_stack()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_pass_leaves_nothing_behind(error: type[BaseException]) -> None:
    def fail(module: nn.Module, x: Tensor) -> Tensor:
        if getattr(module, "fails", False):
            raise error
        return F.relu(x)

    model = rad.convert(Functional(fail), ROUNDED)
    model.fails = True
    with pytest.raises(error):
        model(torch.randn(3, requires_grad=True))
    assert leaves_no_mode()


@pytest.mark.parametrize("frozen", ["eval", "no_grad", "no input gradient"])
def test_nothing_is_served_where_nothing_is_kept(frozen: str) -> None:
    model, x = case("gelu")
    converted = rad.convert(model, ROUNDED)
    if frozen == "eval":
        converted.eval()
        assert torch.equal(gradients(converted, x)[0], gradients(model, x)[0])
    elif frozen == "no_grad":
        with torch.no_grad():
            converted(x)
    else:
        converted(x.detach())
    assert converted.rad_count == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    block = rad.convert(Block().double(), DitheredRounding(3), path=DitheredRounding(3))
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    g = torch.randn(4, 8, dtype=torch.float64)
    output = checkpoint(block, x, use_reentrant=reentrant)
    output.backward(g)
    passes = int(block.rad_count)
    again = rad.convert(Block().double(), DitheredRounding(3), path=DitheredRounding(3))
    for _ in range(passes - 1):  # the pass whose draws the gradient has is the last
        again(x)
    x_grad, *_ = gradients(again, x, g)
    torch.testing.assert_close(x.grad, x_grad)


def test_copies_pickles_and_subclasses() -> None:
    model = rad.convert(Block(), ROUNDED, path=PATH)
    x, g = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    want = gradients(copy.deepcopy(model), x, g)
    for each in (copies[0], *copies[2:]):
        assert isinstance(each, Block)
        assert is_served(each)
        assert all(map(torch.equal, gradients(each, x, g), want))
    shallow = copies[1]
    shallow._modules = dict(model._modules, up=nn.Linear(8, 16))
    assert not torch.equal(shallow(x), model(x))
    assert type(model).__name__ == "Block"
    assert inspect.signature(model.forward) == inspect.signature(Block().forward)
    assert type(model).forward.__doc__ == Block.forward.__doc__
    assert list(model.state_dict()) == list(Block().state_dict())


def test_functional_call_swaps_parameters() -> None:
    model = rad.convert(Block(), ROUNDED)
    x = torch.randn(4, 8)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, zeros, (x,)), x)
    assert torch.equal(model(x, scale=0.0), x)


def test_under_transforms_calls_are_torchs() -> None:
    model, x = case("gelu")
    converted = rad.convert(model, ROUNDED)
    got = torch.func.vmap(torch.func.grad(lambda x: converted(x).sum()))(x.detach())
    want = torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(x.detach())
    assert torch.equal(got, want)


def test_convert_again_and_not_at_all() -> None:
    model = rad.convert(Block(), ROUNDED, path=PATH)
    again = rad.convert(model, rad.StochasticRounding(8))
    assert calls_of(again) == Calls(rad.StochasticRounding(8), PATH, 0, 2)
    plain = rad.convert(model, ROUNDED, functions=False)
    assert type(plain) is Block
    assert not list(plain.buffers(recurse=False))
    assert not hasattr(plain, "rad_calls")
    x = torch.randn(4, 8)
    assert torch.equal(plain(x), model(x))


def test_a_name_that_is_taken_is_refused() -> None:
    class Taken(Block):
        rad_key = 1

    with pytest.raises(UsageError, match=r"attribute 'rad_key'.*rename"):
        rad.convert(Taken(), ROUNDED)


def test_several_passes_before_one_backward_pass() -> None:
    model = rad.convert(Block().double(), ROUNDED, path=PATH)
    xs = [torch.randn(4, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    g = torch.randn(4, 8, dtype=torch.float64)
    both = [model(x) for x in xs]
    together = torch.autograd.grad(both, xs, [g, g])
    again = rad.convert(Block().double(), ROUNDED, path=PATH)
    alone = [torch.autograd.grad(again(x), x, g)[0] for x in xs]
    assert all(map(torch.equal, together, alone))
