"""A small GPT: a decoder that predicts each token from those before it (Radford et al., 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.models.sizes import check_heads, check_sizes

STD = 0.02
"""Of all initial weights; what a block adds to the residual stream starts smaller, by its depth."""


class Block(nn.Module):
    """Causal attention and a feedforward layer, each behind a layer norm. Shapes: (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class GPT(nn.Module):
    """Shapes: tokens (B, T), T at most `context` -> scores of the next ones (B, T, vocabulary).

    Raises:
        UsageError: a size that is not a whole number of at least 1, or heads that do not divide
            the width.
    """

    def __init__(self, vocabulary: int, context: int, blocks: int, width: int, heads: int) -> None:
        super().__init__()
        check_sizes(vocabulary=vocabulary, context=context, blocks=blocks)
        check_heads(width, heads)
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    into_stream = name.endswith(("out.weight", "mlp.2.weight"))
                    nn.init.normal_(parameter, std=STD / (2 * blocks if into_stream else 1) ** 0.5)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(places)
        scores: Tensor = self.head(self.norm(self.blocks(x)))
        return scores


def gpt(vocabulary: int, context: int, blocks: int = 4, width: int = 128, heads: int = 4) -> GPT:
    """`GPT` with so many blocks of that width. Raises UsageError for sizes that it cannot have."""
    return GPT(vocabulary, context, blocks, width, heads)
