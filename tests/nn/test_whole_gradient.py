"""The gradients of whole models, parameter by parameter, are unbiased.

Sketches of layers make the gradients of their weights random, a path those of inputs, too, so that
what reaches an early parameter is a sum over paths of products of many draws. Its mean is exact,
not to first order: every factor is unbiased by itself, and along a path no draw is used twice
(`test_along_a_path_no_draw_is_used_twice`), so that the mean of the product is the product of the
means. Norms and softmaxes read one draw twice, and subtract the known mean of its square: without
that the same test at the same n finds them out (`test_uncorrected_squares_are_caught`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.nn.serving import is_served
from rad.sketches import DifferentSample, DitheredRounding, Identity, Sketch, StochasticRounding


class BasicBlock(nn.Module):
    """Two convolutions with batch norms, and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2)
        )
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 3)
        self.blocks = nn.Sequential(BasicBlock(3), BasicBlock(3))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss. Shapes: (N, 2, H, W), (N,) -> ()."""
        pooled = F.adaptive_avg_pool2d(self.blocks(self.stem(images)), 1)
        return F.cross_entropy(self.head(pooled.flatten(1)), labels)


class GPTBlock(nn.Module):
    """Causal attention and a feedforward layer, norms first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).movedim(1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A head that is tied to the embedding."""

    def __init__(self, width: int = 4, words: int = 5) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(4, width)
        self.block, self.norm = GPTBlock(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss. Shapes: (N, T), (N, T) -> ()."""
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return F.cross_entropy(self.head(self.norm(self.block(x))).flatten(0, 1), targets.flatten())


class Gated(nn.Module):
    """Hand-written attention and a gated feedforward layer, with RMS norms."""

    def __init__(self, width: int = 4, words: int = 5) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(width, 6),
            nn.Linear(width, 6),
            nn.Linear(6, width),
        )

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss. Shapes: (N, T), (N, T) -> ()."""
        x = self.words(tokens)
        y = self.norm1(x)
        scores = torch.matmul(self.q(y), self.k(y).transpose(-2, -1)) / math.sqrt(x.shape[-1])
        x = x + self.out(torch.matmul(F.softmax(scores, -1), self.v(y)))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return F.cross_entropy(self.head(self.norm3(x)).flatten(0, 1), targets.flatten())


MODELS: dict[str, Callable[[], nn.Module]] = {"resnet": ResNet, "gpt": GPT, "gated": Gated}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A model and a batch, in float64. All parameters are drawn, those of norms too."""
    torch.manual_seed(1)
    model = MODELS[name]().double()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    if name == "resnet":
        return model, (torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([2, 0, 1]))
    tokens = torch.randint(5, (2, 5))
    return model, (tokens[:, :-1], tokens[:, 1:])


@dataclass(frozen=True)
class Case:
    """What is kept, and how often the batch stands in each of the passes.

    Copies have draws of their own: a pass gives the mean over so many for little more time.
    """

    sketch: Sketch
    path: Sketch
    copies: int
    passes: int = 200


CASES: dict[str, tuple[str, Case]] = {
    "resnet rounded": ("resnet", Case(StochasticRounding(3), DitheredRounding(3), 64, 400)),
    "resnet sampled": ("resnet", Case(DifferentSample(0.5), DitheredRounding(4), 128, 400)),
    "gpt rounded": ("gpt", Case(StochasticRounding(3), DitheredRounding(3, 32), 256)),
    "gpt sampled": ("gpt", Case(DifferentSample(0.5), DitheredRounding(4, 32), 256)),
    "gated rounded": ("gated", Case(StochasticRounding(3), DitheredRounding(3), 256)),
    "gated sampled": ("gated", Case(DifferentSample(0.5), DitheredRounding(4), 256)),
}

COARSE: dict[str, Case] = {
    "gpt": Case(Identity(), DitheredRounding(2, 32), 768, 400),
    "gated": Case(Identity(), DitheredRounding(2), 256, 400),
}
"""Grids so coarse that the mean of a squared error matters. Of a batch norm it is divided by the
numbers of a channel: too little to be found in a whole model."""


def gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(model(*batch), list(model.parameters()))


def repeated(batch: tuple[Tensor, Tensor], copies: int) -> tuple[Tensor, Tensor]:
    images, labels = (part.repeat(copies, *[1] * (part.dim() - 1)) for part in batch)
    return images, labels


def drawn(name: str, case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each parameter n gradients by independent draws, and torch's."""
    model, batch = made(name)
    converted = rad.convert(model, case.sketch, seed=2, path=case.path)
    batches = repeated(batch, case.copies)
    passes = [gradients(converted, batches) for _ in range(case.passes)]
    for truth, *samples in zip(gradients(model, batch), *passes, strict=True):
        yield torch.stack(samples), truth


def check_all_unbiased(name: str, case: Case) -> None:
    for samples, truth in drawn(name, case):
        check_unbiased(samples, truth)


@every_model
def test_with_identity_gradients_are_torchs(name: str) -> None:
    model, batch = made(name)
    converted = rad.convert(model, Identity(), path=Identity())
    assert any(map(is_served, converted.modules()))
    for got, want in zip(gradients(converted, batch), gradients(model, batch), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_every_parameter_is_unbiased(case: str) -> None:
    for samples, truth in drawn(*CASES[case]):
        check_unbiased(samples, truth)
        check_biased_is_caught(samples, truth)


@pytest.mark.parametrize("name", COARSE)
def test_uncorrected_squares_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_all_unbiased(name, COARSE[name])
    for module in ("attention_passes", "norm_gradients", "softmax"):
        monkeypatch.setattr(import_module(f"rad.functional.{module}"), "error_variances", _none)
    with pytest.raises(AssertionError, match="off by"):
        check_all_unbiased(name, COARSE[name])


def _none(kept: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    return kept[-1].new_zeros(len(kept[-1]), dtype=dtype)


@pytest.mark.parametrize("case", CASES)
def test_along_a_path_no_draw_is_used_twice(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where all layers have one key, some path meets it twice."""
    name, kept = CASES[case]
    model, batch = made(name)
    converted = rad.convert(model, kept.sketch, path=kept.path)
    loss = converted(*batch)
    assert len(keys_below(loss.grad_fn, {}, set())) > 5
    assert not used_twice(loss)
    monkeypatch.setattr("rad.nn.base.advance", lambda key, calls, replica: key * 0)
    assert used_twice(converted(*batch))


def used_twice(loss: Tensor) -> set[int]:
    """Keys that two operators hold of which one follows the other in the graph."""
    found: set[int] = set()
    keys_below(loss.grad_fn, {}, found)
    return found


def keys_below(
    node: torch.autograd.graph.Node | None,
    below: dict[torch.autograd.graph.Node, set[int]],
    twice: set[int],
) -> set[int]:
    """The keys that a node and all that it leads to hold; adds to `twice` those met again."""
    if node is None:
        return set()
    if node not in below:
        saved = [t for t in getattr(node, "saved_tensors", ()) if t is not None]
        own = {int(t) for t in saved if t.dtype == torch.int64 and t.dim() == 0}
        beyond = [keys_below(following, below, twice) for following, _ in node.next_functions]
        later = set().union(*beyond)
        twice |= own & later
        below[node] = own | later
    return below[node]
