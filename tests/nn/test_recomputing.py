"""Recomputed modules: torch's numbers, their inputs kept alone, buffers and draws of one run."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.sketches import DitheredRounding, Identity, StochasticRounding


class Block(nn.Module):
    """With running statistics, random masks and a power iteration, each of which changes state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.hidden = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 40))
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(40, 12)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        hidden = self.dropout(F.gelu(self.hidden(self.norm(x))))
        out = x + self.out(hidden).tanh()
        return out if scale is None else out * scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BLOCKS = ("blocks.0", "blocks.1")
X = torch.randn(30, 6)


def step(model: nn.Module, x: Tensor = X) -> list[Tensor]:
    """Loss and gradients of two steps, whose random masks are those of a seed, and the buffers."""
    torch.manual_seed(3)
    found = []
    for _ in range(2):
        loss = model(x).square().mean()
        found += [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    return found + [buffer.clone() for _, buffer in sorted(model.state_dict().items())]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_numbers_and_state_are_torchs(net: Net) -> None:
    again = rad.convert(net, Identity(), functions=False, recomputed=BLOCKS)
    kinds = (nn.Linear, nn.Dropout)
    outside = [m for name, m in again.named_modules() if not name.startswith("blocks")]
    assert all(type(m) not in kinds for m in outside)
    inside = [m for m in again.blocks.modules() if isinstance(m, kinds)]
    assert inside
    assert all(type(m).__module__.startswith("torch.") for m in inside)
    for found, expected in zip(step(again), step(copy.deepcopy(net)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_without_care_statistics_would_count_a_pass_twice(net: Net) -> None:
    """The control: torch's checkpoint by itself."""
    from torch.utils.checkpoint import checkpoint

    forward = net.blocks[0].forward
    net.blocks[0].forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    step(net)
    assert net.blocks[0].norm.num_batches_tracked == 4


def test_inputs_alone_are_kept(net: Net) -> None:
    again = rad.convert(net, Identity(), recomputed=BLOCKS)
    inputs = 2 * 30 * 12 * 4
    assert saved_bytes(lambda: again(X).sum()) <= inputs + 30 * (6 + 12) * 4 + 200
    assert saved_bytes(lambda: net(X).sum()) > 5 * inputs
    scale, x = torch.randn(30, 12, requires_grad=True), torch.randn(30, 12)
    block = again.blocks[0]
    assert saved_bytes(lambda: block(x, scale=scale)) >= 2 * 30 * 12 * 4  # by name, too


def test_a_graph_that_is_kept_gives_the_same_gradient_again(net: Net) -> None:
    again = rad.convert(net, Identity(), recomputed=BLOCKS)
    loss = again(X).square().mean()
    once, twice = (
        torch.autograd.grad(loss, list(again.parameters()), retain_graph=True) for _ in range(2)
    )
    assert all(map(torch.equal, once, twice))
    assert again.blocks[0].norm.num_batches_tracked == 1


def test_two_passes_before_one_backward_pass(net: Net) -> None:
    """Each pass's second run finds the buffers of its own first."""
    again = rad.convert(net, Identity(), functions=False, recomputed=BLOCKS)
    gradients = []
    for model in (net, again):
        torch.manual_seed(5)
        loss = model(X).square().mean() + model(2 * X).square().mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_what_lies_outside_is_sketched_and_what_lies_inside_is_not(net: Net) -> None:
    again = rad.convert(
        net, StochasticRounding(2), path=DitheredRounding(3), recomputed=("blocks.0",)
    )
    again(X).square().mean().backward()
    norm = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)))
    exact = rad.convert(norm, StochasticRounding(1), path=DitheredRounding(2), recomputed=("1",))
    for model in (norm, exact):
        model(X).square().sum().backward()
    torch.testing.assert_close(norm[1][1].weight.grad, exact[1][1].weight.grad)
    assert not torch.allclose(norm[0].weight.grad, exact[0].weight.grad)
    report = str(rad.report(exact, full=True))
    assert "Sequential, 1: its inputs; it runs again in the backward pass" in report
    assert "1.0" not in report


def test_functional_calls_inside_a_served_module_are_torchs() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.tanh()).softmax(-1)

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x * self.weight).sigmoid()

    model = Outer()
    again = rad.convert(model, Identity(), path=DitheredRounding(1), recomputed=("inner",))
    out = again(X)
    kept = saved_bytes(lambda: again(X))
    assert kept < saved_bytes(lambda: model(X)) / 2
    assert torch.equal(out, model(X))


def test_audits_reconcile(net: Net) -> None:
    again = rad.convert(net, StochasticRounding(2), recomputed=BLOCKS)
    audit = rad.audit(again, lambda: again(X).square().mean())
    assert audit.saved_bytes == audit.predicted_bytes
    assert audit.saved["blocks.0"] == audit.saved["blocks.1"] == 30 * 12 * 4
    assert not audit.unexpected


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: _loaded(_dumped(model))])
def test_copies_and_pickles_recompute(net: Net, how: Callable[[nn.Module], nn.Module]) -> None:
    for block in net.blocks:  # torch pickles none
        nn.utils.parametrize.remove_parametrizations(block.hidden, "weight")
    again = rad.convert(net, Identity(), recomputed=BLOCKS)
    other = how(again)
    assert type(other.blocks[0]) is type(again.blocks[0])
    assert isinstance(other.blocks[0], Block)
    assert type(other.blocks[0]).__name__ == "Block"
    assert saved_bytes(lambda: other(X)) == saved_bytes(lambda: again(X))


