"""The networks on which partitioners of torch.compile are compared, small enough for one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.benchmarks.zoo import WORDS, ZOO, Specimen, classified, of_tokens
from rad.models import gpt


@dataclass(frozen=True)
class Compared:
    """What makes a network with a batch, and the size of the batch unless another is asked for."""

    make: Callable[[int], Specimen]
    batch: int


def _text(width: int, blocks: int, length: int) -> Callable[[int], Specimen]:
    """`rad.models.gpt`, whose blocks are nanoGPT's, with heads of 32 or 64."""

    def make(batch: int) -> Specimen:
        model = gpt(WORDS, length, blocks, width, width // (32 if width < 512 else 64))
        tokens, labels = (torch.randint(WORDS, (batch, length)) for _ in range(2))
        return Specimen(model, (tokens,), labels, of_tokens)

    return make


class GatedBlock(nn.Module):
    """down(silu(gate(x)) up(x)) behind an RMS norm, as in a LLaMA, added to x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * width // 3 // 32 * 32
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = (
            nn.Linear(width, inner, bias=False),
            nn.Linear(width, inner, bias=False),
        )
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., width)."""
        y = self.norm(x)
        output: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return output


def _gated(batch: int) -> Specimen:
    width = 512
    model = nn.Sequential(*(GatedBlock(width) for _ in range(3)), nn.Linear(width, 10))
    return classified(model, torch.randn(batch, width))


class Convolutions(nn.Sequential):
    """Two convolutions, each with its batch norm and ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for before in (channels, width):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Ronneberger et al.'s, of three levels. Shapes: (B, 3, H, W) -> (B, 2, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(
            Convolutions(before, own) for before, own in zip([3, *widths], widths, strict=False)
        )
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(2 * own, own, 2, stride=2) for own in widths[-2::-1]
        )
        self.up = nn.ModuleList(Convolutions(2 * own, own) for own in widths[-2::-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Of sides that 4 divides."""
        passed: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if passed else x)
            passed.append(x)
        for widen, level, beside in zip(self.widen, self.up, passed[-2::-1], strict=True):
            x = level(torch.cat([widen(x), beside], 1))
        scores: Tensor = self.head(x)
        return scores


def _segmented(batch: int) -> Specimen:
    labels = torch.randint(2, (batch, 64, 64))
    return Specimen(UNet(16), (torch.randn(batch, 3, 64, 64),), labels, F.cross_entropy)


def _convnext(batch: int) -> Specimen:
    """Of two stages; blocks count from the start, or hardly a gradient would pass them."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    stages = [CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 2)]
    model = ConvNeXt(stages, layer_scale=0.1, num_classes=10)
    return classified(model, torch.randn(batch, 3, 64, 64))


NETWORKS = {
    "gpt_128": Compared(_text(128, 4, 128), 8),
    "gpt_512": Compared(_text(512, 3, 128), 4),
    "gpt_1024": Compared(_text(1024, 2, 64), 4),
    "gpt_deep": Compared(_text(128, 12, 64), 2),
    "gpt2": Compared(ZOO["gpt2"], 8),
    "gated_mlp": Compared(_gated, 512),
    "resnet18": Compared(ZOO["resnet18"], 8),
    "unet": Compared(_segmented, 8),
    "convnext": Compared(_convnext, 8),
}
"""By name. gpt2 is that of the transformers library, which it needs."""
