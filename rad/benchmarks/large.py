"""Models too large for this machine, and small ones of their families, whose numbers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rad.benchmarks.zoo import Specimen, classified
from rad.errors import UsageError


@dataclass(frozen=True)
class Family:
    """How a large model and a small one of its kind are made, with the same names of modules.

    `large(batch, length, repeats)` has so many of the blocks that repeat; the model itself has
    `repeats` of them. `length` is that of the sequences, or the images' height and width, and
    `least` the smallest that the model takes. `about` says what else the small one is.
    """

    large: Callable[[int, int, int], Specimen]
    small: Callable[[int, int], Specimen]
    repeats: int
    length: int
    least: int
    about: str


def family(name: str) -> Family:
    """Raises UsageError for an unknown name."""
    if name not in LARGE:
        raise UsageError(f"unknown model {name!r}: choose one of {', '.join(LARGE)}")
    return LARGE[name]


def checked_length(name: str, length: int | None) -> int:
    """That length, or the model's own (None). Raises UsageError for one too short."""
    found = family(name)
    wanted = found.length if length is None else length
    if wanted < found.least:
        raise UsageError(f"length is {wanted}; give at least {found.least} for {name}")
    return wanted


def large(name: str, batch: int, length: int | None, repeats: int) -> Specimen:
    """The large model with so many repeated blocks. Raises UsageError for a length too short."""
    found, wanted = family(name), checked_length(name, length)
    return _made(lambda: found.large(batch, wanted, repeats))


def small(name: str, batch: int, repeats: int, seed: int = 0) -> Specimen:
    """The small model of the family, with random weights that depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return _made(lambda: family(name).small(batch, repeats))


def _made(make: Callable[[], Specimen]) -> Specimen:
    try:
        return make()
    except ImportError as error:
        raise UsageError(f"this model needs {error.name}: pip install {error.name}") from error


def _gpt2(batch: int, length: int, **sizes: Any) -> Specimen:
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(n_positions=length, **{**rates, **sizes})
    return _of_tokens(GPT2LMHeadModel(config), config.vocab_size, batch, length)


def _llama(batch: int, length: int, **sizes: Any) -> Specimen:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(max_position_embeddings=length, **sizes)
    return _of_tokens(LlamaForCausalLM(config), config.vocab_size, batch, length)


def _of_tokens(model: Any, words: int, batch: int, length: int) -> Specimen:
    tokens = torch.randint(words, (batch, length))
    return Specimen(model.train(), {"input_ids": tokens, "labels": tokens})


def _resnet(batch: int, size: int, repeats: int, classes: int, width: int) -> Specimen:
    from torchvision.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, [3, 8, repeats, 3], num_classes=classes, width_per_group=width)
    return classified(model.train(), torch.randn(batch, 3, size, size))


_SMALL = {"vocab_size": 500, "bos_token_id": 0, "eos_token_id": 0}

LARGE = {
    "gpt2_xl": Family(
        lambda batch, length, n: _gpt2(batch, length, n_layer=n, n_embd=1600, n_head=25),
        lambda batch, n: _gpt2(batch, 64, n_layer=n, n_embd=128, n_head=4, **_SMALL),
        repeats=48,
        length=1024,
        least=2,
        about="width 128, sequences of 64, random weights and tokens",
    ),
    "llama_7b": Family(
        lambda batch, length, n: _llama(batch, length, num_hidden_layers=n),
        lambda batch, n: _llama(
            batch,
            64,
            num_hidden_layers=n,
            num_attention_heads=4,
            num_key_value_heads=4,
            hidden_size=128,
            intermediate_size=344,
            **_SMALL,
        ),
        repeats=32,
        length=2048,
        least=2,
        about="width 128, sequences of 64, random weights and tokens",
    ),
    "resnet152": Family(
        lambda batch, size, n: _resnet(batch, size, n, 1000, 64),
        lambda batch, n: _resnet(batch, 32, n, 10, 16),
        repeats=36,
        length=224,
        least=32,
        about="a quarter of the bottlenecks' inner width, images of 32 x 32, random numbers",
    ),
}
