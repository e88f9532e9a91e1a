"""Models that people train, as their libraries have them, with a batch and a loss.

Small enough for a CPU: images of 64 x 64, sequences of 64, a few blocks of width 128. Those of the
transformers library, whose models return their loss, need it installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rad.errors import UsageError

LENGTH, WIDTH, HEADS, DEPTH, WORDS = 64, 128, 4, 3, 500

BLOCKS = frozenset(
    (
        *("BasicBlock", "Bottleneck", "InvertedResidual", "MBConv", "_DenseLayer", "CNBlock"),
        *("SwinTransformerBlock", "EncoderBlock", "TransformerEncoderLayer"),
        *("GPT2Block", "BertLayer", "LlamaDecoderLayer", "T5Block"),
        *("Block", "GatedBlock", "Convolutions"),
    )
)
"""Classes of the blocks that checkpointing recomputes one by one."""


Inputs = tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Specimen:
    """A model, its arguments (positional or by name), and a loss of its output and the labels.

    Without a loss the model returns one. Examples are the entries of the inputs' first axes.
    """

    model: nn.Module
    inputs: Inputs
    labels: Tensor | None = None
    loss: Callable[[Any, Tensor], Tensor] | None = None

    def loss_of(self, model: nn.Module, part: slice = slice(None)) -> Tensor:
        """The loss of that model on those examples."""
        if isinstance(self.inputs, dict):
            output = model(**{name: x[part] for name, x in self.inputs.items()})
        else:
            output = model(*(x[part] for x in self.inputs))
        return self.loss_of_output(output, part)

    def loss_of_output(self, output: Any, part: slice = slice(None)) -> Tensor:
        """The loss of what a model has returned for those examples."""
        if self.loss is None or self.labels is None:
            found: Tensor = output.loss
            return found
        return self.loss(output, self.labels[part])


Makers = Mapping[str, Callable[[int], Specimen]]
"""By name, what makes a model and a batch of a size."""


def specimen(name: str, batch: int, seed: int = 0, among: Makers | None = None) -> Specimen:
    """A model of `ZOO` with random weights, without dropout, and a random batch of that size.

    Or one `among` others. Without dropout gradients of several programs can be compared. Raises
    UsageError for an unknown name and where its library is not installed.
    """
    makers = ZOO if among is None else among
    if name not in makers:
        raise UsageError(f"unknown model {name!r}: choose among {', '.join(makers)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            found = makers[name](batch)
        except ImportError as error:
            raise UsageError(f"{name} needs {error.name}: pip install {error.name}") from error
        _prepare(found.model)
    found.model.train()
    return found


def _prepare(model: nn.Module) -> None:
    """No dropout, and no head of zeros."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
        elif type(module).__name__ == "StochasticDepth":
            vars(module)["p"] = 0.0
        elif isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)  # or no gradient passes, as in ViT's head


def checkpointed(model: nn.Module) -> nn.Module:
    """The model, every block of which is recomputed in the backward pass, in place.

    By its own means where it has them, as models of the transformers library do. Raises UsageError
    where it has none of `BLOCKS`.
    """
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        return model
    blocks = [module for module in model.modules() if type(module).__name__ in BLOCKS]
    if not blocks:
        raise UsageError(f"{type(model).__name__} has no blocks to recompute: add them to BLOCKS")
    for block in blocks:
        block.forward = _recomputed(block.forward)
    return model


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _images(name: str, size: int = 64) -> Callable[[int], Specimen]:
    def make(batch: int) -> Specimen:
        import torchvision

        model = getattr(torchvision.models, name)(num_classes=10)
        return classified(model, torch.randn(batch, 3, size, size))

    return make


def classified(model: nn.Module, x: Tensor) -> Specimen:
    """A model of ten classes, with random labels."""
    return Specimen(model, (x,), torch.randint(10, x.shape[:1]), F.cross_entropy)


def _vit(batch: int) -> Specimen:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=10)
    return classified(model, torch.randn(batch, 3, 64, 64))


class _Tagger(nn.Module):
    """torch's encoder, and a class for each token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (batch, length) -> (batch, length, 10)."""
        output: Tensor = self.head(self.encoder(self.embedding(tokens)))
        return output


def _encoder(batch: int) -> Specimen:
    tokens, labels = torch.randint(WORDS, (batch, LENGTH)), torch.randint(10, (batch, LENGTH))
    return Specimen(_Tagger(), (tokens,), labels, of_tokens)


def of_tokens(output: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of (batch, length, classes) scores and (batch, length) labels."""
    return F.cross_entropy(output.flatten(0, 1), labels.flatten())


class _Recurrent(nn.Module):
    """A class for a sequence, from the last state of a recurrent layer."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.layer, self.head = kind(32, WIDTH, batch_first=True), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (batch, length, 32) -> (batch, 10)."""
        output: Tensor = self.head(self.layer(x)[0][:, -1])
        return output


def _recurrent(kind: type[nn.LSTM] | type[nn.GRU]) -> Callable[[int], Specimen]:
    return lambda batch: classified(_Recurrent(kind), torch.randn(batch, LENGTH, 32))


def _words(name: str, task: str, **sizes: int) -> Callable[[int], Specimen]:
    """A language model of the transformers library."""

    def make(batch: int) -> Specimen:
        import transformers

        config = getattr(transformers, f"{name}Config")(vocab_size=WORDS, **sizes)
        for rate in [name for name in vars(config) if "drop" in name]:
            setattr(config, rate, 0.0)
        for token in ("bos_token_id", "eos_token_id"):
            setattr(config, token, None)
        model = getattr(transformers, f"{name}{task}")(config)
        tokens = torch.randint(WORDS, (batch, LENGTH))
        return Specimen(model, {"input_ids": tokens, "labels": tokens})

    return make


ZOO: Makers = {
    **{
        name: _images(name)
        for name in (
            *("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0", "densenet121"),
            *("convnext_tiny", "vgg11_bn", "swin_t"),
        )
    },
    "vit": _vit,
    "transformer_encoder": _encoder,
    "lstm": _recurrent(nn.LSTM),
    "gru": _recurrent(nn.GRU),
    "gpt2": _words("GPT2", "LMHeadModel", n_layer=DEPTH, n_head=HEADS, n_embd=WIDTH),
    "bert": _words(
        "Bert",
        "ForMaskedLM",
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
    ),
    "llama": _words(
        "Llama",
        "ForCausalLM",
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        hidden_size=WIDTH,
        intermediate_size=344,
    ),
    "t5": _words(
        "T5",
        "ForConditionalGeneration",
        num_layers=2,
        num_decoder_layers=2,
        d_model=WIDTH,
        d_kv=32,
        d_ff=4 * WIDTH,
        num_heads=HEADS,
        decoder_start_token_id=0,
    ),
}