def _dumped(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def _loaded(text: bytes) -> nn.Module:
    found: nn.Module = torch.load(io.BytesIO(text), weights_only=False)
    return found


def test_names_of_parameters_and_buffers_stay(net: Net) -> None:
    again = rad.convert(net, Identity(), recomputed=BLOCKS)
    again(X).sum().backward()
    assert again.state_dict().keys() == net.state_dict().keys()


def test_evaluation_and_no_grad_run_as_they_are(net: Net) -> None:
    again = rad.convert(net, Identity(), recomputed=BLOCKS)
    with torch.no_grad():
        assert not again(X).requires_grad
    net.load_state_dict(again.state_dict())
    assert torch.equal(again.eval()(X), net.eval()(X))


def test_another_conversion_takes_modules_out_again(net: Net) -> None:
    again = rad.convert(rad.convert(net, Identity(), recomputed=BLOCKS), StochasticRounding(2))
    plain = rad.convert(net, StochasticRounding(2))
    assert saved_bytes(lambda: again(X)) == saved_bytes(lambda: plain(X))
    recomputed = rad.convert(net, Identity(), recomputed=BLOCKS)
    named = rad.convert(recomputed, {"blocks.1.out": StochasticRounding(2)})
    assert named.blocks[1].out.sketch == StochasticRounding(2)


@pytest.mark.parametrize(("name", "part"), [("key", "head"), ("rad_key", "")])
def test_a_refused_conversion_changes_nothing(net: Net, name: str, part: str) -> None:
    setattr(net.get_submodule(part), name, 1)
    with pytest.raises(UsageError, match=f"attribute '{name}'"):
        rad.convert(net, StochasticRounding(2), recomputed=BLOCKS, inplace=True)
    assert {type(module) for module in net.blocks} == {Block}


def test_layers_that_sketched_are_exact_where_they_are_recomputed(net: Net) -> None:
    sketched = rad.convert(net, StochasticRounding(1), path=DitheredRounding(1))
    again = rad.convert(sketched, Identity(), recomputed=BLOCKS)
    for found, expected in zip(step(again), step(rad.convert(net, Identity())), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_lists_that_a_module_fills_are_filled_once() -> None:
    class Collects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
            seen.append(x)
            return self.layer(x).tanh() * len(seen)

    model = nn.ModuleList([Collects(), Collects()])
    again = rad.convert(model, Identity(), functions=False, recomputed=("0", "1"))
    gradients = []
    for each in (model, again):
        seen: list[Tensor] = []
        loss = each[1](each[0](X, seen), seen).sum()
        gradients.append(torch.autograd.grad(loss, list(each.parameters())))
        assert len(seen) == 2
    assert all(map(torch.equal, *gradients))


def test_a_buffer_that_changes_late_is_refused(net: Net) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.register_buffer("seen", torch.zeros(()))
            self.late = False

        def forward(self, x: Tensor) -> Tensor:
            if self.late:
                self.seen.add_(1)
            return self.layer(x) * (1 + self.seen)

    again = rad.convert(nn.Sequential(Late()), Identity(), recomputed=("0",))
    again(X).sum().backward()
    again[0].late = True
    with pytest.raises(RuntimeError, match=r"the buffer '\.seen' of a recomputed Late changed"):
        again(X)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("blocks.2",), "there is no module 'blocks.2' to recompute"),
        (("",), "there is no module '' to recompute"),
        (("blocks", "blocks.0"), "lies in another one"),
        ("blocks.0", r"\['blocks.0'\]"),
    ],
)
def test_names_that_cannot_be_recomputed_are_refused(net: Net, names: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rad.convert(net, Identity(), recomputed=names)
    net.blocks[0].forward = lambda x: x
    with pytest.raises(UsageError, match="its forward was replaced by a function"):
        rad.convert(net, Identity(), recomputed=("blocks.0",), inplace=True)
    with pytest.raises(UsageError, match=r"there is no layer 'blocks\.1\.out' to sketch"):
        rad.convert(net, {"blocks.1.out": StochasticRounding(2)}, recomputed=("blocks.1",))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_numbers_are_torchs(backend: str) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.GELU(), nn.Linear(20, 6))
    model = nn.Sequential(nn.Linear(6, 6), block, nn.Linear(6, 2))
    again = rad.convert(model, Identity(), functions=False, recomputed=("1",))
    gradients = []
    for each in (model, torch.compile(again, backend=backend, fullgraph=True)):
        loss = each(X).square().sum()
        gradients.append(torch.autograd.grad(loss, list(each.parameters())))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert again[1][1].num_batches_tracked == 1
    torch.testing.assert_close(again[1][1].running_mean, model[1][1].running_mean)


@pytest.mark.parametrize("names", [("h.0", "h.1"), ("h.1",)])
def test_caches_of_keys_and_values_are_left_out(names: tuple[str, ...]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=30, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = transformers.GPT2LMHeadModel(config).train()
    names = tuple(f"transformer.{name}" for name in names)
    again = rad.convert(model, Identity(), functions=False, recomputed=names)
    tokens, gradients = torch.randint(30, (2, 9)), []
    for each in (model, again):
        loss = each(input_ids=tokens, labels=tokens, use_cache=True).loss
        gradients.append(torch.autograd.grad(loss, list(each.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    filled = transformers.DynamicCache()
    model(input_ids=tokens, past_key_values=filled)
    with pytest.raises(UsageError, match="a cache holds keys and values already"):
        again(input_ids=tokens, past_key_values=filled, labels=tokens)
